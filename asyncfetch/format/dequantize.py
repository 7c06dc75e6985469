"""The numbers of a scaled weight, a few megabytes at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from .dtypes import Array
from .header import TensorInfo
from .scaled import ScaledWeight

__all__ = ["Rows", "dequantized", "in_rows"]

_STEP = 1 << 20  # numbers at a time, beside those of the result
# The two E2M1 numbers of each byte, the low half first, as one element: so a look-up takes a third of the time.
_PAIRS = np.stack([np.arange(256) & 15, np.arange(256) >> 4], 1).astype(np.uint8)
_PAIRS_OF_BYTE = _PAIRS.view(ml_dtypes.float4_e2m1fn).astype(np.float32).view(np.uint64)[:, 0]


def dequantized(
    found: ScaledWeight, weight: Array, scale: Array, second: Array | None, dtype: np.dtype[Any] | None
) -> Array:
    """The numbers of `weight` times their scales, in `dtype` (None: float32), in memory of their own.

    They are multiplied in float32, or in float64 where that is asked for, and rounded once to `dtype`.
    """
    target = np.dtype(np.float32) if dtype is None else dtype
    exact = np.dtype(np.float64 if target == np.float64 else np.float32)
    flat = (1,) * (2 - len(found.shape))
    shape, blocks = flat + found.shape, flat + found.blocks
    if found.dtype.startswith("F6"):
        weight = weight.unpack()  # type: ignore[attr-defined]
    stored = weight.view(np.ndarray).reshape(*shape[:-1], -1 if weight.size else 0)
    with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN are numbers of these dtypes
        factors = _factors(found, scale, second, exact)
        factors = factors.reshape(*flat, *factors.shape)
        result = np.empty(found.result, target)
        into = np.swapaxes(result, -1, -2) if found.transposed else result.reshape(shape)
        rows = max(_STEP // max(shape[-1], 1), 1)
        for place in np.ndindex(shape[:-2]):
            here = factors[tuple(at // block for at, block in zip(place, blocks, strict=False))]
            for start in range(0, shape[-2], rows):
                numbers = stored[place][start : start + rows]
                numbers = _PAIRS_OF_BYTE[numbers].view(np.float32) if found.packed else numbers
                by = here[np.arange(start, start + len(numbers)) // blocks[-2]]
                into[place][start : start + rows] = _multiplied(numbers.astype(exact), by, blocks[-1])
    return result


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a scaled weight, along its first axis: what they are by themselves, where they are stored, and the
    parts of the scales that belong to them.
    """

    found: ScaledWeight
    info: TensorInfo
    scale: Array
    second: Array | None

    def numbers(self, weight: Array, dtype: np.dtype[Any] | None) -> Array:
        """Their numbers, as `dequantized` gives them, of what is stored."""
        return dequantized(self.found, weight, self.scale, self.second, dtype)


def in_rows(found: ScaledWeight, info: TensorInfo, scale: Array, second: Array | None, most: int) -> Iterator[Rows]:
    """All rows of a scaled weight, in order, of `most` numbers at a time, or of as few as scales and bytes allow."""
    count = found.shape[0] if len(found.shape) > 1 else 0
    if count < 2 or not info.nbytes or info.shape[0] != count:
        yield Rows(found, info, scale, second)
        return
    block = found.blocks[0] if scale.size > 1 and scale.shape[0] > 1 else 0  # rows that share an entry, 0: all do
    unit = block or 1
    while unit * info.nbytes % count:  # such rows end within a byte
        unit *= 2
    rows = max(most // max(math.prod(found.shape[1:]), 1) // unit, 1) * unit
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        begin, end = (info.begin + info.nbytes * row // count for row in (start, stop))
        yield Rows(
            replace(found, shape=(stop - start, *found.shape[1:])),
            TensorInfo(info.dtype, (stop - start, *info.shape[1:]), begin, end),
            scale[start // block : -(-stop // block)] if block else scale,
            second.reshape(-1)[start:stop] if second is not None and second.size == count else second,
        )


def _multiplied(numbers: Array, by: Array, block: int) -> Array:
    """Rows of `numbers`, each `block` of them times the next of the same row of `by`."""
    if numbers.shape[1] == by.shape[1] * block:
        grouped = numbers.reshape(*by.shape, block)
        grouped *= by[:, :, None]
        return numbers
    numbers *= np.repeat(by, block, 1)[:, : numbers.shape[1]]
    return numbers


def _factors(found: ScaledWeight, scale: Array, second: Array | None, exact: np.dtype[Any]) -> Array:
    """What is multiplied by, with as many axes as the weight has."""
    if scale.dtype == np.uint8:
        scale = scale.view(ml_dtypes.float8_e8m0fnu)
    axes = len(found.shape)
    factors = scale.astype(exact)
    factors = factors.reshape((1,) * axes if factors.size == 1 else (*factors.shape, *(1,) * (axes - factors.ndim)))
    if second is not None:
        other = second.astype(exact).reshape(-1, *(1,) * (axes - 1))
        factors = factors / other if found.divided else factors * other
    return factors
