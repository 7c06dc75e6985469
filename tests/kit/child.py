"""A client in a process of its own, for what is measured by the process: its memory, its descriptors.

The fault server stays in the tests' process, so that it is not measured too. A child is a fork of one process that
has imported what it needs, which is there until the tests end.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import cache
from typing import Any

from .users import ROOT
from .zygote import zygote

_IMPORTED = ("safetensors.numpy", "asyncfetch.api.functions", "asyncfetch.api.loading", "anyio._backends._asyncio")

_PREAMBLE = """
import json, resource, sys
import anyio, numpy, safetensors.numpy
import asyncfetch
from asyncfetch import errors
from asyncfetch.api import session
from asyncfetch.engine import transfer
from asyncfetch.network import transport

def peak():
    "KiB of memory that this process had at most."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def tell(**values):
    print(json.dumps(values), flush=True)
"""


@cache
def _python() -> list[str]:
    """The begin of a command that runs Python."""
    until_the_end = ExitStack()
    atexit.register(until_the_end.close)
    return until_the_end.enter_context(zygote(*_IMPORTED))


def in_child(code: str, *arguments: object, seconds: float = 50) -> dict[str, Any]:
    """Run `code`, in which `arguments` are sys.argv[1:], and return what it tells last."""
    done = subprocess.run(
        [*_python(), "-c", _PREAMBLE + code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def interrupted(code: str, **environ: str) -> float:
    """Seconds from an interrupt until a child has control back.

    `code` prints "going" when it may be interrupted, and then "interrupted" with its monotonic clock.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "going\n"
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    word, moment = output.split()[-2:]
    assert word == "interrupted"
    assert process.returncode == 0
    return float(moment) - sent
