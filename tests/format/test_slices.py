"""Parts of tensors: what is selected is what numpy selects, and the ranges are the cheapest ones."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from asyncfetch.errors import SourceError
from asyncfetch.format.slices import (
    REQUEST_COST,
    STAGE_BYTES,
    Piece,
    coalesce,
    plan_slice,
    select_part,
    tensor_piece,
)
from asyncfetch.spans import Span
from asyncfetch.tensors.gather import Sink

OFFSET = 24  # where the tensor begins in its file
KiB = 1024


def file_of(full: np.ndarray) -> bytes:
    """A file that holds `full` at OFFSET and something else around it."""
    return b"\xee" * OFFSET + full.tobytes() + b"\xdd" * 40


def gathered(full: np.ndarray, index: Any, *, request_cost: int = REQUEST_COST, step: int = 1 << 20) -> np.ndarray:
    """`full[index]`, read from a file by its pieces, at most `step` bytes at a time."""
    data = file_of(full)
    selection = select_part(full.shape, full.itemsize, index, offset=OFFSET)
    memory = bytearray(selection.nbytes)
    wanted = [(piece, memoryview(memory)) for piece in selection.pieces(request_cost)]
    for group in coalesce(wanted, request_cost):
        sink = Sink(group)
        while sink.room:
            view = sink.place(min(sink.room, step))
            view[:] = data[sink.position : sink.position + len(view)]
            sink.accept(view)
    result = np.frombuffer(memory, full.dtype, selection.nbytes // full.itemsize).reshape(selection.shape)
    for axis in selection.reversed_axes:
        result = np.flip(result, axis)
    return result


def numbered(shape: tuple[int, ...], dtype: Any = np.int32) -> np.ndarray:
    """An array whose elements differ, as far as the dtype has room."""
    return (np.arange(int(np.prod(shape))) * 40503 % 65521).astype(dtype).reshape(shape)


@st.composite
def arrays_and_indices(draw: st.DrawFn) -> tuple[np.ndarray, Any]:
    """A small array of any width of item, and a basic index of it."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7))
    dtype = draw(st.sampled_from([np.uint8, np.float16, np.int32, np.float64, np.complex64]))
    index = draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    return numbered(shape, dtype), index


@settings(deadline=None)
@given(arrays_and_indices(), st.sampled_from([0, 1, 5, 64, REQUEST_COST]), st.sampled_from([1, 3, 1 << 20]))
@example((numbered((4, 6)), np.s_[::-2, ::-1]), 0, 1)
@example((numbered((2, 10)), np.s_[:, ::9]), 20, 3)  # the gap to the next row is smaller than those inside
@example((numbered(()), ()), 0, 1)
def test_gathers_what_numpy_selects(case: tuple[np.ndarray, Any], request_cost: int, step: int) -> None:
    """Whatever the shape, the index, the price of a request and the size of reads: the elements are `full[index]`."""
    full, index = case
    np.testing.assert_array_equal(gathered(full, index, request_cost=request_cost, step=step), full[index])


@settings(deadline=None)
@given(arrays_and_indices(), st.sampled_from([0, 1, 5, 64]))
def test_no_cheaper_set_of_ranges(case: tuple[np.ndarray, Any], request_cost: int) -> None:
    """The plan holds the wanted bytes, and costs what the best choice of gaps costs, counted byte by byte."""
    full, index = case
    plan = plan_slice(full.shape, full.itemsize, index, offset=OFFSET, request_cost=request_cost)
    # Each element's position, by numpy itself.
    positions = np.unique(np.arange(full.size).reshape(full.shape)[index])
    gaps = (np.diff(positions) - 1) * full.itemsize
    cheapest = int(np.minimum(gaps, request_cost).sum()) + positions.size * full.itemsize
    cheapest += request_cost if positions.size else 0
    assert plan.transferred + request_cost * len(plan.spans) == cheapest
    fetched = {byte for span in plan.spans for byte in range(span.start, span.stop)}
    assert {OFFSET + int(at) * full.itemsize for at in positions} <= fetched
    assert plan.nbytes == full[index].nbytes
    assert plan.shape == np.shape(full[index])


