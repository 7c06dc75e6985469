"""A conversion carried out: its files written into a new folder, where they are all there or none counts.

    FOLDER/.asyncfetch-convert/plan         which conversion it is, and the names of its files
    FOLDER/.asyncfetch-convert/<shard>      a whole shard, for a run that goes on after a kill
    FOLDER/.asyncfetch-convert/<shard>.incomplete
    FOLDER/.asyncfetch-convert/overflows    which tensors of them had numbers that their dtype does not hold

Blocking calls: run them in a thread.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from ..errors import DiskFullError, SourceError, storage_errors
from ..sources.located import Landed
from ..storage.cache import path_inside
from ..storage.copies import copy_file
from ..storage.files import free_bytes, make_folder, rename, sync_folder, write_synced
from .configs import CONFIG, left_out, updated
from .conversion import Conversion
from .folder import Step, check_folder, locked, publish, write_shards
from .stored import Overflows

__all__ = ["check_output", "convert"]

_STAGING = ".asyncfetch-convert"
_BOOKKEEPING = frozenset({_STAGING, ".cache", ".DS_Store", "lost+found"})


def check_output(conversion: Conversion, folder: Path, source: Path | None) -> None:
    """Refuse a folder that has anything in it, or that is the `source` or where that one file is, and too small a disk.

    Raises SourceError, StorageError, DiskFullError.
    """
    check_folder(folder)
    with storage_errors(folder):
        if source is not None and (where := _standing(folder, source)):
            raise SourceError(f"{folder} is {where}.", hint="Name a folder elsewhere.")
        found = sorted(set(os.listdir(folder)) - _BOOKKEEPING) if folder.exists() else []
        begun = (folder / _STAGING).is_dir()
    if found and not begun:
        raise SourceError(
            f"{folder} is not empty: there is {found[0]!r}.", hint="Name a new folder, or empty this one."
        )
    beside = conversion.companions
    needed, free = conversion.layout.total_size + sum(file.size for file in beside.values()), free_bytes(folder)
    brought = [folder / path_inside(name) for name in beside]
    there = sum(_size(path) or 0 for path in [*(folder / _STAGING).glob("*.safetensors"), *brought])
    if free is not None and free + there < needed:
        raise DiskFullError(str(folder), needed=needed, free=free, writing="output")


def _standing(folder: Path, source: Path) -> str:
    """What `folder` is to the source, a folder or one file, if nothing may be written there; else ""."""
    real, there = Path(os.path.realpath(folder)), Path(os.path.realpath(source))
    if there.is_file():
        return "where the source is" if real in (there.parent, Path(os.path.realpath(source.parent))) else ""
    if real == there:
        return "the source itself"
    return "in the source" if there in real.parents else ""


def convert(
    conversion: Conversion,
    landed: Mapping[str, Landed],
    folder: Path,
    told: Callable[[Mapping[str, int], frozenset[str]], Step],
    warn: Callable[[str], None],
) -> dict[str, Path]:
    """Write what a conversion gives, of files that are on disk. Returns the path of each file in the folder.

    `told` is that of `saved`, and also gets the shards that an earlier run has written. Raises SourceError,
    CorruptError, StorageError, DiskFullError; then the next run of the same conversion goes on.
    """
    draft = conversion.draft(landed)
    sizes = draft.sizes()
    make_folder(folder, writing="output")
    with locked(folder):
        staging = folder / _STAGING
        done = _gone_on_with(folder, staging, conversion.fingerprint(draft, landed), sizes)
        write_shards(draft, staging, _noting(conversion.overflows, staging, told(sizes, done)), done)
        beside = _bring_companions(conversion, landed, staging, folder, warn)
        with storage_errors(folder, writing="output"):
            publish(draft, staging, folder)
            shutil.rmtree(staging, ignore_errors=True)
    if conversion.overflows.names:
        _tell_overflows(conversion, warn)
    new = [*([draft.layout.index] if draft.layout.index else []), *draft.layout.shards]
    return {name: folder / name for name in new} | beside


def _noting(overflows: Overflows, staging: Path, step: Step) -> Step:
    """`step`, before which is noted what overflows: a later run that finds the shard whole tells it too."""
    noted = staging / "overflows"
    with suppress(OSError, ValueError):
        overflows.names |= dict.fromkeys(map(str, json.loads(noted.read_bytes())))
    known = len(overflows.names)

    def noting(file: str, nbytes: int) -> None:
        nonlocal known
        if len(overflows.names) > known:
            known = len(overflows.names)
            noted.unlink(missing_ok=True)
            write_synced(noted, json.dumps(list(overflows.names)).encode())
        step(file, nbytes)

    return noting


def _gone_on_with(folder: Path, staging: Path, fingerprint: str, sizes: Mapping[str, int]) -> frozenset[str]:
    """The shards that an earlier run of the same conversion has written. What another one has left is removed."""
    with storage_errors(staging, writing="output"):
        plan = staging / "plan"
        try:
            known = json.loads(plan.read_bytes())
            begun, published = known["fingerprint"], [folder / _name(name) for name in known["files"]]
        except (OSError, ValueError, KeyError, TypeError):
            begun, published = None, []
        if begun == fingerprint:
            for path in published:  # some have got their names already
                if path.is_file() and not (staging / path.name).exists():
                    os.replace(path, staging / path.name)
            return frozenset(name for name, size in sizes.items() if _size(staging / name) == size)
        for path in published:
            path.unlink(missing_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        write_synced(plan, json.dumps({"fingerprint": fingerprint, "files": list(sizes)}).encode())
    return frozenset()


def _name(name: object) -> str:
    """The name of a file, which is no path. Raises ValueError."""
    if not isinstance(name, str) or name != os.path.basename(name) or not name.endswith(".safetensors"):
        raise ValueError(name)
    return name


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _bring_companions(
    conversion: Conversion, landed: Mapping[str, Landed], staging: Path, folder: Path, warn: Callable[[str], None]
) -> dict[str, Path]:
    """Copy what lies beside the shards, before these get their names. Returns the path of each file."""
    dtype, dequantized = conversion.wishes.dtype, conversion.scaling is not None and bool(conversion.scaling.weights)
    brought = {}
    for name, file in conversion.companions.items():
        source, target = landed[file.name].path, folder / path_inside(name)
        if source is None or left_out(name, dequantized=dequantized):
            continue
        temporary = staging / "companion.incomplete"
        with storage_errors(target, writing="output"):
            temporary.unlink(missing_ok=True)
            make_folder(target.parent, writing="output")
            if name == CONFIG:
                text, note = updated(source.read_bytes(), dtype, dequantized=dequantized)
                write_synced(temporary, text)
                if note:
                    warn(note)
            else:
                copy_file(Path(os.path.realpath(source)), temporary)
            rename(temporary, target)
            sync_folder(target.parent)
        brought[name] = target
    return brought


def _tell_overflows(conversion: Conversion, warn: Callable[[str], None]) -> None:
    names = list(conversion.overflows.names)
    target = conversion.wishes.dtype
    more = f" and {len(names) - 1:,} more tensors" if len(names) > 1 else ""
    warn(f"{names[0]!r}{more} had numbers too large for {target}: they are infinite, or no numbers, now")
