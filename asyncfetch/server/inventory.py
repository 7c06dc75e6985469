"""What lies in a hub cache, and how large it is: one walk over its folders. Blocking calls: run them in a thread."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ..storage.cache import is_commit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Inventory", "Item", "take_inventory"]

_BLOCK = 512  # bytes, of st_blocks (POSIX, sys/stat.h)


class Item(NamedTuple):
    """A file that takes room: a blob, a partial, or a file that lies in a snapshot itself.

    `folder` is that of its repository, such as `models--org--name`; `path` is below it. `size` is what it takes when it
    is whole, in bytes, and `owed` what of that it does not take yet. `at` is when it was written, in seconds since
    1970. `inode`: files that share one take room once.
    """

    folder: str
    path: str
    size: int
    owed: int
    at: float
    inode: tuple[int, int]

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
    for at in ("blobs", "snapshots"):
        for path, below, names in os.walk(os.path.join(base, at)):
            if path.endswith("/snapshots"):
                below[:] = [name for name in below if is_commit(name)]
            for name in names:
                if ".map.incomplete" in name:  # a journal, which goes with its partial
                    continue
                if (item := _item(folder, os.path.join(path, name), base)) is not None:
                    yield item


def _item(folder: str, path: str, base: str) -> Item | None:
    """A file; None for a link, which takes no room."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    taken = found.st_blocks * _BLOCK
    owed = max(found.st_size - taken, 0) if path.endswith(".incomplete") else 0
    inode = (found.st_dev, found.st_ino)
    return Item(folder, os.path.relpath(path, base), found.st_size, owed, found.st_mtime, inode)
