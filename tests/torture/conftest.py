"""For the tests that strike a run at one of its system calls, and for those with a caller's client."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from .experiment import Experiment, experiments


@pytest.fixture(scope="session")
def experiment_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bool], Experiment]]:
    """`experiment_of(state, links)`; each is recorded once."""
    with experiments(tmp_path_factory.mktemp("experiments")) as get:
        yield get


@pytest.fixture(autouse=True)
def leave_nothing_to_others(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a caller's client leaves to the garbage collector is collected here: another test would be blamed."""
    yield
    if "generic" in request.node.name:
        gc.collect()
