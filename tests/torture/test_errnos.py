"""A disk that refuses any one system call: the run ends well or in an error of ours, and the cache has no lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from .crashes import STATES
from .experiment import Experiment, experiments, some

ERRNOS = ["ENOSPC", "EIO", "EINTR", "EMFILE", "EACCES", "EROFS"]


@pytest.fixture(scope="module")
def experiment_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bool], Experiment]]:
    """`experiment_of(state, links)`; each is recorded once."""
    with experiments(tmp_path_factory.mktemp("experiments")) as get:
        yield get


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
    for name, when in some(experiment.points(), seed + len(errno), scale(1, 0)):
        outcome, _ = experiment.strike(name, when, f"error={errno}")
        if outcome.foreign or outcome.late or outcome.status or outcome.digest not in ("", experiment.model.digest):
            faults.append(f"{name} number {when}: {outcome}")
        ends[outcome.error or "well"] += 1
        faults += [f"after {name} number {when}: {fault}" for fault in experiment.faults_after()]
    figure(f"{ends.total()} times {errno}, {len(faults)} violations; {dict(ends)}")
    assert not faults, "\n".join(faults)
