"""The catalogue: whatever a server does, the bytes are right or the error is one of ours, and nothing wrong stays."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import (
    AccessError,
    AsyncfetchError,
    ChangedError,
    ChecksumMismatchError,
    CorruptError,
    EntryNotFoundError,
    LinkExpiredError,
    NetworkError,
    ProtocolError,
    RateLimitedError,
    RepositoryNotFoundError,
    ServerError,
    ShardNotFoundError,
    StalledError,
)
from asyncfetch.events import Event

from ..kit.canaries import SIGNATURE, TOKEN, shown
from ..kit.fault_server import (
    COMMIT,
    LOOK,
    OK,
    QUICK,
    Chunked,
    ContentRange,
    Drip,
    Expire,
    Fault,
    FaultServer,
    Flip,
    Gzip,
    Hangup,
    Headers,
    IgnoreRange,
    LoginPage,
    Mute,
    Raw,
    Reset,
    ResetAtOnce,
    Shifted,
    Stall,
    Status,
    Truncate,
    UntilClose,
)
from ..kit.files import index_bytes, safetensors_bytes, sharded_bytes

FAST = replace(QUICK, read_timeout=0.15, connections=2)
INDEX = "model.safetensors.index.json"
_RANDOM = np.random.default_rng(3)
TENSORS = {f"layer.{n}": _RANDOM.integers(0, 255, 100_000, dtype=np.uint8) for n in range(2)}
FILES = sharded_bytes(TENSORS, 2)
SHARD = "model-00001-of-00002.safetensors"
SIZE = len(FILES[SHARD])

SURVIVED: dict[str, tuple[Fault | tuple[Fault, ...], ...]] = {
    "closed": (Truncate(10_000),),
    "closed-tail": (Truncate(SIZE - 65536 - 1),),
    "closed-at-head": (Truncate(0),),
    "reset": (Reset(10_000),),
    "reset-at-once": (ResetAtOnce,),
    "hangup": (Hangup, Hangup),
    "stall": (Stall(10_000),),
    "stall-at-head": (Stall(0),),
    "mute": (Mute,),
    "chunked": (Chunked,),
    "chunked-closed": ((Chunked, Truncate(10_000)),),
    "http-1.0": (UntilClose,),
    "http-1.0-closed": ((UntilClose, Truncate(10_000)),),
    "http-1.0-reset": ((UntilClose, Reset(10_000)),),
    "no-ranges": (IgnoreRange,),
    "no-ranges-closed": ((IgnoreRange, Truncate(80_000)), IgnoreRange),
    "wrong-start": (Shifted,),
    "wrong-start-said": (ContentRange("bytes {start+1}-{last}/{size}"),),
    "unknown-total": (ContentRange("bytes {start}-{last}/*"),),
    "wrong-total": (ContentRange("bytes {start}-{last}/{size+1}"),),
    "no-content-range": (Headers(content_range=None),),
    "flipped-bit": (Flip(70_000),),
    "other-etag": (Headers(etag='"another"'),),
    "500": (Status(500),),
    "502-503-504": (Status(502), Status(503), Status(504)),
    "408-425": (Status(408), Status(425)),
    "429": (Status(429, {"retry-after": "0"}),),
    "expired": (Expire(10_000),),
    "expired-400": (Status(400),),
    "expired-404": (Status(404),),
    "no-http": (Raw(b"220 ready\r\n\r\n"),),
    "two-lengths": (Raw(b"HTTP/1.1 206 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello"),),
    "empty": (Raw(b"HTTP/1.1 206 OK\r\ncontent-length: 0\r\n\r\n"),),
    "slow": (Drip(10_000, 0.005),),
}
FATAL: dict[str, tuple[Fault | tuple[Fault, ...], type[AsyncfetchError]]] = {
    "closed-at-once": (Truncate(0), NetworkError),
    "silent": (Stall(0), StalledError),
    "500": (Status(500), ServerError),
    "418": (Status(418), ProtocolError),
    "204": (Status(204), ProtocolError),
    "403": (Status(403), LinkExpiredError),
    "416": (Status(416, {"content-range": "bytes */10"}), ChangedError),
    "wrong-start": (Shifted, ProtocolError),
    "multipart": (Headers(content_range=None, content_type="multipart/byteranges; boundary=x"), ProtocolError),
    "gzip": (Gzip, ProtocolError),
    "login-page": (LoginPage, ChangedError),
    "flipped-bit": (Flip(70_000), ChecksumMismatchError),
    "redirect-loop": (Status(302, {"location": "?again"}), ProtocolError),
    "redirect-nowhere": (Status(302), ProtocolError),
    "wait-too-long": (Status(429, {"retry-after": "86400"}), RateLimitedError),
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """A played Hub that demands a token; waits have no jitter."""
    monkeypatch.setattr(random, "random", lambda: 0.0)
    with FaultServer() as running:
        running.token = TOKEN
        yield running


async def load(server: FaultServer, cache: Path, **options: Any) -> dict[str, Any]:
    """The repository's state dict. Events and errors are searched for secrets, the cache for wrong bytes."""
    events: list[Event] = []
    options = {"policy": FAST, "token": TOKEN, "report": events.append, **options}
    try:
        return await asyncfetch.load_async("org/model", endpoint=server.url, cache_dir=cache, **options)
    except Exception as error:
        assert_silent(texts_of(error))
        raise
    finally:
        assert_silent(repr(events))
        assert_clean(cache)
        for seen in server.seen:
            assert ("authorization" in seen.headers) is not seen.second


