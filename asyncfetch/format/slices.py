"""Which bytes of a file a part of a tensor needs, and in which ranges they are fetched.

A tensor lies in its file in C order, so what numpy's basic indexing selects is a regular pattern:
runs of bytes at a few nested strides. Neighbouring runs are fetched in one range where the bytes
between them cost less than another request would. Pure arithmetic: no await, no disk, no memory of
the size of the tensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Literal, TypeVar

import numpy as np

from ..errors import SourceError
from ..spans import Span
from .hostile import short_repr

__all__ = [
    "REQUEST_COST",
    "STAGE_BYTES",
    "BasicIndex",
    "Piece",
    "Selection",
    "SlicePlan",
    "coalesce",
    "expanded_index",
    "plan_selections",
    "plan_slice",
    "select_part",
    "tensor_piece",
]

# What one more request costs, as bytes: a round trip of 20 ms on a connection that carries 12.5 MB/s.
REQUEST_COST = 256 * 1024
# Pieces with holes are received up to this size at a time, then their wanted bytes are copied out.
STAGE_BYTES = 256 * 1024

Entry = int | slice | EllipsisType | None
BasicIndex = Entry | tuple[Entry, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes `start <= offset < stop` of a file, and where those that are wanted go.

    They go to the `nbytes` bytes from `dest` of the result. Without `counts` all bytes are wanted.
    Otherwise the wanted ones are items of `itemsize` bytes, `counts` of them at `strides` bytes,
    outermost axis first, in the order of the result.
    """

    start: int
    stop: int
    dest: int
    nbytes: int
    itemsize: int = 1
    counts: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    def split(self, at: int) -> tuple[list[Piece], list[Piece]]:
        """What lies before byte `at` of the file, and what after it; a piece with holes counts as after."""
        if self.stop <= at:
            return [self], []
        if self.start >= at or self.counts:
            return [], [self]
        head = at - self.start
        return [Piece(self.start, at, self.dest, head)], [Piece(at, self.stop, self.dest + head, self.nbytes - head)]

    def cut(self, longest: int) -> Iterator[Piece]:
        """Pieces of at most `longest` bytes; a piece with holes stays whole."""
        if self.counts:
            yield self
            return
        for at in range(self.start, self.stop, longest):
            stop = min(at + longest, self.stop)
            yield Piece(at, stop, self.dest + at - self.start, stop - at)


