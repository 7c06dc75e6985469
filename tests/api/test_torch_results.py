"""Tensors of torch as the result of load, stream and open: views, all dtypes, and names as the caller wants them."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import SourceError
from asyncfetch.format.arrays import PackedArray
from asyncfetch.format.header import TensorInfo
from asyncfetch.server import Server

from ..format.test_near import counting
from ..kit.files import NAMES, safetensors_bytes, sharded
from ..kit.small_model import ONE_LOOP
from ..kit.torch_or_not import needs_torch, torch

DTYPES = {f"{dtype.name}.{n}": (dtype, shape) for dtype in NAMES for n, shape in enumerate([(3, 2), (), (0, 3)])}
PACKED = {
    "f4": ("F4", (3, 4), bytes(range(6))),
    "f4.odd": ("F4", (4, 3), bytes(range(6))),
    "f6": ("F6_E2M3", (2, 4), bytes(range(6))),
}
WAYS = ["load", "load memory", "load_async", "stream", "stream early", "stream_async", "open", "open_async"]


def values() -> dict[str, Any]:
    """A tensor of each dtype in three shapes, also 0-d and empty; the wide ones first, so that all are aligned."""
    random = np.random.default_rng(5)
    made = {
        name: np.frombuffer(random.bytes(int(np.prod(shape)) * dtype.itemsize), np.uint8).view(dtype).reshape(shape)
        for name, (dtype, shape) in DTYPES.items()
        if dtype != np.bool_
    }
    made |= {f"bool.{n}": np.ones(shape, np.bool_) for n, shape in enumerate([(3, 2), (), (0, 3)])}
    return dict(sorted(made.items(), key=lambda item: -item[1].itemsize))


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    sharded(tmp_path / "models" / "org" / "all", {**values(), **PACKED}, shards=2)
    with Server(tmp_path / "models") as server:
        yield server


async def result(way: str, hub: Server, cache: Path, **options: Any) -> dict[str, Any]:
    """The state dict of `way` as a plain dict."""
    name, _, kind = way.partition(" ")
    options |= {"endpoint": hub.url, "cache_dir": cache}
    if kind == "memory":
        options["storage"] = "memory"
    if kind == "early":
        options["early"] = True
    if name == "load":
        return asyncfetch.load("org/all", **options)
    if name == "load_async":
        return await asyncfetch.load_async("org/all", **options)
    if name == "stream":
        return dict(asyncfetch.stream("org/all", **options))
    if name == "stream_async":
        async with asyncfetch.stream_async("org/all", **options) as tensors:
            return {name: tensor async for name, tensor in tensors}
    if name == "open":
        with asyncfetch.open("org/all", **options) as opened:
            return opened.state_dict()
    async with asyncfetch.open_async("org/all", **options) as checkpoint:
        return await checkpoint.state_dict()


def raw(tensor: Any) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy())


@needs_torch
@ONE_LOOP
@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS)
async def test_each_way_gives_all_dtypes(anyio_backend: Any, hub: Server, tmp_path: Path, way: str) -> None:
    """Bit by bit what numpy gets, in the dtype and the shape of torch; what torch cannot hold comes as bytes."""
    tensors = await result(way, hub, tmp_path / "cache", framework="torch")
    expected = values()
    assert tensors.keys() == expected.keys() | PACKED.keys()
    for name, array in expected.items():
        tensor = tensors[name]
        assert type(tensor) is torch.Tensor
        assert str(tensor.dtype) == f"torch.{array.dtype.name}"
        assert tuple(tensor.shape) == array.shape
        assert raw(tensor) == array.tobytes()
    assert (tensors["f4"].dtype, tuple(tensors["f4"].shape)) == (torch.float4_e2m1fn_x2, (3, 2))
    for name in ("f4.odd", "f6"):
        assert (tensors[name].dtype, tensors[name].tolist()) == (torch.uint8, list(range(6)))
    assert raw(tensors["f4"]) == bytes(range(6))
    if way.startswith("load"):
        assert "bool[3, 2]" in repr(asyncfetch.StateDict({"a": tensors["bool.0"]}))


@needs_torch
def test_tensors_are_views_and_the_cache_never_changes(hub: Server, tmp_path: Path) -> None:
    """The tensors of a shard lie in one map, as in the file; what is written to them stays in this process."""
    options: dict[str, Any] = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    snapshot = asyncfetch.download("org/all", **options)
    before = {name: hashlib.sha256(path.read_bytes()).digest() for name, path in snapshot.files.items()}
    offsets = asyncfetch.inspect("org/all", **options).tensors
    for tensors in (
        asyncfetch.load("org/all", framework="torch", **options),
        dict(asyncfetch.stream("org/all", framework="torch", **options)),
    ):
        bases: dict[str, set[int]] = {}
        for name, (shard, info) in offsets.items():
            if info.nbytes:
                bases.setdefault(shard, set()).add(tensors[name].data_ptr() - info.begin)
        assert [len(found) for found in bases.values()] == [1, 1], "each is at its place in the map of its shard"
        for tensor in tensors.values():
            tensor.view(torch.uint8).fill_(7) if tensor.dim() else tensor.zero_()
    assert {name: hashlib.sha256(path.read_bytes()).digest() for name, path in snapshot.files.items()} == before
    again = asyncfetch.load("org/all", framework="torch", verify="always", **options)
    assert raw(again["float32.0"]) == values()["float32.0"].tobytes()


@needs_torch
def test_parts_of_an_opened_checkpoint(tmp_path: Path) -> None:
    """Rows, backwards too, ranks, and several parts; one array under two names is one tensor; a cast per call."""
    full = np.arange(24, dtype=np.float32).reshape(6, 4)
    (tmp_path / "model.safetensors").write_bytes(
        safetensors_bytes({"a": full, "b": full.astype(ml_dtypes.bfloat16)}, {"c": "a"})
    )
    with asyncfetch.open(tmp_path, framework="torch") as checkpoint:
        assert checkpoint.tensor("a", np.s_[::-2, 1]).tolist() == full[::-2, 1].tolist()
        assert checkpoint.tensor("b", dtype=torch.float16).dtype is torch.float16
        assert checkpoint.shard_of("a", rank=1, world_size=4).tolist() == full[2:4].tolist()
        assert [part.tolist() for part in checkpoint.slices({"a": [0, np.s_[2:3, :1]]})["a"]] == [
            full[0].tolist(),
            full[2:3, :1].tolist(),
        ]
        both = checkpoint.tensors(["a", "c"])
        assert both["a"] is both["c"]


@needs_torch
@pytest.mark.parametrize(
    "name",
    ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"],
)
def test_dtypes_of_torch_are_dtypes(tmp_path: Path, name: str) -> None:
    """In each way that takes one, and by their names."""
    (tmp_path / "model.safetensors").write_bytes(
        safetensors_bytes({"a": np.ones((2, 2), np.float32), "n": np.ones(2, np.int64)})
    )
    dtype = getattr(torch, name)
    found = [
        asyncfetch.load(tmp_path, dtype=dtype, framework="torch"),
        asyncfetch.load(tmp_path, dtype=f"torch.{name}", framework="torch"),
        dict(asyncfetch.stream(tmp_path, dtype=dtype, framework="torch")),
    ]
    with asyncfetch.open(tmp_path, dtype=dtype, framework="torch") as checkpoint:
        found.append(checkpoint.state_dict())
        found.append(checkpoint.state_dict(dtype=dtype))
    model = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.empty(2, 2, dtype=dtype), requires_grad=False)})
    asyncfetch.load_into(model, tmp_path, dtype=dtype, strict="missing")
    found.append({**dict(model.items()), "n": torch.ones(2, dtype=torch.int64)})
    for tensors in found:
        assert (tensors["a"].dtype, tensors["n"].dtype) == (dtype, torch.int64)
        assert tensors["a"].double().tolist() == [[1, 1], [1, 1]]


@needs_torch
@pytest.mark.parametrize("name", ["int32", "bool", "complex64", "float4_e2m1fn_x2", "quint8"])
def test_other_dtypes_of_torch_are_refused(tmp_path: Path, name: str) -> None:
    """They are no floats that numbers can be cast to."""
    with pytest.raises(SourceError, match=f"dtype=torch.{name} is not a "):
        asyncfetch.load(tmp_path, dtype=getattr(torch, name))


def test_without_torch_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The extra is named before a byte is asked for; so is a framework that there is none of."""
    monkeypatch.setitem(sys.modules, "torch", None)
    options: dict[str, Any] = {"endpoint": "http://127.0.0.1:9", "cache_dir": tmp_path}
    with asyncfetch.BlockingClient(**options) as client:
        calls: list[Any] = [asyncfetch.load, asyncfetch.open, asyncfetch.stream]
        for call, given in [*((call, options) for call in calls), (client.load, {}), (client.open, {})]:
            with pytest.raises(SourceError, match=r"asyncfetch\[torch\]"):
                call("org/model", framework="torch", **given)
            with pytest.raises(SourceError, match=r'framework= takes "numpy" or "torch", not \'jax\''):
                call("org/model", framework="jax", **given)
    with pytest.raises(SourceError, match=r"asyncfetch\[torch\]"):
        asyncfetch.to_torch({"a": np.zeros(1)})


