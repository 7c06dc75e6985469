"""A checkpoint put into a folder, in place of an older one. Blocking calls: run them in a thread.

    FOLDER/model-00001-of-00002.safetensors ...      or model.safetensors
    FOLDER/model.safetensors.index.json
    FOLDER/.asyncfetch-<hex>/                        shards that are being written

At any moment, also after a kill or a power cut, the folder has the old checkpoint or the new one, and never some shards
of each. What counts is the index: it is replaced in one step, when all shards that it names are there, synced. Where
new shards have the names of old ones, the index first names the new ones where they were written. Then these get their
second names in the folder, in place of the old ones, which nothing names any more; and then the index names those.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import DiskFullError, SourceError, StorageError, storage_errors
from ..format.sharding import Layout, index_text
from ..format.writer import Outgoing, file_bytes, write_file
from ..storage.cache import is_commit
from ..storage.copies import link_or_copy
from ..storage.files import free_bytes, make_folder, rename, sync_folder, write_synced
from ..storage.roots import expanded

__all__ = [
    "Draft",
    "Step",
    "Told",
    "check_folder",
    "locked",
    "named_folder",
    "publish",
    "saved",
    "write_shards",
]

_DRAFT = re.compile(r"\.asyncfetch-[0-9a-f]{8}")
Step = Callable[[str, int], None]  # hears which bytes of a file were written, and of 0 when it is whole; may raise
Told = Callable[[Mapping[str, int]], Step]


def _nobody(_file: str, _nbytes: int) -> None:
    """What hears of steps where nobody wants to."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What is to be written: the shards, with what is said in each of them, and the index."""

    layout: Layout
    tensors: Mapping[str, Outgoing]
    shard_metadata: Mapping[str, str]
    index_metadata: Mapping[str, str]

    def sizes(self) -> dict[str, int]:
        """The bytes of each shard. Raises SourceError for what the format does not allow."""
        return {shard: file_bytes(self.held(shard), self.shard_metadata) for shard in self.layout.shards}

    def held(self, shard: str) -> dict[str, Outgoing]:
        """The tensors of a shard."""
        return {name: self.tensors[name] for name in self.layout.shards[shard]}


def named_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder that a user names. Raises SourceError for one in a home folder that is not known."""
    path = expanded(os.fspath(folder), variables=False)
    if path is None:
        raise SourceError(f"{os.fspath(folder)!r} is in a home folder that is not known.", hint="Give its path.")
    return path


def check_folder(folder: Path) -> None:
    """Refuse a folder that nothing can be saved in, or that belongs to a cache. Raises SourceError, StorageError."""
    with storage_errors(folder):
        real = Path(os.path.realpath(folder))
        if real.exists() and not real.is_dir():
            raise SourceError(f"{folder} is no folder.", hint="Name one to save in; it need not exist.")
        above = next(one for one in (real, *real.parents) if one.exists())
        if not above.is_dir():
            raise StorageError(str(above), "it is no folder", hint="Name another folder.")
        if not os.access(above, os.W_OK | os.X_OK):
            raise StorageError(str(above), "it is not writable", hint="Name another folder.")
        if real.parent.name == "snapshots" and is_commit(real.name):
            raise SourceError(
                f"{folder} is a snapshot of the cache, which others load as it was published.",
                hint="Name another folder.",
            )


def saved(draft: Draft, folder: Path, names: re.Pattern[str], told: Told = lambda _: _nobody) -> dict[str, Path]:
    """Write a checkpoint into a folder, in place of what is there under such `names`. Returns the path of each file.

    `told` gets the size of each shard before the first is written, and gives what hears of each step. Where that
    raises, or anything else fails, the old checkpoint stays. Raises SourceError, StorageError, DiskFullError.
    """
    check_folder(folder)
    sizes, free = draft.sizes(), free_bytes(folder)
    needed = sum(sizes.values())
    if free is not None and free < needed:
        raise DiskFullError(str(folder), needed=needed, free=free, writing="output")
    make_folder(folder, writing="output")
    new = [*draft.layout.shards, *([draft.layout.index] if draft.layout.index else [])]
    with locked(folder), storage_errors(folder, needed=needed, writing="output"):
        for name in new:
            if (folder / name).is_dir():
                raise SourceError(f"{folder / name} is a folder, where a file is to be.", hint="Move it away.")
        staging = folder / f".asyncfetch-{secrets.token_hex(4)}"
        try:
            staging.mkdir()
            write_shards(draft, staging, told(sizes))
            publish(draft, staging, folder)
        except BaseException:
            if not _names(folder, draft, staging):
                shutil.rmtree(staging, ignore_errors=True)
            raise
        _remove_old(folder, names, new)
    return {name: folder / name for name in new}


def write_shards(draft: Draft, staging: Path, step: Step, done: frozenset[str] = frozenset()) -> None:
    """Write the shards that are not `done` into a folder, and sync them. Each gets its name when it is whole."""
    for shard in draft.layout.shards:
        if shard in done:
            continue
        unnamed = staging / f"{shard}.incomplete"
        unnamed.unlink(missing_ok=True)
        write_file(
            draft.held(shard),
            unnamed,
            metadata=draft.shard_metadata,
            step=lambda nbytes: step(shard, nbytes),  # noqa: B023
        )
        os.replace(unnamed, staging / shard)
        step(shard, 0)
    sync_folder(staging)


def publish(draft: Draft, staging: Path, folder: Path) -> None:
    """Give the new shards their names, and let the index name them."""
    index = draft.layout.index
    taken = index is not None and any(os.path.lexists(folder / shard) for shard in draft.layout.shards)
    if index is not None and taken:
        _write_index(draft, staging, folder, below=f"{staging.name}/")
    for shard in draft.layout.shards:
        source = staging / shard
        if taken:
            link_or_copy(source, source := staging / f"{shard}.link")
        rename(source, folder / shard)
    sync_folder(folder)
    if index is not None:
        _write_index(draft, staging, folder)


def _write_index(draft: Draft, staging: Path, folder: Path, *, below: str = "") -> None:
    index = draft.layout.index or ""
    temporary = staging / f"{index}.{secrets.token_hex(4)}"
    write_synced(temporary, index_text(draft.layout, draft.index_metadata, below=below))
    rename(temporary, folder / index)
    sync_folder(folder)


def _names(folder: Path, draft: Draft, staging: Path) -> bool:
    """Whether the index names what was written where it was written."""
    try:
        return draft.layout.index is not None and staging.name.encode() in (folder / draft.layout.index).read_bytes()
    except OSError:
        return False


def _remove_old(folder: Path, names: re.Pattern[str], new: list[str]) -> None:
    """Remove what is left of older checkpoints: an index before its shards. What cannot be removed does no harm."""
    with suppress(OSError):
        old = [name for name in os.listdir(folder) if names.fullmatch(name) and name not in new]
        old.sort(key=lambda name: not name.endswith(".json"))
        for name in old:
            (folder / name).unlink(missing_ok=True)
            if name.endswith(".json"):
                sync_folder(folder)
        for name in os.listdir(folder):
            if _DRAFT.fullmatch(name):
                shutil.rmtree(folder / name, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no other process save in the folder meanwhile, where the kernel can tell."""
    with storage_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                str(folder), "another process is saving there", hint="Wait for it, or name another folder."
            ) from None
        except OSError:  # there are no locks here
            pass
        yield
    finally:
        os.close(descriptor)
