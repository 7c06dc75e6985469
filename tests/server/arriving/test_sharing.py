"""What is fetched once for several: repositories with the same file, services of one cache, a service after a kill."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest

from asyncfetch.server import Server
from asyncfetch.server.arriving.distrust import Distrust
from asyncfetch.server.arriving.following import Followed
from asyncfetch.server.counts import Counts
from asyncfetch.server.keeping import borrowing
from asyncfetch.spans import MiB
from asyncfetch.storage.cache import RepoCache
from asyncfetch.storage.journal import journal_of, spans_on_disk, write_journal

from ...kit.fault_server import Drip, FaultServer, Flip, IgnoreRange, Reset, Stall
from ..services import Gate, metric, process_of

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

NAME, OTHER = "org/model", "other/copy"
WEIGHTS = random.Random(11).randbytes(3_000_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
STORED = f"/storage/{SHA256}"


def page(name: str, file: str = "model.safetensors") -> str:
    return f"/{name}/resolve/main/{file}"


def blob(cache: Path, name: str = NAME, etag: str = SHA256) -> Path:
    return cache / f"models--{name.replace('/', '--')}" / "blobs" / etag


@pytest.fixture
def source() -> Iterator[FaultServer]:
    """The other Hub: two repositories with the same weights, under names of their own."""
    with FaultServer() as server:
        server.hub(NAME, {"model.safetensors": WEIGHTS, "words.txt": b"words"})
        server.hub(OTHER, {"weights.safetensors": WEIGHTS, "words.txt": b"words"})
        yield server


@pytest.fixture(autouse=True)
def one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each file, so that what is sent is what is asked for: no connection takes over what another has in flight."""
    monkeypatch.setenv("ASYNCFETCH_CONNECTIONS", "1")


