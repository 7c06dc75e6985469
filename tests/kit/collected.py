"""Which tests there are: for tables that name tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def missing(ids: Iterable[str], session: pytest.Session) -> set[str]:
    """Those of `ids`, relative to tests/ and without parameters, that pytest does not collect.

    The tests of this session are known; only the files of the others are collected for it.
    """
    rest = set(ids) - _plain(item.nodeid for item in session.items)
    files = {f"tests/{one.partition('::')[0]}" for one in rest}
    files = {file for file in files if (ROOT / file).is_file()}
    if not files:
        return rest
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--no-header", *sorted(files)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stdout + run.stderr
    return rest - _plain(run.stdout.splitlines())


def _plain(ids: Iterable[str]) -> set[str]:
    return {one.partition("[")[0].removeprefix("tests/") for one in ids if "::" in one}
