"""The mutants: each can be made, some of them are really run here, and the runner itself is honest."""

from __future__ import annotations

import random
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from .kit.collected import missing
from .mutants import LostError, Mutant, MutantError, every_mutant
from .mutants.check import flaws, follow
from .mutants.runner import judge

MUTANTS = every_mutant()
SAMPLE = Mutant(
    "wrong-version",
    "none",
    "policy",
    "__version__ =",
    '__version__ = "9." +',
    ("test_policy.py::test_from_env_reads_each_variable",),
)


def test_they_can_be_made() -> None:
    """Each has a name of its own, finds its code in its place once, makes other Python of it, and has tests."""
    assert [str(error) for error in flaws(MUTANTS)] == []


@pytest.mark.timeout(200)  # where the files are not part of this run they are collected for it
def test_their_tests_are_there(request: pytest.FixtureRequest) -> None:
    """Each test that must catch a mutant is one that pytest collects."""
    assert not missing({test for mutant in MUTANTS for test in mutant.tests}, request.session)


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
        ({"new": "__version__=  # the same"}, "is the new one"),
        ({"new": "__version__ = ((("}, "policy.py, line"),
        ({"tests": ("test_policy.py::test_that_is_gone",)}, "not found"),
        ({"new": "import nothing_of_this_name\n__version__ ="}, "nothing_of_this_name"),
    ],
    ids=["gone", "twice", "same", "no-python", "no-test", "no-import"],
)
def test_what_says_nothing_is_an_error(change: dict[str, object], says: str) -> None:
    """A mutant that cannot be made, or whose tests do not run, counts neither as caught nor as survived."""
    with pytest.raises(MutantError, match=says):
        judge(replace(SAMPLE, **change))  # type: ignore[arg-type]


# -- how they find their place -------------------------------------------------------------------

TOY = """
LIMIT = 3


class Pot:
    @property
    def full(self) -> bool:
        return self.level > LIMIT

    def fill(self, *litres: int) -> None:
        for litre in litres:
            if litre < 0:
                raise ValueError("less than nothing",)
            self.level += litre  # a "comment" of no weight
        return None


def full(pot: Pot) -> bool:
    return pot.level > LIMIT
"""
IN_TOY = Mutant("no-limit", "none", "wing.pots:Pot.full", "> LIMIT", "> 0", ("test_pots.py::test_fill",))


def toy(root: Path, text: str = TOY, module: str = "wing/pots.py") -> Path:
    """A repository with one file of the package, and one of its tests."""
    for name, content in ((f"asyncfetch/{module}", text), ("tests/test_pots.py", "def test_fill(): ...\n")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("place", "old", "new", "line"),
    [
        ("wing.pots:Pot.full", "return self.level > LIMIT", "return False", "        return False"),
        ("wing.pots:Pot.full", "@property", "@staticmethod", "    @staticmethod"),
        ("wing.pots:full", "> LIMIT", "> 0", "    return pot.level > 0"),
        ("wing.pots", "LIMIT = 3", "LIMIT = 4", "LIMIT = 4"),
        ("wing.pots:Pot.fill", "raise ValueError( 'x'", "", ""),
        ("wing.pots:Pot.fill", 'raise ValueError(\n"less than nothing"\n)', "break", "                break"),
        (
            "wing.pots:Pot.fill",
            "self.level += litre return None",
            "if litre:\n    return 1",
            "                return 1",
        ),
        (
            "wing.pots:Pot.fill",
            "self.level += litre",
            "    pass\nreturn 2",
            '        return 2  # a "comment" of no weight',
        ),
        ("wing.pots:Pot.fill", "level", "depth", '            self.depth += litre  # a "comment" of no weight'),
    ],
    ids=["whole", "decorator", "function", "module", "none", "layout", "statements", "outwards", "comment"],
)
def test_what_is_replaced(tmp_path: Path, place: str, old: str, new: str, line: str) -> None:
    """The tokens count, within the definition, and not how they are laid out; new lines are indented like the old."""
    mutant = replace(IN_TOY, place=place, old=old, new=new)
    if not line:
        with pytest.raises(LostError, match="0 times"):
            mutant.source(toy(tmp_path))
        return
    before, after = TOY.splitlines(), mutant.source(toy(tmp_path)).splitlines()
    assert [one for one in after if one not in before][-1] == line


@pytest.mark.parametrize(
    ("text", "module", "now"),
    [
        (TOY, "other/jars.py", ("other.jars:Pot.full",)),
        (TOY, "other/__init__.py", ("other:Pot.full",)),
        (TOY.replace("Pot", "Jar").replace("pot.level > LIMIT", "True"), "wing/pots.py", ("wing.pots:Jar.full",)),
        (TOY.replace("Pot", "Jar"), "wing/pots.py", ("wing.pots:Jar.full", "wing.pots:full")),
        (TOY.replace("LIMIT", "MOST"), "wing/pots.py", ()),
    ],
    ids=["moved", "moved-to-a-wing", "renamed", "doubtful", "gone"],
)
def test_what_has_moved_is_found(tmp_path: Path, text: str, module: str, now: tuple[str, ...]) -> None:
    """A definition that was moved or renamed is named in the error; a mutant of it follows if there is one place."""
    root = toy(tmp_path, text, module)
    (error,) = flaws([IN_TOY], root)
    assert isinstance(error, LostError)
    assert error.now == now
    assert all(place in str(error) for place in (IN_TOY.place, *now))
    table = root / "tests" / "mutants" / "group.py"
    table.parent.mkdir()
    table.write_text(
        textwrap.dedent(f"""\
        Mutant("other", "none", "{IN_TOY.place}", "1", "2", ())
        Mutant("no-limit", "none",
            "{IN_TOY.place}", "> LIMIT", "> 0", ())
    """)
    )
    assert follow([error], root) == (len(now) == 1)
    assert [table.read_text().count(f'"{place}"') for place in (IN_TOY.place, *now)] == [
        2 - (len(now) == 1),
        *(int(len(now) == 1) for _ in now),
    ]


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    """Two mutants of one name or one deed, one without tests, one with a test that is not there."""
    twin, lazy = replace(IN_TOY, name="twin"), replace(IN_TOY, new="> 1", tests=())
    hasty = replace(IN_TOY, name="hasty", new="> 2", tests=("test_pots.py::test_empty", "test_pans.py::test_fill"))
    assert [str(error) for error in flaws([IN_TOY, twin, lazy, hasty], toy(tmp_path))] == [
        "no-limit: 2 mutants have this name",
        "no-limit: another mutant does the same",
        "twin: another mutant does the same",
        "no-limit: no test is named that catches it",
        "hasty: there is no test test_pots.py::test_empty",
        "hasty: there is no test test_pans.py::test_fill",
    ]
