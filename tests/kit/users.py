"""Running a command as a user for whom mode bits mean something; root ignores them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETPRIV = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]


@contextmanager
def public_folder() -> Iterator[Path]:
    """A fresh folder that every user may enter and read; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def as_nobody(command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `command` without privileges. Skips where that cannot be had."""
    if os.getuid() != 0 or not shutil.which("setpriv") or subprocess.run([*SETPRIV, "true"]).returncode:
        pytest.skip("needs root and setpriv for a second user")
    return subprocess.run(
        [*SETPRIV, *command], capture_output=True, text=True, env={**os.environ, **environ}, cwd=ROOT, timeout=50
    )
