"""The engine over real sockets: spans, retry and resume, verification, cancellation, kill -9."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

import asyncfetch
from asyncfetch.engine import receiving, transfer
from asyncfetch.engine.schedule import Growth
from asyncfetch.errors import (
    AsyncfetchError,
    ChangedError,
    ChecksumMismatchError,
    DiskFullError,
    LinkExpiredError,
    NetworkError,
)
from asyncfetch.events import Event, FileStarted, FileVerified, Finished, Resolved, Retrying, Warned
from asyncfetch.network.body import Body
from asyncfetch.storage import partial
from asyncfetch.storage.cache import RepoCache

from ..kit.fault_server import (
    COMMIT,
    LOOK,
    OK,
    QUICK,
    Chunked,
    Drip,
    Expire,
    Fault,
    FaultServer,
    Flip,
    Gzip,
    Headers,
    IgnoreRange,
    Late,
    Repository,
    Reset,
    Stall,
    Status,
    Truncate,
    UntilClose,
)
from ..kit.files import safetensors_bytes, sharded_bytes

PREFIX = 65536  # bytes of a shard that are read with its metadata
SINGLE = "model.safetensors"
_RANDOM = np.random.default_rng(7)
BIG = {"w": _RANDOM.integers(0, 255, 2_000_000, dtype=np.uint8)}
TENSORS = {f"layer.{n}.weight": _RANDOM.integers(0, 255, (100, 1500), dtype=np.uint8) for n in range(6)}
BIG_FILE = safetensors_bytes(BIG)
SHARDS = sharded_bytes(TENSORS, 3)
ONE_LANE = replace(QUICK, connections=1, min_split=1 << 30)


async def load(server: FaultServer, cache: Path, **options: Any) -> dict[str, Any]:
    """The repository's state dict."""
    options = {"policy": QUICK, "token": False, **options}
    if options.pop("kind", "own") == "client":
        async with httpx.AsyncClient(verify=False) as client:
            return await load(server, cache, client=client, **options)
    return await asyncfetch.load_async("org/model", endpoint=server.url, cache_dir=cache, **options)


def same(state: Mapping[str, Any], expected: Mapping[str, np.ndarray]) -> bool:
    return list(state) == list(expected) and all(np.array_equal(state[name], expected[name]) for name in expected)


def bodies(server: FaultServer, path: str) -> list[Any]:
    """The requests but for those that look at the header alone."""
    return [seen for seen in server.to(path) if not seen.looks]


def looked(server: FaultServer, path: str) -> int:
    """How many bytes the first look at the header brought."""
    return next((PREFIX for seen in server.to(path) if seen.looks), 0)


def leftovers(cache: Path) -> list[str]:
    """What an interrupted transfer leaves under blobs."""
    return sorted(path.name for path in cache.glob("models--*/blobs/*incomplete"))


def snapshots(cache: Path) -> list[Path]:
    return list(cache.glob("models--*/snapshots/*/*"))


def blobs(cache: Path) -> list[Path]:
    return [path for path in cache.glob("models--*/blobs/*") if not path.name.endswith("incomplete")]


def single(server: FaultServer, **options: Any) -> tuple[Repository, str]:
    """A repository of one large file: itself, and the path at which storage serves the file."""
    repository = server.hub("org/model", {SINGLE: BIG_FILE}, **options)
    return repository, repository.storage.get(SINGLE) or repository.pages[SINGLE]


# -- the plain way -------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
@pytest.mark.parametrize("storage", ["disk", "memory"])
@pytest.mark.parametrize("links", [r".*\.safetensors", "none"], ids=["links", "direct"])
async def test_shards(server: FaultServer, tmp_path: Path, kind: str, storage: str, links: str) -> None:
    """Behind signed links or served by the Hub itself, to disk or to memory: the right tensors, each byte once."""
    repository = server.hub("org/model", SHARDS, links=links)
    events: list[Event] = []
    state = await load(server, tmp_path, storage=storage, kind=kind, report=events.append)
    assert same(state, TENSORS)
    assert all(array.flags.writeable for array in state.values())
    shards = {name: body for name, body in SHARDS.items() if name.endswith(".safetensors")}
    for name, body in shards.items():
        path = repository.storage.get(name, repository.pages[name])
        assert server.sent(path) == len(body)
    finished = events[-1]
    assert isinstance(events[0], Resolved)
    assert isinstance(finished, Finished)
    assert finished.downloaded == finished.nbytes == sum(map(len, shards.values()))
    assert sorted(event.file for event in events if isinstance(event, FileVerified)) == sorted(shards)
    if storage == "memory":
        assert not os.listdir(tmp_path)
    else:
        assert not leftovers(tmp_path)


