"""Spans of remote files: what is asked for, and which answers are believed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import anyio
import pytest

from asyncfetch.errors import (
    AccessError,
    AsyncfetchError,
    ChangedError,
    EntryNotFoundError,
    LinkExpiredError,
    NetworkError,
    ProtocolError,
)
from asyncfetch.events import Event, Notifier, Retrying
from asyncfetch.network.ranges import Target, open_span
from asyncfetch.network.reading import read_span
from asyncfetch.network.transport import Transport
from asyncfetch.spans import Span

from ..kit.canaries import SIGNATURE, TOKEN, shown
from ..kit.fault_server import (
    OK,
    QUICK,
    Answer,
    Capped,
    Chunked,
    ContentRange,
    Drip,
    Fault,
    FaultServer,
    Gzip,
    Headers,
    IgnoreRange,
    LoginPage,
    Reset,
    Shifted,
    Status,
    Truncate,
    UntilClose,
    transport_of,
)

BODY = bytes(range(256)) * 400  # 102,400 bytes
SPAN = Span(1000, 91_000)
PATH = "/files/x.bin"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """A folder with one file."""
    with FaultServer() as running:
        running.web("/files", {"x.bin": BODY})
        yield running


async def read(server: FaultServer, transport: Transport, **target: object) -> bytes:
    """`SPAN` of the file."""
    return await read_span(transport, Target(server.url + PATH, **target), SPAN, file="x", size=len(BODY))  # type: ignore[arg-type]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
@pytest.mark.parametrize(
    "fault", [OK, Chunked, UntilClose, IgnoreRange, (IgnoreRange, Chunked), (IgnoreRange, UntilClose)]
)
async def test_honest_answers(server: FaultServer, kind: str, fault: Fault) -> None:
    """Whatever the framing, and with or without ranges, the span's bytes come, with one request."""
    server.fault(PATH, fault)
    async with transport_of(kind) as transport:
        assert await read(server, transport) == BODY[1000:91_000]
    (seen,) = server.to(PATH)
    assert seen.headers["range"] == "bytes=1000-90999"
    assert seen.headers["accept-encoding"] == "identity"


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
@pytest.mark.parametrize("fault", [Truncate, Reset])
async def test_goes_on_where_it_broke(server: FaultServer, kind: str, fault: object) -> None:
    """Each request after a break asks from the byte after the last one that came, and no byte comes twice."""
    server.fault(PATH, fault(20_000), fault(30_000))  # type: ignore[operator]
    async with transport_of(kind) as transport:
        assert await read(server, transport) == BODY[1000:91_000]
    starts = [seen.start or 0 for seen in server.to(PATH)]
    if (kind, fault) == ("client", Reset):  # what the client's own buffers held at a RST may be lost
        assert starts == sorted(starts)
        assert starts[1] <= 21_000
        return
    assert starts == [1000, 21_000, 51_000]
    server.wait_for(lambda: server.sent(PATH) >= SPAN.nbytes)  # it counts what it has sent after sending it
    assert server.sent(PATH) == SPAN.nbytes


@pytest.mark.anyio
async def test_eof_is_not_the_end(server: FaultServer) -> None:
    """A body that only the end of the connection delimits, and that is short, is asked for again."""
    server.fault(PATH, (UntilClose, Truncate(5000)), (Chunked, Truncate(5000)))
    async with transport_of("own") as transport:
        assert await read(server, transport) == BODY[1000:91_000]
        assert [seen.start for seen in server.to(PATH)] == [1000, 6000, 11_000]
        server.fault(PATH, (UntilClose, Truncate(100)), forever=True)
        with pytest.raises(NetworkError, match="ended early"):
            await read(server, transport)
    assert len(server.to(PATH)) == 3 + QUICK.attempts


@pytest.mark.anyio
async def test_shorter_range_than_asked(server: FaultServer) -> None:
    """A server may answer with less than was asked; the rest is asked for."""

    def first_part(answer: Answer) -> Answer:
        return replace(Headers(content_range="bytes 1000-1999/102400")(answer), body=BODY[1000:2000])

    server.fault(PATH, first_part)
    async with transport_of("own") as transport:
        assert await read(server, transport) == BODY[1000:91_000]
    assert [seen.start for seen in server.to(PATH)] == [1000, 2000]