@dataclass(frozen=True, slots=True)
class Selection:
    """What an index selects of a tensor: runs of `run` bytes, the first at byte `start` of the file.

    `counts` and `strides` (bytes, all positive and larger than what is inside them) say how the runs
    repeat, outermost first. `shape` is that of the result; its axes `reversed_axes` are selected backwards,
    and are stored forwards until they are turned round.
    """

    shape: tuple[int, ...]
    reversed_axes: tuple[int, ...]
    start: int
    run: int
    itemsize: int
    counts: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Wanted bytes."""
        return math.prod(self.shape) * self.itemsize

    def pieces(self, request_cost: int = REQUEST_COST) -> Iterator[Piece]:
        """The wanted bytes in the order of the file, which is that of the result as well.

        Runs with less than `request_cost` between them are taken together, up to STAGE_BYTES; so
        there are never many more pieces than the tensor has such stretches.
        """
        if not self.nbytes:
            return
        axis = self._staged_axis(request_cost)
        dest = 0
        for base in self._bases(axis):
            if axis == len(self.counts):
                yield Piece(base, base + self.run, dest, self.run)
                dest += self.run
                continue
            count, stride = self.counts[axis], self.strides[axis]
            steps = max(STAGE_BYTES // stride, 1)
            inner = self._extent(axis + 1)
            each = self.run * math.prod(self.counts[axis + 1 :])
            unit = self.itemsize if self.itemsize in (1, 2, 4, 8) else 1
            for at in range(0, count, steps):
                n = min(steps, count - at)
                start = base + at * stride
                counts = (n, *self.counts[axis + 1 :], self.run // unit)
                strides = (*self.strides[axis:], unit)
                yield Piece(start, start + (n - 1) * stride + inner, dest, n * each, unit, counts, strides)
                dest += n * each

    def _staged_axis(self, request_cost: int) -> int:
        """The outermost axis whose steps are received together, holes and all; as many as axes: none."""
        axis = len(self.counts)
        while axis > 0:
            stride = self.strides[axis - 1]
            if stride > STAGE_BYTES or stride - self._extent(axis) > request_cost:
                break
            axis -= 1
        return axis

    def _extent(self, axis: int) -> int:
        """Bytes from the first wanted one to the last, in one step of the axis outside of `axis`."""
        steps = zip(self.counts[axis:], self.strides[axis:], strict=True)
        return self.run + sum((count - 1) * stride for count, stride in steps)

    def _bases(self, axis: int) -> Iterator[int]:
        """Where each combination of steps of the axes outside of `axis` begins."""
        steps = [
            range(0, count * stride, stride)
            for count, stride in zip(self.counts[:axis], self.strides[:axis], strict=True)
        ]
        return (self.start + sum(offsets) for offsets in itertools.product(*steps))


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """How a part of a tensor is fetched: one request for each of `spans`, bytes of the file.

    `strategy` is "contiguous": one range of exactly the wanted bytes; "strided": several ranges;
    "whole": one range from the first wanted byte to the last, of which only some are wanted, since
    more requests would cost more than the bytes in between. `nbytes` are wanted, `transferred` come
    over the network. A range that is long is fetched by several connections, part by part.
    """

    strategy: Literal["contiguous", "strided", "whole"]
    spans: tuple[Span, ...]
    nbytes: int
    shape: tuple[int, ...]

    @property
    def transferred(self) -> int:
        """Bytes of all spans."""
        return sum(span.nbytes for span in self.spans)


def plan_slice(
    shape: Sequence[int], itemsize: int, index: BasicIndex = ..., *, offset: int = 0, request_cost: int = REQUEST_COST
) -> SlicePlan:
    """How `index` of a tensor of `shape` is fetched that begins at byte `offset` of its file.

    `index` is numpy's basic indexing: ints, slices, Ellipsis, None. The model of cost: a request
    costs as much as `request_cost` bytes. Since a gap is either fetched or saves its bytes at
    the price of one request, joining just the gaps of at most `request_cost` is the cheapest plan
    there is. Raises IndexError as numpy does, SourceError for what is no basic index.
    """
    selection = select_part(tuple(shape), itemsize, index, offset=offset)
    return plan_selections([selection], selection.shape, request_cost=request_cost)


def plan_selections(
    selections: Sequence[Selection], shape: tuple[int, ...], *, request_cost: int = REQUEST_COST
) -> SlicePlan:
    """How all of `selections` are fetched, which together are a part of `shape`."""
    pieces = [piece for selection in selections for piece in selection.pieces(request_cost)]
    wanted = ((piece, None) for piece in sorted(pieces, key=lambda piece: piece.start))
    spans = tuple(Span(group[0][0].start, group[-1][0].stop) for group in coalesce(wanted, request_cost))
    nbytes = sum(selection.nbytes for selection in selections)
    strategy: Literal["contiguous", "strided", "whole"]
    if len(spans) > 1:
        strategy = "strided"
    else:
        strategy = "contiguous" if sum(span.nbytes for span in spans) == nbytes else "whole"
    return SlicePlan(strategy, spans, nbytes, shape)


def tensor_piece(offset: int, nbytes: int) -> Piece:
    """A whole tensor: `nbytes` from byte `offset` of its file."""
    return Piece(offset, offset + nbytes, 0, nbytes)


def select_part(shape: tuple[int, ...], itemsize: int, index: BasicIndex, *, offset: int = 0) -> Selection:
    """What `index` selects of a tensor of `shape` whose first byte is byte `offset` of its file."""
    entries = _entries(index)
    try:
        model = np.broadcast_to(np.empty((), np.uint8), shape)  # no memory behind it: strides of 0
    except ValueError as error:
        raise SourceError(f"The shape {short_repr(shape)} does not fit into a numpy array: {error}.") from None
    result = model[(*entries, ...)] if Ellipsis not in entries else model[entries]  # raises numpy's own IndexError
    axes: list[tuple[int, int]] = []  # (count, stride) of each axis of the tensor, in order
    reversed_axes: list[int] = []
    start = position = 0
    strides = [itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    for entry in _expanded(entries, len(shape)):
        if entry is None:
            position += 1
            continue
        size, stride = shape[len(axes)], strides[len(axes)]
        if isinstance(entry, slice):
            picked = range(*entry.indices(size))
            if len(picked) and picked.step < 0:
                picked = picked[::-1]
                reversed_axes.append(position)
            position += 1
        else:
            picked = range(entry % size, entry % size + 1)
        if len(picked):
            start += picked[0] * stride
        axes.append((len(picked), picked.step * stride))
    run, counts, bytes_between = _runs(axes, itemsize)
    return Selection(result.shape, tuple(reversed_axes), offset + start, run, itemsize, counts, bytes_between)


def _runs(axes: Sequence[tuple[int, int]], itemsize: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """The bytes of a run, and the counts and strides at which runs repeat, from those of each axis."""
    kept = [(count, stride) for count, stride in axes if count != 1]
    run = itemsize
    while kept and kept[-1][1] == run:
        run *= kept.pop()[0]
    return run, tuple(count for count, _ in kept), tuple(stride for _, stride in kept)


def _entries(index: object) -> tuple[Entry, ...]:
    """An index as a tuple of ints, slices, Ellipsis and None, and nothing else."""
    entries: list[Entry] = []
    given: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    for entry in given:
        if entry is None or entry is Ellipsis or isinstance(entry, slice):
            entries.append(entry)
        elif isinstance(entry, bool | np.bool_) or not hasattr(entry, "__index__") or np.ndim(entry):
            raise SourceError(
                f"index= takes ints, slices, ... and None, not {short_repr(entry)}.",
                hint="Fetch the tensor, or the rows that hold what is wanted, and index the array.",
            )
        else:
            entries.append(int(entry))
    return tuple(entries)


def expanded_index(index: BasicIndex, dimensions: int) -> list[int | slice]:
    """One entry of `index` for each axis of a tensor. Raises SourceError for what is no basic index."""
    return [entry for entry in _expanded(_entries(index), dimensions) if entry is not None]


def _expanded(entries: tuple[Entry, ...], dimensions: int) -> Iterator[int | slice | None]:
    """The entries with one for each axis: the Ellipsis, or else the end, stands for those not named."""
    rest = [slice(None)] * (dimensions - sum(entry is not None and entry is not Ellipsis for entry in entries))
    for entry in entries if Ellipsis in entries else (*entries, ...):
        if isinstance(entry, EllipsisType):
            yield from rest
        else:
            yield entry


def coalesce(
    wanted: Iterable[tuple[Piece, T]], gap: float, longest: int | None = None
) -> Iterator[list[tuple[Piece, T]]]:
    """Groups of pieces that one request fetches: neighbours with at most `gap` bytes between them.

    `wanted` is in the order of the file; what overlaps the piece before it begins a group. With `longest`,
    no group is extended beyond that many bytes and longer pieces are cut, so that several connections have
    something to do.
    """
    group: list[tuple[Piece, T]] = []
    for piece, tag in wanted:
        for part in (piece,) if longest is None else piece.cut(longest):
            if group and (
                not 0 <= part.start - group[-1][0].stop <= gap
                or (longest is not None and part.stop - group[0][0].start > longest)
            ):
                yield group
                group = []
            group.append((part, tag))
    if group:
        yield group
