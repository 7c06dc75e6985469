"""Streams of tensors: what comes when, how much memory it takes, and what is left when a stream is left."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import ml_dtypes
import numpy as np
import pytest
import trio
from blockbuster import blockbuster_ctx

import asyncfetch
from asyncfetch.errors import ChecksumMismatchError, OfflineError, ServerError, ShardNotFoundError, SourceError
from asyncfetch.events import Event, FileProgress, FileVerified, Finished, Retrying
from asyncfetch.format.arrays import PackedArray
from asyncfetch.server import Server
from asyncfetch.sources.located import PREFIX_LIMIT
from asyncfetch.tensors import feed

from ..conftest import BACKENDS
from ..kit.child import interrupted
from ..kit.fault_server import OK, QUICK, Drip, FaultServer, Flip, IgnoreRange, Repository, Reset, Stall, Status
from ..kit.files import sharded, sharded_bytes
from ..torture.leaks import journalled

ROOT = Path(__file__).parents[2]
_RANDOM = np.random.default_rng(5)
# Tensor n is in shard n % 3. Large and small ones, an empty one, one at an odd offset, BF16 and packed F4.
TENSORS: dict[str, Any] = {
    **{f"large.{n}": _RANDOM.integers(0, 255, (400, 1000 + n), dtype=np.int16) for n in range(6)},
    **{f"small.{n}": np.full((3, n), n, np.float32) for n in range(6)},
    "byte": np.array([7], np.uint8),
    "bf16": np.arange(5).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 4), np.int64),
    "scalar": np.array(2.5),
}
SHARDS = 3
FORMS = [(storage, early) for storage in ("disk", "memory") for early in (False, True)]
forms = pytest.mark.parametrize(("storage", "early"), FORMS)
BIG = {f"t{n}": _RANDOM.integers(0, 255, 1_000_000, dtype=np.uint8) for n in range(6)}  # two shards of three
FILES = sharded_bytes(BIG, 2)
FIRST = "model-00001-of-00002.safetensors"
SIZE = len(FILES[FIRST])


def equal(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """The same names, dtypes, shapes and bytes, in whatever order."""
    return left.keys() == right.keys() and all(
        (array.dtype, array.shape, array.tobytes()) == (right[name].dtype, right[name].shape, right[name].tobytes())
        for name, array in left.items()
    )


def shard_of(name: str, tensors: dict[str, Any] = TENSORS, shards: int = SHARDS) -> int:
    return list(tensors).index(name) % shards


def found(folder: Path, pattern: str) -> list[Path]:
    return list(folder.rglob(pattern))


async def drain(source: Any, **options: Any) -> dict[str, Any]:
    async with asyncfetch.stream_async(source, **options) as tensors:
        return {name: array async for name, array in tensors}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    sharded(tmp_path / "models" / "org" / "model", TENSORS, shards=SHARDS)
    return tmp_path / "models"


@pytest.fixture
def hub(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(models) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FaultServer, Repository]]:
    with FaultServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server, server.hub("org/model", FILES)


@forms
@pytest.mark.anyio
async def test_all_tensors_come(hub: Server, tmp_path: Path, storage: str, early: bool) -> None:
    """What `load_async` gives comes as pairs, writable; each form leaves the cache as it should."""
    events: list[Event] = []
    cache = tmp_path / "cache"
    async with asyncfetch.stream_async(
        "org/model", storage=storage, early=early, cache_dir=cache, report=events.append
    ) as tensors:
        pairs = [pair async for pair in tensors]
        with pytest.raises(StopAsyncIteration):
            await anext(tensors)
    assert equal(dict(pairs), TENSORS)
    assert len(pairs) == len(TENSORS)
    assert all(array.flags.writeable and array.flags.aligned for _, array in pairs)
    if early or storage == "memory":
        assert all(array.ctypes.data % 64 == 0 for _, array in pairs if array.size)
    assert sum(isinstance(event, FileVerified) for event in events) == SHARDS
    assert isinstance(events[-1], Finished)
    files = [path for path in cache.rglob("*") if path.is_file() and not path.is_symlink()]
    assert bool(files) == (storage == "disk")
    if storage == "disk":
        assert equal(await asyncfetch.load_async("org/model", cache_dir=cache, offline=True), TENSORS)


@pytest.mark.parametrize("storage", ["disk", "memory"])
@pytest.mark.anyio
async def test_the_tensors_of_a_shard_come_together(hub: Server, storage: str) -> None:
    """Shards land in any order, but none in between the tensors of another."""
    names = list(await drain("org/model", storage=storage))
    shards = [shard_of(name) for name in names]
    assert len(list(itertools.groupby(shards))) == SHARDS


@forms
@pytest.mark.anyio
async def test_selection_and_dtype(hub: Server, storage: str, early: bool) -> None:
    """Only what is selected comes, only its shards are asked for, and floats are cast."""
    got = await drain("org/model", storage=storage, early=early, select=["small.1", "large.1"], dtype="bfloat16")
    assert equal(got, {"large.1": TENSORS["large.1"], "small.1": TENSORS["small.1"].astype(ml_dtypes.bfloat16)})
    asked = {record.path.rsplit("/", 1)[-1] for record in hub.requests}
    assert "model-00003-of-00003.safetensors" not in asked


@forms
@pytest.mark.anyio
async def test_packed_and_misaligned(tmp_path: Path, storage: str, early: bool) -> None:
    """F4 comes packed with its shape; a tensor at an odd offset is aligned in memory; a whole shard may be small."""
    folder = tmp_path / "models" / "org" / "odd"
    packed = ("F4", (3, 4), bytes(range(6)))
    odd = np.arange(300_000, dtype=np.float64)
    sharded(folder, {"byte": np.array([1], np.uint8), "odd": odd, "packed": packed}, shards=1)
    with Server(tmp_path / "models") as server:
        got = await drain("org/odd", storage=storage, early=early, endpoint=server.url, cache_dir=tmp_path / "cache")
    assert isinstance(got["packed"], PackedArray)
    assert got["packed"].logical_shape == (3, 4)
    assert got["packed"].tobytes() == bytes(range(6))
    assert got["odd"].flags.aligned
    assert np.array_equal(got["odd"], odd)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.anyio
async def test_what_is_on_disk_needs_no_request(hub: Server, models: Path, early: bool) -> None:
    """A cached checkpoint and a local folder stream too, offline."""
    await asyncfetch.download_async("org/model")
    before = len(hub.requests)
    assert equal(await drain("org/model", offline=True, early=early), TENSORS)
    assert equal(await drain("org/model", offline=True, early=early, storage="memory"), TENSORS)
    assert equal(await drain(models / "org" / "model", early=early), TENSORS)
    assert len(hub.requests) == before
    with pytest.raises(OfflineError):
        await drain("org/other", offline=True)


@forms
@pytest.mark.anyio
async def test_the_first_tensor_comes_before_the_last_byte(
    faulty: tuple[FaultServer, Repository], storage: str, early: bool
) -> None:
    """A slow shard holds up no other; early, its own tensors come while it is on its way."""
    server, repository = faulty
    slow = repository.storage[FIRST]
    server.fault(slow, OK, Stall(2_500_000), Stall(10_000), forever=True)  # nor does what is cut from its end
    policy = replace(QUICK, read_timeout=60)
    async with asyncfetch.stream_async("org/model", storage=storage, early=early, policy=policy) as tensors:
        with anyio.fail_after(30):
            names = [(await anext(tensors))[0] for _ in range(5 if early else 3)]
        assert server.sent(slow) < SIZE
        assert sum(name in ("t0", "t2", "t4") for name in names) == (2 if early else 0)


@forms
@pytest.mark.parametrize("kind", ["own", "client"])
@pytest.mark.anyio
async def test_a_broken_connection_is_resumed(
    faulty: tuple[FaultServer, Repository], storage: str, early: bool, kind: str
) -> None:
    """A reset in the middle of a shard: the rest is asked for, and all is right. With a caller's client too."""
    server, repository = faulty
    path = repository.storage[FIRST]
    server.fault(path, OK, Reset(1_200_000), Reset(700_000))
    async with httpx.AsyncClient() as client:
        injected = client if kind == "client" else None
        got = await drain("org/model", storage=storage, early=early, policy=QUICK, client=injected)
    assert equal(got, BIG)
    assert len(server.to(path)) >= 4
    starts = sorted(seen.start or 0 for seen in server.to(path))
    assert starts[-1] > 1_000_000


