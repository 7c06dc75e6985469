"""The protocol of the Hub: what is asked, what is believed, what an error means, where the token goes."""

from __future__ import annotations

import base64
import hashlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncfetch.errors import (
    AccessError,
    AsyncfetchError,
    EntryNotFoundError,
    GatedRepositoryError,
    InvalidIndexError,
    LinkExpiredError,
    NetworkError,
    ProtocolError,
    RateLimitedError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    ServerError,
    SourceError,
)
from asyncfetch.network.transport import Transport
from asyncfetch.network.urls import no_downgrade
from asyncfetch.sources.hub import Hub, clean_etag, size_of
from asyncfetch.sources.request import check_repo_id
from asyncfetch.sources.settings import Settings
from asyncfetch.sources.settings import find_token as look_for_token
from asyncfetch.storage.checksums import Checksum

from ..kit.canaries import PASSWORD, TOKEN, shown
from ..kit.fault_server import (
    COMMIT,
    QUICK,
    Answer,
    Fault,
    FaultServer,
    Headers,
    Raw,
    Reset,
    Resource,
    Status,
    transport_of,
)

WEIGHTS = bytes(range(256)) * 40
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
INDEX = b'{"weight_map": {}}'
GIT = hashlib.sha1(b"blob %d\0" % len(INDEX) + INDEX).hexdigest()
FILES = {"model.safetensors": WEIGHTS, "index.json": INDEX, "sub/a b#c.safetensors": WEIGHTS, "empty.json": b""}
PAGE = "/org/name/resolve/main/index.json"
SHARD = "/org/name/resolve/main/model.safetensors"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """A repository whose safetensors files are behind links to another origin."""
    with FaultServer() as running:
        running.hub("org/name", FILES)
        yield running


def find_token(environ: dict[str, str], token: str | bool | None) -> str | None:
    return look_for_token(environ, token)[0]


def hub_of(server: FaultServer, transport: Transport, token: str | None = TOKEN, repo_id: str = "org/name") -> Hub:
    return Hub(transport, Settings(server.url, token, False), repo_id)


def offline_hub(endpoint: str = "https://huggingface.co", token: str | None = TOKEN, repo_id: str = "org/name") -> Hub:
    return Hub(Transport(QUICK), Settings(endpoint, token, False), repo_id)


# -- settings and tokens ---------------------------------------------------------------------------


def test_settings_from_nothing(tmp_path: Path) -> None:
    """Without variables: the official endpoint, no token, online."""
    assert Settings.from_env({"HF_HOME": str(tmp_path)}) == Settings("https://huggingface.co", None, False)


