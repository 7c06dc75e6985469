"""Files on file systems as they are: what one refuses is done in another way, or left out. Blocking calls.

Some have no links, no rename, no sync, or take a file from its first byte to its last and in no other order
(https://github.com/awslabs/mountpoint-s3/blob/main/doc/SEMANTICS.md, https://rclone.org/commands/rclone_mount/).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ..errors import StorageError, storage_errors
from ..reasons import NO_ROOM, Writing, elsewhere
from ..spans import MiB

__all__ = [
    "LONGEST_NAME", "LeftOut", "copy_to", "free_bytes", "has_locks", "held_bytes", "make_folder", "make_link",
    "named_beside", "nearest", "on_one_disk", "refuse_obstacles", "rename", "start_writing", "sync_file", "sync_folder",
    "sync_names", "takes_any_order", "vanished", "write_at", "write_synced",
]  # fmt: skip

T = TypeVar("T")

# What a file system says of something that it cannot do at all. EPERM: Linux of links on FAT, mountpoint-s3 of renames.
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.ENOTTY})
_NO_SYNC = (_UNSUPPORTED | {errno.EBADF, errno.EISDIR, errno.EACCES, errno.EROFS}) - {errno.EPERM}
# Written by one call. Of more the kernel makes larger folios in its cache, where the file system has them
# (https://docs.kernel.org/admin-guide/mm/transhuge.html): where memory is in pieces, to find them takes seven times as
# long as to write.
_AT_ONCE = MiB // 2
LONGEST_NAME = 255  # bytes, on the file systems that are common
_WRITE = 2  # SYNC_FILE_RANGE_WRITE


class LeftOut:
    """The rule for bookkeeping: what only helps and cannot be written is left out. Each kind is said once, at DEBUG."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Leave out what the block cannot write; `what` it is, in words."""
        try:
            yield
        except (OSError, StorageError) as error:
            self.say(what, error)

    def say(self, what: str, error: Exception) -> None:
        """`what` was left out because of `error`."""
        if what not in self._said:
            self._said.add(what)
            logging.getLogger("asyncfetch").debug("Left out: %s (%s)", what, error)


def vanished(error: BaseException) -> bool:
    """Whether an error says that a file or a folder is no longer there: somebody prunes the cache, or moved it away."""
    return isinstance(error.__cause__ if isinstance(error, StorageError) else error, FileNotFoundError)


def make_folder(folder: Path, *, writing: Writing = "cache") -> None:
    """Make a folder and those above it. Raises StorageError, about the one of them that is in the way."""
    with storage_errors(folder, writing=writing):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            refuse_obstacles(folder, writing=writing)
            raise


def refuse_obstacles(folder: Path, *, writing: Writing) -> None:
    """Raise StorageError about what is in the way of a folder or of one above it, if anything is."""
    for part in [*reversed(folder.parents), folder]:
        if part.is_symlink() and not part.exists():
            target = os.readlink(part)
            hint = "Make that folder, mount its disk, or remove the link."
            raise StorageError(str(part), f"it is a link to {target}, which is not there", hint=hint) from None
        if part.exists() and not part.is_dir():
            raise StorageError(str(part), "it is no folder", hint=elsewhere(writing)) from None


def make_link(target: str, path: Path) -> bool:
    """Make a link at `path`, and its folder. False if something else is there, or the folder goes each time."""
    for _ in range(2):
        try:
            os.symlink(target, path)
        except FileExistsError:
            return path.is_symlink() and os.readlink(path) == target
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            return True
    return False


