"""One mutant at a time: copy the repository, break the copy, run the tests that must notice."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import ROOT, Mutant, MutantError

__all__ = ["Verdict", "control", "judge"]

_LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist")
_PYTEST = ("-q", "--no-header", "--tb=line", "--timeout=30", "--seed=1")
_ALL_PASSED, _SOME_FAILED = 0, 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """`outcome` is "caught", "survived" or "skipped"; `by` is the test that failed, `output` what pytest wrote."""

    outcome: str
    by: str
    output: str


def judge(mutant: Mutant) -> Verdict:
    """Run the tests of `mutant` against it. "skipped" if this machine can run none of them.

    Raises MutantError if the mutant cannot be made, or its tests do not even begin.
    """
    with _copy() as root:
        mutant.apply(root)
        code, output = _pytest(root, mutant.tests, "-x", seconds=170)
    if code == _SOME_FAILED:
        failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", output, re.MULTILINE)
        return Verdict("caught", failed[1] if failed else "", output)
    if code != _ALL_PASSED:
        raise MutantError(f"{mutant.name}: its tests do not run\n{output}")
    passed = re.search(r"\b[1-9]\d* passed", output)
    return Verdict("survived" if passed else "skipped", "", output)


def control(mutants: Sequence[Mutant], at_once: int) -> None:
    """Run all tests of `mutants` on an unbroken copy, in several processes. Raises MutantError if they do not pass."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    with _copy() as root:
        code, output = _pytest(root, tests, "-n", str(at_once), seconds=1800)
    if code != _ALL_PASSED:
        raise MutantError(f"the tests fail without any mutant\n{output}")


@contextmanager
def _copy() -> Iterator[Path]:
    """The repository again, bytecode included: what is not broken need not be compiled anew."""
    with tempfile.TemporaryDirectory(prefix="asyncfetch-mutant-") as folder:
        yield shutil.copytree(ROOT, Path(folder, "repository"), ignore=_LEFT_OUT)


def _pytest(root: Path, tests: Sequence[str], *options: str, seconds: float) -> tuple[int, str]:
    """The exit code and the output. An installed asyncfetch does not come before the copy."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "pytest", *_PYTEST, *options, *(f"tests/{test}" for test in tests)]
    try:
        run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        return -1, f"no end after {error.timeout:.0f} s"
    return run.returncode, run.stdout + run.stderr