@pytest.mark.anyio
@pytest.mark.parametrize("hashed", [False, True], ids=["by-signs", "by-a-hash"])
@pytest.mark.parametrize("kind", ["own", "client"])
@pytest.mark.parametrize("framing", [OK, Chunked, UntilClose], ids=["length", "chunks", "until-close"])
async def test_ranges_that_are_capped(server: FaultServer, kind: str, framing: Fault, *, hashed: bool) -> None:
    """Each part is as long as it says: the rest is asked for at once, and that is neither a failure nor a wait."""
    server.fault(PATH, (Capped(21_000), framing), forever=True)
    told: list[Event] = []
    async with transport_of(kind, replace(QUICK, attempts=1)) as transport:
        transport.notify = Notifier(told.append)
        assert await read(server, transport, hashed=hashed) == BODY[1000:91_000]
    assert [seen.start for seen in server.to(PATH)] == [1000, 22_000, 43_000, 64_000, 85_000]
    server.wait_for(lambda: server.sent(PATH) == SPAN.nbytes)
    assert not told
    if framing is OK:
        assert server.connections == 1


@pytest.mark.anyio
@pytest.mark.parametrize("nbytes", [9000, 1, 0])
async def test_parts_that_are_worth_no_request(server: FaultServer, nbytes: int) -> None:
    """A server that gives few bytes at a time for ever gets as many requests as one that fails."""
    server.fault(PATH, Capped(nbytes), forever=True)
    async with transport_of("own") as transport:
        with anyio.fail_after(30), pytest.raises(NetworkError):
            await read(server, transport)
    assert len(server.to(PATH)) == QUICK.attempts


@pytest.mark.anyio
@pytest.mark.parametrize("says", ["bytes {start}-{last}/{size}", "bytes {start}-{last-1}/{size}", "bytes 1000-", None])
async def test_a_part_that_ends_elsewhere_than_it_says(server: FaultServer, says: str | None) -> None:
    """Where a hash decides lengths need not be right, but an end that nobody announced is a failure."""

    def short(answer: Answer) -> Answer:
        told = Headers(content_range=None) if says is None else ContentRange(says)
        return replace(told(answer), body=answer.body[:40_000])

    server.fault(PATH, short)
    told: list[Event] = []
    async with transport_of("own") as transport:
        transport.notify = Notifier(told.append)
        assert await read(server, transport, hashed=True) == BODY[1000:91_000]
    assert [seen.start for seen in server.to(PATH)] == [1000, 41_000]
    assert [type(event) for event in told] == [Retrying]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fault", "error", "requests"),
    [
        (Shifted, ProtocolError, 5),
        (ContentRange("bytes {start+1}-{last}/{size}"), ProtocolError, 5),
        (ContentRange("bytes {start}-{last+1}/{size}"), ProtocolError, 5),
        (ContentRange("bytes {start}-{size}/{size}"), ProtocolError, 5),
        ((ContentRange("bytes {start}-{size}/{size}"), Chunked), ProtocolError, 5),
        (ContentRange("bytes {start}-{last}/{size+1}"), ChangedError, 1),
        (ContentRange("bytes {start}-{last}/{size-1}"), ChangedError, 1),
        (ContentRange("bytes {last}-{start}/{size}"), ProtocolError, 5),
        (ContentRange("octets {start}-{last}/{size}"), ProtocolError, 5),
        (ContentRange("bytes \u00b2-{last}/{size}"), ProtocolError, 5),
        (Headers(content_range=None), ProtocolError, 5),
        (Headers(content_range=None, content_type="multipart/byteranges; boundary=x"), ProtocolError, 5),
        (Gzip, ProtocolError, 1),
        (LoginPage, ChangedError, 1),
        (Status(416, {"content-range": "bytes */100"}), ChangedError, 1),
        (Status(204), ProtocolError, 1),
        (Status(304), ProtocolError, 1),
        (Status(302), ProtocolError, 1),
        (Status(401), AccessError, 1),
        (Status(403), AccessError, 1),
        (Status(404), EntryNotFoundError, 1),
        (Status(410), EntryNotFoundError, 1),
        (Status(418), ProtocolError, 1),
        (Headers(etag='"other"'), ChangedError, 1),
    ],
)
async def test_refused_answers(server: FaultServer, fault: Fault, error: type[AsyncfetchError], requests: int) -> None:
    """An answer about other bytes than those asked for is an error of its kind; not a byte of it is taken."""
    server.fault(PATH, fault, forever=True)
    validator = server.resources[PATH].headers["etag"]
    async with transport_of("own") as transport:
        with pytest.raises(error) as caught:
            await read(server, transport, validator=validator)
    assert type(caught.value) is error
    assert len(server.to(PATH)) == requests


@pytest.mark.anyio
async def test_one_wrong_answer_is_survived(server: FaultServer) -> None:
    """A wrong offset once, as from a broken cache in between, costs one request; `*` as total is fine."""
    server.fault(PATH, Shifted, ContentRange("bytes {start}-{last}/*"))
    async with transport_of("own") as transport:
        assert await read(server, transport) == BODY[1000:91_000]
    assert len(server.to(PATH)) == 2


