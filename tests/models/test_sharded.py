"""Modules of which each rank holds a part: filled with that part alone, or refused. Two ranks, on gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncfetch.errors import ModelMismatchError
from asyncfetch.models import load_state_dict_into
from asyncfetch.server import Server

from ..kit.files import sharded
from ..kit.torch_or_not import needs_torch, nn, torch

pytestmark = needs_torch

# Rows that divide among two ranks, that do not, and of which the last rank gets none.
TENSORS = {
    f"{n}.{leaf}": np.random.default_rng(n).normal(size=shape).astype(np.float32)
    for n, rows in enumerate([6, 5, 1])
    for leaf, shape in (("weight", (rows, 40_000)), ("bias", (rows,)))
}

RANKS = """
import os, sys
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
import asyncfetch
from asyncfetch.errors import ModelMismatchError
from asyncfetch.models import load_state_dict_into

store, url, cache = sys.argv[1:]
world, child = 2, os.fork()  # what takes a while is imported once
rank = 1 if child else 0
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world)
mesh = init_device_mesh("cpu", (world,))
square = init_device_mesh("cpu", (world, 1))
whole = asyncfetch.load("org/whole", framework="torch", endpoint=url, cache_dir=f"{cache}/{rank}")
options = {"endpoint": url, "cache_dir": f"{cache}/none{rank}"}


class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(*(torch.nn.Linear(40_000, rows) for rows in (6, 5, 1)))

    def forward(self, x):
        return torch.cat([part(x) for part in self], 1)


reference = Net()
reference.load_state_dict(whole)
x = torch.ones(2, 40_000) / 100
expected = reference(x)


def placed(mesh, *placements):
    net = Net()
    for part in net:
        part.weight = torch.nn.Parameter(distribute_tensor(part.weight.detach(), mesh, placements))
    return net


def fsdp(device="cpu"):
    with torch.device(device):
        net = Net()
    fully_shard(net[0], mesh=mesh)
    return fully_shard(net, mesh=mesh)


def check(net):
    for name, tensor in net.state_dict().items():
        assert isinstance(tensor, DTensor) or not name.endswith("weight"), (name, type(tensor))
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert torch.equal(full, whole[name]), name


def spoiled(net):
    with torch.no_grad():
        for tensor in net.state_dict().values():
            (tensor.to_local() if isinstance(tensor, DTensor) else tensor).fill_(7)
    return net


for how in ([Shard(0)], [Shard(1)]):
    net = placed(mesh, *how)
    asyncfetch.load_into(net, "org/rows" if how == [Shard(0)] else "org/other", **options)
    check(net)
    assert [p.placements for p in net.parameters() if isinstance(p, DTensor)] == [tuple(how)] * 3
    asyncfetch.load_into(spoiled(net), "org/other", assign=False, **options)
    check(net)
for how in ((Shard(0), Shard(1)), (Replicate(), Shard(0)), (Shard(0), Shard(0))):
    net = placed(square, *how)
    asyncfetch.load_into(net, "org/other", memory_limit=500_000, **options)
    check(net)
net = placed(mesh, Replicate())
asyncfetch.load_into(net, "org/whole", endpoint=url, cache_dir=f"{cache}/{rank}", offline=True)
check(net)

for device in ("cpu", "meta"):
    net = fsdp(device)
    asyncfetch.load_into(net, "org/other", **options)
    check(net)
    assert torch.allclose(net(x), expected, atol=1e-4)
    spoiled(net)(x)  # after which the parameters of the root stay gathered
    asyncfetch.load_into(net, "org/other", **options)
    check(net)
    assert torch.allclose(net(x), expected, atol=1e-4)
    net(x).sum().backward()
net = spoiled(fsdp())
asyncfetch.load_into(net, "org/other", assign=False, **options)
check(net)
assert torch.allclose(net(x), expected, atol=1e-4)
net = fsdp()
load_state_dict_into(net, asyncfetch.load("org/whole", endpoint=url, cache_dir=f"{cache}/{rank}"))
check(net)

tied = torch.nn.Sequential(torch.nn.Linear(9, 7, bias=False), torch.nn.Linear(9, 7, bias=False))
tied[0].weight = tied[1].weight = torch.nn.Parameter(distribute_tensor(tied[0].weight.detach(), mesh, [Shard(0)]))
report = asyncfetch.load_into(tied, "org/tied", **options)  # which holds both names
assert tied[0].weight is tied[1].weight and torch.equal(tied[0].weight.full_tensor(), torch.arange(63.0).reshape(7, 9))

net = placed(mesh, Shard(0))
net[1].weight = torch.nn.Parameter(DTensor.from_local(torch.ones(5, 40_000), mesh, [Partial()], run_check=False))
held = {name: p.to_local().clone() for name, p in net.named_parameters() if isinstance(p, DTensor)}
for wishes in ({}, {"assign": False}, {"strict": False}):
    try:
        asyncfetch.load_into(net, "org/other", **options, **wishes)
    except ModelMismatchError as error:
        assert "1.weight is a torch.distributed.tensor.DTensor placed as P" in str(error), error
        assert "shard_of" in error.hint
    else:
        raise AssertionError("a partial sum was filled")
