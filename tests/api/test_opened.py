"""Tensors on demand: the right elements, no more bytes than needed, and never parts of two files as one."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import ml_dtypes
import numpy as np
import pytest

import asyncfetch
from asyncfetch import BlockingCheckpoint, Checkpoint, PackedArray, StoredTensor
from asyncfetch.errors import (
    ChangedError,
    ChecksumMismatchError,
    LinkExpiredError,
    MissingTensorError,
    NetworkError,
    OfflineError,
    SelectionError,
    SourceError,
    StorageError,
)
from asyncfetch.events import Event, Retrying, Warned
from asyncfetch.format.dtypes import DTYPES
from asyncfetch.server import Server
from asyncfetch.sources.located import PREFIX_LIMIT
from asyncfetch.spans import MiB
from asyncfetch.tensors import gather

from ..kit.canaries import shown
from ..kit.fault_server import (
    OK,
    QUICK,
    Chunked,
    Expire,
    FaultServer,
    Headers,
    IgnoreRange,
    Repository,
    Reset,
    Stall,
    Status,
    Truncate,
)
from ..kit.files import index_bytes, safetensors_bytes, sharded_bytes
from ..kit.minilm import script

RNG = np.random.default_rng(11)
TENSORS: dict[str, Any] = {
    "first": RNG.random((400, 256), np.float32),  # 409,600 bytes: what comes with the header is not all of it
    "rows": RNG.random((1200, 300), np.float32).astype(ml_dtypes.bfloat16),
    "bias": np.arange(7, dtype=np.int64),
    "scalar": np.array(2.5, np.float32),
    "none": np.zeros((0, 3), np.float16),
    "experts": RNG.integers(0, 255, (3, 4, 200_000), np.uint8),
    "last": RNG.random((300, 100)),
}
ONE = {"model.safetensors": safetensors_bytes(TENSORS)}
SHARDS = sharded_bytes(TENSORS, 3)
INDEX = "model.safetensors.index.json"
ROOT = Path(__file__).parents[2]


def equal(actual: Any, expected: Any) -> None:
    """Same dtype, shape and bits."""
    assert actual.dtype == expected.dtype
    assert actual.shape == np.shape(expected)
    assert actual.tobytes() == np.asarray(expected).tobytes()


def settled(count: Callable[[], int]) -> int:
    """`count()` once it stands still: the servers count in threads of their own, just after they have sent."""
    last, equal_for = count(), 0
    while equal_for < 3:
        time.sleep(0.01)
        now = count()
        equal_for = equal_for + 1 if now == last else 0
        last = now
    return last


def sent_by(server: Server) -> int:
    """All body bytes that `server` has sent."""
    return settled(lambda: server.bytes_sent)


@pytest.fixture
def faulty() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """The same tensors as a single file and in three shards."""
    for name, files in {"one": ONE, "sharded": SHARDS}.items():
        folder = tmp_path / "models" / "org" / name
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
    with Server(tmp_path / "models") as running:
        yield running


# -- what is told without a request ----------------------------------------------------------------


def test_open_takes_the_pinned_options() -> None:
    """`open` and `open_async` take the source by position and what `load` takes by name but storage and names."""
    load = inspect.signature(asyncfetch.load).parameters
    for function in (asyncfetch.open, asyncfetch.open_async):
        parameters = inspect.signature(function).parameters
        assert list(parameters) == [name for name in load if name not in ("storage", "rename")]
        for name, parameter in parameters.items():
            assert (parameter.kind, parameter.default) == (load[name].kind, load[name].default)


def test_the_twins_have_the_same_methods() -> None:
    """Each public method of `Checkpoint` is one of `BlockingCheckpoint` too, with the same parameters and words."""
    own = {"aclose", "blocking", "keep_until_closed"}  # of the async one, whose twin has `close`
    names = [name for name in dir(Checkpoint) if not name.startswith("_") and name not in own]
    assert {"aliases", "info", "keys", "metadata", "nbytes", "plan_of", "shard_of", "tensor", "tensors"} <= set(names)
    assert {*names, "close"} == {name for name in dir(BlockingCheckpoint) if not name.startswith("_")}
    for name in set(names) - {"timeout"}:
        there, here = getattr(Checkpoint, name), getattr(BlockingCheckpoint, name)
        assert there.__doc__ == here.__doc__
        if inspect.isroutine(there):
            assert list(inspect.signature(there).parameters) == list(inspect.signature(here).parameters)


@pytest.mark.anyio
async def test_contents(tmp_path: Path) -> None:
    """Names in the order of the index, where each tensor is, metadata, tied names, bytes."""
    files = dict(SHARDS)
    weight_map = {name: f"model-0000{number % 3 + 1}-of-00003.safetensors" for number, name in enumerate(TENSORS)}
    files[INDEX] = index_bytes(weight_map, {"head": "rows", "total_size": 1})
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    async with asyncfetch.open_async(tmp_path) as checkpoint:
        assert list(checkpoint.keys()) == list(TENSORS)
        assert len(checkpoint) == len(TENSORS)
        assert "rows" in checkpoint
        assert "head" in checkpoint
        assert "headless" not in checkpoint
        assert checkpoint.metadata == {"head": "rows", "total_size": 1}
        assert checkpoint.aliases == {"head": "rows"}
        assert checkpoint.nbytes == sum(tensor.nbytes for tensor in TENSORS.values())
        info = checkpoint.info("rows")
        shard = "model-00002-of-00003.safetensors"
        assert info == StoredTensor("BF16", (1200, 300), 720_000, shard, info.offset)
        assert files[shard][info.offset : info.offset + info.nbytes] == TENSORS["rows"].tobytes()


@pytest.mark.anyio
async def test_opening_reads_headers_only(server: Server, tmp_path: Path) -> None:
    """What opening transfers is the index and the first bytes of each shard; nothing is written."""
    async with asyncfetch.open_async("org/sharded", endpoint=server.url, cache_dir=tmp_path / "cache") as checkpoint:
        headers = len(SHARDS[INDEX]) + 3 * PREFIX_LIMIT
        assert headers <= sent_by(server) < headers + 200  # the answer that there is no single file beside it
        before = len(server.requests)
        equal(await checkpoint.tensor("first", np.s_[:10]), TENSORS["first"][:10])  # came with the header
        assert checkpoint.plan_of("rows").strategy == "contiguous"
        assert len(server.requests) == before
        equal(await checkpoint.tensor("first"), TENSORS["first"])
    assert not (tmp_path / "cache").exists()


@pytest.mark.anyio
async def test_a_checkpoint_that_cannot_be_loaded_cannot_be_opened(tmp_path: Path) -> None:
    """The index is held against the headers, as for a load."""
    wrong = dict.fromkeys(TENSORS, "model-00001-of-00003.safetensors")
    for name, content in (SHARDS | {INDEX: index_bytes(wrong)}).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MissingTensorError):
        async with asyncfetch.open_async(tmp_path):
            pass


# -- tensors and parts of them ---------------------------------------------------------------------

PARTS: list[tuple[str, Any]] = [
    ("first", ...),
    ("first", np.s_[300:310]),
    ("rows", np.s_[-1]),
    ("rows", np.s_[900:1000:7, ::-3]),
    ("rows", np.s_[::-1, 5]),
    ("rows", np.s_[5, 6]),
    ("rows", (None, slice(1190, None), ..., 2)),
    ("bias", np.s_[::2]),
    ("scalar", ...),
    ("scalar", ()),
    ("none", ...),
    ("none", np.s_[:, 1]),
    ("rows", np.s_[7:7]),
    ("experts", np.s_[:, 1:3, 50_000:]),
    ("experts", np.s_[1]),
    ("last", np.s_[:, 10:20]),
]


@pytest.mark.anyio
@pytest.mark.parametrize("repository", ["one", "sharded"])
@pytest.mark.parametrize("own", [True, False])
async def test_parts_are_what_numpy_would_give(server: Server, repository: str, own: bool) -> None:
    """Each part equals `full[index]` to the bit, has memory of its own, aligned, and can be written to."""
    async with (
        httpx.AsyncClient() as client,
        asyncfetch.open_async(
            f"org/{repository}", endpoint=server.url, client=None if own else client, policy=QUICK
        ) as checkpoint,
    ):
        for name, index in PARTS:
            part = await checkpoint.tensor(name, index)
            equal(part, TENSORS[name][index])
            assert part.flags.writeable
            if index is ...:
                assert part.ctypes.data % 64 == 0
        again = await checkpoint.tensor("rows")
        again[:] = 0
        equal(await checkpoint.tensor("rows"), TENSORS["rows"])
        equal(await checkpoint.tensor("last"), TENSORS["last"])
        everything = await checkpoint.state_dict()
    assert list(everything) == list(TENSORS)
    for name, tensor in TENSORS.items():
        equal(everything[name], tensor)


@pytest.mark.anyio
async def test_only_what_is_needed_travels(server: Server) -> None:
    """By the server's count, a part costs the bytes of its plan: rows just their own, columns of experts too."""
    async with asyncfetch.open_async("org/one", endpoint=server.url) as checkpoint:

        async def sent(name: str, index: Any) -> int:
            before = sent_by(server)
            equal(await checkpoint.tensor(name, index), TENSORS[name][index])
            assert sent_by(server) - before == checkpoint.plan_of(name, index).transferred
            return sent_by(server) - before

        assert await sent("rows", ...) == 720_000
        assert await sent("rows", np.s_[100:350]) == 250 * 600
        assert await sent("rows", np.s_[17, 20]) == 2
        assert await sent("experts", np.s_[:, 2]) == 3 * 200_000
        assert checkpoint.plan_of("experts", np.s_[:, 2]).strategy == "strided"
        assert await sent("last", np.s_[:, 10:20]) == 299 * 800 + 80
        assert await sent("none", ...) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("world_size", [1, 3, 4, 7])
