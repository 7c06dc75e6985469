"""A shard received into memory of its own for each tensor, so that memory is free again tensor by tensor.

A buffer for a whole shard lives as long as any view on it. Here large tensors have a buffer each,
small neighbours share one from which they are copied, and what nobody wants is hashed and dropped.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..format.arrays import tensor_view
from ..format.header import Header, TensorInfo
from ..spans import MiB
from ..storage.buffers import aligned_buffer
from ..storage.partial import Partial

__all__ = ["Filled", "Segment", "TensorPartial", "segments_of"]

_SMALL = MiB  # tensors below this share a buffer of at most this size


@dataclass(frozen=True, slots=True)
class Segment:
    """The bytes `start <= offset < stop` of a file, which get one buffer.

    `tensors` are those that are wanted of it, with their offsets in the segment; none for the
    header and for what is only hashed.
    """

    start: int
    stop: int
    tensors: tuple[tuple[str, TensorInfo], ...] = ()

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Filled:
    """A segment of which all bytes are here."""

    segment: Segment
    buffer: memoryview

    def array(self, name: str, info: TensorInfo, *, file: str) -> np.ndarray[Any, np.dtype[Any]]:
        """One of its tensors, in 64-byte aligned memory that no other tensor shares."""
        place, begin = self.buffer, info.begin
        if len(self.segment.tensors) > 1:
            place, begin = aligned_buffer(info.nbytes, 0), 0
            place[:] = self.buffer[info.begin : info.end]
        return tensor_view(place, TensorInfo(info.dtype, info.shape, 0, info.nbytes), begin, file=file, tensor=name)


def segments_of(header: Header, wanted: Collection[str]) -> list[Segment]:
    """A shard cut at its tensors, from the first byte to the last."""
    return list(_cut(header, set(wanted)))


def _cut(header: Header, wanted: set[str]) -> Iterator[Segment]:
    yield Segment(0, header.data_start)
    group: list[tuple[str, TensorInfo]] = []
    start = stop = header.data_start
    for name, info in header.tensors.items():
        begin, end = header.data_start + info.begin, header.data_start + info.end
        if group and (name not in wanted or end - start > _SMALL):
            yield Segment(start, stop, tuple(group))
            group, start = [], begin
        stop = end
        if name in wanted:
            at = begin - start
            group.append((name, TensorInfo(info.dtype, info.shape, at, at + info.nbytes)))
        else:
            for at in range(begin, end, _SMALL):
                yield Segment(at, min(at + _SMALL, end))
            start = end
    if group:
        yield Segment(start, stop, tuple(group))


class TensorPartial(Partial):
    """A memory form whose bytes are received straight into the buffers of `segments`.

    A buffer is made when its first byte comes. With `in_order` the bytes come from the first to the
    last, and `take` hands out each segment once it is hashed: before the hash of the whole is known.
    """

    def __init__(self, size: int, algorithm: str, segments: list[Segment], *, in_order: bool) -> None:
        super().__init__(size, algorithm)
        self.in_order = in_order
        self.segments = segments
        self._data_start = segments[0].stop
        self._stops = [segment.stop for segment in segments]
        self._buffers: dict[int, memoryview] = {}
        self._making = threading.Lock()  # guards _buffers
        self._taken = 0
        self._whole = False

    def target(self, offset: int, limit: int, scratch: memoryview) -> memoryview:  # noqa: ARG002
        return self._place(offset)[:limit]

    def _place(self, offset: int) -> memoryview:
        """The room from `offset` to the end of its segment."""
        number = bisect_right(self._stops, offset)  # the first segment that ends beyond it: none is empty
        segment = self.segments[number]
        with self._making:
            buffer = self._buffers.get(number)
            if buffer is None:
                align = self._data_start if self._whole else 0
                buffer = self._buffers[number] = aligned_buffer(segment.nbytes, align)
        return buffer[offset - segment.start :]

    def _store(self, offset: int, data: memoryview) -> None:
        while data:
            place = self._place(offset)[: len(data)]
            if not _same_place(place, data):
                place[:] = data[: len(place)]
            offset, data = offset + len(place), data[len(place) :]

    def _load(self, offset: int, limit: int) -> memoryview:
        return self._place(offset)[:limit]

    def take(self, *, unwanted: bool = False) -> list[Filled]:
        """The segments that were hashed since the last call. They are forgotten: not to be landed again.

        With `unwanted` only what holds no wanted tensor is forgotten; all others stay.
        """
        found = []
        while self._taken < len(self.segments) and self._stops[self._taken] <= self._hashed:
            number, segment = self._taken, self.segments[self._taken]
            self._taken += 1
            if unwanted and segment.tensors:
                continue
            with self._making:
                buffer = self._buffers.pop(number, None)
            found.append(Filled(segment, aligned_buffer(0, 0) if buffer is None else buffer))
        return found

    def take_all(self) -> list[Filled]:
        """All segments with wanted tensors, once nothing is missing."""
        found = [
            Filled(segment, self._buffers[number] if segment.nbytes else aligned_buffer(0, 0))
            for number, segment in enumerate(self.segments)
            if segment.tensors
        ]
        self._buffers.clear()
        return found

    def reset(self) -> None:
        """Begin again, as one segment: the new bytes may have another header than the first ones."""
        super().reset()
        self.segments, self._stops = [Segment(0, self.size)], [self.size]
        self._buffers.clear()
        self._whole, self._taken = True, 1  # nothing of it may be taken

    @property
    def buffer(self) -> memoryview | None:
        """The whole file, where it was received anew after a wrong hash."""
        return self._buffers.get(0) if self._whole else None


def _same_place(left: memoryview, right: memoryview) -> bool:
    return bool(np.frombuffer(left, np.uint8).ctypes.data == np.frombuffer(right, np.uint8).ctypes.data)
