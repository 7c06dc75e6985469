"""Small files: received into memory, and written, named and synced many in one step. Blocking calls.

Of a file of few bytes the lock, the journal and each hop to a thread cost more than to receive it twice. So nothing of
it is on disk before its hash is right. What a kill leaves behind has a name that `hf cache prune` removes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import storage_errors
from ..spans import MiB
from .cache import RepoCache
from .files import make_folder, write_synced
from .locks import private_name

__all__ = ["SMALL", "SmallFile", "publish_small"]

SMALL = MiB // 16  # bytes


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A whole, verified file: its `name` in the source, its `blob`, and the `size` that one that is there must have.

    `size` is None where nothing tells it from its successor, so that it replaces what is there.
    """

    name: str
    blob: str
    data: memoryview = field(repr=False)
    size: int | None


def publish_small(cache: RepoCache, commit: str, files: Sequence[SmallFile], *, named: bool) -> list[Path]:
    """Write files and give them their names, in the order of `RepoCache.publish_all`. Returns where each is.

    Raises StorageError, DiskFullError.
    """
    written: list[Path] = []
    try:
        for file in files:
            written.append(private_name(cache.partial(file.blob)))
            _write(written[-1], file.data)
        whole = [(path, file.blob, file.name, file.size) for path, file in zip(written, files, strict=True)]
        return cache.publish_all(whole, commit, named=named)
    except BaseException:
        for path in written:
            with suppress(OSError):
                path.unlink()
        raise


def _write(path: Path, data: memoryview) -> None:
    with storage_errors(path, needed=len(data), writing="cache"):
        try:
            write_synced(path, data)
        except FileNotFoundError:  # the folder was pruned
            make_folder(path.parent)
            write_synced(path, data)