async def test_each_rank_fetches_its_share(server: Server, world_size: int) -> None:
    """Along axis 0 the ranks together transfer the tensor once; each part is that of numpy.array_split."""
    async with asyncfetch.open_async("org/one", endpoint=server.url) as checkpoint:
        before = sent_by(server)
        for rank in range(world_size):
            part = await checkpoint.shard_of("rows", rank=rank, world_size=world_size, split="array_split")
            equal(part, np.array_split(TENSORS["rows"], world_size)[rank])
        assert sent_by(server) - before == 720_000
        for name, axis in (("rows", 1), ("experts", 1), ("experts", -1), ("bias", 0)):
            parts = np.array_split(TENSORS[name], world_size, axis)
            last = {"rank": world_size - 1, "world_size": world_size}
            equal(await checkpoint.shard_of(name, axis, **last, split="array_split"), parts[-1])
        plan = checkpoint.plan_of("experts", axis=1, rank=0, world_size=4)
        assert (plan.strategy, plan.transferred) == ("strided", TENSORS["experts"].nbytes // 4)
        before = sent_by(server)
        equal(await checkpoint.shard_of("experts", 1, rank=0, world_size=4), TENSORS["experts"][:, :1])
        assert sent_by(server) - before == plan.transferred


@pytest.mark.anyio
async def test_dtype_casts(server: Server) -> None:
    """`dtype` of the call, or else of `open_async`, casts floating tensors and nothing else."""
    async with asyncfetch.open_async("org/one", endpoint=server.url, dtype="float16") as checkpoint:
        equal(await checkpoint.tensor("first", np.s_[3:5]), TENSORS["first"][3:5].astype(np.float16))
        equal(await checkpoint.tensor("first", dtype="bfloat16"), TENSORS["first"].astype(ml_dtypes.bfloat16))
        equal(await checkpoint.shard_of("rows", rank=1, world_size=2), TENSORS["rows"][600:].astype(np.float16))
        both = await checkpoint.tensors(["bias", "last"], dtype=np.float32)
        assert {name: array.dtype.name for name, array in both.items()} == {"bias": "int64", "last": "float32"}
        with pytest.raises(SourceError, match="not a floating-point type"):
            await checkpoint.tensor("first", dtype=int)
    with pytest.raises(SourceError, match="not a floating-point type"):
        async with asyncfetch.open_async("org/one", endpoint=server.url, dtype="int8"):
            pass


@pytest.mark.anyio
async def test_selection(server: Server) -> None:
    """`select` narrows what there is, and which shards are looked at; `state_dict` narrows further."""
    async with asyncfetch.open_async("org/sharded", endpoint=server.url, select=["r*", "la*"]) as checkpoint:
        assert list(checkpoint.keys()) == ["rows", "last"]
        assert list(await checkpoint.state_dict("la*")) == ["last"]
        assert list(await checkpoint.state_dict(lambda name: "w" in name)) == ["rows"]
        with pytest.raises(SelectionError):
            await checkpoint.state_dict("first")
        with pytest.raises(SelectionError):
            await checkpoint.tensor("first")
    assert not any("model-00003" in request.path for request in server.requests)


@pytest.mark.anyio
async def test_every_dtype(tmp_path: Path) -> None:
    """All dtypes come as `load` brings them; parts of the packed ones where they have bytes of their own."""
    shape = (6, 8)
    tensors = {name: (name, shape, RNG.bytes(48 * dtype.bits // 8)) for name, dtype in DTYPES.items()}
    tensors["BOOL"] = ("BOOL", shape, bytes([0, 1] * 24))
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(tensors))
    loaded = await asyncfetch.load_async(path)
    async with asyncfetch.open_async(path) as checkpoint:
        for name, expected in loaded.items():
            equal(await checkpoint.tensor(name), expected)
            if not DTYPES[name].packed:
                equal(await checkpoint.tensor(name, np.s_[1:, ::-3]), expected[1:, ::-3])
                continue
            packed = await checkpoint.tensor(name)
            assert isinstance(packed, PackedArray)
            equal(packed.unpack(), expected.unpack())
            assert checkpoint.info(name).shape == shape
            assert checkpoint.plan_of(name).transferred == len(tensors[name][2])
            values = expected.unpack()
            for index in (np.s_[:2], np.s_[-1], np.s_[::-2, 4:8], np.s_[5:2], (None, 3, ..., None), np.s_[1:3, :4]):
                part = await checkpoint.tensor(name, index)
                assert isinstance(part, PackedArray)
                equal(part.unpack(), values[index])
                assert checkpoint.plan_of(name, index).nbytes == part.nbytes
            for axis in (0, 1):
                for rank in range(2):
                    part = await checkpoint.shard_of(name, axis, rank=rank, world_size=2)
                    equal(part.unpack(), np.array_split(values, 2, axis)[rank])
            equal(await checkpoint.shard_of(name, 1, rank=0, world_size=1), packed)
            for refused in (checkpoint.tensor(name, np.s_[:, 3:6]), checkpoint.shard_of(name, 1, rank=0, world_size=3)):
                with pytest.raises(SourceError, match="is packed"):
                    await refused
            with pytest.raises(SourceError, match="is packed"):
                checkpoint.plan_of(name, np.s_[0, 1])


@pytest.mark.anyio
async def test_bad_questions(server: Server) -> None:
    """What makes no sense is an error that says why, and sends nothing."""
    async with asyncfetch.open_async("org/one", endpoint=server.url) as checkpoint:
        before = len(server.requests)
        with pytest.raises(SelectionError, match=r"no tensor 'row'. Is it 'rows'\?"):
            await checkpoint.tensor("row")
        with pytest.raises(SelectionError, match="keys"):
            checkpoint.info("???")
        with pytest.raises(SelectionError):
            await checkpoint.tensor(["rows"])  # type: ignore[arg-type]
        with pytest.raises(IndexError, match="index 1200 is out of bounds for axis 0 with size 1200"):
            await checkpoint.tensor("rows", 1200)
        with pytest.raises(IndexError, match="too many indices"):
            await checkpoint.tensor("bias", np.s_[0, 0])
        with pytest.raises(SourceError, match="takes ints, slices"):
            await checkpoint.tensor("rows", [1, 2])  # type: ignore[arg-type]
        with pytest.raises(SourceError, match="not one"):
            await checkpoint.tensors("rows")
        with pytest.raises(SourceError, match="rank=4"):
            await checkpoint.shard_of("rows", rank=4, world_size=4)
        with pytest.raises(SourceError, match="or else of a rank and a world_size"):
            checkpoint.plan_of("rows", 3, rank=0, world_size=2)
        with pytest.raises(SourceError, match="or else of a rank and a world_size"):
            checkpoint.plan_of("rows", rank=0)
        assert len(server.requests) == before
    with pytest.raises(SourceError, match="closed"):
        await checkpoint.tensor("rows")


# -- requests --------------------------------------------------------------------------------------


def far_apart(count: int, nbytes: int, gap: int) -> dict[str, np.ndarray]:
    """Tensors t0, t1, ... of `nbytes`, each followed by one of `gap` bytes that nobody wants."""
    tensors = {"front": np.zeros(PREFIX_LIMIT, np.uint8)}
    for number in range(count):
        tensors[f"t{number}"] = RNG.integers(0, 255, nbytes, np.uint8)
        tensors[f"gap{number}"] = np.zeros(gap, np.uint8)
    return tensors


@pytest.mark.anyio
@pytest.mark.parametrize(("gap", "requests"), [(1000, 1), (300_000, 5)])
async def test_neighbours_come_in_one_request(faulty: FaultServer, gap: int, requests: int) -> None:
    """Tensors with a small gap between them share a range; the order of the names does not matter."""
    tensors = far_apart(5, 20_000, gap)
    url = faulty.web("/files", {"model.safetensors": safetensors_bytes(tensors)})
    names = ["t3", "t0", "t4", "t1", "t2"]
    async with asyncfetch.open_async(url, policy=QUICK) as checkpoint:
        seen, sent = len(faulty.seen), settled(lambda: faulty.sent("/files/model.safetensors"))
        arrays = await checkpoint.tensors([*names, "t0"])
        assert list(arrays) == names
        for name in names:
            equal(arrays[name], tensors[name])
        assert len(faulty.seen) - seen == requests
        assert settled(lambda: faulty.sent("/files/model.safetensors")) - sent == 100_000 + (
            4 * gap if requests == 1 else 0
        )


@pytest.mark.anyio
async def test_connections_are_bounded(faulty: FaultServer) -> None:
    """All calls together open no more connections than the policy says."""
    tensors = far_apart(8, 1000, 300_000)
    url = faulty.web("/files", {"model.safetensors": safetensors_bytes(tensors)})
    async with asyncfetch.open_async(url, policy=replace(QUICK, connections=2)) as checkpoint:
        before = faulty.accepted
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(checkpoint.state_dict, "t*")
        assert len(faulty.to("/files/model.safetensors")) == 1 + 3 * 8
    assert faulty.accepted - before <= 2


@pytest.mark.anyio
async def test_one_large_tensor_uses_several_connections(faulty: FaultServer) -> None:
    """A range that is long is cut, and its parts are fetched at the same time; no byte comes twice."""
    large = RNG.integers(0, 255, 4_000_000, np.uint8)
    url = faulty.web("/files", {"model.safetensors": safetensors_bytes({"large": large})})
    async with asyncfetch.open_async(url, policy=replace(QUICK, min_split=500_000)) as checkpoint:
        equal(await checkpoint.tensor("large"), large)
    total = settled(lambda: faulty.sent("/files/model.safetensors"))
    assert total == len(faulty.resources["/files/model.safetensors"].body)
    seen = faulty.to("/files/model.safetensors")
    assert len(seen) == 1 + 8
    assert len({request.connection for request in seen}) > 2


@pytest.mark.anyio
@pytest.mark.parametrize("fault", [IgnoreRange, (IgnoreRange, Chunked)])
async def test_a_server_without_ranges(faulty: FaultServer, fault: Any) -> None:
    """It sends the whole file, of which the part is kept; known to be so, it is asked once for many tensors."""
    url = faulty.web("/files", ONE)
    faulty.fault("/files/model.safetensors", OK, fault, forever=True)
    async with asyncfetch.open_async(url, policy=QUICK) as checkpoint:
        equal(await checkpoint.tensor("last", np.s_[5:9]), TENSORS["last"][5:9])
        before = len(faulty.seen)
        arrays = await checkpoint.state_dict(["rows", "last"])  # 2.4 MB between them
        equal(arrays["rows"], TENSORS["rows"])
        equal(arrays["last"], TENSORS["last"])
        assert len(faulty.seen) - before == 1


# -- what is here already --------------------------------------------------------------------------


@pytest.mark.anyio
async def test_cached_shards_answer_without_a_request(server: Server, tmp_path: Path) -> None:
    """Of a half-cached checkpoint only the other half travels; a cached one works offline."""
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path / "cache"}
    await asyncfetch.load_async("org/sharded", select="rows", **options)
    async with asyncfetch.open_async("org/sharded", **options) as checkpoint:
        here = checkpoint.info("rows").shard
        before = sent_by(server)
        equal(await checkpoint.tensor("rows", np.s_[::-2]), TENSORS["rows"][::-2])
        assert sent_by(server) == before
        everything = await checkpoint.state_dict()
        assert all(everything[name].tobytes() == TENSORS[name].tobytes() for name in TENSORS)
        there = sum(len(content) - PREFIX_LIMIT for name, content in SHARDS.items() if name not in (here, INDEX))
        assert sent_by(server) - before == there
    await asyncfetch.load_async("org/sharded", **options)
    before = len(server.requests)
    async with asyncfetch.open_async("org/sharded", offline=True, **options) as checkpoint:
        equal(await checkpoint.tensor("last", 3), TENSORS["last"][3])
    assert len(server.requests) == before
    with pytest.raises(OfflineError):
        async with asyncfetch.open_async("org/one", offline=True, **options):
            pass


@pytest.mark.anyio
async def test_arrays_from_disk_are_independent(tmp_path: Path) -> None:
    """Writing to an array changes neither the file nor what the next call returns."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(ONE["model.safetensors"])
    async with asyncfetch.open_async(path) as checkpoint:
        for index in (..., np.s_[5:9], np.s_[:, ::2]):
            (await checkpoint.tensor("rows", index))[:] = 0
            equal(await checkpoint.tensor("rows", index), TENSORS["rows"][index])
    assert path.read_bytes() == ONE["model.safetensors"]


@pytest.mark.anyio
async def test_a_damaged_cached_file(server: Server, tmp_path: Path) -> None:
    """`verify="always"` hashes what is cached; a wrong file is not used and read from the source."""
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path / "cache"}
    snapshot = await asyncfetch.download_async("org/one", **options)
    blob = snapshot.files["model.safetensors"].resolve()
    damaged = bytearray(ONE["model.safetensors"])
    damaged[-1] ^= 1
    blob.write_bytes(damaged)
    events: list[Event] = []
    async with asyncfetch.open_async("org/one", verify="always", report=events.append, **options) as checkpoint:
        equal(await checkpoint.tensor("last"), TENSORS["last"])
    assert any(isinstance(event, Warned) and "not used" in event.message for event in events)


@pytest.mark.anyio
async def test_a_local_file_with_a_wrong_hash(tmp_path: Path) -> None:
    """`checksums=` are held against the files on disk when they are opened."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(ONE["model.safetensors"])
    with pytest.raises(ChecksumMismatchError):
        async with asyncfetch.open_async(path, checksums={"model.safetensors": "sha256:" + "0" * 64}):
            pass


# -- change and expiry -----------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["before the first read", "between two reads"])
@pytest.mark.parametrize("source", ["web", "links"])
async def test_a_file_that_changes(faulty: FaultServer, source: str, when: str) -> None:
    """Another file of the same size in the same place is noticed, also behind links: no mixture comes out."""
    if source == "web":
        url, options, path = faulty.web("/files", ONE), {}, "/files/model.safetensors"
    else:
        repository = faulty.hub("org/model", ONE)
        url, options, path = "org/model", {"endpoint": faulty.url}, repository.storage["model.safetensors"]
    async with asyncfetch.open_async(url, policy=QUICK, **options) as checkpoint:  # type: ignore[arg-type]
        if when == "between two reads":
            equal(await checkpoint.tensor("rows", np.s_[:600]), TENSORS["rows"][:600])
        resource = faulty.resources[path]
        resource.body = resource.body[:-1] + b"!"
        resource.headers["etag"] = '"another"'
        with pytest.raises(ChangedError, match="ETag"):
            await checkpoint.tensor("rows", np.s_[600:])
    assert all(request.headers["if-range"] for request in faulty.to(path)[1:])


@pytest.mark.anyio
@pytest.mark.parametrize("change", ["longer", "shorter"])
async def test_a_file_of_another_size(faulty: FaultServer, change: str) -> None:
    """Without any ETag the size still tells."""
    url = faulty.web("/files", ONE, etag="")
    async with asyncfetch.open_async(url, policy=QUICK) as checkpoint:
        resource = faulty.resources["/files/model.safetensors"]
        resource.body = resource.body + b"!" if change == "longer" else resource.body[:-1]
        with pytest.raises(ChangedError):
            await checkpoint.tensor("rows")


@pytest.mark.anyio
async def test_two_answers_at_once_from_different_files(faulty: FaultServer) -> None:
    """The first ETag that is seen counts for answers that were already on their way."""
    repository = faulty.hub("org/model", ONE)
    path = repository.storage["model.safetensors"]
    etags = [Headers(etag=None)] + [Headers(etag=f'"{number}"') for number in range(20)]
    faulty.fault(path, *etags)  # no ETag with the header
    policy = replace(QUICK, min_split=50_000)
    async with asyncfetch.open_async("org/model", endpoint=faulty.url, policy=policy) as checkpoint:
        with pytest.raises(ChangedError, match="ETag"):
            await checkpoint.tensor("rows")


@pytest.mark.anyio
async def test_a_weak_etag_holds_nothing(faulty: FaultServer) -> None:
    """A weak ETag is no validator: it is neither sent in If-Range nor compared."""
    repository = faulty.hub("org/model", ONE)
    path = repository.storage["model.safetensors"]
    faulty.fault(path, *[Headers(etag=f'W/"{number}"') for number in range(3)])
    async with asyncfetch.open_async("org/model", endpoint=faulty.url, policy=QUICK) as checkpoint:
        equal(await checkpoint.tensor("rows", np.s_[:10]), TENSORS["rows"][:10])
        equal(await checkpoint.tensor("last"), TENSORS["last"])
    assert not any("if-range" in request.headers for request in faulty.to(path))


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["rewritten", "replaced", "truncated", "header"])
async def test_a_local_file_that_changes(tmp_path: Path, how: str) -> None:
    """A file on disk is held to what was opened: rewritten in place is an error, replaced leaves the old one."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(ONE["model.safetensors"])
    async with asyncfetch.open_async(path) as checkpoint:
        if how != "header":
            equal(await checkpoint.tensor("rows", 0), TENSORS["rows"][0])
        if how == "rewritten":
            path.write_bytes(ONE["model.safetensors"][:-1] + b"!")
            os.utime(path, ns=(1, 1))
        elif how == "replaced":
            other = tmp_path / "other"
            other.write_bytes(b"something else")
            other.replace(path)
            equal(await checkpoint.tensor("rows", 1), TENSORS["rows"][1])
            return
        elif how == "truncated":
            os.truncate(path, 100_000)
        else:
            path.write_bytes(safetensors_bytes({name: TENSORS[name] for name in reversed(TENSORS)}))
        for _ in range(2):
            with pytest.raises(ChangedError):
                await checkpoint.tensor("rows", 1)


@pytest.mark.anyio
async def test_a_local_file_that_vanishes(tmp_path: Path) -> None:
    """A file that is gone when it is first read is an error of ours, with its path."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(ONE["model.safetensors"])
    async with asyncfetch.open_async(path) as checkpoint:
        path.unlink()
        with pytest.raises(StorageError, match=r"model\.safetensors"):
            await checkpoint.tensor("rows")


@pytest.mark.anyio
async def test_a_block_that_ends_under_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens files then takes no number from under a reader: that one gets the right bytes."""
    path, other = tmp_path / "model.safetensors", tmp_path / "other"
    path.write_bytes(ONE["model.safetensors"])
    other.write_bytes(bytes(path.stat().st_size))
    reading, left = anyio.Event(), threading.Event()
    read_some, results = gather._read_some, []

    def gated(*arguments: Any) -> None:
        read_some(*arguments)
        if not reading.is_set():
            anyio.from_thread.run_sync(reading.set)
            assert left.wait(10)

    async def read(checkpoint: Checkpoint) -> None:
        try:
            results.append(await checkpoint.tensor("experts"))
        except SourceError as error:
            results.append(error)

    monkeypatch.setattr(gather, "_read_some", gated)
    async with anyio.create_task_group() as group:
        async with asyncfetch.open_async(path, policy=replace(QUICK, connections=1, burst=50_000)) as checkpoint:
            group.start_soon(read, checkpoint)
            await reading.wait()
            group.start_soon(read, checkpoint)
            await anyio.lowlevel.checkpoint()
        opened = [os.open(other, os.O_RDONLY) for _ in range(10)]
        left.set()
    for number in opened:
        os.close(number)
    (array,) = [one for one in results if not isinstance(one, SourceError)]
    equal(array, TENSORS["experts"])
    assert [one.message for one in results if isinstance(one, SourceError)] == ["The checkpoint is closed."]
    assert not [number for number in os.listdir("/proc/self/fd") if points_to(number, path)]


def points_to(number: str, path: Path) -> bool:
    try:
        return os.path.samefile(f"/proc/self/fd/{number}", path)
    except OSError:
        return False


@pytest.fixture
def linked(faulty: FaultServer) -> Repository:
    """A repository behind signed links."""
    return faulty.hub("org/model", ONE)


@pytest.mark.anyio
async def test_an_expired_link_is_renewed(faulty: FaultServer, linked: Repository) -> None:
    """The source is asked for a new link, once for all readers, and the reads go on where they were."""
    path = linked.storage["model.safetensors"]
    events: list[Event] = []
    policy = replace(QUICK, min_split=100_000)
    async with asyncfetch.open_async(
        "org/model", endpoint=faulty.url, policy=policy, report=events.append
    ) as checkpoint:
        equal(await checkpoint.tensor("last", 0), TENSORS["last"][0])
        asked = len(faulty.to(linked.pages["model.safetensors"]))
        faulty.fault(path, Expire(10_000))
        equal(await checkpoint.tensor("rows"), TENSORS["rows"])
        assert len(faulty.to(linked.pages["model.safetensors"])) == asked + 1
        equal(await checkpoint.tensor("last"), TENSORS["last"])
    assert any(isinstance(event, Retrying) and event.file == "model.safetensors" for event in events)


@pytest.mark.anyio
async def test_links_that_are_always_refused(faulty: FaultServer, linked: Repository) -> None:
    """Renewal is bounded: the error says what was refused, without the signature."""
    path = linked.storage["model.safetensors"]
    async with asyncfetch.open_async("org/model", endpoint=faulty.url, policy=QUICK) as checkpoint:
        before = len(faulty.to(path))
        faulty.fault(path, Status(403), forever=True)
        with pytest.raises(LinkExpiredError) as raised:
            await checkpoint.tensor("rows")
        assert not shown(str(raised.value))
        assert len(faulty.to(path)) - before == QUICK.attempts
        faulty.heal(path)
        equal(await checkpoint.tensor("rows"), TENSORS["rows"])  # an error does not end the checkpoint


@pytest.mark.anyio
@pytest.mark.parametrize("index", [..., np.s_[:, 7:9]])
@pytest.mark.parametrize("fault", [Truncate, Reset])
async def test_goes_on_where_it_broke(faulty: FaultServer, index: Any, fault: Any) -> None:
    """A broken connection costs no byte twice, in a plain range and in one with holes."""
    url = faulty.web("/files", ONE)
    path = "/files/model.safetensors"
    faulty.fault(path, OK, fault(100_000), fault(300_001), fault(3))
    async with asyncfetch.open_async(url, policy=QUICK) as checkpoint:
        before = settled(lambda: faulty.sent(path))
        equal(await checkpoint.tensor("rows", index), TENSORS["rows"][index])
        assert settled(lambda: faulty.sent(path)) - before == checkpoint.plan_of("rows", index).transferred
    assert len(faulty.to(path)) == 5


@pytest.mark.anyio
async def test_gives_up_when_nothing_comes(faulty: FaultServer) -> None:
    """One plain exception comes out, though many ranges failed at once; and then another call may work."""
    url = faulty.web("/files", ONE)
    path = "/files/model.safetensors"
    policy = replace(QUICK, min_split=50_000, attempts=2)
    async with asyncfetch.open_async(url, policy=policy) as checkpoint:
        faulty.fault(path, Truncate(0), forever=True)
        with pytest.raises(NetworkError):
            await checkpoint.tensor("rows")
        faulty.heal(path)
        equal(await checkpoint.tensor("rows"), TENSORS["rows"])


# -- the block -------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_cancellation(faulty: FaultServer) -> None:
    """A read is cancelled like any coroutine, and the checkpoint goes on."""
    url = faulty.web("/files", ONE)
    policy = replace(QUICK, read_timeout=30)
    async with asyncfetch.open_async(url, policy=policy) as checkpoint:
        faulty.fault("/files/model.safetensors", Stall(1000))
        with anyio.move_on_after(0.2) as scope:
            await checkpoint.tensor("rows")
        assert scope.cancelled_caught
        equal(await checkpoint.tensor("rows"), TENSORS["rows"])


@pytest.mark.anyio
async def test_cancelled_from_outside(faulty: FaultServer) -> None:
    """A block in a cancelled scope ends, and leaves no open checkpoint behind."""
    url = faulty.web("/files", ONE)
    with anyio.CancelScope() as scope:
        async with asyncfetch.open_async(url, policy=QUICK) as checkpoint:
            scope.cancel()
            await anyio.sleep(30)
    assert scope.cancelled_caught
    with pytest.raises(SourceError, match="closed"):
        await checkpoint.tensor("rows")


@pytest.mark.anyio
async def test_the_callers_errors_pass_unchanged(tmp_path: Path) -> None:
    """What the block raises comes out as itself: also a group, which no one takes apart."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(ONE["model.safetensors"])
    for error in (ValueError("mine"), ExceptionGroup("mine", [ValueError("a"), KeyError("b")])):
        with pytest.raises(type(error)) as raised:
            async with asyncfetch.open_async(path):
                raise error
        assert raised.value is error


@pytest.mark.anyio
async def test_a_task_group_around_and_inside(server: Server) -> None:
    """No task group is open while the block runs: the block may begin in one of the caller's and outlive it."""
    arrays: dict[str, Any] = {}

    async def fetch(checkpoint: Checkpoint, name: str) -> None:
        arrays[name] = await checkpoint.tensor(name)

    context = asyncfetch.open_async("org/one", endpoint=server.url)
    async with anyio.create_task_group() as group:
        checkpoint = await context.__aenter__()
        for name in TENSORS:
            group.start_soon(fetch, checkpoint, name)
    await context.__aexit__(None, None, None)
    for name, tensor in TENSORS.items():
        equal(arrays[name], tensor)


# -- blocking --------------------------------------------------------------------------------------


def test_blocking(server: Server, tmp_path: Path) -> None:
    """The same, without an event loop, also from several threads at once."""
    with asyncfetch.open("org/sharded", endpoint=server.url, cache_dir=tmp_path / "cache") as checkpoint:
        assert isinstance(checkpoint, BlockingCheckpoint)
        assert list(checkpoint.keys()) == list(TENSORS)
        assert checkpoint.info("bias").shape == (7,)
        before = sent_by(server)
        equal(checkpoint.tensor("experts", np.s_[:, 1]), TENSORS["experts"][:, 1])
        assert sent_by(server) - before == checkpoint.plan_of("experts", np.s_[:, 1]).transferred == 600_000
        equal(checkpoint.shard_of("rows", 1, rank=1, world_size=2), TENSORS["rows"][:, 150:])
        assert list(checkpoint.tensors(["last", "bias"])) == ["last", "bias"]
        assert list(checkpoint.state_dict("r*", dtype="float32")) == ["rows"]
        with pytest.raises(IndexError, match="out of bounds"):
            checkpoint.tensor("bias", 7)
        results: list[Any] = []
        threads = [threading.Thread(target=lambda: results.append(checkpoint.tensor("last"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        for result in results:
            equal(result, TENSORS["last"])
    with pytest.raises(SourceError, match="closed"):
        checkpoint.tensor("bias")


@pytest.mark.anyio
async def test_blocking_inside_a_loop(tmp_path: Path) -> None:
    """In a notebook a loop runs already: the blocking form has its own."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(ONE["model.safetensors"])
    with asyncfetch.open(path) as checkpoint:
        equal(checkpoint.tensor("last", -1), TENSORS["last"][-1])


def test_blocking_errors_pass(server: Server) -> None:
    """Errors of opening, and the caller's own, come out as themselves."""
    with pytest.raises(SelectionError), asyncfetch.open("org/one", endpoint=server.url, select="nothing*"):
        pass
    error = ExceptionGroup("mine", [ValueError("a")])
    with pytest.raises(ExceptionGroup) as raised, asyncfetch.open("org/one", endpoint=server.url):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("caught", ["in the block", "outside"])
def test_an_interrupt_cancels_a_blocking_read(faulty: FaultServer, caught: str) -> None:
    """Ctrl-C ends the read at once, though nothing comes over the wire, and frees its connection."""
    url = faulty.web("/files", ONE)
    path = "/files/model.safetensors"

    def interrupt() -> None:
        faulty.wait_for(lambda: any(seen.sent for seen in faulty.to(path)[1:]))
        time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def read() -> None:
        with asyncfetch.open(url, policy=replace(QUICK, read_timeout=40, connections=1)) as checkpoint:
            faulty.fault(path, Stall(1000))
            threading.Thread(target=interrupt).start()
            try:
                checkpoint.tensor("rows")
            except KeyboardInterrupt:
                if caught == "outside":
                    raise
            equal(checkpoint.tensor("rows"), TENSORS["rows"])

    began = time.monotonic()
    if caught == "outside":
        with pytest.raises(KeyboardInterrupt):
            read()
    else:
        read()
        assert len(faulty.to(path)) == 3
    assert time.monotonic() - began < 10


def test_the_table_of_bytes_moved(capsys: pytest.CaptureFixture[str]) -> None:
    """scripts/bytes_moved.py loads a real model in parts, finds all equal, and one rank of four near its quarter."""
    assert script("bytes_moved").main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    (everything,) = (line for line in lines if "everything" in line)
    (contiguous,) = (line for line in lines if line.rstrip().endswith("contiguous"))
    assert everything.split()[-1] == "1.00"
    assert float(contiguous.split()[-2]) < 1.1


def test_memory_stays_at_one_copy(tmp_path: Path) -> None:
    """A large tensor needs its own size and a few buffers; columns of it need theirs, not the tensor's."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    tensor = np.ones((48 * MiB // 4096, 1024), np.float32)
    (tmp_path / "models" / "org" / "large").mkdir(parents=True)
    (tmp_path / "models" / "org" / "large" / "model.safetensors").write_bytes(safetensors_bytes({"t": tensor}))
    code = (
        "import sys, numpy as np, asyncfetch\n"
        "def high(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "with asyncfetch.open('org/large', endpoint=sys.argv[1]) as checkpoint:\n"
        "    checkpoint.tensor('t', np.s_[:8]); checkpoint.tensor('t', np.s_[:1000, ::100]); base = high()\n"
        "    part = checkpoint.tensor('t', np.s_[:, :64]); columns = high()\n"
        "    full = checkpoint.tensor('t'); print(columns - base, high() - base)\n"
    )
    with Server(tmp_path / "models") as server:
        command = [sys.executable, "-c", code, server.url]
        run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=50)
    assert run.returncode == 0, run.stderr
    columns, full = (int(kib) * 1024 for kib in run.stdout.split())
    assert columns < 24 * MiB
    assert full < 48 * MiB + 24 * MiB
