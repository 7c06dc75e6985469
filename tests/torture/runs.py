"""Loads in child processes, many a second: forked from one process that has imported asyncfetch, without a loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..kit.strace import ROOT

__all__ = ["Forks", "Outcome", "Run", "forks"]

FAST = {
    "backoff": 0.01,
    "max_backoff": 0.05,
    "read_timeout": 2.0,
    "connect_timeout": 2.0,
    "stall_window": 5.0,
    "patience": 0.0,
}
ONE_LANE = {**FAST, "connections": 1, "burst": 64 * 1024}


@dataclass(frozen=True)
class Run:
    """What a child does. `uid` and `limits`, rlimits by name, are set after a first load into the folder `warm`;
    RLIMIT_NOFILE counts from the descriptors that are open then.

    `one_thread` makes its system calls repeatable, `often` journals after each piece, `kill_after` sends
    SIGKILL after so many seconds, `traced` waits for `Forks.go`.
    """

    endpoint: str
    cache: str
    source: str = "org/model"
    policy: dict[str, Any] = field(default_factory=lambda: FAST)
    options: dict[str, Any] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    one_thread: bool = False
    often: bool = False
    traced: bool = False
    kill_after: float | None = None
    deadline: float = 20.0
    umask: int | None = None
    uid: int | None = None
    limits: dict[str, int] = field(default_factory=dict)
    warm: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a child ended. `digest` is of the state dict, `error` the name of an error of ours, `foreign` of any other.

    `late`: it was killed because it did not end before its deadline.
    """

    status: int
    late: bool
    digest: str = ""
    error: str = ""
    code: str = ""
    foreign: str = ""
    message: str = ""

    @property
    def killed(self) -> bool:
        return self.status == -9


class Forks:
    """The process that forks. One run at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, run: Run) -> int:
        """Begin a run. Returns the child's pid; it waits for `go` if it is to be traced."""
        assert self._process.stdin is not None
        assert run.warm or (run.uid is None and not run.limits)
        self._process.stdin.write(json.dumps(asdict(run)) + "\n")
        self._process.stdin.flush()
        return int(self._answer()["pid"])

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> Outcome:
        """Wait for the end of the run."""
        return Outcome(**self._answer())

    def run(self, run: Run) -> Outcome:
        self.start(run)
        return self.end()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that forks has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def forks(home: Path) -> Iterator[Forks]:
    """The process that forks, with `home` as HF_HOME."""
    user = ("HF_", "HUGGING", "ASYNCFETCH_")
    environ = {k: v for k, v in os.environ.items() if not (k.startswith(user) or k.upper().endswith("_PROXY"))}
    environ |= {"HF_HOME": str(home), "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.torture.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environ,
    ) as process:
        try:
            yield Forks(process)
        finally:
            process.kill()
