"""Where a hash is known it decides: no length, total, ETag or date refuses bytes that are right. Without one they do.

The signs are wrong in every answer, as behind a proxy or on a mirror of several nodes, on each kind of source.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import ChangedError, ChecksumMismatchError, CorruptError, InvalidHeaderError, ProtocolError
from asyncfetch.sources.located import PREFIX_LIMIT

from ..kit.fault_server import (
    Answer,
    Chunked,
    ContentRange,
    Drip,
    Fault,
    FaultServer,
    Flip,
    Headers,
    IgnoreRange,
    Truncate,
    UntilClose,
)
from ..kit.files import safetensors_bytes, sharded_bytes
from ..kit.small_model import CALM, FILES, INDEX, KINDS, ONE_FILE, ONE_LOOP, SHARD, SINGLE, TENSORS, load, same

pytestmark = [pytest.mark.anyio, ONE_LOOP]

SPLIT = replace(CALM, min_split=16_384, connections=4)  # many requests for a file of 150 kB


def nodes(*signs: dict[str, str | None]) -> Callable[[], Fault]:
    """The answers come from several nodes in turn, which differ in these headers."""

    def make() -> Fault:
        turn = count()

        def fault(answer: Answer) -> Answer:
            return Headers(**signs[next(turn) % len(signs)])(answer) if answer.status in (200, 206) else answer

        return fault

    return make


def length(change: int) -> Fault:
    """A Content-Length that is wrong by so much. The connection ends after the body."""

    def fault(answer: Answer) -> Answer:
        if answer.status not in (200, 206):
            return answer
        told = len(answer.body) + (change if len(answer.body) > 1000 else 0)
        return replace(Headers(content_length=str(told))(answer), ending="close")

    return fault


def of_parts(fault: Fault) -> Fault:
    return lambda answer: fault(answer) if answer.status == 206 else answer


SIGNS: dict[str, Callable[[], Fault | tuple[Fault, ...]]] = {
    "other ETags": nodes({"etag": '"a"'}, {"etag": '"b"'}, {"etag": '"c"'}),
    "other weak ETags": nodes({"etag": 'W/"a"'}, {"etag": 'W/"b"'}),
    "now and then an ETag": nodes({"etag": '"a"'}, {"etag": None}, {"etag": 'W/"b"'}),
    "other dates": nodes(
        {"etag": None, "last_modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
        {"etag": None, "last_modified": "Tue, 02 Jan 2024 00:00:00 GMT"},
    ),
    "no total": lambda: ContentRange("bytes {start}-{last}/*"),
    "total too large": lambda: ContentRange("bytes {start}-{last}/{size+9}"),
    "total too small": lambda: ContentRange("bytes {start}-{last}/{size-9}"),
    "absurd total": lambda: ContentRange("bytes {start}-{last}/7"),
    "last too large": lambda: ContentRange("bytes {start}-{last+5}/{size}"),
    "no range told": lambda: of_parts(Headers(content_range=None)),
    "no range that can be read": lambda: of_parts(Headers(content_range="octets")),
    "the whole as a part": lambda: (
        lambda answer: (
            replace(Headers(content_range=None)(answer), body=answer.full) if answer.status == 206 else answer
        )
    ),
    "in chunks": lambda: Chunked,
    "in chunks, no total": lambda: (Chunked, ContentRange("bytes {start}-{last}/*")),
    "in chunks, no range told": lambda: (Chunked, of_parts(Headers(content_range=None))),
    "until the end": lambda: (UntilClose, ContentRange("bytes {start}-{last}/*")),
    "whole in chunks": lambda: (IgnoreRange, Chunked),
    "whole until the end": lambda: (IgnoreRange, UntilClose),
    "length too large": lambda: of_parts(length(+50)),
    "length too small": lambda: of_parts(length(-50)),
    "length of the whole too large": lambda: (IgnoreRange, length(+50)),
    "nodes that know ranges or not": nodes({"etag": '"a"'}),  # replaced below
}


def _now_and_then_whole() -> Fault:
    turn = count()
    return lambda answer: IgnoreRange(answer) if next(turn) % 2 else Headers(etag='"a"')(answer)


SIGNS["nodes that know ranges or not"] = _now_and_then_whole

LINKED = {
    "no size": {"x_linked_size": None},
    "size too small": {"x_linked_size": "100000"},
    "size far too small": {"x_linked_size": "20"},
    "size too large": {"x_linked_size": "200000"},
    "size of no number": {"x_linked_size": "many"},
}


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def hashes(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(body).hexdigest() for name, body in files.items()}


def served(server: FaultServer, place: str, files: dict[str, bytes]) -> tuple[str, dict[str, str], dict[str, Any]]:
    """A source, the path of the bytes of each file, and the options that it takes."""
    if place == "web":
        server.web("/files", files)
        shards = {name: body for name, body in files.items() if name != INDEX}
        return "/files/", {name: f"/files/{name}" for name in files}, {"checksums": hashes(shards)}
    repository = server.hub("org/model", files, links=r".*\.safetensors" if place == "links" else "none")
    for page in repository.pages.values() if place == "direct" else ():
        headers = server.resources[page].headers  # the hash is here, so the ETag may be the node's own
        headers["x-linked-etag"] = headers["etag"]
    return "org/model", {**repository.pages, **repository.storage}, {}


def unfinished(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.name.endswith("incomplete")]


def blobs(cache: Path) -> list[Path]:
    return [path for path in cache.glob("*/blobs/*") if "." not in path.name]


@pytest.mark.heavy
@pytest.mark.parametrize("place", ["links", "direct", "web"])
@pytest.mark.parametrize("sign", SIGNS)
async def test_weaker_signs(server: FaultServer, tmp_path: Path, sign: str, place: str) -> None:
    """Right bytes are taken whatever else the answers say, to disk and to memory, and once: nothing starts over."""
    source, paths, options = served(server, place, FILES)
    for storage in ("disk", "memory"):
        server.fault(paths[SHARD], SIGNS[sign](), forever=True)
        cache, events = tmp_path / storage, []
        options = {**options, "policy": SPLIT, "storage": storage, "report": events.append}
        assert same(await load(server, cache, source, **options))
        assert not [event for event in events if "expected sha256" in getattr(event, "reason", "")]
        server.heal(paths[SHARD])


@KINDS
@pytest.mark.parametrize("sign", ["other ETags", "no range told", "in chunks, no total", "whole in chunks"])
async def test_of_one_file(server: FaultServer, tmp_path: Path, sign: str, kind: str) -> None:
    """A single file, named by an index or not, and with a client of the caller."""
    for number, place in enumerate(("links", "direct", "web")):
        source, paths, options = served(server, place, ONE_FILE)
        server.fault(paths[SINGLE], SIGNS[sign](), forever=True)
        assert same(await load(server, tmp_path / str(number), source, kind=kind, policy=SPLIT, **options))


@pytest.mark.parametrize("wrong", LINKED)
@pytest.mark.parametrize("sign", ["right", "no total", "no range told", "whole in chunks"])
async def test_linked_sizes(server: FaultServer, tmp_path: Path, wrong: str, sign: str) -> None:
    """The Hub tells no size, or a wrong one: the header knows, and the second call finds what is cached."""
    source, paths, _ = served(server, "links", FILES)
    server.fault(f"/org/model/resolve/{_commit(server)}/{SHARD}", Headers(**LINKED[wrong]), forever=True)
    if sign != "right":
        server.fault(paths[SHARD], SIGNS[sign](), forever=True)
    assert same(await load(server, tmp_path, source, policy=SPLIT))
    assert same(await load(server, tmp_path / "memory", source, policy=SPLIT, storage="memory"))
    sent = server.sent(paths[SHARD])
    shutil.rmtree(tmp_path / "models--org--model" / "snapshots")  # as for another commit with the same file
    assert same(await load(server, tmp_path, source))
    assert server.sent(paths[SHARD]) == sent


def _commit(server: FaultServer) -> str:
    return next(path.split("/")[4] for path in server.resources if path.endswith(SHARD) and "/main/" not in path)


@pytest.mark.parametrize("wrong", ["no size", "size far too small"])
async def test_a_long_header(server: FaultServer, tmp_path: Path, wrong: str) -> None:
    """A header beyond what comes with the metadata, from nodes with other ETags, and no size is told or a wrong one."""
    data = safetensors_bytes(TENSORS, {"filler": "x" * 2 * PREFIX_LIMIT})
    for place in ("links", "direct", "web"):
        source, paths, options = served(server, place, {SINGLE: data})
        if place == "links":
            server.fault(f"/org/model/resolve/main/{SINGLE}", Headers(**LINKED[wrong]), forever=True)
            server.fault(f"/org/model/resolve/{_main(server)}/{SINGLE}", Headers(**LINKED[wrong]), forever=True)
        server.fault(paths[SINGLE], SIGNS["other ETags"](), forever=True)
        cache = tmp_path / place
        assert same(await load(server, cache, source, policy=SPLIT, **options))
        if place != "links":
            server.fault(paths[SINGLE], (IgnoreRange, Chunked), forever=True)
            assert same(await load(server, cache / "2", source, policy=SPLIT, **options))


def _main(server: FaultServer) -> str:
    return next(
        path.split("/")[4] for path in server.resources if path.endswith(SINGLE) and "/resolve/main" not in path
    )


async def test_a_header_from_one_answer(server: FaultServer, tmp_path: Path) -> None:
    """`open` holds the header against no hash: it never is of two versions, whichever node answers."""
    tensors = {f"t{number:05}": np.full(2, number % 200, np.uint8) for number in range(3000)}
    swapped = dict(reversed(tensors.items()))  # a header of the same length, and every tensor elsewhere
    right, other = safetensors_bytes(tensors), safetensors_bytes(swapped)
    assert len(right) == len(other) > 2 * PREFIX_LIMIT
    server.hub("org/model", {SINGLE: right})
    (path,) = [path for path in server.resources if path.startswith("/storage/")]
    turn = count()

    def node(answer: Answer) -> Answer:
        if not next(turn) % 2 or answer.status != 206:
            return Headers(etag='"a"')(answer)
        start = int(answer.headers["content-range"].split()[1].split("-")[0])
        return replace(Headers(etag='"b"')(answer), body=other[start : start + len(answer.body)])

    server.fault(path, node, forever=True)
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path, "token": False, "policy": CALM}
    async with asyncfetch.open_async("org/model", **options) as checkpoint:
        for name in list(checkpoint.keys())[::500]:
            with suppress(ChangedError):
                assert np.array_equal(await checkpoint.tensor(name), tensors[name])


INDEX_SIGNS: dict[str, Fault | tuple[Fault, ...]] = {
    "in chunks": Chunked,
    "until the end": UntilClose,
    "weak ETag": lambda answer: Headers(etag="W/" + answer.headers["etag"])(answer),
    "no length": (UntilClose, Headers(content_length=None)),
}


@pytest.mark.parametrize("sign", INDEX_SIGNS)
async def test_an_index_without_a_length(server: FaultServer, tmp_path: Path, sign: str) -> None:
    """It is read to its end; its hash says whether that was it."""
    server.hub("org/model", FILES)
    server.fault(f"/org/model/resolve/main/{INDEX}", INDEX_SIGNS[sign], forever=True)
    assert same(await load(server, tmp_path))


@pytest.mark.parametrize("wrong", [*LINKED, "right"])
@pytest.mark.parametrize("sign", ["right", "in chunks", "until the end", "no total", "whole in chunks"])
async def test_an_index_behind_a_link(server: FaultServer, tmp_path: Path, wrong: str, sign: str) -> None:
    """The same, where the Hub tells a size of it and storage serves it; a link that expires is asked for anew."""
    repository = server.hub("org/model", FILES, links=".*")
    told = {**LINKED, "size too small": {"x_linked_size": "100"}, "size too large": {"x_linked_size": "900"}}
    if wrong in told:
        server.fault(f"/org/model/resolve/main/{INDEX}", Headers(**told[wrong]), forever=True)
    if sign != "right":
        server.fault(repository.storage[INDEX], SIGNS[sign](), forever=True)
    assert same(await load(server, tmp_path))


async def test_wrong_bytes_stay_wrong(server: FaultServer, tmp_path: Path) -> None:
    """With every sign gone the hash still finds one wrong bit, and nothing is kept."""
    for place in ("links", "direct", "web"):
        source, paths, options = served(server, place, ONE_FILE)
        fault = (Flip(250_000), Chunked, of_parts(Headers(content_range=None, etag=None)))
        server.fault(paths[SINGLE], fault, forever=True)
        with pytest.raises(ChecksumMismatchError):
            await load(server, tmp_path / place, source, **options)
        assert blobs(tmp_path / place) == []


async def test_two_versions_and_a_hash(server: FaultServer, tmp_path: Path) -> None:
    """What a first attempt mixed is fetched once more in one piece, from one node: good, if its bytes are right."""
    other = safetensors_bytes({name: array[::-1].copy() for name, array in TENSORS.items()})
    right = ONE_FILE[SINGLE]
    server.web("/files", ONE_FILE)

    def node(answer: Answer) -> Answer:
        """The node that serves beginnings has the right version, and is slow: others would help if they might."""
        start = int(answer.headers["content-range"].split()[1].split("-")[0])
        if start:
            return replace(Headers(etag='"other"')(answer), body=other[start : start + len(answer.body)])
        return Drip(10_000, 0.02)(answer) if len(answer.body) > PREFIX_LIMIT else answer

    server.fault("/files/" + SINGLE, node, forever=True)
    assert same(await load(server, tmp_path, "/files/", policy=SPLIT, checksums=hashes({SINGLE: right})))
    assert server.to("/files/" + SINGLE)[-1].headers["range"] == f"bytes=0-{len(right) - 1}"


async def test_without_a_hash_signs_count(server: FaultServer, tmp_path: Path) -> None:
    """The same signs refuse what nothing else could tell from another file."""
    for number, sign in enumerate(("other ETags", "other weak ETags", "other dates", "total too large")):
        server.web("/files", ONE_FILE)
        server.fault("/files/" + SINGLE, SIGNS[sign](), forever=True)
        with pytest.raises((ChangedError, InvalidHeaderError)):
            await load(server, tmp_path / str(number), "/files/", policy=SPLIT)
        server.heal("/files/" + SINGLE)
    server.fault("/files/" + SINGLE, lambda answer: answer, SIGNS["no range told"](), forever=True)
    with pytest.raises(ProtocolError):
        await load(server, tmp_path / "range", "/files/", policy=SPLIT)


async def test_a_file_that_is_cut_at_its_source(server: FaultServer, tmp_path: Path) -> None:
    """Then all agree about the size, and its header does not: refused before a shard is downloaded, or with its
    first bytes.
    """
    for place in ("links", "direct", "web"):
        cut = ONE_FILE[SINGLE][:200_000]
        source, paths, options = served(server, place, {SINGLE: cut})
        if place == "links":
            server.fault(paths[SINGLE], Drip(5_000, 0.02))
        with pytest.raises(InvalidHeaderError, match=r"header|data"):
            await load(server, tmp_path / place, source, **options)
        assert server.sent(paths[SINGLE]) < PREFIX_LIMIT + (100_000 if place == "links" else 1000)
        source, paths, options = served(server, place, {SINGLE: ONE_FILE[SINGLE] + b"more"})
        with pytest.raises(CorruptError):
            await load(server, tmp_path / place, source, **options)


async def test_parts_have_no_hash(server: FaultServer, tmp_path: Path) -> None:
    """`open` reads parts, which no hash of the whole vouches for: there an ETag that differs is an error."""
    server.hub("org/model", ONE_FILE)
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path, "token": False, "policy": CALM}
    async with asyncfetch.open_async("org/model", **options) as checkpoint:
        path = next(path for path in server.resources if path.startswith("/storage/"))
        server.fault(path, SIGNS["other ETags"](), forever=True)
        with pytest.raises(ChangedError):
            await checkpoint.tensor("layer.1")


async def test_a_partial_is_found_by_its_hash(server: FaultServer, tmp_path: Path) -> None:
    """What one node brought before it broke is gone on with from another one, in the next run too."""
    data = safetensors_bytes({"w": np.random.default_rng(1).integers(0, 255, 3_000_000, np.uint8)})
    server.web("/files", {SINGLE: data})
    options: dict[str, Any] = {"checksums": hashes({SINGLE: data}), "policy": replace(CALM, connections=1, attempts=1)}
    server.fault("/files/" + SINGLE, lambda answer: answer, Truncate(1_000_000))
    with pytest.raises(asyncfetch.NetworkError):
        await load(server, tmp_path, "/files/", **options)
    server.web("/files", {SINGLE: data}, etag='"of another node"')
    sent = server.sent("/files/" + SINGLE)
    assert (await load(server, tmp_path, "/files/", **options))["w"].nbytes == 3_000_000
    assert server.sent("/files/" + SINGLE) - sent < len(data) - 900_000
    assert unfinished(tmp_path) == []


async def test_every_call(server: FaultServer, tmp_path: Path) -> None:
    """The rule holds for whatever reads whole files."""
    files = sharded_bytes(TENSORS, 2)
    source, paths, _ = served(server, "links", files)
    options: dict[str, Any] = {"endpoint": server.url, "token": False, "policy": SPLIT}

    def broken() -> None:
        for name in paths:
            if name != INDEX:
                fault = (SIGNS["other ETags"](), ContentRange("bytes {start}-{last}/{size+9}"), Chunked)
                server.fault(paths[name], fault, forever=True)  # type: ignore[arg-type]
                server.fault(f"/org/model/resolve/{_commit(server)}/{name}", Headers(x_linked_size=None), forever=True)

    broken()
    for early in (False, True):
        cache = tmp_path / str(early)
        async with asyncfetch.stream_async(source, cache_dir=cache, early=early, **options) as tensors:
            got = {name: np.array(array) async for name, array in tensors}
        assert same({name: got[name] for name in TENSORS})
    model = {"layer": [np.zeros(150_000, np.uint8), np.zeros(150_000, np.uint8)]}
    await asyncfetch.load_into_async(model, source, cache_dir=tmp_path / "into", **options)
    assert same({f"layer.{n}": array for n, array in enumerate(model["layer"])})
    found = await asyncfetch.inspect_async(source, cache_dir=tmp_path / "inspect", **options)
    assert {shard.file: shard.size for shard in found.shards} == {
        name: len(body) for name, body in files.items() if name != INDEX
    }
    assert all(file.ok in (True, None) for file in await asyncfetch.verify_async(source, cache_dir=tmp_path / "into"))
