"""What becomes of one file and of the lanes around it: threads, second tries, tails, connections that others want."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from anyio import to_thread

import asyncfetch
from asyncfetch.engine import receiving
from asyncfetch.engine.transfer import Transfer
from asyncfetch.events import Event, FileProgress, FileVerified, Notifier, Retrying, Waiting
from asyncfetch.network.transport import Transport
from asyncfetch.sources.located import Located
from asyncfetch.sources.request import HubSource, Request
from asyncfetch.sources.resolve import resolve
from asyncfetch.sources.settings import Settings
from asyncfetch.storage.cache import RepoCache
from asyncfetch.storage.partial import Partial
from asyncfetch.tensors.feed import Feed

from ..kit.fault_server import LOOK, QUICK, Drip, FaultServer, Flip, Stall, Truncate
from ..kit.files import safetensors_bytes, sharded_bytes

SINGLE = "model.safetensors"
BIG = {"w": np.random.default_rng(11).integers(0, 255, 2_000_000, dtype=np.uint8)}
BIG_FILE = safetensors_bytes(BIG)


def single(server: FaultServer) -> str:
    """A repository of one large file: the path at which storage serves it."""
    return server.hub("org/model", {SINGLE: BIG_FILE}).storage[SINGLE]


async def download(server: FaultServer, cache: Path, **options: Any) -> Path:
    options = {"policy": QUICK, "token": False, **options}
    return (await asyncfetch.download_async("org/model", endpoint=server.url, cache_dir=cache, **options)).files[SINGLE]


async def patient(server: FaultServer, cache: Path, report: Callable[[Event], object]) -> None:
    await download(server, cache, policy=replace(QUICK, read_timeout=30), report=report)


@dataclass
class Lanes:
    """See the fixture."""

    started: int = 0
    running: int = 0
    ended: threading.Event = field(default_factory=threading.Event)


class Crowd:
    """An application that has taken all of anyio's own threads."""

    def __init__(self) -> None:
        self._limiter = to_thread.current_default_thread_limiter()
        self._tokens: list[object] = []

    def come(self) -> None:
        while self._limiter.available_tokens:
            self._tokens.append(object())
            self._limiter.acquire_on_behalf_of_nowait(self._tokens[-1])

    def go(self) -> None:
        while self._tokens:
            self._limiter.release_on_behalf_of(self._tokens.pop())


# -- threads -------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_application_that_takes_all_threads_holds_up_no_teardown(server: FaultServer, tmp_path: Path) -> None:
    """A cancelled download is resumable at once: journal written, nothing open, no lock held."""
    path, crowd, came = single(server), Crowd(), threading.Event()
    server.fault(path, LOOK, Stall(500_000))
    with anyio.fail_after(8):
        async with anyio.create_task_group() as group:
            group.start_soon(patient, server, tmp_path, lambda event: isinstance(event, FileProgress) and came.set())
            await to_thread.run_sync(server.wait_for, came.is_set)
            crowd.come()
            group.cancel_scope.cancel()
    crowd.go()
    assert found(tmp_path, "models--*/blobs/*.map.incomplete")
    assert not [link for link in map(_link, os.listdir("/proc/self/fd")) if str(tmp_path) in link]
    cache = RepoCache(tmp_path, "org/model")
    (lock,) = found(tmp_path, f".locks/{cache.name}/*.lock")
    cache.lock(lock.stem).acquire(timeout=0)


def found(folder: Path, pattern: str) -> list[Path]:
    return list(folder.glob(pattern))


