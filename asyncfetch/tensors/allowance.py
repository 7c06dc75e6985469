"""How many bytes may be in memory at once, and which file may have them. Pure arithmetic, on the event loop.

A file is cut into segments, each of which has a buffer. What holds memory is a segment that was
admitted, until its bytes are given back.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from ..policy import Policy
from ..spans import MiB

__all__ = ["Allowance", "limit_in_memory", "limit_on_disk"]

_AHEAD = 8 * MiB  # what a connection may be allowed to receive at once
_MANY = 4  # files of at most this part of the limit are begun as a whole, several at a time
_LEAST = 64 * MiB  # the limit, where the shards, or tensors, are smaller


def limit_in_memory(asked: int | None, sizes: Sequence[int], stops: Mapping[str, Sequence[int]], *, early: bool) -> int:
    """What the caller asked for; else 1.25 times the largest file, or `early` twice the largest segment, and 64 MiB."""
    if asked is not None:
        return asked
    return max(2 * _largest(stops) if early else max(sizes, default=0) * 5 // 4, _LEAST)


def limit_on_disk(sizes: Sequence[int], policy: Policy) -> int:
    """Of what is received at once: two files, and a piece for each connection also where files are small."""
    return max(2 * max(sizes, default=0), 2 * policy.connections * policy.min_split)


def _largest(stops: Mapping[str, Sequence[int]]) -> int:
    return max((stop - start for ends in stops.values() for start, stop in pairwise([0, *ends])), default=0)


class Allowance:
    """Memory of at most `limit` bytes, shared out among files. What is the only one in use always gets its memory.

    `stops` are the ends of the segments of each file that grows segment by segment; others are admitted
    as a whole. `early`: segments are given back one by one, so several files may grow, as many as
    the limit has room for the largest segment. Else all of a file stays until it is whole, and one
    grows at a time: two could wait for each other's memory. `freed` is called when what was
    refused may be admitted now.
    """

    def __init__(
        self, limit: int, stops: Mapping[str, Sequence[int]], *, early: bool, freed: Callable[[], None]
    ) -> None:
        self.limit = limit
        self.used = 0
        self._stops = stops
        self._early = early
        self._freed = freed
        self._most_growing = max(limit // max(_largest(stops), 1), 1) if early else 1
        self._growing: dict[str, int] = {}  # up to which byte there is memory
        self._whole: dict[str, int] = {}  # files that have memory for all of their bytes

    def admits(self, file: str, size: int, known: int) -> bool:
        """Whether `file` of `size` bytes may begin, of which the first `known` are here; it has memory then."""
        if file not in self._stops or (not self._early and size <= self.limit // _MANY):
            if not self._reserve(size):
                return False
            self._whole[file] = size
            return True
        if len(self._growing) >= self._most_growing:
            return False
        stop = self._end_of_segment(file, max(known, 1) - 1)
        if not self._reserve(stop):
            return False
        self._grow(file, stop, size)
        return True

    def room(self, file: str, size: int, offset: int) -> int:
        """How many bytes of `file` may be received from `offset` on: 0 while there is no memory for them."""
        admitted = self._growing.get(file)
        if admitted is None:
            return size - offset
        while admitted < min(size, offset + _AHEAD):
            end = self._end_of_segment(file, admitted)
            if not self._reserve(end - admitted, held=0 if self._early else admitted):
                break
            admitted = end
        self._grow(file, admitted, size)
        return max(admitted - offset, 0)

    def landed(self, file: str) -> int:
        """All bytes of `file` are here. The memory that it has as a whole, which is to be given back some day."""
        if self._growing.pop(file, None) is not None:
            self._freed()
        return self._whole.pop(file, 0)

    def give_back(self, nbytes: int) -> None:
        """So many bytes are free again."""
        if nbytes:
            self.used -= nbytes
            self._freed()

    def _grow(self, file: str, stop: int, size: int) -> None:
        self._growing[file] = stop
        if stop == size and not self._early:  # it waits for no memory any more
            self._whole[file] = self._growing.pop(file)
            self._freed()

    def _end_of_segment(self, file: str, offset: int) -> int:
        stops = self._stops[file]
        return stops[bisect_right(stops, offset)]

    def _reserve(self, nbytes: int, *, held: int = 0) -> bool:
        """Whether there is memory now. Always, where nothing but `held` is in use: waiting would not end."""
        if self.used > held and self.used + nbytes > self.limit:
            return False
        self.used += nbytes
        return True
