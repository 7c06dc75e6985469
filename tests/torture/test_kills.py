"""Killed before any one of its system calls on the cache, a run leaves no lie, and the next one goes on from there."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable

import pytest

from .crashes import NEW, SHARDS, STATES
from .experiment import Experiment, some
from .injection import READING


def kill(experiment: Experiment, name: str, when: int) -> bool:
    """Kill a run there, if it comes so far, and hold the cache and the next run against what they must be."""
    outcome, _ = experiment.strike(name, when, "signal=SIGKILL")
    assert outcome.killed or outcome.digest == experiment.model.digest, outcome
    assert not (faults := experiment.faults_after()), (f"killed before {name} number {when}", faults)
    return outcome.killed


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("state", STATES)
def test_kill_points(
    experiment_of: Callable[[str, bool], Experiment],
    state: str,
    links: bool,
    seed: int,
    scale: Callable[[int, int], int],
    figure: Callable[[str], None],
) -> None:
    """SIGKILL before every call that changes something; in the quick form before a few, by the seed."""
    experiment = experiment_of(state, links)
    points = experiment.points(without=READING)
    names = sorted({name for name, _ in points})
    assert {"openat", "close", "fsync", "rename", "mkdir", "pwrite64", "write", "unlink", "flock"} <= set(names)
    killed: Counter[str] = Counter()
    for name, when in some(points, f"{seed} {state} {links}", scale(4, 0)):
        killed[name] += kill(experiment, name, when)
    assert killed.total() > 0
    if scale(0, 1):
        for name in names:  # how many pieces a body comes in differs a little from run to run
            for when in itertools.count(experiment.calls.counts[name] + 1):
                if not kill(experiment, name, when):
                    break
                killed[name] += 1
        assert set(killed) == set(names)
    figure(f"{killed.total()} kills of {len(points)} points, 0 violations; {dict(killed)}")


def test_order_of_publication(experiment_of: Callable[[str, bool], Experiment]) -> None:
    """A whole download: for each shard write, fsync, rename, fsync of the folder, link, fsync; the ref after all."""
    experiment = experiment_of("nothing", True)
    lines, model = experiment.calls.lines, experiment.model

    def last(pattern: str) -> int:
        found = [number for number, line in enumerate(lines) if re.search(pattern, line)]
        assert found, f"{pattern} is not in:\n" + "\n".join(lines)
        return found[-1]

    ref = last(r'rename\(".*", ".*/refs/main"\) = 0')
    for name in SHARDS:
        blob = f"blobs/{hashlib.sha256(model.files[name]).hexdigest()}"
        snapshot = f"snapshots/{NEW}"
        partial = rf"{blob}(\.\w{{8}})?\.asyncfetch\.incomplete"
        renamed = last(rf'rename\(".*{partial}", ".*{blob}"\) = 0')
        linked = last(rf'symlink\("\.\./\.\./{blob}", ".*{snapshot}/{re.escape(name)}"\) = 0')
        synced = [number for number, line in enumerate(lines) if re.search(r"fsync\(\d+<.*/blobs>\) = 0", line)]
        steps = [
            last(rf"(pwrite64|write)\(\d+<.*{partial}>"),
            last(rf"fsync\(\d+<.*{partial}>\) = 0"),
            last(rf"close\(\d+<.*{partial}>\) = 0"),
            renamed,
            next(number for number in synced if number > renamed),
            linked,
            next(n for n, line in enumerate(lines) if n > linked and re.search(rf"fsync\(.*{snapshot}>\) = 0", line)),
            ref,
        ]
        assert steps == sorted(steps), (name, steps)
    assert last(r"fsync\(\d+<.*/refs>\) = 0") > ref
    assert last(r"(mkdir|symlink|rename|pwrite64|ftruncate)\(") == ref, "nothing is written after the ref"
