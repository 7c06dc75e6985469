"""Endpoints that send on: to https, to the official Hub, to another Hub. What is followed, and where the token goes."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncfetch.errors import AsyncfetchError, ProtocolError, RepositoryNotFoundError
from asyncfetch.network.transport import Transport
from asyncfetch.network.urls import may_identify, origin_of
from asyncfetch.sources.hub import Hub, HubFile
from asyncfetch.sources.settings import Settings

from ..kit.canaries import SIGNATURE, TOKEN, shown
from ..kit.fault_server import COMMIT, QUICK, Answer, FaultServer, Headers, Resource, Seen, Status
from ..kit.small_model import FILES, INDEX, KINDS, load, same

PAGE = f"/org/model/resolve/main/{INDEX}"
REDIRECTS = pytest.mark.parametrize("status", [301, 302, 303, 307, 308])


@pytest.fixture
def hub() -> Iterator[FaultServer]:
    """A Hub that has the model, with links to storage."""
    with FaultServer() as running:
        running.hub("org/model", FILES)
        yield running


@pytest.fixture
def mirror() -> Iterator[FaultServer]:
    """A server that has nothing, and sends on where a test says."""
    with FaultServer() as running:
        yield running


def sending_on(server: FaultServer, to: str, status: int, **headers: str) -> None:
    """Let `server` answer each request for the model by a redirect to the same path at `to`."""

    def respond(seen: Seen) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Answer(status, {**named, "location": to + seen.path}, b"moved")

    server.resources["/org/model/"] = Resource(respond=respond)


async def ask(server: FaultServer, file: str = INDEX, token: str | None = TOKEN) -> HubFile:
    async with Transport(QUICK) as transport:
        return await Hub(transport, Settings(server.url, token, False), "org/model").ask(file, "main", limit=1000)


@pytest.mark.anyio
@KINDS
@REDIRECTS
async def test_a_mirror_that_sends_on_to_a_hub(
    mirror: FaultServer, hub: FaultServer, tmp_path: Path, status: int, kind: str
) -> None:
    """The model comes whole from the Hub behind it, and the mirror's token stays at the mirror."""
    sending_on(mirror, hub.url, status)
    assert same(await load(mirror, tmp_path, token=TOKEN, kind=kind))
    assert all(seen.headers["authorization"] == f"Bearer {TOKEN}" for seen in mirror.seen)
    assert mirror.seen
    assert hub.seen
    assert not [seen for seen in hub.seen if shown(str(seen.headers))]


@pytest.mark.anyio
async def test_through_several(mirror: FaultServer, hub: FaultServer, tmp_path: Path) -> None:
    """A redirect to a mirror that sends on as well; a file that the Hub serves itself, and one behind a link."""
    with FaultServer() as second:
        sending_on(mirror, second.url, 308)
        sending_on(second, hub.url, 307)
        found = await ask(mirror)
        assert (found.commit, found.link) == (COMMIT, None)
        assert FILES[INDEX].startswith(found.prefix)
        assert same(await load(mirror, tmp_path))


@pytest.mark.anyio
@REDIRECTS
async def test_from_http_to_https(trusted: ssl.SSLContext, mirror: FaultServer, tmp_path: Path, status: int) -> None:
    """The same host with more safety is followed."""
    with FaultServer(tls=trusted) as safe:
        safe.hub("org/model", FILES)
        sending_on(mirror, safe.url, status)
        assert same(await load(mirror, tmp_path))


@pytest.mark.parametrize(
    ("first", "here", "goes"),
    [
        ("http://h/a", "https://h/b", True),
        ("http://h:80/a", "https://H:443/b", True),
        ("http://h:8000/a", "http://h:8000/b", True),
        ("https://h/a", "http://h/b", False),
        ("http://h:8000/a", "https://h:8443/b", False),
        ("http://h:8000/a", "https://h/b", False),
        ("http://h/a", "https://h:8443/b", False),
        ("http://h/a", "https://other/b", False),
        ("http://h/a", "https://h.evil/b", False),
        ("http://h/a", "https://h@evil/b", False),
        ("http://huggingface.co/a", "https://huggingface.co/b", True),
    ],
)
def test_where_the_token_goes_along(first: str, here: str, goes: bool) -> None:
    """Within an origin, and from http to https of one host on the usual ports. Nowhere else."""
    assert may_identify(first, here) is goes


places = st.builds(
    "{}://{}{}/{}".format,
    st.sampled_from(["http", "https"]),
    st.sampled_from(["a", "b.a", "a.b"]),
    st.sampled_from(["", ":80", ":443", ":8000"]),
    st.text("xy", max_size=2),
)


@given(places, places)
def test_it_never_goes_to_less(first: str, here: str) -> None:
    """Never to another host, and never from https to http."""
    one, other = origin_of(first), origin_of(here)
    if may_identify(first, here):
        assert one[1] == other[1]
        assert one == other or other[0] == "https"


