"""A name that is a folder here and a repository there; an endpoint that is a folder of a web server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import asyncfetch
from asyncfetch.errors import CheckpointNotFoundError
from asyncfetch.events import Event, Warned

from ..kit.fault_server import FaultServer
from ..kit.small_model import CALM, FILES, INDEX, ONE_FILE, ONE_LOOP, same

pytestmark = [pytest.mark.anyio, ONE_LOOP]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an empty folder org/model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    return tmp_path / "org" / "model"


async def load(server: FaultServer, source: str, told: list[Event], **options: Any) -> dict[str, Any]:
    options = {"endpoint": server.url, "cache_dir": "cache", "token": False, "policy": CALM, **options}
    return await asyncfetch.load_async(source, report=told.append, **options)


@pytest.mark.parametrize("content", [[], ["README.md"], ["pytorch_model.bin"]])
async def test_a_folder_without_weights(server: FaultServer, here: Path, content: list[str]) -> None:
    """It is not the repository, which nobody asks for; the error tells how to name either. With @ there is no doubt."""
    server.hub("org/model", FILES)
    for name in content:
        (here / name).write_bytes(b"x")
    told: list[Event] = []
    with pytest.raises(CheckpointNotFoundError) as caught:
        await load(server, "org/model", told)
    assert "folder here" in caught.value.hint
    assert "org/model@main" in caught.value.hint
    assert "./org/model" in caught.value.hint
    assert not server.seen
    assert same(await load(server, "org/model@main", told))
    assert not any(isinstance(event, Warned) for event in told)


@pytest.mark.parametrize("files", [FILES, ONE_FILE], ids=["index", "single"])
async def test_a_folder_with_weights(server: FaultServer, here: Path, files: dict[str, bytes]) -> None:
    """It is used, and that is said, unless it was written as a path."""
    server.hub("org/model", {})
    for name, content in files.items():
        (here / name).write_bytes(content)
    for source, warnings in (("org/model", 1), ("./org/model", 0), (str(here), 0), ("org/model/", 0)):
        told: list[Event] = []
        assert same(await load(server, source, told))
        said = [event.message for event in told if isinstance(event, Warned)]
        assert len(said) == warnings
        assert all("org/model@main" in text and "./org/model" in text for text in said)
    assert not server.seen


@pytest.mark.parametrize("slash", ["", "/"])
async def test_an_endpoint_with_a_path(server: FaultServer, here: Path, slash: str) -> None:
    """Its repositories by id and by URL, a pull request by its page; a folder beside it is not asked of the Hub."""
    repository = server.hub("org/single", FILES)
    for path, page in list(server.resources.items()):
        server.resources[f"/hf{path}"] = page
        server.resources[f"/hf{path}".replace("/resolve/main/", "/resolve/refs%2Fpr%2F3/")] = page
    server.web("/other", FILES)
    endpoint = f"{server.url}/hf{slash}"
    for source in (
        "org/single",
        f"{server.url}/hf/org/single",
        f"{server.url}/hf/org/single/tree/main",
        f"{server.url}/hf/org/single/tree/refs/pr/3",
        f"{server.url}/hf/org/single/blob/main/{INDEX}",
    ):
        assert same(await load(server, source, [], endpoint=endpoint))
    asked = {seen.path for seen in server.seen if not seen.second}
    assert all(path.startswith(("/hf/org/single/resolve/", "/hf/api/models/org/single/tree/")) for path in asked)
    assert any("refs" in path for path in asked)
    assert repository.name == "org/single"
    before = len(server.seen)
    assert same(await load(server, f"{server.url}/other/", [], endpoint=endpoint))
    assert {seen.path.rpartition("/")[0] for seen in server.seen[before:]} == {"/other"}
