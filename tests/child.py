"""A client in a process of its own, for what is measured by the process: its memory, its descriptors.

The fault server stays in the tests' process, so that it is not measured too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_PREAMBLE = """
import json, resource, sys
import anyio, numpy, safetensors.numpy
import asyncfetch
from asyncfetch import errors, session, transfer, transport

def peak():
    "KiB of memory that this process had at most."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def tell(**values):
    print(json.dumps(values), flush=True)
"""


def in_child(code: str, *arguments: object, seconds: float = 50) -> dict[str, Any]:
    """Run `code`, in which `arguments` are sys.argv[1:], and return what it tells last."""
    done = subprocess.run(
        [sys.executable, "-c", _PREAMBLE + code, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told
