"""Connections that died while they were idle, and nobody told: what that costs, and what it says of the server."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import NetworkError
from asyncfetch.events import Event, Notifier, Retrying, Warned
from asyncfetch.network.sockets import KEPT_IDLE, Backend, Stream
from asyncfetch.network.transport import Transport

from ..kit.fault_server import OK, QUICK, Chunked, Fault, FaultServer, Hangup, Mute, ResetAtOnce
from ..kit.files import safetensors_bytes
from ..kit.middlebox import Middlebox
from ..kit.proxies import ConnectProxy

pytestmark = pytest.mark.anyio

PATH = "/files/x.bin"
BODY = bytes(range(256)) * 300
POLICY = replace(QUICK, read_timeout=0.5, connect_timeout=10)
HOW = pytest.mark.parametrize("how", ["reset", "silent"])


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def counted(told: list[Event]) -> list[Event]:
    return [event for event in told if isinstance(event, Retrying | Warned)]


@asynccontextmanager
async def reached(
    way: str, trusted: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[FaultServer, Middlebox, str]]:
    """A server that is reached through a middlebox, and its URL there."""
    with FaultServer(None if way in ("http", "chunked") else trusted) as server:
        server.web("/files", {"x.bin": BODY})
        if way == "chunked":
            server.fault(PATH, Chunked, forever=True)
        if way == "proxy":
            with ConnectProxy() as proxy, Middlebox(port_of(proxy.place)) as box:
                monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{box.port}")
                monkeypatch.setenv("NO_PROXY", "")
                yield server, box, server.url
        else:
            with Middlebox(port_of(server.url)) as box:
                yield server, box, f"{server.url.rpartition(':')[0]}:{box.port}"


@HOW
@pytest.mark.parametrize("way", ["http", "https", "chunked", "proxy"])
async def test_the_next_request_comes_through(
    way: str, how: str, trusted: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever keeps the connection: it is made anew, once, without a word, a wait or a failure."""
    told: list[Event] = []
    async with (
        reached(way, trusted, monkeypatch) as (server, box, url),
        Transport(POLICY, notify=Notifier(told.append)) as transport,
    ):
        for flows in (1, 2, 3):
            for _ in range(2):
                assert (await transport.fetch(url + PATH, limit=1 << 20)).body == BODY
            assert len(box.flows) == flows
            assert box.struck == flows - 1
            box.forget(how)
        assert len(server.to(PATH)) == 6
    assert not counted(told)


@HOW
@pytest.mark.parametrize("framing", [OK, Chunked], ids=["ours", "of-the-pool"])
async def test_one_of_many_tells_of_all(server: FaultServer, how: str, framing: Fault) -> None:
    """Of many idle connections one is tried, and no other: a time-out is waited for once."""
    server.web("/files", {"x.bin": BODY, "y.bin": b"y"})
    server.fault("/files/y.bin", framing, forever=True)
    told: list[Event] = []
    with Middlebox(port_of(server.url)) as box:
        url = f"http://localhost:{box.port}"
        async with Transport(POLICY, notify=Notifier(told.append)) as transport:
            async with anyio.create_task_group() as group:
                held = anyio.Event()

                async def hold(_number: int) -> None:
                    async with transport.open(url + "/files/y.bin") as body:
                        await held.wait()
                        while await body.pull(1 << 20, lambda nbytes: memoryview(bytearray(nbytes)), len):
                            pass

                for number in range(9):
                    group.start_soon(hold, number)
                await anyio.to_thread.run_sync(server.wait_for, lambda: len(server.to("/files/y.bin")) == 9)
                held.set()
            assert len(box.flows) == 9
            box.forget(how)
            for _ in range(3):
                assert (await transport.fetch(url + PATH, limit=1 << 20)).body == BODY
            assert box.struck == 1
            assert len(box.flows) == 10
    assert not counted(told)


