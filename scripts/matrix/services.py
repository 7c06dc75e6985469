"""`asyncfetch serve` in processes of their own: a folder, and in front of it another one with --upstream."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import urlopen

__all__ = ["Asked", "Service", "both", "running"]

_LINE = re.compile(r"\S+ \S+ (?P<method>[A-Z]+) (?P<target>\S+) (?P<status>\d+) \d+ [\d.]+ms.*")
_PATIENCE = 60.0  # seconds


class Asked(NamedTuple):
    """A request and its answer, as the access log has them."""

    method: str
    path: str
    status: int


class Service:
    """A server that runs. `url` is what clients are told, `pid` its process."""

    def __init__(self, name: str, url: str, log: Path, pid: int) -> None:
        self.name, self.url, self._log, self.pid = name, url, log, pid
        self._read = len(log.read_text())
        self._marks = 0

    def asked(self) -> list[Asked]:
        """The requests since the last call. One more request marks where they end."""
        self._marks += 1
        mark = f"/no/such/mark/{self._marks}"
        try:
            urlopen(f"{self.url}{mark}").close()
        except HTTPError as refused:
            refused.close()
        until = time.monotonic() + _PATIENCE
        while f" {mark} " not in (text := self._log.read_text()[self._read :]):
            if time.monotonic() > until:
                raise SystemExit(f"{self._log} does not show what {self.name} was asked for")
            time.sleep(0.02)
        self._read += len(text)
        found = [_LINE.fullmatch(line) for line in text.splitlines()]
        asked = [Asked(m["method"], m["target"].partition("?")[0], int(m["status"])) for m in found if m]
        return [one for one in asked if not one.path.startswith("/no/such/mark/")]


@contextmanager
def both(models: Path, work: Path) -> Iterator[list[Service]]:
    """The models as they are in a folder, and by way of a cache."""
    with ExitStack() as stack:
        folder = stack.enter_context(running("folder", [str(models)], work))
        options = [f"--upstream={folder.url}", f"--cache-dir={work / 'cache'}"]
        yield [folder, stack.enter_context(running("upstream", options, work))]


@contextmanager
def running(name: str, options: list[str], work: Path) -> Iterator[Service]:
    """`asyncfetch serve` with these options, in a process; what it says goes to `work`/`name`.log."""
    log = work / f"{name}.log"
    command = [sys.executable, "-m", "asyncfetch", "serve", *options, "--port=0", f"--state-dir={work / name}"]
    with log.open("wb") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        try:
            yield Service(name, _url_in(log, process), log, process.pid)
        finally:
            process.terminate()
            process.wait(30)


def _url_in(log: Path, process: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(r"^export HF_ENDPOINT=(\S+)\n", log.read_text(), re.MULTILINE):
            return found[1]
        time.sleep(0.02)
    raise SystemExit(f"asyncfetch serve did not start:\n{log.read_text()}")
