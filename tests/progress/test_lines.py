"""What is said about events, files and the whole."""

from __future__ import annotations

from math import inf

import pytest

from asyncfetch.events import (
    Event,
    FileProgress,
    FileStarted,
    FileState,
    FileVerified,
    Finished,
    Resolved,
    Retrying,
    Waiting,
    Warned,
)
from asyncfetch.progress.lines import (
    Audience,
    Repeats,
    announcement,
    fold_line,
    hold_reasons,
    look_up_line,
    row_status,
    summary_line,
    total_status,
)
from asyncfetch.progress.state import ProgressState

from ..kit.samples import EVENTS

MB = 10**6
LIMITED = "the server limits the request rate"


def state_of(*present: int) -> ProgressState:
    """A load of files of 100 MB, of which so many bytes are here."""
    state = ProgressState()
    files = tuple(FileState(f"s{i}", 100 * MB, here, "sha256:x") for i, here in enumerate(present))
    state.apply(Resolved("org/m", "a" * 40, "model.safetensors.index.json", files), 0.0)
    return state


# Events


def test_announcements() -> None:
    """Each event that deserves a line gets one, with its numbers."""
    files = (FileState("a", 10**9, 10**8, None), FileState("b", 10**9, 0, None))
    lines = [
        announcement(event, Audience.LOG)
        for event in (
            Resolved("org/m", "ab" * 20, None, files),
            FileStarted("a", 10**9, 10**8),
            Retrying("a", "reset", 2, 5, 3.2),
            Retrying("a", "reset", 3, 5, 0.2),
            Retrying(None, "refused", 1, 5, 1.0),
            Retrying("a", "reset", 1, 5, 3.2, 300.0),
            Retrying("a", "reset", 9, 5, 0.0, 59.4),
            Retrying("a", "reset", 1, 5, 2.0, inf),
            Waiting("a", f"{LIMITED}\n", 12.3),
            Waiting("b", "another process is downloading this file", None),
            FileVerified("a", 10**9, "sha256:x"),
            FileVerified("b", 10**9, None),
            Warned("odd\x1b"),
            Finished(2, 2 * 10**9, 19 * 10**8, 10.0),
            Finished(2, 2 * 10**9, 0, 0.0),
        )
    ]
    assert lines == [
        "org/m at abababababab: 2 files, 2.00 GB, 100 MB already here",
        "a: started, 1.00 GB, continues at 100 MB",
        "a: retry 2/5 in 3 s: reset",
        "a: retry 3/5 now: reset",
        "source: retry 1/5 in 1 s: refused",
        "a: retry in 3 s (for 5 min at most): reset",
        "a: retry now (for 59 s at most): reset",
        "a: retry in 2 s: reset",
        f"a: waiting 12 s: {LIMITED}\\n",
        "b: waiting: another process is downloading this file",
        "a: verified",
        "b: complete, the source gives no checksum",
        "warning: odd\\x1b",
        "2 files, 2.00 GB: 1.90 GB downloaded in 10 s (190 MB/s)",
        "2 files, 2.00 GB: nothing to download",
    ]


TOLD = {
    Warned: set(Audience),
    Retrying: {Audience.LOOK_UP, Audience.LOG},
    Waiting: {Audience.LOOK_UP, Audience.LOG},
    Resolved: {Audience.TABLE, Audience.LOG},
    Finished: {Audience.TABLE, Audience.LOG},
    FileStarted: {Audience.LOG},
    FileVerified: {Audience.LOG},
}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_who_is_told_what(event: Event) -> None:
    """A warning is for everyone, a hold-up for who has no table; a log has every step, and progress only at times."""
    told = {audience for audience in Audience if announcement(event, audience) is not None}
    assert told == TOLD.get(type(event), told)
    assert (Audience.LOG in told) == (not isinstance(event, FileProgress))


# The state


def test_a_retry_counts_down() -> None:
    """The row says which attempt, how long until it and why; then that it is due."""
    state = state_of(0)
    state.apply(Retrying("s0", "connection\nreset", 2, 5, 3.0), 10.0)
    row = state.rows["s0"]
    assert row_status(row, 10.0) == ["retry 2/5 in 3 s: connection\\nreset", "retry 2/5 in 3 s", "retry 2/5"]
    assert row_status(row, 11.2)[1] == "retry 2/5 in 2 s"
    assert row_status(row, 14.0)[1] == "retry 2/5 now"


