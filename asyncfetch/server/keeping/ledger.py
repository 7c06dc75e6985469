"""Small facts that outlast the process, in a SQLite file that several processes may share.

They are bookkeeping: where the file cannot be read or written (a full disk, a file system without locks), the log
says so, and the server goes on with what it has in memory. A damaged file is begun anew. Blocking calls: run them in a
thread.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Ledger"]

LOG = logging.getLogger("asyncfetch.server")
_WAIT = 5.0  # seconds for another process that writes
T = TypeVar("T")


class Ledger:
    """The file at `path` with the tables of `schema`, made with `mode` if it is not there."""

    def __init__(self, path: Path, schema: str, *, mode: int = 0o666) -> None:
        self.path, self._schema, self._mode = path, schema, mode
        self._lock = threading.Lock()
        self._said = False

    @property
    def exists(self) -> bool:
        """Whether there is a file with something in it. Where that cannot be told there is."""
        try:
            return self.path.stat().st_size > 0
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `work` returns, all of it or nothing done; None where the file does not let it."""
        with self._lock:
            for fresh in (False, True):
                try:
                    with closing(self._opened()) as connection, connection:
                        result = work(connection)
                except (sqlite3.Error, OSError) as error:
                    if fresh or not _is_damage(error):
                        self._failed(error)
                        return None
                    self._put_aside()
                else:
                    self._said = False
                    return result
        return None

    def _opened(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, self._mode))
        connection = sqlite3.connect(self.path, timeout=_WAIT)
        try:
            connection.executescript(f"PRAGMA synchronous = NORMAL; {self._schema}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _put_aside(self) -> None:
        LOG.warning("%s is damaged and begun anew.", self.path)
        with suppress(OSError):
            self.path.unlink()

    def _failed(self, error: Exception) -> None:
        if not self._said:
            self._said = True
            LOG.warning("%s cannot be used, so what it tells ends with the process: %s.", self.path, error)


def _is_damage(error: Exception) -> bool:
    """Whether the file is none that can be read, as SQLite says it: https://sqlite.org/rescode.html."""
    return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