def texts_of(error: BaseException) -> str:
    """All that an error and the errors behind it say, in every form."""
    texts, chain = [], [error]
    while chain:
        one = chain.pop()
        texts += [str(one), repr(one), repr(one.args), repr(getattr(one, "__notes__", ()))]
        if isinstance(one, AsyncfetchError):
            texts += [repr(vars(one)), repr(pickle.dumps(one))]
        chain += [linked for linked in (one.__cause__, one.__context__) if linked is not None and linked is not one]
    return "\n".join(texts)


def assert_silent(text: str) -> None:
    assert not shown(text)


def assert_clean(cache: Path) -> None:
    """A blob has the hash that is its name, a link its blob, and no small file a secret."""
    for path in cache.glob("models--*/blobs/*"):
        data = path.read_bytes()
        if path.name.endswith(".map.incomplete"):
            assert_silent(data.decode())
        elif not path.name.endswith("incomplete"):
            algorithm = hashlib.sha256(data) if len(path.name) == 64 else hashlib.sha1(b"blob %d\0" % len(data) + data)
            assert algorithm.hexdigest() == path.name
    for path in cache.glob("models--*/snapshots/*/*"):
        assert path.exists()
    assert_silent("\n".join(map(str, cache.rglob("*"))))


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def same(state: dict[str, Any]) -> bool:
    return list(state) == list(TENSORS) and all(np.array_equal(state[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.anyio
@pytest.mark.parametrize("storage", ["disk", "memory"])
@pytest.mark.parametrize("fault", SURVIVED)
async def test_survived(server: FaultServer, tmp_path: Path, fault: str, storage: str) -> None:
    """A fault that passes costs a request or two: the state dict is right."""
    repository = server.hub("org/model", FILES)
    server.fault(repository.storage[SHARD], LOOK, *SURVIVED[fault])
    assert same(await load(server, tmp_path, storage=storage))


@pytest.mark.anyio
@pytest.mark.parametrize("fault", FATAL)
async def test_fatal(server: FaultServer, tmp_path: Path, fault: str) -> None:
    """A fault that stays ends in its own error; when it is gone, the same call succeeds."""
    repository = server.hub("org/model", FILES)
    broken, error = FATAL[fault]
    path = repository.storage[SHARD]
    server.fault(path, LOOK, broken, forever=True)
    with pytest.raises(error) as caught:
        await load(server, tmp_path)
    assert type(caught.value) is error
    assert not (tmp_path / "models--org--model" / "refs").exists()
    server.heal(path)
    assert same(await load(server, tmp_path))


@pytest.mark.heavy
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])
async def test_every_flipped_bit(server: FaultServer, tmp_path: Path) -> None:
    """One wrong bit in any byte of a file, header or data, is found: nothing is returned and nothing kept."""
    name = "model.safetensors"
    content = safetensors_bytes({"w": np.arange(24, dtype=np.float32)})
    repository = server.hub("org/model", {name: content})
    path = repository.storage[name]
    for position in range(len(content)):
        server.fault(path, Flip(position), forever=True)
        with pytest.raises(CorruptError):
            await load(server, tmp_path)
        server.heal(path)
        server.seen.clear()
    assert not [path for path in files_under(tmp_path) if path.parent.name == "blobs" and "." not in path.name]


# -- the Hub's own answers -----------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (LoginPage, ProtocolError),
        (Headers(x_repo_commit=None), ProtocolError),
        (Headers(x_repo_commit="../../etc"), ProtocolError),
        (Headers(etag='"../../etc"'), ProtocolError),
        (Headers(etag=None), ProtocolError),
        (Flip(5), ChecksumMismatchError),
        (Status(500), ServerError),
        (Status(403), AccessError),
        (Status(401, {"x-error-code": "RepoNotFound"}), RepositoryNotFoundError),
        (Status(302, {"location": "https://localhost:1/login"}), NetworkError),  # as a mirror does, and nobody is there
        (Truncate(10), NetworkError),
        (Gzip, ProtocolError),
    ],
)
async def test_index(server: FaultServer, tmp_path: Path, fault: Fault, error: type[AsyncfetchError]) -> None:
    """What is wrong with the index is an error; no other file is read instead of it, be it asked for beside it."""
    repository = server.hub("org/model", {**FILES, "model.safetensors": b"the wrong one"})
    server.fault(f"/org/model/resolve/main/{INDEX}", fault, forever=True)
    with pytest.raises(error):
        await load(server, tmp_path)
    assert not server.to(repository.storage["model.safetensors"])
    asked = {seen.path for seen in server.seen if not seen.path.startswith("/api/")}  # where near names are asked for
    assert {path.rpartition("/")[2] for path in asked} - {"model.safetensors"} == {INDEX}