def rename(source: Path, target: Path) -> None:
    """Rename a file or a link: onto another disk, over a folder, where files cannot be renamed or not over another."""
    try:
        try:
            os.replace(source, target)
        except (IsADirectoryError, NotADirectoryError):
            if not target.is_dir() or target.is_symlink():
                raise
            _make_way(target)
            os.replace(source, target)
    except FileExistsError:
        target.unlink(missing_ok=True)
        os.rename(source, target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            _copy_beside(source, target)
        elif error.errno in _UNSUPPORTED:  # there it is whole when it is closed
            target.unlink(missing_ok=True)
            _copy(source, target)
        else:
            raise
        with suppress(OSError):  # FUSE cannot remove an open file where it cannot rename: see FilePartial.publish
            source.unlink()


def named_beside(path: Path, ending: str) -> Path:
    """A path beside another, named after it as far as its own `ending` leaves room of a name."""
    name = os.fsencode(path.name)[: LONGEST_NAME - len(os.fsencode(ending))]
    return path.with_name(name.decode(errors="ignore") + ending)  # a character is not cut in two


def _make_way(folder: Path) -> None:
    """Take a folder away from the name of a file. What is in it is nobody knows whose: so it is kept beside."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        os.replace(folder, named_beside(folder, f".{secrets.token_hex(4)}.aside"))


def _copy_beside(source: Path, target: Path) -> None:
    beside = target.with_name(source.name)
    _copy(source, beside)
    os.replace(beside, target)


def _copy(source: Path, target: Path) -> None:
    if source.is_symlink():
        os.symlink(os.readlink(source), target)
        return
    descriptor = os.open(source, os.O_RDONLY)
    try:
        copy_to(descriptor, target)
    except BaseException:
        with suppress(OSError):
            target.unlink()
        raise
    finally:
        os.close(descriptor)


def copy_to(descriptor: int, path: Path) -> None:
    """Write all bytes of an open file, in order, into a new one, and sync it."""
    with open(path, "xb", buffering=0) as stream:
        buffer, at = memoryview(bytearray(4 * MiB)), 0
        while got := os.preadv(descriptor, [buffer], at):
            left = buffer[:got]
            while left:
                left = left[stream.write(left) or 0 :]
            at += got
        sync_file(stream.fileno())


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at byte `offset` of a file. Raises OSError."""
    while data:
        written = os.pwrite(descriptor, data[:_AT_ONCE], offset)
        data, offset = data[written:], offset + written


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """A new small file, whose bytes survive a power cut."""
    with open(path, "xb", buffering=0) as stream:
        left = memoryview(data)
        while left:
            left = left[stream.write(left) or 0 :]
        sync_file(stream.fileno())


def sync_file(descriptor: int) -> None:
    """Let the bytes of a file survive a power cut, where the file system knows how."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def start_writing(descriptor: int) -> None:
    """Have the kernel begin to bring what was written to the disk, where it knows how (Linux): less is left to sync.

    It waits for no disk, unless too much is on its way there already (sync_file_range(2)), and promises nothing.
    """
    call = _sync_file_range()
    if call is not None:
        call(descriptor, 0, 0, _WRITE)


@cache
def _sync_file_range() -> Any:
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError, TypeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call


def sync_folder(folder: Path) -> None:
    """Let the renames in a folder survive a power cut. Some file systems refuse, and some users may not read it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def sync_names(files: Iterable[Path]) -> None:
    """Let the names of files survive a power cut, each folder synced once."""
    for folder in {file.parent for file in files}:
        with storage_errors(folder, writing="cache"):
            sync_folder(folder)


def free_bytes(folder: Path) -> int | None:
    """Free bytes on the file system that holds, or will hold, `folder`; None where it does not tell."""
    usage = _of_nearest(folder, shutil.disk_usage)
    return usage.free if usage is not None and usage.total else None


def held_bytes(path: Path) -> int:
    """How much of its disk a file takes, holes left out; 0 if there is none."""
    with suppress(OSError):
        return os.lstat(path).st_blocks * 512
    return 0


def on_one_disk(one: Path, other: Path) -> bool:
    """Whether the same file system holds, or will hold, two folders."""
    found = [_of_nearest(folder, os.stat) for folder in (one, other)]
    return len({None if status is None else status.st_dev for status in found}) == 1


def nearest(folder: Path) -> Path | None:
    """The folder, or the nearest one above it that is there."""
    return _of_nearest(folder, lambda one: one if one.stat() else None)


def _of_nearest(folder: Path, ask: Callable[[Path], T]) -> T | None:
    """What `ask` says of a folder, or of the nearest one above it that is there."""
    with storage_errors(folder):
        for candidate in (folder, *folder.parents):  # as they are: the working directory may be gone
            with suppress(FileNotFoundError, NotADirectoryError):
                return ask(candidate)
    return None


def has_locks(folder: Path) -> bool:
    """Whether the kernel can lock files of this folder: tried on one. filelock warns on the user's stderr where not."""
    probe = folder / f"probe.{secrets.token_hex(4)}.lock"
    descriptor = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
        with suppress(OSError):
            probe.unlink()
    return True


def takes_any_order(folder: Path) -> bool:
    """Whether files of this folder can be written in any order and read meanwhile: tried on a small one."""
    probe = folder / f"probe.{secrets.token_hex(4)}.asyncfetch.incomplete"
    try:
        descriptor = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        return error.errno not in _UNSUPPORTED  # whatever else it is, it is said where it matters
    try:
        os.ftruncate(descriptor, 8192)
        os.pwrite(descriptor, b"second", 4096)
        os.pwrite(descriptor, b"first", 0)
        return os.pread(descriptor, 6, 4096) == b"second" and os.pread(descriptor, 5, 0) == b"first"
    except OSError as error:
        return error.errno in (*NO_ROOM, errno.EFBIG, errno.EIO)
    finally:
        with suppress(OSError):
            os.close(descriptor)
        with suppress(OSError):
            probe.unlink()