@pytest.mark.parametrize("linked", [True, False])
def test_a_file_that_another_repository_has(
    source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    if not linked:
        monkeypatch.setattr(os, "link", _refuse)  # as file systems do that have no hard links
    with Server(tmp_path, upstream=source.url) as service:
        assert httpx.get(service.url + page(NAME)).content == WEIGHTS
        assert httpx.get(service.url + page(OTHER, "weights.safetensors")).content == WEIGHTS
        source.wait_for(lambda: len([*tmp_path.rglob("weights.safetensors")]) == 1)
        assert 'asyncfetch_fills_total{result="shared"} 1.0' in httpx.get(f"{service.url}/metrics").text
    assert source.sent(STORED) == len(WEIGHTS)
    assert blob(tmp_path, OTHER).read_bytes() == WEIGHTS
    assert (blob(tmp_path, OTHER).stat().st_ino == blob(tmp_path).stat().st_ino) is linked
    assert not list(tmp_path.rglob("*.incomplete*"))


def _refuse(*_: object, **__: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_a_wrong_file_is_lent_to_nobody(
    source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strict: bool, linked: bool
) -> None:
    """Another program may have written a blob without a look at its hash: its name is a promise and no proof."""
    if not linked:
        monkeypatch.setattr(os, "link", _refuse)
    wrong = bytearray(WEIGHTS)
    wrong[1_234_567] ^= 16
    blob(tmp_path, OTHER).parent.mkdir(parents=True)
    blob(tmp_path, OTHER).write_bytes(wrong)
    with Server(tmp_path, upstream=source.url, strict=strict) as service:
        assert httpx.get(service.url + page(NAME)).content == WEIGHTS
        source.wait_for(lambda: blob(tmp_path).exists())
    assert blob(tmp_path).read_bytes() == WEIGHTS
    assert source.sent(STORED) == len(WEIGHTS)
    assert not list(tmp_path.rglob("*.incomplete*"))


def test_what_is_lent_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched here, or lent before, is lent without another look; what was written to since is not."""
    hashed: list[Path] = []
    verify = borrowing.verify_file
    monkeypatch.setattr(
        borrowing, "verify_file", lambda path, *args, **more: (hashed.append(path), verify(path, *args, **more))
    )
    caches = [RepoCache(tmp_path, f"org/{name}") for name in "abcd"]
    caches[0].prepare()
    caches[0].blob(SHA256).write_bytes(WEIGHTS)
    lender, size = borrowing.Lender(), len(WEIGHTS)
    assert [lender.borrow(cache, SHA256, size) for cache in caches] == [False, True, True, True]
    assert len(hashed) == 1
    other = borrowing.Lender()
    other.learn(caches[0].blob(SHA256))
    caches[1].blob(SHA256).unlink()
    assert other.borrow(caches[1], SHA256, size)
    assert len(hashed) == 1
    with caches[0].blob(SHA256).open("r+b") as stream:
        stream.write(b"!")
    caches[1].blob(SHA256).unlink()
    assert not other.borrow(caches[1], SHA256, size)


def test_a_file_that_is_on_its_way_to_another_repository(source: FaultServer, tmp_path: Path) -> None:
    gate = Gate(1_000_000)
    source.fault(STORED, gate, forever=True)
    urls = [page(NAME), page(OTHER, "weights.safetensors")]
    with Server(tmp_path, upstream=source.url) as service, ThreadPoolExecutor(1) as pool:
        with httpx.stream("GET", service.url + urls[0]) as first:
            pieces = first.iter_bytes(500_000)
            begun = next(pieces)
            second = pool.submit(httpx.get, service.url + urls[1])
            source.wait_for(lambda: bool(source.to(page(OTHER, "weights.safetensors"))))
            gate.opened.set()
            assert b"".join([begun, *pieces]) == WEIGHTS
        assert second.result().content == WEIGHTS
        source.wait_for(lambda: len([*tmp_path.rglob("weights.safetensors")]) == 1)
    assert source.times_sent(STORED).max() == 1


def test_only_a_sha256_is_the_same_everywhere(tmp_path: Path) -> None:
    assert borrowing.is_same_everywhere(SHA256)
    assert not borrowing.is_same_everywhere(hashlib.sha1(WEIGHTS).hexdigest())


def test_two_services_of_one_cache_share_what_arrives(source: FaultServer, tmp_path: Path) -> None:
    """The second reads what the first brings, as it comes, and serves it on its own when it is whole."""
    data = random.Random(12).randbytes(20 * MiB)
    stored = source.hub(NAME, {"big.safetensors": data}).storage["big.safetensors"]
    far = 19 * MiB + 77
    gate = Gate(9 * MiB, far)
    source.fault(stored, gate, forever=True)
    with Server(tmp_path, upstream=source.url) as one, Server(tmp_path, upstream=source.url) as other:
        with httpx.stream("GET", one.url + page(NAME, "big.safetensors"), timeout=30) as first:
            pieces = first.iter_bytes(MiB)
            begun = next(pieces)
            with httpx.stream("GET", other.url + page(NAME, "big.safetensors"), timeout=30) as second:
                followed = second.iter_bytes(MiB)
                early = next(followed)
                # What is far beyond that, it gets by itself.
                asked = {"Range": f"bytes={far}-{far + 9}"}
                beyond = httpx.get(other.url + page(NAME, "big.safetensors"), headers=asked, timeout=30)
                assert beyond.content == data[far : far + 10]
                assert not gate.opened.is_set()
                gate.opened.set()
                assert b"".join([early, *followed]) == data
            assert b"".join([begun, *pieces]) == data
        assert source.sent(stored) == len(data) + 10
        assert 'result="followed"} 1.0' in httpx.get(f"{other.url}/metrics").text
        assert httpx.get(other.url + page(NAME, "big.safetensors"), timeout=30).content == data
    assert source.sent(stored) == len(data) + 10


def test_a_service_goes_on_with_what_a_killed_one_left(source: FaultServer, tmp_path: Path) -> None:
    """Its readers, who read what the other brought, do not notice."""
    data = random.Random(13).randbytes(20 * MiB)
    stored = source.hub(NAME, {"big.safetensors": data}).storage["big.safetensors"]
    source.fault(stored, Stall(9 * MiB))
    url = page(NAME, "big.safetensors")
    with process_of(source, tmp_path) as (killed, first), Server(tmp_path, upstream=source.url) as other:  # noqa: SIM117
        with httpx.stream("GET", first + url, timeout=30) as begun, httpx.stream("GET", other.url + url) as followed:
            next(begun.iter_bytes(1000))
            pieces = followed.iter_bytes(MiB)
            early = next(pieces)
            kill(killed)
            assert b"".join([early, *pieces]) == data
    assert source.sent(stored) <= len(data) + 8 * MiB


def test_wrong_bytes_that_another_service_brought(source: FaultServer, tmp_path: Path) -> None:
    """Who reads them by way of a second service is cut off too, and gets the whole from both."""
    data = random.Random(14).randbytes(12 * MiB)
    stored = source.hub(NAME, {"big.safetensors": data}).storage["big.safetensors"]
    gate = Gate(9 * MiB)
    source.fault(stored, (gate, Flip(5)), gate)
    url = page(NAME, "big.safetensors")
    with Server(tmp_path, upstream=source.url) as one, Server(tmp_path, upstream=source.url) as other:
        streams = [httpx.stream("GET", service.url + url, timeout=30) for service in (one, other)]
        with streams[0] as first, streams[1] as second:
            pieces = [response.iter_bytes(MiB) for response in (first, second)]
            assert [next(piece) != data[:MiB] for piece in pieces] == [True, True]
            gate.opened.set()
            for piece in pieces:
                with pytest.raises(httpx.RemoteProtocolError):
                    list(piece)
        for service in (one, other):
            again = httpx.get(service.url + url, headers={"Range": "bytes=2000000-"}, timeout=30)
            assert (again.status_code, again.content == data) == (200, True)
    assert source.sent(stored) <= 2.1 * len(data)


def test_what_another_service_writes_anew(tmp_path: Path) -> None:
    """A partial that was removed, and begun again: what was read of the first one may not be gone on with."""
    path, data = tmp_path / f"{SHA256}.asyncfetch.incomplete", [bytes([one]) * 100 for one in (1, 2)]
    followed = Followed(path, 100)
    assert followed.look(SHA256)  # there is nothing yet
    seen = list[tuple[bool, int, bytes]]()
    for content, spans in ((data[0], [(0, 50)]), (data[0], [(0, 60)]), (data[0], [(0, 20)]), (data[1], [(0, 90)])):
        if content is data[1]:
            path.rename(tmp_path / "moved away")
        path.touch()
        with open(path, "r+b") as stream:
            stream.write(content)
            stream.flush()
            write_journal(journal_of(path), stream.fileno(), 100, spans, identity=SHA256)
        same = followed.look(SHA256)
        assert followed.descriptor is not None
        seen.append((same, followed.frontier, os.pread(followed.descriptor, 1, 0)))
    assert seen == [(True, 50, b"\1"), (True, 60, b"\1"), (False, 20, b"\1"), (False, 90, b"\2")]
    assert followed.look("of another content")
    path.unlink()
    assert followed.look(SHA256)
    assert (followed.frontier, followed.reach(5)) == (90, 90)
    os.close(followed.descriptor)  # type: ignore[arg-type]


def test_killed_between_the_mark_and_the_end_of_the_wrong_bytes(source: FaultServer, tmp_path: Path) -> None:
    """What such a kill leaves: a whole partial, its journal and the mark. It is one strike, and not gone on with."""
    with Server(tmp_path, upstream=source.url):
        (state,) = (tmp_path / ".locks" / "asyncfetch").iterdir()
    distrust = Distrust(state / "distrust.json")
    distrust.wrong(SHA256)
    distrust.save()
    partial = blob(tmp_path).with_name(f"{SHA256}.asyncfetch.incomplete")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:])
    with open(partial, "rb") as stream:
        write_journal(journal_of(partial), stream.fileno(), len(WEIGHTS), [(0, len(WEIGHTS))], identity=SHA256)
    with Server(tmp_path, upstream=source.url) as service:
        assert httpx.get(service.url + page(NAME)).content == WEIGHTS
        source.wait_for(lambda: Distrust(state / "distrust.json").wrongs(SHA256) == 0)
    assert source.sent(STORED) == len(WEIGHTS)


@pytest.mark.heavy
def test_wrong_bytes_once_and_a_kill_before_they_came_again(source: FaultServer, tmp_path: Path) -> None:
    """It goes on with the right half, and whoever has a wrong beginning gets the whole."""
    data = random.Random(17).randbytes(12 * MiB)
    stored = source.hub(NAME, {"big.safetensors": data}).storage["big.safetensors"]
    source.fault(stored, Flip(5), Stall(9 * MiB))
    url = page(NAME, "big.safetensors")
    with process_of(source, tmp_path) as (process, service):
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(service + url, timeout=30)
        source.wait_for(lambda: metric(service, "upstream_bytes_total") > 21 * MiB, 20)
        kill(process)
    with process_of(source, tmp_path) as (_, service):
        again = httpx.get(service + url, headers={"Range": "bytes=4000000-"}, timeout=30)
        assert (again.status_code, again.content == data) == (200, True)
        assert metric(service, "wrong_hashes_total") == 1
    assert source.sent(stored) <= 2 * len(data) + 8 * MiB
    assert source.to(stored)[-1].start > 0  # type: ignore[operator]


def counted(cache: Path) -> dict[str, int]:
    """What a service counted that does not run any more."""
    (folder,) = (cache / ".locks" / "asyncfetch").glob("*/counts")
    counts = Counts(folder)
    counts.begin()
    try:
        return counts.snapshot()
    finally:
        counts.end()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_kill_costs_eight_mib_of_a_file_at_the_most(
    source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of what comes over several connections."""
    monkeypatch.setenv("ASYNCFETCH_CONNECTIONS", "8")
    data = random.Random(15).randbytes(48 * MiB)
    stored = source.hub(NAME, {"big.safetensors": data}).storage["big.safetensors"]
    source.fault(stored, Drip(MiB // 2, 0.01), forever=True)
    with process_of(source, tmp_path) as (process, url), httpx.stream("GET", url + page(NAME, "big.safetensors")):
        source.wait_for(lambda: source.sent(stored) > len(data) // 2, 20)
        kill(process)
    etag = hashlib.sha256(data).hexdigest()
    partial = blob(tmp_path, etag=etag).with_name(f"{etag}.asyncfetch.incomplete")
    there = spans_on_disk(partial, len(data), identity=etag).nbytes
    assert 0 < counted(tmp_path)["upstream_bytes_fills"] - there <= 8 * MiB
    assert counted(tmp_path)["upstream_bytes_fills"] <= source.sent(stored)


@pytest.mark.heavy
def test_egress_is_what_the_source_counts(source: FaultServer, tmp_path: Path) -> None:
    """To the byte, with questions, a retry, a reader that leaves, a wrong hash, a kill and a restart."""
    data = random.Random(16).randbytes(3 * MiB)
    files = {"big.safetensors": data, "model.safetensors": WEIGHTS, "words.txt": b"w" * 999}
    stored = source.hub(NAME, files).storage["big.safetensors"]
    source.fault(STORED, Reset(400_000), Flip(2_000_000))
    source.fault(stored, Stall(2 * MiB))
    with process_of(source, tmp_path) as (process, url):
        with httpx.stream("GET", url + page(NAME)) as response:
            next(response.iter_bytes(1000))
        source.wait_for(lambda: blob(tmp_path).exists(), 20)
        assert httpx.get(url + page(NAME, "absent")).status_code == 404
        source.fault(page(NAME, "words.txt"), IgnoreRange)  # so that more comes than is wanted, and stays in the socket
        assert httpx.head(url + page(NAME, "words.txt")).status_code == 200
        with httpx.stream("GET", url + page(NAME, "big.safetensors")):
            source.wait_for(
                lambda: metric(url, "upstream_bytes_total") == egress(source) and source.sent(stored) == 2 * MiB, 20
            )
            kill(process)
    kept = counted(tmp_path)
    assert sum(kept[f"upstream_bytes_{kind}"] for kind in ("questions", "fills", "passed")) == egress(source)
    with process_of(source, tmp_path) as (_, url):
        assert httpx.get(url + page(NAME, "big.safetensors"), timeout=30).content == data
        assert httpx.get(url + page(NAME)).content == WEIGHTS
        assert metric(url, "upstream_bytes_total") == egress(source)
        assert metric(url, "upstream_requests_total") == len(source.seen)
        assert metric(url, "upstream_retries_total") == 2  # one of them as the hash was wrong
        assert (metric(url, "wrong_hashes_total"), metric(url, "restarts_total")) == (1, 1)
        assert metric(url, 'file_requests_total{result="hits"}') == 1


def egress(source: FaultServer) -> int:
    """Body bytes that the source sent."""
    return sum(seen.sent for seen in list(source.seen))


def test_counts_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    one, other = Counts(tmp_path), Counts(tmp_path)
    one.add("hits", 3)  # before it began
    one.begin()
    other.begin()
    other.add("hits")
    threads = [threading.Thread(target=one.meter("fills").received, args=(5,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    later = Counts(tmp_path)  # a third, as if the first had been killed: it left what was received
    os.close(one._file)  # type: ignore[arg-type]
    later.begin()
    assert (later["hits"], later["upstream_bytes_fills"]) == (3, 100)
    (tmp_path / "7").write_bytes(b"no counts")
    assert other["hits"] == 1
