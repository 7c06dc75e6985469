"""HTTP that is legal and hostile, or neither: links, redirects, compression, lengths, waits, drips, descriptors."""

from __future__ import annotations

import gzip
import hashlib
import ssl
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from asyncfetch.errors import AsyncfetchError, ChangedError, CorruptError, LinkExpiredError, NetworkError, ProtocolError
from asyncfetch.events import Event, Retrying, Waiting

from ..kit.child import in_child
from ..kit.fault_server import (
    COMMIT,
    OK,
    QUICK,
    SIGNATURE,
    Answer,
    Capped,
    Chunked,
    Drip,
    Expire,
    Fault,
    FaultServer,
    Headers,
    IgnoreRange,
    LoginPage,
    Raw,
    Repository,
    Status,
    Truncate,
    UntilClose,
    transport_of,
)
from ..kit.files import safetensors_bytes
from ..kit.small_model import CALM, FILES, INDEX, KINDS, ONE_FILE, ONE_LOOP, SHARD, SINGLE, TENSORS, load, same

LONG_HEADER = {SINGLE: safetensors_bytes(TENSORS, {"filler": "x" * 200_000})}


@pytest.fixture
def tls_server(trusted: ssl.SSLContext) -> Iterator[FaultServer]:
    """A server with a certificate that this process trusts."""
    with FaultServer(trusted) as running:
        yield running


def page_of(repository: Repository, source: str, file: str) -> str:
    """Where a file is asked for first: in a folder, by the branch for the index, by the commit for a shard."""
    if source.startswith("/"):
        return f"{source}{file}"
    return f"/org/model/resolve/main/{file}" if file == INDEX else repository.pages[file]


def published(cache: Path) -> list[Path]:
    """What has a name in the cache's blobs or snapshots."""
    blobs = [path for path in cache.glob("models--*/blobs/*") if not path.name.endswith("incomplete")]
    return [*blobs, *cache.glob("models--*/snapshots/*/*")]


# -- links that expire before a body is received ---------------------------------------------------


def revoked_at_once(answer: Answer) -> Answer:
    """The link of this request is refused from now on."""
    return Answer(403, revoke=True)


@pytest.mark.anyio
@ONE_LOOP
@KINDS
@pytest.mark.parametrize("file", [INDEX, SHARD])
@pytest.mark.parametrize("fault", [revoked_at_once, Expire(10)], ids=["refused", "broken"])
async def test_links_of_small_reads_are_renewed(
    server: FaultServer, tmp_path: Path, file: str, fault: Fault, kind: str
) -> None:
    """An index behind a link, or the beginning of a shard: the source is asked for a new link, and the read goes on."""
    repository = server.hub("org/model", FILES, links=".*")
    server.fault(repository.storage[file], fault)
    assert same(await load(server, tmp_path, kind=kind))
    queries = [seen.query for seen in server.to(repository.storage[file])]
    assert len(set(queries)) >= 2
    assert sum(seen.status == 403 for seen in server.to(repository.storage[file])) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("source", ["org/model", "/org/model/resolve/main/model.safetensors"], ids=["hub", "web"])
async def test_links_of_long_headers_are_renewed(server: FaultServer, tmp_path: Path, source: str) -> None:
    """So is the rest of a header that is longer than the first look, where it comes before the rest of the file."""
    path = server.hub("org/model", LONG_HEADER).storage[SINGLE]
    server.fault(path, OK, Expire(1000))
    assert same(await load(server, tmp_path, source, storage="memory"))
    starts = [seen.start for seen in server.to(path)]
    assert starts[:3] == [0, 65_536, 66_536]
    assert starts.count(66_536) == 2


@pytest.mark.anyio
@ONE_LOOP
async def test_another_index_behind_the_new_link(server: FaultServer, tmp_path: Path) -> None:
    """A link is not renewed to other content."""
    path = server.hub("org/model", FILES, links=".*").storage[INDEX]

    def moved(answer: Answer) -> Answer:
        server.hub("org/model", {**FILES, INDEX: FILES[INDEX] + b" "}, links=".*")
        return revoked_at_once(answer)

    server.fault(path, moved)
    with pytest.raises(ChangedError):
        await load(server, tmp_path)