def test_settings_from_the_environment(tmp_path: Path) -> None:
    """The Hub's own variables; arguments win over them; slashes at the end go."""
    environ = {"HF_ENDPOINT": "http://mirror:8000/", "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}
    assert Settings.from_env(environ) == Settings("http://mirror:8000", TOKEN, True)
    other = Settings.from_env(environ, endpoint="https://other//", token="hf_mine", offline=False)
    assert other == Settings("https://other", "hf_mine", False)


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize(
    ("value", "offline"),
    [("1", True), ("on", True), ("Yes", True), ("TRUE", True), ("0", False), ("", False), ("2", False)],
)
def test_offline_values(tmp_path: Path, name: str, value: str, offline: bool) -> None:
    """The same words mean yes as in huggingface_hub."""
    assert Settings.from_env({"HF_HOME": str(tmp_path), name: value}).offline is offline


@pytest.mark.parametrize(
    "endpoint", ["hub.example", "ftp://hub", "https://", "https:///x", "http://[::1", "http://h:99999", "http://h:p"]
)
def test_bad_endpoints(tmp_path: Path, endpoint: str) -> None:
    """What is no http(s) URL with a host is an error of ours at once."""
    with pytest.raises(SourceError, match="endpoint"):
        Settings.from_env({"HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint})


def test_settings_do_not_show_the_token() -> None:
    """Neither repr nor str of the settings, so neither does a traceback with locals."""
    settings = Settings(f"https://user:{PASSWORD}@h", TOKEN, False)
    for text in (repr(settings), str(settings), f"{settings}"):
        assert not shown(text)
        assert "'set'" in text
    assert "None" in repr(Settings("https://h", None, False))


def test_the_order_of_tokens(tmp_path: Path) -> None:
    """Argument, HF_TOKEN, HUGGING_FACE_HUB_TOKEN, the file of HF_TOKEN_PATH, HF_HOME/token, XDG_CACHE_HOME."""
    (tmp_path / "huggingface").mkdir()
    (tmp_path / "huggingface" / "token").write_text("xdg\n")
    (tmp_path / "token").write_text(" home \r\n")
    (tmp_path / "elsewhere").write_text("path")
    environ = {
        "HF_TOKEN": "first\n",
        "HUGGING_FACE_HUB_TOKEN": "second",
        "HF_TOKEN_PATH": str(tmp_path / "elsewhere"),
        "HF_HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    assert find_token(environ, "argument") == "argument"
    for name, expected in zip(list(environ), ["first", "second", "path", "home", "xdg"], strict=True):
        assert find_token(environ, None) == find_token(environ, True) == expected
        if name != "XDG_CACHE_HOME":
            del environ[name]
    assert find_token({**environ, "HF_TOKEN": "  "}, None) == "xdg", "an empty variable is none"


def test_the_default_token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~/.cache/huggingface/token; ~ and variables in a path are expanded."""
    (tmp_path / ".cache/huggingface").mkdir(parents=True)
    (tmp_path / ".cache/huggingface/token").write_text("default")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_token({}, None) == "default"
    assert find_token({"HF_TOKEN_PATH": "$HOME/.cache/huggingface/token"}, None) == "default"
    assert find_token({"HF_HOME": "~/.cache/huggingface"}, None) == "default"


def test_no_token_is_wanted(tmp_path: Path) -> None:
    """False sends none; HF_HUB_DISABLE_IMPLICIT_TOKEN too, unless one is demanded."""
    environ = {"HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path)}
    assert find_token(environ, False) is None
    environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    assert find_token(environ, None) is None
    assert find_token(environ, True) == TOKEN
    assert find_token(environ, "mine") == "mine"


def test_a_token_is_wanted_and_missing(tmp_path: Path) -> None:
    """token=True without one is an error; without a demand it is not, nor is a file that cannot be read."""
    environ = {"HF_HOME": str(tmp_path)}
    assert find_token(environ, None) is None
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    assert find_token(environ, None) is None
    with pytest.raises(SourceError, match="token=True"):
        find_token(environ, True)


@pytest.mark.parametrize("token", [f"{TOKEN}é", f"{TOKEN}\x00", f"{TOKEN}\tary\x7f"], ids=["letter", "nul", "tab"])
def test_impossible_tokens(tmp_path: Path, token: str) -> None:
    """What cannot stand in a header is refused before it is sent, and not shown."""
    for arguments in (({}, token), ({"HF_TOKEN": token}, True)):
        with pytest.raises(SourceError, match="no HTTP header can carry") as caught:
            find_token(*arguments)
        assert not shown(str(caught.value))
    found, fault = look_for_token({"HF_TOKEN": token}, None)
    assert found is None
    assert "HF_TOKEN" in fault
    assert not shown(fault)


@pytest.mark.parametrize("repo_id", ["gpt2", "org/name", "a.b/c_d-e", "_a/1", "x" * 96])
def test_repository_ids(repo_id: str) -> None:
    """The Hub's rules for names."""
    assert check_repo_id(repo_id) == repo_id


@pytest.mark.parametrize(
    "repo_id",
    ["", "/", "a/", "/b", "a/b/c", "a--b", "a..b", "..", "a/..", "a.git", "-a", "a/.b", "a b", "a\n", "x" * 97, "é"],
)
def test_bad_repository_ids(repo_id: str) -> None:
    """Everything else, also what would be another path on the server or in the cache."""
    with pytest.raises(SourceError):
        check_repo_id(repo_id)


# -- addresses and headers -------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
awkward = st.lists(
    st.sampled_from(["..", ".", "/", "\\", "%2e", "%2F", "?", "#", ":", "@", "a", " ", "\n", "é", "//"]),
    min_size=1,
    max_size=12,
).map("".join)


@given(file=names | awkward, revision=names | awkward)
def test_no_name_leaves_the_repository(file: str, revision: str) -> None:
    """Any file at any revision, as httpx sends it, is that file below the repository; or it is refused."""
    try:
        url = offline_hub().url(file, revision)
    except AsyncfetchError:
        return
    sent = httpx.URL(url)
    assert (sent.scheme, sent.host, sent.query, sent.fragment) == ("https", "huggingface.co", b"", "")
    path = sent.raw_path.decode()
    prefix, rest = "/org/name/resolve/", path.removeprefix("/org/name/resolve/")
    assert path.startswith(prefix)
    quoted_revision, _, quoted_file = rest.partition("/")
    assert (unquote(quoted_revision), unquote(quoted_file)) == (revision, file)


@pytest.mark.parametrize(
    ("file", "revision"),
    [
        ("../x", "main"),
        ("a/../../../../other/private/resolve/main/x", "main"),
        ("x", ".."),
        ("x", "."),
        ("x", ""),
        ("", "main"),
    ],
)
def test_dot_segments_are_refused(file: str, revision: str) -> None:
    """Clients resolve dot segments before they send, so quoting does not help against them."""
    with pytest.raises(SourceError):
        offline_hub().url(file, revision)


def test_addresses() -> None:
    """Slashes of a revision are quoted, those of a file are not; an endpoint may have a path."""
    hub = offline_hub("http://mirror:8000/hf")
    assert hub.url("a/b c.json", "refs/pr/1") == "http://mirror:8000/hf/org/name/resolve/refs%2Fpr%2F1/a/b%20c.json"


@pytest.mark.parametrize(
    ("endpoint", "url", "sent"),
    [
        ("https://huggingface.co", "https://huggingface.co/x", True),
        ("https://huggingface.co", "https://HUGGINGFACE.co:443/x", True),
        ("https://huggingface.co", "https://hf.co/x", True),
        ("https://huggingface.co", "http://huggingface.co/x", False),
        ("https://huggingface.co", "https://huggingface.co:444/x", False),
        ("https://huggingface.co", "https://cdn.huggingface.co/x", False),
        ("https://huggingface.co", "https://huggingface.co.evil/x", False),
        ("https://huggingface.co", "https://huggingface.co@evil/x", False),
        ("http://mirror:8000", "http://mirror:8000/x", True),
        ("http://mirror:8000", "http://mirror:8001/x", False),
        ("http://mirror:8000", "https://huggingface.co/x", False),
        ("http://mirror:8000", "https://hf.co/x", False),
    ],
)
def test_where_the_token_may_go(endpoint: str, url: str, sent: bool) -> None:
    """To the endpoint's scheme, host and port; the official site has a second name. Nowhere else, nor other headers."""
    headers = offline_hub(endpoint).headers(url)
    assert (headers.get("authorization") == f"Bearer {TOKEN}") is sent
    assert bool(headers) is sent
    assert "authorization" not in offline_hub(endpoint, token=None).headers(url)


# -- looking at files ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_small_file(server: FaultServer) -> None:
    """One request gives commit, hash, size and the bytes themselves."""
    async with Transport(QUICK) as transport:
        found = await hub_of(server, transport).ask("index.json", "main", limit=1000)
    assert (found.commit, found.etag, found.checksum) == (COMMIT, GIT, Checksum("git-sha1", GIT))
    assert (found.size, found.link, found.prefix) == (len(INDEX), None, INDEX)
    (seen,) = server.seen
    assert (seen.path, seen.headers["range"]) == (PAGE, "bytes=0-999")
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["authorization"] == f"Bearer {TOKEN}"
    assert "x-hf-download-counter" in seen.headers


@pytest.mark.anyio
async def test_a_large_file(server: FaultServer) -> None:
    """The metadata ride on the redirect, which is not followed: storage is not asked, and gets no token."""
    async with Transport(QUICK) as transport:
        found = await hub_of(server, transport).ask("model.safetensors", "main", limit=1000)
    assert (found.checksum, found.size, found.prefix) == (Checksum("sha256", SHA256), len(WEIGHTS), b"")
    assert found.link is not None
    assert found.link.startswith(server.storage_url)
    assert len(server.seen) == 1


@pytest.mark.anyio
async def test_an_empty_file(server: FaultServer) -> None:
    """A range of an empty file is 416, which is no error; read whole it is 200."""
    async with Transport(QUICK) as transport:
        hub = hub_of(server, transport)
        found = await hub.ask("empty.json", "main", limit=10)
        assert (found.size, found.prefix) == (0, b"")
        found, data = await hub.read_whole("empty.json", "main", limit=10)
        assert (found.size, data) == (0, b"")


@pytest.mark.anyio
async def test_names_that_need_quoting(server: FaultServer) -> None:
    """A file of a subfolder with a space and a # in its name is found."""
    async with Transport(QUICK) as transport:
        found = await hub_of(server, transport).ask("sub/a b#c.safetensors", COMMIT, limit=10)
    assert found.etag == SHA256


@pytest.mark.anyio
async def test_a_renamed_repository(server: FaultServer) -> None:
    """A redirect within the endpoint is followed, with the token and with its query."""
    server.resources[PAGE] = Resource(
        respond=lambda _: Answer(307, {"location": "/org/new/resolve/main/index.json?a=b"})
    )
    server.hub("org/new", FILES)
    async with Transport(QUICK) as transport:
        found = await hub_of(server, transport).ask("index.json", "main", limit=1000)
    assert found.prefix == INDEX
    assert [seen.query for seen in server.seen] == ["", "a=b"]
    assert server.seen[1].headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.anyio
async def test_reading_a_whole_file(server: FaultServer) -> None:
    """Without a range where the Hub serves it; behind a link, from there."""
    async with Transport(QUICK) as transport:
        hub = hub_of(server, transport)
        found, data = await hub.read_whole("index.json", "main", limit=1000)
        assert (found.etag, data) == (GIT, INDEX)
        assert "range" not in server.seen[0].headers
        found, data = await hub.read_whole("model.safetensors", "main", limit=1 << 20)
        assert (found.etag, data) == (SHA256, WEIGHTS)
    assert "authorization" not in server.seen[-1].headers
    assert server.seen[-1].second


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "injected"])
async def test_nothing_that_identifies_goes_to_storage(server: FaultServer, kind: str) -> None:
    """The token does not, and neither do the headers, cookies and auth of the caller's client."""
    secret: dict[str, Any] = {
        "headers": {"authorization": f"Bearer {TOKEN}", "x-api-key": TOKEN},
        "cookies": {"c": TOKEN},
    }
    async with (
        httpx.AsyncClient(**secret) as client,
        Transport(QUICK, client=client if kind == "injected" else None) as transport,
    ):
        _, data = await hub_of(server, transport).read_whole("model.safetensors", "main", limit=1 << 20)
    assert data == WEIGHTS
    (stored,) = [seen for seen in server.seen if seen.second]
    assert not shown(repr(stored.headers))
    assert kind == "own" or server.seen[0].headers["cookie"] == f"c={TOKEN}"


@pytest.mark.anyio
async def test_reading_more_than_the_limit(server: FaultServer) -> None:
    """A file larger than the limit is refused by its announced size, wherever it is."""
    async with Transport(QUICK) as transport:
        hub = hub_of(server, transport)
        for file in ("index.json", "model.safetensors"):
            with pytest.raises(InvalidIndexError, match=r"the 10 that Policy\.max_index_bytes allows"):
                await hub.read_whole(file, "main", limit=10)
    assert not any(seen.second for seen in server.seen)


@pytest.mark.anyio
async def test_a_broken_read_goes_on(server: FaultServer) -> None:
    """Resets while metadata or a linked file are read are retried."""
    link = next(path for path in server.resources if path.startswith("/storage/"))
    server.fault(SHARD, Reset(0), Status(503))
    server.fault(link, Reset(1000))
    async with Transport(QUICK) as transport:
        _, data = await hub_of(server, transport).read_whole("model.safetensors", "main", limit=1 << 20)
    assert data == WEIGHTS


@pytest.mark.anyio
async def test_storage_refuses_a_fresh_link(server: FaultServer) -> None:
    """A link that storage refuses at once is a network error without its signature."""
    link = next(path for path in server.resources if path.startswith("/storage/"))
    server.fault(link, Status(403), forever=True)
    async with Transport(QUICK) as transport:
        with pytest.raises(LinkExpiredError) as caught:
            await hub_of(server, transport).read_whole("model.safetensors", "main", limit=1 << 20)
    assert caught.value.status == 403
    assert not shown("".join(traceback.format_exception(caught.value)))


# -- what is believed ------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "change", "says"),
    [
        (PAGE, {"x_repo_commit": None}, "no commit"),
        (PAGE, {"x_repo_commit": "main"}, "no commit"),
        (PAGE, {"x_repo_commit": COMMIT.upper()}, "no commit"),
        (PAGE, {"x_repo_commit": "../../etc"}, "no commit"),
        (PAGE, {"etag": None}, "no hash"),
        (PAGE, {"etag": '"abc"'}, "no hash"),
        (PAGE, {"etag": f'"../{GIT[:37]}"'}, "no hash"),
        (PAGE, {"etag": f'"{GIT.upper()}"'}, "no hash"),
        (SHARD, {"x_linked_etag": "x"}, "no hash"),
        (SHARD, {"location": None}, "unexpected status 302"),
        (SHARD, {"location": "ftp://h/x"}, "redirects"),
    ],
    ids=str,
)
async def test_answers_that_are_not_believed(server: FaultServer, path: str, change: dict[str, Any], says: str) -> None:
    """Without a commit and a hash in their exact forms the answer is not one of a Hub."""
    value = {key: text.encode().decode("latin-1") if text else text for key, text in change.items()}
    server.fault(path, Headers(**value), forever=True)
    async with Transport(QUICK) as transport:
        with pytest.raises(ProtocolError, match=says):
            await hub_of(server, transport).ask(path.rpartition("/")[2], "main", limit=5)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "change"),
    [
        (PAGE, {"content_range": "bytes 0-1/many"}),
        (PAGE, {"content_range": None}),
        (SHARD, {"x_linked_size": None}),
        (SHARD, {"x_linked_size": "-5"}),
        (SHARD, {"x_linked_size": "²"}),
    ],
    ids=str,
)
async def test_answers_without_a_size(server: FaultServer, path: str, change: dict[str, Any]) -> None:
    """Nonsense is no size. With a commit and a hash it is an answer of a Hub all the same."""
    value = {key: text.encode().decode("latin-1") if text else text for key, text in change.items()}
    server.fault(path, Headers(**value), forever=True)
    async with Transport(QUICK) as transport:
        found = await hub_of(server, transport).ask(path.rpartition("/")[2], "main", limit=5)
    assert found.size is None
    assert found.checksum.hex == found.etag