@forms
@pytest.mark.anyio
async def test_many_connections_to_a_shard(faulty: tuple[FaultServer, Repository], storage: str, early: bool) -> None:
    """Pieces in any order are fine where nothing is handed out before the end; early, in memory, there is one."""
    server, repository = faulty
    for path in repository.storage.values():
        server.fault(path, OK, Drip(50_000, 0.002), forever=True)
    policy = replace(QUICK, min_split=65_536, connections=12)
    assert equal(await drain("org/model", storage=storage, early=early, policy=policy), BIG)
    asked = [len(server.to(path)) for path in repository.storage.values()]
    if early and storage == "memory":
        assert asked == [2, 2]  # one for the header, one for the rest
    else:
        assert sum(asked) > 8


@pytest.mark.parametrize("storage", ["disk", "memory"])
@pytest.mark.anyio
async def test_a_server_without_ranges(faulty: tuple[FaultServer, Repository], tmp_path: Path, storage: str) -> None:
    """It sends the file from its beginning: what is there already is skipped, early as well."""
    server, repository = faulty
    for early in (False, True):
        for path in repository.storage.values():
            server.fault(path, OK, Reset(1_200_000), IgnoreRange)
        cache = tmp_path / str(early)
        assert equal(await drain("org/model", storage=storage, early=early, policy=QUICK, cache_dir=cache), BIG)


