"""What the libraries of the network say, as errors of ours: without what they quote of the wire."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import anyio
import h11
import httpcore
import httpx
import pytest

import asyncfetch
from asyncfetch.errors import AsyncfetchError
from asyncfetch.network.wall import raise_translated

from ..kit.canaries import PASSWORD, SIGNATURE, TOKEN, shown
from ..kit.fault_server import LOOK, QUICK, FaultServer, Raw
from ..kit.small_model import ONE_FILE, SINGLE

LINK = f"https://cdn.example/x?Signature={SIGNATURE}"


def whole(error: BaseException) -> str:
    """All that an error and those behind it say, also those that a traceback leaves out."""
    texts, seen = ["".join(traceback.format_exception(error))], [error]
    while seen:
        one = seen.pop()
        texts += [repr(one), *getattr(one, "__notes__", [])]
        seen += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "\n".join(texts)


HEADS = [
    f"HTTP/1.1 302 Found\r\nLocation: {LINK}\0\r\nContent-Length: 0\r\n\r\n",
    f"HTTP/1.1 200 OK\r\nSet-Cookie session={PASSWORD}\r\nContent-Length: 1\r\n\r\nx",
    f"HTTP/1.1 {TOKEN}\r\n\r\n",
]


@pytest.mark.parametrize("head", HEADS, ids=["location", "no colon", "no status"])
@pytest.mark.parametrize("client", [False, True], ids=["own", "client"])
def test_answers_that_are_no_http(server: FaultServer, tmp_path: Path, head: str, client: bool) -> None:
    """The parser shows the line that it cannot read, and that may be a signed link. Neither comes to light."""
    server.web("/models", ONE_FILE)
    server.fault(f"/models/{SINGLE}", Raw(head.encode()), forever=True)
    options: dict[str, Any] = {"cache_dir": tmp_path, "policy": asyncfetch.Policy(attempts=1, patience=0)}
    with pytest.raises(AsyncfetchError) as caught:
        (with_client if client else asyncfetch.load)(server.url + f"/models/{SINGLE}", **options)
    assert "ProtocolError" in str(caught.value)
    assert not shown(whole(caught.value))


def with_client(url: str, **options: Any) -> None:
    async def load() -> None:
        async with httpx.AsyncClient() as client:
            await asyncfetch.load_async(url, client=client, **options)

    anyio.run(load)


def test_in_the_middle_of_a_file(server: FaultServer, tmp_path: Path) -> None:
    """Nor after the first good answer."""
    url = server.web("/models", ONE_FILE)
    server.fault(f"/models/{SINGLE}", LOOK, Raw(HEADS[0].encode()), forever=True)
    with pytest.raises(AsyncfetchError) as caught:
        asyncfetch.load(url + SINGLE, cache_dir=tmp_path, policy=QUICK)
    assert not shown(whole(caught.value))


def raised(error: Exception) -> AsyncfetchError:
    """The error of ours for one of theirs."""
    with pytest.raises(AsyncfetchError) as caught:
        raise_translated(error, "https://h/x")
    return caught.value


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (httpx.LocalProtocolError(f"Illegal header value b'Bearer {PASSWORD}\\n'"), "Illegal header value."),
        (httpx.RemoteProtocolError(f'illegal header line: bytearray(b"a: \'{PASSWORD}")'), "illegal header line."),
        (httpcore.RemoteProtocolError(h11.RemoteProtocolError("Receive buffer too long")), "Receive buffer too long."),
        (
            httpcore.RemoteProtocolError(h11.RemoteProtocolError("illegal chunk header: bytearray(b'z')")),
            "chunk header.",
        ),
        (httpx.RemoteProtocolError("Server disconnected."), "RemoteProtocolError: Server disconnected."),
        (httpx.RemoteProtocolError(f"b'{PASSWORD}'"), "https://h/x: RemoteProtocolError: RemoteProtocolError."),
        (httpcore.LocalProtocolError(h11.LocalProtocolError(f"Illegal b'{PASSWORD}'")), "LocalProtocolError: Illegal."),
    ],
)
def test_what_is_left_of_their_words(error: Exception, said: str) -> None:
    """What went wrong is still told; what the bytes were is not."""
    ours = raised(error)
    assert str(ours).endswith(said)
    assert ours.__cause__ is error
    assert not shown(whole(ours))


def test_what_quotes_nothing_stays_a_cause() -> None:
    """A failure of the connection is shown with what lies behind it."""
    error = httpx.ReadError("[Errno 104] Connection reset by peer")
    assert raised(error).__cause__ is error