@pytest.mark.anyio
@pytest.mark.parametrize("fault", [OK, Chunked, UntilClose, IgnoreRange])
@pytest.mark.parametrize("storage", ["disk", "memory"])
async def test_plain_web_servers(server: FaultServer, tmp_path: Path, fault: Fault, storage: str) -> None:
    """A folder of any server: without ranges, without lengths, with HTTP/1.0."""
    url = server.web("/files", SHARDS)
    for name in SHARDS:
        server.fault(f"/files/{name}", fault, forever=True)
    checksums = {
        name: f"sha256:{hashlib.sha256(body).hexdigest()}" for name, body in SHARDS.items() if "json" not in name
    }
    state = await asyncfetch.load_async(url, cache_dir=tmp_path, storage=storage, policy=QUICK, checksums=checksums)
    assert same(state, TENSORS)


@pytest.mark.anyio
@pytest.mark.parametrize("framing", [Chunked, UntilClose])
async def test_web_server_without_ranges_and_lengths(server: FaultServer, tmp_path: Path, framing: Fault) -> None:
    """Where nothing else tells the size of a shard its header does: an end that comes too early is seen."""
    url, path = server.web("/files", {SINGLE: BIG_FILE}), f"/files/{SINGLE}"
    whole: Any = (IgnoreRange, framing)
    server.fault(path, whole, (*whole, Truncate(900_000)), whole, forever=True)
    assert same(await asyncfetch.load_async(url, cache_dir=tmp_path / "a", policy=QUICK), BIG)
    assert len(server.to(path)) == 3
    server.heal(path)
    server.fault(path, whole, (*whole, Truncate(900_000)), forever=True)
    with pytest.raises(NetworkError):
        await asyncfetch.load_async(url, cache_dir=tmp_path / "b", policy=QUICK)
    assert not blobs(tmp_path / "b")


@pytest.mark.anyio
async def test_mocked_client(tmp_path: Path) -> None:
    """A client over httpx.MockTransport, whose answers are read before they are sent."""

    def answer(request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        if name not in SHARDS:
            return httpx.Response(404)
        ranged = request.headers.get("range", "")
        if not ranged:
            return httpx.Response(200, content=SHARDS[name])
        start, last = map(int, ranged.removeprefix("bytes=").split("-"))
        piece = SHARDS[name][start : last + 1]
        size = len(SHARDS[name])
        return httpx.Response(
            206, content=piece, headers={"content-range": f"bytes {start}-{start + len(piece) - 1}/{size}"}
        )

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        state = await asyncfetch.load_async("http://mock/files/", cache_dir=tmp_path, policy=QUICK, client=client)
    assert same(state, TENSORS)


# -- retry and resume ----------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
@pytest.mark.parametrize("storage", ["disk", "memory"])
@pytest.mark.parametrize("fault", [Truncate, Reset, Stall])
async def test_resumes_where_it_broke(server: FaultServer, tmp_path: Path, kind: str, storage: str, fault: Any) -> None:
    """After a break a Range is sent that begins at the first missing byte, and no byte comes twice."""
    _, path = single(server)
    server.fault(path, LOOK, fault(500_000), fault(300_000))
    events: list[Event] = []
    policy = replace(ONE_LANE, read_timeout=0.1)
    state = await load(server, tmp_path, kind=kind, storage=storage, policy=policy, report=events.append)
    assert same(state, BIG)
    if (kind, fault) == ("client", Reset):  # what the client's own buffers held at a RST may be lost
        assert looked(server, path) < bodies(server, path)[1].start <= looked(server, path) + 500_000
        return
    assert looked(server, path) == (PREFIX if storage == "memory" else 0)
    assert [seen.start - looked(server, path) for seen in bodies(server, path)] == [0, 500_000, 800_000]
    assert server.sent(path) == len(BIG_FILE)
    retries = [event for event in events if isinstance(event, Retrying)]
    assert [(event.file, event.attempt) for event in retries] == [(SINGLE, 1), (SINGLE, 1)]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
@pytest.mark.parametrize("every", [100_000, 700_000])
async def test_link_that_drops_all_the_time(server: FaultServer, tmp_path: Path, kind: str, every: int) -> None:
    """Breaks without end are survived as long as bytes come, and cost at most a tenth more bytes."""
    _, path = single(server)
    server.fault(path, LOOK, Truncate(every), forever=True)
    assert same(await load(server, tmp_path, kind=kind), BIG)
    assert server.sent(path) <= 1.1 * len(BIG_FILE)


@pytest.mark.anyio
async def test_no_progress_gives_up(server: FaultServer, tmp_path: Path) -> None:
    """A link that brings a few bytes and breaks, again and again, ends in the network's error; the bytes stay."""
    _, path = single(server)
    server.fault(path, LOOK, Truncate(100), forever=True)
    with pytest.raises(NetworkError):
        await load(server, tmp_path, policy=ONE_LANE)
    assert len(bodies(server, path)) == QUICK.attempts
    server.heal(path)
    assert same(await load(server, tmp_path, policy=ONE_LANE), BIG)
    assert bodies(server, path)[-1].start == 100 * QUICK.attempts


@pytest.mark.anyio
async def test_a_mirror_with_etags_of_its_own(server: FaultServer, tmp_path: Path) -> None:
    """The hash comes from X-Linked-Etag and decides; the ETag that the mirror serves holds what `open` reads."""
    repository = server.hub("org/model", SHARDS, links="nothing")
    for name in SHARDS:
        if name.endswith(".safetensors"):
            linked = hashlib.sha256(SHARDS[name]).hexdigest()
            own = Headers(x_linked_etag=f'"{linked}"', etag='"of-the-mirror"')
            server.fault(repository.pages[name], own, forever=True)
    assert same(await load(server, tmp_path), TENSORS)
    assert not any("if-range" in seen.headers for seen in server.seen)
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path / "none", "token": False, "policy": QUICK}
    async with asyncfetch.open_async("org/model", **options) as checkpoint:
        assert same(await checkpoint.state_dict(), TENSORS)
    later = [seen for seen in server.seen if seen.headers.get("if-range")]
    assert later
    assert {seen.headers["if-range"] for seen in later} == {'"of-the-mirror"'}


