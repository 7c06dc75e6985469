"""Names: a resolver that does not answer holds up nobody who leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from blockbuster import blockbuster_ctx

from asyncfetch.network import names
from asyncfetch.network.names import addresses_of

from ..kit.silent_resolver import silent_resolver

HOST = "hub.example"
CLI = [sys.executable, "-m", "asyncfetch", "download", "org/model", "--endpoint", f"https://{HOST}"]

CALLS = {
    "load": f"""
import asyncfetch
try:
    asyncfetch.load("org/model", endpoint="https://{HOST}")
except KeyboardInterrupt:
    print("left", flush=True)
""",
    "client": f"""
import asyncfetch
try:
    with asyncfetch.BlockingClient(endpoint="https://{HOST}") as client:
        client.open("org/model")
except KeyboardInterrupt:
    print("left", flush=True)
""",
}

CANCELLED = f"""
import signal, sys
import anyio
import asyncfetch

async def main():
    async with anyio.create_task_group() as group:
        group.start_soon(wait, group.cancel_scope)
        await asyncfetch.load_async("org/model", endpoint="https://{HOST}")

async def wait(scope):
    with anyio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            scope.cancel()
            return

anyio.run(main, backend=sys.argv[1], backend_options={{"use_uvloop": True}} if sys.argv[2:] else {{}})
print("left", flush=True)
"""


def leave(process: subprocess.Popen[str], queries: socket.socket, number: int) -> tuple[str, str]:
    """Send a signal while a name is looked up; what the process wrote until its end, which comes soon."""
    queries.recv(512)
    process.send_signal(number)
    return process.communicate(timeout=20)  # the look-up would take minutes


@pytest.mark.heavy
@pytest.mark.parametrize("proxy", [None, f"http://proxy.{HOST}:3128"], ids=["direct", "proxy"])
def test_ctrl_c_of_the_command_line(tmp_path: Path, proxy: str | None) -> None:
    """Ctrl-C while the name of the Hub, or of a proxy, is looked up: 130, the process has ended, nothing is left."""
    environment = {"HF_HUB_CACHE": str(tmp_path / "cache")} | ({"HTTPS_PROXY": proxy} if proxy else {})
    with silent_resolver(*CLI, **environment) as (process, queries):
        out, err = leave(process, queries, signal.SIGINT)
    assert (process.returncode, out) == (130, "")
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", CALLS)
def test_an_interrupt_of_blocking_code(tmp_path: Path, kind: str) -> None:
    """A KeyboardInterrupt comes out of the call at once, and the interpreter ends."""
    with silent_resolver(sys.executable, "-c", CALLS[kind], HF_HUB_CACHE=str(tmp_path)) as (process, queries):
        out, err = leave(process, queries, signal.SIGINT)
    assert (process.returncode, out) == (0, "left\n"), err


@pytest.mark.heavy
@pytest.mark.parametrize("loop", [["asyncio"], ["asyncio", "uvloop"], ["trio"]], ids=lambda loop: loop[-1])
def test_cancellation_on_each_loop(tmp_path: Path, loop: list[str]) -> None:
    """A cancelled load returns at once, the loop closes and the interpreter ends."""
    if loop[-1] == "uvloop":
        pytest.importorskip("uvloop")
    with silent_resolver(sys.executable, "-c", CANCELLED, *loop, HF_HUB_CACHE=str(tmp_path)) as (process, queries):
        out, err = leave(process, queries, signal.SIGUSR1)
    assert (process.returncode, out) == (0, "left\n"), err


class Resolver:
    """A getaddrinfo that answers when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answer = threading.Event()
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: bytes, port: int, *arguments: Any, **options: Any) -> Any:
        if options.get("flags"):
            return self._real(host, port, *arguments, **options)
        self.asked.append(host.decode())
        assert self.answer.wait(30)
        if host.startswith(b"none"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self._real("127.0.0.1", port, *arguments, **options)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    monkeypatch.setattr(names, "_look_ups", names._LookUps())
    return Resolver(monkeypatch)


@pytest.mark.anyio
async def test_addresses_need_no_look_up(resolver: Resolver) -> None:
    """Addresses of both families are what they are, without a thread."""
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        assert [(found[0], found[4][:2]) for found in await addresses_of(host, 8080)] == [(family, (host, 8080))]
    assert not resolver.asked


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["a..b.example", f"{'x' * 64}.example"])
async def test_what_is_no_name(host: str) -> None:
    """A name that cannot be one is an OSError like any other name that is unknown."""
    with pytest.raises(socket.gaierror):
        await addresses_of(host, 80)


@pytest.mark.anyio
async def test_who_asks_for_the_same_shares(resolver: Resolver) -> None:
    """One look-up for all who ask for a name meanwhile; the next asks anew. A failure reaches all of them."""
    found: list[Any] = []

    async def ask(host: str) -> None:
        try:
            found.append((await addresses_of(host, 80))[0][4])
        except socket.gaierror as error:
            found.append(error.errno)

    async with anyio.create_task_group() as group:
        for host in ["one.example", "none.example"] * 5:
            group.start_soon(ask, host)
        await anyio.wait_all_tasks_blocked()
        resolver.answer.set()
    assert sorted(resolver.asked) == ["none.example", "one.example"]
    assert sorted(map(str, found)) == sorted([str(("127.0.0.1", 80)), str(int(socket.EAI_NONAME))] * 5)
    await ask("one.example")
    assert resolver.asked.count("one.example") == 2


@pytest.mark.anyio
async def test_who_leaves_leaves_nothing(resolver: Resolver) -> None:
    """A cancelled look-up holds no descriptor, and is bounded: so many threads hang at most."""
    before = len(os.listdir("/proc/self/fd"))
    refused: list[int | None] = []

    async def ask(number: int) -> None:
        try:
            await addresses_of(f"{number}.example", 80)
        except socket.gaierror as error:
            refused.append(error.errno)

    async with anyio.create_task_group() as group:
        for number in range(names._MOST + 3):
            group.start_soon(ask, number)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert refused == 3 * [socket.EAI_AGAIN]
    assert len(os.listdir("/proc/self/fd")) <= before
    resolver.answer.set()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])  # blockbuster knows no other loop
async def test_a_look_up_that_is_done_by_now(anyio_backend: Any) -> None:
    """Who asks in the moment in which it ends is woken on the event loop itself, where nothing may block."""
    wake = names._Wake()
    with blockbuster_ctx():
        wake.give()
        with anyio.fail_after(10):
            await wake.wait()
