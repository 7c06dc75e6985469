"""Which part of a tensor a rank holds, as the engines that split models split them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ..errors import SourceError
from .dtypes import Array
from .hostile import short_repr
from .slices import BasicIndex

__all__ = ["Cut", "Parts", "Split", "cut_of_rank"]

Split = Literal["chunk", "array_split"]
Parts = int | Sequence[int]


@dataclass(frozen=True, slots=True)
class Cut:
    """A part of a tensor: `indices` of it, seen as of `shape`, joined along `axis`; then it is of shape `result`."""

    shape: tuple[int, ...]
    indices: tuple[BasicIndex, ...]
    axis: int = 0
    result: tuple[int, ...] | None = None  # that of its only index

    def of(self, array: Array) -> Array:
        """The part of an array, in memory of its own."""
        seen = array.reshape(self.shape)
        part = np.concatenate([seen[index] for index in self.indices], self.axis) if len(self.indices) > 1 else None
        part = np.array(seen[self.indices[0]]) if part is None else part
        return part if self.result is None else part.reshape(self.result)


def cut_of_rank(
    shape: Sequence[int], *, axis: int, rank: int, world_size: int, parts: Parts = 1, split: Split = "chunk"
) -> Cut:
    """What `rank` of `world_size` holds of a tensor of `shape`, split along `axis`.

    `split="chunk"` is the rule of torch.chunk (https://docs.pytorch.org/docs/stable/generated/torch.chunk.html),
    DTensor's Shard and the inference engines: blocks of ceil(size / world_size), of which the last ranks have less
    or nothing. 4 rows over 3 ranks are 2, 2, 0. `split="array_split"` is numpy's: sizes differ by one at most.
    4 rows over 3 ranks are 2, 1, 1.

    `parts` are the tensors that were fused along the axis, each of which is split for itself: their number if they
    are equal (3 for query, key and value; 2 for gate and up), or else their sizes. Raises SourceError when there is
    no such axis, rank, split or part.
    """
    for name, value in (("axis", axis), ("rank", rank), ("world_size", world_size)):
        _check_whole(name, value)
    if not -len(shape) <= axis < len(shape):
        allowed = f"they are {-len(shape)} to {len(shape) - 1}" if shape else "it cannot be split"
        raise SourceError(f"axis={axis} is no axis of a tensor with {len(shape)} dimensions: {allowed}.")
    if not 0 <= rank < world_size:
        allowed = f"they are 0 to {world_size - 1}" if world_size > 0 else "there must be one at least"
        raise SourceError(f"rank={rank} is none of {world_size} ranks: {allowed}.")
    if split not in get_args(Split):
        raise SourceError(f'split={short_repr(split)} is neither "chunk" nor "array_split".')
    axis %= len(shape)
    before, size, after = tuple(shape[:axis]), shape[axis], tuple(shape[axis + 1 :])
    every = (slice(None),) * axis
    if isinstance(parts, int) or not isinstance(parts, Sequence):
        _check_whole("parts", parts)
        if parts < 1 or size % parts:
            raise SourceError(
                f"parts={parts} does not divide the {size:,} of axis {axis}.", hint="Give the sizes of the parts."
            )
        start, stop = _bounds(size // parts, rank, world_size, split)
        seen = (*before, parts, size // parts, *after)
        return Cut(seen, ((*every, slice(None), slice(start, stop)),), axis, (*before, parts * (stop - start), *after))
    for part in parts:
        _check_whole("parts", part)
    if not parts or min(parts) < 0 or sum(parts) != size:
        raise SourceError(f"parts={short_repr(parts)} do not add up to the {size:,} of axis {axis}.")
    indices: list[BasicIndex] = []
    begin = held = 0
    for part in parts:
        start, stop = _bounds(part, rank, world_size, split)
        indices.append((*every, slice(begin + start, begin + stop)))
        begin, held = begin + part, held + stop - start
    return Cut(tuple(shape), tuple(indices), axis, (*before, held, *after))


def _bounds(size: int, rank: int, world_size: int, split: Split) -> tuple[int, int]:
    """From where to where of `size` elements."""
    if split == "chunk":
        block = -(-size // world_size)
        return min(rank * block, size), min((rank + 1) * block, size)
    least, more = divmod(size, world_size)
    start = rank * least + min(rank, more)
    return start, start + least + (rank < more)


def _check_whole(name: str, value: Any) -> None:
    try:
        whole = not isinstance(value, bool) and operator.index(value) is not None
    except TypeError:
        whole = False
    if not whole:
        raise SourceError(f"{name}={short_repr(value)} is not a whole number.")
