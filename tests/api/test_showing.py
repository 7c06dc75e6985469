"""`progress=True`, and what the log tells: where people look while a model loads."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

import asyncfetch
from asyncfetch.events import FileVerified, Retrying, Waiting
from asyncfetch.progress.log import APART, LoadLog
from asyncfetch.server import Server

from ..kit.files import index_bytes, safetensors_bytes
from ..kit.samples import EVENTS
from ..kit.screen import Terminal

SHARDS = 5
LISTED = {f"layer.{n}.weight": f"model-{n + 1:05}-of-{SHARDS:05}.safetensors" for n in range(SHARDS)}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    model = tmp_path / "models" / "org" / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors.index.json").write_bytes(index_bytes(LISTED))
    for name, shard in LISTED.items():
        (model / shard).write_bytes(safetensors_bytes({name: np.ones((40, 25))}))
    return tmp_path / "models"


@pytest.mark.parametrize("way", ["progress=True", "ASYNCFETCH_PROGRESS=1"])
def test_lines_where_there_is_no_terminal(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A step each on stderr, and nothing on stdout; the setting alone does it too, but not beside a reporter."""
    if way == "ASYNCFETCH_PROGRESS=1":
        monkeypatch.setenv("ASYNCFETCH_PROGRESS", "1")
    shown = True if way == "progress=True" else None
    with Server(models) as server:
        asyncfetch.load("org/model", endpoint=server.url, cache_dir=tmp_path / "a", progress=shown)
        out, err = capsys.readouterr()
        heard = list[object]()
        asyncfetch.load("org/model", endpoint=server.url, cache_dir=tmp_path / "b", report=heard.append)
        assert capsys.readouterr().err == ""
    assert out == ""
    assert len(re.findall(r"^model-0000\d-of-00005\.safetensors: verified$", err, re.MULTILINE)) == SHARDS
    assert re.search(r"^5 files, 40\.\d kB: 40\.\d kB downloaded", err, re.MULTILINE)
    assert heard


