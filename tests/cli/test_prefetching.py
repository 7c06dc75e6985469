"""`asyncfetch prefetch`, against a server before another Hub."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx
import pytest

from asyncfetch.cli.main import main
from asyncfetch.cli.output import exit_code
from asyncfetch.cli.prefetching import job_error
from asyncfetch.server import Server

from ..kit.canaries import TOKEN
from ..kit.fault_server import COMMIT, FaultServer, Stall, Truncate
from ..kit.samples import ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WEIGHTS = random.Random(8).randbytes(2_000_000)


@pytest.fixture
def source() -> Iterator[FaultServer]:
    with FaultServer() as server:
        made = server.hub("org/model", {"model.safetensors": WEIGHTS, "config.json": b"{}\n"})
        server.listing(made, per_page=50, elsewhere="http://elsewhere.invalid")
        yield server


@pytest.fixture
def server(source: FaultServer, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "cache", upstream=source.url) as running:
        yield running


def stored(source: FaultServer) -> str:
    return next(path for path in source.resources if path.startswith("/storage/"))


def test_it_waits_for_the_end(source: FaultServer, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    source.fault(stored(source), Truncate(500_000))
    assert main(["prefetch", "org/model", "--server", server.url]) == 0
    out, err = capsys.readouterr()
    assert out == f"org/model@{COMMIT}\n"
    assert "2 files, 2.00 MB: 2.00 MB downloaded" in err
    assert "model.safetensors: verified" in err
    assert httpx.get(f"{server.url}/org/model/resolve/main/model.safetensors").content == WEIGHTS
    assert main(["prefetch", "org/model", f"--server={server.url}", "--quiet"]) == 0
    assert capsys.readouterr() == (f"org/model@{COMMIT}\n", "")


def test_it_leaves_the_job_alone(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prefetch", "org/model", "--server", server.url, "--no-wait", "--include", "*.json"]) == 0
    out, err = capsys.readouterr()
    job = httpx.get(f"{server.url}/api/asyncfetch/jobs/{out.strip()}").json()
    assert (job["include"], err) == (["*.json"], "")


def test_lines_of_json(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prefetch", "org/model", "--server", server.url, "--json"]) == 0
    *events, result = map(json.loads, capsys.readouterr().out.splitlines())
    assert {event["event"] for event in events} >= {"resolved", "file_verified", "finished"}
    assert (result["type"], result["command"], result["job"]["state"]) == ("result", "prefetch", "done")
    assert main(["prefetch", "org/absent", "--server", server.url, "--json"]) == 3
    error = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (error["type"], error["code"], error["exit_code"]) == ("error", "repository_not_found", 3)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["org/model", "--include", "*.h5"], 3, "*.h5"),
        (["org/model", "--exclude", "*"], 2, "leaves no file"),
        (["/etc/passwd"], 2, "/etc/passwd"),
        (["org/model", "--admin-token-env", "UNSET"], 2, "UNSET"),
    ],
)
def test_what_cannot_be(
    server: Server, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, told: str
) -> None:
    assert main(["prefetch", *arguments, "--server", server.url]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err


def test_where_no_such_server_is(
    source: FaultServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["prefetch", "org/model"]) == 2
    assert "--server" in capsys.readouterr().err
    assert main(["prefetch", "org/model", "--server", source.url]) == 6
    assert "serve --upstream" in capsys.readouterr().err
    monkeypatch.setenv("HF_ENDPOINT", source.url)
    source.go_away()
    assert main(["prefetch", "org/model"]) == 6
    assert "refused" in capsys.readouterr().err


def test_tokens(
    source: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source.token = TOKEN
    monkeypatch.setenv("ADMIN", "admin-token")
    with Server(tmp_path / "cache", upstream=source.url, admin_token="admin-token") as server:
        asking = ["prefetch", "org/model", "--server", server.url]
        assert main(asking) == 4
        assert "--admin-token-env" in capsys.readouterr().err
        assert main([*asking, "--admin-token-env", "ADMIN"]) == 3
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert main([*asking, "--admin-token-env", "ADMIN"]) == 0


def test_an_interrupt_leaves_the_job_alone(source: FaultServer, server: Server) -> None:
    source.fault(stored(source), Stall(500_000), forever=True)
    command = [sys.executable, "-m", "asyncfetch", "prefetch", "org/model", "--server", server.url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stderr is not None
        said = ""
        while "started" not in said:
            said = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    (job,) = httpx.get(f"{server.url}/api/asyncfetch/jobs").json()
    assert f"the job {job['id']} goes on at {server.url}" in said
    assert job["state"] == "running"
    httpx.delete(f"{server.url}/api/asyncfetch/jobs/{job['id']}")


def test_a_server_that_begins_anew_is_waited_for(
    source: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCFETCH_PATIENCE", "60")
    source.fault(stored(source), Stall(500_000), forever=True)
    with ExitStack() as first, ThreadPoolExecutor(1) as pool, ExitStack() as second:
        server = first.enter_context(Server(tmp_path / "cache", upstream=source.url))
        port = int(server.url.rpartition(":")[2])

        def begin_anew() -> None:
            source.wait_for(lambda: source.sent(stored(source)) == 500_000, 20)
            first.close()
            source.heal(stored(source))
            second.enter_context(Server(tmp_path / "cache", port=port, upstream=source.url))

        begun = pool.submit(begin_anew)
        assert main(["prefetch", "org/model", "--server", server.url]) == 0
        begun.result()
    assert capsys.readouterr().out == f"org/model@{COMMIT}\n"


def test_each_error_has_the_exit_code_of_a_download() -> None:
    for error in ERRORS.values():
        told = {"code": error.code, "message": error.message, "hint": error.hint}
        found = job_error({"repository": "org/model", "revision": "main", "state": "failed", "error": told})
        assert (found.code, exit_code(found), found.hint) == (error.code, exit_code(error), error.hint)
        assert "org/model" in found.message
    cancelled = job_error({"repository": "org/model", "revision": "main", "state": "cancelled", "error": None})
    assert exit_code(cancelled) == 1
