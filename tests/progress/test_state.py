"""What the events of a load add up to."""

from __future__ import annotations

import pytest

from asyncfetch.events import (
    Event,
    FileProgress,
    FileStarted,
    FileState,
    FileVerified,
    FileWritten,
    Finished,
    Resolved,
    Retrying,
    Waiting,
    Writing,
)
from asyncfetch.progress.state import Hold, ProgressState, Rate, RowState

MB = 10**6


def resolved(*present: int, size: int = 100 * MB) -> Resolved:
    files = tuple(FileState(f"s{i}", size, here, "sha256:x") for i, here in enumerate(present))
    return Resolved("org/m", "a" * 40, "model.safetensors.index.json", files)


def state_of(*present: int) -> ProgressState:
    state = ProgressState()
    state.apply(resolved(*present), 0.0)
    return state


def test_totals_are_known_before_the_first_byte() -> None:
    """Resolved alone gives every row, the total size and what is cached."""
    state = state_of(0, 40 * MB, 100 * MB)
    assert (state.size, state.received, state.done) == (300 * MB, 140 * MB, 1)
    states = [row.state for row in state.rows.values()]
    assert states == [RowState.NOT_STARTED, RowState.NOT_STARTED, RowState.CACHED]


def test_resumed_bytes_are_in_no_rate() -> None:
    """40 MB from an earlier run and 10 MB in 1 s are 10 MB/s, for the file and in total."""
    state = state_of(40 * MB)
    state.apply(FileStarted("s0", 100 * MB, 40 * MB), 1.0)
    state.apply(FileProgress("s0", 50 * MB, 100 * MB), 2.0)
    row = state.rows["s0"]
    assert row.rate is not None
    assert row.rate.per_second(2.0) == 10 * MB
    assert state.per_second(2.0) == 10 * MB
    assert state.transferred == 10 * MB
    assert state.eta(2.0) == 5.0


def test_rate_follows_the_last_five_seconds() -> None:
    """After a fast start the rate is that of the window, and falls to 0 in silence."""
    rate = Rate(0.0)
    for tenth in range(1, 101):
        rate.update(tenth / 10, tenth * 10 * MB)
    for tenth in range(101, 201):
        rate.update(tenth / 10, 1000 * MB + (tenth - 100) * MB)
    assert rate.per_second(20.0) == pytest.approx(10 * MB, rel=0.05)
    assert rate.per_second(30.0) == 0


def test_too_little_to_tell_gives_no_rate() -> None:
    """The first burst is not extrapolated to an absurd rate."""
    rate = Rate(0.0)
    rate.update(0.01, 10 * MB)
    assert rate.per_second(0.02) is None
    assert rate.per_second(0.5) == 20 * MB


def test_many_updates_keep_few_samples() -> None:
    """A thousand updates a second stay a bounded history."""
    rate = Rate(0.0)
    for milli in range(1, 20_000):
        rate.update(milli / 1000, milli)
        rate.per_second(milli / 1000)
    assert len(rate._samples) < 60


def test_a_restart_gives_its_bytes_back() -> None:
    """A file that starts over is not negative speed, and its bytes were still transferred."""
    state = state_of(0)
    state.apply(FileStarted("s0", 100 * MB, 0), 0.0)
    state.apply(FileProgress("s0", 60 * MB, 100 * MB), 1.0)
    state.apply(FileProgress("s0", 0, 100 * MB), 2.0)
    state.apply(FileProgress("s0", 10 * MB, 100 * MB), 3.0)
    assert (state.received, state.transferred) == (10 * MB, 70 * MB)
    assert state.rows["s0"].rate is not None
    assert state.rows["s0"].rate.per_second(3.0) == 10 * MB


def test_states_of_a_file() -> None:
    """From not started to verified, by way of a retry and a wait."""
    state = state_of(0)
    row = state.rows["s0"]
    seen = [row.state]
    for second, event in enumerate(
        (
            FileStarted("s0", 100 * MB, 0),
            Retrying("s0", "reset", 1, 5, 2.0),
            FileProgress("s0", 50 * MB, 100 * MB),
            Waiting("s0", "the server limits the request rate", 3.0),
            FileProgress("s0", 100 * MB, 100 * MB),
            FileVerified("s0", 100 * MB, "sha256:x"),
        )
    ):
        state.apply(event, float(second))
        seen.append(row.state)
    assert [state.value for state in seen] == [
        "not started",
        "downloading",
        "retry",
        "downloading",
        "waiting",
        "verifying",
        "verified",
    ]


def test_no_checksum_is_not_called_verified() -> None:
    """A file that could not be checked against anything does not count as verified."""
    state = state_of(0)
    state.apply(FileVerified("s0", 100 * MB, None), 1.0)
    assert state.rows["s0"].state is RowState.UNCHECKED
    assert (state.count(RowState.VERIFIED), state.done) == (0, 1)


