"""Parts of tensors whose elements are smaller than a byte, where a part has bytes of its own."""

from __future__ import annotations

import math

from ..errors import SourceError
from .dtypes import DTYPES
from .hostile import short_repr
from .slices import BasicIndex, Selection, expanded_index, select_part

__all__ = ["select_packed"]


def select_packed(
    shape: tuple[int, ...], dtype: str, index: BasicIndex, *, offset: int, tensor: str
) -> tuple[Selection, tuple[int, ...]]:
    """The bytes that `index` selects of a packed tensor, and the logical shape of what they hold.

    Two elements of F4 share a byte, four of F6 three bytes. A part can be had if each of its stretches begins
    and ends between such groups: so rows can where a row is a whole number of groups. Raises IndexError as numpy
    does, SourceError for a part that begins or ends inside of a group.
    """
    bits = DTYPES[dtype].bits
    group = 8 // math.gcd(bits, 8)  # elements
    selected = select_part(shape, 1, index).shape
    if not math.prod(selected):
        return select_part((0,), 1, ..., offset=offset), selected
    entries = expanded_index(index, len(shape))
    # Up to this axis a tensor is one of groups; from it on, its elements are looked at as a row of them.
    axis = max(at for at in range(len(shape)) if math.prod(shape[at:]) % group == 0)
    inner = math.prod(shape[axis + 1 :])
    picked = [_picked(entry, size) for entry, size in zip(entries[axis:], shape[axis:], strict=True)]
    start, stop = picked[0][0] * inner, (picked[0][-1] + 1) * inner
    in_one = picked[0].step == 1 and picked[1:] == [range(size) for size in shape[axis + 1 :]]
    if not in_one or start % group or stop % group:
        least = group // math.gcd(inner, group)
        raise SourceError(
            f"{short_repr(tensor)} is packed ({dtype} {short_repr(shape)}): {group} elements share {bits * group // 8} "
            "byte(s), and this part begins or ends among them.",
            hint=f"Cut axis {axis} in one stretch at multiples of {least}, or fetch the tensor, unpack() it and slice.",
        )
    groups = (*shape[:axis], math.prod(shape[axis:]) // group)
    cut = (*entries[:axis], slice(start // group, stop // group))
    return select_part(groups, bits * group // 8, cut, offset=offset), selected


def _picked(entry: int | slice, size: int) -> range:
    """The places along an axis, of which there are some."""
    if isinstance(entry, slice):
        picked = range(*entry.indices(size))
        return range(picked[0], picked[0] + 1) if len(picked) == 1 else picked
    return range(entry % size, entry % size + 1)