def test_the_other_name_of_the_official_site() -> None:
    """HF_ENDPOINT=https://hf.co is the official site itself: its token goes there, over TLS, and nothing is sent on."""
    for text in ("https://hf.co", "https://HF.co/", " https://hf.co\n", "http://hf.co", "http://huggingface.co/"):
        assert Settings.from_env({"HF_ENDPOINT": text, "HF_TOKEN": TOKEN}).endpoint == "https://huggingface.co"
    assert Settings.from_env({"HF_ENDPOINT": "https://hf.co/mirror"}).endpoint == "https://hf.co/mirror"


@pytest.mark.anyio
async def test_what_stands_on_the_last_redirect_counts(hub: FaultServer) -> None:
    """A Hub that names commit, hash and size on a redirect within itself, and serves the bytes plainly."""
    body = FILES[INDEX]
    etag = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    told = {"x-repo-commit": COMMIT, "x-linked-etag": f'"{etag}"', "x-linked-size": str(len(body))}
    hub.fault(PAGE, Status(302, {**told, "location": "/content/7"}))
    hub.resources["/content/7"] = Resource(body, {"etag": '"opaque"'})
    found = await ask(hub)
    assert (found.commit, found.etag, found.size, found.prefix) == (COMMIT, etag, len(body), body[:1000])
    assert hub.to("/content/7")[0].headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.anyio
async def test_a_redirect_that_tells_the_commit_is_not_followed(mirror: FaultServer, hub: FaultServer) -> None:
    """Then its target is storage, which is not asked about hashes, also where it would name some."""
    sending_on(mirror, hub.url, 302, x_repo_commit=COMMIT, x_linked_etag=f'"{"a" * 64}"', x_linked_size="7")
    found = await ask(mirror)
    assert (found.etag, found.size) == ("a" * 64, 7)
    assert found.link == hub.url + PAGE
    assert not hub.seen


@pytest.mark.anyio
@pytest.mark.parametrize(
    "fault",
    [
        Headers(x_repo_commit=None),
        Status(200, {"content-type": "text/html"}, b"<html>Sign in</html>"),
        Status(204),
        Status(302, {"location": "/login"}),
    ],
    ids=["no-commit", "page", "nothing", "login"],
)
async def test_where_it_leads_is_said(mirror: FaultServer, hub: FaultServer, fault: Callable[[Answer], Answer]) -> None:
    """Where no Hub answers, the error names where that was and what to set, without the query of the redirect."""
    hub.fault(PAGE, fault, forever=True)
    hub.resources["/login"] = Resource(b"<html>")

    def respond(seen: Seen) -> Answer:
        return Answer(302, {"location": f"{hub.url}{seen.path}?X-Amz-Signature={SIGNATURE}"})

    mirror.resources["/org/model/"] = Resource(respond=respond)
    with pytest.raises(ProtocolError) as caught:
        await ask(mirror)
    said = str(caught.value)
    assert hub.url in said
    assert not shown(said)
    if "status" not in said:
        assert f"{mirror.url} sends on to {hub.url}" in said
        assert "HF_ENDPOINT" in caught.value.hint


@pytest.mark.anyio
async def test_to_less_safety_is_not_followed(trusted: ssl.SSLContext, hub: FaultServer) -> None:
    """From https to http: an error that says where it would have led, and nothing is sent there."""
    with FaultServer(tls=trusted) as mirror:
        sending_on(mirror, hub.url, 308)
        with pytest.raises(ProtocolError, match="less safe") as caught:
            await ask(mirror)
    assert hub.url + PAGE in caught.value.message
    assert "HF_ENDPOINT" in caught.value.hint
    assert not hub.seen


@pytest.mark.anyio
async def test_a_loop_of_mirrors(mirror: FaultServer, hub: FaultServer) -> None:
    """It ends, and the error says where it was last."""
    sending_on(mirror, hub.url, 302)
    hub.resources.clear()
    sending_on(hub, mirror.url, 302)
    with pytest.raises(ProtocolError, match=r"more than \d+ redirects, the last to http://localhost"):
        await ask(mirror)


@pytest.mark.anyio
@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_hub_behind_that_wants_the_token(mirror: FaultServer, hub: FaultServer, status: int) -> None:
    """What is private there cannot be had through the mirror: the error says so, and what to set."""
    hub.token = TOKEN
    hub.fault(PAGE, Status(status, {"x-error-code": "RepoNotFound"}), forever=True)
    sending_on(mirror, hub.url, 307)
    with pytest.raises(RepositoryNotFoundError, match="without a token") as caught:
        await ask(mirror)
    assert "the token does not go along" in caught.value.hint
    assert hub.url in caught.value.hint
    assert "HF_ENDPOINT" in caught.value.hint
    assert not shown(str(caught.value))


@pytest.mark.anyio
async def test_senseless_places(mirror: FaultServer) -> None:
    """A redirect to nothing that can be asked is an error of ours."""
    for location in ("ftp://h/x", "http://[::1", "http://h:99999/", "file:///etc/passwd", "javascript:1"):
        mirror.fault(PAGE, Status(302, {"location": location}))
        with pytest.raises(AsyncfetchError):
            await ask(mirror)
