"""Heads and what follows them, held against h11: whatever comes, and however it is cut."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import anyio
import h11
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import asyncfetch
from asyncfetch.errors import NetworkError
from asyncfetch.network.heads import HeadSplitter
from asyncfetch.network.sockets import Stream
from asyncfetch.network.transport import Transport

from ..kit.fault_server import QUICK, Drip, FaultServer, Lines, Raw
from ..kit.files import safetensors_bytes

NEWLINES = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"", b"\r\n\r\n"])
STATUS = st.sampled_from(
    [
        *(b"HTTP/1.1 %d OK" % code for code in (200, 206, 302, 404, 416, 429, 503, 999)),
        *(b"HTTP/1.1 %d Interim" % code for code in (100, 102, 103, 199, 101)),
        *(b"HTTP/1.0 200 OK", b"HTTP/1.0 103 Early", b"HTTP/2.0 206 OK", b"HTTP/9.9 103 Early"),
        *(b"HTTP/1.1 204 None", b"HTTP/1.1 304 None", b"HTTP/1.1 000 No", b"HTTP/1.1 099 No"),
        *(b"HTTP/1.1 200", b"HTTP/1.1  200 OK", b"http/1.1 200 OK", b"HTTP/1.1 20 OK", b"ICY 200 OK", b"\x16\x03", b""),
    ]
)
FIELD = st.sampled_from(
    [b"Content-Length: 40", b"ETag: x", b" folded", b"\tfolded: too", b"Link: </a>", b"a\rb: c", b"no colon", b"B:\xff"]
)
BODY = st.binary(max_size=60) | st.text("\r\nx", max_size=60).map(str.encode)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A head, sound or not, with line ends of all kinds."""
    lines = [draw(STATUS), *draw(st.lists(FIELD, max_size=4)), b""]
    plain = draw(st.booleans())
    return b"".join(line + (b"\r\n" if plain else draw(NEWLINES)) for line in lines)


ANSWERS = st.lists(heads(), min_size=1, max_size=3).map(b"".join)
CUTS = st.lists(st.integers(0, 200), max_size=12)


def chunks(message: bytes, cuts: list[int]) -> Iterator[bytes]:
    """`message` cut at these places."""
    places = sorted({min(cut, len(message)) for cut in cuts} | {0, len(message)})
    return (message[start:stop] for start, stop in pairwise(places))


def client() -> h11.Connection:
    """h11 as httpcore has it once a request was sent."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    connection.send(h11.EndOfMessage())
    return connection


def response(connection: h11.Connection) -> bool:
    """Whether the final head is there. Raises as h11 does for what is none."""
    while (event := connection.next_event()) is not h11.NEED_DATA:
        if isinstance(event, h11.Response):
            return True
    return False


def body_by_h11(message: bytes) -> bytes | None:
    """What follows the final head, where h11 finds one."""
    connection = client()
    connection.receive_data(message)
    try:
        return connection.trailing_data[0] if response(connection) else None
    except h11.RemoteProtocolError:
        return None


def body_when_split(message: bytes, cuts: list[int]) -> tuple[bytes | None, bool]:
    """The same where the splitter stands between the wire and h11, and whether h11 holds nothing of it."""
    connection, splitter, wire = client(), HeadSplitter(), chunks(message, cuts)
    for chunk in wire:
        given, left = splitter.split(chunk)
        assert given
        assert given + left == chunk
        connection.receive_data(given)
        try:
            found = response(connection)
        except h11.RemoteProtocolError:
            return None, splitter.at_body
        if found:
            held = connection.trailing_data[0]
            assert not (held and splitter.at_body)
            return held + left + b"".join(wire), splitter.at_body
        assert not left
    return None, splitter.at_body


@settings(max_examples=500, deadline=None)
@given(ANSWERS, BODY, CUTS)
@example(b"HTTP/1.1 200 OK\nContent-Length: 40\n\n", b"ab\r\n\r\ncd", [])
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 40\n\r\n", b"ab\r\n\r\ncd\n\n", [17, 18])
@example(b"HTTP/1.0 103 Early\r\n\r\nHTTP/1.1 206 OK\r\n\r\n", b"\r\n\r\n", [1, 20, 21, 22, 23])
@example(b"HTTP/1.1 103 Early\n\nHTTP/1.1 206 OK\r\n\r\n", b"\n\n", [])
def test_h11_and_the_splitter_agree(answer: bytes, body: bytes, cuts: list[int]) -> None:
    """The body begins at the same byte for both, or there is none for both; where it is ours, h11 has nothing of it."""
    message = answer + body
    expected = body_by_h11(message)
    found, _ = body_when_split(message, cuts)
    assert found == expected


@settings(max_examples=300, deadline=None)
@given(st.lists(FIELD.filter(lambda field: b":" in field and b"\r" not in field), max_size=3), BODY, CUTS)
def test_plain_heads_are_told_apart(fields: list[bytes], body: bytes, cuts: list[int]) -> None:
    """What every server sends leaves the body to us, cut anywhere, with early hints before it."""
    lines = [b"HTTP/1.1 206 Partial Content", *fields, b"", b""]
    head = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + b"\r\n".join(lines)
    found, at_body = body_when_split(head + body, cuts)
    assert found == body_by_h11(head + body)
    assert at_body or found is None  # a folded line that nothing precedes


def test_who_reads_on_has_the_body() -> None:
    """Once httpcore was given bytes of the body, or an end where it asked for some, the body is httpcore's."""
    for more in (b"body", b""):
        splitter = HeadSplitter()
        assert splitter.split(b"HTTP/1.1 200 OK\r\n\r\nbo") == (b"HTTP/1.1 200 OK\r\n\r\n", b"bo")
        assert splitter.at_body
        assert splitter.split(more) == (more, b"")
        assert not splitter.at_body


