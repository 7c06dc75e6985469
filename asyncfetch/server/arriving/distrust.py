"""Which files once came with wrong bytes, kept on disk: their etags alone, never what they are called.

What a reader was given before the hash was known cannot be recalled. It has a wrong beginning, and asks for the rest
of the file later, from this process or from the next one. So such a file is not gone on with for some days: a request
for a range that does not begin at 0 gets the whole file (RFC 9110, section 14.2 allows a server to ignore Range). And
a source that is wrong twice in a row is not asked again for a while, whoever wants the file.

A file that was passed on without being kept may have begun with bytes that were never held against its hash, where that
broke off. Who asks for all the rest of it gets the whole file too; one who asks for a range of it gets that.

Several services of one cache share the file of marks: each takes over what the others wrote.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from ...storage.files import rename, write_synced
from ...storage.locks import private_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["Distrust"]

LOG = logging.getLogger("asyncfetch.server")
DAYS = 7 * 86400.0  # seconds in which a client may go on with what it has
REST = 600.0  # seconds in which a source that was wrong twice is not asked again
_FORMAT = 1


class _Mark(NamedTuple):
    """How often in a row the bytes were wrong, and when they were the last time, in seconds since 1970."""

    wrong: int
    at: float


class Distrust:
    """The marks of one service. `path` is where they are kept; what cannot be read there counts as no mark."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self._path, self._now = path, now
        self._lock = threading.Lock()  # guards what is below
        self._marks, self._passed = dict[str, _Mark](), dict[str, float]()
        self._seen: tuple[int, ...] | None = None  # the state of the file that was read last
        self.refresh()

    def refresh(self) -> None:
        """Take over what another process wrote. Blocks for a stat, and where there is something new to read it."""
        with self._lock:
            self._merge()

    def _merge(self) -> None:
        try:
            status = os.stat(self._path)
        except OSError:
            return
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        if seen != self._seen:
            self._seen = seen
            marks, passed = _read(self._path)
            for etag, mark in marks.items():
                if etag not in self._marks or self._marks[etag].at < mark.at:
                    self._marks[etag] = mark
            for etag, at in passed.items():
                self._passed[etag] = max(at, self._passed.get(etag, at))

    def identity(self, etag: str) -> str:
        """What the partial of a file is bound to: bytes that came before it was last marked are not gone on with.

        So a kill between the mark and the end of those bytes does not let them count as wrong once more.
        """
        wrong = self.wrongs(etag)
        return f"{etag} after {wrong} wrong" if wrong else etag

    def marked_at(self, etag: str) -> float:
        """When it was last marked, in seconds since 1970; 0 if it never was. That it came right changes nothing."""
        mark = self._marks.get(etag)
        return mark.at if mark else 0.0

    def wrongs(self, etag: str) -> int:
        """How often in a row it came wrong."""
        mark = self._marks.get(etag)
        return mark.wrong if mark else 0

    def may_resume(self, etag: str) -> bool:
        """Whether a client may go on with the beginning that it has."""
        mark = self._marks.get(etag)
        return mark is None or self._now() - mark.at >= DAYS

    def may_take_the_rest(self, etag: str) -> bool:
        """Whether it may go on to the end with a beginning that may have come when the file was not kept."""
        return self._now() - self._passed.get(etag, -DAYS) >= DAYS

    def passed(self, etag: str) -> bool:
        """It is passed on without being kept. Whether that changes anything that has to be saved."""
        before = self._passed.get(etag, -DAYS)
        if self._now() - before < DAYS / 7:
            return False
        self._passed[etag] = self._now()
        return True

    def rest_of(self, etag: str) -> float:
        """Seconds until the source may be asked for it again; 0 if it may be now."""
        mark = self._marks.get(etag)
        return 0.0 if mark is None or mark.wrong < 2 else max(mark.at + REST - self._now(), 0.0)

    def doubt(self, etag: str) -> None:
        """A part of it was handed out that nobody holds against a hash any more."""
        before = self._marks.get(etag, _Mark(0, 0.0))
        self._marks[etag] = before._replace(at=self._now())

    def wrong(self, etag: str) -> None:
        """The whole file came, and its hash is wrong."""
        before = self._marks.get(etag, _Mark(0, 0.0))
        self._marks[etag] = _Mark(before.wrong + 1, self._now())

    def right(self, etag: str) -> bool:
        """It came right. Whether that changes anything: clients may still hold a wrong beginning."""
        mark = self._marks.get(etag)
        if mark is None or not mark.wrong:
            return False
        self._marks[etag] = mark._replace(wrong=0)
        return True

    def save(self) -> None:
        """Write all marks, by rename. Blocks. A failure is logged: then they count until the service ends."""
        temporary = private_name(self._path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, _alone(self._path.with_suffix(".lock")):
                self._merge()
                oldest = self._now() - DAYS
                marks = {etag: mark._asdict() for etag, mark in list(self._marks.items()) if mark.at > oldest}
                passed = {etag: at for etag, at in list(self._passed.items()) if at > oldest}
                document = {"format": _FORMAT, "etags": marks, "passed": passed}
                write_synced(temporary, json.dumps(document).encode())
                rename(temporary, self._path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            LOG.warning("Which files came wrong could not be written to %s: %s.", self._path, error)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """No other process writes meanwhile, where there are locks. Raises OSError."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> tuple[dict[str, _Mark], dict[str, float]]:
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != _FORMAT:
            return {}, {}
        marks = {str(etag): _Mark(int(mark["wrong"]), float(mark["at"])) for etag, mark in document["etags"].items()}
        return marks, {str(etag): float(at) for etag, at in document.get("passed", {}).items()}
    except FileNotFoundError:
        return {}, {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        LOG.warning("%s cannot be read, so no file counts as one that came wrong: %s.", path, error)
        return {}, {}
