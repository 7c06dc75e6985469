"""Tensor parallel groups: each rank has its parts alone, at its own node, and the source sends no more than it must."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import DiskFullError, SelectionError, SourceError
from asyncfetch.events import Event, FileVerified, NodeProgress

from ..kit.fault_server import FaultServer
from ..kit.files import safetensors_bytes
from ..kit.small_model import ONE_LOOP
from .conftest import STORE, Raylets, sent
from .test_cluster import FILES, SHARDS, TENSORS, eventually, options

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(180)]

SPLITS = (1_200_000, 800_000)  # of what was fused
TP_PLAN: dict[str, Any] = {"weights": 0, "pl*": 1, "more": {"parts": SPLITS}}
FIRST, SECOND, THIRD = SHARDS  # odd, plain | weights, none | eight, more
PREFIX = 65_536  # bytes that come with each header


def digests_of(tensors: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    return {name: (hashlib.sha256(array.tobytes()).hexdigest(), array.shape) for name, array in tensors.items()}


def parts_of(rank: int, world_size: int) -> dict[str, tuple[str, Any]]:
    """What a rank holds, sliced by numpy out of the whole."""

    def block(array: np.ndarray, axis: int = 0) -> np.ndarray:
        size = -(-array.shape[axis] // world_size)
        return array[(slice(None),) * axis + (slice(rank * size, (rank + 1) * size),)]

    more = np.concatenate([block(one) for one in np.split(TENSORS["more"], [SPLITS[0]])])
    cut = {"weights": block(TENSORS["weights"]), "plain": block(TENSORS["plain"], 1), "more": more}
    return digests_of(TENSORS | cut)


def parts_there(held: Any, ranks: list[int], how: dict[str, Any]) -> dict[int, Any]:
    """What a worker sees of what each rank holds, and which of it are not views on shared memory."""
    seen = {}
    for rank in ranks:
        found, maps = held.local(rank, **how), open("/proc/self/maps").read().splitlines()  # noqa: SIM115
        plasma = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps if "plasma" in line]
        places = {name: array.__array_interface__["data"][0] for name, array in found.items() if array.size}
        seen[rank] = {
            "digests": digests_of(found),
            "writable": any(array.flags.writeable for array in found.values()),
            "aligned": all(place % 64 == 0 for place in places.values()),
            "copied": {name for name, at in places.items() if not any(start <= at < end for start, end in plasma)},
        }
    return seen


def places_of(raylets: Raylets, held: Any) -> dict[Any, tuple[str, ...]]:
    """On which nodes the objects of each unit are."""
    places = {}
    for unit, refs in held._refs.items():
        found = raylets.ray.experimental.get_object_locations(refs[1:])
        (places[unit],) = {tuple(sorted(one["node_ids"])) for one in found.values()}
    return places


def used(raylets: Raylets) -> dict[str, int]:
    """How many bytes are in the object store of each node."""
    free = raylets.ray._private.state.available_resources_per_node()
    total = {row["NodeID"]: row["Resources"] for row in raylets.ray.nodes() if row["Alive"]}
    return {node: int(row["object_store_memory"] - free[node]["object_store_memory"]) for node, row in total.items()}


@ONE_LOOP
@pytest.mark.anyio
async def test_parts_of_what_is_held_whole(raylets: Raylets, server: FaultServer) -> None:
    """Rows are views, what lies apart is copied; from disks as well; a plan that cannot be is refused."""
    server.listing(server.hub("org/whole", FILES))
    node, how = raylets.alive()[1], {"world_size": 3, "tp_plan": TP_PLAN}
    async with asyncfetch.cluster.load_async("org/whole", keep="both", **options(server)) as held:
        for rank, seen in raylets.run(node, parts_there, held, [0, 2], how).items():
            assert seen["digests"] == parts_of(rank, 3)
            assert (seen["writable"], seen["copied"]) == (False, {"plain", "more"})
        with pytest.raises(SelectionError, match="'wieghts' matches no tensor"):
            held.local(0, world_size=2, tp_plan={"wieghts": 0})
        for wrong in ({"rank": 0}, {"rank": 2, "world_size": 2, "tp_plan": {}}, {"tp_plan": {}}):
            with pytest.raises(SourceError):
                await held.local_async(**wrong)
    async with asyncfetch.cluster.load_async("org/whole", keep="disk", **options(server)) as held:
        assert raylets.run(node, parts_there, held, [0], how)[0]["digests"] == parts_of(0, 3)


@ONE_LOOP
@pytest.mark.anyio
async def test_all_ranks(raylets: Raylets, server: FaultServer) -> None:
    """Each byte is sent once and verified; each node has what its ranks hold, and nothing else of it."""
    repository, events = server.hub("org/group", FILES), list[Event]()
    nodes, before = raylets.alive(), sum(used(raylets).values())
    how: Any = {"world_size": 6, "tp_plan": TP_PLAN, "nodes": nodes, **options(server, report=events.append)}
    async with asyncfetch.cluster.load_async("org/group", **how) as held:
        assert sent(server, repository) == SHARDS
        assert {node.node: node.ranks for node in held.nodes} == dict(zip(nodes, [(0, 1), (2, 3), (4, 5)], strict=True))
        total = sum(held._plan.held_bytes(name, range(6)) for name in SHARDS)
        assert await eventually(lambda: sum(used(raylets).values()) < before + total + 500_000, 30)
        places = places_of(raylets, held)
        for node in held.nodes:
            assert {at for unit, at in places.items() if unit.rank in node.ranks} == {(node.node,)}
            for rank, seen in raylets.run(node.node, parts_there, held, [*node.ranks], {}).items():
                assert seen["digests"] == parts_of(rank, 6)
                assert (seen["writable"], seen["aligned"], seen["copied"]) == (False, True, set())
        elsewhere = raylets.run(
            nodes[0], parts_there, held, [5], {"world_size": 6}
        )  # it comes from the node that has it
        assert elsewhere[5]["digests"] == parts_of(5, 6)
        assert sent(server, repository) == SHARDS
        for wrong in ({}, {"rank": 6}, {"rank": 0, "world_size": 3}, {"rank": 0, "tp_plan": TP_PLAN}):
            with pytest.raises(SourceError, match="held in parts"):
                held.local(**wrong)
    assert {event.file for event in events if isinstance(event, FileVerified)} == {*SHARDS}
    assert {(event.node, event.file) for event in events if isinstance(event, NodeProgress)} >= {
        (node, name) for node in nodes for name in SHARDS
    }


@ONE_LOOP
@pytest.mark.anyio
@pytest.mark.parametrize("links", [r".*\.safetensors", ""], ids=["links", "relayed"])
async def test_some_ranks(raylets: Raylets, server: FaultServer, links: str) -> None:
    """Where few are asked for, the source sends little more than they hold, and what came by range is not verified."""
    name, events, first = f"org/some{len(links)}", list[Event](), raylets.alive()[0]
    repository = server.hub(name, FILES, links=links)
    how: Any = {"world_size": 4, "tp_plan": TP_PLAN, "ranks": [1], "nodes": [first]}
    async with asyncfetch.cluster.load_async(name, **how, **options(server, report=events.append)) as held:
        paths = repository.storage if links else repository.pages
        count = {name: server.sent(paths[name]) for name in SHARDS}
        ranges = {FIRST: SHARDS[FIRST], SECOND: PREFIX + 350_000, THIRD: SHARDS[THIRD] - 1_500_000}
        if links:
            assert count == ranges
            assert held.downloaded == sum(count.values()) - 2 * PREFIX
        else:  # the keeper asks where each file is once more, and that brings its first bytes
            assert all(ranges[name] <= count[name] <= ranges[name] + 2 * PREFIX for name in SHARDS)
        assert raylets.run(first, parts_there, held, [1], {})[1]["digests"] == parts_of(1, 4)
        assert {event.file for event in events if isinstance(event, FileVerified)} == {FIRST}


@ONE_LOOP
@pytest.mark.anyio
async def test_ranks_of_a_node_that_dies(raylets: Raylets, server: FaultServer) -> None:
    """Who asks for its part has it made again; and a group that fits into no store is refused before a byte moves."""
    server.hub("org/rank", FILES)
    first, dying = raylets.alive()[0], raylets.add()
    how: Any = {"world_size": 2, "tp_plan": TP_PLAN, "nodes": [first, dying], **options(server)}
    async with asyncfetch.cluster.load_async("org/rank", **how) as held:
        assert [node.ranks for node in held.nodes] == [(0,), (1,)]
        raylets.kill(dying)
        assert await eventually(lambda: dying not in raylets.alive(), 60)
        seen = raylets.run(first, parts_there, held, [0, 1], {})
        assert [seen[rank]["digests"] for rank in (0, 1)] == [parts_of(0, 2), parts_of(1, 2)]
    large = safetensors_bytes({"split": np.zeros(STORE * 3 // 2, np.uint8), "alike": np.zeros(STORE // 2, np.uint8)})
    repository = server.hub("org/large-group", {"model.safetensors": large})
    how |= {"tp_plan": {"split": 0}, "nodes": [first]}
    with pytest.raises(DiskFullError, match=r"object store of node 127\.0\.0\."):
        await asyncfetch.cluster.load_async("org/large-group", **how)
    assert sum(sent(server, repository).values()) <= PREFIX
    with pytest.raises(SourceError, match="whole files, and ranks hold parts"):
        await asyncfetch.cluster.load_async("org/rank", keep="disk", **how)
