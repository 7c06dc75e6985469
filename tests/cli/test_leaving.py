"""Ctrl-C while nothing moves, in each state in which that can be: 130 soon, one line, and nothing stays claimed.

Each of these states would last for minutes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from asyncfetch.storage.cache import RepoCache

from ..kit.fault_server import COMMIT, FaultServer, Hangup, Mute, Status, Truncate
from ..kit.files import safetensors_bytes
from ..kit.small_model import FILES, ONE_FILE, SHARD, SINGLE
from ..kit.users import ROOT

SOON = 20  # seconds: a loaded machine takes some to end an interpreter


def start(cache: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "PYTHONPATH": str(ROOT), **environ}
    return subprocess.Popen(
        [sys.executable, "-m", "asyncfetch", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def interrupt(process: subprocess.Popen[str], soon: float = SOON) -> None:
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=soon)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "asyncfetch: Interrupted." in err
    assert "Traceback" not in err


def said(process: subprocess.Popen[str], words: str) -> None:
    """Wait until a line with these words comes out on stderr."""
    assert process.stderr is not None
    assert any(words in line for line in process.stderr)


@pytest.mark.heavy
def test_waiting_for_the_lock_of_another_process(server: FaultServer, tmp_path: Path) -> None:
    """Who downloads the same file holds its lock; the next run is not held up by this one."""
    server.hub("org/model", FILES)
    cache = RepoCache(tmp_path, "org/model")
    cache.prepare()
    with cache.lock(hashlib.sha256(FILES[SHARD]).hexdigest()):
        process = start(tmp_path, "download", "org/model", "--endpoint", server.url)
        said(process, f"process {os.getpid()} is downloading this file")
        interrupt(process)
    again = start(tmp_path, "download", "org/model", "--endpoint", server.url)
    again.communicate(timeout=40)
    assert again.returncode == 0


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Status(429, {"retry-after": "200"}), "limits the request rate"),
        (Status(503, {"retry-after": "200"}), "retry 1/5 in 20"),
        (Mute, ""),
    ],
    ids=["429", "503", "silence"],
)
def test_waiting_for_a_server(server: FaultServer, tmp_path: Path, fault: object, words: str) -> None:
    """A wait that the server asks for, and a server that says nothing; before anything is known, and in a file."""
    path = server.hub("org/model", ONE_FILE).storage[SINGLE]
    environ = {"HF_HUB_DOWNLOAD_TIMEOUT": "200"}
    for faults in ([fault], [Truncate(1000), fault]):
        server.fault(path, *faults, forever=True)  # type: ignore[arg-type]
        asked = len(server.to(path))
        process = start(tmp_path, "download", "org/model", "--endpoint", server.url, **environ)
        wait_for(lambda: len(server.to(path)) >= asked + len(faults))  # noqa: B023
        if words and len(faults) == 1:
            said(process, words)
        interrupt(process)
        server.heal(path)
    assert not list(tmp_path.rglob("*.lock.*"))


def test_an_outage(server: FaultServer, tmp_path: Path) -> None:
    """While the network is away and patience lasts."""
    path = server.hub("org/model", ONE_FILE).storage[SINGLE]
    server.fault(path, Truncate(1000), Hangup, forever=True)
    process = start(tmp_path, "download", "org/model", "--endpoint", server.url, "--patience", "1h")
    said(process, "(for 60 min at most)")
    interrupt(process)


@pytest.mark.heavy
@pytest.mark.parametrize("arguments", [["verify", "org/model"], ["load", "org/model", "--verify-cache", "--offline"]])
def test_hashing_a_big_file(tmp_path: Path, arguments: list[str]) -> None:
    """A cached file of 200 GB is left in the middle of its hash."""
    size = 200 * 10**9
    head = safetensors_bytes({"w": ("U8", (0,), b"")})
    header = head.replace(b'"shape":[0],"data_offsets":[0,0]', f'"shape":[{size}],"data_offsets":[0,{size}]'.encode())
    header = struct.pack("<Q", len(header) - 8) + header[8:]
    blob = tmp_path / "models--org--model" / "blobs" / ("5" * 64)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(header)
    os.truncate(blob, len(header) + size)
    snapshot = tmp_path / "models--org--model" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / SINGLE).symlink_to(f"../../blobs/{blob.name}")
    refs = tmp_path / "models--org--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    process = start(tmp_path, *arguments)
    reads = Path(f"/proc/{process.pid}/io")

    def hashes() -> bool:  # more has been read than all that is imported
        assert process.poll() is None, process.communicate()
        return int(reads.read_text().split()[1]) > 500 * 10**6

    wait_for(hashes)
    interrupt(process, 12)  # seconds: less than the 15 for which a loop waits for what does not end


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_reads_no_more(server: FaultServer, tmp_path: Path, options: list[str]) -> None:
    """What is printed fills the pipe; an interrupt ends it all the same."""
    tensors = {f"layer.{n}": np.zeros(1, np.uint8) for n in range(5000)}
    server.hub("org/model", {SINGLE: safetensors_bytes(tensors)})
    process = start(tmp_path, "load", "org/model", "--endpoint", server.url, *options)
    assert process.stdout is not None
    pipe = process.stdout.fileno()

    def waiting() -> int:
        return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0])

    wait_for(lambda: waiting() >= 60_000)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(timeout=SOON) == 130
    finally:
        process.kill()
        process.communicate()
