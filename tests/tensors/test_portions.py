"""A part of a tensor that is in memory already: the same as one that is fetched, and no copy where none is needed."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from asyncfetch.errors import SourceError
from asyncfetch.format.arrays import PackedArray, tensor_view
from asyncfetch.format.header import header_of
from asyncfetch.format.ranks import cut_of_rank
from asyncfetch.sources.located import SourceFile
from asyncfetch.tensors.portions import part_of

from ..format.test_ranks import chunked
from ..kit.files import safetensors_bytes

RNG = np.random.default_rng(17)
TENSORS: dict[str, Any] = {
    "odd": RNG.integers(0, 255, 33, np.uint8),
    "plain": RNG.standard_normal((10, 9, 4)).astype(np.float32),
    "bf16": RNG.standard_normal((12, 18)).astype(ml_dtypes.bfloat16),
    "none": np.zeros((0, 6), np.float64),
    "f4": ("F4", (16, 12), RNG.bytes(16 * 6)),
}


def stored() -> Any:
    """Each tensor of a file as it is in memory: its name, its file, its entry, the array."""
    data = np.frombuffer(safetensors_bytes(TENSORS), np.uint8)
    header = header_of(data.data, file="m")
    file = SourceFile("m", len(data), None, header=header)
    for name, info in header.tensors.items():
        yield name, file, info, tensor_view(data, info, header.data_start)


@pytest.mark.parametrize(("axis", "parts"), [(0, 1), (1, 1), (-1, 1), (1, 3), (1, "sizes"), (0, 2)])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_parts_of_what_is_in_memory(axis: int, parts: Any, world_size: int) -> None:
    """Every rank's part, of fused tensors too, with the same numbers as a slice of the whole."""
    compared = 0
    for name, file, info, whole in stored():
        if len(info.shape) <= abs(axis) or isinstance(whole, PackedArray):
            continue
        size = info.shape[axis]
        sizes = (size - size // 3, size // 3) if parts == "sizes" else [size // parts] * parts
        if sum(sizes) != size:
            continue
        given = sizes if parts == "sizes" else parts
        for rank in range(world_size):
            cut = cut_of_rank(info.shape, axis=axis, rank=rank, world_size=world_size, parts=given)
            fused = np.split(whole, np.cumsum(sizes)[:-1], axis)
            expected = np.concatenate([chunked(one, world_size, axis)[rank] for one in fused], axis)
            part = part_of(whole, name, file, info, cut)
            assert (part.dtype, part.shape, part.flags.c_contiguous) == (whole.dtype, expected.shape, True)
            assert part.tobytes() == expected.tobytes()
            shared = np.shares_memory(part, whole)
            if part.size and axis == 0 and parts == 1:
                assert shared
            assert not part.size or shared or part.ctypes.data % 64 == 0
            compared += 1
    assert compared >= world_size


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_packed_parts_of_what_is_in_memory(world_size: int) -> None:
    """Rows are views, columns copies; where a part would begin within a byte it is refused."""
    (name, file, info, whole) = list(stored())[-1]
    numbers = whole.unpack()
    for axis in (0, 1):
        for parts in (1, 2):
            for rank in range(world_size):
                cut = cut_of_rank(info.shape, axis=axis, rank=rank, world_size=world_size, parts=parts)
                expected = cut.of(numbers)
                if axis == 1 and (12 // parts / world_size) % 2:
                    with pytest.raises(SourceError, match="begins or ends among them"):
                        part_of(whole, name, file, info, cut)
                    break
                part = part_of(whole, name, file, info, cut)
                assert np.array_equal(part.unpack(), expected)
                assert np.shares_memory(part, whole) == ((axis, parts) == (0, 1) or world_size == 1)
