"""Faults at one system call of a child, by strace: SIGKILL before it, or an errno instead of it."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from .runs import Forks, Outcome, Run

__all__ = ["READING", "Calls", "OutOfStepError", "Tracer", "skip_without_strace"]

# Kills before calls that change nothing leave what the next kill leaves. What is not listed here counts as changing.
READING = frozenset(
    {"stat", "newfstatat", "statx", "statfs", "lseek", "read", "pread64", "readlink", "getdents64", "ioctl"}
)
# A file that never had a name, by its inode: no path selects it in another run, and a kill leaves nothing of it.
_UNNAMED = re.compile(r"<[^>]*/#\d+>\(deleted\)")
_ALL = "trace=%file,%desc"


class OutOfStepError(Exception):
    """strace took ends of calls for their beginnings, as it may once in a thousand runs: what it hit is not known."""


@dataclass(frozen=True)
class Calls:
    """What a run calls on its cache: the lines of the trace, in order, and every path in them."""

    lines: tuple[str, ...]
    paths: tuple[str, ...]

    @property
    def counts(self) -> Counter[str]:
        """How often each call is made, by its name."""
        return Counter(match[1] for line in self.lines if (match := re.match(r"\d+ +(\w+)\(", line)))


class Tracer:
    """Runs children under strace; `folder` is for its log."""

    def __init__(self, forks: Forks, folder: Path) -> None:
        self._forks = forks
        self._log = folder / "strace.log"
        self._said = folder / "strace.stderr"  # a pipe that nobody reads would stop it

    def record(self, run: Run, paths: Sequence[str] = ()) -> Calls:
        """The calls of a whole run on all paths in its cache, or on exactly `paths`."""
        outcome, lines = self.inject(run, paths, _ALL)
        assert outcome.digest, outcome
        mine = tuple(line for line in lines if run.cache in _UNNAMED.sub("", line))
        assert len({line.split()[0] for line in mine}) == 1, "more than one thread touches the cache"
        found = re.findall(rf'["<]({re.escape(run.cache)}[^">]*)[">]', _UNNAMED.sub("", "\n".join(mine)))
        return Calls(mine, tuple(sorted(set(found))))

    def inject(self, run: Run, paths: Sequence[str], what: str) -> tuple[Outcome, list[str]]:
        """A run with strace's `-e what` on its calls on `paths`; and the lines of its log. Raises OutOfStepError."""
        pid = self._forks.start(replace(run, traced=True))
        selected = [argument for path in paths for argument in ("-P", path)]
        command = ["strace", "-f", "-y", "-s", "16", "-o", str(self._log), *selected, "-e", what, "-p", str(pid)]
        with open(self._said, "w") as said, subprocess.Popen(command, stderr=said) as strace:
            try:
                self._wait_until_traced(pid, strace)
            finally:
                self._forks.go()
                outcome = self._forks.end()
            strace.wait(timeout=10)
        if "ptrace_syscall_info" in (complaint := self._said.read_text()):
            raise OutOfStepError(complaint[:500])
        return outcome, self._log.read_text().splitlines()

    def _wait_until_traced(self, pid: int, strace: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + 10
        while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
            assert strace.poll() is None, self._said.read_text()
            assert time.monotonic() < until, "strace does not attach"
            time.sleep(0.001)


def skip_without_strace() -> None:
    """Skip, and say why, where no other process may be traced."""
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    with subprocess.Popen(["sleep", "10"]) as sleeper:
        attached = ["timeout", "-s", "INT", "0.3", "strace", "-p", str(sleeper.pid)]
        said = subprocess.run(attached, capture_output=True, text=True, timeout=10).stderr
        sleeper.kill()
    if "attached" not in said:
        pytest.skip(f"needs the right to trace: {said.strip()}")
