"""Running code as a user for whom mode bits mean something; root ignores them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_NOBODY = 65534
STRANGER = 54321  # a user id that the system has no entry for, as in many a container
_BECOME = "import os; os.setgroups([]); os.setgid({0}); os.setuid({0})"


@contextmanager
def public_folder() -> Iterator[Path]:
    """A fresh folder that every user may enter and read; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def as_nobody(
    prepare: str, code: str, *arguments: object, uid: int = _NOBODY, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process without privileges; `arguments` are sys.argv[1:]. Skips where that cannot be had.

    `prepare` runs before, with privileges, and has to import all that `code` needs, also what is imported
    late: Python, its packages and this repository may lie below a folder that nobody else may enter.
    """
    if os.getuid() != 0:
        pytest.skip("needs root for a second user")
    command = [sys.executable, "-c", f"{prepare}\n{_BECOME.format(uid)}\n{code}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ}, cwd=ROOT, timeout=50)