@pytest.mark.anyio
async def test_shard_that_is_missing(server: FaultServer, tmp_path: Path) -> None:
    """A shard that the index names and the repository lacks is an error that names both."""
    server.hub("org/model", {name: body for name, body in FILES.items() if name != SHARD})
    with pytest.raises(ShardNotFoundError, match=SHARD) as caught:
        await load(server, tmp_path)
    assert isinstance(caught.value, EntryNotFoundError)
    assert caught.value.index == INDEX


@pytest.mark.anyio
@pytest.mark.parametrize("header", ["x-linked-etag", "x-linked-size"])
async def test_storage_is_not_believed(server: FaultServer, tmp_path: Path, header: str) -> None:
    """Hash and size come from the Hub alone; what storage says of them changes nothing."""
    repository = server.hub("org/model", FILES)
    lie = {header.replace("-", "_"): "0" * 64}
    server.fault(repository.storage[SHARD], Headers(**lie), forever=True)
    assert same(await load(server, tmp_path))


@pytest.mark.anyio
async def test_one_commit(server: FaultServer, tmp_path: Path) -> None:
    """A branch that moves while it is read changes nothing: index and shards are of the first commit seen."""
    server.hub("org/model", FILES)
    main = f"/org/model/resolve/main/{INDEX}"

    def moved(answer: Any) -> Any:
        for name in FILES:
            server.resources[f"/org/model/resolve/main/{name}"].headers["x-repo-commit"] = "f" * 40
        return answer

    server.fault(main, moved)
    assert same(await load(server, tmp_path))
    ahead = [main, main.replace(INDEX, "model.safetensors"), "/api/models/org/model/tree/main"]
    assert all(f"/{COMMIT}" in seen.path for seen in server.seen if not seen.second and seen.path not in ahead)


@pytest.mark.anyio
@pytest.mark.parametrize("links", [r".*\.safetensors", ".*"], ids=["shards", "index-too"])
async def test_injected_credentials(server: FaultServer, tmp_path: Path, links: str) -> None:
    """A client's default Authorization, keys and cookies reach the Hub and never the storage, whatever is there."""
    server.token = None
    server.hub("org/model", FILES, links=links)
    defaults: dict[str, Any] = {
        "headers": {"authorization": f"Bearer {TOKEN}", "x-api-key": TOKEN},
        "cookies": {"session": TOKEN},
    }
    async with httpx.AsyncClient(verify=False, **defaults) as client:
        assert same(await load(server, tmp_path, token=False, client=client))
    for seen in server.seen:
        for name in ("authorization", "x-api-key", "cookie"):
            assert (name in seen.headers) is not seen.second, (seen.path, name)


@pytest.mark.anyio
async def test_hostile_index_names_nothing_outside(server: FaultServer, tmp_path: Path) -> None:
    """A shard name that would leave the repository is refused before it is asked for."""
    for name in (
        "../../other/repo/model.safetensors",
        "//evil/x.safetensors",
        "x.safetensors?y",
        "a/../../b.safetensors",
    ):
        server.hub("org/model", {INDEX: index_bytes({"w": name})})
        with pytest.raises(CorruptError):
            await load(server, tmp_path)
    ahead = {"/org/model/resolve/main/model.safetensors", "/api/models/org/model/tree/main"}
    assert {seen.path for seen in server.seen} - ahead == {f"/org/model/resolve/main/{INDEX}"}


@pytest.mark.anyio
async def test_journal_has_no_secret(server: FaultServer, tmp_path: Path) -> None:
    """What an interrupted run leaves has spans and an identity, and neither token nor link."""
    repository = server.hub("org/model", FILES)
    server.fault(repository.storage[SHARD], LOOK, Truncate(1000), forever=True)
    with pytest.raises(NetworkError):
        await load(server, tmp_path)
    journals = [path for path in files_under(tmp_path) if path.name.endswith(".map.incomplete")]
    assert journals
    for journal in journals:
        assert {"identity", "size", "spans"} <= json.loads(journal.read_text()).keys()
    for path in files_under(tmp_path):
        assert_silent(path.read_bytes().decode("latin-1"))


@pytest.mark.anyio
async def test_journal_of_a_url_has_no_secret(server: FaultServer, tmp_path: Path) -> None:
    """Nor has what an interrupted run from a plain URL leaves, whose query may be a signature."""
    server.token = None
    url = server.web("/files", FILES)
    server.fault(f"/files/{SHARD}", OK, Truncate(1000), forever=True)
    with pytest.raises(NetworkError) as caught:
        await asyncfetch.load_async(f"{url}?X-Signature={SIGNATURE}", cache_dir=tmp_path, policy=FAST)
    assert_silent(texts_of(caught.value))
    assert [path for path in files_under(tmp_path) if path.name.endswith(".map.incomplete")]
    for path in files_under(tmp_path):
        assert_silent(str(path) + path.read_bytes().decode("latin-1"))
