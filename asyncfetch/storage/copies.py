"""A file once more under another name. Blocking calls: run them in a thread.

A clone (reflink) shares the bytes until one of the two is written to: it takes no time and no room, and who edits it
changes nothing else. A copy within the kernel is next best. A hard link is for files that nobody else has: who edits
a hard link of a blob in a shared cache would change what all others load.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..spans import MiB
from .files import sync_file, write_at

__all__ = ["copy_file", "could_take_clones", "link_or_copy", "takes_clones"]

_FICLONE = 0x40049409  # https://man7.org/linux/man-pages/man2/ioctl_ficlone.2.html
_PIECE = 16 * MiB
# What says that the kernel cannot copy between these two, which reading and writing can.
_NO_KERNEL_COPY = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY}
)


def copy_file(source: Path, target: Path, check: Callable[[], None] = lambda: None) -> None:
    """Make the new file `target` of the bytes of `source`, and sync it. `check` runs now and then and may raise."""
    with open(source, "rb", buffering=0) as reader, open(target, "xb", buffering=0) as writer:
        if not _cloned(reader.fileno(), writer.fileno()):
            at = _copied_by_kernel(reader.fileno(), writer.fileno(), check)
            _copy_rest(reader.fileno(), writer.fileno(), at, check)
        sync_file(writer.fileno())


def link_or_copy(source: Path, target: Path, check: Callable[[], None] = lambda: None) -> None:
    """A second name of the file itself, where there can be one; else a copy."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        copy_file(source, target, check)


def takes_clones(source: Path, target: Path) -> bool:
    """Whether files of the folder `source` can be cloned into the folder `target`: tried on one."""
    name = f"probe.{secrets.token_hex(4)}.incomplete"
    try:
        (source / name).write_bytes(b"x" * 4096)
        with open(source / name, "rb") as reader, open(target / name, "xb") as writer:
            return _cloned(reader.fileno(), writer.fileno())
    except OSError:
        return False
    finally:
        for folder in (source, target):
            with suppress(OSError):
                (folder / name).unlink()


def could_take_clones(folder: Path) -> bool:
    """Whether files of a folder can be cloned within it: tried on files without a name, which leave no trace."""
    opened = list[int]()
    try:
        for _ in range(2):
            opened.append(os.open(folder, os.O_RDWR | os.O_TMPFILE))
        os.write(opened[0], b"x" * 4096)
        return _cloned(*opened)
    except (AttributeError, OSError):  # it is no Linux, may not be written to, or has no such files
        return False
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _cloned(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _copied_by_kernel(source: int, target: int, check: Callable[[], None]) -> int:
    """How many bytes the kernel copied: all, or none where it cannot, or as many as it believes that there are."""
    at = 0
    try:
        while hasattr(os, "copy_file_range") and (got := os.copy_file_range(source, target, _PIECE)):
            at += got
            check()
    except OSError as error:
        if at or error.errno not in _NO_KERNEL_COPY:
            raise
    return at


def _copy_rest(source: int, target: int, at: int, check: Callable[[], None]) -> None:
    """Copy what follows byte `at`. Some file systems say 0 to the kernel's copy before the end."""
    buffer = memoryview(b"")
    while at < os.fstat(source).st_size:
        buffer = buffer or memoryview(bytearray(4 * MiB))
        got = os.preadv(source, [buffer], at)
        if not got:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write_at(target, buffer[:got], at)
        at += got
        check()
