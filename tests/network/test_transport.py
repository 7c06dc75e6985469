"""Requests: redirects, retries, waits, credentials, framings, errors, logs."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import httpx
import pytest

from asyncfetch.errors import (
    AsyncfetchError,
    NetworkError,
    ProtocolError,
    ProxyError,
    RateLimitedError,
    ServerError,
    StalledError,
)
from asyncfetch.events import Event, Notifier, Retrying
from asyncfetch.network.body import Body
from asyncfetch.network.ranges import Target
from asyncfetch.network.reading import read_span
from asyncfetch.network.transport import Reply, Transport, retry_after
from asyncfetch.network.urls import origin_of
from asyncfetch.policy import Policy
from asyncfetch.spans import Span

from ..kit.canaries import PASSWORD, SIGNATURE, TOKEN, shown
from ..kit.fault_server import (
    OK,
    QUICK,
    Chunked,
    Drip,
    Fault,
    FaultServer,
    Hangup,
    Headers,
    Raw,
    Reset,
    ResetAtOnce,
    Resource,
    Stall,
    Status,
    Truncate,
    UntilClose,
    transport_of,
)

BODY = bytes(range(256)) * 1000
PATH = "/files/x.bin"
ELSEWHERE = "/elsewhere/x.bin"
RESET = Reset(150_000)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """A folder with one file, and the same file on the second port."""
    with FaultServer() as running:
        running.web("/files", {"x.bin": BODY})
        running.resources[ELSEWHERE] = Resource(BODY, second=True)
        yield running


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are exactly what the server asks for."""
    monkeypatch.setattr(random, "random", lambda: 0.0)


def follow(_redirect: Reply, _target: str) -> bool:
    return True


async def pull_all(body: Body, limit: int = 1 << 20) -> bytes:
    """The body, in pieces of at most `limit` bytes."""
    data = bytearray()
    while await body.pull(limit, lambda n: memoryview(bytearray(n)), data.extend):
        pass
    return bytes(data)


# -- redirects and credentials -------------------------------------------------------------------


@pytest.mark.anyio
async def test_token_stays_at_the_first_origin(server: FaultServer) -> None:
    """A redirect within the origin keeps the headers, one to another port loses all that identify the caller."""
    server.fault("/a", Status(302, {"location": "/b", "set-cookie": f"session={TOKEN}; Path=/"}))
    server.fault("/b", Status(307, {"location": server.storage_url + ELSEWHERE}))
    headers = {"authorization": f"Bearer {TOKEN}", "x-custom": TOKEN, "range": "bytes=0-9"}
    async with Transport(QUICK) as transport:
        reply = await transport.fetch(server.url + "/a", limit=100, headers=headers, may_follow=follow)
    assert reply.body == BODY[:10]
    first, second, third = server.seen
    assert first.headers["authorization"] == second.headers["authorization"] == f"Bearer {TOKEN}"
    assert second.headers["cookie"] == f"session={TOKEN}"
    assert not shown(str(third.headers))
    assert third.headers["range"] == "bytes=0-9"


@pytest.mark.anyio
async def test_small_answers_take_no_thread(server: FaultServer) -> None:
    """But a large one does. A user and a password in an address are sent, and not to where a redirect leads."""
    address, elsewhere = (url.replace("://", f"://user:{PASSWORD}@") for url in (server.url, server.storage_url))
    server.fault("/a", Status(302, {"location": elsewhere + ELSEWHERE}), forever=True)
    async with Transport(QUICK) as transport:
        for limit, busy in ((60_000, False), (1 << 20, True)):
            span = {"range": f"bytes=0-{limit - 1}"}
            reply = await transport.fetch(f"{address}/a", limit=limit, headers=span, may_follow=follow)
            assert reply.body == BODY[:limit]
            assert bool(transport.limits.busy) is busy
    assert [seen.headers.get("authorization", "")[:6] for seen in server.seen] == ["Basic ", "", "Basic ", ""]