def test_a_wait_counts_down() -> None:
    """The row says for what it waits, and how long if that is known."""
    state = state_of(0, 0)
    state.apply(Waiting("s0", LIMITED, 12.0), 10.0)
    state.apply(Waiting("s1", "another process is downloading this file", None), 10.0)
    limited, other = state.rows.values()
    assert row_status(limited, 10.0) == [f"waiting 12 s: {LIMITED}", "waiting 12 s", "waiting"]
    assert row_status(limited, 19.0)[1] == "waiting 3 s"
    assert row_status(limited, 30.0)[0] == f"waiting: {LIMITED}"
    assert row_status(other, 30.0)[0] == "waiting: another process is downloading this file"


def test_when_all_wait_so_does_the_whole() -> None:
    """No rate and no estimate where nothing can move."""
    state = state_of(0, 0)
    state.apply(FileStarted("s0", 100 * MB, 0), 0.0)
    state.apply(FileProgress("s0", 50 * MB, 100 * MB), 1.0)
    state.apply(Waiting("s0", LIMITED, 12.0), 1.0)
    assert total_status(state, 1.0) == ["waiting"]


def test_the_look_up() -> None:
    """What it does, and why it does not go on; the total line says so where there are files already."""
    state = ProgressState()
    assert look_up_line(state, 0.0, dots="...") == "looking up the source..."
    state.apply(Waiting(None, LIMITED, 5.0), 0.0)
    assert look_up_line(state, 2.0, dots="...") == f"source: waiting 3 s: {LIMITED}"
    state = state_of(0)
    state.apply(Retrying(None, "refused", 1, 5, 2.0), 0.0)
    assert total_status(state, 0.0)[1] == "retry 1/5 in 2 s"


def test_silence_is_said() -> None:
    """Without a byte for long, the total says so instead of an endless estimate."""
    state = state_of(0)
    state.apply(FileStarted("s0", 100 * MB, 0), 0.0)
    state.apply(FileProgress("s0", 10 * MB, 100 * MB), 1.0)
    assert total_status(state, 1.0)[0] == "10.0 MB/s, 0:09 left"
    assert total_status(state, 13.0) == ["no data for 12 s"]
    state.apply(Finished(1, 100 * MB, 100 * MB, 13.0), 13.0)
    assert total_status(state, 30.0) == ["done"]


def test_all_files_in_one_line() -> None:
    """How many are in which state; one without a checksum does not count as verified."""
    state = state_of(0, 0, 0, 0, 100 * MB)
    state.apply(FileVerified("s0", 100 * MB, None), 1.0)
    state.apply(FileVerified("s1", 100 * MB, "sha256:x"), 1.0)
    state.apply(Waiting("s2", LIMITED, 1.0), 1.0)
    said = "5 files: 1 verified, 1 cached, 1 done without a checksum, 1 active, 1 not started"
    assert fold_line(state) == said


def test_summary_line() -> None:
    """One line holds percent, amounts, shards, rate and estimate."""
    state = state_of(0, 100 * MB)
    state.apply(FileStarted("s0", 100 * MB, 0), 0.0)
    state.apply(FileProgress("s0", 50 * MB, 100 * MB), 1.0)
    assert summary_line(state, 1.0) == " 75%  150/200 MB  1 of 2 files done  50.0 MB/s, 0:01 left"


def test_patience_is_told_in_time_and_not_in_numbers() -> None:
    """Where patience holds, no count of attempts is shown that begins anew with each bit of progress."""
    state = ProgressState()
    state.apply(Resolved("org/m", None, None, (FileState("s0", 100, 0, None), FileState("s1", 100, 0, None))), 0.0)
    for file, left in (("s0", 250.0), ("s1", 241.0)):
        state.apply(FileStarted(file, 100, 0), 0.0)
        state.apply(Retrying(file, "reset", 1, 5, 4.0, left), 1.0)
    rows = list(state.rows.values())
    assert row_status(rows[0], 1.0) == ["retry in 4 s (for 5 min at most): reset", "retry in 4 s", "retry"]
    assert hold_reasons(rows) == ["retry (for 5 min at most): reset"]


def test_equal_warnings_are_one() -> None:
    """The first is said at once, the others are counted; what says something else is said."""
    repeats = Repeats()
    warnings = [Warned(f"model-{n:05}-of-01000.safetensors has no checksum") for n in range(1000)]
    assert [repeats(warning) for warning in warnings] == [False] + [True] * 999
    assert not repeats(Warned("another thing"))
    assert not repeats(Waiting("a", "the server limits the request rate", 1.0))
    assert repeats.rest() == [
        "warning: and 999 more like this: model-00000-of-01000.safetensors has no checksum",
    ]
