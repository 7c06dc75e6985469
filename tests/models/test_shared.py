"""Tensors of a module that lie in one memory and are not one tensor: a transposed tie, parts of a flat buffer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import ModelMismatchError
from asyncfetch.models import load_state_dict_into
from asyncfetch.server import Server

from ..kit.files import sharded
from ..kit.torch_or_not import needs_torch, nn, torch

pytestmark = needs_torch
WAYS = pytest.mark.parametrize("way", ["assigned", "copied", "swapped"])

ENCODE = np.arange(15, dtype=np.float32).reshape(3, 5) - 4
ENCODE[1, 2] = np.nan
DECODE = np.ascontiguousarray(ENCODE.T)


@pytest.fixture
def wishes(way: str) -> Any:
    """How a load is to be done, torch's other way to assign included."""
    torch.__future__.set_swap_module_params_on_conversion(way == "swapped")
    yield {"assign": way != "copied"}
    torch.__future__.set_swap_module_params_on_conversion(False)


def transposed(rows: int = 3, columns: int = 5, *, device: str = "cpu") -> Any:
    """An autoencoder whose decoder has the encoder's weight the other way round."""
    net = nn.ModuleDict(
        {
            "encode": nn.Linear(columns, rows, bias=False, device=device),
            "decode": nn.Linear(rows, columns, bias=False, device=device),
        }
    )
    net["decode"].weight = nn.Parameter(net["encode"].weight.t())
    return net


def flat() -> tuple[Any, Any]:
    """Two layers whose parameters are parts of one buffer, as a training library lays them out; and the buffer."""
    buffer = torch.full((40,), 8.0)
    net = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2, bias=False))
    net[0].weight.data = buffer[2:17].view(3, 5)
    net[0].bias.data = buffer[17:20]
    net[1].weight.data = buffer[24:30].view(2, 3)
    return net, buffer


FLAT = {
    "0.weight": ENCODE,
    "0.bias": np.array([1, 2, 3], np.float32),
    "1.weight": np.array([[7, 6, 5], [4, 3, 2]], np.float32),
}


def bits(tensor: Any) -> list[int]:
    found: list[int] = tensor.detach().contiguous().view(torch.int32).tolist()
    return found


@WAYS
@pytest.mark.parametrize("names", [["encode"], ["decode"], ["encode", "decode"]])
def test_a_transposed_tie_stays_one(wishes: dict[str, Any], names: list[str]) -> None:
    """One of the names is enough, both are filled and the memory stays one; parameters stay the objects they were."""
    net = transposed()
    held = list(net.parameters())
    values = {"encode.weight": ENCODE, "decode.weight": DECODE}
    report = load_state_dict_into(net, {f"{name}.weight": values[f"{name}.weight"] for name in names}, **wishes)
    assert [id(one) for one in net.parameters()] == [id(one) for one in held]
    assert net["encode"].weight.data_ptr() == net["decode"].weight.data_ptr()
    assert bits(net["encode"].weight) == ENCODE.view(np.int32).tolist()
    assert bits(net["decode"].weight) == DECODE.view(np.int32).tolist()
    assert report.loaded == tuple(f"{name}.weight" for name in names)
    other = {"encode.weight", "decode.weight"} - set(report.loaded)
    assert dict(report.tied) == dict.fromkeys(other, f"{names[0]}.weight")
    assert report.missing == ()
    with torch.no_grad():
        net["encode"].weight.fill_(2)
    assert net["decode"].weight.unique().tolist() == [2]


def test_an_alias_of_a_transposed_tie_does_not_count() -> None:
    """save_model drops one of the two and calls them equal, which a square one would silently be loaded by."""
    square = np.arange(16, dtype=np.float32).reshape(4, 4)
    net = transposed(4, 4)
    report = load_state_dict_into(net, {"encode.weight": square}, aliases={"decode.weight": "encode.weight"})
    assert net["decode"].weight.tolist() == square.T.tolist()
    assert dict(report.tied) == {"decode.weight": "encode.weight"}