def test_a_reporter_and_a_display(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both are told, also of a stream, whose display ends with its block."""
    heard = list[object]()
    with Server(models) as server:
        options = {"endpoint": server.url, "cache_dir": tmp_path / "hub", "report": heard.append, "progress": True}
        with asyncfetch.stream("org/model", **options) as tensors:
            assert len(dict(tensors)) == SHARDS
    assert len([event for event in heard if isinstance(event, FileVerified)]) == SHARDS
    assert "5 files, 40" in capsys.readouterr().err


TERMINAL = """
import asyncfetch, anyio, sys
async def main():
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(lambda: asyncfetch.load_async(sys.argv[1], progress=True))
anyio.run(main)
try:
    asyncfetch.load(sys.argv[1] + "/nothing", progress=True)
except asyncfetch.AsyncfetchError:
    print("refused")
"""


def test_a_terminal_gets_one_table(models: Path) -> None:
    """Two loads at once: one draws, the other writes lines; the cursor is back in the end, after an error too."""
    with Terminal(100, 30) as terminal:
        assert terminal.run([sys.executable, "-c", TERMINAL, str(models / "org" / "model")]) == 0
    text = terminal.written()
    assert text.count("5 files, 40.") >= 2
    assert "refused" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


PRINTING = """
import asyncfetch, logging, sys, time
logging.basicConfig(level=logging.INFO, format="%(message)s")  # whose handler has the stream that is stderr now
with asyncfetch.stream(sys.argv[1], progress=True) as tensors:
    for name, array in tensors:
        print(name, array.shape)
        time.sleep(0.15)  # for the table to be drawn
        print("and", end=" ")
        print("its sum", array.sum())
print("done")
"""


def test_what_a_program_prints_beside_the_table(models: Path, tmp_path: Path) -> None:
    """Each line of it is there once, and so are those of the log and the table, which is below them."""
    with Server(models) as server, Terminal(100, 24) as terminal:
        where = {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "hub")}
        assert terminal.run([sys.executable, "-c", PRINTING, "org/model"], **where) == 0
    lines = terminal.lines()
    told = [line for name in LISTED for line in (f"{name} (40, 25)", "and its sum 1000.0")]
    assert sorted(line for line in lines if line in told) == sorted(told)
    assert len([line for line in lines if re.match(r"model-0000\d", line)]) == SHARDS
    assert len([line for line in lines if line.startswith("total ")]) == 1
    assert all(lines.index(line) < lines.index("done") for line in told)
    (logged,) = (line for line in lines if re.fullmatch(r"org/model: 5 files, 40\.\d kB: .* downloaded in .*", line))
    assert lines.index(logged) < next(n for n, line in enumerate(lines) if line.startswith("total "))
    assert [line for line in lines if line][-1] == "done"


def test_the_log_of_a_load(models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At INFO what was resolved and how it ended, in two lines whatever the number of files; at DEBUG each file."""
    caplog.set_level(logging.DEBUG, "asyncfetch")
    with Server(models) as server:
        asyncfetch.load("org/model", endpoint=server.url, cache_dir=tmp_path / "hub")
        with pytest.raises(asyncfetch.RepositoryNotFoundError):
            asyncfetch.load("org/misspelt", endpoint=server.url, cache_dir=tmp_path / "hub")
    lines = [(record.levelno, record.getMessage()) for record in caplog.records if record.name == "asyncfetch"]
    told = [line for level, line in lines if level == logging.INFO]
    assert re.fullmatch(r"org/model at [0-9a-f]{12}: 5 files, 40\.\d kB", told[0])
    assert re.fullmatch(r"org/model: 5 files, 40\.\d kB: 40\.\d kB downloaded in .* s \(.*/s\)", told[1])
    assert told[2].startswith("org/misspelt: ended by RepositoryNotFoundError: ")
    assert len(told) == 3
    assert len([line for level, line in lines if level == logging.DEBUG and line.endswith(": verified")]) == SHARDS


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_a_line_for_each_request_is_a_detail(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    """One of ours is logged where our own log is at DEBUG; so is httpx's line, at INFO, for a client of the caller."""
    caplog.set_level(logging.INFO, "httpx")
    caplog.set_level(level, "asyncfetch")

    async def main(endpoint: str) -> None:
        options: dict[str, Any] = {"endpoint": endpoint, "token": False}
        await asyncfetch.load_async("org/model", cache_dir=tmp_path / "a", **options)
        async with httpx.AsyncClient() as client:
            await asyncfetch.load_async("org/model", cache_dir=tmp_path / "b", client=client, **options)

    with Server(models) as server:
        anyio.run(main, server.url)
    told = {record.name for record in caplog.records} & {"httpx", "asyncfetch.requests"}
    assert told == ({"httpx", "asyncfetch.requests"} if level == logging.DEBUG else set())


def test_a_thousand_files_that_wait_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """The same reason is told at INFO once in a while; each at DEBUG. A secret in what the caller named is cut."""
    caplog.set_level(logging.DEBUG, "asyncfetch")
    now = 0.0
    log = LoadLog("https://user:secret@host/model?signature=secret", lambda: now)
    for n in range(1000):
        log(Waiting(f"s{n}", "the server limits the request rate", 5.0))
        log(Retrying(f"s{n}", "connection reset", 1, 5, 1.0))
    now = APART
    log(Waiting("s7", "the server limits the request rate", 5.0))
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert told == [
        "https://host/model?…: s0: waiting 5 s: the server limits the request rate",
        "https://host/model?…: s0: retry 1/5 in 1 s: connection reset",
        "https://host/model?…: s7: waiting 5 s: the server limits the request rate",
    ]
    assert len(caplog.records) == 2001


def test_a_log_that_nobody_reads_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Where INFO is off, no line is made."""
    caplog.set_level(logging.WARNING, "asyncfetch")
    log = LoadLog("org/model")
    for event in EVENTS:
        log(event)
    assert not caplog.records


@pytest.mark.parametrize("value", ["yes", 1, "table"])
def test_what_progress_takes(value: object) -> None:
    """Any other value is refused before anything is asked for."""
    with pytest.raises(asyncfetch.errors.SourceError, match="progress= takes True, False or None"):
        anyio.run(lambda: asyncfetch.load_async("org/model", progress=value))  # type: ignore[arg-type]
