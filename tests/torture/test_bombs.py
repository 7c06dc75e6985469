"""Small files that would take much: memory, time or stack. Each is read or refused within bounds."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ..kit.fault_server import COMMIT, Answer, Fault, FaultServer
from ..kit.strace import ROOT
from .bombs import BOMBS, INDEX_CAP

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured through /proc")

WHOLE_HEADER = 30_000_000
WHOLE_INDEX = INDEX_CAP - 1000


def run(*command: str) -> str:
    """What a Python process of its own prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_bombs(scale: Callable[[int, int], int], figure: Callable[[str], None]) -> None:
    """At their largest, 30 MB of header take no 512 MiB, 40 MiB of index no 1 GiB; a tenth of that takes an eighth."""
    whole = scale(0, 1)
    groups = [[name] for name in BOMBS] if whole else [list(BOMBS)]  # each alone, for its memory to be its own
    for names in groups:
        sizes = [(WHOLE_HEADER if name.startswith("header") else WHOLE_INDEX) // scale(10, 1) for name in names]
        command = [part for name, size in zip(names, sizes, strict=True) for part in (name, str(size))]
        for name, line in zip(names, run("-m", "tests.torture.bombs", *command).splitlines(), strict=True):
            outcome, seconds, mebibytes = json.loads(line)
            if whole:
                figure(f"{name}: {seconds:.2f} s, {mebibytes:.0f} MiB")
            assert BOMBS[name].outcome in outcome, name
            assert mebibytes < (512 if name.startswith("header") else 1024) / scale(8, 1), name
            assert seconds < 30 / scale(8, 1), name


LOAD = """
import json, sys, time
import asyncfetch
from tests.torture.fuzzing import peak_mebibytes
import asyncfetch.api.functions, numpy, ml_dtypes
policy = asyncfetch.Policy(attempts=2, patience=0, backoff=0.01)
open("/proc/self/clear_refs", "w").write("5")
before, began = peak_mebibytes(), time.process_time()
try:
    asyncfetch.load(sys.argv[1], **json.loads(sys.argv[2]), policy=policy)
    outcome = "loaded"
except asyncfetch.AsyncfetchError as error:
    outcome = f"{type(error).__name__}: {error}"[:300]
print(json.dumps([outcome, time.process_time() - began, peak_mebibytes() - before]))
"""


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 100_000_001, 100_000_000, 30_000_000])
@pytest.mark.parametrize("kept", [True, False], ids=["on disk", "served"])
def test_length_of_a_header_that_lies(length: int, kept: bool, tmp_path: Path) -> None:
    """A file of 40 MB of nothing whose header claims most of it, or more: refused, in the memory of what may be."""
    prefix, size = struct.pack("<Q", length), 40_000_000
    legal = length if length < size else 0
    if kept:
        path = tmp_path / "w.safetensors"
        path.write_bytes(prefix)
        os.truncate(path, size)
        outcome, seconds, mebibytes = json.loads(run("-c", LOAD, str(path), "{}"))
    else:
        with FaultServer() as server:
            server.web("/w", {"model.safetensors": prefix + bytes(size - 8)})
            source = f"{server.url}/w/model.safetensors"
            options = json.dumps({"cache_dir": str(tmp_path / "cache")})
            outcome, seconds, mebibytes = json.loads(run("-c", LOAD, source, options))
            assert server.sent("/w/model.safetensors") <= legal + (4 << 20)  # and what was on its way
    assert outcome.startswith("InvalidHeaderError")
    assert mebibytes < 64 + 3 * legal / (1 << 20)
    assert seconds < 10


def chunked(answer: Answer) -> Answer:
    """Without a length."""
    return replace(answer, framing="chunked")


@pytest.mark.parametrize("framing", [None, chunked], ids=["length", "chunked"])
@pytest.mark.parametrize("kind", ["hub", "web"])
def test_index_that_goes_on(kind: str, framing: Fault | None, tmp_path: Path) -> None:
    """Of an index of 128 MiB no more is received and held than the cap."""
    name = "model.safetensors.index.json"
    files = {name: b'{"weight_map":{"a":"x.safetensors"}}'.ljust(128 << 20)}
    with FaultServer() as server:
        if kind == "hub":
            path = server.hub("org/model", files).pages[name].replace(COMMIT, "main")
            source, options = "org/model", {"endpoint": server.url}
        else:
            source, options, path = server.web("/w", files), {}, f"/w/{name}"
        if framing is not None:
            server.fault(path, framing, forever=True)
        options["cache_dir"] = str(tmp_path / "cache")
        outcome, seconds, mebibytes = json.loads(run("-c", LOAD, source, json.dumps(options)))
        assert server.sent(path) < INDEX_CAP + (24 << 20)  # and what was on its way, in the buffers of two sockets
    assert outcome.startswith(("InvalidIndexError", "ProtocolError"))
    assert mebibytes < 4 * INDEX_CAP / (1 << 20)
    assert seconds < 10
