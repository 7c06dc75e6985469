"""What a server has done, as plain numbers: bytes and requests by where they came from, retries, wrong hashes.

The counters go on over restarts. They lie on the disk as one record of fixed places:

    FOLDER/<n>    b"afcounts", then the counters as little-endian 64-bit numbers, in the order of `Counter`

`n` is the first number that no other process has: each counts for itself. A counter is written by who receives bytes,
in his own thread, so that a kill loses nothing of what came from the source; the rest is written within seconds.
Readers, fills and the like, which end with the process, are gauges and only in memory.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["COUNTERS", "GAUGES", "ORIGIN", "Counter", "Counts", "Gauge", "Kind", "Meter", "Origin"]

LOG = logging.getLogger("asyncfetch.server")

# "questions" are those about metadata, "fills" bring files into the cache, what is "passed" is handed on and not kept.
Kind = Literal["questions", "fills", "passed"]
# Where the bytes of an answer were. Who sends a body says so in the scope of the request.
Origin = Literal["cache", "fill", "passed", "own", "answer"]
ORIGIN = "asyncfetch.origin"
# A place on the disk each: new ones go to the end.
Counter = Literal[
    "upstream_bytes_questions",  # body bytes that came from the source, whatever became of them
    "upstream_bytes_fills",
    "upstream_bytes_passed",
    "upstream_requests_questions",  # as sent, repetitions and redirects too
    "upstream_requests_fills",
    "upstream_requests_passed",
    "upstream_failures",  # questions that found the source away
    "served_bytes_cache",  # body bytes handed to the network, by where they were
    "served_bytes_fill",
    "served_bytes_passed",
    "served_bytes_own",
    "served_bytes_answer",
    "hits",  # requests for bytes of a file that was in the cache
    "misses",  # that began a fill
    "joined",  # that found a fill under way
    "passed",  # whose bytes, or some of them, were got apart from the fill
    "retries",  # of requests to the source
    "restarts",  # files fetched once more, as their hash was wrong
    "wrong_hashes",  # files that came whole with a wrong hash
    "filled",  # files that came right
    "fills_failed",
    "shared",  # files taken from another repository of the cache
    "followed",  # files that another process fetched
    "answers_kept",  # questions answered by what was kept
    "answers_1xx",  # answers to clients, by the first digit of their status
    "answers_2xx",
    "answers_3xx",
    "answers_4xx",
    "answers_5xx",
]
Gauge = Literal["fills", "readers", "requests"]
COUNTERS: tuple[Counter, ...] = get_args(Counter)
GAUGES: tuple[Gauge, ...] = get_args(Gauge)
_PLACES = {name: place for place, name in enumerate(COUNTERS)}
_MAGIC = b"afcounts"
_MOST_PROCESSES = 64


class Counts:
    """The counters and gauges of one server. From any thread. `folder` is where counters are kept, None for nowhere."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._values = [0] * len(COUNTERS)
        self._gauges = dict.fromkeys(GAUGES, 0)
        self._lock = threading.Lock()  # guards all of it
        self._file: int | None = None

    def add(self, name: Counter, number: int = 1) -> None:
        """Count. Does not block."""
        with self._lock:
            self._values[_PLACES[name]] += number

    def __getitem__(self, name: Counter) -> int:
        return self._values[_PLACES[name]]

    def gauge(self, name: Gauge) -> int:
        """How many there are now."""
        return self._gauges[name]

    def snapshot(self) -> dict[str, int]:
        """All counters and gauges by their names; a gauge as "running_fills", "running_readers", and so on."""
        with self._lock:
            numbers = [*zip(COUNTERS, self._values, strict=True)]
            return dict([*numbers, *((f"running_{name}", value) for name, value in self._gauges.items())])

    @contextmanager
    def running(self, name: Gauge) -> Iterator[None]:
        """One more in the block."""
        self.change(name, 1)
        try:
            yield
        finally:
            self.change(name, -1)

    def change(self, name: Gauge, by: int) -> None:
        with self._lock:
            self._gauges[name] += by

    def meter(self, kind: Kind) -> Meter:
        """What counts the requests and bytes of a transport."""
        return Meter(self, kind)

    # -- on the disk. Blocking calls ---------------------------------------------------------------

    def begin(self) -> None:
        """Go on from what an earlier process counted. Where that cannot be, it is said, and counting begins at 0."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = _claim(self._folder)
        except OSError as error:
            LOG.warning("What is counted is not kept: %s cannot be used: %s.", self._folder, error.strerror)
            return
        before = _read(self._file)
        with self._lock:
            self._values = [now + then for now, then in zip(self._values, before, strict=True)]
        self.save()

    def save(self) -> None:
        """Write the counters to the page cache, which outlives the process. A failure costs no more than numbers."""
        with self._lock:
            if self._file is not None:
                with suppress(OSError):
                    os.pwrite(self._file, _MAGIC + struct.pack(f"<{len(COUNTERS)}Q", *self._values), 0)

    def end(self) -> None:
        """Write the counters for the last time, and let another process go on with them."""
        self.save()
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None


class Meter:
    """Counts what one kind of requests costs the source. See `network.limits:Meter`."""

    def __init__(self, counts: Counts, kind: Kind) -> None:
        self._counts = counts
        self._bytes: Counter = f"upstream_bytes_{kind}"  # type: ignore[assignment]
        self._requests: Counter = f"upstream_requests_{kind}"  # type: ignore[assignment]

    def asked(self) -> None:
        self._counts.add(self._requests)

    def received(self, nbytes: int) -> None:
        self._counts.add(self._bytes, nbytes)
        self._counts.save()

    def retried(self) -> None:
        self._counts.add("retries")


def _claim(folder: Path) -> int:
    """A descriptor of the first record that no other process has. Raises OSError."""
    for number in range(_MOST_PROCESSES):
        descriptor = os.open(folder / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        else:
            return descriptor
    raise BlockingIOError(None, "too many processes count there")


def _read(descriptor: int) -> list[int]:
    """The counters of a record, 0 for those that it is too old to have, or if it is none."""
    data = os.pread(descriptor, len(_MAGIC) + 8 * len(COUNTERS), 0)
    there = data[len(_MAGIC) :] if data.startswith(_MAGIC) else b""
    values = [value for (value,) in struct.iter_unpack("<Q", there[: len(there) // 8 * 8])]
    return values + [0] * (len(COUNTERS) - len(values))
