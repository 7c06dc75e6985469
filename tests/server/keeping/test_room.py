"""A server before another Hub and its room: what has none is handed on, what is read stays, and time passes."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
from huggingface_hub import scan_cache_dir
from starlette.applications import Starlette
from starlette.routing import Route

from asyncfetch.server import Server
from asyncfetch.server.arriving.distrust import DAYS, Distrust
from asyncfetch.server.keeping.inventory import take_inventory
from asyncfetch.server.keeping.kept import Kept
from asyncfetch.server.keeping.room import Limits
from asyncfetch.server.pull_through import PullThrough
from asyncfetch.server.source import store
from asyncfetch.server.source.freshness import LAPSED, Answer
from asyncfetch.server.source.store import Store
from asyncfetch.spans import MiB

from ...kit.canaries import TOKEN
from ...kit.fault_server import COMMIT, FaultServer, Flip, Stall
from ...kit.fault_server import Answer as Sent
from ...kit.mounts import tiny_disk
from ...kit.small_model import ONE_LOOP
from ..arriving.test_pull_through import Gate, blobs, process_of
from ..clients import hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

NAME = "org/model"
WEIGHTS = random.Random(5).randbytes(3_000_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
STORED = f"/storage/{SHA256}"
PAGE = f"/{NAME}/resolve/main/model.safetensors"
SMALL = {"config.json": b"{}\n", "words.txt": b"words" * 30_000}


@pytest.fixture
def source() -> Iterator[FaultServer]:
    """The other Hub, with one repository."""
    with FaultServer() as server:
        server.listing(server.hub(NAME, {"model.safetensors": WEIGHTS, **SMALL}))
        yield server


@pytest.fixture
def without_room(source: FaultServer, tmp_path: Path) -> Iterator[Server]:
    """A service that can keep the small files alone."""
    with Server(tmp_path / "cache", upstream=source.url, max_size=1_000_000) as service:
        yield service


def until_cut_off(pieces: Iterator[bytes]) -> int:
    """How many bytes still come of an answer that is cut off."""
    came = 0
    try:
        for piece in pieces:
            came += len(piece)
    except httpx.RemoteProtocolError:
        return came
    raise AssertionError("it came to its end")


def part(service: Server, span: str, page: str = PAGE) -> httpx.Response:
    return httpx.get(service.url + page, headers={"Range": f"bytes={span}"})


def test_what_has_no_room_is_handed_on(source: FaultServer, without_room: Server, tmp_path: Path) -> None:
    code = """
import hashlib
from pathlib import Path
path = Path(snapshot_download("org/model"))
result = [hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest(), (path / "words.txt").stat().st_size]
"""
    assert hub(without_room.url, tmp_path / "home", code) == [SHA256, 150_000]
    assert source.sent(STORED) == len(WEIGHTS)
    for span, start, stop in (
        ("0-9", 0, 10),
        ("1000000-1999999", 1_000_000, 2_000_000),
        ("-70000", 2_930_000, 3_000_000),
    ):
        answer = part(without_room, span)
        assert (answer.status_code, answer.content) == (206, WEIGHTS[start:stop])
    # Alone what ends before the last bytes, which wait for the hash of the whole.
    assert [seen.sent for seen in source.to(STORED)][-3:] == [10, 1_000_000, len(WEIGHTS)]
    assert part(without_room, "3000000-").status_code == 416
    for headers, status in (({"If-None-Match": f'"{SHA256}"'}, 304), ({"If-Match": '"0"', "Range": "bytes=9-"}, 412)):
        before = len(source.to(STORED))
        assert httpx.get(without_room.url + PAGE, headers=headers).status_code == status
        assert len(source.to(STORED)) == before
    assert not [path for path in blobs(tmp_path / "cache") if path.stat().st_size > 1_000_000]


def test_no_rest_of_what_was_never_held_against_its_hash(
    source: FaultServer, without_room: Server, tmp_path: Path
) -> None:
    source.fault(STORED, (Flip(10), Stall(200_000)))
    with httpx.stream("GET", without_room.url + PAGE) as response:
        beginning = next(response.iter_raw(100_000))
    assert beginning != WEIGHTS[:100_000]
    with Server(tmp_path / "cache", upstream=source.url) as with_room:
        for service in (without_room, with_room, with_room):
            rest = part(service, "100000-")
            assert (rest.status_code, rest.content) == (200, WEIGHTS)
            assert part(service, "100000-199999").content == WEIGHTS[100_000:200_000]
        assert (tmp_path / "cache" / "models--org--model" / "blobs" / SHA256).is_file()


def test_wrong_bytes_that_are_handed_on(source: FaultServer, without_room: Server, tmp_path: Path) -> None:
    source.fault(STORED, Flip(1_000_000))
    code = """
