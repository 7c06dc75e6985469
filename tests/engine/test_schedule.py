"""Spans, sets of spans and the board, held against models made of plain sets of integers."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from asyncfetch.engine.schedule import Board, Growth, Lease, least_cut, least_piece, piece_size
from asyncfetch.errors import SourceError
from asyncfetch.policy import Policy
from asyncfetch.spans import MiB, Span, SpanSet
from asyncfetch.storage.checksums import Checksum, parse_checksum

SIZE = 16  # small, so that spans often touch
PAIRS = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=12)


def model_of(pairs: list[tuple[int, int]]) -> set[int]:
    return {number for start, stop in pairs for number in range(start, stop)}


def filled(pairs: list[tuple[int, int]]) -> SpanSet:
    spans = SpanSet()
    for start, stop in pairs:
        spans.add(start, stop)
    return spans


@settings(max_examples=300)
@given(PAIRS)
def test_a_span_set_is_a_set_of_integers(pairs: list[tuple[int, int]]) -> None:
    """Whatever is added in whatever order, its spans, size and frontier are those of the set of integers."""
    spans, model = filled(pairs), model_of(pairs)
    listed = list(spans)
    assert model_of([(span.start, span.stop) for span in listed]) == model
    assert spans.nbytes == len(model)
    assert spans.frontier == next(number for number in range(SIZE + 1) if number not in model)
    assert all(a.stop < b.start for a, b in pairwise(listed)), "sorted, disjoint, not touching"
    assert all(span.nbytes for span in listed)


@given(PAIRS, st.integers(0, SIZE + 5))
def test_missing_is_the_complement(pairs: list[tuple[int, int]], size: int) -> None:
    """`missing(size)` is [0, size) without the set, in order, also where the set goes beyond it."""
    gaps = filled(pairs).missing(size)
    assert model_of([(gap.start, gap.stop) for gap in gaps]) == set(range(size)) - model_of(pairs)
    assert gaps == sorted(gaps)
    assert all(gap.nbytes for gap in gaps)


@given(PAIRS)
def test_a_span_set_is_made_of_spans(pairs: list[tuple[int, int]]) -> None:
    """The constructor and `add` agree, and a set survives being listed and made again."""
    good = [(start, stop) for start, stop in pairs if start <= stop]
    made = SpanSet(Span(start, stop) for start, stop in good)
    assert list(made) == list(filled(good)) == list(SpanSet(made))


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (-2, -1)])
def test_senseless_spans_are_refused(start: int, stop: int) -> None:
    """A span has 0 <= start <= stop."""
    with pytest.raises(ValueError, match="not a span"):
        Span(start, stop)


class BoardMachine(RuleBasedStateMachine):
    """Connections that take, advance, steal, fail and finish, in any order. No byte is lost or fetched twice."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.board: Board[str] = Board(min_split=4)
        self.wanted: dict[str, int] = {}
        self.landed: dict[str, list[int]] = {}

    @rule(file=st.sampled_from("abc"), size=st.integers(0, 64))
    def add(self, file: str, size: int) -> None:
        if file not in self.wanted:
            self.wanted[file] = size
            self.landed[file] = []
            self.board.add(file, SpanSet().missing(size))

    @rule(target=leases, file=st.sampled_from("abc"), sharers=st.integers(1, 4))
    def take(self, file: str, sharers: int) -> Lease[str] | None:
        pending = list(self.board.pending.get(file, ()))
        taken = self.is_taken(file)
        lease = self.board.take(file, sharers)
        if not pending or taken:
            assert lease is None
            return None
        self.check_piece(lease, file, pending, sharers)
        return lease

    @rule(target=leases, sharers=st.integers(1, 4))
    def take_any(self, sharers: int) -> Lease[str] | None:
        pending = {file: list(spans) for file, spans in self.board.pending.items() if not self.is_taken(file)}
        lease = self.board.take_any(sharers)
        if not pending:
            assert lease is None
            return None
        assert lease is not None
        left = {file: sum(span.nbytes for span in spans) for file, spans in pending.items()}
        assert left[lease.file] == max(left.values())
        self.check_piece(lease, lease.file, pending[lease.file], sharers)
        return lease

    def is_taken(self, file: str) -> bool:
        """Whether it comes in one piece, and somebody brings it."""
        return file in self.board.unsplittable and any(lease.file == file for lease in self.board.active)

    def check_piece(self, lease: Lease[str] | None, file: str, pending: list[Span], sharers: int) -> None:
        """The first pending span of the file, or its first piece; whole for one alone, and without ranges."""
        assert lease is not None
        assert (lease.file, lease.start) == (file, pending[0].start)
        sharers = max(sharers, sum(each.file == file for each in self.board.active))
        piece = piece_size(sum(span.nbytes for span in pending), sharers, 4)
        if sharers == 1 or file in self.board.unsplittable or pending[0].nbytes <= piece * 1.5:
            assert lease.stop == pending[0].stop
        else:
            assert lease.remaining == piece

    @rule(target=leases, sharers=st.integers(1, 4))
    def steal(self, sharers: int) -> Lease[str] | None:
        before = {id(lease): lease.remaining for lease in self.board.active}
        lease = self.board.steal(4, sharers)
        allowed = [lease for lease in self.board.active if lease.file not in self.board.unsplittable]
        if lease is None:
            assert all(each.remaining < 8 for each in allowed)
            return None
        assert lease.file not in self.board.unsplittable
        (victim,) = [each for each in self.board.active if before.get(id(each), each.remaining) != each.remaining]
        had = before[id(victim)]
        assert had == max(before[id(each)] for each in allowed if id(each) in before)
        assert victim.stop == lease.start
        assert 4 <= victim.remaining == min(piece_size(had, max(sharers, 2), 4), had // 2)
        assert 4 <= lease.remaining <= had - victim.remaining
        return lease

    @rule(target=leases, file=st.sampled_from("abc"), start=st.integers(0, 63), size=st.integers(1, 64))
    def take_within(self, file: str, start: int, size: int) -> Lease[str] | None:
        wanted = Span(start, start + size)
        late = [
            lease.stop for lease in self.board.active if lease.file == file and lease.start + 24 < start < lease.stop
        ]
        spans = [*self.board.pending.get(file, ()), *(Span(start, stop) for stop in late)]
        free = {place for span in spans for place in range(span.start, span.stop)} & {*range(start, start + size)}
        lease = self.board.take_within(file, wanted, 2, 3)
        assert all(start not in range(each.start + 25, each.stop) for each in self.board.active if each.file == file)
        if lease is None:
            assert not free
            return None
        assert (lease.file, lease.start) == (file, min(free))
        whole = next(span.stop for span in spans if span.start <= lease.start < span.stop)
        piece = max(3, (min(whole, wanted.stop) - lease.start) // 8)
        assert lease.stop == min(lease.start + piece, whole)
        return lease

    @rule(lease=leases, nbytes=st.integers(1, 20))
    def accept(self, lease: Lease[str] | None, nbytes: int) -> None:
        if lease is not None and any(lease is each for each in self.board.active):
            got, lease.answered = min(nbytes, lease.remaining), True
            self.landed[lease.file] += range(lease.start, lease.start + got)
            lease.start += got

    @rule(lease=consumes(leases))
    def release(self, lease: Lease[str] | None) -> None:
        if lease is not None and any(lease is each for each in self.board.active):
            self.board.release(lease)
            if lease.remaining:
                self.board.add(lease.file, [Span(lease.start, lease.stop)])

    @rule(file=st.sampled_from("abc"))
    def no_ranges(self, file: str) -> None:
        self.board.unsplittable.add(file)

    @rule(lease=leases)
    def comes_whole(self, lease: Lease[str] | None) -> None:
        if lease is None or not lease.remaining or not any(lease is each for each in self.board.active):
            return
        others = [each for each in self.board.active if each.file == lease.file and each is not lease]
        earliest = all(lease.start <= each.start for each in others)
        self.board.comes_whole(lease)
        assert lease.file in self.board.unsplittable
        assert bool(lease.remaining) is earliest
        left = [span.start for span in self.board.pending.get(lease.file, ())]
        assert left == sorted(left)
        unanswered = [each.start for each in others if each.remaining and not each.answered]
        assert not earliest or lease.stop not in [*left, *unanswered]

    @invariant()
    def every_byte_is_somewhere_once(self) -> None:
        for file, size in self.wanted.items():
            offered = list(self.landed[file])
            for span in self.board.pending.get(file, ()):
                offered += range(span.start, span.stop)
            for lease in self.board.active:
                if lease.file == file:
                    offered += range(lease.start, lease.stop)
            assert sorted(offered) == list(range(size))

    @invariant()
    def idle_means_that_nothing_is_left(self) -> None:
        for file in "abc":
            busy = any(lease.file == file for lease in self.board.active) or bool(self.board.pending.get(file))
            assert self.board.idle(file) is not busy


BoardMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestBoard = BoardMachine.TestCase


def take(board: Board[str], file: str) -> tuple[int, int] | None:
    lease = board.take(file)
    return None if lease is None else (lease.start, lease.stop)


def take_alone(board: Board[str], file: str) -> tuple[int, int] | None:
    """Take and release: as a connection does that is done before others come to the file."""
    taken = take(board, file)
    board.active.clear()
    return taken


def test_the_spans_of_a_file_come_in_order() -> None:
    """A connection that stays with its file gets its pieces one after the other, then nothing."""
    board: Board[str] = Board(min_split=4)
    board.add("a", [Span(0, 5), Span(7, 20)])
    board.add("b", [Span(0, 3)])
    assert [take_alone(board, "a") for _ in range(4)] == [(0, 5), (7, 11), (11, 15), (15, 20)]
    assert take(board, "a") is None
    assert take(board, "b") == (0, 3)
    assert take(board, "c") is None


def test_a_short_rest_goes_along() -> None:
    """No request for less than half a piece: the last piece takes the rest."""
    board: Board[str] = Board(min_split=4)
    board.add("a", [Span(0, 10)])
    assert [take_alone(board, "a") for _ in range(3)] == [(0, 4), (4, 10), None]


def test_a_file_without_ranges_is_one_piece() -> None:
    """Where each request brings the whole file there is one request, and no half of it is taken."""
    board: Board[str] = Board(min_split=4)
    board.unsplittable.add("a")
    board.add("a", [Span(0, 1000)])
    assert take(board, "a") == (0, 1000)
    assert board.steal(4) is None


def test_a_server_that_sends_the_whole_file() -> None:
    """The earliest connection brings what follows, as far as nothing of it is here; the others are given up."""
    board: Board[str] = Board(min_split=4)
    board.add("a", [Span(0, 64), Span(70, 100)])
    board.add("b", [Span(0, 3)])
    first, second, third = (board.take("a", 4) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    third.answered = True  # by another server, which knows ranges
    board.comes_whole(second)
    assert (second.remaining, third.remaining, board.take("a")) == (0, 5, None)
    assert board.take_any() is not None, "the other file"
    assert not board.offers(4)
    board.comes_whole(first)
    assert (first.start, first.stop, third.remaining) == (0, third.start, 5)
    for lease in (first, second, third):
        board.release(lease)
    assert take_alone(board, "a") == (third.stop, 64)
    assert take_alone(board, "a") == (70, 100)


def test_one_request_for_a_file_that_nobody_shares() -> None:
    """A connection that is to be the only one gets all that is pending; once it is not, pieces as ever."""
    board: Board[str] = Board(min_split=4)
    board.add("a", [Span(0, 1000)])
    board.add("b", [Span(0, 1000)])
    first = board.take("a", 1)
    assert first is not None
    assert (first.start, first.stop) == (0, 1000)
    assert board.files == 2
    assert take(board, "b") != (0, 1000)
    board.pending.clear()
    board.add("a", [Span(2000, 3000)])
    shared = board.take("a", 1)
    assert shared is not None
    assert shared.remaining < 1000


def test_a_file_that_is_shared_late_goes_on_in_order() -> None:
    """The first thief takes what follows what the victim keeps; the rest is pending, in order."""
    board: Board[str] = Board(min_split=4)
    board.add("a", [Span(0, 1000)])
    victim = board.take("a", 1)
    assert victim is not None
    victim.start = 100
    stolen = board.steal(4)
    assert stolen is not None
    kept = piece_size(900, 2, 4)
    assert (victim.stop, stolen.start) == (100 + kept, 100 + kept)
    assert board.pending == {"a": deque([Span(stolen.stop, 1000)])}
    assert stolen.remaining == piece_size(900 - kept, 2, 4)


def test_less_is_taken_where_less_is_worth_while() -> None:
    """Half of a short rest, down to twice of what the caller calls worth a request."""
    board: Board[str] = Board(min_split=100)
    board.add("a", [Span(0, 21)])
    assert take(board, "a") == (0, 21)
    assert board.steal(11) is None
    stolen = board.steal(10)
    assert stolen is not None
    assert (stolen.start, stolen.stop) == (10, 21)
    assert board.steal(10) is None


@pytest.mark.parametrize(
    ("rate", "connections", "least"),
    [
        (0, 4, 16),  # not known
        (600 * MiB, 4, 15),
        (6000 * MiB, 4, 16),
        (400 * MiB, 16, 2.5),
        (60 * MiB, 16, 0.375),
        (1 * MiB, 16, 0.25),
    ],
)
def test_slow_connections_take_less(rate: int, connections: int, least: float) -> None:
    """A tenth of a second's worth, within the policy's least cut and a quarter of a MiB."""
    assert least_cut(rate, connections, 16 * MiB) == least * MiB
    assert least_cut(rate, connections, 1000) == 1000


@pytest.mark.parametrize(
    ("rate", "connections", "piece", "cut"),
    [
        (0, 4, 2, 16),  # not known
        (16 * MiB, 4, 1, 2),
        (128 * MiB, 16, 2, 4),
        (6000 * MiB, 4, 16, 16),
        (1 * MiB, 16, 0.25, 0.25),
    ],
)
def test_a_frugal_transfer_asks_for_less_and_cuts_off_later(
    rate: int, connections: int, piece: float, cut: float
) -> None:
    """A quarter of a second's worth at once, half a second's worth for a cut, within the policy's least cut."""
    assert least_piece(rate, connections, 16 * MiB) == piece * MiB
    assert least_cut(rate, connections, 16 * MiB, frugal=True) == cut * MiB
    assert least_piece(rate, connections, 1000) == least_cut(rate, connections, 1000, frugal=True) == 1000


def test_small_pieces_leave_some_for_who_comes_later() -> None:
    """Of a file that would be four pieces of the usual size, most is pending when four have taken one, or one alone."""
    board: Board[str] = Board(min_split=100)
    board.add("a", [Span(0, 400)])
    first = board.take("a", 1, 10)
    assert first is not None
    assert first.remaining == 100
    board.release(first)
    board.pending.clear()
    board.add("a", [Span(0, 400)])
    taken = [board.take("a", 4, 10), board.take_any(4, 10), board.take("a", 4, 10), board.take_any(4, 10)]
    assert [lease.remaining for lease in taken if lease is not None] == [25, 23, 22, 20]
    assert board.pending == {"a": deque([Span(90, 400)])}


def grown(looks: list[tuple[float, int, float]]) -> list[bool]:
    growth = Growth()
    return [growth.observe(now, received, busy) for now, received, busy in looks]


def test_growth_where_the_network_is_waited_for() -> None:
    """Idle threads: more connections, and again while the last ones made it faster."""
    rates = [(0.05, 10), (0.1, 20), (0.3, 60), (0.35, 100), (0.4, 140), (0.65, 340), (0.7, 400), (0.75, 460)]
    assert grown([(now, got, 0.2) for now, got in rates]) == [False, True, False, True, False, True, False, False]


def test_no_growth_where_the_processor_is_the_limit() -> None:
    """Busy threads; and the first look, at which nothing has begun, says nothing."""
    assert not any(grown([(0.05, 1, 0.1), *((0.05 * n, n, 0.7) for n in range(2, 100))]))


def test_growth_ends_where_it_brings_nothing() -> None:
    """Idle threads, and the same rate with more connections: not again for seconds."""
    looks = [(0.05 * n, 10 * n, 0.2) for n in range(1, 150)]
    at = [now for (now, _, _), grew in zip(looks, grown(looks), strict=True) if grew]
    assert at[0] == pytest.approx(0.1)
    assert at[1] >= Growth.PATIENCE
    assert len(at) == 2


def test_a_burst_that_ends_late_does_not_make_the_threads_look_idle() -> None:
    """What they worked is told when a burst ends: so it is taken over the same time as the rate."""
    growth = Growth()
    assert not any(growth.observe(now, int(now * 1000), busy) for now, busy in ((0.05, 0.0), (0.1, 0.9), (0.15, 0.4)))
    assert growth.busy == pytest.approx(0.65)
    assert growth.observe(0.2, 200, 0.7)


def test_a_pause_says_nothing_of_the_network() -> None:
    """After it the rate is not known, and no connection is added before it is known again."""
    growth = Growth()
    for now, received in ((0.05, 10), (0.1, 20)):
        growth.observe(now, received, 0.9)
    assert growth.rate == pytest.approx(200)
    growth.forget()
    assert growth.rate == 0
    assert not growth.observe(3.0, 30, 0.2)
    assert growth.observe(3.05, 50, 0.2)
    assert growth.rate == pytest.approx(400)


@given(st.integers(0, 1 << 45), st.integers(1, 64), st.integers(1, 1 << 30))
def test_pieces_are_of_a_sensible_size(pending: int, sharers: int, min_split: int) -> None:
    """Never less than what is worth a request, and bounded; larger where more is pending."""
    piece = piece_size(pending, sharers, min_split)
    assert min_split <= piece <= 32 * min_split
    assert piece_size(pending + 4 * sharers, sharers, min_split) >= piece
    assert piece_size(pending, sharers + 1, min_split) <= piece


def test_the_sizes_that_are_told() -> None:
    """With the default policy: four connections near by, sixteen far away."""
    split = Policy().min_split
    assert [piece_size(size * MiB, 4, split) // MiB for size in (1, 2048, 8192, 50_000)] == [16, 128, 512, 512]
    assert [piece_size(size * MiB, 16, split) // MiB for size in (1, 2048, 8192, 50_000)] == [16, 32, 128, 512]


def test_who_brings_the_earliest_piece() -> None:
    """One connection of each file leads, whatever others fetch; the next one does when it is done."""
    board: Board[str] = Board(min_split=4)
    board.add("a", [Span(0, 100)])
    board.add("b", [Span(0, 100)])
    first, second, other = board.take("a"), board.take("a"), board.take("b")
    assert first is not None
    assert second is not None
    assert other is not None
    assert [board.leads(lease) for lease in (first, second, other)] == [True, False, True]
    board.release(first)
    assert board.leads(second)


def test_equal_leases_are_told_apart() -> None:
    """Two leases with the same numbers are two leases: releasing one leaves the other."""
    board: Board[str] = Board(min_split=4)
    board.add("a", [Span(0, 5), Span(0, 5)])
    first, second = board.take("a"), board.take("a")
    assert second is not None
    board.release(second)
    assert board.active[0] is first


HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "checksum"),
    [
        (f"sha256:{HEX}", Checksum("sha256", HEX)),
        (HEX, Checksum("sha256", HEX)),
        (f"  sha256:{HEX.upper()}\n", Checksum("sha256", HEX)),
        (f"git-sha1:{HEX[:40]}", Checksum("git-sha1", HEX[:40])),
    ],
)
def test_parse_checksum(text: str, checksum: Checksum) -> None:
    """Both spellings are read, and written again with their algorithm."""
    assert parse_checksum(text, file="f") == checksum
    assert parse_checksum(str(checksum), file="f") == checksum


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        HEX[:-1],
        HEX[:40],
        f"md5:{HEX[:32]}",
        f"sha256:{HEX}0",
        f"git-sha1:{HEX}",
        f":{HEX}",
        "sha256:" + "é" * 64,
        "sha256:" + "٣" * 64,
        f"sha256:sha256:{HEX}",
        3,
        b"x",
        None,
    ],
)
def test_bad_checksums_are_refused(text: Any) -> None:
    """Anything else is an error that names the file."""
    with pytest.raises(SourceError, match=r"'model\.safetensors'"):
        parse_checksum(text, file="model.safetensors")


class Moving(Lease[str]):
    """A lease whose thread brings 200 bytes whenever its start is read."""

    came = 0

    @property
    def start(self) -> int:  # type: ignore[override]
        self.came += 200
        return self.came

    @start.setter
    def start(self, value: int) -> None:
        self.came = value


def test_a_start_that_moves_while_the_end_is_taken_away() -> None:
    """Whatever the thread of a lease brings meanwhile, what is kept and what is taken are spans that touch."""
    board: Board[str] = Board(min_split=16)
    victim = Moving("a", 0, 1000)
    board.active.append(victim)
    taken = board.steal(16)
    assert taken is not None
    assert 400 < victim.stop == taken.start < taken.stop <= 1000


@given(st.lists(st.tuples(st.integers(1, 300), st.booleans()), max_size=3), st.integers(1, 64))
def test_what_a_board_offers_can_be_had(files: list[tuple[int, bool]], least: int) -> None:
    """`offers` says beforehand whether `take_any` or `steal` would give a piece."""
    board: Board[int] = Board(min_split=16)
    for file, (size, taken) in enumerate(files):
        board.add(file, [Span(0, size)])
        if taken:
            board.take(file, 1)
    offered = board.offers(least)
    assert offered == ((board.take_any() or board.steal(least)) is not None)


@pytest.mark.parametrize(("offset", "stop"), [(124, 200), (125, 125), (150, 150), (200, 200)])
def test_who_comes_late_to_what_is_wanted_ends_before_it(offset: int, stop: int) -> None:
    """Within eight times the least it is nearly there; beyond, another brings it, and no byte comes twice."""
    board: Board[str] = Board(4)
    first = Lease("a", 100, 200)
    board.pending["a"], board.active[:] = deque([Span(200, 300)]), [first]
    lease = board.take_within("a", Span(offset, offset + 50), 1, 3)
    assert (first.start, first.stop) == (100, stop)
    assert (lease is None) is (offset == 124)
    assert lease is None or lease.start == offset