@pytest.mark.anyio
@ONE_LOOP
@pytest.mark.parametrize("file", [INDEX, SHARD])
async def test_links_that_are_always_refused(server: FaultServer, tmp_path: Path, file: str) -> None:
    """A new link for each attempt, and then the error, without a signature."""
    path = server.hub("org/model", FILES, links=".*").storage[file]
    server.fault(path, Status(403), forever=True)
    with pytest.raises(LinkExpiredError) as caught:
        await load(server, tmp_path)
    assert SIGNATURE not in str(caught.value)
    assert len({seen.query for seen in server.to(path)}) == len(server.to(path)) == QUICK.attempts


# -- redirects -----------------------------------------------------------------------------------


@pytest.mark.anyio
@ONE_LOOP
@KINDS
@pytest.mark.parametrize("source", ["org/model", "/files/"], ids=["hub", "web"])
@pytest.mark.parametrize("file", [INDEX, SHARD])
async def test_no_downgrade(
    server: FaultServer, tls_server: FaultServer, tmp_path: Path, source: str, file: str, kind: str
) -> None:
    """A redirect from https to http is refused: nothing is asked for in the clear."""
    repository = tls_server.hub("org/model", FILES, links="nothing")
    tls_server.web("/files", FILES)
    server.web("/files", FILES)
    page = page_of(repository, source, file)
    linked = {"x-repo-commit": COMMIT, "x-linked-size": str(len(FILES[file]))}
    linked["x-linked-etag"] = f'"{hashlib.sha256(FILES[file]).hexdigest()}"'
    tls_server.fault(page, Status(302, {"location": f"{server.url}/files/{file}", **linked}), forever=True)
    with pytest.raises(ProtocolError):
        await load(tls_server, tmp_path, source, kind=kind)
    assert not server.seen
    assert len(tls_server.to(page)) == 1


@pytest.mark.anyio
@ONE_LOOP
@pytest.mark.parametrize("source", ["org/model", "/files/"], ids=["hub", "web"])
@pytest.mark.parametrize("file", [INDEX, SHARD])
async def test_redirects_without_end(server: FaultServer, tmp_path: Path, source: str, file: str) -> None:
    """A loop of redirects is an error after `max_redirects`, wherever it is."""
    repository = server.hub("org/model", FILES)
    server.web("/files", FILES)
    page = page_of(repository, source, file)
    server.fault(page, Status(302, {"location": page}), forever=True)
    with pytest.raises(ProtocolError, match="redirects"):
        await load(server, tmp_path, source)
    assert len(server.to(page)) == QUICK.max_redirects + 1


# -- bodies that are not what was asked for ----------------------------------------------------------


@pytest.mark.anyio
@ONE_LOOP
@KINDS
@pytest.mark.parametrize("path", ["/files/", "/files/model.safetensors"], ids=["folder", "file"])
async def test_captive_portal(server: FaultServer, tmp_path: Path, kind: str, path: str) -> None:
    """A login page with 200 for everything is no checkpoint; nothing of it is kept. Signed in, the same call works."""
    server.web("/files", ONE_FILE)
    for name in (INDEX, SINGLE):
        server.fault(f"/files/{name}", LoginPage, forever=True)
    with pytest.raises(CorruptError):
        await load(server, tmp_path, path, kind=kind)
    assert not published(tmp_path)
    server.heal(f"/files/{SINGLE}")
    server.heal(f"/files/{INDEX}")
    assert same(await load(server, tmp_path, path, kind=kind))


def cut_gzip(answer: Answer) -> Answer:
    """A compressed body that lacks its end, in a chunked body that has one: httpx alone takes it for whole."""
    return Chunked(replace(Headers(content_encoding="gzip")(answer), body=gzip.compress(answer.body)[:-20]))


@pytest.mark.anyio
@ONE_LOOP
@KINDS
@pytest.mark.parametrize("source", ["org/model", "/files/"], ids=["hub", "web"])
@pytest.mark.parametrize("file", [INDEX, SHARD])
@pytest.mark.parametrize("encoding", ["gzip", "br"])
async def test_compressed(
    server: FaultServer, tmp_path: Path, source: str, file: str, encoding: str, kind: str
) -> None:
    """What is compressed although identity was asked for is refused, be it cut or whole, on both paths."""
    repository = server.hub("org/model", FILES)
    server.web("/files", FILES)
    page = page_of(repository, source, file)
    if source == "org/model":
        page = repository.storage.get(file, page)
    server.fault(page, lambda answer: Headers(content_encoding=encoding)(cut_gzip(answer)), forever=True)
    with pytest.raises(ProtocolError, match="compressed"):
        await load(server, tmp_path, source, kind=kind)
    assert {seen.headers["accept-encoding"] for seen in server.seen} == {"identity"}
    assert len(server.to(page)) == 1


