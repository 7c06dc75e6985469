"""What the kernel has in memory of a file (mincore), and files of which it has nothing."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncfetch.storage import readahead


def cold_file(path: Path, size: int) -> Path:
    """A file of zeros that takes no room and is not in memory."""
    path.touch()
    os.truncate(path, size)
    forget(path)
    return path


def forget(path: Path) -> None:
    """Let the kernel drop all that it has of a file. Skips the test where it does not, as on tmpfs."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
        for _ in range(100):  # a page that somebody holds at the moment stays
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if not _pages(path, 0, path.stat().st_size).any():
                return
            time.sleep(0.001)
    pytest.skip("the files of this folder stay in memory")


def read_ahead_ended() -> None:
    """Wait until the threads that read ahead have nothing more to read."""
    while any(thread.name == "asyncfetch-read-ahead" for thread in threading.enumerate()):
        time.sleep(0.001)
    assert not readahead._queue
    assert readahead._queued == 0
    assert readahead._workers == 0


def resident(path: Path, start: int, stop: int) -> bool:
    """Whether all of these bytes are in memory."""
    return bool(_pages(path, start, stop).all())


def _pages(path: Path, start: int, stop: int) -> np.ndarray[Any, Any]:
    """Which of the pages of these bytes are in memory."""
    with open(path, "rb") as stream:
        whole = mmap.mmap(stream.fileno(), path.stat().st_size, access=mmap.ACCESS_READ)
    first = start - start % mmap.PAGESIZE
    found = (ctypes.c_ubyte * -(-(stop - first) // mmap.PAGESIZE))()
    address = np.frombuffer(whole, np.uint8).ctypes.data + first
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(stop - first), found) == 0
    return np.frombuffer(found, np.uint8) & 1