@needs_torch
def test_to_torch_of_a_state_dict() -> None:
    """Each array once, on its memory; what is wrong is named; twice the names take twice the calls."""
    one = np.arange(4.0)
    tensors = asyncfetch.to_torch({"a": one, "b": one, "c": np.ones(1)})
    assert tensors["a"] is tensors["b"]
    assert tensors["a"].data_ptr() == one.ctypes.data
    with pytest.raises(SourceError, match=r"layer\.f6: torch has no dtype for F6_E2M3"):
        asyncfetch.to_torch({"layer.f6": packed()})
    many = {str(n): np.zeros(1, np.float32) for n in range(4000)}
    half = dict(list(many.items())[:2000])
    counts = []
    for given in (half, many):
        with counting() as calls:
            asyncfetch.to_torch(given)
        counts.append(calls())
    assert counts[1] < 2.1 * counts[0]


@needs_torch
@pytest.mark.parametrize("dtype", [">f4", "<f4", "bool"])
def test_to_torch_of_arrays_that_are_made_when_they_are_asked_for(dtype: str, tmp_path: Path) -> None:
    """An archive of numpy gives a new array each time, often where the last one was: each name has its own numbers."""
    wanted = {f"n{n}": (np.arange(n, n + 6) % 5).astype(dtype).reshape(2, 3) for n in range(300)}
    np.savez(tmp_path / "arrays.npz", **wanted)  # type: ignore[arg-type]
    with np.load(tmp_path / "arrays.npz") as archive:
        tensors = asyncfetch.to_torch(archive)
    assert list(tensors) == list(wanted)
    for name, array in wanted.items():
        assert tensors[name].tolist() == array.tolist()