@WAYS
@pytest.mark.parametrize("strict", [True, False])
def test_values_of_one_memory_that_differ_are_refused(wishes: dict[str, Any], strict: bool) -> None:
    """The checkpoint is of another model: nothing is changed, and what is named by skip= is left out."""
    net = transposed()
    before = bits(net["encode"].weight)
    other = {"encode.weight": ENCODE, "decode.weight": DECODE + 1}
    with pytest.raises(ModelMismatchError, match=r"encode\.weight, decode\.weight share memory .* differ") as caught:
        load_state_dict_into(net, other, strict=strict, **wishes)
    assert bits(net["encode"].weight) == before
    assert 'skip="decode.weight"' in caught.value.hint
    load_state_dict_into(net, other, strict=strict, skip="decode.weight", **wishes)
    assert bits(net["decode"].weight) == DECODE.view(np.int32).tolist()


def test_values_of_one_memory_are_compared_when_all_are_here(tmp_path: Path) -> None:
    """Copied one by one, the last would win."""
    sharded(tmp_path / "net", {"encode.weight": ENCODE, "decode.weight": DECODE * 2}, shards=2)
    net = transposed()
    before = bits(net["encode"].weight)
    with pytest.raises(ModelMismatchError, match="share memory in the model and differ"):
        asyncfetch.load_into(net, tmp_path / "net", assign=False)
    assert bits(net["encode"].weight) == before


@WAYS
def test_parts_of_a_flat_buffer_are_filled_where_they_are(wishes: dict[str, Any]) -> None:
    """Who holds the buffer sees the values, and what lies between the parts stays."""
    net, buffer = flat()
    net[0].bias.requires_grad_(False)
    held = list(net.parameters())
    load_state_dict_into(net, FLAT, **wishes)
    assert bits(buffer[2:17]) == ENCODE.ravel().view(np.int32).tolist()
    assert buffer[17:30].tolist() == [1, 2, 3, 8, 8, 8, 8, 7, 6, 5, 4, 3, 2]
    assert [id(one) for one in net.parameters()] == [id(one) for one in held]
    assert [one.requires_grad for one in net.parameters()] == [True, False, True]
    assert FLAT["0.bias"].tolist() == [1, 2, 3]


def test_a_flat_buffer_keeps_its_dtype(tmp_path: Path) -> None:
    """Another one is refused before the download; with each in memory of its own it is taken."""
    sharded(tmp_path / "models" / "org" / "net", FLAT, shards=1)
    net, buffer = flat()
    with Server(tmp_path / "models") as server:
        where = {"endpoint": server.url, "cache_dir": tmp_path / "cache"}
        with pytest.raises(
            ModelMismatchError, match=r"0\.weight is in one memory with .* stays torch\.float32"
        ) as caught:
            asyncfetch.load_into(net, "org/net", dtype="float16", **where)
        assert not (tmp_path / "cache").exists()
        assert "model.to(...)" in caught.value.hint
        net.to(torch.float64).to(torch.float32)
        asyncfetch.load_into(net, "org/net", dtype="float16", **where)
    assert net[1].weight.dtype is torch.float16
    assert buffer.unique().tolist() == [8]


def test_columns_of_one_matrix_are_different_tensors() -> None:
    """They lie among each other and have no element in common: each needs values."""
    matrix = torch.zeros(3, 4)
    net = nn.ParameterDict({"left": nn.Parameter(matrix[:, :2]), "right": nn.Parameter(matrix[:, 2:])})
    left, right = np.ones((3, 2), np.float32), np.full((3, 2), 5, np.float32)
    with pytest.raises(ModelMismatchError, match=r"1 missing \(right\)"):
        load_state_dict_into(net, {"left": left})
    load_state_dict_into(net, {"left": left, "right": right})
    assert matrix.tolist() == [[1, 1, 5, 5]] * 3
    bare = torch.zeros(3, 4, device="meta")
    net = nn.ParameterDict({"left": nn.Parameter(bare[:, :2]), "right": nn.Parameter(bare[:, 2:])})
    load_state_dict_into(net, {"left": left, "right": right})
    assert (net["left"].tolist(), net["right"].tolist()) == (left.tolist(), right.tolist())


