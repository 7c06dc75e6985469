"""Parts of an opened checkpoint: several at once, of fused and of packed tensors, and under the names of tied ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import SelectionError, SourceError
from asyncfetch.events import Event, Resolved
from asyncfetch.server import Server

from ..format.test_ranks import chunked
from ..kit.files import index_bytes, safetensors_bytes, sharded_bytes
from ..kit.small_model import ONE_LOOP
from .test_opened import equal, sent_by

RNG = np.random.default_rng(15)
QKV = RNG.random((3 * 2000, 130), np.float32)
CONV = RNG.random((90, 3 * 700), np.float32).astype(ml_dtypes.bfloat16)
GATE_UP = RNG.integers(0, 255, (2, 2 * 900, 64), np.uint8)
F4 = RNG.bytes(4096 * 600 // 2)
TENSORS: dict[str, Any] = {
    "fill": np.zeros(40_000, np.float32),  # more than what comes with the header, in each shard
    "more": np.zeros(40_000, np.float32),
    "qkv": QKV,
    "conv": CONV,
    "gate_up": GATE_UP,
    "f4": ("F4", (4096, 600), F4),
    "odd": ("F4", (6, 5), RNG.bytes(15)),
    "f6": ("F6_E3M2", (16, 10, 6), RNG.bytes(16 * 10 * 6 * 6 // 8)),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """The tensors in two shards."""
    folder = tmp_path / "models" / "org" / "parts"
    folder.mkdir(parents=True)
    for name, content in sharded_bytes(TENSORS, 2).items():
        (folder / name).write_bytes(content)
    with Server(tmp_path / "models") as running:
        yield running


@pytest.mark.anyio
@ONE_LOOP
async def test_fused_parts(server: Server) -> None:
    """Each rank gets its rows of query, key and value; along other axes too; equal parts or not; none of it twice."""
    async with asyncfetch.open_async("org/parts", endpoint=server.url) as checkpoint:
        for world_size in (1, 2, 4):
            before = sent_by(server)
            for rank in range(world_size):
                part = await checkpoint.shard_of("qkv", rank=rank, world_size=world_size, parts=3)
                equal(part, np.concatenate([chunked(one, world_size, 0)[rank] for one in np.split(QKV, 3)]))
                assert part.ctypes.data % 64 == 0
                assert part.flags.writeable
            assert sent_by(server) - before == QKV.nbytes
        for name, full, axis, parts in (
            ("conv", CONV, 1, 3),
            ("gate_up", GATE_UP, -2, 2),
            ("qkv", QKV, 0, (4000, 1000, 1000)),
            ("conv", CONV, -1, [2000, 60, 40]),
            ("gate_up", GATE_UP, 1, (1, 1799)),
        ):
            sizes = [full.shape[axis] // parts] * parts if isinstance(parts, int) else list(parts)
            for rank in range(3):
                expected = [chunked(one, 3, axis)[rank] for one in np.split(full, np.cumsum(sizes)[:-1], axis)]
                part = await checkpoint.shard_of(name, axis, rank=rank, world_size=3, parts=parts)
                equal(part, np.concatenate(expected, axis))
                plan = checkpoint.plan_of(name, axis=axis, rank=rank, world_size=3, parts=parts)
                assert (plan.nbytes, plan.shape) == (part.nbytes, part.shape)
        with pytest.raises(SourceError, match=r"parts=7 does not divide the 6,000 of axis 0"):
            await checkpoint.shard_of("qkv", rank=0, world_size=1, parts=7)


@pytest.mark.anyio
@ONE_LOOP
async def test_four_rows_over_three_ranks(tmp_path: Path) -> None:
    """As torch splits, unless numpy is named; a rank beyond the rows has none, and costs nothing."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"w": np.arange(8, dtype=np.float32).reshape(4, 2)}))
    async with asyncfetch.open_async(path) as checkpoint:

        async def rows(**options: Any) -> list[int]:
            shares = [await checkpoint.shard_of("w", rank=rank, world_size=3, **options) for rank in range(3)]
            np.testing.assert_array_equal(np.concatenate(shares).ravel(), np.arange(8))
            return [len(share) for share in shares]

        assert await rows() == await rows(split="chunk") == [2, 2, 0]
        assert await rows(split="array_split") == [2, 1, 1]
        assert (await checkpoint.shard_of("w", rank=2, world_size=3)).shape == (0, 2)
        assert checkpoint.plan_of("w", rank=2, world_size=3).spans == ()