@pytest.mark.anyio
async def test_one_big_file_over_many_connections(server: FaultServer, tmp_path: Path) -> None:
    """Idle connections take pieces of what is in flight; breaks in any of them are mended; the bytes are right."""
    repository, path = single(server)
    pace = Drip(8_192, 0.01)
    server.fault(path, LOOK, *[(pace, Truncate(n)) for n in (40_000, 150_000, 70_000)], pace, forever=True)
    policy = replace(QUICK, min_split=100_000, connections=8, burst=32_768)
    assert same(await load(server, tmp_path, policy=policy), BIG)
    starts = [seen.start for seen in bodies(server, path)]
    assert len({seen.connection for seen in bodies(server, path)}) >= 8
    assert len(starts) == len(set(starts))
    (blob,) = blobs(tmp_path)
    assert blob.name == hashlib.sha256(repository.files[SINGLE]).hexdigest()


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many lanes run, noted each time that some may be added. The machine has one processor."""
    add_lanes, noted = transfer.Transfer._add_lanes, list[int]()

    def add_and_count(self: transfer.Transfer) -> None:
        add_lanes(self)
        noted.append(self._running)

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(transfer.Transfer, "_add_lanes", add_and_count)
    return noted


@pytest.mark.anyio
@pytest.mark.parametrize(("far", "together"), [(0.02, 8), (3600, 4)], ids=["far", "near"])
async def test_where_the_bytes_are_far_away_all_connections_start_at_once(
    server: FaultServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    running: list[int],
    far: float,
    together: int,
) -> None:
    """Few connections do not fill a long line; near by, more are opened only when they are seen to help.

    The first answer of who serves the bytes tells. Until it is here the pieces are for many, so that none is too large.
    """
    monkeypatch.setattr(transfer, "_FAR", far)
    monkeypatch.setattr(Growth, "observe", lambda *_: False)
    _, path = single(server)
    server.fault(path, Late(0.03), (Late(0.03), Drip(65_536, 0.01)), forever=True)
    policy = replace(QUICK, min_split=100_000, connections=8)
    assert same(await load(server, tmp_path, policy=policy), BIG)
    # Their number at a time: a connection whose span is cut short is closed, and another one opened.
    assert max(running) == together
    assert len({seen.connection for seen in bodies(server, path)}) >= together
    assert sorted(seen.start for seen in bodies(server, path))[:4] == [0, 100_000, 200_000, 300_000]


@pytest.mark.anyio
@pytest.mark.parametrize(("busy", "fewest", "most"), [(False, 5, 8), (True, 1, 4)], ids=["idle loop", "busy loop"])
async def test_no_more_connections_than_the_event_loop_has_time_for(
    server: FaultServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    running: list[int],
    busy: bool,
    fewest: int,
    most: int,
) -> None:
    """The bytes of a caller's client pass through the event loop, whose processor is the limit then."""
    monkeypatch.setattr(Growth, "IDLE_SHARE", 0.9)  # whatever else the machine does
    monkeypatch.setattr(Growth, "GAIN", 0.0)
    monkeypatch.setattr(time, "thread_time", time.monotonic if busy else lambda: 0.0)
    _, path = single(server)
    server.fault(path, LOOK, Drip(8_192, 0.02), forever=True)
    policy = replace(QUICK, min_split=100_000, connections=8)
    assert same(await load(server, tmp_path, kind="client", policy=policy), BIG)
    assert fewest <= max(running) <= most


