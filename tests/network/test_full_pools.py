"""A client of the caller that may have fewer connections than we, or needs them for something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import StalledError
from asyncfetch.events import Event, Retrying
from asyncfetch.network.limits import Connections
from asyncfetch.network.transport import Transport

from ..kit.fault_server import QUICK, Drip, FaultServer, Late, Mute
from ..kit.files import safetensors_bytes, sharded_bytes

pytestmark = pytest.mark.anyio

TENSORS = {f"t{n}": np.random.default_rng(n).integers(0, 255, 110_000, dtype=np.uint8) for n in range(12)}
SHARDS = sharded_bytes(TENSORS, 4)
ONE = safetensors_bytes(TENSORS)
# A pool is waited for half as long as a lane needs for a shard, and for no outage.
POLICY = replace(QUICK, connect_timeout=0.5, patience=0.1, attempts=2, read_timeout=10, connections=7)


def client_of(connections: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(limits=httpx.Limits(max_connections=connections))


def slow(server: FaultServer) -> None:
    """A repository in four shards, and one file of a web server, at some 300 kB a second for each connection."""
    for path in server.hub("org/model", SHARDS).storage.values():
        server.fault(path, Drip(30_000, 0.1), forever=True)
    server.web("/files", {"model.safetensors": ONE})
    server.fault("/files/model.safetensors", Drip(30_000, 0.1), forever=True)


def file_of(server: FaultServer) -> str:
    """The URL of the file, which does not lie below the endpoint."""
    return f"{server.url.replace('localhost', '127.0.0.1')}/files/model.safetensors"


def same(state: Any) -> bool:
    return state.keys() == TENSORS.keys() and all(np.array_equal(state[name], TENSORS[name]) for name in TENSORS)


def options_of(server: FaultServer, cache: Path) -> dict[str, Any]:
    return {"endpoint": server.url, "token": False, "cache_dir": cache, "policy": POLICY}


@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("source", ["org/model", "web"])
async def test_fewer_than_the_policy_allows(server: FaultServer, tmp_path: Path, source: str, connections: int) -> None:
    """Those beyond the pool's wait for one of ours, however long it needs: no failure, and nobody hears of it."""
    slow(server)
    told: list[Event] = []
    async with client_of(connections) as client:
        if source == "web":
            source = file_of(server)
        options = options_of(server, tmp_path)
        assert same(await asyncfetch.load_async(source, client=client, report=told.append, **options))
    assert not any(isinstance(event, Retrying) for event in told)
    assert server.most_at_once <= connections


async def test_calls_share_a_small_pool(server: FaultServer, tmp_path: Path) -> None:
    """Several loads at once over one connection, of which each comes to its end."""
    slow(server)
    told: list[Event] = []
    states: list[Any] = []
    async with (
        client_of(1) as inner,
        asyncfetch.Client(client=inner, **options_of(server, tmp_path)) as client,
        anyio.create_task_group() as group,
    ):

        async def load(source: str) -> None:
            states.append(await client.load(source, storage="memory", report=told.append))

        for source in ("org/model", file_of(server), "org/model"):
            group.start_soon(load, source)
    assert [same(state) for state in states] == [True] * 3
    assert not any(isinstance(event, Retrying) for event in told)


async def test_a_server_that_thinks_for_long(server: FaultServer) -> None:
    """Who has the connection and no answer yet has it: the others wait as they do for a body."""
    server.web("/files", {"x.bin": b"x" * 10})
    server.fault("/files/x.bin", Late(0.8), forever=True)
    async with client_of(1) as client, Transport(replace(POLICY, attempts=1), client=client) as transport:

        async def fetch() -> None:
            assert (await transport.fetch(f"{server.url}/files/x.bin", limit=100)).body == b"x" * 10

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(fetch)
    assert len(server.seen) == 3


async def test_who_has_one_and_does_not_need_it_hears_of_it(server: FaultServer) -> None:
    """A body that waits for something else than its server is given up for who finds no connection."""
    server.web("/files", {"x.bin": bytes(3_000_000), "y.bin": b"y"})
    async with (
        client_of(1) as client,
        Transport(POLICY, client=client) as transport,
        anyio.create_task_group() as group,
    ):

        async def fetch() -> None:
            assert (await transport.fetch(f"{server.url}/files/y.bin", limit=100)).body == b"y"

        with anyio.fail_after(20):
            async with transport.open(f"{server.url}/files/x.bin"):
                group.start_soon(fetch)
                await transport.limits.connections.wanted()


