"""Who may see what, over restarts: while the source is away, what it said before counts (freshness.py:Access).

    STATE/grants.sqlite3    readable by its owner alone: a random key, and for each decision its digest and when it was

A digest tells neither a token nor a repository. A decision counts for a day; that everybody may see something counts
until the source says otherwise. One that was taken back is marked before that is answered, by a negative time: other
servers of the same cache may know it still. Blocking calls but for `end`: run them in a thread.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from ...tasks import off_loop
from ..keeping.ledger import Ledger
from .freshness import LAPSED, OPEN, Access

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["Grants"]

LOG = logging.getLogger("asyncfetch.server")
_MOST = 10_000  # decisions of each kind
# Bytes of the file: how often it was changed (https://sqlite.org/fileformat.html#file_change_counter).
_CHANGES = slice(24, 28)
_OF_ALL = f"{OPEN}*"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (number INTEGER PRIMARY KEY, key BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS grants (digest TEXT PRIMARY KEY, at REAL NOT NULL);
"""
_KNOWN = "SELECT digest, at FROM grants WHERE (digest GLOB ?) = ? AND at > ? ORDER BY at DESC LIMIT ?"
# Of what has no end, the oldest.
_PRUNE = """
DELETE FROM grants WHERE digest IN (
    SELECT digest FROM (SELECT digest, row_number() OVER (PARTITION BY at < 0 ORDER BY abs(at) DESC) AS place
                        FROM grants WHERE at < 0 OR digest GLOB ?)
    WHERE place > ?)
"""
# Unless another server was told otherwise since.
_GRANT = """
INSERT INTO grants VALUES (?, ?)
ON CONFLICT (digest) DO UPDATE SET at = excluded.at WHERE grants.at > 0 OR excluded.at > -grants.at
"""


class Grants:
    """The decisions that are kept in `folder`. `now` tells the seconds since 1970.

    `access` is what is known, with the key that it is known by. Without a file that can be used, nothing.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self._ledger = Ledger(folder / "grants.sqlite3", _SCHEMA, mode=0o600)
        self._now = now
        found = self._ledger.run(lambda connection: _load(connection, now()))
        key, known = found if found is not None else (secrets.token_bytes(32), {})
        self.access = Access(key, known)
        self._seen: tuple[int, bytes] | None = None  # the file, and how often it was changed

    def save(self, changes: Mapping[str, float | None]) -> None:
        """Write down what has changed. Where that cannot be done, and something was taken back, nothing is kept."""
        if self._ledger.run(lambda connection: _save(connection, changes, self._now())) or None not in changes.values():
            return
        with suppress(OSError):
            self._ledger.path.unlink(missing_ok=True)
        LOG.warning("Who may see what is forgotten at the next start, since it cannot be written down.")

    def refused(self) -> dict[str, float]:
        """What was granted and then taken back, by whichever server, and when: all of it if any of it is new."""
        seen = self._state()
        if seen is None or seen == self._seen:
            return {}
        found = self._ledger.run(_load_refused)
        if found is not None:
            self._seen = seen
        return found or {}

    def _state(self) -> tuple[int, bytes] | None:
        try:
            with self._ledger.path.open("rb") as file:
                return os.fstat(file.fileno()).st_ino, file.read(_CHANGES.stop)[_CHANGES]
        except OSError:
            return None

    async def end(self) -> None:
        """Write down what is left, at the end of a server."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            await off_loop(self.close, abandon=True)

    def close(self) -> None:
        if changes := self.access.take_changes():
            self.save(changes)


def _load(connection: sqlite3.Connection, now: float) -> tuple[bytes, dict[str, float]]:
    connection.execute("INSERT OR IGNORE INTO keys VALUES (1, ?)", (secrets.token_bytes(32),))
    ((key,),) = connection.execute("SELECT key FROM keys WHERE number = 1").fetchall()
    known: dict[str, float] = {}
    for is_open, since in ((True, 0.0), (False, now - LAPSED)):
        rows = connection.execute(_KNOWN, (_OF_ALL, is_open, since, _MOST))
        known |= dict(reversed(rows.fetchall()))
    connection.execute(_PRUNE, (_OF_ALL, _MOST))
    return bytes(key), known


def _load_refused(connection: sqlite3.Connection) -> dict[str, float]:
    return dict(connection.execute("SELECT digest, -at FROM grants WHERE at < 0").fetchall())


def _save(connection: sqlite3.Connection, changes: Mapping[str, float | None], now: float) -> bool:
    granted = [(digest, at) for digest, at in changes.items() if at is not None]
    taken = [(-now, digest) for digest, at in changes.items() if at is None]
    connection.executemany(_GRANT, granted)
    connection.executemany("UPDATE grants SET at = ? WHERE digest = ? AND at > 0", taken)
    connection.execute("DELETE FROM grants WHERE at > 0 AND at <= ? AND digest NOT GLOB ?", (now - LAPSED, _OF_ALL))
    return True