@pytest.mark.anyio
async def test_small_shards_over_many_slow_connections(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each brings little, even small shards are shared among as many as bring more, with few requests."""
    monkeypatch.setattr(Growth, "IDLE_SHARE", 2.0)  # whatever else the machine does
    monkeypatch.setattr(Growth, "GAIN", 0.0)
    tensors = dict.fromkeys("ab", BIG["w"][:1_500_000])
    paths = server.hub("org/model", sharded_bytes(tensors, 2)).storage.values()
    for path in paths:
        server.fault(path, LOOK, Drip(8_192, 0.02), forever=True)
    assert same(await load(server, tmp_path, policy=replace(QUICK, min_split=16 << 20, connections=8)), tensors)
    asked = [seen for path in paths for seen in bodies(server, path)]
    assert len({seen.connection for seen in asked}) >= 6
    assert len(asked) <= 16


@pytest.mark.anyio
async def test_a_limited_rate_makes_no_connection_look_slow(server: FaultServer, tmp_path: Path) -> None:
    """What a connection has in its socket is not fetched twice to share what the limit holds back anyway."""
    tensors = {"a": BIG["w"].repeat(5), **dict.fromkeys("bcd", BIG["w"])}
    paths = server.hub("org/model", sharded_bytes(tensors, 4)).storage.values()
    policy = replace(QUICK, min_split=16 << 20, connections=4, bandwidth_limit=20_000_000)
    assert same(await load(server, tmp_path, policy=policy), tensors)
    assert len([seen for path in paths for seen in bodies(server, path)]) == 4


class SlowHash:
    """A real hash on a slow processor: 20 MB/s."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, data: memoryview) -> None:
        self._hash.update(data)
        time.sleep(len(data) / 20e6)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


@pytest.mark.anyio
@pytest.mark.parametrize("idle_share", [0.0, 2.0], ids=["the processor is the limit", "the network is"])
async def test_lanes_do_not_run_away_from_the_hash(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, idle_share: float
) -> None:
    """Where the processor is the limit, a hash that fell behind is not left for the end, when nothing else is to do."""
    tensors = {"w": BIG["w"].repeat(6)}
    path = server.hub("org/model", {SINGLE: safetensors_bytes(tensors)}).storage[SINGLE]
    server.fault(path, LOOK, Drip(65_536, 0.004), forever=True)
    monkeypatch.setattr(partial, "new_hash", lambda *_: SlowHash())
    monkeypatch.setattr(receiving, "_BACKLOG", 100_000)
    monkeypatch.setattr(receiving, "_MOST_BACKLOG", 400_000)
    monkeypatch.setattr(Growth, "IDLE_SHARE", idle_share)
    accept, ahead = partial.Partial.accept, []

    def watch(self: partial.Partial, offset: int, data: memoryview) -> None:
        if self.backlog > 600_000:
            ahead.append(len(data) if offset > self.frontier else 0)
        accept(self, offset, data)

    monkeypatch.setattr(partial.Partial, "accept", watch)
    policy = replace(QUICK, min_split=100_000, connections=4, burst=32_768)
    assert same(await load(server, tmp_path, policy=policy), tensors)
    assert len(ahead) > 10
    if idle_share:
        assert sum(ahead) > 1_000_000
    else:  # what was under way when the hash had fallen behind, and no more
        assert sum(ahead) < 1_000_000


@pytest.mark.anyio
async def test_nothing_is_split_where_there_are_no_ranges(server: FaultServer, tmp_path: Path) -> None:
    """A server that sends the whole file to a range is not asked piece by piece once that is known."""
    _, path = single(server)
    server.fault(path, LOOK, IgnoreRange, forever=True)
    assert same(await load(server, tmp_path, policy=replace(QUICK, min_split=50_000, connections=2)), BIG)
    # Each connection may have begun with a piece of its own; all the rest comes with one more request.
    assert {seen.status for seen in bodies(server, path)} == {200}
    assert len(bodies(server, path)) <= 3


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
async def test_few_connections_for_many_shards(
    tmp_path: Path, tls: bool, kind: str, request: pytest.FixtureRequest
) -> None:
    """Connections that brought a shard to its end bring the next one."""
    context = request.getfixturevalue("trusted") if tls else None
    tensors = {f"t{n}": np.full(80_000, n, dtype=np.uint8) for n in range(16)}
    with FaultServer(context) as server:
        server.hub("org/model", sharded_bytes(tensors, 16))
        assert same(await load(server, tmp_path, kind=kind, policy=replace(QUICK, connections=3)), tensors)
        assert len(server.seen) > 48
        assert server.accepted <= 2 * 3


# -- links and changes ---------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
async def test_expired_link_is_renewed(server: FaultServer, tmp_path: Path, kind: str) -> None:
    """A link that expires half-way is asked for again, and the file goes on at the same byte."""
    repository, path = single(server)
    server.fault(path, LOOK, Expire(500_000), OK, Expire(400_000))
    assert same(await load(server, tmp_path, kind=kind, policy=ONE_LANE), BIG)
    seen, pages = bodies(server, path), server.to(repository.pages[SINGLE])
    assert [one.status for one in seen] == [206, 403, 206, 403, 206]
    assert [one.start for one in seen] == [0] + 2 * [500_000] + 2 * [900_000]
    assert len({one.query for one in seen}) == 3
    assert len(pages) == 2 + (kind == "client")  # ours asks for the first link by the name of the branch


@pytest.mark.anyio
async def test_one_of_many_connections_renews_the_link(server: FaultServer, tmp_path: Path) -> None:
    """Where a link expires for all of them at once, the source is asked once, and all use its answer."""
    repository, path = single(server)
    server.fault(path, LOOK, *4 * [(Drip(20_000, 0.01), Expire(100_000))])
    server.fault(repository.pages[SINGLE], Late(0.3))
    policy = replace(QUICK, connections=4, min_split=100_000, read_timeout=2)
    assert same(await load(server, tmp_path, policy=policy), BIG)
    assert len([seen for seen in bodies(server, path) if seen.status == 403]) > 1
    assert len(server.to(repository.pages[SINGLE])) == 1


@pytest.mark.anyio
async def test_link_that_is_always_refused(server: FaultServer, tmp_path: Path) -> None:
    """A fresh link that is refused too: the error comes after the usual attempts."""
    _, path = single(server)
    server.fault(path, LOOK, Status(403), forever=True)
    with pytest.raises(LinkExpiredError) as caught:
        await load(server, tmp_path, policy=ONE_LANE)
    assert caught.value.status == 403
    assert len(bodies(server, path)) == QUICK.attempts
    assert len({seen.query for seen in bodies(server, path)}) == QUICK.attempts


@pytest.mark.anyio
async def test_trouble_while_renewing(server: FaultServer, tmp_path: Path) -> None:
    """When the Hub fails while it is asked for a new link, it is the new link that is asked for again."""
    repository, path = single(server)
    server.fault(path, LOOK, Expire(500_000))
    server.fault(repository.pages[SINGLE], *QUICK.attempts * [Status(503)])
    assert same(await load(server, tmp_path, policy=ONE_LANE), BIG)
    assert [seen.status for seen in bodies(server, path)] == [206, 403, 206]


@pytest.mark.anyio
@pytest.mark.parametrize("storage", ["disk", "memory"])
async def test_other_content_behind_a_new_link(server: FaultServer, tmp_path: Path, storage: str) -> None:
    """When the Hub names another hash while a link is renewed, the load begins anew, or fails and the next is clean."""
    _, path = single(server)
    other = {"w": BIG["w"][::-1].copy()}

    def changed(answer: Any) -> Any:
        server.hub("org/model", {SINGLE: safetensors_bytes(other)})
        return Expire(500_000)(answer)

    server.fault(path, LOOK, changed)
    if storage == "memory":
        with pytest.raises(ChangedError):
            await load(server, tmp_path, policy=ONE_LANE, storage=storage)
    events: list[Event] = []
    assert same(await load(server, tmp_path, policy=ONE_LANE, report=events.append), other)
    assert len(blobs(tmp_path)) == 1
    told = [event.message for event in events if isinstance(event, Warned)]
    assert [SINGLE in message and "changed at its source" in message for message in told] == [True] * (
        storage == "disk"
    )


@pytest.mark.anyio
@pytest.mark.parametrize("changes", [False, True])
async def test_expired_link_of_a_web_server(server: FaultServer, tmp_path: Path, changes: bool) -> None:
    """A plain URL that redirects to links: a new link is followed if what is behind it is still the same."""
    _, path = single(server)
    url = f"{server.url}/org/model/resolve/main/{SINGLE}"

    def expired(answer: Any) -> Any:
        if changes:
            server.resources[path].headers["etag"] = '"another"'
        return Expire(500_000)(answer)

    server.fault(path, OK, expired)
    if changes:
        with pytest.raises(ChangedError):
            await asyncfetch.load_async(url, cache_dir=tmp_path, policy=ONE_LANE)
        assert not blobs(tmp_path)
    else:
        assert same(await asyncfetch.load_async(url, cache_dir=tmp_path, policy=ONE_LANE), BIG)
        assert bodies(server, path)[-1].start == PREFIX + 500_000


@pytest.mark.anyio
async def test_other_content_at_the_same_place(server: FaultServer, tmp_path: Path) -> None:
    """A file of a plain server that is replaced between two requests is never mixed with its successor."""
    url = server.web("/files", {SINGLE: BIG_FILE})
    other = {"w": BIG["w"][::-1].copy()}

    def replaced(answer: Any) -> Any:
        server.web("/files", {SINGLE: safetensors_bytes(other)})
        return Truncate(500_000)(answer)

    server.fault(f"/files/{SINGLE}", OK, replaced)
    with pytest.raises(ChangedError):
        await asyncfetch.load_async(url, cache_dir=tmp_path, policy=ONE_LANE)
    assert not blobs(tmp_path)
    assert same(await asyncfetch.load_async(url, cache_dir=tmp_path, policy=ONE_LANE), other)


@pytest.mark.anyio
@pytest.mark.parametrize("storage", ["disk", "memory"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"etag": 'W/"1"'}, {"etag": 'W/"2"'}),
        (
            {"etag": "", "last_modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
            {"last_modified": "Tue, 02 Jan 2024 00:00:00 GMT"},
        ),
    ],
    ids=["weak", "date"],
)
async def test_other_content_without_a_strong_etag(
    server: FaultServer, tmp_path: Path, before: dict[str, str], after: dict[str, str], storage: str
) -> None:
    """A weak ETag or a date is not fit for If-Range, but one that changes tells two files apart; a hash does so too."""
    other = safetensors_bytes({"w": BIG["w"][::-1].copy()})

    def replaced(answer: Any) -> Any:
        server.web("/files", {SINGLE: other}, **{**before, **after})
        return Truncate(500_000)(answer)

    async def fetch(name: str, **options: Any) -> None:
        url = server.web("/files", {SINGLE: BIG_FILE}, **before)
        server.fault(f"/files/{SINGLE}", OK, replaced)
        options = {"policy": ONE_LANE, "storage": storage, "cache_dir": tmp_path / name, **options}
        await asyncfetch.load_async(url, **options)

    with pytest.raises(ChangedError):
        await fetch("a")
    with pytest.raises(ChecksumMismatchError):
        await fetch("b", checksums={SINGLE: f"sha256:{hashlib.sha256(BIG_FILE).hexdigest()}"})
    assert not blobs(tmp_path / "a")
    assert not any("if-range" in seen.headers for seen in server.seen)


