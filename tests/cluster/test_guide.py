"""What the guide to clusters shows runs, in a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncfetch
from asyncfetch.server import Server

from ..kit.files import sharded
from ..test_docs import IN_A_CLUSTER, Block, blocks_of, tensors
from .conftest import Raylets

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(180)]

SNIPPETS = list(blocks_of(IN_A_CLUSTER, "python"))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the model that the guide names."""
    root = tmp_path_factory.mktemp("models")
    sharded(root / "org/model", tensors())
    (root / "org/model/config.json").write_text("{}")
    with Server(root) as server:
        yield server.url


def prepared(snippet: Block, hub: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """What `snippet` gives when it is evaluated, and the names that it then has."""
    monkeypatch.setenv("HF_ENDPOINT", hub)
    names = {"asyncfetch": asyncfetch, "__name__": "snippet"}
    return eval(snippet.compiled(), names), names


@pytest.mark.parametrize("snippet", [one for one in SNIPPETS if not one.awaits()], ids=str)
@pytest.mark.usefixtures("raylets")
def test_blocking_snippets_run(
    snippet: Block, hub: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each runs; what they print of means is right."""
    prepared(snippet, hub, monkeypatch)
    if "mean_of" in snippet.text:
        expected = float(tensors()["norm.weight"].mean())
        assert capsys.readouterr().out.splitlines()[-1] == str([expected] * 3)


@pytest.mark.anyio
@pytest.mark.parametrize("snippet", [one for one in SNIPPETS if one.awaits()], ids=str)
@pytest.mark.usefixtures("raylets")
async def test_async_snippets_run(snippet: Block, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs, on each event loop."""
    running, names = prepared(snippet, hub, monkeypatch)
    await running
    assert names["state_dict"].keys() == tensors().keys()


def test_each_node_is_told_of(raylets: Raylets, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is downloaded for a cluster lies at each node, as the guide prints it."""
    (snippet,) = (one for one in SNIPPETS if "snapshot.nodes" in one.text)
    _, names = prepared(snippet, hub, monkeypatch)
    assert {node.node for node in names["snapshot"].nodes} == {*raylets.alive()}
    assert all(Path(node.path, "config.json").is_file() for node in names["snapshot"].nodes)