@pytest.mark.anyio
async def test_another_commit_than_the_one_asked_for(server: FaultServer) -> None:
    """A pinned commit is that commit."""
    pinned = f"/org/name/resolve/{COMMIT}/index.json"
    server.fault(pinned, Headers(x_repo_commit="f" * 40))
    async with Transport(QUICK) as transport:
        with pytest.raises(ProtocolError, match=r"f{40} answered"):
            await hub_of(server, transport).ask("index.json", COMMIT, limit=5)


@pytest.mark.anyio
@pytest.mark.parametrize("etag", [f'W/"{GIT}"', GIT, f' "{GIT}" '])
async def test_spellings_of_etags(server: FaultServer, etag: str) -> None:
    """Weak or strong, with quotes or without; only the strong one with its quotes is fit for If-Range."""
    server.fault(PAGE, Headers(etag=etag))
    async with Transport(QUICK) as transport:
        found = await hub_of(server, transport).ask("index.json", "main", limit=5)
    assert found.etag == GIT
    assert found.validator == (etag.strip() if etag.strip().startswith('"') else None)


def test_clean_etag_strips_no_letters() -> None:
    """Only the mark of a weak tag goes: W and / may begin what is inside."""
    assert clean_etag('W/"W/x"') == clean_etag("W/W/x") == "W/x"
    assert clean_etag("/W") == "/W"


