"""The fault catalogue names tests and mutants: all of them exist, and none is forgotten."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from .kit.collected import missing
from .mutants import every_mutant

CATALOGUE = Path(__file__).parent / "CATALOGUE.md"


def rows() -> list[tuple[str, list[str], list[str]]]:
    """Each row as (fault, tests, mutants)."""
    found = []
    for line in CATALOGUE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.startswith("| Fault |"):
            fault, does, tests, mutants = (cell.strip() for cell in line.strip("|").split(" | "))
            assert does.endswith("."), line
            found.append((fault, re.findall(r"`([^`]+)`", tests), re.findall(r"`([^`]+)`", mutants)))
    return found


def test_groups_of_rows() -> None:
    """The groups, and no row without a test."""
    headings = re.findall(r"^## (.+)$", CATALOGUE.read_text(encoding="utf-8"), re.MULTILINE)
    of_bytes = ["Transport", "HTTP", "Content", "Serving"]
    assert headings == [
        *of_bytes,
        "Tensors",
        "Models",
        "Adapters",
        "Saving",
        "Disk",
        "Processes",
        "Clusters",
        "Secrets",
    ]
    assert len(rows()) > 50
    assert not [fault for fault, tests, _ in rows() if not tests]


def test_faults_are_distinct() -> None:
    """A fault has one row."""
    assert not [fault for fault, count in Counter(fault for fault, _, _ in rows()).items() if count > 1]


@pytest.mark.timeout(200)  # where the files are not part of this run they are collected for it
def test_each_test_exists(request: pytest.FixtureRequest) -> None:
    """pytest collects every test that is named."""
    assert not missing({test for _, tests, _ in rows() for test in tests}, request.session)


def test_each_mutant_stands_in_its_row() -> None:
    """The mutants of a row are those that say so, and so are the tests that catch them among its tests."""
    for fault, tests, mutants in rows():
        own = [mutant for mutant in every_mutant() if mutant.row == fault]
        assert sorted(mutants) == sorted(mutant.name for mutant in own), fault
        assert {test for mutant in own for test in mutant.tests} <= set(tests), fault
    assert {mutant.row for mutant in every_mutant()} <= {fault for fault, _, _ in rows()}
