"""What the events of a load add up to."""

from __future__ import annotations

import pytest

from asyncfetch.cli.progress import ProgressState, Rate, Stage, summary_line
from asyncfetch.events import FileProgress, FileStarted, FileState, FileVerified, Finished, Resolved, Retrying

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
    assert [row.stage for row in state.rows.values()] == [Stage.WAITING, Stage.WAITING, Stage.CACHED]


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


def test_stages_of_a_file() -> None:
    """waiting, downloading, retry, downloading, verifying, verified."""
    state = state_of(0)
    row = state.rows["s0"]
    seen = [row.stage]
    for second, event in enumerate(
        (
            FileStarted("s0", 100 * MB, 0),
            Retrying("s0", "reset", 1, 5, 2.0),
            FileProgress("s0", 50 * MB, 100 * MB),
            FileProgress("s0", 100 * MB, 100 * MB),
            FileVerified("s0", 100 * MB, "sha256:x"),
        )
    ):
        state.apply(event, float(second))
        seen.append(row.stage)
    assert [stage.value for stage in seen] == [
        "waiting",
        "downloading",
        "retry",
        "downloading",
        "verifying",
        "verified",
    ]


def test_no_checksum_is_not_called_verified() -> None:
    """A file that could not be checked against anything does not count as verified."""
    state = state_of(0)
    state.apply(FileVerified("s0", 100 * MB, None), 1.0)
    assert state.rows["s0"].stage is Stage.UNCHECKED
    assert state.fold_line() == "0 of 1 shard verified, 1 done without a checksum"


def test_a_retry_counts_down() -> None:
    """The row says which attempt, how long until it and why; then that it is due."""
    state = state_of(0)
    state.apply(Retrying("s0", "connection\nreset", 2, 5, 3.0), 10.0)
    row = state.rows["s0"]
    assert state.row_status(row, 10.0)[0] == "retry 2/5 in 3 s: connection\\nreset"
    assert state.row_status(row, 11.2)[1] == "retry 2/5 in 2 s"
    assert state.row_status(row, 14.0)[1] == "retry 2/5 now"


def test_silence_is_said() -> None:
    """Without a byte for long, the total says so instead of an endless estimate."""
    state = state_of(0)
    state.apply(FileStarted("s0", 100 * MB, 0), 0.0)
    state.apply(FileProgress("s0", 10 * MB, 100 * MB), 1.0)
    assert state.total_status(1.0)[0] == "10.0 MB/s, 0:09 left"
    assert state.total_status(13.0) == ["no data for 12 s"]
    state.apply(Finished(1, 100 * MB, 100 * MB, 13.0), 13.0)
    assert state.total_status(30.0) == ["done"]


def test_all_cached_is_done_at_once() -> None:
    """A load that needs no transfer has no rate, no estimate and no silence."""
    state = state_of(100 * MB, 100 * MB)
    assert state.total_status(60.0) == ["done"]
    assert state.silence(60.0) == 0


def test_verifying_a_cached_file_is_no_transfer() -> None:
    """Hashing what the cache held does not count as downloaded."""
    state = state_of(100 * MB)
    state.apply(FileVerified("s0", 100 * MB, "sha256:x"), 1.0)
    assert state.transferred == 0
    assert state.rows["s0"].stage is Stage.VERIFIED


def test_retry_while_the_source_is_looked_up() -> None:
    """Before anything is resolved, a retry belongs to the look-up and not to a file."""
    state = ProgressState()
    retry = Retrying(None, "refused", 1, 5, 1.0)
    state.apply(retry, 0.0)
    assert (state.retrying, state.rows) == (retry, {})
    state.apply(resolved(0), 1.0)
    assert state.retrying is None


def test_summary_line() -> None:
    """One line holds percent, amounts, shards, rate and estimate."""
    state = state_of(0, 100 * MB)
    state.apply(FileStarted("s0", 100 * MB, 0), 0.0)
    state.apply(FileProgress("s0", 50 * MB, 100 * MB), 1.0)
    assert summary_line(state, 1.0) == " 75%  150/200 MB  1 of 2 shards done  50.0 MB/s, 0:01 left"