import hashlib
from pathlib import Path
result = hashlib.sha256(Path(hf_hub_download("org/model", "model.safetensors")).read_bytes()).hexdigest()
"""
    assert hub(without_room.url, tmp_path / "home", code) == SHA256
    assert source.sent(STORED) == 2 * len(WEIGHTS)
    source.fault(STORED, Flip(1_000_000), forever=True)
    for _ in range(2):
        with httpx.stream("GET", without_room.url + PAGE) as response:
            assert until_cut_off(response.iter_raw()) <= len(WEIGHTS) - 65_536
    refused = httpx.get(without_room.url + PAGE)
    assert (refused.status_code, refused.headers["x-error-code"]) == (502, "WrongBytes")
    assert len(source.to(STORED)) == 4


def test_nothing_comes_of_a_small_wrong_file(source: FaultServer, tmp_path: Path) -> None:
    page = f"/{NAME}/resolve/main/config.json"
    source.fault(page.replace("main", COMMIT), Flip(1), forever=True)
    with Server(tmp_path / "cache", upstream=source.url, max_size=1) as service:
        answer = httpx.get(service.url + page)
        assert (answer.status_code, answer.headers["x-error-code"]) == (502, "WrongBytes")


def settled(count: Callable[[], int]) -> int:
    """What a number is that has not grown for half a second."""
    seen, since = count(), time.monotonic()
    while time.monotonic() - since < 0.5:
        if (now := count()) != seen:
            seen, since = now, time.monotonic()
        time.sleep(0.01)
    return seen


def test_a_slow_reader_holds_little_in_memory(source: FaultServer, tmp_path: Path) -> None:
    data = random.Random(9).randbytes(40 * MiB)
    path = source.hub(NAME, {"big.safetensors": data}).storage["big.safetensors"]
    page = f"/{NAME}/resolve/main/big.safetensors"
    with Server(tmp_path / "cache", upstream=source.url, max_size=MiB) as service, ThreadPoolExecutor(1) as pool:
        with httpx.stream("GET", service.url + page, timeout=30) as response:
            pieces = response.iter_raw()
            digest = hashlib.sha256(next(pieces))
            assert httpx.head(service.url + page).status_code == 200
            assert pool.submit(part, service, "0-9", page).result().content == data[:10]
            assert settled(lambda: source.sent(path)) < 30 * MiB  # the rest waits at the source
            for piece in pieces:
                digest.update(piece)
        assert digest.hexdigest() == hashlib.sha256(data).hexdigest()
        assert source.sent(path) == len(data) + 10


def test_what_is_passed_on_and_comes_another_way_is_asked_for_anew(source: FaultServer, tmp_path: Path) -> None:
    """The source said something of a file, and serves another one: it is refused, and not believed any longer."""
    with Server(tmp_path / "cache", upstream=source.url, max_size=1000) as service:
        assert httpx.head(service.url + PAGE).headers["x-linked-size"] == str(len(WEIGHTS))
        source.hub(NAME, {"model.safetensors": WEIGHTS[::-1]})
        assert httpx.get(service.url + PAGE).status_code == 502
        assert httpx.get(service.url + PAGE).content == WEIGHTS[::-1]


def test_a_full_disk(source: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tiny_disk(tmp_path / "disk", "2M") as disk:
        with Server(disk / "cache", upstream=source.url, min_free=0) as service:
            assert httpx.get(service.url + PAGE).content == WEIGHTS
            assert part(service, "2000000-2999999").content == WEIGHTS[2_000_000:]
        # Somebody else takes the room while a file arrives.
        data, gate = WEIGHTS[:1_500_000], Gate(100_000)
        path = source.hub(NAME, {"other.safetensors": data}).storage["other.safetensors"]
        source.fault(path, gate, forever=True)
        page = f"/{NAME}/resolve/main/other.safetensors"
        with Server(disk / "cache", upstream=source.url, min_free=0) as service:
            with httpx.stream("GET", service.url + page) as response:
                pieces = response.iter_raw()
                assert next(pieces)
                with pytest.raises(OSError, match="No space"):
                    (disk / "others").write_bytes(bytes(2_000_000))
                gate.opened.set()
                assert until_cut_off(pieces) < len(data)
            again = part(service, "100000-", page)
            assert (again.status_code, again.content) == (200, data)
        assert "cannot be kept, and is passed on" in caplog.text
        assert not [path for path in blobs(disk) if not path.name.endswith(".incomplete") and path.stat().st_size > MiB]


def test_strict(source: FaultServer, tmp_path: Path) -> None:
    gate = Gate(1_000_000)
    source.fault(STORED, gate, forever=True)
    with Server(tmp_path / "cache", upstream=source.url, strict=True) as service, ThreadPoolExecutor(2) as pool:
        with socket.create_connection(("127.0.0.1", urlsplit(service.url).port)) as reader:  # type: ignore[arg-type]
            reader.sendall(f"GET {PAGE} HTTP/1.1\r\nHost: hub\r\nRange: bytes=0-99\r\n\r\n".encode())
            source.wait_for(lambda: source.sent(STORED) == 1_000_000)
            assert httpx.head(service.url + PAGE).headers["content-length"] == str(len(WEIGHTS))
            far = pool.submit(part, service, "0-9")
            reader.setblocking(False)
            with pytest.raises(BlockingIOError):
                reader.recv(1)
            gate.opened.set()
            reader.setblocking(True)
            answer = b""
            while not answer.endswith(WEIGHTS[:100]):
                answer += reader.recv(65_536)
        assert far.result().content == WEIGHTS[:10]
        assert httpx.get(service.url + PAGE).content == WEIGHTS
        assert source.sent(STORED) == len(WEIGHTS)
    with Server(tmp_path / "other", upstream=source.url, strict=True, max_size=1000) as service:
        refused = httpx.get(service.url + PAGE)
        assert (refused.status_code, refused.headers["x-error-code"]) == (507, "Storage")


@contextmanager
def reading_little(page: str) -> Iterator[httpx.Response]:
    """An answer of which no more than a few MiB are on their way to who does not read on: the server has the rest."""
    little = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)])
    with httpx.Client(transport=little, timeout=30) as client, client.stream("GET", page) as response:
        yield response


def test_what_is_read_or_filled_stays(source: FaultServer, tmp_path: Path) -> None:
    """Of three files of a cache that holds two: one is read, one comes, and the third goes."""
    data = {name: random.Random(name).randbytes(12 * MiB) for name in "abc"}
    repositories = {name: source.hub(f"org/{name}", {"x.safetensors": data[name]}) for name in "abc"}
    stored = {name: repositories[name].storage["x.safetensors"] for name in "abc"}
    cache = tmp_path / "cache"

    def names() -> set[str]:
        return {item.folder[-1] for item in take_inventory(cache).items if not item.partial}

    with Server(cache, upstream=source.url, max_size=26 * MiB) as service:

        def get(name: str, **options: Any) -> Any:
            return httpx.get(f"{service.url}/org/{name}/resolve/main/x.safetensors", timeout=30, **options)

        assert get("a").content == data["a"]
        assert get("b").content == data["b"]
        page = f"{service.url}/org/a/resolve/main/x.safetensors"
        with reading_little(page) as response:  # less recently than b
            pieces = response.iter_raw(MiB)
            begun = next(pieces)
            assert get("b").content == data["b"]
            gate = Gate(MiB)
            source.fault(stored["c"], gate, forever=True)
            with httpx.stream("GET", page.replace("/a/", "/c/"), timeout=30) as coming:
                coming_pieces = coming.iter_raw(1000)
                assert next(coming_pieces) == data["c"][:1000]
                assert names() == {"a"}
                assert get("b").content == data["b"]  # there is no room for it now
                assert names() == {"a"}
                gate.opened.set()
                assert b"".join([data["c"][:1000], *coming_pieces]) == data["c"]
            assert b"".join([begun, *pieces]) == data["a"]
        source.wait_for(lambda: names() == {"a", "c"})
        assert get("b").content == data["b"]
        source.wait_for(lambda: names() == {"b", "c"})  # a was read before c
    assert [source.sent(stored[name]) // len(data[name]) for name in "abc"] == [1, 3, 1]
    assert not scan_cache_dir(cache).warnings


def test_two_services_on_one_cache(source: FaultServer, tmp_path: Path) -> None:
    """The second one makes room: not with what the first one reads, nor with what it pinned."""
    data = {name: random.Random(name).randbytes(12 * MiB) for name in "abcd"}
    for name in "abcd":
        source.hub(f"org/{name}", {"x.safetensors": data[name]})
    cache = tmp_path / "cache"
    with process_of(source, cache) as (process, url), Server(cache, upstream=source.url, max_size=38 * MiB) as other:

        def get(at: str, name: str) -> bytes:
            return httpx.get(f"{at}/org/{name}/resolve/main/x.safetensors", timeout=30).content

        assert [get(url, name) == data[name] for name in "abc"] == [True] * 3
        Kept(cache).pin("models", "org/b")
        with reading_little(f"{url}/org/a/resolve/main/x.safetensors") as response:
            pieces = response.iter_raw(MiB)
            begun = next(pieces)
            assert get(other.url, "d") == data["d"]
            assert {path.name[-1] for path in cache.glob("models--*")} == {"a", "b", "d"}
            assert b"".join([begun, *pieces]) == data["a"]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert get(other.url, "c") == data["c"]  # nobody reads a any more
        source.wait_for(lambda: {path.name[-1] for path in cache.glob("models--*")} == {"b", "c", "d"})


@ONE_LOOP
@pytest.mark.anyio
async def test_bandwidth(source: FaultServer, tmp_path: Path) -> None:
    async with PullThrough(source.url, tmp_path / "cache", bandwidth=6_000_000) as passing:
        for transport in (passing.fills.transport, passing.fills.apart()):
            assert transport.limits.piece(10**9) == 600_000  # of a tenth of a second
        began = time.monotonic()
        await passing.fills.transport.limits.spend(600_000)
        await passing.fills.apart().limits.spend(600_000)  # they share it
        assert time.monotonic() - began >= 0.19


class Clock:
    """Seconds since 1970, which go on when they are told to."""

    def __init__(self) -> None:
        self.at = time.time()

    def __call__(self) -> float:
        return self.at


@asynccontextmanager
async def service_at(
    clock: Clock, source: FaultServer, cache: Path
) -> AsyncIterator[tuple[PullThrough, httpx.AsyncClient]]:
    """A service whose time is that of `clock`, and a client of it; there is no socket between them."""
    async with PullThrough(source.url, cache, limits=Limits(max_size=700_000, min_free=0), now=clock) as passing:
        transport = httpx.ASGITransport(Starlette(routes=[Route("/{path:path}", passing.respond)]))
        async with httpx.AsyncClient(transport=transport, base_url="http://hub", timeout=30) as client:
            yield passing, client


@ONE_LOOP
@pytest.mark.anyio
async def test_a_day(source: FaultServer, tmp_path: Path) -> None:
    """A model that is read each hour, one that is private, 24 that are read once, an outage of hours, and restarts."""
    clock = Clock()
    fills = {f"hour{hour}": random.Random(hour).randbytes(150_000) for hour in range(24)}
    data = {"hot": WEIGHTS[:200_000], "private": WEIGHTS[200_000:300_000], **fills}
    stored = {
        name: source.hub(f"org/{name}", {"x.safetensors": body}).storage["x.safetensors"] for name, body in data.items()
    }
    for revision in ("main", COMMIT):
        page = source.resources[f"/org/private/resolve/{revision}/x.safetensors"]
        respond = page.respond
        assert respond is not None
        page.respond = lambda seen, respond=respond: (
            respond(seen) if seen.headers.get("authorization") == f"Bearer {TOKEN}" else _REFUSED
        )
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    hot = "/org/hot/resolve/main/x.safetensors"
    cache = tmp_path / "cache"

    async def get(client: httpx.AsyncClient, name: str, headers: dict[str, str] | None = None) -> tuple[int, bool]:
        answer = await client.get(f"/org/{name}/resolve/main/x.safetensors", headers=headers)
        return answer.status_code, answer.content == data[name]

    right = (200, True)
    for morning, away in ((True, False), (False, True), (False, False)):  # three services, one after the other
        async with service_at(clock, source, cache) as (passing, client):
            for hour in range(8) if morning else range(8, 16) if away else range(16, 24):
                if away and hour == 9:
                    source.go_away()
                assert await get(client, "hot") == right
                assert await get(client, "private", bearer) == right
                if not (away and hour >= 9):
                    assert await get(client, f"hour{hour}") == right
                    assert (await get(client, "private"))[0] == 401
                clock.at += 3600
                passing.kept.tend()
                assert take_inventory(cache).used <= 700_000
        if away:  # the last service of the outage is a new one
            async with service_at(clock, source, cache) as (_, client):
                assert await get(client, "hot") == right
                assert await get(client, "private", bearer) == right
                assert (await get(client, "private"))[0] == 502
            source.come_back()
    assert {name: source.sent(path) // len(data[name]) for name, path in stored.items()} == {
        name: 0 if name in {f"hour{hour}" for hour in range(9, 16)} else 1 for name in data
    }
    assert 14 <= len(source.to(hot)) <= 24  # once an hour, while it is there
    kept = {item.folder.rpartition("--")[2] for item in take_inventory(cache).items}
    assert kept == {"hot", "private", "hour23", "hour22"}
    source.go_away()
    clock.at += LAPSED
    async with service_at(clock, source, cache) as (_, client):
        assert (await get(client, "private", bearer))[0] == 502  # the word of the source has an end
        assert await get(client, "hot") == right


_REFUSED = Sent(401, {"x-error-code": "RepoNotFound"})


def test_how_long_a_beginning_is_of_no_use(tmp_path: Path) -> None:
    now = time.time()
    distrust = Distrust(tmp_path / "distrust.json", lambda: now)
    assert distrust.may_take_the_rest("a")
    assert distrust.passed("a")
    assert not distrust.passed("a")
    distrust.save()
    distrust = Distrust(tmp_path / "distrust.json", lambda: now)
    assert not distrust.may_take_the_rest("a")
    assert distrust.may_resume("a")
    now += DAYS / 7
    assert distrust.passed("a")
    now += DAYS - 1
    assert not distrust.may_take_the_rest("a")
    now += 1
    assert distrust.may_take_the_rest("a")


def test_answers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1e9
    answers = Store(tmp_path, lambda: now)

    def kept() -> set[str]:
        return {question for question in map(str, range(30)) if Store(tmp_path, lambda: 1e9).get(question)}

    for number in range(20):
        now += 1
        answers.put(str(number), Answer(200, {}, b"x" * 1000, now, fixed=True, open=False))
    answers.prune()
    assert len(kept()) == 20
    monkeypatch.setattr(store, "MOST", 10)
    later = Store(tmp_path, lambda: now)
    now += 2 * 86400
    assert later.get("3")
    later.prune()
    assert kept() == {"3", *map(str, range(12, 20))}
    monkeypatch.setattr(store, "MOST_BYTES", 3000)
    left_behind = tmp_path / "00" / "left.0123.asyncfetch.incomplete"
    left_behind.parent.mkdir(exist_ok=True)
    left_behind.write_bytes(b"by a kill")
    os.utime(left_behind, (1e9, 1e9))
    Store(tmp_path, lambda: now).prune()
    assert kept() == {"3", "19"}
    assert not left_behind.exists()
