"""Which bytes are wanted and missing, as half-open spans, and which connection fetches which.

Pure arithmetic: no await, no disk, no clock.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..errors import SourceError

__all__ = ["Board", "Checksum", "Growth", "Lease", "Span", "SpanSet", "parse_checksum"]

_HEX = {"sha256": 64, "git-sha1": 40}


@dataclass(frozen=True, slots=True)
class Checksum:
    """The hash that a whole file must have.

    `algorithm` is "sha256", or "git-sha1": SHA-1 over `blob <size>\\0` and the bytes, which is how
    git (and so the Hub, for files outside LFS) names a file. `hex` is lower-case.
    """

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def parse_checksum(text: str, *, file: str) -> Checksum:
    """`"sha256:<64 hex>"`, or the 64 hex digits alone. Raises SourceError on anything else."""
    algorithm, colon, digits = str(text).strip().rpartition(":")
    if not colon:
        algorithm = "sha256"
    digits = digits.lower()
    if algorithm not in _HEX or not re.fullmatch(rf"[0-9a-f]{{{_HEX[algorithm]}}}", digits, re.ASCII):
        raise SourceError(
            f"The checksum of {file!r} is not usable.", hint='Write it as "sha256:" and 64 hexadecimal digits.'
        )
    return Checksum(algorithm, digits)


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The bytes `start <= offset < stop` of one file."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"not a span: [{self.start}, {self.stop})")

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


class SpanSet:
    """A set of bytes as sorted, disjoint, non-touching spans."""

    __slots__ = ("_starts", "_stops")

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for span in spans:
            self.add(span.start, span.stop)

    def __iter__(self) -> Iterator[Span]:
        return (Span(start, stop) for start, stop in zip(self._starts, self._stops, strict=True))

    @property
    def nbytes(self) -> int:
        return sum(self._stops) - sum(self._starts)

    @property
    def frontier(self) -> int:
        """The end of the run of bytes that begins at 0; 0 if byte 0 is missing."""
        return self._stops[0] if self._starts and self._starts[0] == 0 else 0

    def add(self, start: int, stop: int) -> None:
        """Add the bytes of [start, stop), merging what overlaps or touches."""
        if start >= stop:
            return
        low = bisect_left(self._stops, start)  # the first span that ends at or after start
        high = low
        while high < len(self._starts) and self._starts[high] <= stop:
            start, stop = min(start, self._starts[high]), max(stop, self._stops[high])
            high += 1
        self._starts[low:high] = [start]
        self._stops[low:high] = [stop]

    def missing(self, size: int) -> list[Span]:
        """The spans of [0, size) that are not in the set, in order."""
        gaps, at = [], 0
        for start, stop in zip(self._starts, self._stops, strict=True):
            if at < min(start, size):
                gaps.append(Span(at, min(start, size)))
            at = max(at, stop)
        if at < size:
            gaps.append(Span(at, size))
        return gaps


K = TypeVar("K", bound=Hashable)


@dataclass(eq=False, slots=True)
class Lease(Generic[K]):
    """A span that one connection is fetching. `start` moves forward as bytes land.

    `stop` moves back when an idle connection takes the second half: the holder reads it anew
    before each burst.
    """

    file: K
    start: int
    stop: int

    @property
    def remaining(self) -> int:
        return max(self.stop - self.start, 0)


def piece_size(pending: int, sharers: int, min_split: int) -> int:
    """How much of a file is leased at once, where `pending` bytes of it are not leased yet.

    Big enough that a round trip for each piece is little beside its bytes, and never below
    `min_split`. Small enough that a file fetched by many (`sharers`) arrives nearly in order, so
    that its hash, which is sequential, is nearly done when the last byte lands.
    """
    return min(max(pending // (4 * sharers), min_split), 32 * min_split)


def least_cut(rate: float, connections: int, min_split: int) -> int:
    """The fewest bytes that a connection takes from another, where all of them bring `rate` bytes a second.

    What takes one a tenth of a second is worth a request: so slow connections end together. Never
    more than `min_split`, which holds while the rate is not known; never less than 1 MiB or that.
    """
    each = int(rate / 10 / connections)
    return min(max(each, 1 << 20), min_split) if each else min_split


class Growth:
    """Whether more connections would help: from how busy the byte threads are, and what the last ones brought."""

    IDLE_SHARE = 0.6  # threads less busy than this wait for the network: another connection may bring more
    GAIN = 1.15  # the rate must have risen so much for the last ones to have been worth while
    SETTLING = 0.25  # seconds until a new connection shows what it brings
    PATIENCE = 5.0  # seconds until it is tried again after it brought nothing
    _WINDOW = 0.1  # seconds over which the rate is taken

    def __init__(self) -> None:
        self.rate = 0.0  # bytes a second, lately; 0 while it is not known
        self.busy = 0.0  # the share of the time that the byte threads worked, when that was last known
        self._looks: deque[tuple[float, int, float]] = deque()
        self._before: float | None = None  # the rate when connections were last added
        self._until = 0.0

    def forget(self) -> None:
        """Connections had nothing to do: what they brought meanwhile does not tell what they can bring."""
        self.rate = 0.0
        self._looks.clear()

    def look(self, now: float, received: int, busy: float) -> bool:
        """Whether to add connections. `now` is in seconds, `received` bytes so far, `busy` a share from 0 to 1."""
        self._looks.append((now, received, busy))
        while len(self._looks) > 2 and now - self._looks[1][0] >= self._WINDOW:
            self._looks.popleft()
        began, at, _ = self._looks[0]
        self.rate = rate = (received - at) / (now - began) if now > began else 0.0
        if len(self._looks) == 1:  # it sees connections being made
            return False
        shares = [share for _, _, share in self._looks][1:]
        self.busy = sum(shares) / len(shares)
        if now < self._until:
            return False
        if self._before is not None and rate < self.GAIN * self._before:
            self._before, self._until = None, now + self.PATIENCE
            return False
        if self.busy >= self.IDLE_SHARE:
            return False
        self._before, self._until = rate, now + self.SETTLING
        return True


class Board(Generic[K]):
    """Hands out spans to connections: pieces of files in order, then pieces of the largest in flight.

    A connection stays with its file, so that pieces that follow each other are hashed as they come.
    """

    def __init__(self, min_split: int) -> None:
        self.min_split = min_split
        self.pending: dict[K, deque[Span]] = {}
        self.active: list[Lease[K]] = []
        self.unsplittable: set[K] = set()

    def add(self, file: K, spans: Iterable[Span]) -> None:
        """`spans` of `file` are missing."""
        for span in spans:
            self.pending.setdefault(file, deque()).append(span)

    @property
    def files(self) -> int:
        """How many files have bytes that are pending or in flight."""
        return len(self.pending.keys() | {lease.file for lease in self.active})

    def take(self, file: K, sharers: int = 2) -> Lease[K] | None:
        """The next piece of `file`, or None if nothing of it is pending.

        `sharers`: how many connections are to fetch the file; a single one gets all that is pending.
        """
        spans = self.pending.get(file)
        if not spans:
            return None
        sharers = max(sharers, 1 + sum(lease.file == file for lease in self.active))
        piece = piece_size(sum(span.nbytes for span in spans), sharers, self.min_split)
        span = spans.popleft()
        # A rest of less than half a piece goes along: a request for it alone is not worth while.
        if sharers > 1 and file not in self.unsplittable and span.nbytes > piece + piece // 2:
            spans.appendleft(Span(span.start + piece, span.stop))
            span = Span(span.start, span.start + piece)
        if not spans:
            del self.pending[file]
        lease = Lease(file, span.start, span.stop)
        self.active.append(lease)
        return lease

    def take_any(self, sharers: int = 2) -> Lease[K] | None:
        """The next piece of the file that has most pending, or None if no file has any."""
        pending = {file: sum(span.nbytes for span in spans) for file, spans in self.pending.items()}
        return self.take(max(pending, key=pending.__getitem__), sharers) if pending else None

    def steal(self, least: int, sharers: int = 2) -> Lease[K] | None:
        """A piece of the largest span in flight, which keeps what comes before it.

        None if not twice `least` bytes are left of any. What comes after the piece is pending again, so
        that a file shared from now on goes on nearly in order.
        """
        victims = [lease for lease in self.active if lease.file not in self.unsplittable]
        victim = max(victims, key=lambda lease: lease.remaining, default=None)
        if victim is None or victim.remaining < 2 * least:
            return None
        sharers = max(sharers, 2)
        kept = min(piece_size(victim.remaining, sharers, self.min_split), victim.remaining // 2)
        rest = Span(victim.start + kept, victim.stop)
        victim.stop = rest.start
        self.pending.setdefault(victim.file, deque()).appendleft(rest)
        return self.take(victim.file, sharers)

    def leads(self, lease: Lease[K]) -> bool:
        """Whether no other connection fetches an earlier piece of the file."""
        return not any(other.file == lease.file and other.start < lease.start for other in self.active)

    def release(self, lease: Lease[K]) -> None:
        """`lease` is no longer in flight; what it lacks must be added again by the caller."""
        self.active.remove(lease)

    def idle(self, file: K) -> bool:
        """Whether nothing of `file` is pending or in flight."""
        return file not in self.pending and not any(lease.file == file for lease in self.active)