@pytest.mark.parametrize("fault", [Hangup, ResetAtOnce, Mute], ids=["hangs-up", "resets", "silent"])
@pytest.mark.parametrize("warm", [False, True], ids=["new", "used-before"])
async def test_a_server_that_does_fail(server: FaultServer, fault: Any, *, warm: bool) -> None:
    """A second connection is made for nothing once, and then each failure counts as ever."""
    server.web("/files", {"x.bin": BODY})
    told: list[Event] = []
    policy = replace(QUICK, attempts=3, read_timeout=0.2)
    async with Transport(policy, notify=Notifier(told.append)) as transport:
        if warm:
            server.fault(PATH, OK)
            assert (await transport.fetch(server.url + PATH, limit=1 << 20)).body == BODY
        server.fault(PATH, fault, forever=True)
        with pytest.raises(NetworkError):
            await transport.fetch(server.url + PATH, limit=1 << 20)
    assert len(server.to(PATH)) == 3 + 2 * warm
    assert [event.attempt for event in told if isinstance(event, Retrying)] == [1, 2]


async def test_what_is_idle_for_long_is_dropped(server: FaultServer) -> None:
    """By a clock that goes on while the machine sleeps; what is used more often than that is kept."""
    now = 1000.0
    backend = Backend(clock=lambda: now)

    async def connection() -> Stream:
        stream = await backend.connect_tcp("localhost", port_of(server.url), 10)
        assert isinstance(stream, Stream)
        return stream

    first, second, third = [await connection() for _ in range(3)]
    for number, stream in enumerate((first, second, third)):
        stream.reusable = True
        await stream.aclose()
        now += number  # the third, the last, is parked at 1001
    now = 1001.0 + KEPT_IDLE
    assert await connection() is third
    third.reusable = True
    await third.aclose()
    now += KEPT_IDLE
    assert await connection() is third
    fourth = await connection()
    assert fourth not in (first, second, third)
    assert [stream.get_extra_info("socket").fileno() == -1 for stream in (first, second, third)] == [True, True, False]
    for stream in (third, fourth):
        await stream.aclose()
    backend.close()


def model(number: int) -> bytes:
    return safetensors_bytes({f"t{n}": np.full(90_000, number + n, np.float32) for n in range(8)})


@HOW
@pytest.mark.parametrize("source", ["org/model", "/files/model.safetensors"], ids=["repository", "web"])
async def test_a_client_that_was_idle_gets_the_new_model(
    server: FaultServer, tmp_path: Path, how: str, source: str
) -> None:
    """A server that can be reached is asked, so what is cached is not used in its place."""
    told: list[Event] = []
    with Middlebox(port_of(server.url)) as box:
        url = f"http://localhost:{box.port}"
        endpoint = url if source == "org/model" else server.url
        async with asyncfetch.Client(endpoint=endpoint, token=False, policy=POLICY, cache_dir=tmp_path) as client:
            for number, commit in ((10, "a" * 40), (20, "b" * 40)):
                files = {"model.safetensors": model(number)}
                server.hub("org/model", files, commit=commit, links="")
                server.web("/files", files)
                state = await client.load(url + source if source.startswith("/") else source, report=told.append)
                assert float(state["t3"][-1]) == number + 3
                assert not any("What is cached is used" in str(event) for event in told)
                box.forget(how)
        assert box.struck == 1
    assert not any(isinstance(event, Retrying) for event in told)


@HOW
async def test_a_checkpoint_that_was_idle(server: FaultServer, tmp_path: Path, how: str) -> None:
    """A tensor that is read after a pause costs one dead connection, however many were idle."""
    server.web("/files", {"model.safetensors": model(1)})
    told: list[Event] = []
    with Middlebox(port_of(server.url)) as box:
        async with asyncfetch.Client(policy=POLICY, cache_dir=tmp_path) as client:
            checkpoint = await client.open(f"http://localhost:{box.port}/files/model.safetensors", report=told.append)
            async with anyio.create_task_group() as group:
                for number in range(8):
                    group.start_soon(checkpoint.tensor, f"t{number}")
            box.forget(how)
            for number in range(8):
                assert float((await checkpoint.tensor(f"t{number}"))[0]) == 1 + number
            await checkpoint.aclose()
        assert box.struck == 1
    assert not any(isinstance(event, Retrying) for event in told)
