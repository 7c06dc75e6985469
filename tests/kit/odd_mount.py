"""File systems as they are mounted in the field, played by FUSE: buckets, shares, disks that refuse what others can.

    with odd_mount(tmp_path, "in order", "no links", "no rename") as folder:

Everything is stored in a folder beside it; what the words name is refused, as RULES says. A process of
its own serves it. Skips, and says why, where FUSE, the package mfusepy or the right to mount is missing.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["RULES", "odd_mount"]

RULES = {
    "in order": "a file is written once, from its first byte to its last, and read when it is closed",
    "in order, EINVAL": "the same in the words of another system, and nothing may be opened to read and write",
    "no links": "no symbolic and no hard links",
    "no rename": "nothing can be renamed",
    "no rename over": "nothing can be renamed over what exists",
    "no locks": "flock is not implemented",
    "no lock left": "flock finds no room for one more",
    "no sync": "neither files nor folders can be synced",
    "no size": "it tells nothing about its size",
    "small files": "no file may have more than 100,000 bytes",
}
SMALL = 100_000
ROOT = Path(__file__).parents[2]


@contextmanager
def odd_mount(tmp_path: Path, *rules: str) -> Iterator[Path]:
    """A folder on a file system that refuses what `rules` name, some of RULES."""
    assert set(rules) <= set(RULES)
    for reason, missing in (
        ("/dev/fuse", not os.access("/dev/fuse", os.R_OK | os.W_OK)),
        ("the package mfusepy", importlib.util.find_spec("mfusepy") is None),
        ("the right to mount", os.getuid() != 0),
    ):
        if missing:
            pytest.skip(f"FUSE CANNOT BE TRIED HERE: needs {reason}")
    number = len(list(tmp_path.glob("mount-*")))
    folder, store = tmp_path / f"mount-{number}", tmp_path / f"store-{number}"
    folder.mkdir()
    store.mkdir()
    command = [sys.executable, "-m", "tests.kit.odd_mount", str(store), str(folder), *rules]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        try:
            if server.stdout.readline() != "mounted\n":
                pytest.skip(f"FUSE CANNOT BE TRIED HERE: {server.stderr.read()[-300:]}")
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)
            server.terminate()


def main(store: str, folder: str, rules: set[str]) -> None:
    """Serve it until it is unmounted."""
    import mfusepy  # a package that only these tests need

    kind = _OddLocks if rules & {"no locks", "no lock left"} else _Odd  # else the kernel locks, and well

    class Odd(kind, mfusepy.Operations):  # type: ignore[misc,valid-type,name-defined]
        pass

    # Numbers of inodes stay the same, and no attribute is remembered: what one descriptor does another one sees.
    options: dict[str, Any] = {"foreground": True, "nothreads": True, "use_ino": True, "attr_timeout": 0}
    mfusepy.FUSE(Odd(store, rules, mfusepy.FuseOSError), folder, entry_timeout=0, allow_other=True, **options)


class _Odd:
    """The operations: those of the folder `store`, but for what is refused."""

    use_ns = True

    def __init__(self, store: str, rules: set[str], error: type[OSError]) -> None:
        self._store, self._error = store, error
        self._in_order = bool(rules & {"in order", "in order, EINVAL"})
        self._rules = rules
        self._writing: dict[int, int] = {}  # the next byte of what is open to be written, by its handle
        self._paths: dict[int, str] = {}

    def init(self, path: str) -> None:
        print("mounted", flush=True)

    def _at(self, path: str) -> str:
        return self._store + path

    def _refuse(self, rule: str, code: int) -> None:
        if rule in self._rules:
            raise self._error(code)

    def _out_of_order(self) -> OSError:
        return self._error(errno.EINVAL if "in order, EINVAL" in self._rules else errno.EOPNOTSUPP)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.lstat(self._at(path))
        names = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_size")
        times = {f"st_{name}": getattr(found, f"st_{name}_ns") for name in ("atime", "mtime", "ctime")}
        return {name: getattr(found, name) for name in names} | times

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, Any], int]]:
        # With their attributes: an entry whose number is not known is skipped by readdir(3).
        names = [".", "..", *os.listdir(self._at(path))]
        return [(name, self.getattr(os.path.join(path, "" if name in (".", "..") else name)), 0) for name in names]

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def symlink(self, target: str, source: str) -> None:
        self._refuse("no links", errno.EPERM)
        os.symlink(source, self._at(target))

    def link(self, target: str, source: str) -> None:
        self._refuse("no links", errno.EPERM)
        os.link(self._at(source), self._at(target))

    def rename(self, old: str, new: str) -> None:
        self._refuse("no rename", errno.ENOSYS)
        if os.path.lexists(self._at(new)):
            self._refuse("no rename over", errno.EEXIST)
        os.rename(self._at(old), self._at(new))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        os.utime(self._at(path), ns=times)

    def statfs(self, path: str) -> dict[str, int]:
        if "no size" in self._rules:
            return {}
        found = os.statvfs(self._store)
        return {name: getattr(found, name) for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail")}

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return self._opened(path, os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode), writing=True)

    def open(self, path: str, flags: int) -> int:
        access = flags & os.O_ACCMODE
        if self._in_order and access == os.O_RDWR:
            raise self._out_of_order()
        if self._in_order and path in self._paths.values() and access == os.O_RDONLY:
            raise self._error(errno.EPERM)
        handle = os.open(self._at(path), (flags & ~os.O_ACCMODE) | (os.O_RDWR if access else os.O_RDONLY))
        return self._opened(path, handle, writing=access != os.O_RDONLY)

    def _opened(self, path: str, handle: int, *, writing: bool) -> int:
        if writing:
            self._writing[handle], self._paths[handle] = 0, path
        return handle

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        if self._in_order and fh in self._writing:
            raise self._error(errno.EBADF)
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if self._in_order and offset != self._writing[fh]:
            raise self._out_of_order()
        if offset + len(data) > SMALL:
            self._refuse("small files", errno.EFBIG)
        self._writing[fh] = offset + len(data)
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        if self._in_order and length != os.stat(self._at(path)).st_size:
            raise self._out_of_order()
        if length > SMALL:
            self._refuse("small files", errno.EFBIG)
        os.truncate(self._at(path), length)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        self._refuse("no sync", errno.EINVAL)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        self._refuse("no sync", errno.EINVAL)

    def release(self, path: str, fh: int) -> None:
        self._writing.pop(fh, None)
        self._paths.pop(fh, None)
        os.close(fh)


class _OddLocks(_Odd):
    def flock(self, path: str, op: int, fh: int) -> None:
        self._refuse("no locks", errno.ENOSYS)
        self._refuse("no lock left", errno.ENOLCK)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], set(sys.argv[3:]))
