"""Standard streams that are closed, full, or whose reader has left: the work is done, and nothing is a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..kit.fault_server import COMMIT, FaultServer
from ..kit.small_model import FILES, ONE_FILE
from ..kit.users import ROOT


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with FaultServer() as server:
        server.hub("org/model", FILES)
        server.hub("org/small", ONE_FILE)
        yield server.url


def run(hub: str, cache: Path, command: str, streams: str) -> subprocess.CompletedProcess[str]:
    """The command line with its streams as a shell writes them. What is left of stdout and stderr is captured."""
    script = f'exec "$0" -m asyncfetch {command} {streams}'
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["sh", "-c", script, sys.executable], env=environment, capture_output=True, text=True, timeout=50, check=False
    )


def snapshot(cache: Path) -> Path:
    return cache / "models--org--model" / "snapshots" / COMMIT


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("command", "streams"),
    [
        ("download org/model", ">&-"),
        ("download org/model", ">/dev/full"),
        ("load org/model", ">/dev/full"),
        ("download org/model --json", ">&-"),
        ("download org/model --json", ">/dev/full"),
        ("verify org/model", ">&-"),
    ],
)
def test_what_cannot_be_printed(hub: str, tmp_path: Path, command: str, streams: str) -> None:
    """As with coreutils, data that cannot be written is an error, of the disk: 7. The download is there all the same.

    It is told on stderr, also where errors are JSON on stdout.
    """
    if command.startswith("verify"):
        assert run(hub, tmp_path, "download org/model", "").returncode == 0
    ran = run(hub, tmp_path, command, streams)
    assert ran.returncode == 7
    assert "asyncfetch: stdout: " in ran.stderr
    assert "hint: What was asked for is done" in ran.stderr
    assert "Traceback" not in ran.stderr
    for name, content in FILES.items():
        assert (snapshot(tmp_path) / name).read_bytes() == content


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("command", "streams"),
    [
        ("download org/model", "2>&-"),
        ("download org/model", "<&-"),
        ("download org/model --quiet --json", "<&- 2>&-"),
        ("download org/model", "2>/dev/full"),
        ("download org/model --quiet --json", "2>/dev/full"),
    ],
)
def test_what_need_not_be_said(hub: str, tmp_path: Path, command: str, streams: str) -> None:
    """Without stdin and stderr all goes well, and what belongs on stderr does not appear on stdout."""
    ran = run(hub, tmp_path, command, streams)
    assert ran.returncode == 0
    assert str(snapshot(tmp_path)) in ran.stdout
    assert ("json" in command) == ran.stdout.startswith("{")
    assert "json" in command or len(ran.stdout.splitlines()) == 1


@pytest.mark.heavy
def test_no_file_gets_the_number_of_a_stream(hub: str, tmp_path: Path) -> None:
    """With all three closed nothing that is said ends up in a file of the cache; the code tells what happened."""
    assert run(hub, tmp_path, "download org/model", "<&- >&- 2>&-").returncode == 7
    for name, content in FILES.items():
        assert (snapshot(tmp_path) / name).read_bytes() == content
    assert run(hub, tmp_path, "download org/none", "<&- >&- 2>&-").returncode == 3


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("command", "streams"), [("--help", ">/dev/full"), ("--version", ">&-"), ("load --help", ">&-"), ("", ">/dev/full")]
)
def test_help_that_cannot_be_printed(hub: str, tmp_path: Path, command: str, streams: str) -> None:
    """What a library prints for us fails in the same way."""
    ran = run(hub, tmp_path, command, streams)
    assert ran.returncode == 7
    assert "report" not in ran.stderr