@settings(deadline=None)
@given(arrays_and_indices(), st.sampled_from([0, 5, REQUEST_COST]), st.integers(1, 50))
def test_cut_pieces_gather_the_same(case: tuple[np.ndarray, Any], gap: int, longest: int) -> None:
    """Cut into short requests, for several connections, the pieces bring the same bytes, none of them twice."""
    full, index = case
    data = file_of(full)
    selection = select_part(full.shape, full.itemsize, index, offset=OFFSET)
    memory = bytearray(selection.nbytes)
    wanted = [(piece, memoryview(memory)) for piece in selection.pieces(gap)]
    end = 0
    for group in coalesce(wanted, gap, longest):
        sink = Sink(group)
        assert sink.position >= end
        end = sink.stop
        assert end - sink.position <= longest or len(group) == 1
        while sink.room:
            view = sink.place(sink.room)
            view[:] = data[sink.position : sink.position + len(view)]
            sink.accept(view)
    forwards = np.frombuffer(memory, full.dtype).reshape(selection.shape)
    for axis in selection.reversed_axes:
        forwards = np.flip(forwards, axis)
    np.testing.assert_array_equal(forwards, full[index])


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 40))
def test_split_pieces(start: int, at: int, nbytes: int) -> None:
    """A piece split at a byte keeps each byte and its place, on the right side."""
    head, tail = Piece(start, start + nbytes, 7, nbytes).split(at)
    places = [(p.start + i, p.dest + i) for p in (*head, *tail) for i in range(p.nbytes)]
    assert places == [(start + i, 7 + i) for i in range(nbytes)]
    assert all(p.stop <= at for p in head)
    assert all(p.start >= at for p in tail)


@pytest.mark.parametrize(
    ("shape", "index", "strategy", "spans"),
    [
        ((100, 50), ..., "contiguous", [(0, 20_000)]),
        ((100, 50), np.s_[10:20], "contiguous", [(2000, 4000)]),
        ((100, 50), np.s_[-1], "contiguous", [(19_800, 20_000)]),
        ((100, 50), np.s_[3, 4:6], "contiguous", [(616, 624)]),
        ((100, 50), np.s_[:, 10:20], "whole", [(40, 19_880)]),  # from the first wanted byte to the last
        ((100, 50), np.s_[::-1], "contiguous", [(0, 20_000)]),
        ((100, 50), np.s_[5:5], "contiguous", []),
        ((0, 50), np.s_[:, 3], "contiguous", []),
        ((3, 1 << 20), np.s_[::2], "strided", [(0, 4 << 20), (8 << 20, 12 << 20)]),
        ((2, 4, 1 << 20), np.s_[:, 1], "strided", [(4 << 20, 8 << 20), (20 << 20, 24 << 20)]),
        ((2, 1 << 20), np.s_[:, 8:], "whole", [(32, 8 << 20)]),  # a gap of 32 bytes is not worth a request
    ],
)
def test_strategies(shape: tuple[int, ...], index: Any, strategy: str, spans: list[tuple[int, int]]) -> None:
    """Rows are one range; far stretches are a range each; near ones are fetched with what is in between."""
    plan = plan_slice(shape, 4, index)
    assert plan.strategy == strategy
    assert plan.spans == tuple(Span(*span) for span in spans)


@pytest.mark.parametrize(("gap", "ranges"), [(REQUEST_COST, 1), (REQUEST_COST + 1, 2)])
def test_the_price_of_a_request_decides(gap: int, ranges: int) -> None:
    """A gap that costs as much as a request is fetched, one byte more is not."""
    assert len(plan_slice((2, gap + 1), 1, np.s_[:, 0]).spans) == ranges