@pytest.mark.parametrize(
    "after",
    [
        FileStarted("s0", 100 * MB, 0),
        FileProgress("s0", 50 * MB, 100 * MB),
        FileVerified("s0", 100 * MB, "sha256:x"),
    ],
    ids=lambda event: type(event).__name__,
)
@pytest.mark.parametrize(
    "hold", [Retrying("s0", "reset", 1, 5, 2.0), Waiting("s0", "busy", None)], ids=lambda event: type(event).__name__
)
def test_the_next_event_of_the_file_ends_what_holds_it_up(hold: Retrying | Waiting, after: Event) -> None:
    """A held file says why and until when, until anything else happens to it; not when it happens to another."""
    state = state_of(0, 0)
    row = state.rows["s0"]
    state.apply(hold, 1.0)
    assert row.hold == Hold(hold, None if hold.delay is None else 1.0 + hold.delay)
    assert (row.state.held, row.state.active) == (True, True)
    state.apply(FileStarted("s1", 100 * MB, 0), 2.0)
    assert row.state.held
    state.apply(after, 3.0)
    assert (row.hold, row.state.held) == (None, False)


def test_idle_is_when_all_that_began_wait() -> None:
    """Files that have not started do not count, and one that moves or failed ends it."""
    state = state_of(0, 0, 0)
    assert not state.idle
    state.apply(Waiting("s0", "another process is downloading this file", None), 1.0)
    assert state.idle
    state.apply(Retrying("s1", "reset", 1, 5, 2.0), 2.0)
    assert not state.idle
    state.apply(Waiting("s1", "the server limits the request rate", 3.0), 3.0)
    assert state.idle
    state.apply(FileStarted("s1", 100 * MB, 0), 4.0)
    assert not state.idle


def test_all_cached_is_complete_at_once() -> None:
    """A load that needs no transfer has no rate, no estimate and no silence."""
    state = state_of(100 * MB, 100 * MB)
    assert state.complete
    assert (state.per_second(60.0), state.eta(60.0), state.silence(60.0)) == (None, None, 0)


def test_finished_is_complete() -> None:
    """After the last event nothing is waited for, whatever the rows say."""
    state = state_of(0)
    state.apply(FileStarted("s0", 100 * MB, 0), 0.0)
    assert not state.complete
    state.apply(Finished(1, 100 * MB, 100 * MB, 13.0), 13.0)
    assert (state.complete, state.silence(30.0)) == (True, 0)


def test_verifying_a_cached_file_is_no_transfer() -> None:
    """Hashing what the cache held does not count as downloaded."""
    state = state_of(100 * MB)
    state.apply(FileVerified("s0", 100 * MB, "sha256:x"), 1.0)
    assert state.transferred == 0
    assert state.rows["s0"].state is RowState.VERIFIED


def test_what_another_process_brought_is_no_transfer() -> None:
    """A file that was waited for and is there all at once says nothing about the speed here."""
    state = state_of(0, 0)
    state.apply(FileStarted("s1", 100 * MB, 0), 0.0)
    state.apply(Waiting("s0", "another process is downloading this file", None), 0.0)
    state.apply(FileVerified("s0", 100 * MB, "sha256:x"), 1.0)
    assert (state.received, state.transferred, state.per_second(1.0)) == (100 * MB, 0, 0)


@pytest.mark.parametrize(
    "hold", [Retrying(None, "refused", 1, 5, 1.0), Waiting(None, "busy", 3.0)], ids=lambda event: type(event).__name__
)
def test_the_look_up_is_held_up(hold: Retrying | Waiting) -> None:
    """What has no file belongs to the look-up of the source: it is over when that is, or when a file starts."""
    state = ProgressState()
    state.apply(hold, 0.0)
    assert (state.hold, state.rows) == (Hold(hold, hold.delay), {})
    state.apply(resolved(0), 1.0)
    assert state.hold is None
    state.apply(hold, 2.0)
    assert state.hold is not None
    state.apply(FileStarted("s0", 100 * MB, 0), 3.0)
    assert state.hold is None


def test_what_is_written_follows_what_was_fetched() -> None:
    """Other files, another rate: what an earlier run wrote is in none, and all is done when all are written."""
    state = state_of(100 * MB)
    state.apply(Finished(1, 100 * MB, 0, 0.1), 1.0)
    assert state.complete
    files = (FileState("a", 60 * MB, 0, None), FileState("b", 40 * MB, 40 * MB, None))
    state.apply(Writing("/models/new", files), 2.0)
    assert not state.complete
    assert [row.state for row in state.rows.values()] == [RowState.NOT_STARTED, RowState.WRITTEN]
    state.apply(FileProgress("a", 20 * MB, 60 * MB), 3.0)
    state.apply(FileProgress("a", 60 * MB, 60 * MB), 4.0)
    assert state.rows["a"].state is RowState.WRITING
    assert (state.transferred, state.per_second(4.0)) == (60 * MB, 30 * MB)
    state.apply(FileWritten("a", 60 * MB), 4.0)
    assert state.complete