@pytest.mark.anyio
async def test_credentials_of_a_client_stay_at_the_first_origin(server: FaultServer) -> None:
    """What a caller's client sends by default goes to the first origin only, and the client is not changed."""
    server.fault(PATH, Status(302, {"location": server.storage_url + ELSEWHERE}))
    defaults: dict[str, Any] = {
        "headers": {"x-api-key": TOKEN, "proxy-authorization": TOKEN},
        "cookies": {"session": TOKEN},
        "auth": ("user", PASSWORD),
    }
    async with httpx.AsyncClient(**defaults) as client:
        before = (client.headers.raw, dict(client.cookies), client.auth)
        async with Transport(QUICK, client=client) as transport:
            assert (await transport.fetch(server.url + PATH, limit=1 << 20, may_follow=follow)).body == BODY
        assert not client.is_closed
        assert (client.headers.raw, dict(client.cookies), client.auth) == before
    first, second = server.seen
    assert first.headers["x-api-key"] == TOKEN
    assert first.headers["authorization"].startswith("Basic ")
    assert first.headers["cookie"] == f"session={TOKEN}"
    assert not {"x-api-key", "authorization", "cookie", "proxy-authorization"} & second.headers.keys()


@pytest.mark.anyio
async def test_redirects_end(server: FaultServer) -> None:
    """A loop ends after `max_redirects`; a redirect without a location is the answer."""
    server.fault("/loop", Status(302, {"location": "/loop"}), forever=True)
    server.fault("/nowhere", Status(302))
    async with Transport(replace(QUICK, max_redirects=3)) as transport:
        with pytest.raises(ProtocolError, match="3 redirects"):
            await transport.fetch(server.url + "/loop", limit=1, may_follow=follow)
        assert (await transport.fetch(server.url + "/nowhere", limit=1, may_follow=follow)).status == 302
    assert len(server.to("/loop")) == 4


@pytest.mark.anyio
async def test_redirects_are_asked_about(server: FaultServer) -> None:
    """A redirect that the caller declines is the answer, with its headers."""
    server.fault(PATH, Status(302, {"location": server.storage_url + ELSEWHERE, "x-linked-size": "5"}))
    asked: list[tuple[str, str]] = []

    def decline(redirect: Reply, target: str) -> bool:
        asked.append((redirect.url, target))
        return False

    async with Transport(QUICK) as transport:
        reply = await transport.fetch(server.url + PATH, limit=1, may_follow=decline)
    assert (reply.status, reply.headers["x-linked-size"]) == (302, "5")
    assert asked == [(server.url + PATH, server.storage_url + ELSEWHERE)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://h/x", "https://H:443/y", True),
        ("http://h/x", "http://h:80/y?q", True),
        ("https://h/x", "http://h/x", False),
        ("https://h:8443/x", "http://h:8443/x", False),
        ("https://h/x", "https://h:444/x", False),
        ("https://h/x", "https://h.evil/x", False),
        ("https://h/x", "https://h@evil/x", False),
        ("https://u:p@h/x", "https://h/x", True),
    ],
)
def test_origins(one: str, other: str, same: bool) -> None:
    """An origin is scheme, host and port."""
    assert (origin_of(one) == origin_of(other)) is same


# -- retries -------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
@pytest.mark.parametrize(
    "fault",
    [Hangup, ResetAtOnce, Truncate(1000), Reset(0), Reset(1000), Stall(1000), (Chunked, Truncate(100)), Status(503)],
)
async def test_small_answers_are_fetched_again(server: FaultServer, kind: str, fault: Fault) -> None:
    """A failure anywhere in an answer costs one more request, and the caller is told."""
    server.fault(PATH, fault)
    told: list[Event] = []
    async with transport_of(kind, replace(QUICK, read_timeout=0.5)) as shared:
        transport = shared.for_call(Notifier(told.append))
        reply = await transport.fetch(server.url + PATH, limit=1 << 20, file="x")
    assert reply.body == BODY
    assert len(server.to(PATH)) == 2
    assert [(event.file, event.attempt) for event in told if isinstance(event, Retrying)] == [("x", 1)]
    assert len(told) == 1


