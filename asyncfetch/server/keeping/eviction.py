"""Taking files out of a hub cache that others use too. Blocking calls: run them in a thread.

What is being read or written stays: a reader has the file's shared lock (`open_shared`), who writes a partial its
exclusive one (storage/locks.py), and who brings a blob huggingface_hub's. Where a file system has no locks, who reads a
file that goes reads on all the same.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from ...errors import StorageError
from ...storage.cache import RepoCache
from ...storage.checksums import checksum_of_etag
from ...storage.removal import drop_if_empty, plan_removal, remove, remove_partial

if TYPE_CHECKING:
    from pathlib import Path

    from .inventory import Item

__all__ = ["cache_of", "open_shared", "take_out"]


def cache_of(root: Path, folder: str) -> RepoCache:
    """The cache of a repository, by the name of its folder."""
    kind, *parts = folder.split("--")
    return RepoCache(root, "/".join(parts), repo_type=kind.removesuffix("s"))


def take_out(root: Path, folder: str, items: list[Item]) -> None:
    """Remove what of these items of one repository nobody uses. Raises StorageError."""
    cache = cache_of(root, folder)
    with ExitStack() as holding:
        whole = [item for item in items if not item.partial and _ours_alone(root / item.key, holding)]
        removal = plan_removal(
            cache,
            blobs=[item.name for item in whole if item.path.startswith("blobs/") and checksum_of_etag(item.name)],
            files=[_entry(item) for item in whole if item.path.startswith("snapshots/")],
        )
        remove(removal)
    for item in items:
        if item.partial:
            with suppress(StorageError):
                remove_partial(cache, root / item.key)
    drop_if_empty(cache)


def open_shared(path: Path) -> int:
    """A descriptor for reading, which says to other processes as long as it is open that the file is in use.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with suppress(OSError):  # there are no locks here, or it is just being removed: the bytes stay
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return descriptor


def _ours_alone(path: Path, holding: ExitStack) -> bool:
    """Whether nobody reads or writes a file. It stays ours as long as `holding`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    holding.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        pass
    return True


def _entry(item: Item) -> tuple[str, str]:
    """Commit and name of a file that lies in a snapshot."""
    _, commit, name = item.path.split("/", 2)
    return commit, name
