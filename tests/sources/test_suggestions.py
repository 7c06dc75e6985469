"""A misspelt repository or revision: what was meant is asked of the Hub, once, and told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

import asyncfetch
from asyncfetch.errors import AsyncfetchError, OfflineError, RepositoryNotFoundError, RevisionNotFoundError

from ..kit.canaries import TOKEN
from ..kit.fault_server import QUICK, Answer, Fault, FaultServer, LoginPage, Mute, Resource, Seen, Status

MODELS = ["org/model", "org/model-large", "org/unlike", "other/modle", "bert-base-uncased"]
DATASETS = ["org/corpus", "org/modell"]
REFS = {"branches": [{"name": "main"}, {"name": "fp16"}], "tags": [{"name": "v1.0"}, {"name": "v1.1"}]}


def searched(names: list[str], seen: Seen) -> Answer:
    """As the Hub: all that have the text in their names, or of one owner."""
    fields = {name: values[0] for name, values in parse_qs(seen.query).items()}
    owner = fields.get("author")
    found = [one for one in names if fields.get("search", "") in one and (owner is None or one.startswith(f"{owner}/"))]
    return Answer(200, {}, json.dumps([{"id": one} for one in found]).encode())


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        running.hub("org/model", {"model.safetensors": b""})
        running.resources["/api/models"] = Resource(respond=lambda seen: searched(MODELS, seen))
        running.resources["/api/datasets"] = Resource(respond=lambda seen: searched(DATASETS, seen))
        running.resources["/api/models/org/model/refs"] = Resource(json.dumps(REFS).encode())
        missing = Resource(respond=lambda _seen: Answer(401, {"x-error-code": "RepoNotFound"}))
        for name in ("org/modle", "orgg/model", "org/corpus", "org/nothing", "bert-base-uncasd", "datasets/org/corpsu"):
            running.resources[f"/{name}/"] = missing
        for revision in ("v1.2", "zzz", "mian"):
            no_revision = Resource(respond=lambda _seen: Answer(404, {"x-error-code": "RevisionNotFound"}))
            running.resources[f"/org/model/resolve/{revision}/model.safetensors.index.json"] = no_revision
        yield running


def refused(server: FaultServer, home: Path, source: str, **options: Any) -> AsyncfetchError:
    given = {"endpoint": server.url, "cache_dir": home, "token": TOKEN, "policy": QUICK, **options}
    with pytest.raises((RepositoryNotFoundError, RevisionNotFoundError, OfflineError)) as caught:
        asyncfetch.load(source, **given)
    return caught.value


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("org/modle", "Is it org/model or other/modle or org/model-large? Check the spelling"),
        ("orgg/model", "Is it org/model or org/model-large? Check the spelling"),
        ("org/corpus", "There is a dataset of that name: datasets/org/corpus. Check the spelling"),
        ("org/nothing", "Check the spelling"),
        ("bert-base-uncasd", "Is it bert-base-uncased? Check the spelling"),
        ("datasets/org/corpsu", "Is it datasets/org/corpus? Check the spelling"),
        ("org/model@v1.2", "Is it v1.1 or v1.0? Give a branch"),
        ("org/model@mian", "Is it main? Give a branch"),
        ("org/model@zzz", "It has main, fp16, v1.0 and 1 more. Give a branch"),
    ],
)
def test_what_was_meant(server: FaultServer, tmp_path: Path, source: str, hint: str) -> None:
    """Near names of the same owner and of others, the other kind of repository, branches and tags."""
    assert refused(server, tmp_path, source).hint.startswith(hint)
    asked = [seen for seen in server.seen if seen.path.startswith("/api/") and "/tree/" not in seen.path]
    assert len(asked) == (1 if "@" in source else 3)


@pytest.mark.parametrize("fault", [Status(404), Status(401), Status(503), Status(429), LoginPage, Mute])
@pytest.mark.parametrize("source", ["org/modle", "org/model@mian"])
def test_a_search_that_fails(server: FaultServer, tmp_path: Path, source: str, fault: Fault) -> None:
    """The error is the one that it was, and nothing is asked twice but over a new connection for one that is silent."""
    for path in ("/api/models", "/api/datasets", "/api/models/org/model/refs"):
        server.fault(path, fault, forever=True)
    assert refused(server, tmp_path, source).hint.startswith(("Check the spelling", "Give a branch"))
    most = 2 if fault is Mute else 1
    assert len([seen for seen in server.seen if seen.path == "/api/datasets"]) <= most
    assert len(server.to("/api/models/org/model/refs")) <= most


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[1, null, []]",
        b'[{"id": 5}]',
        b'[{"id": "org/mod\\u001b[31mle"}, {"id": "org/modle/../x"}]',
        b"[" * 9999,
    ],
)
def test_what_others_wrote(server: FaultServer, tmp_path: Path, body: bytes) -> None:
    """What could be no repository is not shown."""
    server.resources["/api/models"] = server.resources["/api/datasets"] = Resource(body)
    assert refused(server, tmp_path, "org/modle").hint.startswith("Check the spelling")
    refs = {"branches": [{"name": "mian\u001b[2J"}, 5, {"name": None}], "tags": "main"}
    server.resources["/api/models/org/model/refs"] = Resource(json.dumps(refs).encode())
    assert refused(server, tmp_path, "org/model@mian").hint.startswith("Give a branch")


def test_nobody_is_asked_offline(server: FaultServer, tmp_path: Path) -> None:
    refused(server, tmp_path, "org/modle", offline=True)
    assert not server.seen
