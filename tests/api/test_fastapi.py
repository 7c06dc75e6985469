"""The service of the guide, as a process: it answers while its model loads, and ends when it is told to."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from ..kit.fault_server import FaultServer, Stall
from ..kit.small_model import ONE_FILE, SINGLE

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None, reason="NOT TESTED: the guide to FastAPI, which is not installed"
)


@pytest.fixture
def service(tmp_path: Path) -> list[str]:
    guide = (ROOT / "docs/guides/fastapi.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    (tmp_path / "service.py").write_text(code)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return [sys.executable, "-m", "uvicorn", "service:app", f"--port={port}", f"--app-dir={tmp_path}"]


def asked(command: list[str], path: str, status: int) -> httpx.Response:
    """The answer of the service, as soon as it has that status."""
    url = f"http://127.0.0.1:{command[4].partition('=')[2]}{path}"
    until = time.monotonic() + 30
    while True:
        try:
            answer = httpx.get(url)
            if answer.status_code == status:
                return answer
        except httpx.TransportError:
            pass
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("stops", [True, False], ids=["told to stop while it loads", "loaded"])
def test_the_service_of_the_guide(service: list[str], server: FaultServer, tmp_path: Path, stops: bool) -> None:
    """Probes are answered while bytes are awaited; SIGTERM leaves a partial that the next start goes on with."""
    path = server.hub("org/model", ONE_FILE).storage[SINGLE]
    if stops:
        server.fault(path, Stall(100_000), forever=True)
    blobs = tmp_path / "home/hub/models--org--model/blobs"
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(service, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert asked(service, "/healthz", 200).json() == {"status": "alive"}
            if stops:
                server.wait_for(lambda: any(blobs.glob("*.incomplete")), 20)
                assert asked(service, "/readyz", 503).json() == {"status": "loading"}
            else:
                assert asked(service, "/readyz", 200).json() == {"status": "ready"}
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=15)
        finally:
            process.kill()
    assert "Traceback" not in err
    assert any(blobs.glob("*.incomplete")) == stops