@pytest.mark.parametrize("code", [101, 204, 304])
def test_answers_without_a_body(code: int) -> None:
    """They end with their head, whatever length they tell: httpcore knows, who waits for a body would not."""
    splitter = HeadSplitter()
    head = b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\n" % code
    assert splitter.split(head + b"HTTP/") == (head + b"HTTP/", b"")
    assert not splitter.at_body


# -- over real sockets ---------------------------------------------------------------------------

SINGLE = "model.safetensors"
LINES = [("\n",), ("\r\n", "\n"), ("\n", "\r\n")]


def tensors(kind: str, seed: int) -> list[np.ndarray]:
    """Bytes that look like ends of heads: everywhere, or once at a place where a splitter may stumble."""
    if kind == "everywhere":
        return [np.frombuffer(bytes(random.Random(seed).choices(b"\r\n\r\n\0", k=150_000)), np.uint8)]
    found = []
    for end in (b"\r\n\r\n", b"\n\n"):
        for place in (0, 1, 65_530 - 80, 65_530, 100_000):  # the header of the file has 80 bytes
            data = np.zeros(150_000, np.uint8)
            data[place : place + len(end)] = np.frombuffer(end, np.uint8)
            found.append(data)
    return found


@pytest.mark.anyio
@pytest.mark.parametrize("newlines", LINES, ids=["bare", "mixed", "mixed the other way"])
@pytest.mark.parametrize("kind", ["everywhere", "once"])
@pytest.mark.parametrize("storage", ["disk", "memory"])
async def test_heads_with_bare_line_feeds(
    server: FaultServer, tmp_path: Path, seed: int, newlines: tuple[str, ...], kind: str, storage: str
) -> None:
    """h11 takes them; the bytes of the body are the right ones, without a hash that would tell."""
    for number, data in enumerate(tensors(kind, seed)):
        url = server.web(f"/{number}", {SINGLE: safetensors_bytes({"w": data})})
        server.fault(f"/{number}/{SINGLE}", Lines(*newlines), (Lines(*newlines), Drip(20_000, 0.0005)), forever=True)
        with anyio.fail_after(20):
            state = await asyncfetch.load_async(url, cache_dir=tmp_path / str(number), storage=storage, policy=QUICK)
        assert np.array_equal(state["w"], data)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "head", [b"\r\nHTTP/1.1 200 OK", b"\nHTTP/1.1 200 OK", b"HTTP/1.1 101 Switching", b"HTTP/1.1 200 OK\r\n x: y"]
)
async def test_heads_that_are_none(server: FaultServer, head: bytes) -> None:
    """What h11 refuses is an error of ours; nothing of what follows is taken for a body."""
    server.fault("/x", Raw(head + b"\r\nContent-Length: 5\r\n\r\nhello"), forever=True)
    async with Transport(QUICK) as transport:
        with pytest.raises(NetworkError):
            await transport.fetch(f"{server.url}/x", limit=100)


@pytest.mark.anyio
async def test_plain_heads_take_the_short_way(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies of plain answers are received in bursts, those of odd ones by httpcore."""
    burst, bursts = Stream.burst, []

    def noted(stream: Stream, into: memoryview) -> tuple[int, bool]:
        bursts.append(len(into))
        return burst(stream, into)

    monkeypatch.setattr(Stream, "burst", noted)
    body = bytes(range(256)) * 400
    server.web("/files", {"x": body})
    async with Transport(QUICK) as transport:
        assert (await transport.fetch(f"{server.url}/files/x", limit=1 << 20)).body == body
        assert bursts
        bursts.clear()
        server.fault("/files/x", Lines("\n"))
        assert (await transport.fetch(f"{server.url}/files/x", limit=1 << 20)).body == body
        assert not bursts