@cache
def bomb() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(150)), packer.flush()])


_BOMBED = """
url, client = sys.argv[1:]
async def main():
    import httpx
    async with httpx.AsyncClient() as own:
        options = {"client": own} if client == "client" else {}
        before = peak()
        try:
            await asyncfetch.load_async(url, storage="memory", **options)
        except errors.AsyncfetchError as error:
            tell(code=error.code, grown=peak() - before)
anyio.run(main)
"""


@KINDS
@pytest.mark.parametrize("file", [INDEX, SINGLE])
def test_compression_bomb(server: FaultServer, tmp_path: Path, file: str, kind: str) -> None:
    """150 kB that would become 150 MB are never decompressed: the process grows by a few MB at most."""
    server.web("/files", ONE_FILE)
    headers = {"content-encoding": "gzip", "etag": '"bomb"'}
    server.fault(f"/files/{file}", Status(200, headers, bomb()), forever=True)
    told = in_child(_BOMBED, f"{server.url}/files/{file}", kind)
    assert told["code"] == "protocol"
    assert told["grown"] < 40 * 1024


@pytest.mark.anyio
@ONE_LOOP
@KINDS
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Status(204), ProtocolError),
        (Status(200), CorruptError),
        (Status(206, {"content-range": "bytes 0-0/1"}, b"x"), NetworkError),
        (Status(206, {"content-range": "bytes 0-9/10"}, b'{"weight_map": {}}'), NetworkError),
        (Headers(content_length="5"), CorruptError),
        (Headers(content_length="-5"), NetworkError),
        (Headers(content_length="5, 6"), NetworkError),
    ],
    ids=["204", "empty", "206", "206-more", "body-is-longer", "negative", "two-lengths"],
)
async def test_an_index_of_the_wrong_size(
    server: FaultServer, tmp_path: Path, fault: Fault, error: type[AsyncfetchError], kind: str
) -> None:
    """Empty, a part that nobody asked for, more than announced, or a length that is none: no other file is tried."""
    server.web("/files", {**FILES, **ONE_FILE})
    server.fault(f"/files/{INDEX}", fault, forever=True)
    with pytest.raises(error):
        await load(server, tmp_path, "/files/", kind=kind)
    assert {seen.path for seen in server.seen} == {f"/files/{INDEX}"}
    assert not published(tmp_path)


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("storage", ["disk", "memory"])
async def test_chunked_wins_over_a_length(server: FaultServer, tmp_path: Path, storage: str, kind: str) -> None:
    """With both, the length is not believed (RFC 9112, section 6.3), and the bytes are counted."""
    path = server.hub("org/model", ONE_FILE).storage[SINGLE]
    server.fault(path, (Headers(content_length="7"), Chunked), forever=True)
    assert same(await load(server, tmp_path, storage=storage, kind=kind))


@pytest.mark.anyio
@ONE_LOOP
@KINDS
@pytest.mark.parametrize("size", [200_000, 64 << 20])
async def test_a_header_line_without_end(server: FaultServer, size: int, kind: str) -> None:
    """Megabytes of one header line are not collected: the error comes after the first few."""
    server.fault("/x", Raw(b"HTTP/1.1 200 OK\r\nx: " + b"x" * size), forever=True)
    async with transport_of(kind, replace(CALM, attempts=2)) as transport:
        began = time.monotonic()
        with pytest.raises(NetworkError):
            await transport.fetch(server.url + "/x", limit=10)
    assert time.monotonic() - began < 4
    assert len(server.to("/x")) == 2