def test_a_buffer_that_is_a_view_of_a_parameter_follows_it() -> None:
    """It needs no values; what is of one memory in part alone does."""
    net = nn.Linear(5, 3)
    net.register_buffer("first", net.weight.data[0], persistent=False)
    net.register_buffer("last", net.weight.data[2, 1:])
    report = load_state_dict_into(net, {"weight": ENCODE, "bias": FLAT["0.bias"]})
    assert net.first.tolist() == ENCODE[0].tolist()
    assert net.last.tolist() == ENCODE[2, 1:].tolist()
    assert dict(report.tied) == {"first": "weight", "last": "weight"}
    with pytest.raises(ModelMismatchError, match=r"1 missing \(weight\)"):
        load_state_dict_into(net, {"last": np.ones(4, np.float32), "bias": FLAT["0.bias"]})


def test_views_on_meta() -> None:
    """What overlaps is refused, since it would come apart; parts become real, and the same view stays one."""
    with pytest.raises(ModelMismatchError, match=r"encode\.weight, decode\.weight share memory, and would come apart"):
        load_state_dict_into(transposed(device="meta"), {"encode.weight": ENCODE, "decode.weight": DECODE})
    with torch.device("meta"):
        net, _ = flat()
        net.again = nn.Parameter(net[1].weight.detach())
    load_state_dict_into(net, FLAT)
    assert net.again.tolist() == FLAT["1.weight"].tolist()
    assert net.again.data_ptr() == net[1].weight.data_ptr()
    assert net[0].bias.tolist() == [1, 2, 3]


def test_an_lstm_keeps_its_weights_in_step() -> None:
    """It computes with a list of its own, which names the parameters that are trained."""
    net = nn.LSTM(3, 4)
    sizes = [one.numel() for one in net.parameters()]
    for one, part in zip(net.parameters(), torch.zeros(sum(sizes)).split(sizes), strict=True):  # as cuDNN wants it
        one.data = part.view(one.shape)
    other = nn.LSTM(3, 4)
    load_state_dict_into(net, {name: one.detach().numpy() for name, one in other.named_parameters()})
    x = torch.randn(5, 2, 3)
    assert torch.equal(net(x)[0], other(x)[0])
    net(x)[0].sum().backward()
    assert all(one.grad is not None for one in net.parameters())


def test_loading_code_of_its_own_fills_a_flat_buffer_once() -> None:
    """What a hook makes of the values is in the buffer."""
    net, buffer = flat()

    def doubled(state: dict[str, Any], prefix: str, *_: object) -> None:
        state[f"{prefix}weight"] = state[f"{prefix}weight"] * 2

    net[1]._register_load_state_dict_pre_hook(doubled)
    load_state_dict_into(net, FLAT)
    assert buffer[24:30].tolist() == [14, 12, 10, 8, 6, 4]


FSDP1 = """
import sys, torch, numpy as np
from torch.distributed.fsdp import FullyShardedDataParallel
from asyncfetch.errors import SourceError
from asyncfetch.models import load_state_dict_into

torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
inner = FullyShardedDataParallel(torch.nn.Linear(5, 3), device_id=torch.device("cpu"))
values = {"0.weight": np.ones((3, 5), np.float32), "0.bias": np.ones(3, np.float32)}
for assign in (True, False):
    try:
        load_state_dict_into(torch.nn.Sequential(inner), values, assign=assign)
    except SourceError as error:
        print(error)
"""


@pytest.mark.timeout(250)  # torch is imported, on a machine that may be busy
def test_fsdp1_is_refused(tmp_path: Path) -> None:
    """The ranks hold parts of a flat parameter of it, and its own hooks take part in a load."""
    pytest.importorskip("torch.distributed.fsdp")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-c", FSDP1, str(tmp_path / "store")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    said = run.stdout.splitlines()
    assert len(said) == 2, run.stderr
    assert all(line.startswith("0 is a FullyShardedDataParallel") and "fully_shard()" in line for line in said)