@pytest.mark.anyio
async def test_statuses_that_are_tried_again(no_jitter: None) -> None:
    """The whole list, over every status: all others come back to the caller after one request."""
    asked: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(int(request.url.path[1:]))
        return httpx.Response(asked[-1], headers={"retry-after": "0"})

    policy = replace(QUICK, attempts=2)
    mock = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    async with mock as client, Transport(policy, client=client) as transport:
        for status in range(100, 600):
            with suppress(ServerError, RateLimitedError, ProxyError):
                reply = await transport.fetch(f"http://h{status}/{status}", limit=1, headers={"range": "bytes=0-0"})
                assert reply.status == status
    server_errors = set(range(500, 600)) - {501, 505}
    assert {status for status in asked if asked.count(status) > 1} == {408, 425, 429, *server_errors}


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(6))
async def test_pieces_of_any_size(seed: int) -> None:
    """A caller's client hands out pieces as it likes, and there is room as there is: each byte lands once, in order."""
    chance = random.Random(seed)
    sent = chance.randbytes(300_000)
    landed = bytearray()
    largest = chance.choice([1_000, 40_000, 400_000])

    async def pieces() -> AsyncIterator[bytes]:
        at = 0
        while at < len(sent):
            nbytes = chance.randrange(largest)
            yield sent[at : at + nbytes]
            at += nbytes

    def place(nbytes: int) -> memoryview:
        return memoryview(bytearray(chance.randint(1, nbytes)))

    async with (
        httpx.AsyncClient(
            transport=httpx.MockTransport(lambda _request: httpx.Response(200, content=pieces()))
        ) as client,
        Transport(QUICK, client=client) as transport,
        transport.open("http://mock/x") as body,
    ):
        received = 0
        while got := await body.pull(chance.randint(1, 100_000), place, landed.extend):
            received += got
            assert received == len(landed)
    assert landed == sent


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * 200_000 + b"\r\n\r\n",
    ],
    ids=["two-lengths", "negative", "status", "no-http", "chunk", "long-head"],
)
async def test_what_is_not_http(server: FaultServer, answer: bytes) -> None:
    """Answers that break HTTP are network errors of ours."""
    server.fault(PATH, Raw(answer), forever=True)
    async with Transport(replace(QUICK, attempts=2)) as transport:
        with pytest.raises(NetworkError):
            await transport.fetch(server.url + PATH, limit=100)


