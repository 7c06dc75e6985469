"""Checkpoints streamed into torch modules: on the meta device, taken over, copied; what is tied stays tied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import ModelMismatchError, SourceError
from asyncfetch.models.into import load_state_dict_into
from asyncfetch.server import Server

from ..kit.files import sharded
from .test_loading import storages

torch = pytest.importorskip(
    "torch", reason="NOT TESTED: loading into torch modules. Install the extra: pip install 'asyncfetch[torch]'"
)
nn = torch.nn


class Net(nn.Module):
    """Tied embedding and head, a batch norm, a linear layer."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.emb = nn.Embedding(50, 8)
        self.norm = nn.BatchNorm1d(8)
        self.mlp = nn.Linear(8, 8)
        self.head = nn.Linear(8, 50, bias=False)
        if tied:
            self.head.weight = self.emb.weight


def saved(module: Any, folder: Path, shards: int = 3) -> dict[str, Any]:
    """Its state dict, without what is tied, cut into shards."""
    tensors = {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}
    if module.head.weight is module.emb.weight:
        del tensors["head.weight"]
    sharded(folder, tensors, shards=shards)
    return tensors


def same(module: Any, other: Any) -> bool:
    ours, theirs = module.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("form", ["meta", "assign", "copy"])
@storages
@pytest.mark.anyio
async def test_a_module(tmp_path: Path, tied: bool, form: str, storage: str) -> None:
    """From several shards over the network: on the meta device, taken over, copied; what is tied stays tied."""
    original = Net(tied=tied)
    original.norm.running_mean += 3
    saved(original, tmp_path / "models" / "org" / "net")
    with torch.device("meta" if form == "meta" else "cpu"):
        module = Net(tied=tied)
    address = module.mlp.weight.data_ptr()
    with Server(tmp_path / "models") as server:
        report = await asyncfetch.load_into_async(
            module, "org/net", endpoint=server.url, cache_dir=tmp_path / "cache", storage=storage,
            assign=form != "copy",
        )  # fmt: skip
    assert same(module, original)
    assert (module.head.weight is module.emb.weight) is tied
    assert report.tied == ({"head.weight": "emb.weight"} if tied else {})
    assert report.on_meta == ()
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert (module.mlp.weight.data_ptr() == address) is (form == "copy")


@pytest.mark.parametrize("form", ["meta", "assign", "copy"])
@pytest.mark.anyio
async def test_a_module_that_does_not_fit(tmp_path: Path, form: str) -> None:
    """Refused by the headers; the module is as it was, and the shards were not read."""
    saved(Net(), tmp_path)
    with torch.device("meta" if form == "meta" else "cpu"):
        module = Net()
        module.mlp = nn.Linear(8, 9)
        module.extra = nn.Linear(2, 2, bias=False)
    before = {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()}
    with pytest.raises(ModelMismatchError) as caught:
        await asyncfetch.load_into_async(module, tmp_path, assign=form != "copy")
    assert caught.value.missing == ("extra.weight",)
    assert caught.value.shapes == {"mlp.weight": ((9, 8), (8, 8)), "mlp.bias": ((9,), (8,))}
    assert {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()} == before
    with torch.device("meta"):
        bare = Net()
    with pytest.raises(SourceError, match="meta"):
        await asyncfetch.load_into_async(bare, tmp_path, assign=False)