@pytest.mark.anyio
async def test_a_redirect_that_is_unsafe(server: FaultServer) -> None:
    """From https, plain http is not followed; from http, both are."""
    assert no_downgrade("http://a/", "https://b/")
    assert no_downgrade("http://a/", "HTTP://b/")
    assert no_downgrade("https://a/", "https://b/")
    assert not no_downgrade("https://a/", "http://a/")
    assert not no_downgrade("https://a/", "file:///etc/passwd")
    assert not no_downgrade("http://a/", "/relative")


@pytest.mark.anyio
@pytest.mark.parametrize("answer", [Status(418), Status(403, {"x-error-code": "GatedRepo"})], ids=["odd", "gated"])
async def test_a_password_of_the_endpoint_is_not_shown(server: FaultServer, answer: Fault) -> None:
    """A mirror behind a password: errors have its address without it, also as the page of a gated model."""
    settings = Settings(server.url.replace("://", f"://user:{PASSWORD}@"), None, False)
    server.fault(PAGE, answer)
    async with Transport(QUICK) as transport:
        with pytest.raises(AsyncfetchError) as caught:
            await Hub(transport, settings, "org/name").ask("index.json", "main", limit=5)
    assert not shown(repr((caught.value, vars(caught.value))))
    assert (
        base64.b64decode(server.seen[0].headers["authorization"].removeprefix("Basic ")) == f"user:{PASSWORD}".encode()
    )