@pytest.mark.parametrize("storage", ["disk", "memory"])
@pytest.mark.anyio
async def test_a_wrong_hash_early_is_an_error_at_the_end(
    faulty: tuple[FaultServer, Repository], tmp_path: Path, storage: str
) -> None:
    """All tensors of the damaged shard come, then ChecksumMismatchError; it is not fetched again, and not kept."""
    server, repository = faulty
    path = repository.storage[FIRST]
    server.fault(path, OK, Flip(2_000_000), forever=True)
    got: dict[str, Any] = {}
    policy = replace(QUICK, connections=1)  # of several, one may be sent what another has taken over
    with pytest.raises(ChecksumMismatchError) as caught:  # noqa: PT012
        async with asyncfetch.stream_async(
            "org/model", storage=storage, early=True, policy=policy, cache_dir=tmp_path
        ) as tensors:
            async for name, array in tensors:
                got[name] = array
    assert caught.value.file == FIRST
    assert {"t0", "t2", "t4"} <= got.keys()
    assert not equal({name: got[name] for name in ("t0", "t2", "t4")}, {name: BIG[name] for name in ("t0", "t2", "t4")})
    assert server.sent(path) < SIZE + 200_000
    assert not found(tmp_path, FIRST)
    server.heal(path)
    assert equal(await drain("org/model", storage=storage, policy=QUICK, cache_dir=tmp_path), BIG)


@pytest.mark.parametrize("storage", ["disk", "memory"])
@pytest.mark.anyio
async def test_a_wrong_hash_is_never_handed_out(
    faulty: tuple[FaultServer, Repository], tmp_path: Path, storage: str
) -> None:
    """Not early: the shard is fetched once more before anything of it comes; a second time is the end."""
    server, repository = faulty
    path = repository.storage[FIRST]
    server.fault(path, OK, Flip(2_000_000))
    assert equal(await drain("org/model", storage=storage, policy=QUICK, cache_dir=tmp_path / "one"), BIG)
    assert server.sent(path) > 2 * SIZE - 100_000
    server.fault(path, OK, Flip(2_000_000), forever=True)
    names = []
    with pytest.raises(ChecksumMismatchError):  # noqa: PT012
        async with asyncfetch.stream_async(
            "org/model", storage=storage, policy=QUICK, cache_dir=tmp_path / "two"
        ) as tensors:
            async for name, array in tensors:
                names.append(name)
                assert np.array_equal(array, BIG[name])
    assert not {"t0", "t2", "t4"} & set(names)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.anyio
