"""One client against one service: whether it ends well, and whether all that it was refused was to be expected."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from .contestants import Client, why_expected
from .services import Asked, Service

__all__ = ["PROGRAMS", "Outcome", "run"]

PROGRAMS = Path(__file__).parent / "programs"
_SECONDS = 600  # for a program: torch takes its time on a busy machine


class Outcome(NamedTuple):
    """What came of a run. `error` is the end of what the program said, empty where it ended well."""

    client: str
    service: str
    error: str
    asked: list[Asked]
    originals: Path

    @property
    def refused(self) -> list[Asked]:
        return [one for one in self.asked if one.status >= 400]

    @property
    def unexpected(self) -> list[Asked]:
        return [
            one for one in self.refused if why_expected(one.status, one.path) is None or _is_there(one, self.originals)
        ]

    @property
    def is_good(self) -> bool:
        """It ended well, it was this service that it asked, and nothing was missing."""
        return not self.error and bool(self.asked) and not self.unexpected


def run(client: Client, command: list[str], service: Service, originals: Path) -> Outcome:
    """Run a client with a home of its own, so that it has nothing in its cache."""
    service.asked()
    with tempfile.TemporaryDirectory() as home:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
        environment = {
            **kept,
            "HF_ENDPOINT": service.url,
            "HF_HOME": f"{home}/hf",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HOME": home,
            "NO_PROXY": "*",
            "ORIGINALS": str(originals),
            "PYTHONPATH": str(PROGRAMS),
            "TMPDIR": home,
            "TOKENIZERS_PARALLELISM": "false",
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS)
    error = "" if done.returncode == 0 else (done.stderr or done.stdout or f"exit code {done.returncode}")[-2000:]
    return Outcome(client.name, service.name, error, service.asked(), originals)


def _is_there(asked: Asked, originals: Path) -> bool:
    """Whether what was asked for is a file that is served."""
    repository, _, rest = unquote(asked.path).partition("/resolve/")
    name = rest.partition("/")[2]
    return bool(name) and "absent" not in rest and (originals / repository.lstrip("/") / name).is_file()