# -- verification --------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("storage", ["disk", "memory"])
async def test_wrong_bytes_once(server: FaultServer, tmp_path: Path, storage: str) -> None:
    """One flipped bit: the file is fetched once more as a whole, and the caller is told."""
    _, path = single(server)
    server.fault(path, LOOK, Flip(1_000_000))
    events: list[Event] = []
    assert same(await load(server, tmp_path, storage=storage, policy=ONE_LANE, report=events.append), BIG)
    assert [seen.start for seen in server.to(path)] == ([0, PREFIX, 0] if storage == "memory" else [0, 0])
    (told,) = [event for event in events if isinstance(event, Retrying)]
    assert "sha256" in told.reason


@pytest.mark.anyio
@pytest.mark.parametrize("storage", ["disk", "memory"])
@pytest.mark.parametrize("links", [r".*\.safetensors", "none"], ids=["links", "direct"])
async def test_wrong_bytes_twice(server: FaultServer, tmp_path: Path, storage: str, links: str) -> None:
    """Wrong again: the error names both hashes, and nothing of the file is kept."""
    _, path = single(server, links=links)
    server.fault(path, Flip(1_000_000), forever=True)
    with pytest.raises(ChecksumMismatchError) as caught:
        await load(server, tmp_path, storage=storage)
    broken = bytearray(BIG_FILE)
    broken[1_000_000] ^= 1
    assert caught.value.expected == hashlib.sha256(BIG_FILE).hexdigest()
    assert caught.value.actual == hashlib.sha256(broken).hexdigest()
    ahead = "" if server.to(path)[0].second else path.replace(COMMIT, "main")  # the beginning, where the Hub serves it
    assert server.sent(path) + server.sent(ahead) == 2 * len(BIG_FILE)
    assert not blobs(tmp_path)
    assert not leftovers(tmp_path)
    assert not snapshots(tmp_path)


