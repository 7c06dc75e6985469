"""What is asked for beside the index where nothing is cached: at once, and believed only where it is of one commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import asyncfetch
from asyncfetch.events import Event, Retrying, Waiting, Warned

from ..kit.fault_server import COMMIT, QUICK, Answer, FaultServer, Seen, Status
from ..kit.files import safetensors_bytes, sharded_bytes

LATER = "b" * 40
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
TREE = "/api/models/org/model/tree/main"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def files_of(shards: int, value: int, size: int = 100_000) -> dict[str, bytes]:
    tensors = {f"t.{number}": np.full(size, value, dtype=np.uint8) for number in range(shards)}
    return sharded_bytes(tensors, shards) if shards > 1 else {SINGLE: safetensors_bytes(tensors)}


def page(name: str, revision: str = "main") -> str:
    return f"/org/model/resolve/{revision}/{name}"


def load(server: FaultServer, home: Path, events: list[Event] | None = None, **options: Any) -> set[int]:
    """The values of all tensors."""
    report = None if events is None else events.append
    given = {"endpoint": server.url, "cache_dir": home, "token": False, "policy": QUICK, "report": report, **options}
    return {int(value) for tensor in asyncfetch.load("org/model", **given).values() for value in np.unique(tensor)}


def before(server: FaultServer, path: str, work: Callable[[], object]) -> None:
    """Do `work` before each answer of `path`."""
    resource = server.resources.get(path) or replace(server.resources["/org/model/"])
    honest = resource.respond or (lambda _seen: Answer(200, resource.headers, resource.body))

    def respond(seen: Seen) -> Answer:
        work()
        return honest(seen)

    server.resources[path] = replace(resource, respond=respond)


@pytest.mark.parametrize("shards", [1, 3])
def test_asked_together(server: FaultServer, tmp_path: Path, shards: int) -> None:
    """No one is answered before all are asked for."""
    server.listing(server.hub("org/model", files_of(shards, 7)))
    asked = {path: threading.Event() for path in (page(INDEX), page(SINGLE), TREE)}
    late: list[str] = []

    def wait(path: str) -> None:
        asked[path].set()
        late.extend(other for other in asked if not asked[other].wait(5))

    for path in asked:
        before(server, path, partial(wait, path))
    assert load(server, tmp_path, policy=replace(QUICK, read_timeout=60)) == {7}
    assert not late
    assert (tmp_path / "models--org--model" / "refs" / "main").read_text() == COMMIT


@pytest.mark.parametrize("shards", [1, 3])
def test_a_commit_is_asked_for_together(server: FaultServer, tmp_path: Path, shards: int) -> None:
    """Its listing is kept; that of a branch may be another commit's."""
    server.listing(server.hub("org/model", files_of(shards, 7)))
    assert load(server, tmp_path, revision=COMMIT) == {7}
    count = len(server.seen)
    assert len(server.to(TREE.replace("main", COMMIT))) == 1
    kept = [*tmp_path.glob("*/listings/*")]
    assert [path.stem for path in kept] == ([COMMIT] if shards > 1 else [])
    assert load(server, tmp_path, revision=COMMIT) == {7}
    assert len(server.seen) == count
    assert load(server, tmp_path / "other") == {7}
    assert not [*(tmp_path / "other").glob("*/listings/*")]


def test_a_branch_that_moves_meanwhile(server: FaultServer, tmp_path: Path) -> None:
    """The index tells the commit. What else the branch tells is of a later one, which nobody gets to see."""
    server.listing(server.hub("org/model", files_of(3, 8), commit=LATER), commit=LATER)
    later = {path: server.resources[path] for path in (page(SINGLE), TREE) if path in server.resources}
    server.listing(server.hub("org/model", files_of(3, 7)))
    server.resources |= later  # the same index, and other shards
    events: list[Event] = []
    assert load(server, tmp_path, events) == {7}
    assert len([event for event in events if isinstance(event, Warned)]) == 1
    others = files_of(3, 8)
    others[INDEX] += b" "
    server.listing(server.hub("org/model", others, commit=LATER), commit=LATER)
    later = {TREE: server.resources[TREE]}
    server.listing(server.hub("org/model", files_of(3, 7)))
    server.resources |= later  # another index
    events.clear()
    assert load(server, tmp_path / "other", events) == {7}
    assert not [event for event in events if isinstance(event, Warned)]


@pytest.mark.parametrize("gone", [False, True])
def test_a_single_file_of_a_branch_that_moves(server: FaultServer, tmp_path: Path, gone: bool) -> None:
    """The commit of the answer that there is no index counts, also for the file that is there instead."""
    server.listing(server.hub("org/model", {"x": b""} if gone else files_of(1, 8), commit=LATER), commit=LATER)
    later = replace(server.resources["/org/model/"] if gone else server.resources[page(SINGLE)])
    server.listing(server.hub("org/model", files_of(1, 7)))
    server.resources[page(SINGLE)] = later
    assert load(server, tmp_path) == {7}
    assert (tmp_path / "models--org--model" / "refs" / "main").read_text() == COMMIT


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("status", [429, 503, 401, 500])
def test_refusals_of_what_need_not_be(server: FaultServer, tmp_path: Path, shards: int, status: int) -> None:
    """They hold up nobody, and nobody is told: what is needed is asked for again."""
    server.listing(server.hub("org/model", files_of(shards, 7)))
    for path in (page(SINGLE), TREE):
        server.fault(path, Status(status, {"retry-after": "3"}), forever=True)
    events: list[Event] = []
    assert load(server, tmp_path, events) == {7}
    assert not [event for event in events if isinstance(event, Retrying | Waiting | Warned)]


@pytest.mark.anyio
async def test_the_callers_client_is_asked_for_what_is_needed(server: FaultServer, tmp_path: Path) -> None:
    """What is not needed would be cancelled, and a hand-shake that is cancelled there leaves its socket open."""
    server.listing(server.hub("org/model", files_of(1, 7)))
    async with httpx.AsyncClient() as client:
        options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path, "token": False, "client": client}
        await asyncfetch.load_async("org/model", **options)
    asked = {seen.path for seen in server.seen}
    assert {page(INDEX), page(SINGLE, COMMIT)} <= asked
    assert not asked & {page(SINGLE), TREE}