@pytest.mark.anyio
async def test_what_was_found_hides_its_link(server: FaultServer) -> None:
    """Neither the answer of the Hub nor what was read from it shows the signed link."""
    async with Transport(QUICK) as transport:
        hub = hub_of(server, transport)
        reply = await transport.fetch(server.url + SHARD, limit=5)
        found = await hub.ask("model.safetensors", "main", limit=5)
    assert shown(reply.headers["location"])
    assert shown(found.link or "")
    assert not shown(repr((hub, reply, found)))


@pytest.mark.parametrize(
    ("headers", "status", "size"),
    [
        ({"x-linked-size": "7", "content-range": "bytes 0-1/9", "content-length": "2"}, 206, 7),
        ({"content-range": "bytes 0-1/9", "content-length": "2"}, 206, 9),
        ({"content-range": "bytes */9"}, 416, 9),
        ({"content-range": "bytes 0-1/*", "content-length": "2"}, 206, None),
        ({"content-length": "2"}, 200, 2),
        ({"content-length": "2"}, 302, None),
        ({"content-length": "2"}, 206, None),
        ({"content-length": "٢"}, 200, None),
        ({"content-length": "9" * 19}, 200, None),
        ({"content-length": "-1"}, 200, None),
        ({}, 200, None),
    ],
    ids=str,
)
def test_sizes(headers: dict[str, str], status: int, size: int | None) -> None:
    """The linked size first, then the range's total; a length counts only where it is the whole file's."""
    assert size_of(headers, status) == size


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (404, {"x-error-code": "RevisionNotFound"}, RevisionNotFoundError),
        (404, {"x-error-code": "EntryNotFound"}, EntryNotFoundError),
        (404, {"x-error-code": "RepoNotFound"}, RepositoryNotFoundError),
        (404, {}, EntryNotFoundError),
        (401, {}, RepositoryNotFoundError),
        (401, {"x-error-code": "RepoNotFound"}, RepositoryNotFoundError),
        (401, {"x-error-code": "GatedRepo"}, GatedRepositoryError),
        (403, {"x-error-code": "GatedRepo"}, GatedRepositoryError),
        (401, {"x-error-message": "Invalid credentials in Authorization header"}, AccessError),
        (403, {}, AccessError),
        (403, {"x-error-message": "Access to this resource is disabled."}, AccessError),
        (400, {"x-error-message": "Bad request"}, NetworkError),
        (410, {}, NetworkError),
        (451, {}, NetworkError),
        (501, {}, NetworkError),
        (204, {}, ProtocolError),
        (304, {}, ProtocolError),
        (429, {"retry-after": "9999"}, RateLimitedError),
        (429, {"ratelimit": '"resolvers";r=0;t=9999'}, RateLimitedError),
        (500, {}, ServerError),
        (503, {"retry-after": "9999"}, ServerError),
    ],
    ids=str,
)
async def test_error_codes(
    server: FaultServer, status: int, headers: dict[str, str], kind: type[AsyncfetchError]
) -> None:
    """Each of the Hub's answers is one error of the tree; only those that pass by themselves are asked again."""
    server.fault(PAGE, Status(status, headers, b"<html>"), forever=True)
    async with Transport(QUICK) as transport:
        with pytest.raises(kind) as caught:
            await hub_of(server, transport).ask("index.json", "main", limit=5)
    assert type(caught.value) is kind
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    asked = len(server.to(PAGE))
    assert asked == (QUICK.attempts if status == 500 else 1)
    assert caught.value.transient is (kind in (RateLimitedError, ServerError))


