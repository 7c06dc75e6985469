"""Sockets beneath httpcore: heads and bodies, bursts, connections that serve again."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpcore
import pytest
import trustme

from asyncfetch.errors import CertificateError, NetworkError, ProtocolError
from asyncfetch.events import Event, Notifier
from asyncfetch.network import dialing
from asyncfetch.network import sockets as network
from asyncfetch.network.dialing import interleave
from asyncfetch.network.ranges import Target
from asyncfetch.network.reading import read_span
from asyncfetch.network.sockets import Backend, Stream
from asyncfetch.network.transport import Transport
from asyncfetch.network.urls import no_downgrade
from asyncfetch.sources.hub import Hub
from asyncfetch.sources.settings import Settings
from asyncfetch.spans import Span

from ..kit.fault_server import OK, QUICK, Chunked, Drip, FaultServer, Hangup, Headers, Raw, Status, Truncate, UntilClose

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
PATH = "/files/x.bin"
BODY = bytes(range(256)) * 400


@pytest.fixture
def tls_server(trusted: ssl.SSLContext) -> Iterator[FaultServer]:
    """A folder over TLS, with a certificate for localhost that this process trusts."""
    with FaultServer(trusted) as running:
        running.web("/files", {"x.bin": BODY})
        yield running


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """A folder with one file."""
    with FaultServer() as running:
        running.web("/files", {"x.bin": BODY})
        yield running


@pytest.fixture
def pair() -> Iterator[tuple[Stream, socket.socket]]:
    """A stream, and the other end of its connection."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield Stream(ours, Backend(), ("host", 80)), theirs


async def fetch(server: FaultServer, transport: Transport) -> bytes:
    """The file, whole."""
    return (await transport.fetch(server.url + PATH, limit=1 << 20)).body


@pytest.mark.anyio
@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"], ids=["plain", "interim"])
async def test_head_ends_where_it_ends(pair: tuple[Stream, socket.socket], interim: bytes) -> None:
    """However the bytes are cut, httpcore gets the head alone, and the body is left for bursts."""
    stream, peer = pair
    message = interim + HEAD + b"hello"
    for cut in range(1, len(message)):
        await stream.write(b"GET / HTTP/1.1\r\n\r\n")
        peer.recv(100)
        got = b""
        for part in (message[:cut], message[cut:]):
            peer.sendall(part)
            while not stream.at_body and len(got) < len(interim + HEAD) and stream.get_extra_info("is_readable"):
                got += await stream.read(65536)
        assert got == interim + HEAD, cut
        assert stream.at_body, cut
        assert await stream.readable(0.1), cut
        into = bytearray(10)
        assert stream.burst(memoryview(into)) == (5, False)
        assert bytes(into[:5]) == b"hello"


def test_bursts(pair: tuple[Stream, socket.socket]) -> None:
    """A burst takes what is there and never waits; it tells the end of the connection."""
    stream, peer = pair
    into = memoryview(bytearray(8))
    assert stream.burst(into) == (0, False)
    peer.sendall(b"0123456789")
    assert stream.burst(into) == (8, False)
    peer.close()
    assert stream.burst(into) == (2, True)
    assert bytes(into[:2]) == b"89"
    assert stream.burst(into) == (0, True)


def test_burst_keeps_what_came_before_a_reset() -> None:
    """Bytes that arrived before a RST are good and count."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours:
        ours.setblocking(False)
        stream = Stream(ours, Backend(), ("host", 80))
        theirs.sendall(b"hello")
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        into = memoryview(bytearray(100))
        assert stream.burst(into)[0] == 5
        assert bytes(into[:5]) == b"hello"


@pytest.fixture
def tcp_pair() -> Iterator[tuple[Stream, socket.socket]]:
    """As `pair`, over TCP: what other sockets do with a low-water mark is their own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    with ours, theirs:
        yield Stream(ours, Backend(), ("host", 80)), theirs