@pytest.mark.anyio
async def test_compressed_body(server: FaultServer, tmp_path: Path) -> None:
    """A compressed shard is refused, not decoded: its ranges would be of other bytes."""
    _, path = single(server)
    server.fault(path, LOOK, Gzip, forever=True)
    with pytest.raises(NetworkError, match="compressed"):
        await load(server, tmp_path, policy=replace(QUICK, read_timeout=10))  # compressing takes the server a while
    assert len(bodies(server, path)) == 1


@pytest.mark.anyio
async def test_one_error_comes_out(server: FaultServer, tmp_path: Path) -> None:
    """Several shards fail at once in several ways: one plain error, and its siblings end at once."""
    repository = server.hub("org/model", SHARDS)
    first, second, third = repository.storage.values()
    server.fault(first, LOOK, Status(418), forever=True)
    server.fault(second, LOOK, Status(404), forever=True)
    server.fault(third, LOOK, Drip(100, 0.05), forever=True)
    with pytest.raises(AsyncfetchError) as caught:
        await load(server, tmp_path)
    assert not isinstance(caught.value, BaseExceptionGroup)
    assert server.sent(third) < len(repository.files["model-00003-of-00003.safetensors"]) / 2


# -- interruption --------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_cancelled_at_any_burst(server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it is cancelled, what came stays, and the next run fetches what is missing and no more."""
    _, path = single(server)
    server.fault(path, LOOK, Drip(25_000, 0.002), forever=True)
    policy = replace(QUICK, burst=100_000, connections=2, min_split=300_000)
    pull, calls = Body.pull, 0
    threads = threading.active_count()

    async def counted(body: Body, limit: int, *arguments: Any, **options: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == at:
            scope.cancel()
        return await pull(
            body, min(limit, 50_000), *arguments, **options
        )  # so there are enough of them, however slow this is

    for at in (1, 2, 3, 4, 5, 7, 10, 14, 20):
        cache = tmp_path / str(at)
        calls = 0
        server.fault(path, Drip(50_000, 0.002), forever=True)
        with monkeypatch.context() as patched, anyio.CancelScope() as scope:
            patched.setattr(Body, "pull", counted)
            await load(server, cache, policy=policy)
        assert scope.cancelled_caught, at
        assert not blobs(cache)
        journals = [json.loads(file.read_text()) for file in cache.glob("models--*/blobs/*.map.incomplete")]
        held = sum(stop - start for journal in journals for start, stop in journal["spans"])
        server.heal(path)
        server.seen.clear()
        events: list[Event] = []
        assert same(await load(server, cache, policy=ONE_LANE, report=events.append), BIG)
        (started,) = [event for event in events if isinstance(event, FileStarted)]
        assert started.present == held
        assert sum(seen.sent for seen in bodies(server, path)) == len(BIG_FILE) - held
        assert not leftovers(cache)
    assert held > PREFIX  # the last ones had something to resume
    assert threading.active_count() < threads + 20


@pytest.mark.anyio
async def test_cancelled_while_waiting(server: FaultServer, tmp_path: Path) -> None:
    """A load that waits for bytes ends at once when it is cancelled, and leaves no lock behind."""
    _, path = single(server)
    server.fault(path, LOOK, Stall(500_000))
    policy = replace(QUICK, read_timeout=30)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await load(server, tmp_path, policy=policy)

            group.start_soon(run)
            await anyio.to_thread.run_sync(server.wait_for, lambda: server.sent(path) >= 500_000)
            began = time.monotonic()
            scope.cancel()
    assert time.monotonic() - began < 0.5
    with anyio.fail_after(10):
        assert same(await load(server, tmp_path), BIG)
    assert len(bodies(server, path)) == 2


@pytest.mark.anyio
async def test_two_loads_at_once(server: FaultServer, tmp_path: Path) -> None:
    """Two loads of one model share one download; when the first is cancelled, the second goes on."""
    _, path = single(server)
    server.fault(path, LOOK, LOOK, Drip(100_000, 0.01), forever=True)
    states: list[dict[str, Any]] = []

    async def run() -> None:
        states.append(await load(server, tmp_path))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        group.start_soon(run)
    assert len(states) == 2
    assert all(same(state, BIG) for state in states)
    assert server.sent(path) == len(BIG_FILE)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])
