"""Open files that are closed by one task while another reads them."""

from __future__ import annotations

import os
import threading

from ..errors import SourceError

__all__ = ["MOST_OPEN", "Descriptor"]

MOST_OPEN = 32  # files that are kept open for the next read, however many a checkpoint has


class Descriptor:
    """A file descriptor that stays open under its readers: `with descriptor as number: os.pread(number, ...)`.

    After `close` nobody begins to read, and the last who reads closes it. A number that is closed under a
    reader is the next opened file's, and its bytes are taken for those of this one. Any thread may call.
    """

    def __init__(self, number: int, owner: str) -> None:
        self._number = number
        self._owner = owner  # what is closed when this is
        self._lock = threading.Lock()
        self._readers = 0
        self._closed = False

    def __enter__(self) -> int:
        with self._lock:
            if self._closed:
                hint = "Use it inside its `with` block, or before close()."
                raise SourceError(f"The {self._owner} is closed.", hint=hint)
            self._readers += 1
            return self._number

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            last = self._closed and not self._readers
        if last:
            os.close(self._number)

    def close(self) -> None:
        """Close it, or leave that to who reads now. A second time it does nothing."""
        with self._lock:
            last, self._closed = not (self._closed or self._readers), True
        if last:
            os.close(self._number)