@pytest.mark.anyio
async def test_a_trickle_gathers(tcp_pair: tuple[Stream, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop wakes for what is wanted, or for any byte once that had its time to gather; never late for an end."""
    stream, peer = tcp_pair
    into = memoryview(bytearray(1 << 20))
    peer.sendall(bytes(1000))
    began = time.monotonic()
    with anyio.fail_after(10):
        assert await stream.readable(3600, wanted=1 << 20)
    assert time.monotonic() - began >= network._GATHER_SECONDS - 0.002  # uvloop counts whole milliseconds
    assert stream.burst(into) == (1000, False)

    monkeypatch.setattr(network, "_GATHER_SECONDS", 3600)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            woke = anyio.Event()

            async def wait() -> None:
                assert await stream.readable(3600, wanted=500_000)
                woke.set()

            group.start_soon(wait)
            peer.sendall(bytes(100_000))
            await anyio.sleep(0.1)
            assert not woke.is_set()
            await anyio.to_thread.run_sync(peer.sendall, bytes(400_000))
            await woke.wait()
    received = 0
    while received < 500_000:
        received += stream.burst(into)[0]

    peer.sendall(bytes(1000))
    with anyio.fail_after(10):
        assert await stream.readable(3600, wanted=2000)  # near the end of a body nothing may be waited for
        assert stream.burst(into) == (1000, False)
        peer.sendall(bytes(1000))
        peer.close()
        assert await stream.readable(3600, wanted=1 << 20)
    assert stream.burst(into) == (1000, True)


@pytest.mark.anyio
async def test_silence_is_told_in_time(tcp_pair: tuple[Stream, socket.socket]) -> None:
    """Also where the time-out is shorter than the time to gather, and then what came is not silence."""
    stream, peer = tcp_pair
    for timeout in (0.01, network._GATHER_SECONDS, 0.1):
        assert not await stream.readable(timeout, wanted=1 << 20)
        peer.sendall(b"x")
        assert await stream.readable(timeout, wanted=1 << 20)
        assert stream.burst(memoryview(bytearray(10))) == (1, False)


@pytest.mark.anyio
async def test_a_loop_that_comes_late_is_no_silence(tcp_pair: tuple[Stream, socket.socket]) -> None:
    """The time-out is over before the loop looks again, as where a laptop slept, and the bytes came in time."""
    stream, peer = tcp_pair
    for timeout in (0.01, 0.03):
        told: list[bool] = []

        async def wait(timeout: float, told: list[bool]) -> None:
            told.append(await stream.readable(timeout, wanted=1 << 20))

        async with anyio.create_task_group() as group:
            group.start_soon(wait, timeout, told)
            await anyio.wait_all_tasks_blocked()
            peer.sendall(b"x")
            time.sleep(2 * timeout)  # noqa: ASYNC251 - nothing else runs meanwhile, that is the matter
        assert told == [True]
        assert stream.burst(memoryview(bytearray(10))) == (1, False)


@pytest.mark.anyio
async def test_a_head_after_a_big_body(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that waited for much of one body wakes for the few bytes of the next head."""
    monkeypatch.setattr(network, "_GATHER_SECONDS", 3600)
    server.fault(PATH, Drip(60_000, 0.05))
    marks: list[int] = []
    set_low_water = Stream._set_low_water

    def noted(stream: Stream, nbytes: int) -> None:
        marks.append(nbytes)
        set_low_water(stream, nbytes)

    monkeypatch.setattr(Stream, "_set_low_water", noted)
    async with Transport(QUICK) as transport:
        with anyio.fail_after(10):
            assert await fetch(server, transport) == BODY
            assert (await transport.fetch(server.url + "/files/none", limit=1 << 20)).status == 404
    assert max(marks) > 1
    assert server.accepted == 1


@pytest.mark.anyio
async def test_one_connection_serves_again(server: FaultServer) -> None:
    """Bodies that were read to their exact end leave the connection to the next request."""
    async with Transport(QUICK) as transport:
        for _ in range(5):
            assert await fetch(server, transport) == BODY
        server.fault(PATH, Chunked, OK)
        assert await fetch(server, transport) == BODY
        assert await fetch(server, transport) == BODY
    assert server.accepted == 1


@pytest.mark.anyio
async def test_tls_session_serves_again(tls_server: FaultServer) -> None:
    """Over TLS too: one handshake for many requests."""
    async with Transport(QUICK) as transport:
        for _ in range(5):
            assert await fetch(tls_server, transport) == BODY
    assert (tls_server.accepted, tls_server.handshakes) == (1, 1)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "fault",
    [UntilClose, Truncate(len(BODY)), Raw(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")],
    ids=["http-1.0", "closed", "asked-to-close"],
)
async def test_closed_connections_do_not_serve_again(server: FaultServer, fault: Any) -> None:
    """A connection that the server closes, or will close, is not used again, and that costs no retry."""
    retries: list[Event] = []
    async with Transport(QUICK, notify=Notifier(retries.append)) as transport:
        server.fault(PATH, fault)
        await fetch(server, transport)
        await anyio.sleep(0.02)
        reply = await transport.fetch(server.url + PATH, limit=1 << 20)
        assert reply.body == BODY
    assert server.accepted == 2
    assert not retries


@pytest.mark.anyio
async def test_connection_out_of_step_is_dropped(server: FaultServer) -> None:
    """Bytes beyond the announced length are never taken for the next answer."""
    server.fault(
        PATH, Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
    )
    async with Transport(QUICK) as transport:
        assert await fetch(server, transport) == b"hello"
        assert await fetch(server, transport) == BODY
    assert server.accepted == 2


@pytest.mark.anyio
async def test_answers_cut_anywhere(server: FaultServer) -> None:
    """An answer that comes byte by byte, with early hints before it, is read right."""
    answer = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer.recv(65536)
                for byte in answer:
                    peer.sendall(bytes([byte]))
                    time.sleep(0.001)
                peer.recv(1)

        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, serve)
            async with Transport(QUICK) as transport:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
                with anyio.fail_after(5):
                    assert (await transport.fetch(url, limit=100)).body == b"hello"


@pytest.mark.anyio
async def test_untrusted_certificate(tls_server: FaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A certificate from an unknown authority is its own error, and is not tried again."""
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "other.pem"))
    async with Transport(QUICK) as transport:
        with pytest.raises(CertificateError):
            await fetch(tls_server, transport)
    assert tls_server.accepted == 1


@pytest.mark.anyio
@pytest.mark.parametrize("text", [None, "no certificate"], ids=["missing", "damaged"])
async def test_unusable_certificate_store(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    """It is said at once, and in the way of nobody who does not need it."""
    store = tmp_path / "store.pem"
    if text is not None:
        store.write_text(text)
    monkeypatch.setenv("SSL_CERT_FILE", str(store))
    async with Transport(QUICK) as transport:
        with pytest.raises(CertificateError, match="store cannot be read") as caught:
            await transport.fetch("https://localhost:1/x?sig=1", limit=10)
        assert "sig" not in str(caught.value)
        assert transport.requests == 1
        assert await fetch(server, transport) == BODY


@pytest.mark.anyio
async def test_certificate_of_another_host(tls_server: FaultServer) -> None:
    """So is a certificate for another name."""
    async with Transport(QUICK) as transport:
        with pytest.raises(CertificateError):
            await transport.fetch(tls_server.url.replace("localhost", "127.0.0.1") + PATH, limit=10)
    assert tls_server.accepted == 1


@pytest.mark.anyio
async def test_no_redirect_leaves_tls(tls_server: FaultServer, server: FaultServer) -> None:
    """From https to http nothing is followed: not a link of the Hub, not a range, not a file of a plain URL."""
    tls_server.hub("org/name", {"x.safetensors": BODY})
    page = "/org/name/resolve/main/x.safetensors"
    tls_server.fault(page, Headers(location=server.url + PATH), forever=True)
    tls_server.fault(PATH, Status(302, {"location": server.url + PATH}), forever=True)
    target = Target(tls_server.url + PATH)
    async with Transport(QUICK) as transport:
        with pytest.raises(ProtocolError, match="less safe"):
            await read_span(transport, target, Span(0, 10), file="x", size=len(BODY))
        with pytest.raises(ProtocolError, match="https to http"):
            await Hub(transport, Settings(tls_server.url, None, False), "org/name").ask(
                "x.safetensors", "main", limit=1
            )
        assert (
            await transport.fetch(target.url, limit=1, may_follow=lambda reply, to: no_downgrade(reply.url, to))
        ).status == 302
    assert not server.seen


@pytest.mark.anyio
async def test_hung_handshake(server: FaultServer) -> None:
    """A server that accepts and never answers the TLS hello is given up after the connect time-out."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        backend = Backend()
        stream = await backend.connect_tcp("127.0.0.1", silent.getsockname()[1], 1)
        with pytest.raises(httpcore.ConnectTimeout):
            await stream.start_tls(ssl.create_default_context(), "localhost", 0.1)


@pytest.mark.anyio
async def test_refused(server: FaultServer) -> None:
    """Nobody listens: a network error after all attempts, without an address in it that helps nobody."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    retries: list[Event] = []
    async with Transport(QUICK, notify=Notifier(retries.append)) as transport:
        with pytest.raises(NetworkError, match="refused"):
            await transport.fetch(f"http://127.0.0.1:{port}/", limit=10)
    assert len(retries) == QUICK.attempts - 1


@pytest.mark.anyio
async def test_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not resolve is a network error that is tried again a few times."""

    async def getaddrinfo(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(dialing, "addresses_of", getaddrinfo)
    async with Transport(QUICK) as transport:
        with pytest.raises(NetworkError, match="not known"):
            await transport.fetch("http://nowhere.invalid/", limit=10)


@pytest.fixture
def black_hole() -> Iterator[tuple[str, int]]:
    """An address where connection attempts are never answered: its backlog is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        yield listener.getsockname()
        for filler in fillers:
            filler.close()


def resolver(*addresses: tuple[str, int]) -> Callable[..., Any]:
    """A `getaddrinfo` that always answers `addresses`."""

    async def getaddrinfo(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses]

    return getaddrinfo


@pytest.mark.anyio
async def test_happy_eyeballs(
    server: FaultServer, black_hole: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that does not answer costs a quarter of a second, one that refuses costs nothing."""
    port = int(server.url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refusing = closed.getsockname()
    monkeypatch.setattr(dialing, "addresses_of", resolver(refusing, black_hole, ("127.0.0.1", port)))
    began = time.monotonic()
    stream = await Backend().connect_tcp("host", port, 2)
    assert 0.2 < time.monotonic() - began < 0.6
    assert stream.get_extra_info("server_addr")[1] == port
    await stream.aclose()


@pytest.mark.anyio
async def test_cancelled_when_connected(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that succeeds in the moment of a cancellation is closed."""
    connect_one, sockets = dialing._connect_one, []

    async def connect_then_cancel(sock: socket.socket, *arguments: Any) -> None:
        await connect_one(sock, *arguments)
        sockets.append(sock)
        scope.cancel()

    monkeypatch.setattr(dialing, "_connect_one", connect_then_cancel)
    with anyio.CancelScope() as scope:
        await Backend().connect_tcp("localhost", int(server.url.rpartition(":")[2]), 2)
    assert scope.cancelled_caught
    assert [sock.fileno() for sock in sockets] == [-1]


@pytest.mark.anyio
async def test_connect_time_out(black_hole: tuple[str, int]) -> None:
    """Nobody answers in time: httpcore's own error."""
    with pytest.raises(httpcore.ConnectTimeout):
        await Backend().connect_tcp(*black_hole, timeout=0.1)


def test_families_take_turns() -> None:
    """The first family leads, and each keeps its order."""
    six, four = [("six", n) for n in range(3)], [("four", n) for n in range(2)]
    assert interleave([*six, *four]) == [six[0], four[0], six[1], four[1], six[2]]


@pytest.mark.anyio
async def test_no_socket_is_left(server: FaultServer) -> None:
    """After success, failure, a body read in part and a cancelled request, no descriptor stays open."""
    async with Transport(QUICK) as warm:
        await fetch(server, warm)
    before = len(os.listdir("/proc/self/fd"))
    ends = server.accepted
    async with Transport(QUICK) as transport:
        await fetch(server, transport)
        server.fault(PATH, Hangup, Status(404), OK)
        await fetch(server, transport)
        async with transport.open(server.url + PATH) as body:
            await body.pull(10, lambda n: memoryview(bytearray(n)), lambda _view: None)
        with anyio.move_on_after(0.001):
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(fetch, server, transport)
    assert server.accepted > ends
    await anyio.to_thread.run_sync(server.wait_for, lambda: len(os.listdir("/proc/self/fd")) <= before)
