"""Which bytes are wanted and missing, as half-open spans, and which connection fetches which.

Pure arithmetic: no await, no disk, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..spans import MiB, Span

__all__ = ["Board", "Growth", "Lease", "least_cut", "least_piece", "most_connections"]


_LEAST = 256 * 1024  # bytes that are worth a request however slow a connection is
_LATE = 8  # pieces of a quarter of a second before somebody is kept waiting: what is sent beyond a cut is lost
_LEAST_BLIND = 2 * MiB  # of a frugal transfer, while nobody knows how fast connections are

K = TypeVar("K", bound=Hashable)


@dataclass(eq=False, slots=True)
class Lease(Generic[K]):
    """A span that one connection is fetching. `start` moves forward as bytes land.

    `stop` moves back when an idle connection takes the second half: the holder reads it anew
    before each burst. `answered`: its bytes are coming.
    """

    file: K
    start: int
    stop: int
    answered: bool = False

    @property
    def remaining(self) -> int:
        return max(self.stop - self.start, 0)


def piece_size(pending: int, sharers: int, min_split: int, least: int | None = None) -> int:
    """How much of a file is leased at once, where `pending` bytes of it are not leased yet.

    Big enough that a round trip for each piece is little beside its bytes, and never below `least`,
    which is `min_split` where it is not given. Small enough that a file fetched by many (`sharers`) arrives
    nearly in order, so that its hash, which is sequential, is nearly done when the last byte lands.
    """
    return min(max(pending // (4 * sharers), min_split if least is None else least), 32 * min_split)


def least_cut(rate: float, connections: int, min_split: int, *, frugal: bool = False) -> int:
    """The fewest bytes that a connection takes from another, where all of them bring `rate` bytes a second.

    What takes one a tenth of a second is worth a request: so slow connections end together. A frugal transfer takes
    what takes one half a second, since what the source has sent beyond the cut comes twice. Never more than
    `min_split`, which holds while the rate is not known; never less than 256 KiB or that.
    """
    return _brought(0.5 if frugal else 0.1, rate, connections, min_split)


def least_piece(rate: float, connections: int, min_split: int) -> int:
    """The fewest bytes that a frugal transfer asks for at once, where others are to have a piece of the file too.

    What one connection brings in a quarter of a second: who comes later finds pieces that nobody has asked for, and
    has to cut off no other.
    """
    return _brought(0.25, rate, connections, min_split) if rate else min(_LEAST_BLIND, min_split)


def most_connections(sizes: Iterable[int], rate: float, connections: int, min_split: int) -> int:
    """How many connections files of these sizes in bytes are worth, where `connections` bring `rate` bytes a second.

    One for each file, and for each part of it that takes one half a second: where they are fast, what a file that is
    cut up again loses of what is under way is more than it gains.
    """
    part = _brought(0.5, rate, connections, min_split)
    return sum(max(size // part, 1) for size in sizes)


def _brought(seconds: float, rate: float, connections: int, min_split: int) -> int:
    each = int(rate * seconds / connections)
    return min(max(each, _LEAST), min_split) if each else min_split


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
        self._seen: deque[tuple[float, int, float]] = deque()
        self._before: float | None = None  # the rate when connections were last added
        self._until = 0.0

    @property
    def saturated(self) -> bool:
        """Whether the processor is the limit, as far as that is known."""
        return self.busy >= self.IDLE_SHARE

    def forget(self) -> None:
        """Connections had nothing to do: what they brought meanwhile does not tell what they can bring."""
        self.rate = 0.0
        self._seen.clear()

    def observe(self, now: float, received: int, busy: float) -> bool:
        """Whether to add connections. `now` is in seconds, `received` bytes so far, `busy` a share from 0 to 1."""
        self._seen.append((now, received, busy))
        while len(self._seen) > 2 and now - self._seen[1][0] >= self._WINDOW:
            self._seen.popleft()
        began, at, _ = self._seen[0]
        self.rate = rate = (received - at) / (now - began) if now > began else 0.0
        if len(self._seen) == 1:  # it sees connections being made
            return False
        shares = [share for _, _, share in self._seen][1:]
        self.busy = sum(shares) / len(shares)
        if now < self._until:
            return False
        if self._before is not None and rate < self.GAIN * self._before:
            self._before, self._until = None, now + self.PATIENCE
            return False
        if self.saturated:
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

    def take(self, file: K, sharers: int = 2, least: int | None = None) -> Lease[K] | None:
        """The next piece of `file`, or None if nothing of it is pending.

        `sharers`: how many connections are to fetch the file; a single one gets all that is pending. `least`: the
        fewest bytes of a piece, if not `min_split`; then a single one leaves something for who may come.
        """
        spans = self.pending.get(file)
        if not spans or not self._is_free(file):
            return None
        sharers = max(sharers, 1 + sum(lease.file == file for lease in self.active))
        piece = piece_size(sum(span.nbytes for span in spans), sharers, self.min_split, least)
        span = spans.popleft()
        # A rest of less than half a piece goes along: a request for it alone is not worth while.
        shared = (sharers > 1 or least is not None) and file not in self.unsplittable
        if shared and span.nbytes > piece + piece // 2:
            spans.appendleft(Span(span.start + piece, span.stop))
            span = Span(span.start, span.start + piece)
        if not spans:
            del self.pending[file]
        lease = Lease(file, span.start, span.stop)
        self.active.append(lease)
        return lease

    def take_any(self, sharers: int = 2, least: int | None = None) -> Lease[K] | None:
        """The next piece of the file that has most pending, or None if no file has any."""
        free = ((file, spans) for file, spans in self.pending.items() if self._is_free(file))
        pending = {file: sum(span.nbytes for span in spans) for file, spans in free}
        return self.take(max(pending, key=pending.__getitem__), sharers, least) if pending else None

    def take_within(self, file: K, wanted: Span, sharers: int, least: int) -> Lease[K] | None:
        """A piece of `file` that begins with the first byte of `wanted` that nobody fetches; None if there is none.

        A connection that has more than `_LATE` times `least` to bring before it comes to `wanted` ends there.
        `sharers` are to bring what is wanted.
        """
        self._end_before(file, wanted.start, late=_LATE * least)
        within = [span for span in self.pending.get(file, ()) if span.start < wanted.stop and wanted.start < span.stop]
        if not within:
            return None
        span = min(within)
        start = max(span.start, wanted.start)
        piece = piece_size(min(span.stop, wanted.stop) - start, sharers, self.min_split, least)
        lease = Lease(file, start, min(start + piece, span.stop))
        left = [Span(span.start, start), Span(lease.stop, span.stop)]
        spans = [one for other in self.pending.pop(file) for one in (left if other == span else [other])]
        self.add(file, [one for one in spans if one.nbytes])
        self.active.append(lease)
        return lease

    def _end_before(self, file: K, offset: int, *, late: int) -> None:
        for lease in self.active:
            if lease.file == file and lease.start + late < offset < lease.stop:
                self.pending.setdefault(file, deque()).appendleft(Span(offset, lease.stop))
                lease.stop = offset

    def steal(self, least: int, sharers: int = 2) -> Lease[K] | None:
        """A piece of the largest span in flight, which keeps what comes before it.

        None if not twice `least` bytes are left of any. What comes after the piece is pending again, so
        that a file shared from now on goes on nearly in order.
        """
        victim = self._largest()
        if victim is None:
            return None
        start, stop = victim.start, victim.stop  # read once: a thread moves the start on meanwhile
        if stop - start < 2 * least:
            return None
        sharers = max(sharers, 2)
        kept = min(piece_size(stop - start, sharers, self.min_split), (stop - start) // 2)
        rest = Span(start + kept, stop)
        victim.stop = rest.start
        self.pending.setdefault(victim.file, deque()).appendleft(rest)
        return self.take(victim.file, sharers)

    def offers(self, least: int) -> bool:
        """Whether there is a piece for one more connection: pending, or to `steal`."""
        victim = self._largest()
        return any(map(self._is_free, self.pending)) or (victim is not None and victim.remaining >= 2 * least)

    def _is_free(self, file: K) -> bool:
        """Whether one more connection may fetch a piece of a file."""
        return file not in self.unsplittable or not any(lease.file == file for lease in self.active)

    def comes_whole(self, lease: Lease[K]) -> None:
        """A server sends the whole file instead of what is leased, so it is asked for in pieces no more.

        The earliest lease in flight gets what follows it, up to what is here or coming; another one is given up.
        """
        file = lease.file
        self.unsplittable.add(file)
        waiting = {span.start: span for span in self.pending.pop(file, ())}
        if self.leads(lease):
            others = [one for one in self.active if one.file == file and one is not lease and not one.answered]
            idle = {other.start: other for other in others}
            while lease.stop in waiting or lease.stop in idle:
                if lease.stop in waiting:
                    lease.stop = waiting.pop(lease.stop).stop
                else:
                    other = idle.pop(lease.stop)
                    lease.stop, other.stop = other.stop, other.start
        else:
            waiting[lease.start] = Span(lease.start, lease.stop)
            lease.stop = lease.start
        self.add(file, sorted(waiting.values()))

    def _largest(self) -> Lease[K] | None:
        """The span in flight that has most left, of those that may be split."""
        victims = [lease for lease in self.active if lease.file not in self.unsplittable]
        return max(victims, key=lambda lease: lease.remaining, default=None)

    def leads(self, lease: Lease[K]) -> bool:
        """Whether no other connection fetches an earlier piece of the file."""
        return not any(other.file == lease.file and other.start < lease.start for other in self.active)

    def release(self, lease: Lease[K]) -> None:
        """`lease` is no longer in flight; what it lacks must be added again by the caller."""
        self.active.remove(lease)

    def idle(self, file: K) -> bool:
        """Whether nothing of `file` is pending or in flight."""
        return file not in self.pending and not any(lease.file == file for lease in self.active)