async def test_a_slow_reader_over_one_connection(server: FaultServer, tmp_path: Path) -> None:
    """Tensors that come in a small memory, over the only connection, to who takes his time."""
    slow(server)
    told: list[Event] = []
    got: dict[str, Any] = {}
    options = {**options_of(server, tmp_path), "storage": "memory", "early": True, "memory_limit": 400_000}
    with anyio.fail_after(45):
        async with (
            client_of(1) as client,
            asyncfetch.stream_async("org/model", client=client, report=told.append, **options) as tensors,
        ):
            async for name, tensor in tensors:
                got[name] = tensor.copy()
                await anyio.sleep(0.02)
    assert same(got)
    assert not any(isinstance(event, Retrying) for event in told)


async def test_the_callers_own_requests_fill_it(server: FaultServer, tmp_path: Path) -> None:
    """That is told, and ends as what it is; and goes on by itself where the caller lets go in time."""
    server.hub("org/model", SHARDS)
    server.web("/files", {"theirs.bin": b"x"})
    server.fault("/files/theirs.bin", Mute, forever=True)
    told: list[Event] = []
    options = options_of(server, tmp_path)
    async with client_of(2) as client, anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(client.get, f"{server.url}/files/theirs.bin")
        await anyio.to_thread.run_sync(server.wait_for, lambda: len(server.to("/files/theirs.bin")) == 2)
        with anyio.fail_after(30), pytest.raises(StalledError, match="no connection free") as caught:
            await asyncfetch.load_async("org/model", client=client, report=told.append, **options)
        assert "max_connections" in caught.value.hint
        assert [event.attempt for event in told if isinstance(event, Retrying)] == [1]

        def report(event: Event) -> None:
            if isinstance(event, Retrying):
                group.cancel_scope.cancel()

        with anyio.CancelScope(shield=True):
            policy = replace(POLICY, attempts=5)
            options |= {"policy": policy, "report": report}
            assert same(await asyncfetch.load_async("org/model", client=client, **options))


@pytest.mark.parametrize("late", [False, True], ids=["while-it-waits", "when-it-is-granted"])
async def test_who_is_cancelled_meanwhile_leaves_nothing(*, late: bool) -> None:
    """Both connections are there again, whenever the one that waits for another leaves."""
    connections, leave = Connections(2), anyio.CancelScope()

    async def exchange() -> None:
        with leave:
            async with connections.hold("b") as hold:
                await connections.exchange(hold)

    async with anyio.create_task_group() as group:
        async with connections.hold("a") as first:
            connections.use(first)
            group.start_soon(exchange)
            await anyio.wait_all_tasks_blocked()
            if not late:
                leave.cancel()
                await anyio.wait_all_tasks_blocked()
        leave.cancel()
    with anyio.fail_after(5):
        async with connections.hold("a") as one, connections.hold("a") as two:
            connections.use(one)
            assert connections.others_used(two)
            connections.use(two)
    with anyio.move_on_after(0.01) as scope:
        async with connections.hold("a"), connections.hold("b"), connections.hold("c"):
            pass
    assert scope.cancelled_caught


async def test_what_is_exchanged_is_given_to_each_in_turn() -> None:
    """Three of four find no connection: each is granted one when the one that is used is given back, and no sooner."""
    connections, order = Connections(4), list[str]()
    found_none, enough = ({name: anyio.Event() for name in "abcde"} for _ in range(2))

    async def call(name: str, finds: str) -> None:
        async with connections.hold(name) as hold:
            if name not in finds:
                await found_none[name].wait()
                assert connections.others_used(hold)
                await connections.exchange(hold)
            connections.use(hold)
            order.append(name)
            await enough[name].wait()

    async with anyio.create_task_group() as group:
        for name in "abcd":
            group.start_soon(call, name, "ae")
            await anyio.wait_all_tasks_blocked()
        for event in found_none.values():
            event.set()
            await anyio.wait_all_tasks_blocked()
        assert order == ["a"]
        with anyio.move_on_after(0.01) as scope:  # who comes later waits behind them, and may go
            await call("e", "e")
        assert scope.cancelled_caught
        group.start_soon(call, "e", "e")
        for number, name in enumerate("abcde", 2):
            await anyio.wait_all_tasks_blocked()
            enough[name].set()
            await anyio.wait_all_tasks_blocked()
            assert order == list("abcde"[:number])

    order.clear()
    enough = {name: anyio.Event() for name in "abcde"}
    async with anyio.create_task_group() as group:  # and all four are there again, but no fifth
        for name in "abcde":
            group.start_soon(call, name, "abcde")
            await anyio.wait_all_tasks_blocked()
        assert order == list("abcd")
        for event in enough.values():
            event.set()
    assert order == list("abcde")
