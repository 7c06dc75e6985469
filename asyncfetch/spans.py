"""Which bytes of a file: half-open spans, and sets of them. Pure arithmetic."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["MiB", "Span", "SpanSet"]


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

    def reach(self, offset: int) -> int:
        """The end of the run of bytes that holds `offset`; `offset` itself if that byte is missing."""
        at = bisect_right(self._starts, offset) - 1
        return max(self._stops[at], offset) if at >= 0 else offset

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


MiB = 1 << 20
