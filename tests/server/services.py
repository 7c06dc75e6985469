"""Services before another Hub, in processes of their own, and what holds up what they fetch."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

from ..kit.fault_server import Truncate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..kit.fault_server import Answer, FaultServer

__all__ = ["Gate", "metric", "process_of"]


class Gate:
    """Holds up what lies beyond the first `cut` bytes, but for answers that begin at `beyond`, until it is opened."""

    def __init__(self, cut: int, *beyond: int) -> None:
        self.cut, self.beyond = cut, beyond
        self.opened = threading.Event()

    def __call__(self, answer: Answer) -> Answer:
        start = int(answer.headers["content-range"].removeprefix("bytes ").partition("-")[0])
        if start < self.cut and not self.opened.is_set():
            return Truncate(self.cut - start)(answer)
        if start not in self.beyond:
            self.opened.wait(60)
        return answer


@contextmanager
def process_of(source: FaultServer, cache: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service in a process of its own, which is killed in the end, and its URL."""
    given = [f"--upstream={source.url}", f"--cache-dir={cache}", "--port=0", "--quiet", *options]
    with subprocess.Popen(
        [sys.executable, "-m", "asyncfetch", "serve", *given], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            yield process, next(line for line in process.stderr if line.startswith("export ")).strip().partition("=")[2]
        finally:
            process.kill()


def metric(url: str, name: str) -> int:
    """The sum of the metrics whose names begin so, without the prefix that all have."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"asyncfetch_{name}")))
