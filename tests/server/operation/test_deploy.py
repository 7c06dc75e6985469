"""The examples in `deploy`: their commands are run, and tools of the system look at them where there are any."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from ...kit.fault_server import FaultServer

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
UNIT = ROOT / "deploy" / "asyncfetch.service"
CONTAINER = ROOT / "deploy" / "Containerfile"
PAGE = "/org/model/resolve/main/model.safetensors"


@pytest.fixture
def source() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.hub("org/model", {"model.safetensors": b"x" * 200_000})
        yield server


def directives() -> dict[str, str]:
    """The last value of each setting of the unit."""
    text = UNIT.read_text().replace("\\\n", " ")
    return dict(line.split("=", 1) for line in text.splitlines() if re.match(r"\w+=", line))


def instruction(name: str) -> list[str]:
    """The words of an instruction of the container file that is written as JSON, the last of its name."""
    (*_, found) = re.findall(rf"^{name} .*?(\[.*\])$", CONTAINER.read_text().replace("\\\n", " "), re.MULTILINE)
    words: list[str] = json.loads(found)
    return words


@contextmanager
def run(command: list[str], changed: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command of an example, with some options changed, and the URL at which it serves."""
    assert command[0].endswith("asyncfetch")
    given = [next((f"{o}={v}" for o, v in changed.items() if word.startswith(f"{o}=")), word) for word in command[1:]]
    assert set(changed) <= {word.partition("=")[0] for word in command}
    with subprocess.Popen(
        [sys.executable, "-m", "asyncfetch", *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            yield process, next(line for line in process.stderr if line.startswith("export ")).strip().partition("=")[2]
        finally:
            process.kill()


def here(source: FaultServer) -> dict[str, str]:
    return {"--upstream": source.url, "--host": "127.0.0.1", "--port": "0"}


def test_the_unit_serves_and_stops(source: FaultServer, tmp_path: Path) -> None:
    text = directives()["ExecStart"]
    for name, kind in (("Cache", "CACHE"), ("State", "STATE"), ("Logs", "LOGS")):
        folder = tmp_path / name / directives()[f"{name}Directory"]
        folder.mkdir(parents=True)  # as systemd does
        text = text.replace(f"${{{kind}_DIRECTORY}}", str(folder))
    with run(shlex.split(text), here(source)) as (process, url):
        assert len(httpx.get(url + PAGE).content) == 200_000
        process.terminate()
        assert process.wait(20) == 0
    for name, part in (("Cache", "models--org--model"), ("State", "*/answers"), ("Logs", "audit.log")):
        assert [*(tmp_path / name / "asyncfetch").glob(part)]
    grace = int(re.search(r"--grace=(\d+)", text)[1])  # type: ignore[index]
    assert int(directives()["TimeoutStopSec"]) >= grace + 15  # to let go of what it fetches


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/asyncfetch/bin/asyncfetch", sys.executable))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", unit], capture_output=True, text=True
    )
    if "unrecognized option" not in told.stderr:  # before version 250
        assert told.returncode == 0, told.stdout


def test_the_container_serves_and_is_healthy(source: FaultServer, tmp_path: Path) -> None:
    command = [*instruction("ENTRYPOINT"), *instruction("CMD")]
    with run(command, {**here(source), "--cache-dir": str(tmp_path)}) as (process, url):
        assert len(httpx.get(url + PAGE).content) == 200_000
        port = url.rpartition(":")[2]
        healthy = [word.replace("8000", port) for word in instruction("HEALTHCHECK")]
        assert subprocess.run([sys.executable, *healthy[1:]]).returncode == 0
        process.terminate()
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0
    assert [json.loads(line)["path"] for line in out.splitlines()] == [PAGE, "/healthz"]
    assert subprocess.run([sys.executable, *healthy[1:]], stderr=subprocess.DEVNULL).returncode != 0


@pytest.mark.skipif(not (ROOT / "asyncfetch").is_dir(), reason="the wheel is tested, without the source")
def test_the_container_is_built_of_what_is_let_in(tmp_path: Path) -> None:
    """A wheel can be made of the files that the builder is sent."""
    lines = CONTAINER.with_name("Containerfile.dockerignore").read_text().splitlines()
    for name in (line[1:] for line in lines if line.startswith("!")):
        there = ROOT / name
        if there.is_dir():
            shutil.copytree(there, tmp_path / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (tmp_path / "src").mkdir(exist_ok=True)
            shutil.copy(there, tmp_path / "src" / name)
    built = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "wheels")]
    assert subprocess.run(built, cwd=tmp_path / "src", capture_output=True).returncode == 0
    assert len([*(tmp_path / "wheels").glob("asyncfetch-*.whl")]) == 1
