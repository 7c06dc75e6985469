"""Proxies of the environment: every spelling, what goes around them, what they answer, and who they are."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncfetch.errors import AsyncfetchError, CertificateError, NetworkError, ProxyError, SourceError, StalledError
from asyncfetch.network.proxies import Proxies, Proxy
from asyncfetch.network.sockets import Stream
from asyncfetch.network.transport import Transport

from ..kit.canaries import PASSWORD, TOKEN, shown
from ..kit.fault_server import QUICK, Answer, FaultServer, Resource
from ..kit.proxies import ConnectProxy, microsocks, tinyproxy
from ..kit.small_model import CALM, FILES, load, same

BODY = bytes(range(256)) * 4000
PATH = "/files/x.bin"
HUB = "https://hub.example/x"
AWKWARD = f"{PASSWORD}/@:#?%5"


@pytest.fixture
def tls_server(trusted: ssl.SSLContext) -> Iterator[FaultServer]:
    """A folder over TLS, with a certificate for localhost that this process trusts."""
    with FaultServer(tls=trusted) as running:
        running.web("/files", {"x.bin": BODY})
        yield running


def through(monkeypatch: pytest.MonkeyPatch, proxy: str, name: str = "ALL_PROXY", around: str = "") -> None:
    monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("NO_PROXY", around)


async def fetch(server: FaultServer, **policy: Any) -> bytes:
    async with Transport(replace(CALM, **policy)) as transport:
        return (await transport.fetch(server.url + PATH, limit=1 << 20)).body


def assert_silent(error: BaseException) -> None:
    said = "".join(traceback.format_exception(error))
    assert not shown(said + repr(vars(error)))


# -- spellings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("http://p:3128", Proxy("http", "p", 3128)),
        ("http://p:3128/", Proxy("http", "p", 3128)),
        (" HTTP://p\n", Proxy("http", "p", 80)),
        ("p:3128", Proxy("http", "p", 3128)),
        ("p", Proxy("http", "p", 80)),
        ("https://p", Proxy("https", "p", 443)),
        ("socks5://p", Proxy("socks5", "p", 1080)),
        ("socks5h://p:9", Proxy("socks5h", "p", 9)),
        ("socks://p:1080/", Proxy("socks5", "p", 1080)),
        ("http://[::1]:3128", Proxy("http", "::1", 3128)),
        ("http://10.0.0.1:8080", Proxy("http", "10.0.0.1", 8080)),
        ("http://user:secret@p:1", Proxy("http", "p", 1, (b"user", b"secret"))),
        ("user:secret@p:1", Proxy("http", "p", 1, (b"user", b"secret"))),
        ("http://user@p", Proxy("http", "p", 80, (b"user", b""))),
        ("http://@p", Proxy("http", "p", 80)),
        ("http://u:a/b@p:1/", Proxy("http", "p", 1, (b"u", b"a/b"))),
        ("http://u:a@b@p:1", Proxy("http", "p", 1, (b"u", b"a@b"))),
        ("http://u:a:b#c?d@p:1", Proxy("http", "p", 1, (b"u", b"a:b#c?d"))),
        ("http://u:x://y@p:1", Proxy("http", "p", 1, (b"u", b"x://y"))),
        ("u:x://y@p:1", Proxy("http", "p", 1, (b"u", b"x://y"))),
        ("http://u:100%@p:1", Proxy("http", "p", 1, (b"u", b"100%"))),
        ("http://u:%zz%4@p:1", Proxy("http", "p", 1, (b"u", b"%zz%4"))),
        ("http://u%40d:a%2Fb%25@p:1", Proxy("http", "p", 1, (b"u@d", b"a/b%"))),
        ("http://u:é@p:1", Proxy("http", "p", 1, (b"u", "é".encode()))),
    ],
)
def test_spellings(text: str, proxy: Proxy) -> None:
    """Whatever means one thing only is understood."""
    for scheme in ("http", "https", "all"):
        found = Proxies({scheme: text}).for_url(HUB.replace("https", "http") if scheme == "http" else HUB)
        assert found is not None
        assert replace(found, variable="") == proxy
        assert found.variable == f"{scheme.upper()}_PROXY"


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_a_blank_proxy_is_none(text: str) -> None:
    """An empty variable switches a proxy off, and the one for all schemes stays."""
    assert Proxies({"https": text}).for_url(HUB) is None
    assert Proxies({"https": text, "all": "p"}).for_url(HUB) == Proxy("http", "p", 80, variable="ALL_PROXY")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("socks4://p:1", "not supported"),
        ("ftp://p:1", "not supported"),
        ("http://", "no usable host"),
        ("http://:3128", "no usable host"),
        ("http://a b:3128", "no usable host"),
        ("http://[::1:3128", "no usable host"),
        ("http://::1:3128", "no usable host"),
        ("http://p:x", "no usable port"),
        ("http://p:0", "no usable port"),
        ("http://p:65536", "no usable port"),
        ("http://p:-1", "no usable port"),
        ("http://p:3128:3129", "no usable port"),
        (f"socks5://u:{'x' * 256}@p", "255 bytes"),
    ],
)
def test_what_is_no_proxy(text: str, says: str) -> None:
    """An error of ours that names the variable and shows nothing of its value."""
    secret = text.replace("://", f"://{PASSWORD}:{PASSWORD}@") if "@" not in text else text
    with pytest.raises(SourceError, match=f"HTTPS_PROXY.*{says}") as caught:
        Proxies({"https": secret}).for_url(HUB)
    assert_silent(caught.value)


@given(st.text(max_size=40) | st.text("/@:#?%[]. \t5hpsock", max_size=40))
def test_any_text_is_a_proxy_or_an_error_of_ours(text: str) -> None:
    """Nothing else gets out, whatever stands there; the same goes for what is to go around it."""
    with suppress(SourceError):
        found = Proxies({"all": text, "no": "other"}).for_url(HUB)
        assert found is None or 0 < found.port < 65536
    assert Proxies({"all": "p", "no": text}).for_url(HUB) in (None, Proxy("http", "p", 80, variable="ALL_PROXY"))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20))
def test_any_password_can_be_quoted(password: str) -> None:
    """Percent-encoded, each password comes out as it is; and so does one as it is, if it has no percent sign."""
    spellings = {quote(password, safe=""), password if "%" not in password else quote(password)}
    for spelling in spellings:
        found = Proxies({"all": f"http://me:{spelling}@p:1"}).for_url(HUB)
        assert found is not None
        assert found.auth == (b"me", password.encode())


def test_a_proxy_hides_its_password() -> None:
    """Neither its text nor its repr has it."""
    found = Proxies({"all": f"http://me:{PASSWORD}@p:1"}).for_url(HUB)
    assert not shown(f"{found} {found!r}")


# -- around them -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("around", "url", "is_around"),
    [
        ("*", "https://a.b/", True),
        ("x, *", "https://a.b/", True),
        ("hub.example", "https://hub.example/", True),
        ("hub.example", "https://HUB.example.:443/", True),
        ("HUB.example", "https://cdn.hub.example/", True),
        ("hub.example", "https://nothub.example/", False),
        (".hub.example", "https://cdn.hub.example/", True),
        ("*.hub.example", "https://cdn.hub.example/", True),
        (".hub.example", "https://hub.example/", False),
        ("a , hub.example\n", "https://hub.example/", True),
        ("a hub.example", "https://hub.example/", True),
        ("hub.example:8443", "https://hub.example:8443/", True),
        ("hub.example:8443", "https://hub.example/", False),
        ("hub.example:443", "https://hub.example/", True),
        ("localhost", "http://localhost:8000/", True),
        ("127.0.0.1", "http://127.0.0.1:8000/", True),
        ("127.0.0.1:8000", "http://127.0.0.1:8000/", True),
        ("127.0.0.1:8000", "http://127.0.0.1:8001/", False),
        ("127.0.0.0/8", "http://127.9.9.9/", True),
        ("10.0.0.0/8", "http://11.0.0.1/", False),
        ("10.1.2.3/8", "http://10.9.9.9/", True),
        ("0.0.0.0/0", "http://10.9.9.9/", True),
        ("0.0.0.0/0", "http://hub.example/", False),
        ("0.0.0.0/0", "http://[::1]/", False),
        ("::1", "http://[::1]:8000/", True),
        ("[::1]", "http://[::1]:8000/", True),
        ("[::1]:8000", "http://[::1]:8000/", True),
        ("[::1]:8001", "http://[::1]:8000/", False),
        ("0:0:0:0:0:0:0:1", "http://[::1]/", True),
        ("fd00::/8", "http://[fd12::7]/", True),
        ("[fd00::]/8", "http://[fd12::7]/", True),
        ("[fd00::/8]", "http://[fd12::7]/", True),
        ("fd00::/8", "http://[fe80::7]/", False),
        ("http://hub.example", "http://hub.example/", True),
        ("http://hub.example", "https://hub.example/", False),
        ("https://hub.example/", "https://hub.example/", True),
        ("", "https://hub.example/", False),
        (",, ,", "https://hub.example/", False),
        ("[::1", "http://[::1]/", False),
        ("10.0.0.0/99", "http://10.0.0.1/", False),
        ("hub.example:x", "https://hub.example/", False),
        ("[]", "https://hub.example/", False),
        ("://", "https://hub.example/", False),
    ],
)
def test_what_goes_around(around: str, url: str, is_around: bool) -> None:
    """Names, addresses, networks, ports, brackets, dots and stars; what cannot be read covers nothing."""
    assert (Proxies({"all": "http://p:1", "no": around}).for_url(url) is None) is is_around


@pytest.mark.anyio
@pytest.mark.parametrize("around", ["[::1],localhost", "127.0.0.0/8,localhost", "localhost", "*", "fd00::/8 localhost"])
async def test_around_a_proxy_for_real(server: FaultServer, monkeypatch: pytest.MonkeyPatch, around: str) -> None:
    """A proxy that nobody could use is not asked for what goes around it, and bodies come in bursts."""
    server.web("/files", {"x.bin": BODY})
    through(monkeypatch, "http://127.0.0.1:9", around=around)
    async with Transport(QUICK) as transport, transport.open(server.url + PATH) as body:
        assert isinstance(body._stream, Stream)
    assert len(server.to(PATH)) == 1


# -- what they answer ------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("status", [500, 502, 503, 504, 509, 520, 530, 429, 408])
async def test_a_connect_that_fails_for_a_moment(
    tls_server: FaultServer, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """It is tried again under the one rule, and the file comes."""
    with ConnectProxy([status, status]) as proxy:
        through(monkeypatch, f"http://me:{quote(AWKWARD, safe='')}@{proxy.place}", "HTTPS_PROXY")
        assert await fetch(tls_server) == BODY
    assert len(proxy.asked) == 3
    expected = base64.b64encode(f"me:{AWKWARD}".encode()).decode()
    assert f"\r\nProxy-Authorization: Basic {expected}\r\n" in proxy.asked[0]


@pytest.mark.anyio
@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 407, 418, 451, 501, 505])
async def test_a_connect_that_is_refused(tls_server: FaultServer, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """The error names the proxy and its status, says what to do, shows no password, and comes at once."""
    with ConnectProxy([status], forever=True) as proxy:
        through(monkeypatch, f"http://me:{AWKWARD.replace('%', '')}@{proxy.place}")
        with pytest.raises(ProxyError) as caught:
            await fetch(tls_server)
    assert len(proxy.asked) == 1
    error = caught.value
    assert (error.proxy, error.status, error.transient) == (f"http://{proxy.place}", status, False)
    assert f"the proxy http://{proxy.place} answered {status} Scripted" in error.message
    assert ("ALL_PROXY=http://USER" if status == 407 else "NO_PROXY") in error.hint
    assert_silent(error)


@pytest.mark.anyio
@pytest.mark.parametrize("status", [502, 503, 522])
async def test_a_connect_that_never_works(
    tls_server: FaultServer, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """After the attempts of the policy the reason is still told."""
    with ConnectProxy([status], forever=True) as proxy:
        through(monkeypatch, proxy.place)
        with pytest.raises(ProxyError, match=f"answered {status} Scripted") as caught:
            await fetch(tls_server, attempts=3)
    assert len(proxy.asked) == 3
    assert caught.value.transient


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "kind"),
    [(b"220 smtp ready\r\n\r\n", NetworkError), (b"", NetworkError), (None, StalledError), (b"\x05\x00", NetworkError)],
    ids=["smtp", "closes", "mute", "socks"],
)
async def test_a_proxy_that_is_none(
    tls_server: FaultServer, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, kind: type[NetworkError]
) -> None:
    """Neither speaking another protocol nor saying nothing gets past the wall, and the proxy is named."""
    with ConnectProxy([answer], forever=True) as proxy:
        through(monkeypatch, proxy.place)
        policy = replace(CALM, attempts=2, read_timeout=0.5 if answer is None else 20)
        async with Transport(policy) as transport:
            with pytest.raises(kind, match=f"through the proxy http://{proxy.place}") as caught:
                await transport.fetch(tls_server.url + PATH, limit=9)
    assert "ALL_PROXY names the proxy" in caught.value.hint
    assert len(proxy.asked) == 2


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
async def test_nobody_is_there(tls_server: FaultServer, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """A proxy that cannot be reached is named, so that nobody looks for the fault at the Hub."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{sock.getsockname()[1]}"  # bound, and nobody listens
        through(monkeypatch, f"{scheme}://me:{PASSWORD}@{place}")
        with pytest.raises(NetworkError, match=f"through the proxy {scheme}://{place}") as caught:
            await fetch(tls_server, attempts=2)
    assert_silent(caught.value)