# -- waiting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "0"}, 0),
        ({"retry-after": " 120 "}, 120),
        ({"retry-after": ""}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "1.5"}, None),
        ({"retry-after": "\u00b2"}, None),
        ({"retry-after": "9999999999"}, None),
        ({"retry-after": "5, 7"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Mon, 01 Jan 2024 00:01:00 GMT", "date": "Mon, 01 Jan 2024 00:00:00 GMT"}, 60),
        ({"retry-after": "Mon, 01 Jan 2024 00:00:00 GMT", "date": "Mon, 01 Jan 2024 00:05:00 GMT"}, 0),
        ({"retry-after": "Mon, 01 Jan 2024 00:00:00 GMT"}, 0),
        ({"retry-after": "Mon, 01 Jan 2024 00:01:00 GMT", "date": "rubbish"}, None),
        ({"retry-after": "Mon, 99 Jan 99999 00:01:00 GMT"}, None),
        ({"ratelimit": '"api";r=0;t=55'}, 56),
        ({"ratelimit": '"api";r=3;t=55'}, None),
        ({"ratelimit": '"api";r=0;t=55', "retry-after": "7"}, 7),
        ({"ratelimit": "rubbish"}, None),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    """Retry-After as seconds and as a date, RateLimit where it is empty; nonsense is no wish."""
    assert retry_after(headers) == seconds


@pytest.mark.anyio
async def test_rate_limit_holds_the_whole_origin(server: FaultServer, no_jitter: None) -> None:
    """After a 429 nothing goes to that origin before its time; other origins are free."""
    server.fault(PATH, Status(429, {"retry-after": "1"}))
    times: dict[str, float] = {}

    async def fetch(name: str, url: str) -> None:
        reply = await transport.fetch(url, limit=1 << 20)
        assert reply.body == BODY
        times[name] = time.monotonic() - began

    async with Transport(QUICK) as transport:
        began = time.monotonic()
        async with anyio.create_task_group() as group:
            group.start_soon(fetch, "limited", server.url + PATH)
            await anyio.to_thread.run_sync(server.wait_for, lambda: bool(server.to(PATH) and server.to(PATH)[0].status))
            await anyio.sleep(0.05)
            group.start_soon(fetch, "same", server.url + PATH)
            group.start_soon(fetch, "other", server.storage_url + ELSEWHERE)
    assert times["other"] < 0.8
    assert 0.9 < times["limited"] < 2
    assert 0.9 < times["same"] < 2
    assert len(server.to(PATH)) == 3


@pytest.mark.anyio
@pytest.mark.parametrize(("status", "error"), [(429, RateLimitedError), (503, ServerError)])
async def test_too_long_a_wait(server: FaultServer, status: int, error: type[AsyncfetchError]) -> None:
    """A wait beyond the policy's is not waited for: the error comes at once and tells it."""
    server.fault(PATH, Status(status, {"retry-after": "3600"}), forever=True)
    async with Transport(QUICK) as transport:
        with anyio.fail_after(2), pytest.raises(error) as caught:
            await transport.fetch(server.url + PATH, limit=1)
    assert caught.value.retry_after == 3600  # type: ignore[attr-defined]
    assert len(server.to(PATH)) == 1


# -- bodies --------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
@pytest.mark.parametrize("fault", [OK, Chunked, UntilClose, (Drip(50_000, 0.001), Chunked)])
@pytest.mark.parametrize("limit", [1, 1 << 20])
async def test_bodies_come_whole(server: FaultServer, kind: str, fault: Fault, limit: int) -> None:
    """Every framing, on both paths, in pieces of any size."""
    server.resources[PATH].body = BODY[: limit * 30 + 1]
    server.fault(PATH, fault)
    async with transport_of(kind) as transport, transport.open(server.url + PATH) as body:
        assert await pull_all(body, limit) == server.resources[PATH].body


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
async def test_chunks_win_over_a_length(server: FaultServer, kind: str) -> None:
    """Of both framings in one answer the chunks count (RFC 9112, section 6.3)."""
    server.fault(PATH, (Headers(content_length="1000"), Chunked))
    async with transport_of(kind) as transport, transport.open(server.url + PATH) as body:
        assert body.length is None
        assert await pull_all(body) == BODY


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
@pytest.mark.parametrize("fault", [Truncate(150_000), RESET])
async def test_what_came_before_a_break_counts(server: FaultServer, kind: str, fault: Fault) -> None:
    """Each byte before a break is handed over and counted before the error comes."""
    server.fault(PATH, fault)
    data, counted = bytearray(), 0
    async with transport_of(kind) as transport, transport.open(server.url + PATH) as body:
        with pytest.raises(NetworkError):  # noqa: PT012
            while True:
                counted += await body.pull(1 << 20, lambda n: memoryview(bytearray(n)), data.extend)
    assert counted == len(data)
    assert data == BODY[: len(data)]
    assert counted == 150_000 or (kind == "client" and fault is RESET)  # a RST may empty the client's own buffers


@pytest.mark.anyio
@pytest.mark.parametrize(("fault", "reason"), [(Truncate(20_000), "before the end"), (Reset(20_000), "reset by peer")])
async def test_a_break_between_the_pieces_of_a_burst(server: FaultServer, fault: Fault, reason: str) -> None:
    """A burst brings several pieces: those before the break count, although the same thread meets the break."""
    server.fault(PATH, fault)
    landed: list[int] = []
    async with transport_of("own") as transport, transport.open(server.url + PATH) as body:
        await anyio.to_thread.run_sync(server.wait_for, lambda: server.sent(PATH) >= 20_000)
        await anyio.sleep(0.05)  # all of it is in the socket, and the break too
        counted = 0
        while counted < 20_000:  # one burst, unless this machine is so slow that it gives way
            counted += await body.pull(
                1 << 20, lambda n: memoryview(bytearray(min(n, 4_000))), lambda view: landed.append(len(view))
            )
        assert len(landed) >= 5
        assert counted == sum(landed) == 20_000
        with pytest.raises(NetworkError, match=reason):
            await body.pull(1 << 20, lambda n: memoryview(bytearray(n)), lambda view: landed.append(len(view)))
    assert sum(landed) == 20_000


@pytest.mark.anyio
async def test_a_body_that_misses_bytes_is_never_complete(server: FaultServer) -> None:
    """Short of the announced length, the end of the connection is an error that says what is missing."""
    server.fault(PATH, Truncate(255_990))
    async with Transport(QUICK) as transport, transport.open(server.url + PATH) as body:
        with pytest.raises(NetworkError, match="10 bytes before the end"):
            await pull_all(body)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
async def test_silence_is_a_stall(server: FaultServer, kind: str) -> None:
    """Nothing for `read_timeout` seconds: StalledError, in that time."""
    server.fault(PATH, Stall(1000))
    async with (
        transport_of(kind, replace(QUICK, read_timeout=0.1)) as transport,
        transport.open(server.url + PATH) as body,
    ):
        began = time.monotonic()
        with pytest.raises(StalledError):
            await pull_all(body)
    assert 0.08 < time.monotonic() - began < 1


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
async def test_a_drip_is_a_stall(server: FaultServer, kind: str) -> None:
    """Fewer bytes than the floor in a window: StalledError, although no single read waits long."""
    server.fault(PATH, Drip(1, 0.02))
    policy = replace(QUICK, stall_window=0.2, stall_bytes=1000)
    async with transport_of(kind, policy) as transport, transport.open(server.url + PATH) as body:
        began = time.monotonic()
        with pytest.raises(StalledError, match="only"):
            await pull_all(body)
    assert 0.15 < time.monotonic() - began < 1.5


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
@pytest.mark.parametrize("framing", [OK, Chunked], ids=["length", "chunks"])
async def test_a_slow_end_is_no_stall(server: FaultServer, kind: str, framing: Fault) -> None:
    """However slowly the last bytes came, they are here: no error, and no range of no bytes is asked for."""
    server.fault(PATH, (Drip(500, 0.3), framing), forever=True)
    target = Target(server.url + PATH)
    async with transport_of(kind, replace(QUICK, read_timeout=2, stall_window=0.1, stall_bytes=1 << 30)) as transport:
        data = await read_span(transport, target, Span(100, 1100), file="x", size=len(BODY))
    assert data == BODY[100:1100]
    assert all((seen.start or 0) < 1100 for seen in server.to(PATH))


@pytest.mark.anyio
async def test_small_answers_are_bounded(server: FaultServer) -> None:
    """`fetch` reads no more than its limit, and says that there was more."""
    async with Transport(QUICK) as transport:
        for limit, truncated in ((1000, True), (len(BODY) - 1, True), (len(BODY), False)):
            reply = await transport.fetch(server.url + PATH, limit=limit)
            assert (reply.body, reply.truncated) == (BODY[:limit], truncated)


@pytest.mark.anyio
async def test_proxy_of_the_environment(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the environment names is used, on the generic path."""
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("NO_PROXY", "")
    async with Transport(QUICK) as transport:
        reply = await transport.fetch("http://behind.invalid/x", limit=100)
    assert reply.status == 404
    assert server.seen[0].path == "http://behind.invalid/x"


@pytest.mark.anyio
async def test_bugs_are_not_network_errors() -> None:
    """What is not the network's comes out as it is, at once."""
    asked = 0

    def broken(_request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        raise ZeroDivisionError

    mock = httpx.AsyncClient(transport=httpx.MockTransport(broken))
    async with mock as client, Transport(Policy(), client=client) as transport:
        with pytest.raises(ZeroDivisionError):
            await transport.fetch("http://h/", limit=1)
    assert asked == 1


# -- secrets -------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "httpx", "httpx2"])
@pytest.mark.parametrize("place", ["{storage}/elsewhere/x.bin", "/files/x.bin", "{password}/files/x.bin"])
async def test_logs_hide_signatures(
    server: FaultServer, caplog: pytest.LogCaptureFixture, place: str, kind: str
) -> None:
    """At DEBUG, neither httpx nor httpcore, nor their successors, writes a query, a password, a cookie or a token."""
    caplog.set_level(logging.DEBUG)
    address = server.url.replace("://", f"://user:{PASSWORD}@")
    location = f"{place.format(storage=server.storage_url, password=address)}?X-Signature={SIGNATURE}"
    server.fault("/start", Status(302, {"location": location, "set-cookie": f"session={TOKEN}"}))
    headers = {"authorization": TOKEN}
    async with AsyncExitStack() as stack:
        client = None if kind == "own" else await stack.enter_async_context(pytest.importorskip(kind).AsyncClient())
        transport = await stack.enter_async_context(Transport(QUICK, client=client))
        reply = await transport.fetch(f"{address}/start?key={SIGNATURE}", limit=10, headers=headers, may_follow=follow)
    assert reply.status == 200
    assert sum(record.name in ("asyncfetch.requests", "httpx", "httpx2") for record in caplog.records) == 2
    assert any(record.name.startswith("httpcore") for record in caplog.records)
    assert not shown(caplog.text)


@pytest.mark.anyio
async def test_logs_of_others_are_left_alone(server: FaultServer, caplog: pytest.LogCaptureFixture) -> None:
    """What a program sends by httpx on its own account is logged as ever, also while we send."""
    caplog.set_level(logging.DEBUG)
    async with Transport(QUICK) as transport, httpx.AsyncClient() as client, anyio.create_task_group() as group:
        group.start_soon(partial(transport.fetch, f"{server.url}{PATH}?ours", limit=10))
        group.start_soon(client.get, f"{server.url}{PATH}?theirs")
    assert f'GET {server.url}{PATH}?theirs "HTTP' in caplog.text
    assert f"GET {server.url}{PATH}?…: 200" in caplog.text
