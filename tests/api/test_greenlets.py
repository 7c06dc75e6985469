"""A process in which gevent has made greenlets of all threads: it works, or says why it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..kit.fault_server import FaultServer
from ..kit.small_model import FILES
from ..kit.users import ROOT

PATCHED = """
import sys, tempfile
late, url, folder = sys.argv[1:]
if late == "late":
    import asyncfetch
import gevent, gevent.monkey
gevent.monkey.patch_all()
import asyncfetch

def load(number):
    try:
        return len(asyncfetch.load("org/model", endpoint=url, cache_dir=f"{folder}/{number}", token=False))
    except asyncfetch.SourceError as error:
        return str(error)
"""
ONE = "print(load(1))"
TWO = """
jobs = [gevent.spawn(load, number) for number in range(2)]
gevent.joinall(jobs)
print(*[job.value for job in jobs], sep="\\n")
"""
EACH = """
for number in range(3):
    print(load(number))
client = asyncfetch.BlockingClient(endpoint=url, cache_dir=folder, token=False)
jobs = [gevent.spawn(client.load, "org/model") for _ in range(3)]
gevent.joinall(jobs)
print(*[len(job.value) for job in jobs], sep="\\n")
client.close()
"""


@pytest.mark.parametrize(
    ("when", "code", "loaded"),
    [("early", ONE, 1), ("early", TWO, 1), ("early", EACH, 6), ("late", ONE, 0)],
    ids=["one", "two", "each", "late"],
)
@pytest.mark.filterwarnings("ignore")
def test_greenlets(server: FaultServer, tmp_path: Path, when: str, code: str, loaded: int) -> None:
    """One loop in a thread is all there can be: the other call is told so, and what works."""
    pytest.importorskip("gevent", reason="needs gevent: pip install gevent")
    server.hub("org/model", FILES)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PATCHED + code, when, server.url, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ},
        cwd=ROOT,
        timeout=50,
    )
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    assert said.count("2") >= loaded
    assert all(line == "2" or "gevent has replaced the threads" in line for line in said), said
    assert all("one call at a time" in line for line in said if line != "2")
