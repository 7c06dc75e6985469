"""How many requests a call takes, and what a listing that tells of many shards at once may get wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import GatedRepositoryError, InvalidHeaderError, MissingTensorError, OfflineError
from asyncfetch.events import Event, Warned

from ..kit.fault_server import COMMIT, QUICK, Answer, Drip, Fault, FaultServer, LoginPage, Repository, Seen, Status
from ..kit.files import safetensors_bytes, sharded_bytes

Entry = dict[str, Any]
INDEX = "model.safetensors.index.json"
TREE, TREE_NOW = (f"/api/models/org/model/tree/{revision}" for revision in (COMMIT, "main"))
SINGLE = "/org/model/resolve/main/model.safetensors"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def tensors_of(count: int, size: int) -> dict[str, np.ndarray[Any, Any]]:
    return {f"t.{number:03}": np.full(size, number, dtype=np.uint8) for number in range(count)}


def serve(server: FaultServer, shards: int, size: int, *, links: bool = True) -> Repository:
    tensors = tensors_of(shards, size)
    files = sharded_bytes(tensors, shards) if shards > 1 else {"model.safetensors": safetensors_bytes(tensors)}
    made = server.hub("org/model", {**files, "config.json": b"{}"}, links=r".*\.safetensors" if links else "none")
    server.listing(made)
    return made


def access(server: FaultServer, home: Path, **options: Any) -> dict[str, Any]:
    return {"endpoint": server.url, "cache_dir": home, "token": False, "policy": QUICK, **options}


def same(state: dict[str, Any], shards: int, size: int) -> bool:
    expected = tensors_of(shards, size)
    return list(state) == list(expected) and all(np.array_equal(state[name], expected[name]) for name in expected)


def counted(server: FaultServer) -> tuple[int, int]:
    """The requests to the Hub, and those to the storage behind its links."""
    return sum(not seen.second for seen in server.seen), sum(seen.second for seen in server.seen)


@pytest.mark.parametrize(("shards", "links"), [(4, True), (4, False), (64, True)])
def test_many_shards(server: FaultServer, tmp_path: Path, shards: int, links: bool) -> None:
    """The index, the file that could be there instead, the listing, and one request for each shard, for a link or its
    first bytes; one for the rest of it.
    """
    serve(server, shards, 100_000, links=links)
    state = asyncfetch.load("org/model", **access(server, tmp_path))
    assert same(state, shards, 100_000)
    hub, storage = (shards + 3, shards) if links else (2 * shards + 3, 0)
    assert counted(server) == (hub, storage)
    asyncfetch.load("org/model", **access(server, tmp_path))
    assert counted(server) == (hub + 1, storage), "a warm cache takes the look at the branch, and no listing"
    asyncfetch.load("org/model", **access(server, tmp_path, revision=COMMIT))
    assert counted(server) == (hub + 1, storage)


@pytest.mark.parametrize(
    ("shards", "what", "hub", "storage"),
    [
        (1, "load", 3, 1),  # the index that is not there, the listing, the file
        (1, "download", 4, 1),  # and the config
        (1, "dry_run", 3, 0),
        (1, "select", 3, 2),  # which tensors there are, the header alone tells
        (1, "rename", 3, 2),
        (1, "dtype", 2, 2),
        (1, "memory", 2, 2),
        (4, "download", 8, 4),
        (4, "dry_run", 3, 0),
        (4, "memory", 6, 8),  # its buffers begin where headers end
        (4, "inspect", 6, 4),
    ],
)
def test_each_call(server: FaultServer, tmp_path: Path, shards: int, what: str, hub: int, storage: int) -> None:
    """Large files, whose first bytes do not bring the whole."""
    serve(server, shards, 200_000)
    given = access(server, tmp_path)
    match what:
        case "load":
            assert same(asyncfetch.load("org/model", **given), shards, 200_000)
        case "select":
            assert [*asyncfetch.load("org/model", select=lambda name: True, **given)]
        case "rename":
            assert [*asyncfetch.load("org/model", rename=str.upper, **given)]
        case "dtype":
            assert [*asyncfetch.load("org/model", dtype="float64", **given)]
        case "memory":
            assert same(asyncfetch.load("org/model", storage="memory", **given), shards, 200_000)
        case "download":
            assert len(asyncfetch.download("org/model", **given).files) == shards + (2 if shards > 1 else 1)
        case "dry_run":
            assert sum(file.size for file in asyncfetch.dry_run("org/model", weights_only=True, **given).files)
        case _:
            assert len(asyncfetch.inspect("org/model", **given).tensors) == shards
    assert counted(server) == (hub, storage)


def test_a_file_that_is_wanted_by_its_name(server: FaultServer, tmp_path: Path) -> None:
    """As it is, whatever is in it, also where nothing is listed."""
    content = bytes(200_000)
    server.hub("org/model", {"model.safetensors": content})
    told: list[Event] = []
    given = access(server, tmp_path, report=told.append)
    found = asyncfetch.download("org/model", files=["model.safetensors"], **given)
    assert found.files["model.safetensors"].read_bytes() == content
    assert not [event for event in told if isinstance(event, Warned)]


@pytest.mark.parametrize("early", [False, True])
def test_streams_of_small_shards(server: FaultServer, tmp_path: Path, early: bool) -> None:
    """As when they are loaded, each goes to the disk without a lock. All of it comes with the look at its header."""
    serve(server, 5, 2_000)
    with asyncfetch.stream("org/model", early=early, **access(server, tmp_path)) as tensors:
        assert same(dict(sorted(tensors)), 5, 2_000)
    assert counted(server) == (5 + 2, 5)
    assert not [*tmp_path.glob(".locks/*/*.lock")]
    assert same(asyncfetch.load("org/model", offline=True, cache_dir=tmp_path), 5, 2_000)


def test_offline_it_is_complete(server: FaultServer, tmp_path: Path) -> None:
    """What was known by a listing is in the cache as any other, and what was not wanted is not."""
    serve(server, 4, 1_000)
    asyncfetch.load("org/model", select=["t.000", "t.002"], **access(server, tmp_path))
    assert counted(server) == (5, 2)
    assert [*asyncfetch.load("org/model", select="t.002", offline=True, cache_dir=tmp_path)] == ["t.002"]
    with pytest.raises(OfflineError):
        asyncfetch.load("org/model", offline=True, cache_dir=tmp_path)


def edited(server: FaultServer, edit: Callable[[Entry], Entry | None]) -> None:
    """Let the listings tell something else of each shard; None leaves it out."""
    honest = server.resources[TREE].respond
    assert honest is not None

    def respond(seen: Seen) -> Answer:
        answer = honest(seen)
        entries = [edit(entry) if "lfs" in entry else entry for entry in json.loads(answer.body)]
        return Answer(200, answer.headers, json.dumps([entry for entry in entries if entry]).encode())

    for tree in (TREE, TREE_NOW):
        server.resources[tree].respond = respond


def with_lfs(entry: Entry, **changed: Any) -> Entry:
    return {**entry, "lfs": {**entry["lfs"], **changed}}


@pytest.mark.parametrize(
    ("edit", "warned"),
    [
        (lambda entry: with_lfs(entry, oid="*" * 64), 0),
        (lambda entry: {name: value for name, value in entry.items() if name != "lfs"}, 0),
        (lambda entry: {**entry, "lfs": None, "oid": "1" * 40, "size": 134}, 0),
        (lambda entry: None, 0),
        (lambda entry: with_lfs(entry, oid=entry["lfs"]["oid"][::-1]), 1),
        (lambda entry: with_lfs(entry, size=entry["lfs"]["size"] + 7), 0),
        (lambda entry: with_lfs(entry, size=134), 0),
    ],
    ids=["stars", "no-lfs", "pointer", "absent", "other-hash", "longer", "shorter"],
)
def test_a_listing_that_tells_less_or_lies(
    server: FaultServer, tmp_path: Path, edit: Callable[[Entry], Entry | None], warned: int
) -> None:
    """What the Hub tells with the bytes counts for more. Who lies is asked for each shard, and that is told."""
    serve(server, 3, 100_000)
    edited(server, edit)
    events: list[Event] = []
    assert same(asyncfetch.load("org/model", report=events.append, **access(server, tmp_path)), 3, 100_000)
    assert len([event for event in events if isinstance(event, Warned)]) == warned
    assert len([*tmp_path.glob(".locks/*/*.lock")]) >= 3, "none is taken for a small file, which goes without"


@pytest.mark.parametrize(
    ("edit", "warned"),
    [
        (lambda entry: with_lfs(entry, oid="*" * 64), 0),
        (lambda entry: {**entry, "lfs": None, "oid": "1" * 40, "size": 134}, 1),
    ],
    ids=["stars", "pointer"],
)
@pytest.mark.parametrize("options", [{}, {"include": "*"}, {"files": "model.safetensors"}], ids=str)
def test_files_that_are_listed_without_their_hash(
    server: FaultServer, tmp_path: Path, edit: Callable[[Entry], Entry | None], warned: int, options: dict[str, Any]
) -> None:
    """They are asked for one by one; and so are all, once one turns out to be another one."""
    files = {"model.safetensors": safetensors_bytes(tensors_of(1, 100_000)), "config.json": b"{}", "a/b.txt": b"x"}
    server.listing(server.hub("org/model", files))
    edited(server, edit)
    events: list[Event] = []
    snapshot = asyncfetch.download("org/model", report=events.append, **access(server, tmp_path), **options)
    names = [options["files"]] if "files" in options else [*files]
    assert {name: path.read_bytes() for name, path in snapshot.files.items()} == {name: files[name] for name in names}
    assert len([event for event in events if isinstance(event, Warned)]) == (warned if options else 0)


def test_all_tell_another_size(server: FaultServer, tmp_path: Path) -> None:
    """The listing and the link: then the header tells, and the hash decides."""
    made = serve(server, 3, 100_000)
    edited(server, lambda entry: with_lfs(entry, size=90_000))
    for page in list(made.pages.values()):
        if page.endswith(".safetensors"):
            server.fault(page, lambda answer: Answer(302, {**answer.headers, "x-linked-size": "90000"}), forever=True)
    assert same(asyncfetch.load("org/model", **access(server, tmp_path)), 3, 100_000)


@pytest.mark.parametrize("fault", [Status(404), Status(503), Status(500), Status(429), Status(403), LoginPage])
def test_no_listing(server: FaultServer, tmp_path: Path, fault: Fault) -> None:
    """A server that has no API, or none that works, is asked for each shard, and nobody waits for it."""
    serve(server, 3, 1_000)
    for tree in (TREE, TREE_NOW):
        server.fault(tree, fault, forever=True)
    assert same(asyncfetch.load("org/model", **access(server, tmp_path)), 3, 1_000)
    assert (len(server.to(TREE)), len(server.to(TREE_NOW))) == (1, 1)


def test_a_gated_repository(server: FaultServer, tmp_path: Path) -> None:
    """It lists its files, and refuses them: as it says, once for each connection at the most."""
    made = serve(server, 3, 1_000)
    for page in made.pages.values():
        if page.endswith(".safetensors"):
            server.fault(page, Status(403, {"x-error-code": "GatedRepo"}), forever=True)
    for edit in (lambda entry: entry, lambda entry: with_lfs(entry, oid="*" * 64)):
        edited(server, edit)
        with pytest.raises(GatedRepositoryError):
            asyncfetch.load("org/model", **access(server, tmp_path))


@pytest.mark.parametrize("call", [asyncfetch.load, asyncfetch.download])
@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (safetensors_bytes({"other": np.zeros(4_000_000, dtype=np.uint8)}), MissingTensorError),
        (b"\xff" * 4_000_000, InvalidHeaderError),
        (safetensors_bytes({"t.000": np.zeros(4_000_000, dtype=np.uint8)})[:-1], InvalidHeaderError),
    ],
    ids=["another-tensor", "no-header", "cut-off"],
)
def test_what_cannot_be_loaded(
    server: FaultServer, tmp_path: Path, broken: bytes, error: type[Exception], call: Any
) -> None:
    """The header is looked at when the first bytes are here: no shard is brought to its end for nothing."""
    shard = "model-00001-of-00002.safetensors"
    files = {**sharded_bytes(tensors_of(2, 1_000), 2), shard: broken}
    server.listing(made := server.hub("org/model", files))
    server.fault(made.storage[shard], Drip(1 << 18, 0.02), forever=True)
    with pytest.raises(error):
        call("org/model", **access(server, tmp_path))
    assert server.sent(made.storage[shard]) < len(broken)
    assert not list(tmp_path.glob("*/snapshots/*/model-00001*"))


@pytest.mark.parametrize("call", [asyncfetch.load, asyncfetch.download])
def test_small_ones_that_cannot_be_loaded(server: FaultServer, tmp_path: Path, call: Any) -> None:
    """They are here before anybody looks: then afterwards, each time."""
    files = {**sharded_bytes(tensors_of(2, 1_000), 2)}
    files["model-00001-of-00002.safetensors"] = safetensors_bytes({"other": np.zeros(10, dtype=np.uint8)})
    server.listing(server.hub("org/model", files))
    for _ in range(2):
        with pytest.raises(MissingTensorError):
            call("org/model", **access(server, tmp_path))
