"""Save over a checkpoint again and again, killed before each change of the file system in turn.

Run as `python -m tests.saving.kills FOLDER`. It prints, as JSON, which checkpoint each reader found after each kill.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from asyncfetch.format.sharding import NAMES
from asyncfetch.saving.state_dict import drafted, saved

CHANGES = frozenset({"os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "open"})
STRUCK = 9


def checkpoint(value: int, limit: int | None, folder: Path) -> None:
    """One whose numbers are all `value`, in shards of `limit` bytes."""
    draft, names = drafted({f"t.{n}": np.full(8, value, np.int64) for n in range(3)}, limit, None, NAMES)
    saved(draft, folder, names)


def by_index(folder: Path) -> set[int]:
    """The numbers that a reader finds which prefers an index, as asyncfetch does."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return numbers([folder / "model.safetensors"])
    return numbers([folder / shard for shard in set(json.loads(index.read_bytes())["weight_map"].values())])


def by_file(folder: Path) -> set[int]:
    """The numbers that a reader finds which prefers the one file, as transformers does."""
    one = folder / "model.safetensors"
    return numbers([one]) if one.exists() else by_index(folder)


def numbers(files: list[Path]) -> set[int]:
    arrays = [array for file in files for array in load_file(file).values()]
    assert len(arrays) == 3
    return {int(number) for array in arrays for number in array}


def strike(work: Callable[[], object], after: int) -> int:
    """The exit status of a fork that does `work` and is killed before its change number `after`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = itertools.count(after, -1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        written = event != "open" or arguments[2] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
        if event in CHANGES and written and not next(left):
            os._exit(STRUCK)

    sys.addaudithook(hook)
    work()
    os._exit(0)


def no_syncs() -> None:
    """A kill loses nothing that was written, so nothing need be synced here, which takes most of the time."""
    os.fsync = lambda _: None


def main(root: Path) -> None:
    no_syncs()
    for old, new in ((64, 64), (64, 128), (64, None), (None, 64), (None, None)):
        found: list[list[list[int]]] = []
        for after in itertools.count():
            folder = root / "model"
            shutil.rmtree(folder, ignore_errors=True)
            checkpoint(1, old, folder)
            status = strike(lambda: checkpoint(2, new, folder), after)  # noqa: B023
            found.append([sorted(by_index(folder)), sorted(by_file(folder))])
            checkpoint(3, new, folder)  # what is left behind is in nobody's way
            left = sorted(
                path.name for path in folder.iterdir() if path.name.startswith(".") or "incomplete" in path.name
            )
            if status == 0:
                break
            assert status == STRUCK
            assert by_index(folder) == by_file(folder) == {3}
            assert not left, left
        print(json.dumps({"old": old, "new": new, "found": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