async def test_leaving_early_keeps_what_came(
    faulty: tuple[FaultServer, Repository], tmp_path: Path, early: bool
) -> None:
    """Breaking out of the loop: the rest is cancelled, no lock stays, and a load fetches only what is missing."""
    server, repository = faulty
    slow, fast = repository.storage[FIRST], repository.storage["model-00002-of-00002.safetensors"]
    server.fault(slow, OK, Drip(65_536, 0.1), forever=True)
    policy = replace(QUICK, connections=4, read_timeout=30, lock_patience=60)
    came = anyio.Event()

    def watch(event: Event) -> None:
        if isinstance(event, FileProgress) and event.file == FIRST and event.received > 300_000:
            came.set()

    async with asyncfetch.stream_async(
        "org/model", policy=policy, early=early, report=watch, cache_dir=tmp_path
    ) as tensors:
        async for _ in tensors:
            await came.wait()
            break
    kept = journalled(tmp_path)[slow.rpartition("/")[2]]
    assert kept > 200_000
    before = len(server.seen)
    server.heal(slow)
    with anyio.fail_after(30):  # a lock that stayed would be waited for much longer
        assert equal(await asyncfetch.load_async("org/model", cache_dir=tmp_path, policy=policy), BIG)
    assert server.covered(slow, before) <= SIZE - kept + PREFIX_LIMIT
    if not early:
        assert server.covered(fast, before) < 100_000


@forms
@pytest.mark.anyio
async def test_a_time_out_around_the_block(
    faulty: tuple[FaultServer, Repository], tmp_path: Path, storage: str, early: bool
) -> None:
    """Cancelled from outside while waiting for a tensor: it ends at once, and on disk what came stays."""
    server, repository = faulty
    for path in repository.storage.values():
        server.fault(path, OK, Drip(65_536, 0.02), forever=True)

    async def strike() -> None:
        under_way = lambda: any(server.sent(path) > 200_000 for path in repository.storage.values())  # noqa: E731
        await anyio.to_thread.run_sync(server.wait_for, under_way)
        scope.cancel()

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(strike)
            await drain("org/model", storage=storage, early=early, policy=QUICK, cache_dir=tmp_path)
        ended = time.monotonic()
        assert scope.cancelled_caught
    assert time.monotonic() - ended < 1
    assert bool(found(tmp_path, "*.map.incomplete")) == (storage == "disk")


@forms
@pytest.mark.anyio
async def test_an_error_comes_out_as_itself(faulty: tuple[FaultServer, Repository], storage: str, early: bool) -> None:
    """What the network fails with, through the iterator and the block; it can be caught in the block too."""
    server, repository = faulty
    server.fault(repository.storage[FIRST], OK, Status(500), forever=True)
    with pytest.raises(ServerError) as caught:
        await drain("org/model", storage=storage, early=early, policy=replace(QUICK, attempts=2))
    assert caught.value.status == 500
    server.fault(repository.storage[FIRST], OK)
    async with asyncfetch.stream_async(
        "org/model", storage=storage, early=early, policy=replace(QUICK, attempts=2)
    ) as tensors:
        with pytest.raises(ServerError):
            async for _ in tensors:
                pass


@pytest.mark.anyio
async def test_errors_on_entering(hub: Server, models: Path) -> None:
    """What is known before a byte moves is raised by the `async with` itself."""
    (models / "org" / "model" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ShardNotFoundError):
        async with asyncfetch.stream_async("org/model"):
            raise AssertionError("entered")
    for limit in (0, -1, 1.5, True):
        with pytest.raises(SourceError, match="memory_limit"):
            async with asyncfetch.stream_async("org/model", memory_limit=limit):  # type: ignore[arg-type]
                raise AssertionError("entered")
    with pytest.raises(SourceError, match="dtype"):
        async with asyncfetch.stream_async("org/model", dtype="int8"):
            raise AssertionError("entered")


