"""Commands in environments that are wrong: a source that needs no network does not notice, and none ends with 1."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncfetch

from ..kit.canaries import PASSWORD, TOKEN
from ..kit.fault_server import Answer, FaultServer, Resource
from ..kit.files import safetensors_bytes
from ..kit.small_model import FILES, SINGLE, TENSORS
from ..kit.users import ROOT
from ..kit.zygote import zygote

PYTHON: list[str] = []
WRONG = {
    "socks-unknown": {"ALL_PROXY": f"socks4://me:{PASSWORD}@nowhere:1"},
    "socks": {"ALL_PROXY": f"socks://me:{PASSWORD}@127.0.0.1:9"},
    "slash": {"HTTP_PROXY": f"http://me:{PASSWORD}/x@127.0.0.1:9", "HTTPS_PROXY": f"http://me:{PASSWORD}/x@[::1]:9"},
    "port": {"HTTP_PROXY": f"http://me:{PASSWORD}@h:99999", "HTTPS_PROXY": f"me:{PASSWORD}@h:x"},
    "host": {"ALL_PROXY": f"http://me:{PASSWORD}@"},
    "brackets": {"ALL_PROXY": f"http://me:{PASSWORD}@[::1", "NO_PROXY": "[::1],[,]:7,10.0.0.0/99"},
    "certificates": {"SSL_CERT_FILE": "/nowhere/ca.pem", "HF_ENDPOINT": "https://127.0.0.1:9"},
    "folder": {"SSL_CERT_DIR": "/nowhere", "SSL_CERT_FILE": "", "HF_ENDPOINT": "https://127.0.0.1:9"},
}


_WHERE_NOTHING_IS = """
import os, sys
from asyncfetch.cli.main import main
_, gone, *sys.argv[1:] = sys.argv
os.chdir(gone)
os.rmdir(gone)
sys.exit(main())
"""


@pytest.fixture(autouse=True, scope="module")
def python() -> Iterator[None]:
    """A Python that need not import everything first."""
    work = ("asyncfetch.api.functions", "asyncfetch.api.loading", "anyio._backends._asyncio")
    with zygote("asyncfetch.cli.main", *work, "rich.progress", "rich.table") as PYTHON[:]:
        yield


def command(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    environ = {"ASYNCFETCH_ATTEMPTS": "1", **environ}
    run = [*PYTHON, "-m", "asyncfetch", *map(str, arguments)]
    return subprocess.run(run, capture_output=True, text=True, env={**os.environ, **environ}, cwd=ROOT, timeout=50)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / SINGLE).write_bytes(safetensors_bytes(TENSORS))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds org/model."""
    folder = tmp_path_factory.mktemp("cache")
    with FaultServer() as server:
        server.hub("org/model", FILES)
        asyncfetch.download("org/model", endpoint=server.url, cache_dir=folder, token=False)
    return folder


@pytest.mark.heavy
@pytest.mark.parametrize("wrong", WRONG)
def test_no_network_is_needed(cache: Path, model: Path, wrong: str) -> None:
    """A folder, what is cached with --offline, and verify: the same as ever."""
    cached = ("org/model", "--cache-dir", cache)
    for arguments in (("load", model), ("inspect", model), ("load", *cached, "--offline"), ("verify", *cached)):
        ran = command(*arguments, **WRONG[wrong])
        assert ran.returncode == 0, ran.stderr
        assert "proxy" not in ran.stderr.lower()


@pytest.mark.parametrize("wrong", WRONG)
def test_a_network_that_cannot_be_had(server: FaultServer, tmp_path: Path, wrong: str) -> None:
    """An error of ours with its exit code, that names the variable or the proxy and shows no password."""
    environ = {"HF_ENDPOINT": "http://hub.example", **WRONG[wrong]}
    ran = command("download", "org/model", "--cache-dir", tmp_path / "cache", **environ)
    assert ran.returncode in (2, 6), ran.stderr
    assert "report this" not in ran.stderr
    assert "Traceback" not in ran.stderr
    proxy = "127.0.0.1:9" if wrong in ("socks", "slash") else "_PROXY"
    assert ("SSL_CERT" if "SSL_CERT" in str(environ) else proxy) in ran.stderr


def test_a_token_that_has_expired(server: FaultServer, tmp_path: Path) -> None:
    """Access denied, exit code 4, in the Hub's words."""
    server.resources["/org/model/"] = Resource(
        respond=lambda _seen: Answer(401, {"x-error-message": 'User Access Token "laptop" is expired'})
    )
    ran = command("download", "org/model", "--cache-dir", tmp_path / "c", HF_ENDPOINT=server.url, HF_TOKEN=TOKEN)
    assert ran.returncode == 4
    assert '"laptop" is expired' in ran.stderr
    assert "hint: Renew the token" in ran.stderr


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("load", "{model}"), 0),
        (("download", "org/model", "--cache-dir", "{folder}/cache"), 0),
        (("download", "org/model", "--cache-dir", "cache", "--dry-run"), 0),
        (("download", "org/model", "--cache-dir", "cache"), 7),
        (("load", "{model}", "--output", "all.safetensors"), 7),
        (("load", "./model"), 2),
    ],
)
def test_a_working_directory_that_is_gone(
    server: FaultServer, model: Path, tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    """What is named by a whole path works; what is not is an error of ours."""
    server.hub("org/model", FILES)
    gone = tmp_path / "gone"
    gone.mkdir()
    named = [argument.format(model=model, folder=tmp_path) for argument in arguments]
    if code:
        run = [*PYTHON, "-c", _WHERE_NOTHING_IS, str(gone), *named]
    else:  # Python itself begins there
        script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
        run = ["sh", "-c", script, "sh", str(gone), sys.executable, "-m", "asyncfetch", *named]
    environ = {**os.environ, "HF_ENDPOINT": server.url, "PYTHONPATH": str(ROOT), "ASYNCFETCH_ATTEMPTS": "1"}
    ran = subprocess.run(run, capture_output=True, text=True, env=environ, timeout=50)
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr
