"""Files as memory: private maps that hold no descriptor, and where it is better to read."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import time
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..spans import MiB

__all__ = ["in_memory", "map_file", "on_network", "pages_of", "sees_writes"]

# Page faults on these block the whole process, and an I/O error in one kills it with SIGBUS
# (https://github.com/safetensors/safetensors/issues/562): they are read instead of mapped.
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "ceph", "glusterfs", "beegfs", "gpfs", "9p", "fuse", "afs")
# On these a map shows at once what is written to the file, and a page that was written stays good.
_SHARED_PAGES = ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "overlay")
_MAP_FIXED = 0x10  # on Linux and on macOS; the module mmap does not have it
_LARGE = 2 * MiB  # a page of the processor's second size, of which the kernel makes files up where it can
_NO_MAPS = frozenset({errno.ENODEV, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EACCES, errno.EPERM})
_broken: list[mmap.mmap] = []  # whose pages may be somebody else's by now: never unmapped


def pages_of(file: Path | int, size: int) -> mmap.mmap | None:
    """A map of a file, or of an open one, that lasts when its name is gone. None where it is read later, or not there.

    What else keeps it from being mapped is told when it is read.
    """
    try:
        if isinstance(file, int):
            return None if on_network(file) else map_file(file, size)
        with open(file, "rb") as stream:
            return pages_of(stream.fileno(), size)
    except OSError:
        return None


def map_file(descriptor: int, size: int) -> mmap.mmap | None:
    """An open file of `size` bytes as a writable map, whose changes stay in this process. None where that cannot be.

    The map holds no descriptor: a process may have few of them (256 on macOS), and a model many files.
    """
    if os.fstat(descriptor).st_size != size:  # what is wrong is told by who reads it
        return None
    try:
        if sys.version_info >= (3, 13):
            return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY, trackfd=False)
        return _map_over(descriptor, size)
    except ValueError:  # it is empty
        return None
    except OSError as error:
        if error.errno not in _NO_MAPS:
            raise
        return None


def _map_over(descriptor: int, size: int) -> mmap.mmap | None:
    """Before Python 3.13 a map of a file keeps a descriptor, but one of no file has none: the file is put over that.

    So the pages live as long as the map and all views of it, and are unmapped once, by the module mmap itself.
    """
    whole = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    call = _system_call()
    if call is None:
        return whole
    whole.close()  # it was seen that files can be mapped here, and so many bytes
    pages = _no_file(size)
    address = np.frombuffer(pages, np.uint8).ctypes.data
    if call(address, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED, descriptor, 0) != address:
        _broken.append(pages)
        return None
    return pages


def _no_file(size: int) -> mmap.mmap:
    """Memory whose address suits large pages, as the kernel gives it to a file, and else only to a multiple of them."""
    whole = size + -size % _LARGE if size > _LARGE and sys.platform == "linux" else size
    pages = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if whole != size:
        pages.resize(size)
    return pages


@cache
def _system_call() -> Any:
    """mmap(2); None where there is none that we know how to call."""
    try:
        call = ctypes.CDLL(None).mmap
    except (OSError, AttributeError):
        return None
    call.restype = ctypes.c_void_p
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    return call


def on_network(file: Path | int) -> bool:
    """Whether a file, or an open one, is on a network or FUSE file system (/proc/self/mountinfo). False elsewhere."""
    return _file_system(file).startswith(_NETWORK_FILE_SYSTEMS)


def sees_writes(descriptor: int) -> bool:
    """Whether maps of an open file show what is written to it, as far as that is known of its file system."""
    return hasattr(os, "RWF_NOWAIT") and _file_system(descriptor) in _SHARED_PAGES


def in_memory(descriptor: int, offset: int) -> bool:
    """Whether a file has this byte, and to read it waits for no disk, as far as the kernel tells (preadv2(2))."""
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError as error:
        return error.errno == errno.EOPNOTSUPP and os.fstat(descriptor).st_size > offset


def _file_system(file: Path | int) -> str:
    """The name of its type, "" where that is not known."""
    try:
        return _type_of(os.stat(file).st_dev, int(time.monotonic()))
    except OSError:
        return ""


@lru_cache(maxsize=8)
def _type_of(device: int, _second: int) -> str:
    """Looked up once a second: a mount may change, and not between a thousand files."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == wanted:
            return rest.partition(" ")[0]
    return ""
