"""How memory is shared out among files: never more than the limit, and never so that all wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncfetch.policy import Policy
from asyncfetch.spans import MiB
from asyncfetch.tensors.allowance import Allowance, limit_in_memory, limit_on_disk

STOPS = {"a": [10, 40, 100], "b": [10, 60, 100], "c": [10, 20]}


def allowance(limit: int, *, early: bool, stops: dict[str, list[int]] | None = None) -> tuple[Allowance, list[None]]:
    """One, and a list that grows each time it says that something is free."""
    freed: list[None] = []
    stops = STOPS if stops is None else stops
    return Allowance(limit, stops, early=early, freed=lambda: freed.append(None)), freed


def test_limits() -> None:
    """The caller's own, however small; else a part of what there is, and at least 64 MiB."""
    stops = {"a": [100 * MiB, 300 * MiB], "b": [50 * MiB]}
    sizes = [300 * MiB, 50 * MiB]
    assert limit_in_memory(1, sizes, stops, early=False) == 1
    assert limit_in_memory(None, sizes, stops, early=False) == 375 * MiB
    assert limit_in_memory(None, sizes, stops, early=True) == 400 * MiB
    assert limit_in_memory(None, [10], {"a": [10]}, early=True) == 64 * MiB
    assert limit_in_memory(None, [], {}, early=False) == 64 * MiB
    assert limit_on_disk([10, 20], Policy(connections=4, min_split=5)) == 40
    assert limit_on_disk([100], Policy(connections=4, min_split=5)) == 200
    assert limit_on_disk([], Policy(connections=4, min_split=5)) == 40


def test_files_without_segments_come_as_a_whole() -> None:
    """On disk a file is admitted or not; one alone always is."""
    memory, freed = allowance(100, early=True, stops={})
    assert memory.admits("huge", 500, 0)
    assert not memory.admits("small", 1, 0)
    assert memory.room("huge", 500, 20) == 480
    assert memory.landed("huge") == 500
    assert not memory.admits("small", 1, 0)  # it was not given back yet
    memory.give_back(500)
    assert freed
    assert memory.admits("small", 1, 0)
    assert memory.admits("other", 99, 0)
    assert not memory.admits("third", 1, 0)


def test_small_files_are_begun_several_at_a_time() -> None:
    """Where nothing is handed out early, files of a quarter of the limit have all their memory at once."""
    memory, _ = allowance(400, early=False)
    assert all(memory.admits(name, 100, 0) for name in ("a", "b"))
    assert memory.used == 200
    assert memory.room("a", 100, 0) == 100


def test_one_file_grows_at_a_time() -> None:
    """What was received of it stays until it is whole, so the next one begins once this one has memory for all."""
    memory, freed = allowance(110, early=False)
    assert memory.admits("a", 100, 5)
    assert memory.used == 10
    assert not memory.admits("b", 100, 5)
    assert not freed
    assert memory.room("a", 100, 10) == 90
    assert freed
    assert memory.used == 100
    assert memory.admits("b", 100, 5)
    assert memory.room("b", 100, 10) == 0
    assert memory.landed("a") == 100
    memory.give_back(100)
    assert memory.room("b", 100, 10) == 90


def test_what_came_with_the_metadata_has_its_memory() -> None:
    """A file begins with the segments that hold its first bytes."""
    memory, _ = allowance(100, early=True)
    assert memory.admits("a", 100, 12)
    assert memory.used == 40


def test_early_as_many_grow_as_have_room_for_a_segment() -> None:
    """Segments are given back one by one; each file that grows may need the largest."""
    memory, freed = allowance(120, early=True)  # the largest segment is 60
    assert memory.admits("a", 100, 0)
    assert memory.admits("b", 100, 0)
    assert not memory.admits("c", 20, 0)
    assert memory.room("a", 100, 10) == 90
    assert memory.used == 110
    assert memory.room("b", 100, 10) == 0
    memory.give_back(30)
    assert memory.room("b", 100, 10) == 0  # its next segment is 50
    memory.give_back(30)
    assert memory.room("b", 100, 10) == 50
    assert memory.landed("a") == 0
    assert len(freed) == 3
    assert memory.admits("c", 20, 0)


@dataclass
class Arriving:
    """A file on its way, as a transfer and a reader see it."""

    size: int
    stops: list[int]
    at: int = 0
    held: list[int] = field(default_factory=list)  # segments that are whole and not given back


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=6), min_size=1, max_size=5),
    st.integers(1, 200),
    st.booleans(),
    st.randoms(use_true_random=False),
)
@pytest.mark.timeout(120)
def test_all_files_come_through_whatever_the_order(
    segments: list[list[int]], limit: int, early: bool, choose: object
) -> None:
    """A transfer that receives what it may, and a reader that gives back what it got, never both wait."""
    files = {str(n): Arriving(sum(sizes), list(accumulate(sizes))) for n, sizes in enumerate(segments)}
    memory, _ = allowance(limit, early=early, stops={name: file.stops for name, file in files.items()})
    waiting, going = list(files), []
    largest = max(file.size for file in files.values())
    while waiting or going or memory.used:
        moved = False
        if waiting and memory.admits(waiting[0], files[waiting[0]].size, 0):
            going.append(waiting.pop(0))
            moved = True
        for name in list(going):
            file = files[name]
            room = min(memory.room(name, file.size, file.at), file.size - file.at)
            assert room >= 0
            before, file.at = file.at, file.at + choose.randint(min(room, 1), room)  # type: ignore[attr-defined]
            moved |= file.at > before
            whole = [stop for stop in file.stops if before < stop <= file.at]
            file.held += [stop - max([0, *(end for end in file.stops if end < stop)]) for stop in whole]
            if early and file.held and choose.random() < 0.5:  # type: ignore[attr-defined]
                memory.give_back(file.held.pop(0))
                moved = True
            if file.at == file.size:
                memory.landed(name)
                going.remove(name)
        assert memory.used <= max(limit, largest)
        for name, file in files.items():  # a reader with time for what is left
            if not moved and file.held and (early or name not in going + waiting):
                memory.give_back(file.held.pop(0))
                moved = True
        assert moved, "all wait for each other"
    assert memory.used == 0
