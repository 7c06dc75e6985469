"""The progress of what a thread writes, told on the event loop."""

from __future__ import annotations

import time
from collections.abc import Mapping

from anyio import from_thread

from ..events import FileProgress, FileState, FileWritten, Notifier, Writing

__all__ = ["Telling"]

_INTERVAL = 0.1  # seconds between two events of a file


class Telling:
    """Tells how far the files are that a thread writes into a folder, and ends the thread where it is cancelled.

    `sizes` are in bytes; those of `done` are there already.
    """

    def __init__(
        self, notify: Notifier, folder: str, sizes: Mapping[str, int], done: frozenset[str] = frozenset()
    ) -> None:
        self._notify = notify
        self._sizes = sizes
        self._written = dict.fromkeys(sizes, 0)
        self._last = 0.0
        files = tuple(FileState(file, size, size if file in done else 0, None) for file, size in sizes.items())
        from_thread.run_sync(notify, Writing(folder, files))

    def __call__(self, file: str, nbytes: int) -> None:
        """`nbytes` more of a file are written, or with 0 it is whole. Raises the cancellation."""
        from_thread.check_cancelled()
        size = self._sizes[file]
        if not nbytes:
            from_thread.run_sync(self._notify, FileWritten(file, size))
            return
        self._written[file] += nbytes
        if time.monotonic() - self._last >= _INTERVAL or self._written[file] == size:
            self._last = time.monotonic()
            from_thread.run_sync(self._notify, FileProgress(file, self._written[file], size))
