"""What a server keeps of another Hub: how much room it takes, when it was read, what is pinned, and what goes.

    CACHE/.locks/asyncfetch/kept.sqlite3    last reads, hits and pins, for all servers that share the cache

What goes is the file that nobody has read for the longest time, also one that another tool brought, and a partial that
was left behind. Pinned repositories stay, and what is in use (eviction.py). Names go before blobs (storage/removal.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import anyio

from ...errors import SourceError, StorageError
from ...storage.removal import entries_of
from ...tasks import off_loop
from ..folders.layout import KINDS
from ..text import size_text
from .books import Books
from .borrowing import is_same_everywhere
from .eviction import cache_of, take_out
from .inventory import take_inventory
from .room import Limits, excess, in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from ...storage.cache import RepoCache
    from .books import Read
    from .inventory import Inventory, Item

__all__ = ["Kept", "KeptFile", "KeptRepository"]

LOG = logging.getLogger("asyncfetch.server")
TEND = 30.0  # seconds between two looks; so much of what was read may be forgotten by a kill
_TRUSTED = 60.0  # seconds for which a walk counts: others may write to the cache too
_UNLIMITED = Limits()


class KeptFile(NamedTuple):
    """A file that is kept. `names` are those of snapshots, none where no commit names it; `size` is bytes.

    `at` is when it came and `last_read` when it was read, in seconds since 1970 (None: never); `hits` counts reads.
    """

    names: tuple[str, ...]
    etag: str
    size: int
    at: float
    last_read: float | None
    hits: int


class KeptRepository(NamedTuple):
    """A repository with files that are kept, and the same of all of them together."""

    kind: str
    name: str
    size: int
    last_read: float | None
    hits: int
    pinned: bool
    files: tuple[KeptFile, ...]


class Kept:
    """The books of the cache at `root`, and its room. Methods block, but for `note`, `admit` and `tend_for_ever`.

    `now` tells the seconds since 1970.
    """

    def __init__(self, root: Path, limits: Limits = _UNLIMITED, *, now: Callable[[], float] = time.time) -> None:
        self.root, self.limits = root, limits
        self._now = now
        self.books = Books(root / ".locks" / "asyncfetch" / "kept.sqlite3", now)
        self._deciding = threading.Lock()  # one eviction at a time
        self._coming: dict[Path, int] = {}  # partials of fills of this process, with their sizes
        self._last: tuple[float, Inventory] | None = None
        self._since = 0  # bytes that were admitted since the last walk
        self._turn = anyio.Lock()

    # -- what there is ---------------------------------------------------------------------------

    def note(self, path: Path) -> None:
        """A file of the cache is read: a blob, or a file that lies in a snapshot itself."""
        self.books.note(path.relative_to(self.root).as_posix())

    def pin(self, kind: str, name: str) -> None:
        """Keep a repository whatever happens, also what will come of it. Raises StorageError."""
        self.books.pin(_folder(kind, name))

    def unpin(self, kind: str, name: str) -> None:
        """Raises StorageError."""
        self.books.unpin(_folder(kind, name))

    def repositories(self) -> list[KeptRepository]:
        """What is kept, by names. Raises StorageError."""
        reads, pins = self.books.reads(), self.books.pins()
        by_folder: dict[str, list[Item]] = {}
        for item in take_inventory(self.root).items:
            if not item.partial:
                by_folder.setdefault(item.folder, []).append(item)
        return [
            _told(cache_of(self.root, folder), items, reads, pinned=folder in pins)
            for folder, items in sorted(by_folder.items())
            if folder.partition("--")[0] in KINDS
        ]

    # -- room ------------------------------------------------------------------------------------

    async def admit(self, partial: Path, size: int) -> bool:
        """Whether a file of `size` bytes, to be written at `partial`, has room once that was made. See `left`."""
        async with self._turn:
            try:
                return await off_loop(lambda: self._admit(partial, size), slow=True)
            except Exception:
                LOG.exception("Whether there is room could not be told")
                return False

    def left(self, partial: Path) -> None:
        """A file that was admitted is whole, or is not going on."""
        self._coming.pop(partial, None)

    def _admit(self, partial: Path, size: int) -> bool:
        if self._is_counted(partial, size):
            size = 0
        self._coming[partial] = 0  # so that it does not go itself
        fits = False
        try:
            fits = self.make_room(size)
        except StorageError as error:
            LOG.warning("There may be no room: %s", error)
        if not fits:
            self.left(partial)
            return False
        self._coming[partial] = size
        self._since += size
        return True

    def _is_counted(self, partial: Path, size: int) -> bool:
        """Whether a file takes its room already: as a partial, or in another repository, of which it is made a name."""
        etag = partial.name.partition(".")[0]
        others = self.root.glob(f"*--*/blobs/{etag}") if is_same_everywhere(etag) else ()
        for path in (partial, *others):
            with suppress(OSError):
                if path.stat().st_size == size:
                    return True
        return False

    def make_room(self, nbytes: int) -> bool:
        """Whether `nbytes` more have room, once what may go has gone. Raises StorageError."""
        limits = self.limits
        if limits.max_size is not None and nbytes > limits.max_size:
            return False
        with self._deciding:
            if self._surely(nbytes):
                return True
            found = self._look()
            over = excess(found, nbytes, limits)
            if over <= 0:
                return True
            if not limits.evict:
                return False
            return self._free(found, over) >= over

    def tend(self) -> None:
        """Write down what was read, and keep to the limits, which others who write to the cache do not know."""
        self.books.flush()
        if self.limits.evict:
            self.make_room(0)

    async def tend_for_ever(self) -> None:
        """Call `tend` every TEND seconds, and once more at the end."""
        try:
            while True:
                await anyio.sleep(TEND)
                try:
                    await off_loop(self.tend, slow=True)
                except StorageError:
                    pass  # the books have said so
                except Exception:
                    LOG.exception("The cache could not be tended")
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await off_loop(self.close, abandon=True)

    def close(self) -> None:
        self.books.flush()
        self.books.close()

    def evict(self, kind: str, name: str, etags: Collection[str] | None = None) -> int:
        """Remove a repository, or the files of it with these etags; the bytes that are free now.

        What is in use stays. Raises SourceError where it is pinned, StorageError.
        """
        folder = _folder(kind, name)
        if folder in self.books.pins():
            raise SourceError(f"{name} is pinned.", hint="Unpin it first.")
        with self._deciding:
            items = [item for item in take_inventory(self.root).items if item.folder == folder]
            return self._remove([item for item in items if etags is None or item.name in etags])

    def _surely(self, nbytes: int) -> bool:
        """Whether there is room by the last walk, if everything that was admitted since took all of its room."""
        if self._last is None or not 0 <= self._now() - self._last[0] < _TRUSTED:
            return False
        return excess(self._last[1], self._since + nbytes, self.limits) <= 0

    def _look(self) -> Inventory:
        """What lies there, with the room of what was admitted and has not begun."""
        found = take_inventory(self.root)
        there = {(item.folder, item.name.partition(".")[0]) for item in found.items}  # as a partial, or whole by now
        coming = sum(
            size
            for partial, size in list(self._coming.items())
            if (partial.parts[-3], partial.name.partition(".")[0]) not in there
        )
        found = found._replace(used=found.used + coming, owed=found.owed + coming)
        self._last, self._since = (self._now(), found), 0
        return found

    def _free(self, found: Inventory, over: int) -> int:
        """Remove what was read least recently until `over` bytes are free; the bytes that are. Raises StorageError."""
        reads = {key: read.at for key, read in self.books.reads().items()}
        coming = set(self._coming)
        items = [item for item in found.items if self.root / item.key not in coming]
        waiting = in_order(items, reads, self.books.pins())
        most = sum(group[0].size for group, _ in waiting)
        if most < over:  # nothing would come of it
            return 0
        freed = 0
        while waiting and freed < over:
            chosen: list[Item] = []
            missing = over - freed
            while waiting and missing > 0:
                group, _ = waiting.pop(0)
                chosen += group
                missing -= group[0].size - group[0].owed
            freed += self._remove(chosen)
        # Not walked anew for the next file: of many small ones only the first makes room.
        free = None if found.free is None else found.free + freed
        self._last, self._since = (self._now(), found._replace(used=found.used - freed, free=free)), 0
        if freed:
            LOG.info("Removed %s that nobody has read for the longest time.", size_text(freed))
        return freed

    def _remove(self, items: Collection[Item]) -> int:
        """Remove what of these nobody uses; the bytes that are free now. What cannot be removed is logged."""
        by_folder: dict[str, list[Item]] = {}
        for item in items:
            by_folder.setdefault(item.folder, []).append(item)
        for folder, of_folder in by_folder.items():
            try:
                take_out(self.root, folder, of_folder)
            except StorageError as error:
                LOG.warning("What nobody reads of %s could not be removed: %s", folder, error)
        self._last = None
        gone = [item for item in items if not (self.root / item.key).exists()]
        self.books.forget(item.key for item in gone)
        names = Counter(item.inode for item in gone)
        return sum({item.inode: item.size - item.owed for item in gone if names[item.inode] >= item.names}.values())


def _folder(kind: str, name: str) -> str:
    return "--".join((kind, *name.split("/")))


def _told(cache: RepoCache, items: list[Item], reads: dict[str, Read], *, pinned: bool) -> KeptRepository:
    """What is kept of a repository. Raises StorageError."""
    names: dict[Path, list[str]] = {}
    for entry in entries_of(cache):
        names.setdefault(entry.blob or entry.path, []).append(entry.name)
    files = []
    for item in items:
        read = reads.get(item.key)
        named = tuple(dict.fromkeys(names.get(cache.root / item.key, ())))
        files.append(KeptFile(named, item.name, item.size, item.at, read and read.at, read.hits if read else 0))
    last = max((file.last_read for file in files if file.last_read is not None), default=None)
    kind, *parts = cache.name.split("--")
    size, hits = sum(file.size for file in files), sum(file.hits for file in files)
    return KeptRepository(kind, "/".join(parts), size, last, hits, pinned, tuple(files))