def packed() -> PackedArray:
    return PackedArray.of(np.zeros(6, np.uint8), TensorInfo("F6_E2M3", (2, 4), 0, 6))


# -- names as the caller wants them ------------------------------------------------------------------


@ONE_LOOP
@pytest.mark.anyio
@pytest.mark.parametrize("way", ["load", "load memory", "load_async", "stream", "stream early", "stream_async"])
async def test_rename(anyio_backend: Any, hub: Server, tmp_path: Path, way: str) -> None:
    """Of pairs the first counts, None leaves out; two of one name are refused before a shard is asked for."""
    rename = [("float", "f"), ("int", None), ("f4", "packed.")]
    with pytest.raises(SourceError, match="one name, 'same'"):
        await result(way, hub, tmp_path / "none", rename=lambda name: "same")
    assert not list((tmp_path / "none").rglob("*.safetensors"))
    tensors = await result(way, hub, tmp_path / "cache", rename=rename)
    expected = {name: array for name, array in values().items() if not name.startswith("int")}
    assert {"f32.0", "packed.", "packed..odd", "bool.0"} <= tensors.keys()
    assert len(tensors) == len(expected) + len(PACKED)
    for name, array in expected.items():
        assert tensors[name.replace("float", "f", name.startswith("float"))].tobytes() == array.tobytes()
