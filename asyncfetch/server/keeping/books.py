"""When the files of a cache were read, how often, and what is pinned: on disk, for all servers that share the cache.

Reads are noted in memory, and written down now and then: a kill forgets the last of them. Blocking calls but for
`note`: run them in a thread.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from ...errors import StorageError
from .ledger import Ledger

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["Books", "Read"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS reads (path TEXT PRIMARY KEY, at REAL NOT NULL, hits INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS pins (folder TEXT PRIMARY KEY);
"""


class Read(NamedTuple):
    """When a file was read the last time, in seconds since 1970, and how often in all."""

    at: float
    hits: int


class Books:
    """The books in the file `path`. Files go by their paths in the cache, repositories by their folders there.

    `now` tells the seconds since 1970.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self.path, self._now = path, now
        self._ledger = Ledger(path, _SCHEMA)
        self._noted: dict[str, Read] = {}  # since the last time they were written down
        self._lock = threading.Lock()  # guards _noted

    def note(self, key: str) -> None:
        """A file is read. Does not block."""
        with self._lock:
            before = self._noted.get(key, Read(0.0, 0))
            self._noted[key] = Read(self._now(), before.hits + 1)

    def flush(self) -> None:
        """Write down what was read. What cannot be written now is written later."""
        with self._lock:
            noted, self._noted = self._noted, {}
        if noted and not self._ledger.run(lambda connection: _add_reads(connection, noted)):
            with self._lock:
                self._noted = _together(noted, self._noted)

    def pin(self, folder: str) -> None:
        """Raises StorageError."""
        self._write_pin("INSERT OR IGNORE INTO pins VALUES (?)", folder)

    def unpin(self, folder: str) -> None:
        """Raises StorageError."""
        self._write_pin("DELETE FROM pins WHERE folder = ?", folder)

    def _write_pin(self, statement: str, folder: str) -> None:
        if self._ledger.run(lambda connection: connection.execute(statement, (folder,)).rowcount) is None:
            raise StorageError(str(self._ledger.path), "pins cannot be written there")

    def pins(self) -> set[str]:
        """The folders of the repositories that are pinned. Raises StorageError: nothing may go then.

        Where there are no books, nothing is: a full disk may be why there are none.
        """
        found = self._ledger.run(lambda connection: connection.execute("SELECT folder FROM pins").fetchall())
        if found is None and not self._ledger.exists:
            return set()
        if found is None:
            raise StorageError(str(self._ledger.path), "pins cannot be read there")
        return {folder for (folder,) in found}

    def reads(self) -> dict[str, Read]:
        """When each file was read, and how often, by its key."""
        rows = self._ledger.run(lambda connection: connection.execute("SELECT path, at, hits FROM reads").fetchall())
        with self._lock:
            return _together({path: Read(at, hits) for path, at, hits in rows or ()}, self._noted)

    def forget(self, keys: Iterable[str]) -> None:
        """These files are gone."""
        gone = list(keys)
        with self._lock:
            for key in gone:
                self._noted.pop(key, None)
        self._ledger.run(lambda connection: _forget(connection, gone))

    def close(self) -> None:
        self.flush()


def _together(one: dict[str, Read], other: dict[str, Read]) -> dict[str, Read]:
    """Reads of two books: the later time, and all hits."""
    both = dict(one)
    for key, read in other.items():
        before = both.get(key, Read(0.0, 0))
        both[key] = Read(max(before.at, read.at), before.hits + read.hits)
    return both


def _add_reads(connection: sqlite3.Connection, noted: dict[str, Read]) -> bool:
    connection.executemany(
        "INSERT INTO reads VALUES (?, ?, ?)"
        " ON CONFLICT (path) DO UPDATE SET at = max(at, excluded.at), hits = hits + excluded.hits",
        [(key, read.at, read.hits) for key, read in noted.items()],
    )
    return True


def _forget(connection: sqlite3.Connection, keys: list[str]) -> None:
    connection.executemany("DELETE FROM reads WHERE path = ?", [(key,) for key in keys])
