"""Who may see what, over restarts: while the source is away, what it said before counts (freshness.py:Access).

    STATE/grants.sqlite3    readable by its owner alone: a random key, and for each decision its digest and when it was

A digest tells neither a token nor a repository. A decision counts for a day, and one that was taken back is removed
before that is answered. Blocking calls but for `end`: run them in a thread.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from ...tasks import off_loop
from ..keeping.ledger import Ledger
from .freshness import LAPSED, Access

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["Grants"]

LOG = logging.getLogger("asyncfetch.server")
_MOST = 10_000  # decisions
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (number INTEGER PRIMARY KEY, key BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS grants (digest TEXT PRIMARY KEY, at REAL NOT NULL);
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

    def save(self, changes: Mapping[str, float | None]) -> None:
        """Write down what has changed. Where that cannot be done, and something was taken back, nothing is kept."""
        if self._ledger.run(lambda connection: _save(connection, changes, self._now())) or None not in changes.values():
            return
        with suppress(OSError):
            self._ledger.path.unlink(missing_ok=True)
        LOG.warning("Who may see what is forgotten at the next start, since it cannot be written down.")

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
    rows = connection.execute(
        "SELECT digest, at FROM grants WHERE at > ? ORDER BY at DESC LIMIT ?", (now - LAPSED, _MOST)
    )
    return bytes(key), dict(reversed(rows.fetchall()))


def _save(connection: sqlite3.Connection, changes: Mapping[str, float | None], now: float) -> bool:
    granted = [(digest, at) for digest, at in changes.items() if at is not None]
    taken = [(digest,) for digest, at in changes.items() if at is None]
    connection.executemany("INSERT OR REPLACE INTO grants VALUES (?, ?)", granted)
    connection.executemany("DELETE FROM grants WHERE digest = ?", taken)
    connection.execute("DELETE FROM grants WHERE at <= ?", (now - LAPSED,))
    return True
