"""The mutants: each can be made, some of them are really run here, and the runner itself is honest."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from .kit.collected import missing
from .mutants import Mutant, MutantError, every_mutant
from .mutants.runner import judge

MUTANTS = every_mutant()
SAMPLE = Mutant(
    "wrong-version",
    "none",
    "policy.py",
    '__version__ = "',
    '__version__ = "9',
    ("test_policy.py::test_from_env_reads_each_variable",),
)


def test_names_are_distinct() -> None:
    """A name stands for one mutant, and no two mutants are the same replacement."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


def test_they_can_be_made() -> None:
    """What each replaces is in the source exactly once, and the result is Python."""
    flaws = []
    for mutant in MUTANTS:
        try:
            mutant.source()
        except MutantError as error:
            flaws.append(str(error))
    assert not flaws


@pytest.mark.timeout(200)  # where the files are not part of this run they are collected for it
def test_their_tests_are_there(request: pytest.FixtureRequest) -> None:
    """Each test that must catch a mutant is one that pytest collects."""
    tests = {test for mutant in MUTANTS for test in mutant.tests}
    assert all(mutant.tests for mutant in MUTANTS)
    assert not missing(tests, request.session)


@pytest.mark.shows_secrets(reason="the tests of a mutant may print what it gives away")
@pytest.mark.timeout(200)  # some are noticed by a time-out of 30 s
@pytest.mark.parametrize("number", range(3))
def test_some_are_caught(number: int, seed: int) -> None:
    """Three of them, others with each seed, in full: a copy is broken and a test of it fails."""
    mutant = random.Random(seed).sample(MUTANTS, 3)[number]
    verdict = judge(mutant)
    if verdict.outcome == "skipped":
        pytest.skip(f"this machine lacks what the tests of {mutant.name} need")
    assert verdict.outcome == "caught", f"{mutant.name}\n{verdict.output}"
    assert verdict.by.partition("[")[0] in mutant.tests


def test_a_harmless_change_survives() -> None:
    """The tests of a mutant fail because of the mutant: with a change that does no harm they pass."""
    assert judge(SAMPLE).outcome == "survived"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"old": "no such text"}, "0 times"),
        ({"old": "self."}, "times"),
        ({"new": '__version__ = "'}, "is the new one"),
        ({"new": "__version__ = ((("}, "policy.py, line"),
        ({"tests": ("test_policy.py::test_that_is_gone",)}, "not found"),
        ({"new": 'import nothing_of_this_name\n__version__ = "'}, "nothing_of_this_name"),
    ],
    ids=["gone", "twice", "same", "no-python", "no-test", "no-import"],
)
def test_what_says_nothing_is_an_error(change: dict[str, object], says: str) -> None:
    """A mutant that cannot be made, or whose tests do not run, counts neither as caught nor as survived."""
    with pytest.raises(MutantError, match=says):
        judge(replace(SAMPLE, **change))  # type: ignore[arg-type]