# -- TLS -------------------------------------------------------------------------------------------


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("storage", ["disk", "memory"])
@pytest.mark.parametrize("framing", [(), (UntilClose,), (Chunked,)], ids=["length", "eof", "chunked"])
async def test_tls_that_ends_without_a_goodbye(
    tls_server: FaultServer, tmp_path: Path, framing: tuple[Fault, ...], storage: str, kind: str
) -> None:
    """A connection that is cut beneath TLS, without close_notify, is no end of a body, whatever the framing."""
    path = tls_server.hub("org/model", ONE_FILE).storage[SINGLE]
    tls_server.fault(path, (*framing, Truncate(1000)), (*framing, Truncate(100_000)), (*framing, Truncate(0)))
    policy = replace(CALM, connections=1)
    assert same(await load(tls_server, tmp_path, policy=policy, storage=storage, kind=kind))
    starts = [seen.start for seen in tls_server.to(path)]
    assert starts[:2] == [0, 1000]
    assert starts == sorted(starts)


# -- ranges ----------------------------------------------------------------------------------------


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("source", ["org/model", "direct/model", "/files/"])
async def test_no_ranges_many_connections(server: FaultServer, tmp_path: Path, source: str, kind: str) -> None:
    """A server without ranges is read by one of many connections, from the first look on or as soon as that is seen."""
    body = safetensors_bytes({"w": np.arange(2_000_000, dtype=np.uint32)})
    linked = server.hub("org/model", {SINGLE: body})
    direct = server.hub("direct/model", {SINGLE: body}, links="nothing")
    server.web("/files", {SINGLE: body})
    served = {"org/model": linked.storage, "direct/model": direct.pages, "/files/": {SINGLE: f"/files/{SINGLE}"}}
    path = served[source][SINGLE]
    for one in (path, f"/direct/model/resolve/main/{SINGLE}"):
        server.fault(one, (IgnoreRange, Drip(200_000, 0.002)), forever=True)
    policy = replace(CALM, connections=8, min_split=100_000)
    state = await load(server, tmp_path, source, policy=policy, kind=kind)
    assert np.array_equal(state["w"], np.arange(2_000_000, dtype=np.uint32))
    assert len(server.to(path)) <= 4 + 1
    assert server.sent(path) < len(body) + 4 * 1_000_000  # and not for each of them


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("source", ["org/model", "/files/"])
async def test_capped_ranges_many_connections(server: FaultServer, tmp_path: Path, source: str, kind: str) -> None:
    """Where no answer is longer than some bytes, a model comes in parts of so many: no failure, and no byte twice."""
    body = safetensors_bytes({"w": np.arange(700_000, dtype=np.uint32)})
    path = server.hub("org/model", {SINGLE: body}).storage[SINGLE] if source == "org/model" else f"/files/{SINGLE}"
    server.web("/files", {SINGLE: body})
    server.fault(path, Capped(70_000), forever=True)
    told: list[Event] = []
    policy = replace(CALM, connections=4, min_split=300_000)
    state = await load(server, tmp_path, source, policy=policy, kind=kind, report=told.append)
    assert np.array_equal(state["w"], np.arange(700_000, dtype=np.uint32))
    assert not any(isinstance(event, Retrying | Waiting) for event in told)
    assert server.covered(path) == len(body)
    assert len(server.to(path)) < 2 * len(body) / 70_000


# -- descriptors -----------------------------------------------------------------------------------

_SCARCE = """
import os
endpoint, cache, room = sys.argv[1:]
def load():
    policy = asyncfetch.Policy(attempts=2, patience=0, backoff=0.01, connections=16, min_split=20_000)
    return asyncfetch.load("org/model", endpoint=endpoint, cache_dir=cache, token=False, policy=policy)
try:
    asyncfetch.load("org/none", endpoint=endpoint, cache_dir=cache, token=False)  # imports what comes late
except errors.AsyncfetchError:
    pass
now = len(os.listdir("/proc/self/fd"))
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (now + int(room), hard))
code = "right"
try:
    load()
except errors.AsyncfetchError as error:
    code = error.code
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
left = len(os.listdir("/proc/self/fd"))
tell(code=code, names=sorted(load()), leaked=left - now)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
@pytest.mark.parametrize("room", [5, 9])
def test_no_descriptors_left(server: FaultServer, tmp_path: Path, room: int) -> None:
    """Where the process may open no more files, the error is one of ours, all are closed, and later all works."""
    server.hub("org/model", FILES)
    told = in_child(_SCARCE, server.url, tmp_path, room)
    assert told["code"] in (("network", "storage") if room < 8 else ("network", "storage", "right"))
    assert told["names"] == list(TENSORS)
    assert told["leaked"] <= 0
