"""Load a real sharded checkpoint over HTTP and compare it, bit by bit, with the file it was cut from.

all-MiniLM-L6-v2 is cut into shards by huggingface_hub's own writer, once as F32 and once as BF16, and
served on this machine with the Hub's protocol. Nothing leaves the machine. Exit code 1 if a bit differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from make_minilm import REPOSITORIES, make, source_tensors
from rich.console import Console
from rich.table import Table

import asyncfetch
from asyncfetch.errors import AsyncfetchError
from asyncfetch.events import Event, FileVerified, Finished
from asyncfetch.server import Server

FIRST, LAST = 12, 3  # tensors shown of each checkpoint, unless --all
DTYPES = {"float32": "F32", "bfloat16": "BF16", "int64": "I64"}  # numpy's names -> those of the file format


@dataclass
class Load:
    """One call of asyncfetch.load, as it was seen from outside. `seconds` is the time of the whole call."""

    state: dict[str, np.ndarray]
    seconds: float
    events: list[Event] = field(default_factory=list)

    @property
    def checksums(self) -> dict[str, str | None]:
        """The shards that asyncfetch reports as verified, with the checksum it checked against."""
        verified = [event for event in self.events if isinstance(event, FileVerified)]
        return {event.file: event.checksum for event in verified if event.file.endswith(".safetensors")}

    @property
    def downloaded(self) -> int:
        """Bytes that came over the network, as asyncfetch reports them."""
        return sum(event.downloaded for event in self.events if isinstance(event, Finished))


def load(repository: str, endpoint: str, cache_dir: Path) -> Load:
    """Load `repository` from the Hub at `endpoint` through the cache in `cache_dir`."""
    events: list[Event] = []
    begin = time.perf_counter()
    state = asyncfetch.load(
        repository, endpoint=endpoint, cache_dir=cache_dir, token=False, offline=False, report=events.append
    )
    return Load(state, time.perf_counter() - begin, events)


def tensor_difference(actual: np.ndarray | None, expected: np.ndarray | None) -> str | None:
    """How two tensors differ, in a few words; None if dtype, shape and every bit are equal."""
    if actual is None or expected is None:
        return "it is missing" if actual is None else "the source has no such tensor"
    if actual.dtype != expected.dtype:
        return f"its dtype is {actual.dtype}, in the source {expected.dtype}"
    if actual.shape != expected.shape:
        return f"its shape is {actual.shape}, in the source {expected.shape}"
    # As bytes: == would call NaN unequal to itself, and -0.0 equal to 0.0.
    return None if actual.tobytes() == expected.tobytes() else "its bytes differ"


def compare(state: Mapping[str, np.ndarray], source: Mapping[str, np.ndarray]) -> dict[str, str | None]:
    """Each tensor name of either side, with what `tensor_difference` says of it."""
    return {name: tensor_difference(state.get(name), source.get(name)) for name in {**source, **state}}


def unverified(folder: Path, files: Sequence[str], checksums: Mapping[str, str | None]) -> dict[str, str]:
    """The shards whose reported checksum is not the sha256 of the file that was served, with the reason."""
    wrong = {}
    for file in files:
        actual = "sha256:" + hashlib.sha256((folder / file).read_bytes()).hexdigest()
        if checksums.get(file) != actual:
            wrong[file] = f"reported {checksums.get(file)}, the file served has {actual}"
    return wrong


def show_tensors(
    console: Console, load: Load, verdicts: Mapping[str, str | None], shard_of: Mapping[str, str], *, everything: bool
) -> None:
    """The table of tensors: the first and the last, or all of them, then the totals."""
    table = Table(box=None, padding=(0, 1), header_style="bold", show_footer=True, footer_style="bold")
    equal = sum(verdict is None for verdict in verdicts.values())
    nbytes = sum(tensor.nbytes for tensor in load.state.values())
    table.add_column("tensor", f"{len(load.state)} tensors", overflow="fold")
    table.add_column("dtype")
    table.add_column("shape")
    table.add_column("bytes", f"{nbytes:,}", justify="right")
    table.add_column("shard", f"{len(set(shard_of.values()))}", justify="right")
    table.add_column("equal", f"{equal} of {len(verdicts)}", justify="right")
    names = list(load.state)
    hidden = 0 if everything else max(len(names) - FIRST - LAST, 0)
    for position, name in enumerate(names):
        if hidden and position == FIRST:
            table.add_row(f"… {hidden} more …", style="dim")
        if not hidden or position < FIRST or position >= len(names) - LAST:
            tensor = load.state[name]
            shape = "×".join(map(str, tensor.shape)) or "scalar"
            shard = shard_of.get(name, "?").removeprefix("model-").removesuffix(".safetensors")
            mark = "[green]yes[/]" if verdicts[name] is None else "[red]NO[/]"
            table.add_row(
                name,
                DTYPES.get(tensor.dtype.name, tensor.dtype.name),
                shape,
                f"{tensor.nbytes:,}",
                shard[:5].lstrip("0"),
                mark,
            )
    console.print(table)


def show_shards(
    console: Console, folder: Path, files: Sequence[str], wrong: Mapping[str, str], checksums: Mapping[str, str | None]
) -> None:
    """The table of shards with the sha256 that each was verified against."""
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("shard")
    table.add_column("bytes", justify="right")
    table.add_column("sha256")
    for file in files:
        digest = (checksums.get(file) or "").removeprefix("sha256:")
        mark = "[red]NOT VERIFIED[/]" if file in wrong else f"[green]verified[/] {digest[:24]}…"
        table.add_row(file, f"{(folder / file).stat().st_size:,}", mark)
    console.print(table)


def demonstrate(
    console: Console, root: Path, repository: str, endpoint: str, cache_dir: Path, *, everything: bool
) -> tuple[int, int, list[str]]:
    """Load one repository, compare it and show it: (tensors, shards, what is wrong)."""
    folder = root / repository
    shard_of: dict[str, str] = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(set(shard_of.values()))
    first = load(repository, endpoint, cache_dir)
    verdicts = compare(first.state, source_tensors(REPOSITORIES[repository][0]))
    wrong = unverified(folder, files, first.checksums)

    console.rule(f"[bold]{repository}[/]", align="left")
    show_tensors(console, first, verdicts, shard_of, everything=everything)
    console.print()
    show_shards(console, folder, files, wrong, first.checksums)
    rate = first.downloaded / first.seconds / 1e6
    console.print(
        f"\n {first.downloaded:,} bytes over HTTP in {first.seconds:.2f} s ({rate:,.0f} MB/s), "
        "from the call to the state dict"
    )
    again = load(repository, endpoint, cache_dir)
    console.print(f" again, from the cache: {again.downloaded:,} bytes over HTTP in {again.seconds:.2f} s\n")

    problems = [f"{repository}: {name}: {verdict}" for name, verdict in verdicts.items() if verdict]
    problems += [f"{repository}: {file}: {reason}" for file, reason in wrong.items()]
    size = sum((folder / file).stat().st_size for file in files)
    if first.downloaded < size:
        problems.append(f"{repository}: {first.downloaded:,} bytes came over HTTP, the shards have {size:,}")
    cached = compare(again.state, first.state)
    problems += [f"{repository}, from the cache: {name}: {verdict}" for name, verdict in cached.items() if verdict]
    return len(first.state), len(files), problems


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="show every tensor, not the first and last few")
    options = parser.parse_args(arguments)
    # The server is on this machine: no proxy of the user's stands in between.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    tensors, shards = 0, 0
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="asyncfetch-demo-") as temporary:
        root, cache_dir = Path(temporary) / "hub", Path(temporary) / "cache"
        for repository, (dtype, least) in REPOSITORIES.items():
            make(root / repository, dtype, least)
        with Server(root) as server:
            console.print(f"all-MiniLM-L6-v2, cut into shards by huggingface_hub and served at {server.url}\n")
            for repository in REPOSITORIES:
                try:
                    found = demonstrate(console, root, repository, server.url, cache_dir, everything=options.all)
                except AsyncfetchError as error:
                    print(f"FAILED: {repository}: {type(error).__name__}: {error}", file=sys.stderr)
                    return 1
                tensors, shards, problems = tensors + found[0], shards + found[1], problems + found[2]
    if problems:
        print(*problems[:20], sep="\n", file=sys.stderr)
        print(f"FAILED: {len(problems)} differences between what was loaded and its source", file=sys.stderr)
        return 1
    console.print(
        f"[bold green]{tensors} tensors from {shards} shards over HTTP, sha256 verified, all equal to the source[/]"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
