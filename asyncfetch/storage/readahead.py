"""What is mapped and not in memory is read before it is touched. Blocking calls, which wait for no disk.

The first touch of a page that is not in memory waits for the disk, and reads what the kernel thinks is next: by default
128 KiB, one after the other. So a few threads touch what is wanted before its reader does, many requests at a time.
They hold no map: what nobody has any more is not read.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..spans import MiB, Span
from .memory import available_memory

__all__ = ["read_ahead"]

_PIECE = 8 * MiB  # is in memory if its last page is
_WINDOW = 4 * _PIECE  # read by one call, which nothing cuts short
_IN_FLIGHT = 16 * MiB  # what all threads wait for, where they are neither too few nor too many
_FEWEST, _MOST = 2, 8  # threads of this process
_STEP = MiB // 8  # the kernel's default read-ahead, to which it cuts what it is told to read (MADV_WILLNEED)
_WILLNEED, _POPULATE_READ = 3, 22  # madvise(2); the module mmap does not know the second, and holds the GIL meanwhile


@dataclass(eq=False, slots=True)
class _File:
    pages: weakref.ref[mmap.mmap]
    broken: bool = False


_Window = tuple[_File, Span]
_lock = threading.Lock()
_queue: deque[_Window] = deque()
_queued = 0  # bytes in the queue
_workers = 0


def read_ahead(pages: mmap.mmap, path: Path, wanted: Iterable[Span]) -> None:
    """Have those of the wanted bytes that are not in memory read, in this order, by threads of this process.

    `pages` is a map of the file at `path`. No more is read than half of the memory that is free: what came beyond that
    would push out what nobody has touched yet, and the programs of others. Where all is in memory this costs a system
    call for each 8 MiB.
    """
    global _queued, _workers
    cold = _cold(pages, path, wanted)
    if not cold:
        return
    file, available, threads = _File(weakref.ref(pages)), available_memory(), _threads(path)
    with _lock:
        room = sys.maxsize if available is None else available // 2 - _queued
        for window in cold:
            room -= window.nbytes
            if room < 0:
                break
            _queue.append((file, window))
            _queued += window.nbytes
        more = max(min(threads - _workers, len(_queue)), 0)
        _workers += more
    try:
        for _ in range(more):  # daemons: the end of the program waits for no disk
            threading.Thread(target=_work, name="asyncfetch-read-ahead", daemon=True).start()
            more -= 1
    except RuntimeError:  # there may be no more threads, or the program ends: pages come when they are touched
        with _lock:
            _workers -= more


def _cold(pages: mmap.mmap, path: Path, wanted: Iterable[Span]) -> list[Span]:
    """The windows that are not in memory. None where the file lost its name."""
    pieces = (
        Span(start, min(start + _PIECE, span.stop)) for span in wanted for start in range(span.start, span.stop, _PIECE)
    )
    cold: list[Span] = []
    with suppress(OSError), _residency(pages, path) as in_memory:
        for piece in pieces:
            if in_memory(piece.stop - 1):
                continue
            if cold and cold[-1].stop == piece.start and cold[-1].nbytes < _WINDOW:
                piece = Span(cold.pop().start, piece.stop)
            cold.append(piece)
        return cold
    return []


def _threads(path: Path, root: Path = Path("/")) -> int:
    """How many read from the disk of a file: each waits for one read-ahead of the kernel after the other.

    Its size is a setting of the disk, 128 KiB where nobody has set it. Small ones keep a disk busy only if there are
    several; large ones at many places are slower than at two.
    """
    size = _STEP
    with suppress(OSError, ValueError):
        device = path.stat().st_dev
        size = int((root / f"sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").read_text()) << 10
    return max(_FEWEST, min(_IN_FLIGHT // max(size, _STEP), _MOST))


@contextmanager
def _residency(pages: mmap.mmap, path: Path) -> Iterator[Callable[[int], bool]]:
    """Who knows whether the page of a byte is in memory.

    The kernel tells by mincore(2), but only who may write to a file: everybody else hears that all is there. They are
    told by a read that may not wait (preadv2(2), RWF_NOWAIT). Where neither is known, all is taken to be there.
    """
    if _LIBRARY is None:
        yield lambda _offset: True
    elif _may_write(path):
        yield partial(_by_map, _address(pages), (ctypes.c_ubyte * 1)())
    elif hasattr(os, "RWF_NOWAIT"):
        with open(path, "rb", buffering=0) as stream:
            yield partial(_by_read, stream.fileno())
    else:
        yield lambda _offset: True


def _by_map(address: int, found: ctypes.Array[ctypes.c_ubyte], offset: int) -> bool:
    return bool(_LIBRARY.mincore(address + offset - offset % mmap.PAGESIZE, 1, found)) or bool(found[0] & 1)


def _by_read(descriptor: int, offset: int) -> bool:
    try:
        os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno != errno.EAGAIN
    return True


def _may_write(path: Path) -> bool:
    try:
        return os.stat(path).st_uid == os.geteuid() or os.access(path, os.W_OK)
    except OSError:
        return False


def _work() -> None:
    global _queued, _workers
    while True:
        with _lock:
            if not _queue:
                _workers -= 1
                return
            file, window = _queue.popleft()
            _queued -= window.nbytes
        pages = file.pages()
        if pages is not None and not file.broken:
            file.broken = not _read(pages, window)
        del pages  # or it would last until the next window


def _read(pages: mmap.mmap, window: Span) -> bool:
    """Whether the window is in memory now, or on its way. An I/O error is left to the reader, which gets it anyway."""
    start = window.start - window.start % mmap.PAGESIZE
    address, nbytes = _address(pages) + start, window.stop - start
    if sys.platform == "linux":
        if not _LIBRARY.madvise(address, nbytes, _POPULATE_READ):
            return True
        if ctypes.get_errno() != errno.EINVAL:  # which a kernel before 5.14 says
            return False
    return not any(_LIBRARY.madvise(address + at, min(_STEP, nbytes - at), _WILLNEED) for at in range(0, nbytes, _STEP))


def _address(pages: mmap.mmap) -> int:
    return int(np.frombuffer(pages, np.uint8).ctypes.data)


def _library() -> Any:
    """The C library, whose calls release the GIL; None where it has not what is needed."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        library.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return library


_LIBRARY = _library()


def _nothing_runs() -> None:
    """In a forked child, which has no threads of its parent."""
    global _lock, _queued, _workers
    _lock, _queued, _workers = threading.Lock(), 0, 0
    _queue.clear()


os.register_at_fork(after_in_child=_nothing_runs)
