"""A request that is cancelled at any of its awaits leaves no connection open that nobody will use."""

from __future__ import annotations

import os
import socket
import ssl
import types
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any

import anyio
import pytest

from asyncfetch.network.transport import Transport

from ..kit.fault_server import QUICK, FaultServer

PATH = "/files/a.bin"


class Striking:
    """Runs a coroutine and cancels a scope at its await of number `at`, the first being 1.

    `late`: not while it waits there, but when it has what it waited for. `awaits` counts them.
    """

    def __init__(self, work: Coroutine[Any, Any, None], scope: anyio.CancelScope, at: int, *, late: bool) -> None:
        self._work, self._scope, self._at, self._late = work, scope, at, late
        self.awaits = 0

    @types.coroutine
    def run(self) -> Generator[Any, Any, None]:
        step, given = self._work.send, None
        while True:
            try:
                waited_for = step(given)
            except StopIteration:
                return
            self.awaits += 1
            strike = self.awaits == self._at
            if strike and not self._late:
                self._scope.cancel()
            try:
                step, given = self._work.send, (yield waited_for)
            except BaseException as error:
                step, given = self._work.throw, error  # type: ignore[assignment]
            if strike and self._late:
                self._scope.cancel()


def connections_to(server: FaultServer) -> int:
    """How many sockets of this process are connected to a server."""
    port, found = int(server.url.rpartition(":")[2]), 0
    for name in os.listdir("/dev/fd"):
        try:
            descriptor = os.dup(int(name))
        except OSError:  # that of the listing
            continue
        try:
            with socket.socket(fileno=descriptor) as sock:
                descriptor = -1
                found += sock.family == socket.AF_INET and sock.getpeername()[1] == port
        except OSError:  # no socket, or not connected
            if descriptor != -1:
                os.close(descriptor)
    return found


async def fetch(server: FaultServer, transport: Transport) -> None:
    async with transport.open(server.url + PATH) as body:
        while await body.pull(1 << 20, lambda nbytes: memoryview(bytearray(nbytes)), lambda _view: None):
            pass


async def struck(server: FaultServer, transport: Transport, at: int, *, late: bool) -> bool:
    """A request that is cancelled at an await. False: it has not so many."""
    with anyio.CancelScope() as scope:
        striking = Striking(fetch(server, transport), scope, at, late=late)
        running: Awaitable[None] = striking.run()
        await running
    return striking.awaits >= at


@pytest.mark.anyio
@pytest.mark.parametrize("late", [False, True], ids=["while-it-waits", "when-it-goes-on"])
@pytest.mark.parametrize("warm", [False, True], ids=["new", "used-before"])
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
async def test_cancelled_at_each_await(trusted: ssl.SSLContext, *, late: bool, warm: bool, tls: bool) -> None:
    """At most one connection is open afterwards, which serves the next request; whether it was new or had served."""
    with FaultServer(trusted if tls else None) as server:
        server.web("/files", {"a.bin": bytes(100_000)})
        async with Transport(QUICK) as transport:
            at, more = 0, True
            while more:
                at += 1
                if warm:
                    await fetch(server, transport)
                more = await struck(server, transport, at, late=late)
                assert connections_to(server) <= 1, at
            assert at > 4
            await fetch(server, transport)
            assert connections_to(server) == 1
        assert not connections_to(server)


@pytest.mark.anyio
async def test_a_connection_that_is_made_after_the_end(server: FaultServer) -> None:
    """Nobody closes idle connections any more, so it does not become one."""
    server.web("/files", {"a.bin": bytes(100_000)})
    async with Transport(QUICK) as transport:
        await fetch(server, transport)
    await fetch(server, transport)
    assert not connections_to(server)