def test_pieces_stay_few() -> None:
    """Columns of a million rows is planned in a moment: as stretches of STAGE_BYTES, not as rows."""
    selection = select_part((1 << 20, 2048), 2, np.s_[:, 512:1024])
    count = sum(1 for _ in selection.pieces())
    assert count == (1 << 20) * 4096 // STAGE_BYTES


def test_columns_of_a_large_tensor() -> None:
    """Staged stretches, with whole rows around them, fit together where one ends and the next begins."""
    full = numbered((1100, 700), np.uint16)
    for index in (np.s_[:, 100:301], np.s_[::3, 5::7], np.s_[::-1, -1], np.s_[17:1003, ::-2]):
        np.testing.assert_array_equal(gathered(full, index, step=10_007), full[index])


def test_direct_and_staged_pieces_together() -> None:
    """A long piece, gaps longer than the stage, short pieces: all land in place, by reads of any size."""
    rng = np.random.default_rng(7)
    data = rng.bytes(3_000_000)
    pieces = [(10, 20), (20, 900), (1000, 400_000), (400_000, 400_001), (1_300_000, 2_000_000), (2_000_010, 2_000_020)]
    for step in (997, 65_536, 1 << 20):
        wanted = [(tensor_piece(start, stop - start), memoryview(bytearray(stop - start))) for start, stop in pieces]
        (group,) = coalesce(wanted, 1 << 20)
        sink = Sink(group)
        while sink.room:
            view = sink.place(min(sink.room, step))
            view[:] = data[sink.position : sink.position + len(view)]
            sink.accept(view)
        assert sink.position == 2_000_020
        assert [bytes(memory) for _, memory in wanted] == [data[start:stop] for start, stop in pieces]


@pytest.mark.parametrize("longest", [None, 8])
def test_overlaps_begin_a_group(longest: int | None) -> None:
    """A stretch of the file is read forwards: what lies before its end is another request's."""
    pieces = [tensor_piece(start, nbytes) for start, nbytes in ((0, 10), (5, 10), (5, 10), (15, 5), (17, 1))]
    groups = list(coalesce([(piece, None) for piece in pieces], 100, longest))
    for group in groups:
        for (before, _), (after, _) in itertools.pairwise(group):
            assert before.stop <= after.start
    found = sorted((piece.start, piece.stop) for group in groups for piece, _ in group)
    assert {at for start, stop in found for at in range(start, stop)} == set(range(20))
    if longest is None:
        assert [len(group) for group in groups] == [1, 1, 2, 1]


@pytest.mark.parametrize("index", [5, -6, (0, 3), (0, 0, 0), (..., 4, ...), (slice(None), -4)])
def test_out_of_bounds_is_numpys_error(index: Any) -> None:
    """What numpy refuses is refused with numpy's own words."""
    full = numbered((5, 3))
    with pytest.raises(IndexError) as expected:
        _ = full[index]
    with pytest.raises(IndexError) as raised:
        plan_slice(full.shape, 4, index)
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("index", [[0, 1], np.array([0, 1]), True, np.True_, "name", 1.0, (0, [1]), {}])
def test_no_basic_index(index: Any) -> None:
    """Lists, arrays, masks and the rest are refused with a sentence: they are no regular pattern."""
    with pytest.raises(SourceError, match="takes ints, slices"):
        plan_slice((5, 3), 4, index)


def test_numbers_that_are_indices() -> None:
    """numpy's own integers are ints."""
    full = numbered((5, 3))
    np.testing.assert_array_equal(gathered(full, (np.int64(-2), np.array(1))), full[-2, 1])


def test_a_shape_beyond_numpy() -> None:
    """A legal, empty tensor whose dimensions numpy cannot hold is an error of ours."""
    with pytest.raises(SourceError, match="does not fit into a numpy array"):
        plan_slice((0, 1 << 40, 1 << 40), 4, np.s_[:, 0])