@pytest.mark.anyio
async def test_what_errors_say(server: FaultServer) -> None:
    """The data of the errors: the commit of a missing file, the page of a gated one, whether a token was sent."""
    async with Transport(QUICK) as transport:
        hub, anonymous = hub_of(server, transport), hub_of(server, transport, token=None)
        with pytest.raises(EntryNotFoundError) as missing:
            await hub.ask("no.json", "main", limit=5)
        assert (missing.value.file, missing.value.source, missing.value.commit) == ("no.json", "org/name@main", COMMIT)
        server.fault(PAGE, Status(403, {"x-error-code": "GatedRepo"}), Status(401), Status(401))
        server.fault(PAGE, Status(404, {"x-error-code": "RevisionNotFound"}))
        server.fault(PAGE, Status(403, {"x-error-message": "Two-factor please" + "!" * 5000}))
        with pytest.raises(GatedRepositoryError) as gated:
            await hub.ask("index.json", "main", limit=5)
        assert gated.value.page == f"{server.url}/org/name"
        with pytest.raises(RepositoryNotFoundError, match="with the token"):
            await hub.ask("index.json", "main", limit=5)
        with pytest.raises(RepositoryNotFoundError, match="HF_TOKEN"):
            await anonymous.ask("index.json", "main", limit=5)
        with pytest.raises(RevisionNotFoundError) as revision:
            await hub.ask("index.json", "main", limit=5)
        assert (revision.value.repository, revision.value.revision) == ("org/name", "main")
        with pytest.raises(AccessError, match="Two-factor please!") as refused:
            await hub.ask("index.json", "main", limit=5)
        assert len(str(refused.value)) < 500


@pytest.mark.anyio
@pytest.mark.parametrize("commit", [None, "main", "x" * 40])
async def test_a_missing_file_without_a_commit(server: FaultServer, commit: str | None) -> None:
    """Only a real commit hash is kept with a 404, since it becomes a path of the cache."""
    headers = {"x-error-code": "EntryNotFound", **({"x-repo-commit": commit} if commit else {})}
    server.fault(PAGE, Status(404, headers))
    async with Transport(QUICK) as transport:
        with pytest.raises(EntryNotFoundError) as caught:
            await hub_of(server, transport).ask("index.json", "main", limit=5)
    assert caught.value.commit is None


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["own", "client"])
async def test_what_is_no_http(server: FaultServer, kind: str) -> None:
    """A server of another protocol is a network error after the retries, with the address and without the token."""
    server.fault(PAGE, (Raw(b"220 smtp ready\r\n\r\n"), lambda answer: answer), forever=True)
    async with transport_of(kind) as transport:
        with pytest.raises(NetworkError) as caught:
            await hub_of(server, transport).ask("index.json", "main", limit=5)
    assert caught.value.url == f"{server.url}{PAGE}"
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