@pytest.mark.parametrize("error", [ValueError("mine"), ExceptionGroup("mine", [ValueError("one"), OSError("two")])])
@pytest.mark.anyio
async def test_the_callers_own_error_passes_unchanged(hub: Server, error: Exception) -> None:
    """What is raised in the block comes out as it is, a group of the caller's included."""
    with pytest.raises(type(error)) as caught:  # noqa: PT012
        async with asyncfetch.stream_async("org/model", storage="memory") as tensors:
            await anext(tensors)
            raise error
    assert caught.value is error


@pytest.mark.anyio
async def test_after_the_block(hub: Server) -> None:
    """The iterator is closed with the block."""
    async with asyncfetch.stream_async("org/model") as tensors:
        await anext(tensors)
    with pytest.raises(SourceError, match="closed"):
        await anext(tensors)


@pytest.mark.anyio
@pytest.mark.parametrize("dequantize", [False, True])
async def test_after_the_end_there_is_no_more(hub: Server, dequantize: bool) -> None:
    """However often it is asked, in the block and behind it, as of each iterator: no error in the place of the end."""
    async with asyncfetch.stream_async("org/model", dequantize=dequantize) as tensors:
        assert equal({name: array async for name, array in tensors}, TENSORS)
        for _ in range(3):
            assert await anext(tensors, None) is None
    assert [pair async for pair in tensors] == []

    def read() -> None:
        with asyncfetch.stream("org/model", dequantize=dequantize) as blocks:
            found = {}
            while some := list(itertools.islice(blocks, 3)):  # 16 of them: the last three are one
                found |= dict(some)
            assert equal(found, TENSORS)
            assert list(zip(blocks, blocks, strict=True)) == []
        blocks.close()
        assert next(blocks, None) is None

    await anyio.to_thread.run_sync(read)