def _link(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


@pytest.mark.anyio
async def test_an_application_that_takes_all_threads_holds_up_no_file(server: FaultServer, tmp_path: Path) -> None:
    """From the wait for another process to the name of the file, all goes on in threads of our own."""
    single(server)
    crowd, cache = Crowd(), RepoCache(tmp_path, "org/model")
    cache.prepare()
    lock = cache.lock(hashlib.sha256(BIG_FILE).hexdigest())
    lock.acquire()
    seen: list[type[Event]] = []

    def report(event: Event) -> None:
        seen.append(type(event))
        if isinstance(event, Waiting):
            crowd.come()
            lock.release()
        elif isinstance(event, FileVerified):
            crowd.go()

    with anyio.fail_after(8):
        assert (await download(server, tmp_path, report=report)).read_bytes() == BIG_FILE
    assert seen.index(Waiting) < seen.index(FileVerified)


# -- lanes ---------------------------------------------------------------------------------------


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> Lanes:
    """How many lanes were started, and an event in threads that is set once none is left."""
    counted, lane = Lanes(), Transfer._lane

    async def count(self: Transfer) -> None:
        counted.started += 1
        counted.running += 1
        await lane(self)
        counted.running -= 1
        if not counted.running:
            counted.ended.set()

    monkeypatch.setattr(Transfer, "_lane", count)
    return counted


@pytest.mark.anyio
@pytest.mark.parametrize("storage", ["disk", "memory"])
async def test_a_second_try_has_as_many_connections(
    server: FaultServer, tmp_path: Path, storage: str, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that starts over is fetched by all the lanes that there may be, also where those before have ended."""
    catch_up = Partial.catch_up

    def late(self: Partial) -> bool:
        assert lanes.ended.wait(10)
        return catch_up(self)

    monkeypatch.setattr(Partial, "catch_up", late)
    monkeypatch.setattr(receiving, "_BACKLOG", 0)
    path, before = single(server), []
    slow = Drip(20_000, 0.01)
    server.fault(path, LOOK, (Flip(1_000_000), slow), forever=True)

    def report(event: Event) -> None:
        if isinstance(event, Retrying):
            before.append(len(server.to(path)))
            assert not lanes.running
            server.fault(path, slow, forever=True)

    policy = replace(QUICK, connections=4, min_split=100_000)
    state = await asyncfetch.load_async(
        "org/model", endpoint=server.url, cache_dir=tmp_path, storage=storage, policy=policy, token=False, report=report
    )
    assert np.array_equal(state["w"], BIG["w"])
    assert len({seen.connection for seen in server.to(path)[before[0] :]}) >= 4


@pytest.mark.anyio
async def test_a_tail_starts_no_lanes_for_nothing(server: FaultServer, tmp_path: Path, lanes: Lanes) -> None:
    """While one connection brings the last bytes and nothing can be taken from it, the others rest."""
    shards = sharded_bytes({"long": BIG["w"][:480_000], "short": BIG["w"][:100_000]}, 2)  # too small to share
    path = server.hub("org/model", shards).storage["model-00001-of-00002.safetensors"]
    server.fault(path, LOOK, Drip(12_000, 0.02), forever=True)
    options: Any = {"policy": QUICK, "token": False}
    snapshot = await asyncfetch.download_async("org/model", endpoint=server.url, cache_dir=tmp_path, **options)
    assert len(snapshot.files) == 3
    assert lanes.started == 2


# -- connections that others want ------------------------------------------------------------------


async def find(server: FaultServer, repository: str, transport: Transport) -> Located:
    source = HubSource(repository, "main")
    return await resolve(
        Request(source, Settings(server.url, None, False), Path("/nowhere"), transport.policy), transport
    )


@pytest.mark.anyio
async def test_who_waits_for_memory_gives_its_connection_to_who_wants_it(server: FaultServer) -> None:
    """A download that its reader holds up does not hold up another; what is given back is no failure."""
    tensors = {f"t{n}": np.full(1_500_000, n, np.uint8) for n in range(4)}
    path = server.hub("org/slow", {SINGLE: safetensors_bytes(tensors)}).storage[SINGLE]
    single(server)
    events: list[Event] = []
    async with Transport(replace(QUICK, connections=1, read_timeout=5)) as transport:
        slow, other = (transport.for_call(Notifier(events.append)) for _ in range(2))
        found = await find(server, "org/slow", slow)
        feed = Feed(found, storage="memory", policy=slow.policy, early=True, memory_limit=1_600_000, dtype=None)
        transfer = Transfer(found, slow, slow.policy, slow.notify, "memory", feed)

        ended: list[object] = []

        async def run() -> None:
            ended.append(await transfer.run())
            feed.finish(None)

        with anyio.fail_after(15):
            async with anyio.create_task_group() as group:
                group.start_soon(run)
                pairs = [await feed.next()]
                landed = await Transfer(
                    await find(server, "org/model", other), other, other.policy, other.notify, "memory"
                ).run()
                assert landed[SINGLE].buffer == BIG_FILE
                assert not ended
                while pairs[-1] is not None:
                    pairs.append(await feed.next())
    assert all(np.array_equal(tensors[pair[0]], pair[1]) for pair in pairs if pair is not None)
    assert len(pairs) == len(tensors) + 1
    assert len(server.to(path)) > 2
    assert not [event for event in events if isinstance(event, Retrying)]


@pytest.mark.anyio
async def test_who_has_several_connections_gives_one_to_who_has_none(server: FaultServer) -> None:
    """A long download leaves its connections one by one to a short one, and asks for the rest again."""
    tensors = dict.fromkeys("xyz", BIG["w"][:700000])
    paths = [*server.hub("org/model", sharded_bytes(tensors, 3)).storage.values()]
    for path in paths:  # 3 seconds
        server.fault(path, LOOK, Drip(10_000, 0.05), forever=True)
    small = {name: np.full(100_000, 7, np.uint8) for name in "abc"}
    server.hub("org/small", sharded_bytes(small, 3))
    events: list[Event] = []
    async with Transport(replace(QUICK, connections=3)) as transport:
        long, short = (transport.for_call(Notifier(events.append)) for _ in range(2))
        transfer = Transfer(await find(server, "org/model", long), long, long.policy, long.notify, "memory")
        results: list[Any] = []

        async def run() -> None:
            results.append(await transfer.run())

        with anyio.fail_after(15):
            async with anyio.create_task_group() as group:
                group.start_soon(run)
                await to_thread.run_sync(server.wait_for, lambda: all(map(server.sent, paths)))
                files = await find(server, "org/small", short)
                assert len(await Transfer(files, short, short.policy, short.notify, "memory").run()) == 3
                assert sum(map(server.sent, paths)) < 0.7 * 3 * 700_000
        (landed,) = results
        assert [len(one.buffer) for one in landed.values()] == 3 * [len(server.resources[paths[0]].body)]
        assert all(server.resources[path].body in [one.buffer for one in landed.values()] for path in paths)
    assert not [event for event in events if isinstance(event, Retrying)]


# -- what is told --------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("cut", [70_001, 300_000, 1_234_567])
async def test_what_is_here_is_told_before_a_pause(server: FaultServer, tmp_path: Path, cut: int) -> None:
    """Progress is told ten times a second, and what came since is told when a connection breaks: it may take long."""
    path = single(server)
    server.fault(path, LOOK, Truncate(cut), Truncate(cut), Truncate(cut))
    events: list[Event] = []
    await download(server, tmp_path, report=events.append, policy=replace(QUICK, connections=1, attempts=9))
    told = [before for before, event in pairwise(events) if isinstance(event, Retrying)]
    asked = [int(seen.headers["range"][6:].partition("-")[0]) for seen in server.seen if seen.path == path]
    assert told
    assert [event.received for event in told if isinstance(event, FileProgress)] == asked[-len(told) :]
