"""What a server keeps of another Hub: how much room it takes, when it was read, what is pinned, and what goes.

    CACHE/.locks/asyncfetch/kept.sqlite3    last reads, hits and pins, for all servers that share the cache

What goes is the file that nobody has read for the longest time, also one that another tool brought, and a partial that
was left behind. What stays: pinned repositories; what is being read or written, by any process that locks it as we do;
and what has huggingface_hub's lock. Names go before blobs (storage/removal.py). Who reads a file that goes, goes on.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio

from ..errors import AsyncfetchError, SourceError, StorageError
from ..storage.cache import RepoCache
from ..storage.checksums import checksum_of_etag
from ..storage.journal import forget_journal, journal_of
from ..storage.removal import entries_of, plan_removal, remove
from ..tasks import off_loop
from .inventory import Inventory, Item, take_inventory
from .layout import KINDS
from .ledger import Ledger
from .room import Limits, excess, in_order
from .text import size_text

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Kept", "KeptFile", "KeptRepository", "open_shared"]

LOG = logging.getLogger("asyncfetch.server")
TEND = 30.0  # seconds between two looks; so much of what was read may be forgotten by a kill
_TRUSTED = 60.0  # seconds for which a walk counts: others may write to the cache too
_SCHEMA = """
CREATE TABLE IF NOT EXISTS reads (path TEXT PRIMARY KEY, at REAL NOT NULL, hits INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS pins (folder TEXT PRIMARY KEY);
"""


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


class _Read(NamedTuple):
    at: float
    hits: int


class Kept:
    """The books of the cache at `root`, and its room. Methods block, but for `note`, `admit` and `tend_for_ever`.

    `now` tells the seconds since 1970.
    """

    def __init__(self, root: Path, limits: Limits = Limits(), *, now: Callable[[], float] = time.time) -> None:
        self.root, self.limits = root, limits
        self._now = now
        self._ledger = Ledger(root / ".locks" / "asyncfetch" / "kept.sqlite3", _SCHEMA)
        self._noted: dict[str, _Read] = {}  # since the last time they were written down
        self._lock = threading.Lock()  # guards _noted
        self._deciding = threading.Lock()  # one eviction at a time
        self._coming: dict[Path, int] = {}  # partials of fills of this process, with their sizes
        self._last: tuple[float, Inventory] | None = None
        self._since = 0  # bytes that were admitted since the last walk
        self._turn = anyio.Lock()

    # -- reads and pins --------------------------------------------------------------------------

    def note(self, path: Path) -> None:
        """A file of the cache is read: a blob, or a file that lies in a snapshot itself."""
        key = path.relative_to(self.root).as_posix()
        with self._lock:
            before = self._noted.get(key, _Read(0.0, 0))
            self._noted[key] = _Read(self._now(), before.hits + 1)

    def flush(self) -> None:
        """Write down what was read. What cannot be written now is written later."""
        with self._lock:
            noted, self._noted = self._noted, {}
        if noted and not self._ledger.run(lambda connection: _add_reads(connection, noted)):
            with self._lock:
                self._noted = _together(noted, self._noted)

    def pin(self, kind: str, name: str) -> None:
        """Keep a repository whatever happens, also what will come of it. Raises StorageError."""
        self._write_pin("INSERT OR IGNORE INTO pins VALUES (?)", _folder(kind, name))

    def unpin(self, kind: str, name: str) -> None:
        """Raises StorageError."""
        self._write_pin("DELETE FROM pins WHERE folder = ?", _folder(kind, name))

    def _write_pin(self, statement: str, folder: str) -> None:
        if self._ledger.run(lambda connection: connection.execute(statement, (folder,)).rowcount) is None:
            raise StorageError(str(self._ledger.path), "pins cannot be written there")

    def pins(self) -> set[str]:
        """The folders of the repositories that are pinned. Raises StorageError: nothing may go then."""
        found = self._ledger.run(lambda connection: connection.execute("SELECT folder FROM pins").fetchall())
        if found is None:
            raise StorageError(str(self._ledger.path), "pins cannot be read there")
        return {folder for (folder,) in found}

    def _reads(self) -> dict[str, _Read]:
        rows = self._ledger.run(lambda connection: connection.execute("SELECT path, at, hits FROM reads").fetchall())
        with self._lock:
            return _together({path: _Read(at, hits) for path, at, hits in rows or ()}, self._noted)

    def repositories(self) -> list[KeptRepository]:
        """What is kept, by names. Raises StorageError."""
        reads, pins = self._reads(), self.pins()
        by_folder: dict[str, list[Item]] = {}
        for item in take_inventory(self.root).items:
            if not item.partial:
                by_folder.setdefault(item.folder, []).append(item)
        return [
            _told(_cache(self.root, folder), items, reads, pinned=folder in pins)
            for folder, items in sorted(by_folder.items())
            if folder.partition("--")[0] in KINDS
        ]

    # -- room ------------------------------------------------------------------------------------

    async def admit(self, partial: Path, size: int) -> bool:
        """Whether a file of `size` bytes that is to be written at `partial` has room, once that was made. See `left`."""
        async with self._turn:
            fits = await off_loop(lambda: self._admit(partial, size), slow=True)
        return fits

    def left(self, partial: Path) -> None:
        """A file that was admitted is whole, or is not going on."""
        self._coming.pop(partial, None)

    def _admit(self, partial: Path, size: int) -> bool:
        with suppress(OSError):
            if partial.stat().st_size == size:  # gone on with: it is counted already
                size = 0
        self._coming[partial] = 0  # so that it does not go itself
        if not self.make_room(size):
            self.left(partial)
            return False
        self._coming[partial] = size
        self._since += size
        return True

    def make_room(self, nbytes: int) -> bool:
        """Whether `nbytes` more have room, once what may go has gone."""
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
        self.flush()
        if self.limits.evict:
            self.make_room(0)

    async def tend_for_ever(self) -> None:
        """Call `tend` every TEND seconds, and once more at the end."""
        try:
            while True:
                await anyio.sleep(TEND)
                try:
                    await off_loop(self.tend, slow=True)
                except Exception:
                    LOG.exception("The cache could not be tended")
        finally:
            with anyio.CancelScope(shield=True):
                await off_loop(self.close)

    def close(self) -> None:
        self.flush()
        self._ledger.close()

    def evict(self, kind: str, name: str, etags: Collection[str] | None = None) -> int:
        """Remove a repository, or the files of it with these etags; the bytes that are free now.

        What is in use stays. Raises SourceError where it is pinned, StorageError.
        """
        folder = _folder(kind, name)
        if folder in self.pins():
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
        there = {self.root / item.key for item in found.items}
        coming = sum(size for partial, size in list(self._coming.items()) if partial not in there)
        found = found._replace(used=found.used + coming, owed=found.owed + coming)
        self._last, self._since = (self._now(), found), 0
        return found

    def _free(self, found: Inventory, over: int) -> int:
        """Remove what was read least recently until `over` bytes are free, and a little more. The bytes that are."""
        reads = {key: read.at for key, read in self._reads().items()}
        coming = set(self._coming)
        items = [item for item in found.items if self.root / item.key not in coming]
        waiting = in_order(items, reads, self.pins())
        most = sum(group[0].size for group, _ in waiting)
        if most < over:  # nothing would come of it
            return 0
        freed, wanted = 0, over + self.limits.slack()
        while waiting and freed < wanted:
            chosen: list[Item] = []
            missing = wanted - freed
            while waiting and missing > 0:
                group, _ = waiting.pop(0)
                chosen += group
                missing -= group[0].size - group[0].owed
            freed += self._remove(chosen)
        self._last = None
        if freed:
            LOG.info("Removed %s that nobody has read for the longest time.", size_text(freed))
        return freed

    def _remove(self, items: Iterable[Item]) -> int:
        """Remove what of these nobody uses; the bytes that are free now. What cannot be removed is logged."""
        freed, by_folder = 0, dict[str, list[Item]]()
        for item in items:
            by_folder.setdefault(item.folder, []).append(item)
        for folder, of_folder in by_folder.items():
            cache = _cache(self.root, folder)
            try:
                freed += self._remove_of(cache, of_folder)
                _drop_if_empty(cache.folder)
            except AsyncfetchError as error:
                LOG.warning("%s could not be removed: %s", cache.name, error)
        self._last = None
        return freed

    def _remove_of(self, cache: RepoCache, items: list[Item]) -> int:
        freed = 0
        with ExitStack() as holding:
            free = [item for item in items if _ours_alone(self.root / item.key, holding)]
            whole = [item for item in free if not item.partial]
            for item in set(free) - set(whole):
                freed += _remove_partial(cache, self.root / item.key, item)
            removal = plan_removal(
                cache,
                blobs=[item.name for item in whole if item.path.startswith("blobs/") and checksum_of_etag(item.name)],
                files=[_entry(item) for item in whole if item.path.startswith("snapshots/")],
            )
            removed = remove(removal)
        self._ledger.run(lambda connection: _forget(connection, [item.key for item in whole]))
        return freed + removed.nbytes


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


def _remove_partial(cache: RepoCache, path: Path, item: Item) -> int:
    """Remove a partial that nobody goes on with, of any tool; the bytes that are free now."""
    etag = item.name.partition(".")[0]
    lock = cache.lock(etag) if checksum_of_etag(etag) else None
    try:
        if lock is not None:
            lock.acquire(timeout=0)
    except OSError:  # filelock's Timeout is one: it is on its way
        return 0
    try:
        with suppress(OSError):
            forget_journal(journal_of(path))
            path.unlink()
            return item.size - item.owed
    finally:
        if lock is not None:
            lock.release()
    return 0


def _entry(item: Item) -> tuple[str, str]:
    """Commit and name of a file that lies in a snapshot."""
    _, commit, name = item.path.split("/", 2)
    return commit, name


def _drop_if_empty(folder: Path) -> None:
    """Remove a repository of which no file is left: huggingface_hub takes one without snapshots for damage."""
    if any(names for _, _, names in os.walk(folder)):
        return
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(path)


def _folder(kind: str, name: str) -> str:
    return "--".join((kind, *name.split("/")))


def _cache(root: Path, folder: str) -> RepoCache:
    kind, *parts = folder.split("--")
    return RepoCache(root, "/".join(parts), repo_type=kind.removesuffix("s"))


def _told(cache: RepoCache, items: list[Item], reads: dict[str, _Read], *, pinned: bool) -> KeptRepository:
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


def _together(one: dict[str, _Read], other: dict[str, _Read]) -> dict[str, _Read]:
    """Reads of two books: the later time, and all hits."""
    both = dict(one)
    for key, read in other.items():
        before = both.get(key, _Read(0.0, 0))
        both[key] = _Read(max(before.at, read.at), before.hits + read.hits)
    return both


def _add_reads(connection: sqlite3.Connection, noted: dict[str, _Read]) -> bool:
    connection.executemany(
        "INSERT INTO reads VALUES (?, ?, ?)"
        " ON CONFLICT (path) DO UPDATE SET at = max(at, excluded.at), hits = hits + excluded.hits",
        [(key, read.at, read.hits) for key, read in noted.items()],
    )
    return True


def _forget(connection: sqlite3.Connection, keys: list[str]) -> None:
    connection.executemany("DELETE FROM reads WHERE path = ?", [(key,) for key in keys])
