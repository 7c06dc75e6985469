"""What a rank holds: as torch and numpy split, of fused tensors too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from asyncfetch.errors import SourceError
from asyncfetch.format.ranks import cut_of_rank

from .test_slices import numbered


def chunked(full: np.ndarray, world_size: int, axis: int) -> list[np.ndarray]:
    """What torch.chunk gives, and empty arrays for the ranks for which it gives nothing, as DTensor's Shard does."""
    block = -(-full.shape[axis] // world_size)
    bounds = [min(rank * block, full.shape[axis]) for rank in range(1, world_size)]
    return np.split(full, bounds, axis)


SPLITS = {"chunk": chunked, "array_split": np.array_split}


@settings(deadline=None)
@given(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9), st.sampled_from(sorted(SPLITS)), st.data())
def test_ranks_split_by_either_rule(shape: tuple[int, ...], split: Any, data: st.DataObject) -> None:
    """Each rank's part is that of torch or of numpy, uneven sizes and more ranks than rows included."""
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    world_size = data.draw(st.integers(1, 12))
    full = numbered(shape)
    parts = SPLITS[split](full, world_size, axis)
    for rank in range(world_size):
        cut = cut_of_rank(shape, axis=axis, rank=rank, world_size=world_size, split=split)
        np.testing.assert_array_equal(cut.of(full), parts[rank])
        assert cut.result == parts[rank].shape


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.tuples(st.integers(0, 3), st.integers(0, 3)), st.data())
def test_fused_parts_are_split_each_for_itself(sizes: list[int], around: tuple[int, int], data: st.DataObject) -> None:
    """A rank holds its share of each part, in their order, of equal parts and of others."""
    split = data.draw(st.sampled_from(sorted(SPLITS)))
    world_size = data.draw(st.integers(1, 5))
    full = numbered((around[0], sum(sizes), around[1]))
    expected = [
        [SPLITS[split](part, world_size, 1)[rank] for part in np.split(full, np.cumsum(sizes)[:-1], 1)]
        for rank in range(world_size)
    ]
    forms: list[Any] = [sizes, tuple(sizes)] + ([len(sizes)] if len(set(sizes)) == 1 else [])
    for rank in range(world_size):
        for parts in forms:
            cut = cut_of_rank(full.shape, axis=-2, rank=rank, world_size=world_size, parts=parts, split=split)
            np.testing.assert_array_equal(cut.of(full), np.concatenate(expected[rank], 1))


@pytest.mark.parametrize(("split", "sizes"), [("chunk", [2, 2, 0]), ("array_split", [2, 1, 1])])
def test_four_rows_over_three_ranks(split: Any, sizes: list[int]) -> None:
    """The examples of the documentation; the rule of torch is the one that counts where none is named."""
    cuts = [cut_of_rank((4, 5), axis=0, rank=rank, world_size=3, split=split) for rank in range(3)]
    assert [cut.result for cut in cuts] == [(size, 5) for size in sizes]
    if split == "chunk":
        assert cuts == [cut_of_rank((4, 5), axis=0, rank=rank, world_size=3) for rank in range(3)]


@pytest.mark.parametrize("size", [0, 1, 4, 5, 7, 12])
@pytest.mark.parametrize("world_size", [1, 3, 4, 8])
def test_torch_agrees(size: int, world_size: int) -> None:
    """torch.chunk itself gives the same."""
    torch = pytest.importorskip("torch")
    full = np.arange(size * 2).reshape(size, 2)
    chunks = [np.asarray(chunk) for chunk in torch.chunk(torch.from_numpy(full), world_size)]
    for rank in range(world_size):
        part = cut_of_rank((size, 2), axis=0, rank=rank, world_size=world_size).of(full)
        np.testing.assert_array_equal(part, chunks[rank] if rank < len(chunks) else full[:0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis": 2}, "axis=2 is no axis of a tensor with 2 dimensions: they are -2 to 1"),
        ({"axis": -3}, "axis=-3 is no axis"),
        ({"rank": 2}, "rank=2 is none of 2 ranks: they are 0 to 1"),
        ({"rank": -1}, "rank=-1 is none of 2 ranks"),
        ({"world_size": 0}, "rank=0 is none of 0 ranks: there must be one at least"),
        ({"rank": 0.5}, "rank=0.5 is not a whole number"),
        ({"axis": True}, "axis=True is not a whole number"),
        ({"axis": np.array([0, 1])}, "is not a whole number"),
        ({"split": "shard"}, 'split=\'shard\' is neither "chunk" nor "array_split"'),
        ({"parts": 3}, "parts=3 does not divide the 5 of axis 0. Give the sizes"),
        ({"parts": 0}, "parts=0 does not divide"),
        ({"parts": (2, 2)}, r"parts=\(2, 2\) do not add up to the 5 of axis 0"),
        ({"parts": (7, -2)}, "do not add up"),
        ({"parts": ()}, "do not add up"),
        ({"parts": "qkv"}, "parts='q' is not a whole number"),
    ],
)
def test_no_such_part(options: dict[str, Any], message: str) -> None:
    """What does not exist is an error that names it and what is allowed, not a wrong part."""
    with pytest.raises(SourceError, match=message):
        cut_of_rank((5, 3), **({"axis": 0, "rank": 0, "world_size": 2} | options))


def test_ranks_of_a_scalar() -> None:
    """A tensor without dimensions cannot be split."""
    with pytest.raises(SourceError, match="0 dimensions: it cannot be split"):
        cut_of_rank((), axis=0, rank=0, world_size=1)
