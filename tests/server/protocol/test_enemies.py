"""Clients that mean ill, or are broken: a clear status, bounded memory, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import httpx
import pytest

from asyncfetch.server import Server
from asyncfetch.server.protocol import body, connections, forms
from asyncfetch.spans import MiB

from ..trees import write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = b"0123456789"
PAGE = "/org/m/resolve/main/a.txt"
# One for all: to make one costs more than what it asks. It keeps no connection that nobody would close.
CLIENT = httpx.Client(timeout=30, limits=httpx.Limits(max_keepalive_connections=0))
IDLE = 2000  # connections; the server's end of each is in this process too
PATHS_INFO = "/api/models/org/m/paths-info/main"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "root" / "org" / "m" / "a.txt", DATA)
    for number in range(12):
        write(tmp_path / "root" / "org" / "m" / f"folder{number}" / "b.txt", DATA)
    return tmp_path / "root"


@pytest.fixture
def folder(root: Path) -> Iterator[Server]:
    with Server(root) as running:
        yield running


@pytest.fixture
def services(folder: Server, tmp_path: Path) -> Iterator[list[Server]]:
    """Over a folder, and over another Hub."""
    with Server(tmp_path / "cache", upstream=folder.url) as passing:
        yield [folder, passing]


def dial(service: Server) -> socket.socket:
    host, _, port = service.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), 20)


def exchange(service: Server, request: bytes) -> int:
    """The status of the answer to bytes as they are; 0 where the connection is closed without one."""
    with dial(service) as sock, suppress(ConnectionError):
        sock.sendall(request)
        line = sock.makefile("rb").readline().split()
        return int(line[1]) if line else 0
    return 0


def is_well(service: Server) -> bool:
    return CLIENT.get(service.url + PAGE).content == DATA


HOST = b"Host: h\r\n\r\n"


HEADS = (
    b"GET / HTTP/1.1\r\nX: " + b"x" * (1 << 20),
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200_000 + HOST,
    b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n" + HOST,
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"GET / HTTP/1.1\r\nContent-Length: -5\r\n" + HOST,
    b"POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n" + HOST,
    b"BREW / HTTP/1.1\r\n" + HOST,
)
PATHS = (
    b"http://evil.invalid" + PAGE.encode(),
    b"/org/m/resolve/main/../../../../etc/passwd",
    b"/org/m/resolve/main/%2e%2e/%2e%2e/secret",
    b"/org/m/resolve/main/..%5c..%5csecret",
    b"/org/m/resolve/main//etc/passwd",
    b"/org/m/resolve/main/%00",
    b"/org/m/resolve/main/a.txt%00.json",
    b"/org/m/resolve/..%2f..%2fmain/a.txt",
    b"/org/..%2fm/resolve/main/a.txt",
    b"/%2e%2e/m/resolve/main/a.txt",
    b"//org/m/resolve/main/a.txt",
    b"/api/models/org/m/tree/main/%2e%2e/%2e%2e",
    b"/org/m/raw/main/%ff%fe",
    b"/org/m/resolve/main/" + b"x/" * 5000,
    b"/org/m/resolve/main/" + b"%F0%9F%8E%89" * 100,
)


def test_requests_that_lead_nowhere(services: list[Server]) -> None:
    for service in services:
        for request in (*HEADS, *(b"GET " + path + b" HTTP/1.1\r\n" + HOST for path in PATHS)):
            assert exchange(service, request) in (0, 400, 401, 404, 405), request[:60]
        assert is_well(service)


RANGES = (
    ("bytes=0-0,2-3", 200, DATA),
    ("bytes=9-2", 200, DATA),
    ("bytes=-", 200, DATA),
    ("bytes=a-b", 200, DATA),
    ("lines=0-1", 200, DATA),
    ("bytes=0x1-0x2", 200, DATA),
    ("bytes=" + "0-1," * 10_000, 200, DATA),
    ("bytes=-3", 206, DATA[-3:]),
    ("bytes=2-99999999999999999999999999", 206, DATA[2:]),
    ("bytes=10-", 416, None),
    ("bytes=99999999999999999999999999-", 416, None),
    ("bytes=-0", 416, None),
)


def test_ranges_of_nonsense(services: list[Server]) -> None:
    for service in services:
        for header, status, sent in RANGES:
            answer = CLIENT.get(service.url + PAGE, headers={"Range": header})
            assert answer.status_code == status, header[:60]
            assert sent is None or answer.content == sent, header[:60]


def test_bodies_that_are_bombs(services: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"paths=a&" * 8192

    many = json.dumps({"paths": ["a.txt"] * (forms.MOST_PATHS + 1)}).encode()
    for service in services:
        for content, headers, statuses in (
            (endless(), {}, (413,)),
            (b"paths=a&" * (forms.MOST_PATHS + 2), {}, (400,)),
            (many, JSON, (400,)),
            (b"[" * MiB, JSON, (400,)),
            (b'{"paths":' + b"[" * MiB, JSON, (400,)),
            (b"\xff\xfe", JSON, (400,)),
        ):
            with suppress(httpx.WriteError):  # it need not read what it refuses
                answer = CLIENT.post(service.url + PATHS_INFO, content=content, headers=headers)
                assert answer.status_code in statuses
    monkeypatch.setattr(forms, "PATIENCE", 0.3)
    for service in services:
        slow = b"POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\npaths=" % PATHS_INFO.encode()
        assert exchange(service, slow) == 408
        assert is_well(service)


def test_a_question_about_many_folders_is_one_for_the_source(services: list[Server]) -> None:
    folder, passing = services
    paths = [f"folder{number}/{name}" for number in range(12) for name in ("b.txt", "none")]
    before = len(folder.requests)
    answer = CLIENT.post(passing.url + PATHS_INFO, json={"paths": paths, "expand": True})
    assert [entry["path"] for entry in answer.json()] == paths[::2]
    assert all("lastCommit" in entry for entry in answer.json())
    assert len(folder.requests) - before <= 2


def test_who_asks_for_nothing_is_cut_off(services: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD", 0.3)
    whole = b"HEAD %s HTTP/1.1\r\nHost: h\r\n\r\n" % PAGE.encode()
    for service in services:
        for asked, begun in ((b"", b""), (b"", b"GET / HTTP/1.1\r\nHo"), (whole, b"GET / HT")):
            with dial(service) as sock, suppress(ConnectionError):
                sock.sendall(asked)
                assert not asked or sock.recv(1 << 16).startswith(b"HTTP/1.1 200")
                sock.sendall(begun)
                assert not sock.recv(1)  # the end, before the time-out of the socket
        assert is_well(service)


def test_who_takes_nothing_is_cut_off(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that reads is not, however long it takes; nor is a fill."""
    os.truncate(root / "org" / "m" / "a.txt", 64 * MiB)
    with Server(root) as folder, Server(tmp_path / "cache", upstream=folder.url) as passing:
        CLIENT.head(passing.url + PAGE)
        monkeypatch.setattr(connections, "STALL", 0.5)
        for service in (folder, passing):
            with dial(service) as sock:
                sock.sendall(b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n" % PAGE.encode())
                broken = select.poll()
                broken.register(sock, select.POLLHUP | select.POLLERR)
                assert broken.poll(20_000)
            with CLIENT.stream("GET", service.url + PAGE) as answer:
                assert sum(len(piece) for piece in answer.iter_raw()) == 64 * MiB


def test_who_has_left_is_not_cut_off_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever hangs up is no error in the log of the server, also where the loop has closed the socket by then."""
    os.truncate(root / "org" / "m" / "a.txt", 64 * MiB)
    cut, done = connections.Connection._cut, threading.Event()

    def late(connection: connections.Connection) -> None:
        connection.transport.abort()
        try:
            cut(connection)
        finally:
            done.set()

    monkeypatch.setattr(connections.Connection, "_cut", late)
    with Server(root) as service:
        with dial(service) as sock:
            sock.sendall(b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n" % PAGE.encode())
            assert sock.recv(12) == b"HTTP/1.1 200"
        assert done.wait(20)
        assert CLIENT.head(service.url + PAGE).status_code == 200
    assert not [record for record in caplog.records if record.exc_info]


def test_who_reads_is_not_cut_off(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait for a reader ends when it goes on."""
    os.truncate(root / "org" / "m" / "a.txt", 32 * MiB)
    later, waits = connections.Connection._later, list[tuple[connections.Connection, asyncio.TimerHandle]]()

    def noted(connection: connections.Connection, seconds: float) -> asyncio.TimerHandle:
        handle = later(connection, seconds)
        if seconds == connections.STALL:
            waits.append((connection, handle))
        return handle

    monkeypatch.setattr(connections.Connection, "_later", noted)
    with Server(root) as folder, Server(tmp_path / "cache", upstream=folder.url) as passing:
        until = time.monotonic() + 20

        def ours() -> list[tuple[connections.Connection, asyncio.TimerHandle]]:
            return [wait for wait in waits if wait[0].client == address]

        with httpx.Client(timeout=30) as keeping, keeping.stream("GET", passing.url + PAGE) as answer:
            address = answer.extensions["network_stream"].get_extra_info("client_addr")
            while not ours():  # more than all buffers hold
                assert time.monotonic() < until
                time.sleep(0.01)
            assert sum(len(piece) for piece in answer.iter_raw()) == 32 * MiB
            while not all(handle.cancelled() for _, handle in waits):
                assert time.monotonic() < until
            assert not any(connection.transport.is_closing() for connection, _ in ours())  # which would end them too


@pytest.mark.skipif(not hasattr(socket, "TCP_CORK"), reason="this system sends whole segments of its own accord")
def test_a_file_goes_in_whole_segments(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is held back when the file is through: the next answer on the connection comes at once."""
    (root / "org" / "m" / "a.txt").write_bytes(bytes(3 * MiB))
    push, send, held = connections._push, connections.Connection.send_file, list[tuple[str, int]]()

    def corked(sock: socket.socket) -> int:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)

    def pushing(sink: int, *given: int) -> int:
        with socket.socket(fileno=os.dup(sink)) as sock:
            held.append(("in", corked(sock)))
        return push(sink, *given)

    async def sending(connection: connections.Connection, part: body.FilePart) -> None:
        await send(connection, part)
        held.append(("after", corked(connection.transport.get_extra_info("socket"))))

    monkeypatch.setattr(connections, "_push", pushing)
    monkeypatch.setattr(connections.Connection, "send_file", sending)
    with Server(root) as server, httpx.Client(timeout=30) as client:
        for _ in range(2):
            assert client.get(server.url + PAGE).content == bytes(3 * MiB)
    assert {*held} == {("in", 1), ("after", 0)}


def test_a_quick_reader_takes_turns_with_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large part it gets what goes in its turn, in one of few threads; and all of it where that is long enough."""
    size, most, sendfile = 4 * MiB, MiB // 16, os.sendfile
    (tmp_path / "large").write_bytes(bytes(size))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    monkeypatch.setattr(connections, "_MOMENT", 20_000)
    # Who reads as quickly as it is sent gets all by one call.
    monkeypatch.setattr(os, "sendfile", lambda sink, source, at, n: sendfile(sink, source, at, min(n, most)))
    with open(tmp_path / "large", "rb") as file, theirs, ThreadPoolExecutor(1) as pool, ours:
        reader = pool.submit(lambda: sum(len(piece) for piece in iter(lambda: theirs.recv(MiB), b"")))
        monkeypatch.setattr(connections, "TURN", 0.0)
        sent = connections._push(ours.fileno(), file.fileno(), 0, size)
        assert 0 < sent <= most
        monkeypatch.setattr(connections, "TURN", 20.0)
        assert select.select([], [ours], [], 20)[1]
        assert connections._push(ours.fileno(), file.fileno(), sent, size) == size
        ours.close()
        assert reader.result() == size


def test_pieces_are_smaller_where_many_read() -> None:
    assert body.chunk_size() == body.CHUNK
    with ExitStack() as stack:
        for _ in range(256):
            stack.enter_context(body.sending())
        assert body.chunk_size() == body.ALL_CHUNKS // 256
        for _ in range(4000):
            stack.enter_context(body.sending())
        assert body.chunk_size() == body.LEAST_CHUNK
    assert body.chunk_size() == body.CHUNK


def test_slow_readers_count(folder: Server, root: Path) -> None:
    """Those who read nothing hold their share of what all may hold, and others are served beside them."""
    os.truncate(root / "org" / "m" / "a.txt", 16 * MiB)
    CLIENT.head(folder.url + PAGE)
    with ExitStack() as stack:
        for _ in range(128):
            sock = stack.enter_context(dial(folder))
            sock.sendall(b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n" % PAGE.encode())
            assert sock.recv(12) == b"HTTP/1.1 200"
        assert body.chunk_size() == body.ALL_CHUNKS // 128
        assert CLIENT.get(f"{folder.url}/org/m/resolve/main/folder0/b.txt").content == DATA
    done = threading.Event()
    while body.chunk_size() != body.CHUNK:
        assert not done.wait(0.01)


def test_idle_connections(services: list[Server]) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        for service in services:
            for _ in range(min(IDLE, (soft - 500) // 2) // len(services)):
                stack.enter_context(dial(service))
        assert all(is_well(service) for service in services)


def test_as_many_descriptors_as_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, limits[1]))
    raised = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: raised.append(pair))
    connections.raise_descriptor_limit()
    assert raised == [(limits[1], limits[1])]
