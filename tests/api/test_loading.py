"""Checkpoints streamed into models: judged before the download, filled tensor by tensor, or left as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import ChecksumMismatchError, ModelMismatchError, SourceError
from asyncfetch.models.into import Loading, flatten, load_state_dict_into
from asyncfetch.server import Server

from ..kit.fault_server import LOOK, QUICK, FaultServer, Flip
from ..kit.files import index_bytes, safetensors_bytes, sharded, sharded_bytes

ROOT = Path(__file__).parents[2]
_RANDOM = np.random.default_rng(9)
TENSORS: dict[str, Any] = {
    "emb.weight": _RANDOM.random((100, 400), np.float32),
    "layers.0.w": _RANDOM.random((200, 200), np.float32),
    "layers.1.w": _RANDOM.random((300, 100), np.float32),
    "steps": np.array(7),
}
storages = pytest.mark.parametrize("storage", ["disk", "memory"])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    sharded(tmp_path / "models" / "org" / "model", TENSORS, shards=2)
    with Server(tmp_path / "models") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def tree(fill: float | None = 0.0) -> dict[str, Any]:
    """A model of the shapes of TENSORS; None for arrays that do not exist yet."""

    def leaf(name: str) -> Any:
        return None if fill is None else np.full_like(TENSORS[name], fill)

    layers = [{"w": leaf("layers.0.w")}, {"w": leaf("layers.1.w")}]
    return {"emb": {"weight": leaf("emb.weight")}, "layers": layers, "steps": leaf("steps")}


def holds(model: dict[str, Any], tensors: dict[str, Any]) -> bool:
    flat = flatten(model)
    return flat.keys() == tensors.keys() and all(
        flat[name].dtype == tensors[name].dtype and np.array_equal(flat[name], tensors[name]) for name in tensors
    )


@storages
@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.anyio
async def test_a_tree(hub: Server, storage: str, assign: bool) -> None:
    """All values arrive; with assign=False in the arrays that were there."""
    model = tree()
    before = model["emb"]["weight"]
    report = await asyncfetch.load_into_async(model, "org/model", assign=assign, storage=storage)
    assert holds(model, TENSORS)
    assert (model["emb"]["weight"] is before) is not assign
    assert set(report.loaded) == set(TENSORS)
    assert report == load_state_dict_into(tree(), TENSORS)


@pytest.mark.anyio
async def test_what_does_not_fit_is_refused_before_the_download(hub: Server, tmp_path: Path) -> None:
    """Missing, unexpected, shape and dtype are known from the headers: no shard moves, nothing is written."""
    wrong_shape, missing, wrong_dtype = tree(), tree(), tree()
    wrong_shape["layers"][1]["w"] = np.zeros((100, 300), np.float32)
    missing["extra"] = np.zeros(3)
    del missing["steps"]
    wrong_dtype["emb"]["weight"] = np.zeros((100, 400), np.int32)
    cache = tmp_path / "cache"
    for assign in (True, False):
        for model in (wrong_shape, missing):
            with pytest.raises(ModelMismatchError) as caught:
                await asyncfetch.load_into_async(model, "org/model", assign=assign, cache_dir=cache)
            if model is missing:
                assert caught.value.missing == ("extra",)
                assert caught.value.unexpected == ("steps",)
            else:
                assert caught.value.shapes == {"layers.1.w": ((100, 300), (300, 100))}
            assert not model["layers"][0]["w"].any()
    with pytest.raises(ModelMismatchError, match="int32"):
        await asyncfetch.load_into_async(wrong_dtype, "org/model", assign=False, cache_dir=cache)
    with pytest.raises(SourceError, match="Cannot load into"):
        await asyncfetch.load_into_async(object(), "org/model", cache_dir=cache)
    assert not cache.exists()
    # Only the beginnings of shards were read, with their metadata.
    assert {record.range for record in hub.requests if record.status == 206} <= {"bytes=0-65535"}


@storages
@pytest.mark.anyio
async def test_dtype_and_select(hub: Server, storage: str) -> None:
    """Casts count as what they become; a selection loads a part of a model that is not strict."""
    model = tree(None)
    await asyncfetch.load_into_async(model, "org/model", dtype="bfloat16", storage=storage)
    assert model["emb"]["weight"].dtype == ml_dtypes.bfloat16
    assert model["steps"].dtype == TENSORS["steps"].dtype
    for assign in (True, False):
        part = tree()
        report = await asyncfetch.load_into_async(
            part, "org/model", select="layers.*", strict=False, assign=assign, storage=storage
        )
        assert report.loaded == ("layers.0.w", "layers.1.w")
        assert report.missing == ("emb.weight", "steps")
        assert np.array_equal(part["layers"][0]["w"], TENSORS["layers.0.w"])
        assert not part["emb"]["weight"].any()
    with pytest.raises(SourceError, match="dtype"):
        await asyncfetch.load_into_async(tree(), "org/model", dtype="int8")


@storages
@pytest.mark.anyio
async def test_a_failed_download_leaves_an_assigned_model(storage: str, tmp_path: Path) -> None:
    """With assign=True it is all or nothing, whatever the network does."""
    model = tree()
    held = model["emb"]["weight"]
    with FaultServer() as server:
        repository = server.hub("org/model", sharded_bytes(TENSORS, 2))
        path = repository.storage["model-00002-of-00002.safetensors"]
        server.fault(path, LOOK, Flip(100_000), forever=True)
        with pytest.raises(ChecksumMismatchError):
            await asyncfetch.load_into_async(
                model, "org/model", endpoint=server.url, cache_dir=tmp_path, policy=QUICK, storage=storage
            )
    assert model["emb"]["weight"] is held
    assert holds(model, {name: np.zeros_like(tensor) for name, tensor in TENSORS.items()})


@pytest.mark.anyio
async def test_a_state_dict_needs_no_source(hub: Server) -> None:
    """A mapping is loaded as it is, and takes no options."""
    model = tree()
    await asyncfetch.load_into_async(model, TENSORS, assign=False)
    assert holds(model, TENSORS)
    for options in ({"revision": "main"}, {"memory_limit": 5}):
        with pytest.raises(SourceError, match=next(iter(options))):
            await asyncfetch.load_into_async(tree(), TENSORS, **options)


@pytest.mark.anyio
async def test_memory_limit_is_checked_first(hub: Server) -> None:
    """A limit that is none is refused before anything is asked for."""
    for limit in (0, -1, 1.5, True):
        with pytest.raises(SourceError, match="memory_limit"):
            await asyncfetch.load_into_async(tree(), "org/model", endpoint="http://127.0.0.1:9", memory_limit=limit)


def test_ties_across_shards(tmp_path: Path) -> None:
    """One array under two names: filled from whichever name is there; from two names only if they are equal."""
    shared = np.zeros((4, 4), np.float32)
    value = np.arange(16, dtype=np.float32).reshape(4, 4)
    for number, (emb, head, fits) in enumerate([(value, None, True), (value, value, True), (value, value + 1, False)]):
        tensors = {"emb": emb, "other": np.ones(3)} | ({} if head is None else {"head": head})
        folder = tmp_path / str(number)
        sharded(folder, tensors, shards=2)
        shared[:] = 0
        model = {"emb": shared, "head": shared, "other": np.zeros(3)}
        if fits:
            report = asyncfetch.load_into(model, folder, assign=False)
            assert model["head"] is model["emb"] is shared
            assert np.array_equal(shared, value)
            assert report.tied == ({"head": "emb"} if head is None else {})
        else:
            with pytest.raises(ModelMismatchError, match="differ"):
                asyncfetch.load_into(model, folder, assign=False)
            assert not shared.any()
            assert not model["other"].any()


def test_an_alias_in_the_index(tmp_path: Path) -> None:
    """A name that the writer dropped is filled from the one that it kept, also one by one."""
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes({"emb": np.ones(5)}))
    (tmp_path / "b.safetensors").write_bytes(safetensors_bytes({"w": np.full(2, 3.0)}))
    index = index_bytes({"emb": "a.safetensors", "w": "b.safetensors"}, {"head": "emb"})
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    model = {"emb": np.zeros(5), "head": np.zeros(5), "w": np.zeros(2)}
    report = asyncfetch.load_into(model, tmp_path, assign=False)
    assert report.tied == {"head": "emb"}
    assert all(model[name].all() for name in model)
    assert model["head"] is not model["emb"]


def test_the_expected_state_dict_is_not_read() -> None:
    """Loading judges by dtypes and shapes without memory, and keeps the order of what it expects."""
    hollow = {"b": np.broadcast_to(np.zeros((), np.float32), (1 << 30,)), "a": np.broadcast_to(np.zeros(()), (2,))}
    loading = Loading({"a": None, "b": None}, hollow, strict=True, assign=True, aliases={})
    assert not loading.copies
    with pytest.raises(ModelMismatchError):
        Loading({"a": None, "b": np.zeros(3)}, hollow, strict=True, assign=True, aliases={})


@pytest.mark.heavy
def test_memory_while_copying(tmp_path: Path) -> None:
    """A checkpoint of 256 MiB into a model that is there: two shards of 32 MiB beside it, not all of them."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs /proc/self/clear_refs to begin a peak anew")
    folder = tmp_path / "models" / "org" / "zeros"
    sharded(folder, {f"t{n}": np.zeros(8 << 20, np.uint8) for n in range(32)}, shards=8)
    code = (
        "import asyncfetch, numpy as np\n"
        "from pathlib import Path\n"
        "def status(field):\n"
        "    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(field)) >> 10\n"
        "model = {f't{n}': np.ones(8 << 20, np.uint8) for n in range(32)}\n"
        "asyncfetch.inspect('org/zeros')\n"
        "Path('/proc/self/clear_refs').write_text('5')\n"
        "before = status('VmRSS')\n"
        "asyncfetch.load_into(model, 'org/zeros', assign=False, storage='memory')\n"
        "assert not any(array.any() for array in model.values())\n"
        "print(status('VmHWM') - before)\n"
    )
    with Server(tmp_path / "models") as server:
        environment = {**os.environ, "HF_ENDPOINT": server.url}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, timeout=50
        )
    assert int(done.stdout) < 90
