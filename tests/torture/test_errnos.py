"""A disk that refuses any one system call: the run ends well or in an error of ours, and the cache has no lie."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from .crashes import STATES
from .experiment import Experiment, some

ERRNOS = ["ENOSPC", "EIO", "EINTR", "EMFILE", "EACCES", "EROFS"]


@pytest.mark.parametrize("errno", ERRNOS)
@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("state", STATES)
def test_errnos(
    experiment_of: Callable[[str, bool], Experiment],
    state: str,
    links: bool,
    errno: str,
    seed: int,
    scale: Callable[[int, int], int],
    figure: Callable[[str], None],
) -> None:
    """An errno instead of each call on the cache, reading ones too; in the quick form of one or two, by the seed."""
    experiment = experiment_of(state, links)
    ends: Counter[str] = Counter()
    faults = []
    for name, when in some(experiment.points(), f"{seed} {state} {links} {errno}", scale(1, 0)):
        outcome, _ = experiment.strike(name, when, f"error={errno}")
        if outcome.foreign or outcome.late or outcome.status or outcome.digest not in ("", experiment.model.digest):
            faults.append(f"{name} number {when}: {outcome}")
        ends[outcome.error or "well"] += 1
        faults += [f"after {name} number {when}: {fault}" for fault in experiment.faults_after()]
    figure(f"{ends.total()} times {errno}, {len(faults)} violations; {dict(ends)}")
    assert not faults, "\n".join(faults)


def test_failed_syncs_are_not_retried(
    experiment_of: Callable[[str, bool], Experiment], seed: int, scale: Callable[[int, int], int]
) -> None:
    """After EIO at fsync the pages may be gone: no second try, and what was being synced is not used again.

    Where it was bookkeeping, the load goes on without it: its bytes are synced.
    """
    experiment = experiment_of("nothing", True)
    points = [(name, when) for name, when in experiment.points() if name == "fsync"]
    for name, when in some(points, str(seed), scale(3, 0)):
        outcome, lines = experiment.strike(name, when, "error=EIO")
        syncs = [line for line in lines if " fsync(" in line]
        (failed,) = (path for line in syncs for path in re.findall(r"fsync\(\d+<(.*)>\) = -1 EIO .*INJECTED", line))
        at = next(number for number, line in enumerate(syncs) if "INJECTED" in line)
        # The folder of blobs is synced for the index as well, which a load can do without.
        of_shard = failed.endswith("/blobs") and ".asyncfetch.incomplete>" in syncs[max(at - 1, 0)]
        if failed.endswith(".asyncfetch.incomplete") or of_shard:
            assert f"<{failed}>" in syncs[-1], syncs  # none came after it
            assert outcome.error == "StorageError", outcome
            assert "Input/output error" in outcome.message
        else:
            assert outcome.digest == experiment.model.digest, (failed, outcome)
        if failed.endswith(".incomplete"):
            assert sum(f"<{failed}>" in line for line in syncs) == 1, syncs
            names = Path(failed).parent.glob(Path(failed).name.split(".")[0] + ".*")
            assert not list(names), failed
        assert not (faults := experiment.faults_after()), (when, faults)


def test_short_writes(
    experiment_of: Callable[[str, bool], Experiment], seed: int, scale: Callable[[int, int], int]
) -> None:
    """A write that takes nothing yet is gone on with; no byte is left out."""
    experiment = experiment_of("nothing", True)
    points = [(name, when) for name, when in experiment.points() if name in ("write", "pwrite64")]
    assert {name for name, _ in points} == {"write", "pwrite64"}
    for name, when in some(points, str(seed), scale(3, 0)):
        outcome, lines = experiment.strike(name, when, "retval=0")
        assert any("INJECTED" in line for line in lines), (name, when)
        assert outcome.digest == experiment.model.digest, (name, when, outcome)
        assert not (faults := experiment.faults_after()), (name, when, faults)
