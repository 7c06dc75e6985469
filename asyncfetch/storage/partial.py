"""One file being received: which spans are here, its journal, its running hash, its publication.

Two forms with one interface: `FilePartial` writes beside the blob that it will become,
`MemoryPartial` is the final buffer itself. All calls block or compute: run them in a thread.
Several threads may `accept` different spans of one partial at once.

The hash follows the contiguous frontier while bytes land in order; what landed out of order is
caught up from the page cache. The journal may lag behind the bytes and never leads them: after a
kill the listed prefix is hashed again, and the hash of the whole file decides in the end.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..errors import StorageError, storage_errors
from ..spans import MiB, Span, SpanSet
from .buffers import aligned_buffer
from .checksums import new_hash
from .files import LeftOut, copy_to, make_folder, start_writing, sync_file, vanished, write_at
from .journal import forget_journal, journal_of, spans_on_disk, write_journal
from .locks import claim, private_name
from .maps import in_memory, map_file, sees_writes

__all__ = ["FilePartial", "MemoryPartial", "Partial", "StoredPartial", "spans_on_disk"]

_JOURNAL_INTERVAL = 1.0  # seconds
_JOURNAL_BYTES = 6 * MiB  # that it does not list
_MOST_UNLISTED = 7 * MiB  # before who lands more waits for it: so a kill costs 8 MiB of a file at the most
_CATCH_UP = 16 * MiB  # hashed between two looks at the event loop


class Partial:
    """What all forms share: the spans, and the hash at their frontier.

    `buffer` is the whole file, for forms that hold it in one piece. `in_order`: its bytes must be
    landed from the first to the last. `in_memory`: to land them touches no disk.
    """

    in_order = False
    in_memory = False

    @property
    def buffer(self) -> memoryview | None:
        return None

    def __init__(self, size: int, algorithm: str) -> None:
        self.size = size
        self.algorithm = algorithm
        self.present = SpanSet()
        self._lock = threading.Lock()  # guards present
        self._hashing = threading.Lock()  # owns _hash and _hashed
        self._hash = new_hash(algorithm, size)
        self._hashed = 0

    def target(self, offset: int, limit: int, scratch: memoryview) -> memoryview:
        """Where up to `limit` bytes for `offset` are to be received."""
        raise NotImplementedError

    def _store(self, offset: int, data: memoryview) -> None:
        raise NotImplementedError

    def _load(self, offset: int, limit: int) -> memoryview:
        raise NotImplementedError

    def accept(self, offset: int, data: memoryview) -> None:
        """`data` has been received for `offset`: store it, hash it if it is next."""
        self._store(offset, data)
        with self._lock:
            self.present.add(offset, offset + len(data))
        if self._hashing.acquire(blocking=False):
            try:
                if offset == self._hashed:
                    self._hash.update(data)
                    self._hashed += len(data)
            finally:
                self._hashing.release()

    @property
    def received(self) -> int:
        with self._lock:
            return self.present.nbytes

    def missing(self) -> list[Span]:
        with self._lock:
            return self.present.missing(self.size)

    @property
    def frontier(self) -> int:
        """The end of the run of bytes that begins at 0."""
        with self._lock:
            return self.present.frontier

    def reach(self, offset: int) -> int:
        """The end of the run of bytes that begins at `offset`."""
        with self._lock:
            return self.present.reach(offset)

    @property
    def backlog(self) -> int:
        """Bytes at the frontier that are here and not hashed yet."""
        with self._lock:
            return max(self.present.frontier - self._hashed, 0)

    def catch_up(self) -> bool:
        """Hash some of the backlog: some milliseconds of work. False when none is left."""
        with self._hashing:
            for _ in range(_CATCH_UP // MiB):
                limit = min(self.frontier - self._hashed, MiB)
                if limit <= 0:
                    return False
                data = self._load(self._hashed, limit)
                self._hash.update(data)
                self._hashed += len(data)
        return True

    def digest(self) -> str:
        """The hex digest of the whole file. Only when nothing is missing and no backlog is left."""
        if self._hashed != self.size:
            raise RuntimeError(f"{self._hashed} of {self.size} bytes are hashed")
        return self._hash.hexdigest()

    def reset(self) -> None:
        """Forget all bytes: begin again from 0."""
        with self._hashing, self._lock:
            self.present = SpanSet()
            self._hash = new_hash(self.algorithm, self.size)
            self._hashed = 0


class MemoryPartial(Partial):
    """The memory form: bytes are received straight into their final place.

    `data_start` is the length of the safetensors prefix and header, so that tensors are aligned.
    """

    in_memory = True

    def __init__(self, size: int, algorithm: str, *, data_start: int) -> None:
        super().__init__(size, algorithm)
        self._buffer = aligned_buffer(size, data_start)

    @property
    def buffer(self) -> memoryview:
        return self._buffer

    def target(self, offset: int, limit: int, scratch: memoryview) -> memoryview:  # noqa: ARG002
        return self.buffer[offset : offset + limit]

    def _store(self, offset: int, data: memoryview) -> None:
        place = self.buffer[offset : offset + len(data)]
        if _address(place) != _address(data):
            place[:] = data

    def _load(self, offset: int, limit: int) -> memoryview:
        return self.buffer[offset : offset + limit]


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, dtype=np.uint8).ctypes.data) if len(view) else 0


class StoredPartial(Partial):
    """A form that is written to disk, to be published there, left for a later run, or removed."""

    def publish(self, give_name: Callable[[Path], Path], keep: Callable[[int], None] = lambda _: None) -> Path:
        """Sync, close, and let `give_name` rename the file. Returns what `give_name` returns.

        `keep` gets a descriptor of the file before the last one is closed, where it can be read.
        """
        raise NotImplementedError

    def suspend(self) -> None:
        """Stop here, so that a later run can go on where that is possible."""
        raise NotImplementedError

    def discard(self) -> None:
        """Remove what was written."""
        raise NotImplementedError


class FilePartial(StoredPartial):
    """The disk form: `path` grows into a blob, `<path minus .incomplete>.map.incomplete` is its journal.

    `identity` binds the journal to the content (etag, validator, size): what another content left
    behind is dropped. Raises StorageError, DiskFullError.
    """

    def __init__(self, path: Path, size: int, algorithm: str, *, identity: str) -> None:
        super().__init__(size, algorithm)
        self.identity = identity
        self.path, self._fd, shared = claim(path)
        # A private partial, beside one that another process holds, cannot be found by a later run.
        self._journal = journal_of(path) if shared else None
        self._journal_at = time.monotonic()
        self._journaled = 0  # bytes
        self._journal_lock = threading.Lock()
        self._left_out = LeftOut()
        self._scratch: memoryview | None = None
        self._pages: mmap.mmap | None = None
        self._closed = False
        _claimed.add(self)
        try:
            with storage_errors(self.path, needed=size, writing="cache"):
                if shared:
                    self.present = spans_on_disk(path, size, identity=identity)
                    self._journaled = self.present.nbytes
                # What an earlier run has written may have to be read from the disk.
                self._fresh = not self.present.nbytes and sees_writes(self._fd)
                if not self.present.nbytes:
                    self._forget_journal()
                # Never to nothing: where locks hold on one host only, another one may be writing the same bytes.
                os.ftruncate(self._fd, size)
        except BaseException:
            self._close()
            raise

    def target(self, offset: int, limit: int, scratch: memoryview) -> memoryview:  # noqa: ARG002
        return scratch[:limit]

    def _store(self, offset: int, data: memoryview) -> None:
        with storage_errors(self.path, needed=self.size, writing="cache"):
            write_at(self._fd, data, offset)

    def accept(self, offset: int, data: memoryview) -> None:
        super().accept(offset, data)
        late, unlisted = time.monotonic() - self._journal_at >= _JOURNAL_INTERVAL, self._unlisted
        if late or unlisted >= _JOURNAL_BYTES:
            self.save_journal(wait=unlisted >= _MOST_UNLISTED)
            start_writing(self._fd)

    def catch_up(self) -> bool:
        try:
            return super().catch_up()
        finally:
            self._pages = None  # or all that was hashed would count as memory of this process

    def _load(self, offset: int, limit: int) -> memoryview:
        """As it lies in memory, since to copy it may take as long as to hash it.

        A page that had to be read from the disk when it is touched could kill the process (SIGBUS).
        """
        if self._fresh and in_memory(self._fd, offset + limit - 1):
            self._pages = self._pages or map_file(self._fd, self.size)
            if self._pages is not None:
                return memoryview(self._pages)[offset : offset + limit]
        if self._scratch is None:  # one for all: what is read into the same place stays in the processor's cache
            self._scratch = memoryview(bytearray(MiB))
        with storage_errors(self.path):
            got = os.preadv(self._fd, [self._scratch[:limit]], offset)
        if not got:
            raise StorageError(str(self.path), f"it ends at byte {offset:,} although {self.size:,} were written")
        return self._scratch[:got]

    def duplicate(self) -> int:
        """A descriptor of the file for reading, which stays good when the file is renamed or removed."""
        with storage_errors(self.path):
            return os.dup(self._fd)

    @property
    def _unlisted(self) -> int:
        """How many bytes are here that the journal does not list."""
        return self.received - self._journaled

    def save_journal(self, *, wait: bool = False) -> None:
        """Write which spans are on disk, atomically. A failure costs a later run its head start, no more.

        Nothing where another thread does that, unless too much would be left: then it is waited for.
        """
        if self._journal is None or not self._journal_lock.acquire(blocking=wait):
            return
        try:
            if wait and self._unlisted < _JOURNAL_BYTES:  # somebody else has listed it
                return
            self._journal_at = time.monotonic()
            with self._lock:
                spans, nbytes = [(span.start, span.stop) for span in self.present], self.present.nbytes
            try:
                write_journal(self._journal, self._fd, self.size, spans, identity=self.identity)
            except OSError as error:
                self._left_out.say(f"the journal {self._journal.name}", error)
            self._journaled = nbytes  # also where that failed: the next time is after as many more
        finally:
            self._journal_lock.release()

    def reset(self) -> None:
        self._forget_journal()
        super().reset()
        self._journaled = 0

    def suspend(self) -> None:
        """Stop here; a later run goes on. A private partial is removed instead."""
        if self._closed:
            return
        try:
            if self._journal is None or not self.present.nbytes:
                self._remove()
            else:
                self.save_journal()
        finally:
            self._close()

    def discard(self) -> None:
        """Remove the partial and its journal."""
        if not self._closed:
            try:
                self._remove()
            finally:
                self._close()

    def publish(self, give_name: Callable[[Path], Path], keep: Callable[[int], None] = lambda _: None) -> Path:
        """A failed sync is never tried again: the pages may be gone, so the partial is removed."""
        try:
            with storage_errors(self.path, needed=self.size, writing="cache"):
                sync_file(self._fd)
        except StorageError:
            self.discard()
            raise
        # A closed duplicate reports late write errors; the claim holds until the old name is gone.
        with storage_errors(self.path):
            held = os.dup(self._fd)
            inode = os.fstat(held).st_ino
        try:
            self._close()
            final = self._named(give_name, held)
            keep(held)
        finally:
            with suppress(OSError):  # the bytes are synced, and the first close has told of late errors
                os.close(held)
        self._forget_journal()
        with suppress(OSError):
            if self.path.stat().st_ino == inode and final != self.path:  # it was copied, as nothing can be renamed here
                self.path.unlink()
        return final

    def _named(self, give_name: Callable[[Path], Path], held: int) -> Path:
        """What `give_name` returns. A file that was pruned, or moved away, is written anew from its descriptor."""
        path = self.path
        for _ in range(2):
            try:
                return give_name(path)
            except StorageError as error:
                if not vanished(error):
                    raise
            path = private_name(self.path)
            make_folder(path.parent)
            with storage_errors(path, needed=self.size, writing="cache"):
                copy_to(held, path)
        return give_name(path)

    def _forget_journal(self) -> None:
        if self._journal is not None:
            forget_journal(self._journal)

    def _remove(self) -> None:
        self._forget_journal()
        with storage_errors(self.path):
            self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            _claimed.discard(self)
            with storage_errors(self.path):
                os.close(self._fd)


_claimed: set[FilePartial] = set()  # that are open in this process


def _leave_to_the_parent() -> None:
    """In a forked child: a lock lasts as long as any process has the file open, and only the parent writes to it."""
    for partial in _claimed:
        partial._closed = True
        os.close(partial._fd)
        partial._fd = -1
    _claimed.clear()


os.register_at_fork(after_in_child=_leave_to_the_parent)