@pytest.mark.anyio
@ONE_LOOP
async def test_packed_parts(server: Server) -> None:
    """Rows of F4 and F6 where they have bytes of their own, for their bytes alone; else a refusal that says where."""
    full = asyncfetch.load("org/parts", endpoint=server.url, storage="memory")
    async with asyncfetch.open_async("org/parts", endpoint=server.url) as checkpoint:
        before = sent_by(server)
        for rank in range(4):
            part: Any = await checkpoint.shard_of("f4", rank=rank, world_size=4)
            equal(part.unpack(), full["f4"].unpack()[rank * 1024 : (rank + 1) * 1024])
        assert sent_by(server) - before == len(F4)
        for name, index in (
            ("f4", np.s_[100:200, 20:40]),
            ("f4", np.s_[::-7, -2:]),
            ("f4", np.s_[3]),
            ("f4", np.s_[7:7]),
            ("odd", np.s_[2:4]),
            ("odd", np.s_[4:, :]),
            ("f6", np.s_[::-1, 2:6]),
            ("f6", np.s_[3, 8:]),
            ("f6", np.s_[None, :2, ...]),
        ):
            part = await checkpoint.tensor(name, index)
            equal(part.unpack(), full[name].unpack()[index])
            assert part.logical_shape == checkpoint.plan_of(name, index).shape
        part = await checkpoint.shard_of("f4", 1, rank=1, world_size=3, parts=2)
        equal(part.unpack(), np.concatenate([half[:, 100:200] for half in np.split(full["f4"].unpack(), 2, 1)], 1))
        part = await checkpoint.shard_of("f4", 1, rank=1, world_size=2, parts=(400, 200))
        equal(part.unpack(), np.concatenate([full["f4"].unpack()[:, 200:400], full["f4"].unpack()[:, 500:]], 1))
        for name in ("odd", "f4", "f6"):
            equal(await checkpoint.shard_of(name, rank=0, world_size=1), full[name])
        for name, index, words in (
            ("odd", np.s_[1:3], "axis 0 in one stretch at multiples of 2"),
            ("odd", np.s_[:2, :4], "axis 0 in one stretch at multiples of 2"),
            ("f4", np.s_[:, 1:3], "axis 1 in one stretch at multiples of 2"),
            ("f4", np.s_[:, ::2], "in one stretch"),
            ("f4", np.s_[0, 0], "multiples of 2"),
            ("f6", np.s_[:, :1], "axis 1 in one stretch at multiples of 2"),
        ):
            with pytest.raises(SourceError, match=rf"'{name}' is packed \(F.*{words}"):
                await checkpoint.tensor(name, index)
        with pytest.raises(IndexError):
            await checkpoint.tensor("f4", np.s_[4096])


