"""System calls of a command, for tests of their order."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def strace(command: list[str], names: str, tmp_path: Path) -> list[str]:
    """The calls of `names` on files below `tmp_path` that `command` makes, in order. Skips where there is no strace."""
    log = tmp_path / "strace.log"
    tracer = ["strace", "-f", "-y", "-s", "300", "-o", str(log), "-e", f"trace={names}"]
    if (
        not shutil.which("strace")
        or subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True).returncode
    ):
        pytest.skip("needs strace and the right to trace")
    run = subprocess.run([*tracer, *command], capture_output=True, text=True, cwd=ROOT, timeout=50)
    assert run.returncode == 0, run.stderr
    lines = [line for line in log.read_text().splitlines() if str(tmp_path) in line]
    log.unlink()
    return lines
