"""`asyncfetch serve` as a process of its own."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import asyncfetch
from asyncfetch.cli.commands import run
from asyncfetch.cli.serving import state_folder
from asyncfetch.errors import SourceError, StorageError
from asyncfetch.server import Server

from ..server.trees import write


class Serving:
    """A running server: its URL, and what it said before it was ready. `said` is all of it, once it has ended."""

    def __init__(self, *arguments: object, cache: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "asyncfetch", "serve", *map(str, arguments), "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        )
        assert self.process.stderr is not None
        self.before = []
        for line in self.process.stderr:
            self.before.append(line)
            if line.startswith("export HF_ENDPOINT="):
                break
        else:
            raise AssertionError("".join(self.before))
        self.url = self.before[-1].strip().partition("=")[2]
        self.said = ""


@contextmanager
def serving(*arguments: object, cache: Path) -> Iterator[Serving]:
    server = Serving(*arguments, cache=cache)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGINT)
        try:
            server.said = "".join([*server.before, server.process.communicate(timeout=15)[1]])
        finally:
            server.process.kill()
    assert server.process.returncode == 0


def test_what_download_printed_is_served(tmp_path: Path) -> None:
    """The folder that a download prints, with its links, is served under the name and the commit of the model."""
    write(tmp_path / "models" / "org" / "name" / "config.json", b"{}\n")
    weights = asyncfetch_file()
    write(tmp_path / "models" / "org" / "name" / "model.safetensors", weights)
    with Server(tmp_path / "models") as source:
        printed = asyncfetch.download("org/name", endpoint=source.url, cache_dir=tmp_path / "hub", token=False)
    with serving(printed.path, cache=tmp_path / "cache") as server:
        answer = httpx.get(f"{server.url}/org/name/resolve/main/model.safetensors?token=hf_no")
        httpx.head(f"{server.url}/org/name/resolve/{printed.commit}/config.json").raise_for_status()
    assert answer.content == weights
    assert answer.headers["etag"] == f'"{hashlib.sha256(weights).hexdigest()}"'
    assert answer.headers["x-repo-commit"] == printed.commit
    assert f"serving 1 model of {printed.path} at {server.url}\n" in server.said
    assert f" 127.0.0.1 GET /org/name/resolve/main/model.safetensors?… 200 {len(weights)} " in server.said
    (kept,) = (tmp_path / "cache" / "asyncfetch" / "serve").iterdir()
    assert kept.read_text().count("\n") == 2


def test_another_hub_is_served(tmp_path: Path) -> None:
    """By way of a cache, which is one for all tools; what was said is kept beside it."""
    weights = asyncfetch_file()
    write(tmp_path / "models" / "org" / "name" / "model.safetensors", weights)
    options = ("--cache-dir", tmp_path / "hub", "--state-dir", tmp_path / "state")
    with (
        Server(tmp_path / "models") as source,
        serving("--upstream", source.url, *options, cache=tmp_path / "cache") as server,
    ):
        assert asyncfetch.load("org/name", endpoint=server.url, cache_dir=tmp_path / "own", token=False)["a"].size == 2
    assert f"serving {source.url} at {server.url}, by way of {tmp_path / 'hub'}\n" in server.said
    with Server(tmp_path / "hub") as cached:
        assert httpx.get(f"{cached.url}/org/name/resolve/main/model.safetensors").content == weights
    assert [path.name for path in (tmp_path / "state").iterdir()] != []


def asyncfetch_file() -> bytes:
    """The bytes of a small safetensors file."""
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    return len(header).to_bytes(8, "little") + header + bytes(8)


@pytest.mark.heavy
def test_links_and_nothing_to_serve(tmp_path: Path) -> None:
    """What is left out is said, and the option that opens it; a folder without models says so."""
    outside = write(tmp_path / "outside" / "x").parent
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "linked").symlink_to(outside)
    with serving(tmp_path / "models", "--state-dir", tmp_path / "state", cache=tmp_path) as server:
        pass
    assert "serving 0 models of " in server.said
    assert "no folder in it holds files" in server.said
    assert (
        f"linked is left out: it is a link to {outside}, outside of {tmp_path / 'models'}; see --follow-links"
        in server.said
    )
    with serving(tmp_path / "models", "--follow-links", "--quiet", cache=tmp_path) as server:
        assert httpx.get(f"{server.url}/linked/resolve/main/x").content == b"data"
    assert server.said.splitlines() == server.said.splitlines()[:2]


def test_flags_that_make_no_sense(tmp_path: Path) -> None:
    """A certificate without its key, a variable that is not set, a folder that is not there."""
    for flags in (["--tls-cert", "x"], ["--tls-key", "x"], ["--token-env", "NOT_SET_AT_ALL"], ["--public-url", "x"]):
        with pytest.raises(SourceError):
            run(["serve", str(tmp_path), *flags])
    with pytest.raises(SourceError, match="missing"):
        run(["serve", str(tmp_path / "missing")])
    hub = ["--upstream", "http://localhost"]
    folder = str(tmp_path)
    for arguments in ([], [*hub, "--follow-links"], [folder, "--cache-dir", "x"], [folder, "--allow", "org/*"]):
        with pytest.raises(SourceError, match="--"):
            run(["serve", *arguments])


@pytest.mark.parametrize("inside", [True, False])
def test_a_cache_whose_folder_cannot_be_made(tmp_path: Path, inside: bool) -> None:
    """The file in the way is named, and the hint is of a server's folder: no variable of a client's helps."""
    in_the_way = write(tmp_path / "file")
    cache = in_the_way / "cache" if inside else in_the_way
    with pytest.raises(StorageError) as caught:
        run(["serve", "--upstream", "http://127.0.0.1:9", "--cache-dir", str(cache)])
    assert str(caught.value) == f"{in_the_way}: it is no folder. Choose another folder."


def test_where_hashes_are_kept(tmp_path: Path) -> None:
    """In the user's cache, where there is one."""
    assert state_folder({"XDG_CACHE_HOME": "/c"}, None) == Path("/c/asyncfetch/serve")
    assert state_folder({}, tmp_path) == tmp_path
    home = state_folder({}, None)
    assert home is None or home.parts[-3:] == (".cache", "asyncfetch", "serve")