@pytest.mark.parametrize("goes_on", [True, False], ids=["goes-on", "stands-still"])
async def test_a_lock_that_another_holds(server: FaultServer, tmp_path: Path, goes_on: bool) -> None:
    """A holder is waited for while its file grows; one that stands still is not, and its lock is left to it."""
    repository, path = single(server)
    cache = RepoCache(tmp_path, "org/model")
    cache.prepare()
    lock = cache.lock(hashlib.sha256(repository.files[SINGLE]).hexdigest())
    lock.acquire()
    before_release = []

    def hold() -> None:
        for _ in range(10 if goes_on else 0):
            (tmp_path / f"{cache.name}/blobs/{Path(lock.lock_file).stem}.other.incomplete").write_bytes(b"grows")
            time.sleep(0.2)  # seldom, as it is looked at: some looks find nothing new
        if goes_on:
            before_release.append(len(bodies(server, path)))
            lock.release()

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, hold)
        with anyio.fail_after(10):
            assert same(await load(server, tmp_path, policy=replace(QUICK, lock_patience=1)), BIG)
    assert before_release == [0] * goes_on
    assert lock.is_locked is not goes_on
    lock.release()


@pytest.mark.anyio
@pytest.mark.parametrize("left", [0, 1], ids=["none", "one, for the trial"])
async def test_locks_that_do_not_work(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """Where every lock is refused, or all but the first, the load is as right, and leaves no bytes behind."""
    granted = iter(range(left))

    def refuse(*_: object) -> None:
        if next(granted, None) is None:
            raise OSError(errno.ENOLCK, "No locks available")

    single(server)
    monkeypatch.setattr(fcntl, "flock", refuse)
    assert same(await load(server, tmp_path), BIG)
    assert not any((tmp_path / "models--org--model/blobs" / name).stat().st_size for name in leftovers(tmp_path))


@pytest.mark.anyio
async def test_too_little_room_is_said_before_a_byte_moves(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is needed and what is free are in the error; no shard is begun."""
    _, path = single(server)
    monkeypatch.setattr(RepoCache, "free_bytes", lambda _cache: 1000)
    with pytest.raises(DiskFullError) as caught:
        await load(server, tmp_path)
    assert (caught.value.needed, caught.value.free) == (len(BIG_FILE), 1000)
    assert not bodies(server, path)
    assert not leftovers(tmp_path)


_CHILD = """
import sys, asyncfetch
endpoint, cache = sys.argv[1:]
policy = asyncfetch.Policy(connections=1, min_split=1 << 30)
asyncfetch.download("org/model", endpoint=endpoint, cache_dir=cache, token=False, policy=policy)
"""


def test_killed(server: FaultServer, tmp_path: Path) -> None:
    """After kill -9 the next run goes on from the last journal, and the bytes are right."""
    _, path = single(server)
    server.fault(path, LOOK, Drip(32_768, 0.05))
    root = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", _CHILD, server.url, str(tmp_path)], cwd=root)
    try:
        server.wait_for(lambda: bool(list(tmp_path.glob("models--*/blobs/*.map.incomplete"))), 20)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    (journal,) = tmp_path.glob("models--*/blobs/*.map.incomplete")
    ((start, stop),) = json.loads(journal.read_text())["spans"]
    assert start == 0
    assert stop > PREFIX
    state = asyncfetch.load("org/model", endpoint=server.url, cache_dir=tmp_path, token=False, policy=ONE_LANE)
    assert same(state, BIG)
    assert bodies(server, path)[-1].start == stop
    assert not leftovers(tmp_path)