@pytest.mark.anyio
async def test_a_proxy_behind_tls(
    trusted: ssl.SSLContext, tls_server: FaultServer, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way to the proxy may be TLS too, and its certificate counts as any."""
    server.web("/files", {"x.bin": BODY})
    with ConnectProxy([503], tls=trusted) as proxy:
        place = proxy.place.replace("127.0.0.1", "localhost")
        through(monkeypatch, f"https://me:{PASSWORD}@{place}")
        assert await fetch(tls_server) == BODY
        assert len(proxy.asked) == 2
        through(monkeypatch, f"https://{proxy.place}")  # for which the certificate is not
        with pytest.raises(CertificateError, match=f"another .*through the proxy https://{proxy.place}"):
            await fetch(tls_server)


@pytest.mark.anyio
@pytest.mark.parametrize(("status", "asked"), [(503, 3), (403, 1), (407, 1)])
async def test_the_proxy_of_a_client(tls_server: FaultServer, status: int, asked: int) -> None:
    """A client of the caller's may have one of its own: its status is told, and tried again, in the same way."""
    with ConnectProxy([status] * 2) as proxy:
        async with (
            httpx.AsyncClient(proxy=f"http://me:{PASSWORD}@{proxy.place}") as client,
            Transport(QUICK, client=client) as transport,
        ):
            if asked > 1:
                assert (await transport.fetch(tls_server.url + PATH, limit=1 << 20)).body == BODY
            else:
                with pytest.raises(ProxyError, match=f"the proxy answered {status}") as caught:
                    await transport.fetch(tls_server.url + PATH, limit=9)
                assert (caught.value.proxy, caught.value.status) == (None, status)
                assert_silent(caught.value)
    assert len(proxy.asked) == asked


@pytest.mark.anyio
async def test_407_of_a_plain_request(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TLS the proxy's refusal comes as an answer; it is told as the proxy's all the same."""
    with ConnectProxy([407], forever=True) as proxy:
        through(monkeypatch, f"http://me:{PASSWORD}@{proxy.place}", "HTTP_PROXY")
        with pytest.raises(ProxyError, match=f"the proxy http://{proxy.place} answered 407") as caught:
            await fetch(server)
    assert len(proxy.asked) == 1
    assert "HTTP_PROXY=http://USER" in caught.value.hint
    assert_silent(caught.value)


@pytest.mark.anyio
async def test_a_redirect_through_another_proxy(
    server: FaultServer, tls_server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each scheme goes through its own: here the plain one goes straight."""
    server.resources["/start"] = Resource(respond=lambda _seen: Answer(302, {"location": tls_server.url + PATH}))
    with ConnectProxy() as proxy:
        through(monkeypatch, proxy.place, "HTTPS_PROXY")
        async with Transport(CALM) as transport:
            url = server.url + "/start"
            reply = await transport.fetch(url, limit=1 << 20, may_follow=lambda _reply, _to: True)
    assert reply.body == BODY
    assert len(proxy.asked) == 1


# -- real ones -------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_real_proxy(tls_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """tinyproxy, with a password: through it with the right one, and its refusal is told without."""
    with tinyproxy(f"BasicAuth me {PASSWORD}") as place:
        through(monkeypatch, f"http://me:{PASSWORD}@{place}")
        assert await fetch(tls_server) == BODY
        through(monkeypatch, f"http://me:{PASSWORD}x@{place}")
        with pytest.raises(ProxyError, match=f"the proxy http://{place} answered 40[17]") as caught:
            await fetch(tls_server)
    assert_silent(caught.value)
    assert caught.value.status in (401, 407)


@pytest.mark.anyio
async def test_a_real_proxy_that_lets_nobody_through(tls_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """tinyproxy, with CONNECT to port 443 alone: its 403 is told."""
    with tinyproxy("ConnectPort 443") as place:
        through(monkeypatch, f"http://{place}")
        with pytest.raises(ProxyError, match=f"the proxy http://{place} answered 403"):
            await fetch(tls_server)


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["socks", "socks5", "socks5h", "SOCKS5"])
async def test_real_socks(tls_server: FaultServer, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """microsocks, with a password: bodies come in bursts, and a connection serves again."""
    with microsocks("-u", "me", "-P", "a/@:#?%5") as place:  # an argument, so not the secret that is looked for
        through(monkeypatch, f"{scheme}://me:{quote('a/@:#?%5', safe='')}@{place}")
        async with Transport(CALM) as transport:
            for _ in range(3):
                assert (await transport.fetch(tls_server.url + PATH, limit=1 << 20)).body == BODY
            async with transport.open(tls_server.url + PATH) as body:
                assert isinstance(body._stream, Stream)
    assert tls_server.handshakes == 1


@pytest.mark.anyio
async def test_real_socks_with_a_wrong_password(tls_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, at once, and the password is not."""
    with microsocks("-u", "me", "-P", "right") as place:
        through(monkeypatch, f"socks5://me:{PASSWORD}@{place}")
        with pytest.raises(ProxyError, match=f"the proxy socks5://{place} makes no connection") as caught:
            await fetch(tls_server)
    assert not caught.value.transient
    assert "ALL_PROXY" in caught.value.hint
    assert_silent(caught.value)


@pytest.mark.anyio
async def test_a_model_through_real_proxies(
    trusted: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A sharded repository with links to storage, through an HTTP and through a SOCKS proxy."""
    with FaultServer(tls=trusted) as server, tinyproxy() as http, microsocks() as socks:
        server.hub("org/model", FILES)
        for number, proxy in enumerate((f"http://{http}", f"socks5h://{socks}")):
            through(monkeypatch, proxy)
            assert same(await load(server, tmp_path / str(number), token=TOKEN))


# -- SOCKS, byte for byte --------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("steps", "says", "attempts"),
    [
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "does not speak SOCKS 5", 1),
        ([b"\x05\xff"], "another way to sign in", 1),
        ([b"\x05\x01"], "another way to sign in", 1),
        ([b"\x05\x00", b"\x05\x02\x00\x01" + bytes(6)], "do not allow", 1),
        ([b"\x05\x00", b"\x05\x07\x00\x01" + bytes(6)], "no such command", 1),
        ([b"\x05\x00", b"\x05\x01\x00\x01" + bytes(6)], "it failed", 2),
        ([b"\x05\x00", b"\x05\x04\x00\x01" + bytes(6)], "host is unreachable", 2),
        ([b"\x05\x00", b"\x05\x63\x00\x01" + bytes(6)], "it answered 99", 2),
        ([b"\x05\x00", b"\x05\x00\x00"], "closed the connection", 2),
        ([b"\x05"], "closed the connection", 2),
        ([b""], "closed the connection", 2),
    ],
)
async def test_what_socks_may_answer(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, steps: list[bytes], says: str, attempts: int
) -> None:
    """What lasts is an error at once, what may pass is tried again; never an exception of another kind."""
    served = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            nonlocal served
            with suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    served += 1
                    with peer:
                        for step in steps:
                            peer.recv(1000)
                            peer.sendall(step)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        through(monkeypatch, f"socks5://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(NetworkError, match=says) as caught:
            await fetch(server, attempts=2)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert served == attempts
    assert isinstance(caught.value, ProxyError)


@pytest.mark.anyio
async def test_socks_that_says_nothing(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has as long as any connection has to come about."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        through(monkeypatch, f"socks5://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(StalledError, match="through the proxy"):
            await fetch(server, attempts=1, connect_timeout=0.3)


@pytest.mark.anyio
async def test_an_impossible_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that no resolver takes is an error of ours, straight and through SOCKS."""
    for proxy in (None, "socks5://127.0.0.1:9"):
        if proxy:
            through(monkeypatch, proxy)
        async with Transport(replace(QUICK, attempts=1)) as transport:
            for host in ("x" * 64 + ".example", "a..b"):
                with pytest.raises(AsyncfetchError):
                    await transport.fetch(f"http://{host}/", limit=1)
