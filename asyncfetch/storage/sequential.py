"""A file being received where files can only be written from the first byte to the last: a bucket that is mounted."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import StorageError, storage_errors
from .files import sync_file
from .locks import private_name
from .partial import StoredPartial

__all__ = ["SequentialPartial"]


class SequentialPartial(StoredPartial):
    """The disk form without preallocation, without a second look at what was written, and so without a journal.

    One connection brings its bytes in order; a run that is interrupted begins it anew. `path` is that
    of a FilePartial, beside which it has a name of its own. Raises StorageError, DiskFullError.
    """

    in_order = True

    def __init__(self, path: Path, size: int, algorithm: str) -> None:
        super().__init__(size, algorithm)
        self._shared = path
        self._open()

    def target(self, offset: int, limit: int, scratch: memoryview) -> memoryview:  # noqa: ARG002
        return scratch[:limit]

    def accept(self, offset: int, data: memoryview) -> None:
        if offset != self._hashed:
            raise RuntimeError(f"byte {offset} comes after {self._hashed}")
        with storage_errors(self.path, needed=self.size, writing="cache"):
            left = data
            while left:
                left = left[os.write(self._fd, left) :]
        with self._hashing:
            self._hash.update(data)
            self._hashed += len(data)
        with self._lock:
            self.present.add(offset, offset + len(data))

    def reset(self) -> None:
        self.discard()
        super().reset()
        self._open()

    def publish(self, give_name: Callable[[Path], Path], keep: Callable[[int], None] = lambda _: None) -> Path:  # noqa: ARG002
        try:
            with storage_errors(self.path, needed=self.size, writing="cache"):
                sync_file(self._fd)
                self._close()  # only now some file systems take the bytes, or refuse them
            return give_name(self.path)
        except StorageError:
            self.discard()
            raise

    def suspend(self) -> None:
        self.discard()

    def discard(self) -> None:
        with suppress(OSError):
            self._close()
        with storage_errors(self.path):
            self.path.unlink(missing_ok=True)

    def _open(self) -> None:
        self.path = private_name(self._shared)
        with storage_errors(self.path, needed=self.size, writing="cache"):
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)

    def _close(self) -> None:
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)
