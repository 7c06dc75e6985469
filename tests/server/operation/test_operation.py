"""What those see who operate a server: probes, metrics, the audit log, its end."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from asyncfetch.errors import SourceError
from asyncfetch.server import Server
from asyncfetch.server.counts import COUNTERS, Counts
from asyncfetch.server.operation import audit, health
from asyncfetch.server.source import freshness
from asyncfetch.spans import MiB
from asyncfetch.storage.journal import spans_on_disk

from ...kit.canaries import TOKEN
from ...kit.fault_server import FaultServer, Mute, Stall
from ..services import Gate, metric, process_of
from ..trees import write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "org/model"
WEIGHTS = random.Random(21).randbytes(3_000_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
PAGE = f"/{NAME}/resolve/main/model.safetensors"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def source() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.hub(NAME, {"model.safetensors": WEIGHTS, "config.json": b"{}"})
        yield server


def ready(url: str) -> tuple[int, dict[str, Any]]:
    answer = httpx.get(f"{url}/readyz", timeout=30)
    told = answer.json()
    assert (answer.status_code == 200) is told["ready"]
    return answer.status_code, {name: check["ok"] for name, check in told["checks"].items()}


def test_probes(source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE", 20.0)
    with Server(tmp_path / "cache", upstream=source.url) as service:
        assert httpx.get(f"{service.url}/healthz").json() == {"status": "ok"}
        assert ready(service.url) == (200, {"cache": True, "upstream": True})
        asked = len(source.seen)
        assert ready(service.url)[0] == 200
        assert len(source.seen) == asked  # it answered a moment ago
        source.go_away()
        monkeypatch.setattr(freshness, "REACHED", 0.0)
        assert ready(service.url) == (503, {"cache": True, "upstream": False})
        assert httpx.get(f"{service.url}/healthz").status_code == 200


def test_ready_with_what_is_kept(source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(tmp_path / "cache", upstream=source.url) as service:
        assert httpx.head(service.url + PAGE).status_code == 200
    source.fault("/api/whoami-v2", Mute, forever=True)
    monkeypatch.setattr(health, "PROBE", 0.2)
    with Server(tmp_path / "cache", upstream=source.url) as service:
        answer = httpx.get(f"{service.url}/readyz", timeout=30)
        assert (answer.status_code, answer.json()["checks"]["upstream"]["ok"]) == (200, True)
        assert "what is kept is served" in answer.json()["checks"]["upstream"]["why"]
    (state,) = (tmp_path / "cache" / ".locks" / "asyncfetch").iterdir()
    with Server(tmp_path / "cache", upstream=source.url) as service:
        shutil.rmtree(state)
        state.write_bytes(b"")  # no folder any more
        assert ready(service.url) == (503, {"cache": False, "upstream": False})


def test_probes_of_a_folder_and_who_may_see_its_metrics(tmp_path: Path) -> None:
    write(tmp_path / "root" / "m" / "config.json", b"{}")
    with Server(tmp_path / "root", token=TOKEN) as server:
        assert ready(server.url) == (200, {"folder": True})
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.url}/m/resolve/main/config.json", headers=BEARER).content == b"{}"
        text = httpx.get(f"{server.url}/metrics", headers=BEARER).text
        assert 'asyncfetch_served_bytes_total{origin="own"} 2.0' in text
        (tmp_path / "root").rename(tmp_path / "moved")
        assert ready(server.url) == (503, {"folder": False})


def test_every_counter_is_told_and_no_name_is_a_label(source: FaultServer, tmp_path: Path) -> None:
    with Server(tmp_path / "cache", upstream=source.url) as service:
        for number in range(3):
            httpx.get(f"{service.url}/org/model-{number}/resolve/main/x")
        assert httpx.get(service.url + PAGE).content == WEIGHTS
        source.wait_for(lambda: metric(service.url, "fills_running") == 0)
        assert httpx.get(service.url + PAGE).content == WEIGHTS
        answer = httpx.get(f"{service.url}/metrics")
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in families.values()
            for sample in family.samples
            if family.type == "counter" and family.name.startswith("asyncfetch_")
        }
        assert len(samples) == len(COUNTERS)
        assert samples["asyncfetch_file_requests_total", "hits"] == 1
        assert samples["asyncfetch_file_requests_total", "misses"] == 1
        assert samples["asyncfetch_served_bytes_total", "fill"] == len(WEIGHTS)
        assert samples["asyncfetch_served_bytes_total", "cache"] == len(WEIGHTS)
        assert samples["asyncfetch_answers_total", "2xx"] >= 3
        assert samples["asyncfetch_answers_total", "4xx"] == 3
        assert {"process_open_fds", "process_resident_memory_bytes"} <= families.keys()
        assert families["asyncfetch_readers_running"].samples[0].value == 0
        assert "org" not in answer.text
        openmetrics = httpx.get(f"{service.url}/metrics", headers={"Accept": "application/openmetrics-text"})
        assert openmetrics.text.endswith("# EOF\n")
    counts = Counts(next((tmp_path / "cache" / ".locks" / "asyncfetch").glob("*/counts")))
    counts.begin()
    assert (counts["hits"], counts["served_bytes_cache"]) == (1, len(WEIGHTS))
    counts.end()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_audit(source: FaultServer, tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    far = f"{PAGE}?X-Signature=secret&download=true"
    with Server(tmp_path / "cache", upstream=source.url, audit=str(log)) as service:
        assert httpx.get(service.url + PAGE, headers=BEARER).content == WEIGHTS
        source.wait_for(lambda: metric(service.url, "fills_running") == 0)
        assert httpx.get(service.url + far, headers={"Range": "bytes=5-9"}).content == WEIGHTS[5:10]
        source.wait_for(lambda: [line["path"] for line in lines_of(log)].count(PAGE) == 2)
        log.rename(tmp_path / "audit.log.1")  # as logrotate does
        assert httpx.head(service.url + PAGE).status_code == 200
        assert httpx.get(f"{service.url}/{NAME}/resolve/main/absent%1b%0a").status_code == 404
        source.wait_for(lambda: log.exists() and len(lines_of(log)) == 2)
    whole, *_, part = lines_of(tmp_path / "audit.log.1")
    assert whole["who"] == f"token:{hashlib.sha256(TOKEN.encode()).hexdigest()[:16]}"
    assert (whole["method"], whole["path"], whole["status"], whole["whole"]) == ("GET", PAGE, 200, True)
    assert (whole["bytes"], whole["from"]) == (len(WEIGHTS), {"fill": len(WEIGHTS)})
    assert (part["who"], part["address"], part["range"]) == ("anonymous", "127.0.0.1", "bytes=5-9")
    assert (part["status"], part["from"], part["path"]) == (206, {"cache": 5}, PAGE)
    head, absent = lines_of(log)
    assert (head["bytes"], head["from"], absent["status"]) == (0, {}, 404)
    assert log.stat().st_mode & 0o7 == 0


def test_an_audit_log_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SourceError, match="audit log"):
        Server(tmp_path, audit=str(tmp_path / "absent" / "log"))
    write(tmp_path / "root" / "m" / "config.json", b"{}")
    with Server(tmp_path / "root", audit="/dev/full") as server:
        for _ in range(3):
            assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert caplog.text.count("audit log cannot be written") == 1


def test_an_audit_log_that_is_slow_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that nobody reads: what does not fit in is left out, and counted."""
    monkeypatch.setattr(audit, "_WAITING", 3)
    monkeypatch.setattr(audit, "_END", 0.1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write(tmp_path / "root" / "m" / "config.json", b"{}")
    with Server(tmp_path / "root", audit=str(pipe)) as server, httpx.Client() as client:
        for _ in range(400):
            assert client.get(f"{server.url}/healthz{'x' * 1500}").status_code in (401, 404)
        data = b""
        while b"left_out" not in data:
            with suppress(BlockingIOError):  # the writer has not come to it yet
                data += os.read(reader, 1 << 16)
            client.get(f"{server.url}/healthz")
    os.close(reader)
    told = [json.loads(line) for line in data.splitlines() if line.endswith(b"}") and b"left_out" in line]
    assert told[0]["left_out"] > 0


def test_told_to_stop_running_answers_end(source: FaultServer, tmp_path: Path) -> None:
    gate = Gate(1_000_000)
    source.fault(f"/storage/{SHA256}", gate, forever=True)
    with process_of(source, tmp_path, "--grace=30") as (process, url):
        with httpx.stream("GET", url + PAGE, timeout=30) as response:
            pieces = response.iter_bytes(500_000)
            begun = next(pieces)
            process.terminate()
            source.wait_for(lambda: not listens(url))
            gate.opened.set()
            assert b"".join([begun, *pieces]) == WEIGHTS
        assert process.wait(20) == 0


def listens(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.heavy
def test_told_to_stop_what_is_fetched_can_be_gone_on_with(
    source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader gets so long and no longer; every byte that came is kept; and it is no failure."""
    monkeypatch.setenv("ASYNCFETCH_CONNECTIONS", "1")  # another one would bring what is missing
    data = random.Random(22).randbytes(11 * MiB)
    stored = source.hub(NAME, {"big.safetensors": data}).storage["big.safetensors"]
    source.fault(stored, Stall(7 * MiB))
    url, etag = PAGE.replace("model.saf", "big.saf"), hashlib.sha256(data).hexdigest()
    with process_of(source, tmp_path, "--grace=0.2") as (process, service), ThreadPoolExecutor(1) as pool:
        reading = pool.submit(httpx.get, service + url, timeout=30)
        source.wait_for(lambda: metric(service, 'upstream_bytes_total{kind="fills"}') >= 7 * MiB, 20)
        process.terminate()
        with pytest.raises(httpx.HTTPError):
            reading.result(20)
        assert process.wait(20) == 0
    partial = tmp_path / "models--org--model" / "blobs" / f"{etag}.asyncfetch.incomplete"
    assert spans_on_disk(partial, len(data), identity=etag).nbytes == 7 * MiB
    with process_of(source, tmp_path) as (_, service):
        assert httpx.get(service + url, timeout=30).content == data
    assert source.sent(stored) == len(data)


def test_stdout_is_an_audit_log_too(source: FaultServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asyncfetch", "serve", f"--upstream={source.url}", f"--cache-dir={tmp_path}"]
    with subprocess.Popen(
        [*command, "--port=0", "--quiet", "--audit=-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        url = next(line for line in process.stderr if line.startswith("export ")).strip().partition("=")[2]
        assert httpx.get(f"{url}/healthz").status_code == 200
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, json.loads(out)["path"]) == (0, "/healthz")
