"""What is decided without a cluster: how data lie, who gets what, whether there is room."""

from __future__ import annotations

import stat
from pathlib import Path

import anyio
import ml_dtypes
import numpy as np
import pytest

import asyncfetch
from asyncfetch.cluster.handover import offered, taken
from asyncfetch.cluster.layout import groups_of, packed, views
from asyncfetch.cluster.nodes import (
    Node,
    NodeState,
    check_room,
    chosen,
    connections_a_file,
    nodes_of,
    piece_bytes,
    spread,
    tasks_at_once,
)
from asyncfetch.cluster.rounds import FIRST, in_rounds
from asyncfetch.errors import DiskFullError, NetworkError, SourceError
from asyncfetch.format.arrays import tensor_view
from asyncfetch.format.header import header_of

from ..kit.files import safetensors_bytes

MiB = 1 << 20


@pytest.mark.parametrize("most", [1, 700, 5000, 1 << 40])
def test_groups_hold_each_tensor_on_64_bytes(most: int) -> None:
    """Whatever lies before it in the file, and however a shard is cut."""
    rng = np.random.default_rng(most)
    tensors = {
        f"t{n}": rng.integers(0, 255, size, dtype=np.uint8) for n, size in enumerate([64, 3, 0, 640, 1000, 4096, 1, 64])
    }
    tensors["bf16"] = rng.standard_normal((5, 7)).astype(ml_dtypes.bfloat16)
    for pad in (8, 64):
        file = memoryview(safetensors_bytes(tensors, pad=pad))
        header = header_of(file, file="m")
        groups = groups_of(header.tensors, most)
        assert (len(groups) > 1) == (most < 1 << 40)
        objects = list(packed(file, header, groups))
        assert [len(data) for data in objects] == [group.size for group in groups]
        assert all(len(group.offsets) == 1 or group.size <= max(most, MiB // 8) for group in groups)
        found = {}
        for group, data in zip(groups, objects, strict=True):
            for name, info in views(group, header.tensors):
                assert info.begin % 64 == 0
                found[name] = tensor_view(data, info, 0)
        assert list(found) == list(header.tensors)
        assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


def test_a_shard_that_is_aligned_is_not_copied() -> None:
    """The bytes that were received are the ones that go into the store."""
    file = np.frombuffer(safetensors_bytes({n: np.zeros(MiB, np.uint8) for n in "abc"}), np.uint8).copy()
    header = header_of(file.data, file="m")
    assert all(np.shares_memory(data, file) for data in packed(file.data, header, groups_of(header.tensors, 2 * MiB)))


NODES = [Node(f"id{n}", f"10.0.0.{n}", 8 << 30, (n + 1) * MiB, {"rack": "r" + "ab"[n % 2]}) for n in range(4)]


def test_who_is_wanted() -> None:
    """All, a number, labels, ids, addresses; of a number those that have it stay."""
    assert chosen(NODES, "all") == NODES
    assert chosen(NODES, {"rack": "ra"}) == [NODES[0], NODES[2]]
    assert chosen(NODES, ["id3", "10.0.0.1"]) == [NODES[3], NODES[1]]
    assert chosen(NODES, 2) == [NODES[3], NODES[2]]
    assert chosen(NODES, 2, ["id0"]) == [NODES[0], NODES[3]]
    assert chosen(NODES[:1], ["id0", "id3"], ["id0", "id3"]) == NODES[:1]
    for wanted in (5, {"rack": "rc"}, ["id9"]):
        with pytest.raises(SourceError):
            chosen(NODES, wanted)


def test_nodes_that_are_dead_are_none() -> None:
    row = {"NodeID": "a", "NodeManagerAddress": "10.0.0.1", "Alive": True, "Labels": {}}
    table = [row | {"Resources": {"memory": 9.0, "object_store_memory": 8.0}}, row | {"Alive": False}]
    assert nodes_of(table, {}) == [Node("a", "10.0.0.1", 9, 8)]
    assert nodes_of(table, {"a": {"object_store_memory": 3.0}})[0].store == 3


def test_room_is_asked_of_each_node() -> None:
    """The error names the node and the bytes; what is on a disk already needs no room there."""
    node, sizes = Node("id7", "10.0.0.7", store=50), {"a": 60, "b": 30}
    state = NodeState("1", "/cache", 40, {"a": 50})
    check_room(node, state, sizes, in_memory=50, on_disk=sizes)
    with pytest.raises(DiskFullError, match=r"store of node 10\.0\.0\.7 .*51 bytes.*50") as error:
        check_room(node, state, sizes, in_memory=51, on_disk=())
    assert (error.value.needed, error.value.free) == (51, 50)
    assert "--object-store-memory" in error.value.hint
    with pytest.raises(DiskFullError, match=r"Node 10\.0\.0\.7 .*90 bytes.*40"):
        check_room(node, NodeState("1", "/cache", 40, {}), sizes, in_memory=0, on_disk=sizes)
    check_room(node, NodeState("1", "/cache", 40, {"b": 30}, {"a": 40}), sizes, in_memory=0, on_disk=sizes)
    with pytest.raises(DiskFullError, match=r"Node 10\.0\.0\.7 .*41 bytes.*40"):
        check_room(node, NodeState("1", "/cache", 40, {}, {"a": 40, "b": 1}), sizes, in_memory=0, on_disk=sizes)


def test_files_are_spread() -> None:
    """By bytes, and to who has most of a file already."""
    sizes = {"a": 50, "b": 30, "c": 20, "d": 40}
    places = spread(sizes, ["x", "y"], {})
    assert sorted(sum(sizes[name] for name in sizes if places[name] == node) for node in "xy") == [70, 70]
    assert spread(sizes, ["x", "y"], {"y": {"a": 10, "b": 30}})["a"] == "y"
    assert tasks_at_once(8 << 30, 5 << 30) == 1
    assert tasks_at_once(64 << 30, 1 << 20) == 4
    assert [connections_a_file(16, [9 * MiB] * n + [MiB] * 5) for n in range(5)] == [16, 16, 8, 5, 1]
    assert piece_bytes(NODES) == MiB
    assert piece_bytes([Node("a", "b", store=1 << 40)]) == 32 * MiB


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the error says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(SourceError, match=r"ray is not installed.*asyncfetch\[ray\]"):
        asyncfetch.cluster.load("org/model")
    for wrong in (
        {"nodes": 0},
        {"nodes": {}},
        {"nodes": iter(["a"])},
        {"keep": "tape"},
        {"hold": ""},
        {"companions": 1},
    ):
        with pytest.raises(SourceError, match=f"{next(iter(wrong))}= takes"):
            asyncfetch.cluster.load("org/model", **wrong)


@pytest.mark.anyio
@pytest.mark.parametrize("lost", [0, 30])
async def test_as_many_ask_as_have_it(lost: int) -> None:
    """Of many nodes sixteen ask at first; who was lost on the way gives it to nobody."""
    asking, ended, having = dict[int, anyio.Event](), set[int](), 1

    async def bring(node: int) -> bool:
        asking[node] = anyio.Event()
        await asking[node].wait()
        return node >= lost

    async with anyio.create_task_group() as group:
        group.start_soon(in_rounds, range(100), bring)
        while len(ended) < 100:
            await anyio.wait_all_tasks_blocked()
            wave = asking.keys() - ended
            assert len(wave) == min(max(FIRST, having), 100 - len(ended))
            for node in wave:
                asking[node].set()
            ended |= wave
            having += sum(node >= lost for node in wave)


@pytest.mark.anyio
@pytest.mark.parametrize("folder", ["short", "long"])
async def test_a_secret_is_handed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str) -> None:
    """To the same user, however long the names of folders are, and for as long as it is offered."""
    if folder == "long":
        (tmp_path / ("x" * 120)).mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 120)))
    secret = bytes(range(256)) * 5000
    async with offered(secret) as path:
        assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
        assert [await taken(path), await taken(path)] == [secret, secret]
    assert not Path(path).parent.exists()
    with pytest.raises(NetworkError, match="beside the driver"):
        await taken(path)
