"""Who writes a partial: one process alone, as long as it lives; and huggingface_hub's own lock of a blob.

A lock of the kernel's tells who writes, which a kill frees. Where there are no locks, or none that keep
anyone out, each run writes a file of its own. The other lock only saves work: whoever holds it is
waited for while its file grows.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from filelock import FileLock, Timeout

from ..errors import StorageError, storage_errors
from ..tasks import off_loop
from .cache import RepoCache
from .files import make_folder

__all__ = ["claim", "claim_shared", "lock_blob", "private_name", "unlock"]

T = TypeVar("T")


def claim(path: Path) -> tuple[Path, int, bool]:
    """Open `path` for this process alone, or a private file beside it if another process or user has it."""
    for _ in range(3):
        try:
            descriptor = claim_shared(path)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                make_folder(path.parent)  # which was pruned; or its holder removed it between two of our looks
                continue
            if isinstance(error.__cause__, PermissionError):
                break
            raise
        if descriptor is not None:
            return path, descriptor, True
    private = private_name(path)
    return private, _open(private, os.O_CREAT | os.O_EXCL), False


def private_name(path: Path) -> Path:
    """A fresh name beside the partial `path`."""
    return path.with_name(f"{path.name.split('.')[0]}.{secrets.token_hex(4)}.asyncfetch.incomplete")


def claim_shared(path: Path) -> int | None:
    """An open, locked descriptor of `path`; None if it is another's, or nobody's. Raises StorageError."""
    descriptor, created = _open_or_create(path)
    ours = False
    try:
        with storage_errors(path):
            # The holder before us may have renamed or removed the file between open and lock.
            if _lock(descriptor) and _is_at(path, descriptor):
                ours = _excludes(path)
                if created and not ours:  # nobody can own it, so no run would go on with it
                    path.unlink(missing_ok=True)
    finally:
        if not ours:
            os.close(descriptor)
    return descriptor if ours else None


def _open_or_create(path: Path) -> tuple[int, bool]:
    """A descriptor, and whether the file is a new one."""
    try:
        return _open(path, os.O_CREAT | os.O_EXCL), True
    except StorageError as error:
        if not isinstance(error.__cause__, FileExistsError):
            raise
    return _open(path, 0), False


def _open(path: Path, flags: int) -> int:
    with storage_errors(path, writing="cache"):
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | flags, 0o666)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        ours, now = os.fstat(descriptor), os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (ours.st_ino, ours.st_dev) == (now.st_ino, now.st_dev)


def _excludes(path: Path) -> bool:
    """Whether our lock on `path` keeps others out. Some file systems have no locks, or grant them to everyone."""
    other = _open(path, 0)
    try:
        return not _lock(other)
    finally:
        os.close(other)


def _lock(descriptor: int) -> bool:
    """Lock a file. False: another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # there are no locks here, which is the same as if everyone got them
        pass
    return True


_LOCK_POLL = 0.05


async def lock_blob(
    cache: RepoCache,
    key: str,
    patience: float,
    look: Callable[[], T],
    on_wait: Callable[[int | None], None] = lambda _: None,
) -> tuple[FileLock | None, T]:
    """huggingface_hub's lock for this blob, polled, None where locks do not work; and what `look` then sees.

    `look` runs in the thread that takes the lock: most files need no other before their bytes come. `on_wait` is
    called once, where another process has it, with its number where the kernel tells that.
    A holder that makes no progress for `patience` seconds is not waited for: the partial is
    claimed separately, so the worst that can happen is work done twice.
    """
    seen, since, waits = -1.0, time.monotonic(), False
    while True:
        try:
            return await off_loop(lambda: _look_with_lock(cache, key, look))
        except Timeout as busy:
            if not waits:
                waits = True
                on_wait(await off_loop(partial(_holder, Path(busy.lock_file))))
        now = await off_loop(lambda: cache.last_write(key))
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > patience:
            return None, await off_loop(look)
        await anyio.sleep(_LOCK_POLL)


def _look_with_lock(cache: RepoCache, key: str, look: Callable[[], T]) -> tuple[FileLock | None, T]:
    """Raises Timeout if another process has the lock."""
    lock = cache.lock(key)
    try:
        if lock is not None:
            lock.acquire(timeout=0)
    except Timeout:
        raise
    except (NotImplementedError, OSError) as error:  # such as another user's that may not be written
        cache.left_out.say("locks of files", error)
        lock = None
    try:
        return lock, look()
    except BaseException:
        unlock(lock)
        raise


def _holder(path: Path) -> int | None:
    """The process that has a lock on `path`; None where that cannot be told. See proc_locks(5)."""
    try:
        status = os.stat(path)
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if len(fields) > 5 and fields[5] == place and fields[4].isdigit():
                return int(fields[4]) or None  # 0: it is in another container
    except (OSError, ValueError):
        pass
    return None


def unlock(lock: FileLock | None) -> None:
    """Give a lock back. It only saves work: what fails here is not worth a download that went well."""
    if lock is not None:
        with suppress(OSError):
            lock.release()