@pytest.mark.anyio
async def test_closed_while_another_task_waits(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task for which a shard is still being opened when the block is left is told so."""
    working, left = anyio.Event(), threading.Event()
    real = feed.open_landed

    def lasting(*arguments: Any) -> Any:
        anyio.from_thread.run_sync(working.set)
        assert left.wait(10)
        return real(*arguments)

    monkeypatch.setattr(feed, "open_landed", lasting)
    told: list[str] = []

    async def read(tensors: AsyncIterator[Any]) -> None:
        with pytest.raises(SourceError) as caught:
            await anext(tensors)
        told.append(caught.value.message)

    async with anyio.create_task_group() as group:
        async with asyncfetch.stream_async("org/model") as tensors:
            group.start_soon(read, tensors)
            await working.wait()
        left.set()
    assert told == ["The stream is closed."]


@pytest.mark.anyio
async def test_a_cancelled_wait_loses_no_tensor(faulty: tuple[FaultServer, Repository]) -> None:
    """A time-out around `anext` that strikes leaves the stream usable, and nothing is skipped."""
    server, repository = faulty
    for path in repository.storage.values():
        server.fault(path, OK, Drip(100_000, 0.01), forever=True)
    got: dict[str, Any] = {}
    strikes = 0
    async with asyncfetch.stream_async("org/model", policy=QUICK, early=True, dtype="float32") as tensors:
        with anyio.fail_after(20):
            while len(got) < len(BIG):
                with anyio.move_on_after(0.03) as scope:
                    name, array = await anext(tensors)
                    got[name] = array
                strikes += scope.cancelled_caught
                with anyio.CancelScope() as cancelled:
                    cancelled.cancel()
                    await anext(tensors)
                assert cancelled.cancelled_caught
    assert strikes
    assert equal(got, BIG)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.anyio
async def test_a_wait_cancelled_while_a_thread_works(
    hub: Server, early: bool, monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str
) -> None:
    """What a thread has made for a wait that is gone is made again: no tensor and no shard is skipped."""
    scopes: list[anyio.CancelScope] = []

    def striking(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if scopes:
                anyio.from_thread.run_sync(scopes.pop().cancel)
            return function(*arguments)

        return call

    for name in ("open_landed", "aligned_buffer"):  # a shard that landed is opened, a part of one is read
        monkeypatch.setattr(feed, name, striking(getattr(feed, name)))
    read_early: list[Any] = []
    stored = feed._Stored
    monkeypatch.setattr(feed, "_Stored", lambda *given: read_early.append(stored(*given)) or read_early[-1])
    got: dict[str, Any] = {}
    strikes = 0
    async with asyncfetch.stream_async("org/model", early=early) as tensors:
        while len(got) < len(TENSORS):
            with anyio.CancelScope() as scope:
                scopes[:] = [scope]
                name, got[name] = await anext(tensors)
            scopes.clear()
            strikes += scope.cancelled_caught
            if scope.cancelled_caught:
                name, got[name] = await anext(tensors)
        assert await anext(tensors, None) is None
    assert [one.unread for one in read_early] == [0] * (3 if early else 0)
    if anyio_backend_name == "asyncio":  # trio hands over what a thread returned, cancelled or not
        assert strikes == (len(TENSORS) if early else 3)  # for each tensor, or for each shard
    assert equal(got, TENSORS)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.anyio
async def test_a_slow_reader_slows_the_download(early: bool) -> None:
    """In memory no more is received than the limit allows, until the reader goes on; a pause is no stall."""
    tensors = {f"t{n}": np.full(1_500_000, n, np.uint8) for n in range(16)}
    events: list[Event] = []
    with FaultServer() as server:
        server.hub("org/model", sharded_bytes(tensors, 4))  # shards of 6 MB
        policy = replace(QUICK, stall_window=0.5, stall_bytes=1, read_timeout=10)
        async with asyncfetch.stream_async(
            "org/model", storage="memory", early=early, memory_limit=6_100_000, endpoint=server.url, policy=policy,
            report=events.append,
        ) as stream:  # fmt: skip
            name, array = await anext(stream)
            await anyio.sleep(1)
            # What the server could send beyond it is in the sockets' buffers, and what came with the headers.
            taken = [event for event in events if type(event).__name__ == "FileProgress"]
            assert sum({event.file: event.received for event in taken}.values()) < 6_100_000 + 4 * 65_536
            got = {name: array} | {name: array async for name, array in stream}
    assert equal(got, tensors)
    assert not [event for event in events if isinstance(event, Retrying)]


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.anyio
async def test_a_limit_below_everything_still_ends(hub: Server, early: bool) -> None:
    """One shard, or tensor, is always begun, even if the limit is a single byte."""
    with anyio.fail_after(20):
        assert equal(await drain("org/model", storage="memory", early=early, memory_limit=1), TENSORS)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.anyio
async def test_a_reader_may_keep_everything(hub: Server, early: bool) -> None:
    """The limit is about what was not consumed: a reader that keeps all arrays is not held up."""
    with anyio.fail_after(20):
        got = await drain("org/model", storage="memory", early=early, memory_limit=2_000_000)
    assert equal(got, TENSORS)
    owners = [array if array.base is None else array.base for name, array in got.items() if array.size]
    assert len({id(owner) for owner in owners}) == len(owners), "each array has memory of its own"


@pytest.mark.anyio
async def test_what_the_reader_writes_changes_no_hash(faulty: tuple[FaultServer, Repository]) -> None:
    """Early arrays may be written to at once, while their shard is still being hashed."""
    async with asyncfetch.stream_async("org/model", storage="memory", early=True, policy=QUICK) as tensors:
        count = 0
        async for name, array in tensors:
            assert np.array_equal(array, BIG[name])
            array[:] = 0
            count += 1
    assert count == len(BIG)


def measured(*arguments: str) -> dict[str, dict[str, float]]:
    """The rows of scripts/stream_memory.py: peaks in bytes, each measured in a process of its own."""
    pytest.importorskip("rich")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs /proc/self/clear_refs to begin a peak anew")
    done = subprocess.run(
        [sys.executable, "scripts/stream_memory.py", "--json", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=True, timeout=110,
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["row"]: row for row in rows}


@pytest.mark.heavy
@pytest.mark.timeout(120)
def test_the_memory_of_a_reader_that_drops_what_it_got() -> None:
    """1.25 shards, early about two tensors, against all of it for a load."""
    mib = 1 << 20
    rows = measured("--no-disk", "--mib", "384", "--shards", "4", "--tensors", "8")
    assert rows["load, memory"]["peak"] > 375 * mib
    assert rows["stream, memory"]["peak"] < 140 * mib  # 120 MiB is the limit
    assert all(row["tensors"] == 32 for row in rows.values())


@pytest.mark.heavy
@pytest.mark.timeout(120)
def test_the_memory_where_the_limit_is_less_than_a_shard() -> None:
    """One shard, early about two tensors."""
    mib = 1 << 20
    rows = measured("--no-disk", "--mib", "256", "--shards", "8", "--tensors", "4", "--memory-limit", "16")
    assert rows["stream, memory"]["peak"] < 60 * mib  # one shard of 32 MiB is always begun
    assert rows["stream, memory, early"]["peak"] < 35 * mib  # two tensors of 8 MiB, and the one that is looked at
    assert all(row["tensors"] == 32 for row in rows.values())


# -- blocking ------------------------------------------------------------------------------------


@forms
def test_blocking(hub: Server, storage: str, early: bool) -> None:
    """The twin: with no loop, inside asyncio, inside trio."""

    def read() -> dict[str, Any]:
        with asyncfetch.stream("org/model", storage=storage, early=early) as tensors:
            return dict(tensors)

    async def cell() -> dict[str, Any]:
        return read()

    assert equal(read(), TENSORS)
    assert equal(asyncio.run(cell()), TENSORS)
    assert equal(trio.run(cell), TENSORS)


def test_blocking_left_early(hub: Server) -> None:
    """Break, an error of the caller's, an error of the checkpoint, use after the block."""
    with asyncfetch.stream("org/model", storage="memory") as tensors:
        for _ in tensors:
            break
    with pytest.raises(SourceError, match="closed"):
        next(tensors)
    with pytest.raises(KeyError, match="mine"), asyncfetch.stream("org/model", storage="memory") as tensors:
        raise KeyError(next(tensors)[0], "mine")
    with pytest.raises(SourceError), asyncfetch.stream("org/model", memory_limit=0):
        raise AssertionError("entered")


def test_the_twin_has_the_same_signature() -> None:
    """Both take what `load_async` takes, and two more."""
    ours, twin = (list(inspect.signature(f).parameters) for f in (asyncfetch.stream_async, asyncfetch.stream))
    assert ours == twin
    assert set(ours) == {*inspect.signature(asyncfetch.load_async).parameters, "early", "memory_limit"}
    assert asyncfetch.stream.__name__ == "stream"
    assert "stream_async" in (asyncfetch.stream.__doc__ or "")


def test_ctrl_c(tmp_path: Path) -> None:
    """KeyboardInterrupt while waiting for the next tensor reaches the caller at once; what came stays."""
    code = (
        "import asyncfetch, time\n"
        "def report(event):\n"
        "    if type(event).__name__ == 'FileProgress' and event.received > 500_000: print('going', flush=True)\n"
        "try:\n"
        "    with asyncfetch.stream('org/model', report=report) as tensors:\n"
        "        for _ in tensors: pass\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', time.monotonic(), flush=True)\n"
    )
    with FaultServer() as server:
        for path in server.hub("org/model", FILES).storage.values():
            server.fault(path, OK, Drip(65_536, 0.05), forever=True)
        seconds = interrupted(code, HF_ENDPOINT=server.url, HF_HUB_CACHE=str(tmp_path))
    assert seconds < 0.5
    assert list(tmp_path.rglob("*.map.incomplete"))


@forms
@pytest.mark.parametrize("anyio_backend", BACKENDS[:2])  # blockbuster knows no trio
@pytest.mark.anyio
async def test_nothing_blocks_the_loop(
    hub: Server, anyio_backend: Any, storage: str, early: bool, tmp_path: Path
) -> None:
    """No call of ours in the loop's thread reads, writes, sleeps or waits for a lock of another process."""
    with blockbuster_ctx(scanned_modules=["asyncfetch"]):
        got = await drain("org/model", storage=storage, early=early, cache_dir=tmp_path, dtype="float64")
    assert got.keys() == TENSORS.keys()