class Renaming(Net):
    """Loading code of its own, which reads values."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if f"{prefix}old" in state_dict:
            assert state_dict[f"{prefix}old"].sum() != 0
            state_dict[f"{prefix}mlp.bias"] = state_dict.pop(f"{prefix}old")
        super()._load_from_state_dict(state_dict, prefix, *rest)


@pytest.mark.parametrize("assign", [True, False])
def test_loading_code_of_its_own(tmp_path: Path, assign: bool) -> None:
    """It sees the whole state dict with its values."""
    original = Renaming()
    tensors = {name: tensor.detach().numpy().copy() for name, tensor in original.state_dict().items()}
    tensors["old"] = tensors.pop("mlp.bias")
    module = Renaming()
    try:
        expected: Any = load_state_dict_into(Renaming(), tensors, assign=assign)
    except ModelMismatchError as error:
        expected = error.missing
    sharded(tmp_path, tensors, shards=2)
    if isinstance(expected, tuple):
        with pytest.raises(ModelMismatchError) as caught:
            asyncfetch.load_into(module, tmp_path, assign=assign)
        assert caught.value.missing == expected
    else:
        assert asyncfetch.load_into(module, tmp_path, assign=assign) == expected
        assert same(module, original)


def test_two_names_of_one_tensor(tmp_path: Path) -> None:
    """A tied module and a checkpoint with both names: their values decide, and a conflict changes nothing."""
    original = Net(tied=True)
    tensors = {name: tensor.detach().numpy().copy() for name, tensor in original.state_dict().items()}
    sharded(tmp_path / "equal", tensors, shards=3)
    module = Net(tied=True)
    asyncfetch.load_into(module, tmp_path / "equal", assign=False)
    assert same(module, original)
    tensors["head.weight"] = tensors["head.weight"] + 1
    sharded(tmp_path / "other", tensors, shards=3)
    module = Net(tied=True)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ModelMismatchError, match="differ"):
        asyncfetch.load_into(module, tmp_path / "other", assign=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("form", ["meta", "parameters", "assign", "copy"])
@storages
def test_names_buffers_and_a_head_of_ones_own(tmp_path: Path, form: str, storage: Any) -> None:
    """Renamed, with a buffer that is not persistent and a head that is skipped: streamed as a state dict would go."""

    def net() -> Any:
        made = Net()
        made.register_buffer("positions", torch.arange(6), persistent=False)
        return made

    original = net()
    tensors = {f"module.{name}": tensor.detach().numpy().copy() for name, tensor in original.state_dict().items()}
    tensors["module.positions"] = np.arange(6)[::-1].copy()
    sharded(tmp_path / "models" / "org" / "net", tensors, shards=3)
    if form == "parameters":
        with asyncfetch.models.parameters_on_meta():
            module = net()
    else:
        with torch.device("meta" if form == "meta" else "cpu"):
            module = net()
    module.head = nn.Linear(8, 3, bias=False)
    head = module.head.weight
    with Server(tmp_path / "models") as server:
        report = asyncfetch.load_into(
            module, "org/net", rename=("module.", ""), skip="head.*", strict="missing", storage=storage,
            assign=form != "copy", endpoint=server.url, cache_dir=tmp_path / "cache",
        )  # fmt: skip
    assert module.positions.tolist() == [5, 4, 3, 2, 1, 0]
    assert module.head.weight is head
    assert torch.equal(module.mlp.weight, original.mlp.weight)
    assert report.skipped == ("head.weight",)
    assert len(report.loaded) == len(tensors) - 1
    assert (report.missing, report.unexpected, report.on_meta) == ((), (), ())


def test_packed_and_scalar_stand_ins(tmp_path: Path) -> None:
    """F4 is judged in torch's form; a scalar may come with one dimension, as torch allows."""
    float4 = getattr(torch, "float4_e2m1fn_x2", None)
    module = nn.Module()
    module.scalar = nn.Parameter(torch.zeros(()))
    tensors: dict[str, Any] = {"scalar": np.array([5.0], np.float32)}
    if float4 is not None:
        module.register_buffer("packed", torch.zeros(2, 3, dtype=torch.uint8).view(float4))
        tensors["packed"] = ("F4", (2, 6), bytes(range(6)))
    sharded(tmp_path, tensors, shards=1)
    asyncfetch.load_into(module, tmp_path, assign=True)
    assert module.scalar.tolist() in (5.0, [5.0])
    if float4 is not None:
        assert bytes(module.packed.view(torch.uint8).numpy().reshape(-1)) == bytes(range(6))
    other = nn.Module()
    other.scalar = nn.Parameter(torch.zeros(()))
    report = asyncfetch.load_into(other, tmp_path, assign=False, strict=False)
    assert other.scalar.item() == 5.0
    assert report.loaded == ("scalar",)
