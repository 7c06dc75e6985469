"""What lies in a hub cache, and how large it is: one walk over its folders. Blocking calls: run them in a thread."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ...storage.cache import is_commit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Inventory", "Item", "take_inventory"]

_BLOCK = 512  # bytes, of st_blocks (POSIX, sys/stat.h)


class Item(NamedTuple):
    """A file that takes room: a blob, a partial, or a file that lies in a snapshot itself.

    `folder` is that of its repository, such as `models--org--name`; `path` is below it. `size` is what it takes when it
    is whole, in bytes, and `owed` what of that it does not take yet. `at` is when it was written, in seconds since
    1970. `inode`: files that share one take room once; it has `names` in all.
    """

    folder: str
    path: str
    size: int
    owed: int
    at: float
    inode: tuple[int, int]
    names: int = 1

    @property
    def key(self) -> str:
        """How it is named in the books."""
        return f"{self.folder}/{self.path}"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def partial(self) -> bool:
        """Whether it is on its way, or was left behind there."""
        return self.path.endswith(".incomplete")


class Inventory(NamedTuple):
    """All items. `used` and `owed` are bytes; `free` are those of the file system, of `total` (None: unknown)."""

    items: list[Item]
    used: int
    owed: int
    free: int | None
    total: int | None


def take_inventory(root: Path) -> Inventory:
    """What lies in the cache at `root`. What goes while it is looked at is left out."""
    items = [item for folder in _folders(root) for item in _items(root, folder)]
    sizes = {item.inode: item.size for item in items}
    owed = {item.inode: item.owed for item in items}
    free = total = None
    with suppress(OSError):
        usage = shutil.disk_usage(root)
        free, total = (usage.free, usage.total) if usage.total else (None, None)
    return Inventory(items, sum(sizes.values()), sum(owed.values()), free, total)


def _folders(root: Path) -> list[str]:
    with suppress(OSError), os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if "--" in entry.name and entry.is_dir())
    return []


def _items(root: Path, folder: str) -> Iterator[Item]:
    base = os.path.join(root, folder)
    yield from _below(folder, os.path.join(base, "blobs"), "blobs")
    with suppress(OSError), os.scandir(os.path.join(base, "snapshots")) as commits:
        for commit in commits:
            if is_commit(commit.name):
                yield from _below(folder, commit.path, f"snapshots/{commit.name}")


def _below(folder: str, path: str, named: str) -> Iterator[Item]:
    """The files in a folder and in those below it. Links take no room, and journals go with their partials."""
    with suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(folder, entry.path, f"{named}/{entry.name}")
            elif entry.is_file(follow_symlinks=False) and ".map.incomplete" not in entry.name:
                with suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    taken = found.st_blocks * _BLOCK
                    owed = max(found.st_size - taken, 0) if entry.name.endswith(".incomplete") else 0
                    inode = (found.st_dev, found.st_ino)
                    yield Item(
                        folder, f"{named}/{entry.name}", found.st_size, owed, found.st_mtime, inode, found.st_nlink
                    )