assert all(torch.equal(p.to_local(), held[name]) for name, p in net.named_parameters() if name in held)
dist.destroy_process_group()
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print("right")
"""


def sent(server: Server, name: str) -> int:
    """Bytes of the shards of a repository that were asked for by range."""
    found = 0
    for record in server.requests:
        if f"/{name}/" in record.path and record.status == 206:
            first, last = (record.range or "").removeprefix("bytes=").split("-")
            found += int(last) - int(first) + 1
    return found


@pytest.mark.timeout(250)  # torch is imported, on a machine that may be busy
def test_each_rank_takes_its_part(tmp_path: Path) -> None:
    """Rows, columns, two dimensions, FSDP2 before and after a pass; together the ranks fetch each byte once."""
    for name in ("whole", "rows", "other"):
        sharded(tmp_path / "models" / "org" / name, TENSORS, shards=2)
    both = dict.fromkeys(("0.weight", "1.weight"), np.arange(63, dtype=np.float32).reshape(7, 9))
    sharded(tmp_path / "models" / "org" / "tied", both, shards=2)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "default"}
    with Server(tmp_path / "models") as server:
        command = [sys.executable, "-c", RANKS, str(tmp_path / "store"), server.url, str(tmp_path / "cache")]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        assert run.stdout.strip() == "right", run.stderr
        nbytes = sum(array.nbytes for array in TENSORS.values())
        looks = 2 * 2 * (64 << 10)  # each rank looks at the first bytes of each shard
        assert nbytes - looks < sent(server, "rows") <= nbytes + looks
    assert not list((tmp_path / "cache").glob("none*/models--org--rows/blobs/*")), "nothing is written"


# -- parts that are not on the device of their mesh: without a GPU, "meta" stands for it -------------


@pytest.fixture
def last_of_three() -> Iterator[Any]:
    """What makes a mesh in which this process is the last of three ranks, which never meet."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    device_mesh = pytest.importorskip("torch.distributed.device_mesh")
    torch.distributed.init_process_group("fake", rank=2, world_size=3, store=fake.FakeStore())
    yield lambda: device_mesh.init_device_mesh("cpu", (3,))
    torch.distributed.destroy_process_group()


VALUES = {
    "0.weight": np.arange(35, dtype=np.float32).reshape(7, 5),
    "0.bias": np.arange(7, dtype=np.float32) * 3,
    "1.weight": np.arange(21, dtype=np.float32).reshape(3, 7) - 9,
}
LAST = {"0.weight": VALUES["0.weight"][6:], "0.bias": VALUES["0.bias"][6:], "1.weight": VALUES["1.weight"][2:]}


def check_here(net: Any, dtype: Any = None) -> None:
    """Each parameter has the part of the last rank, in memory of the CPU."""
    for name, own in net.named_parameters():
        part = own.to_local()
        assert part.device.type == "cpu"
        assert part.dtype is (dtype or torch.float32)
        assert part.tolist() == LAST[name].tolist()
        assert tuple(own.shape) == VALUES[name].shape
        assert own.requires_grad


@pytest.mark.filterwarnings("default")
def test_a_part_stays_on_the_device_where_it_is(last_of_three: Any) -> None:
    """On the CPU beside a mesh of devices, as FSDP2 offloads it; in the dtype that is asked for."""
    tensor = pytest.importorskip("torch.distributed.tensor")
    mesh = last_of_three()
    net = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3, bias=False))
    for part in net:
        for leaf, own in list(part.named_parameters()):
            held = tensor.distribute_tensor(own.detach(), mesh, [tensor.Shard(0)], src_data_rank=None)
            setattr(part, leaf, nn.Parameter(held))
    mesh._device_type = "meta"
    load_state_dict_into(net, VALUES)
    check_here(net)
    memory = net[0].weight.to_local().data_ptr()
    load_state_dict_into(net, {name: array * 0 for name, array in VALUES.items()}, assign=False)
    assert not net[0].weight.to_local().any()
    assert net[0].weight.to_local().data_ptr() == memory
    load_state_dict_into(net, VALUES, dtype="bfloat16")
    check_here(net, torch.bfloat16)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("how", ["offloaded", "made on the CPU", "neither"])
def test_where_parts_on_meta_come_to_be(last_of_three: Any, how: str) -> None:
    """On the CPU by the policy of FSDP2, or where to_empty has put them; else on the device of the mesh."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    mesh = last_of_three()
    policy = fsdp.CPUOffloadPolicy(pin_memory=False) if how != "neither" else fsdp.OffloadPolicy()
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3, bias=False))
    fsdp.fully_shard(net[0], mesh=mesh, offload_policy=policy)
    fsdp.fully_shard(net, mesh=mesh, offload_policy=policy)
    if how == "made on the CPU":
        net.to_empty(device="cpu")
    mesh._device_type = "meta"
    if how != "neither":
        load_state_dict_into(net, VALUES)
        check_here(net)
        return
    with pytest.raises(ModelMismatchError, match="3 would have no values, being on the meta device"):
        load_state_dict_into(net, VALUES)