@pytest.mark.anyio
@ONE_LOOP
async def test_several_parts_of_several_tensors(server: Server) -> None:
    """One call for all of them, neighbours in one request; parts that overlap, repeat or are empty are right too."""
    wanted: dict[str, list[Any]] = {
        "qkv": [np.s_[:10], np.s_[10:20], np.s_[5:15], np.s_[::-100, 3], ...],
        "conv": [np.s_[:, :20], np.s_[:, 10:30], np.s_[3:3]],
        "gate_up": [np.s_[1, 7]] * 2,
        "fill": [],
    }
    async with asyncfetch.open_async("org/parts", endpoint=server.url) as checkpoint:
        found = await checkpoint.slices(wanted)
        assert list(found) == list(wanted)
        for name, indices in wanted.items():
            assert len(found[name]) == len(indices)
            for part, index in zip(found[name], indices, strict=True):
                equal(part, TENSORS[name][index])
        found["gate_up"][0][:] = 0
        equal(found["gate_up"][1], GATE_UP[1, 7])
        before = len(server.requests)
        near = await checkpoint.slices({"qkv": [np.s_[100:110], np.s_[110:120], np.s_[121:130]]}, dtype="float16")
        assert len(server.requests) - before == 1
        assert near["qkv"][2].dtype == np.float16
        for mistaken in (np.s_[:5, :5], np.s_[:5], "x"):
            with pytest.raises(SourceError, match="slices\\(\\) takes a list of indices for each name"):
                await checkpoint.slices({"qkv": mistaken})
        with pytest.raises(SelectionError, match=r"no tensor 'qvk'\. Is it 'qkv'"):
            await checkpoint.slices({"qvk": [...]})
        with pytest.raises(SourceError, match="slices\\(\\) takes lists of indices by name, not \\['qkv'\\]"):
            await checkpoint.slices(["qkv"])  # type: ignore[arg-type]


# -- tied names -------------------------------------------------------------------------------------

EMB, NORM = np.arange(12, dtype=np.float32).reshape(6, 2), np.ones(3, np.float32)
TIED = {"head.weight": "emb.weight", "decoder.weight": "head.weight", "format": "pt", "loop": "pool", "pool": "loop"}


@pytest.fixture(params=["index", "single"])
def tied(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint whose index, or whose only file, says which names were dropped."""
    folder = tmp_path / "tied"
    folder.mkdir()
    tensors = {"emb.weight": EMB, "norm.weight": NORM}
    if request.param == "single":
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, TIED))
        return folder
    for name in tensors:
        (folder / f"{name}.safetensors").write_bytes(safetensors_bytes({name: tensors[name]}, {"format": "pt"}))
    index = index_bytes({name: f"{name}.safetensors" for name in tensors}, TIED | {"total_size": 60})
    (folder / "model.safetensors.index.json").write_bytes(index)
    return folder


def test_tied_names_are_names(tied: Path) -> None:
    """Whatever takes a name takes one that was dropped, also one that stands for another that was."""
    with asyncfetch.open(tied) as checkpoint:
        assert list(checkpoint.keys()) == ["emb.weight", "norm.weight"]
        assert checkpoint.aliases == {"head.weight": "emb.weight", "decoder.weight": "emb.weight"}
        for name in checkpoint.aliases:
            assert name in checkpoint
            equal(checkpoint.tensor(name), EMB)
            equal(checkpoint.tensor(name, np.s_[2:4]), EMB[2:4])
            equal(checkpoint.shard_of(name, rank=1, world_size=2), EMB[3:])
            assert checkpoint.info(name) == checkpoint.info("emb.weight")
            assert checkpoint.plan_of(name) == checkpoint.plan_of("emb.weight")
        both = checkpoint.tensors(["head.weight", "norm.weight", "emb.weight"])
        assert list(both) == ["head.weight", "norm.weight", "emb.weight"]
        assert both["head.weight"] is both["emb.weight"]
        assert list(checkpoint.state_dict("decoder.*")) == ["emb.weight"]
        for name in ("format", "pt", "loop", "pool", 3):
            assert name not in checkpoint
            with pytest.raises(SelectionError):
                checkpoint.tensor(name)


@pytest.mark.parametrize("select", ["head.weight", "dec*", lambda name: name.startswith("head")])
def test_tied_names_are_selected(tied: Path, select: Any) -> None:
    """What is selected by a dropped name is the tensor that was kept, and its shard alone."""
    files: list[Event] = []
    assert list(asyncfetch.load(tied, select=select, report=files.append)) == ["emb.weight"]
    (resolved,) = (event for event in files if isinstance(event, Resolved))
    assert len(resolved.files) == 1
    with asyncfetch.open(tied, select=select) as checkpoint:
        assert list(checkpoint.keys()) == ["emb.weight"]
        equal(checkpoint.tensor("head.weight"), EMB)
    with pytest.raises(SelectionError):
        asyncfetch.load(tied, select="format")