@pytest.mark.anyio
async def test_content_that_changes_is_not_mixed(server: FaultServer) -> None:
    """If-Range makes the server send a new file whole; its size or ETag gives it away."""
    etag = server.resources[PATH].headers["etag"]

    def replaced_then_broken(answer: Answer) -> Answer:
        server.resources[PATH].body = BODY[::-1]
        server.resources[PATH].headers = {"etag": '"new"'}
        return Truncate(5000)(answer)

    server.fault(PATH, replaced_then_broken)
    async with transport_of("own") as transport:
        with pytest.raises(ChangedError):
            await read(server, transport, validator=etag)
    assert [seen.headers.get("if-range") for seen in server.to(PATH)] == [etag, etag]
    assert server.to(PATH)[-1].status == 200


@pytest.mark.anyio
@pytest.mark.parametrize("spelling", ["W/{}", "{}"])
async def test_other_spellings_of_the_same_etag(server: FaultServer, spelling: str) -> None:
    """A proxy that weakens an ETag, or a server that forgets its quotes, has not changed the file."""
    etag = server.resources[PATH].headers["etag"]
    spelled = spelling.format(etag if spelling.startswith("W") else etag.strip('"'))
    server.fault(PATH, Headers(etag=spelled), forever=True)
    async with transport_of("own") as transport:
        assert await read(server, transport, validator=etag) == BODY[1000:91_000]


@pytest.mark.anyio
@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_signed_links_expire(server: FaultServer, status: int) -> None:
    """What refuses a signed link says that the link is too old, whatever the status."""
    server.fault(PATH, Status(status), forever=True)
    async with transport_of("own") as transport:
        with pytest.raises(LinkExpiredError) as caught:
            async with open_span(
                transport, Target(f"{server.url}{PATH}?sig={SIGNATURE}", signed=True), SPAN, file="x", size=len(BODY)
            ):
                pass
    assert caught.value.status == status
    assert not shown(str(caught.value))


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
async def test_redirects_leave_the_caller_behind(server: FaultServer, kind: str) -> None:
    """Bytes may be behind a redirect: the range goes along, the token and the validator do not."""
    server.resources["/else/x.bin"] = replace(server.resources[PATH], second=True, headers={"etag": '"another"'})
    server.fault(PATH, Status(307, {"location": f"{server.storage_url}/else/x.bin"}))
    target = {"headers": {"authorization": f"Bearer {TOKEN}"}, "validator": '"mine"'}
    async with transport_of(kind) as transport:
        assert await read(server, transport, **target) == BODY[1000:91_000]
    (asked,), (served,) = server.to(PATH), server.to("/else/x.bin")
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"
    assert served.headers["range"] == "bytes=1000-90999"
    assert not {"authorization", "if-range"} & served.headers.keys()


@pytest.mark.anyio
async def test_redirect_loop(server: FaultServer) -> None:
    """Redirects without end are an error after `max_redirects`."""
    server.fault(PATH, Status(302, {"location": PATH}), forever=True)
    async with transport_of("own") as transport:
        with pytest.raises(ProtocolError, match="redirects"):
            await read(server, transport)
    assert len(server.to(PATH)) == QUICK.max_redirects + 1


@pytest.mark.anyio
@pytest.mark.parametrize("location", ["ftp://localhost/x", "file:///etc/passwd", "javascript:0"])
async def test_redirect_out_of_the_web(server: FaultServer, location: str) -> None:
    """A redirect to anything but http and https is refused."""
    server.fault(PATH, Status(302, {"location": location}))
    async with transport_of("own") as transport:
        with pytest.raises(ProtocolError):
            await read(server, transport)


@pytest.mark.anyio
async def test_budget(server: FaultServer) -> None:
    """Failures in a row without real progress end the read; with progress they go on for ever."""
    server.fault(PATH, Truncate(10), forever=True)
    async with transport_of("own") as transport:
        with pytest.raises(NetworkError):
            await read(server, transport)
        assert len(server.to(PATH)) == QUICK.attempts
        transport.policy = replace(QUICK, progress_unit=8000)
        server.fault(PATH, Truncate(9000), forever=True)
        assert await read(server, transport) == BODY[1000:91_000]
    assert len(server.to(PATH)) == QUICK.attempts + 10


@pytest.mark.anyio
async def test_slow_drip(server: FaultServer) -> None:
    """A body below the floor of the policy is dropped and resumed, although each read gets a byte in time."""
    server.fault(PATH, Drip(1, 0.02), OK)
    async with transport_of("own") as transport:
        transport.policy = replace(QUICK, stall_window=0.2, stall_bytes=4096)
        assert await read(server, transport) == BODY[1000:91_000]
    first, second = server.to(PATH)
    assert 1000 < (second.start or 0) <= 1000 + first.sent < 1100


def test_targets_hide_their_secrets() -> None:
    """A target shows neither its URL nor its headers."""
    assert not shown(repr(Target(f"http://h/x?sig={SIGNATURE}", {"authorization": TOKEN}, validator='"v"')))
