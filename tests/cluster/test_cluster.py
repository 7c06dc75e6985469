"""One download for three nodes, over real raylets and a real server that counts what it sends."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import ml_dtypes
import numpy as np
import pytest

import asyncfetch
from asyncfetch.cluster.driving import brought
from asyncfetch.errors import ChecksumMismatchError, DiskFullError, OfflineError, SourceError
from asyncfetch.events import Event, Finished, NodeProgress, Resolved

from ..kit.canaries import TOKEN
from ..kit.fault_server import LOOK, FaultServer, Flip, Stall
from ..kit.files import sharded_bytes
from ..kit.small_model import ONE_LOOP
from .conftest import CALM, STORE, Raylets, sent

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(180)]

RNG = np.random.default_rng(0)
TENSORS: dict[str, Any] = {
    "odd": RNG.integers(0, 255, 300_001, dtype=np.uint8),
    "weights": RNG.standard_normal((700, 1000)).astype(ml_dtypes.bfloat16),
    "eight": RNG.standard_normal(500_000).astype(ml_dtypes.float8_e4m3fn),
    "plain": RNG.standard_normal((300, 500)).astype(np.float32),
    "none": np.zeros((0, 4), np.float32),
    "more": RNG.integers(0, 255, 2_000_000, dtype=np.uint8),
}
FILES = {
    **sharded_bytes(TENSORS, 3),
    "config.json": b'{"a": 1}',
    "1_Pooling/config.json": b'{"pooling": "mean"}',
    "tokenizer.bin": b"pickled",
}
KEPT = {name: data for name, data in FILES.items() if not name.endswith(".bin")}
INDEX = "model.safetensors.index.json"
SHARDS = {name: len(data) for name, data in FILES.items() if name.endswith(".safetensors")}


def options(server: FaultServer, **more: Any) -> dict[str, Any]:
    return {"endpoint": server.url, "policy": CALM, "token": TOKEN, **more}


def seen_there(held: Any) -> dict[str, Any]:
    """What a worker sees of a checkpoint that is held, and what it costs that worker."""

    def private() -> int:
        with open("/proc/self/smaps_rollup") as lines:
            return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) << 10

    held.local()
    before = private()
    found = held.local()
    maps = open("/proc/self/maps").read().splitlines()  # noqa: SIM115
    plasma = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps if "plasma" in line]
    places = [array.__array_interface__["data"][0] for array in found.values() if array.size]
    return {
        "digests": {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in found.items()},
        "dtypes": {name: (str(array.dtype), array.shape) for name, array in found.items()},
        "writable": any(array.flags.writeable for array in found.values()),
        "aligned": all(place % 64 == 0 for place in places),
        "shared": all(any(start <= place < stop for start, stop in plasma) for place in places),
        "grown": private() - before,
        "commit": held.commit,
    }


DIGESTS = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in TENSORS.items()}
SHAPES = {name: (str(array.dtype), array.shape) for name, array in TENSORS.items()}


@pytest.mark.anyio
async def test_memory(raylets: Raylets, server: FaultServer, anyio_backend: tuple[str, Any]) -> None:
    """Each byte is sent once; each node sees all, read-only, shared, on 64 bytes; on no disk is anything."""
    repository, events = server.hub("org/memory", FILES), list[Event]()
    most = 400_000 if anyio_backend[0] == "trio" else 1 << 40  # so that shards are cut, or not
    held = await brought(
        "org/memory", options(server, report=events.append), nodes="all", keep="memory", companions=True, most=most
    )
    async with held:
        assert sent(server, repository) == SHARDS
        for node in raylets.alive():
            seen = raylets.run(node, seen_there, held)
            assert seen["digests"] == DIGESTS
            assert seen["dtypes"] == SHAPES
            assert (seen["writable"], seen["aligned"], seen["shared"]) == (False, True, True)
            assert seen["grown"] < 5_000_000
            assert not raylets.snapshots(node, "org/memory")
        assert sent(server, repository) == SHARDS
    assert isinstance(events[0], Resolved)
    assert events[-1] == Finished(3, sum(SHARDS.values()), sum(SHARDS.values()), events[-1].seconds)
    whole = {
        (event.node, event.file) for event in events if isinstance(event, NodeProgress) and event.present == event.size
    }
    assert whole == {(node, name) for node in raylets.alive() for name in SHARDS}


@ONE_LOOP
@pytest.mark.anyio
async def test_disk(raylets: Raylets, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node's cache is complete, offline too; what one node has it gives to the others; a piece is small."""
    monkeypatch.setattr("asyncfetch.cluster.nodes._MOST_PIECE", 1 << 20)
    repository = server.hub("org/disk", FILES)
    server.listing(repository)
    first, *others = raylets.alive()
    one = await asyncfetch.cluster.download_async("org/disk", nodes=[first], **options(server))
    assert [node.node for node in one.nodes] == [first]
    assert one.downloaded == sum(map(len, KEPT.values())) - len(KEPT[INDEX])
    assert raylets.snapshots(first, "org/disk") == KEPT
    assert not raylets.snapshots(others[0], "org/disk")
    before = sent(server, repository)
    assert before == SHARDS
    async with asyncfetch.cluster.load_async("org/disk", keep="both", **options(server)) as held:
        assert held.downloaded == 0
        assert all(raylets.snapshots(node, "org/disk") == KEPT for node in raylets.alive())
        assert raylets.run(others[0], seen_there, held)["digests"] == DIGESTS
    headers = sum(sent(server, repository).values()) - sum(before.values())
    assert headers <= 3 * 65_536
    async with asyncfetch.cluster.load_async("org/disk", keep="disk", **options(server)) as held:
        assert held.refs == {}
        assert {node.node: str(node.path) for node in held.nodes} == {
            node: str(home / f"hub/models--org--disk/snapshots/{held.commit}")
            for node, home in raylets.homes.items()
            if node in raylets.alive()
        }
        for node in raylets.alive():
            home = raylets.homes[node]
            seen = raylets.run(node, seen_there, held)
            assert seen["digests"] == DIGESTS
            alone = asyncfetch.load("org/disk", cache_dir=home / "hub", offline=True)
            assert {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in alone.items()} == DIGESTS
            assert all(check.ok for check in asyncfetch.verify("org/disk", cache_dir=home / "hub"))


@ONE_LOOP
@pytest.mark.anyio
async def test_a_rotten_source(raylets: Raylets, server: FaultServer) -> None:
    """A node whose disk has a wrong file gives it to nobody, and gets a good one: fetched once, for all."""
    repository, name, first = server.hub("org/rotten", FILES), list(SHARDS)[2], raylets.alive()[0]
    server.listing(repository)
    await asyncfetch.cluster.download_async("org/rotten", nodes=[first], **options(server))
    blob = raylets.homes[first] / "hub/models--org--rotten/blobs" / hashlib.sha256(FILES[name]).hexdigest()
    blob.write_bytes(FILES[name][:-1] + b"\0")
    found = await asyncfetch.cluster.download_async("org/rotten", **options(server))
    assert found.downloaded == SHARDS[name]
    assert all(raylets.snapshots(node, "org/rotten") == KEPT for node in raylets.alive())


@ONE_LOOP
@pytest.mark.anyio
async def test_a_web_folder(raylets: Raylets, server: FaultServer) -> None:
    """Nobody tells a hash: the one that the first node found is what the others hold theirs against."""
    url = server.web("/web", FILES)
    async with asyncfetch.cluster.load_async(url, keep="both", policy=CALM, token=TOKEN) as held:
        for node in raylets.alive():
            assert raylets.run(node, seen_there, held)["digests"] == DIGESTS
        assert {node.path.name for node in held.nodes if node.path is not None} == {held.commit}
        assert held.downloaded == sum(SHARDS.values())


@ONE_LOOP
@pytest.mark.anyio
@pytest.mark.parametrize("keep", ["memory", "disk"])
async def test_a_wrong_hash(raylets: Raylets, server: FaultServer, keep: Any) -> None:
    """The driver gets our error, and no node has the file."""
    repository, name = server.hub(f"org/wrong-{keep}", FILES), list(SHARDS)[1]
    server.fault(repository.storage[name], LOOK, Flip(SHARDS[name] - 9), forever=True)
    with pytest.raises(ChecksumMismatchError) as error:
        await asyncfetch.cluster.load_async(repository.name, keep=keep, **options(server))
    assert error.value.file == name
    assert type(error.value) is ChecksumMismatchError
    for node in raylets.alive():
        assert name not in raylets.snapshots(node, repository.name)


@ONE_LOOP
@pytest.mark.anyio
async def test_no_room(raylets: Raylets, server: FaultServer) -> None:
    """The error names the node and the bytes, and no byte of data was sent."""
    large = sharded_bytes({f"t{n}": np.zeros(STORE // 4 + 1, np.uint8) for n in range(4)}, 4)
    repository = server.hub("org/large", large)
    with pytest.raises(DiskFullError, match=r"object store of node 127\.0\.0\.") as error:
        await asyncfetch.cluster.load_async("org/large", **options(server))
    assert error.value.needed > STORE >= error.value.free
    assert sum(sent(server, repository).values()) <= 4 * 65_536
    for wrong in ({"nodes": 99}, {"nodes": ["gone"]}, {"nodes": {"rack": "none"}}):
        with pytest.raises(SourceError):
            await asyncfetch.cluster.load_async("org/large", **wrong, **options(server))
    with pytest.raises(SourceError, match="is not downloaded for a cluster"):
        await asyncfetch.cluster.load_async(os.getcwd(), **options(server))


def workers(raylets: Raylets) -> list[str]:
    """The processes of this cluster that do something of ours."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes().decode(errors="replace")
            ours = str(raylets.root) in (process / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if ours and text.startswith(("ray::Agent", "ray::Keeper", "ray::asyncfetch")):
            found.append(text)
    return found


async def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    with anyio.move_on_after(seconds):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.1)
        return True
    return False


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("trio", {})], ids=["trio"])
@pytest.mark.parametrize("keep", ["memory", "disk"])
async def test_a_cancelled_load_leaves_no_task(raylets: Raylets, server: FaultServer, keep: Any) -> None:
    """Within five seconds; on a disk the next run goes on with what came."""
    repository = server.hub(f"org/cancel-{keep}", FILES)
    for path in repository.storage.values():
        server.fault(path, LOOK, Stall(200_000))

    async def load() -> None:
        await asyncfetch.cluster.load_async(repository.name, keep=keep, **options(server))

    async with anyio.create_task_group() as group:
        group.start_soon(load)
        assert await eventually(lambda: min(sent(server, repository).values()) >= 200_000, 60)
        group.cancel_scope.cancel()
    assert await eventually(lambda: not workers(raylets), 5), workers(raylets)
    async with asyncfetch.cluster.load_async(repository.name, keep=keep, **options(server)) as held:
        assert raylets.run(raylets.alive()[0], seen_there, held)["digests"] == DIGESTS
        assert workers(raylets)
        if keep == "disk":
            assert held.downloaded < sum(SHARDS.values()) - 100_000
    assert await eventually(lambda: not workers(raylets), 5), workers(raylets)


@ONE_LOOP
@pytest.mark.anyio
async def test_nodes_come_and_go(raylets: Raylets, server: FaultServer) -> None:
    """A node that joins gets all from the others, and what is held outlives a node, each at no byte from the source."""
    repository = server.hub("org/come", FILES)
    server.listing(repository)
    async with asyncfetch.cluster.load_async("org/come", keep="both", **options(server)) as held:
        before = sent(server, repository)
        new = raylets.add()
        assert await eventually(lambda: raylets.snapshots(new, "org/come") == KEPT, 60)
        assert raylets.run(new, seen_there, held)["digests"] == DIGESTS
        raylets.kill(new)
        assert await eventually(lambda: new not in raylets.alive(), 60)
        assert raylets.run(raylets.alive()[0], seen_there, held)["digests"] == DIGESTS
        assert sent(server, repository) == before


@ONE_LOOP
@pytest.mark.anyio
async def test_a_sole_copy_is_made_again(raylets: Raylets, server: FaultServer) -> None:
    """Where the only node that had a shard dies, who asks for it has it fetched again: each byte once more."""
    repository, alone = server.hub("org/sole", FILES), raylets.add()
    async with asyncfetch.cluster.load_async("org/sole", nodes=[alone], **options(server)) as held:
        assert sent(server, repository) == SHARDS
        assert [node.node for node in held.nodes] == [alone]
        raylets.kill(alone)
        assert await eventually(lambda: alone not in raylets.alive(), 60)
        assert raylets.run(raylets.alive()[0], seen_there, held)["digests"] == DIGESTS
        again = {name: count - SHARDS[name] for name, count in sent(server, repository).items()}
        assert again == {name: size - min(size, 65_536) for name, size in SHARDS.items()}  # the header is known


@ONE_LOOP
@pytest.mark.anyio
async def test_a_hold_outlives_its_driver(raylets: Raylets, server: FaultServer) -> None:
    """The next call by that name gets it without a byte from the source, and another checkpoint is refused."""
    repository = server.hub("org/hold", FILES)
    driver = (
        "import json, os, sys, ray, asyncfetch\n"
        "ray.init(address=sys.argv[1], log_to_driver=False)\n"
        "policy = asyncfetch.Policy(connections=1)\n"
        "asyncfetch.cluster.load('org/hold', hold='models', nodes=2, endpoint=sys.argv[2], policy=policy)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    arguments = [sys.executable, "-c", driver, raylets.cluster.address, server.url]
    first = await anyio.run_process(arguments, check=False, env={**os.environ, "HF_TOKEN": TOKEN})
    assert first.returncode == -9, first.stderr.decode()
    before = len(server.seen)
    held = await asyncfetch.cluster.load_async("org/hold", hold="models", nodes=2, **options(server))
    assert len(server.seen) == before
    assert raylets.run(raylets.alive()[-1], seen_there, held)["digests"] == DIGESTS
    with pytest.raises(SourceError, match="something else as 'models'"):
        await asyncfetch.cluster.load_async("org/hold", hold="models", nodes=1, **options(server))
    held.release()
    assert await eventually(lambda: not workers(raylets), 5), workers(raylets)
    assert sum(sent(server, repository).values()) == sum(SHARDS.values())
    with pytest.raises(OfflineError):
        await asyncfetch.cluster.load_async("org/other", keep="disk", offline=True, **options(server))


def test_the_command(raylets: Raylets, server: FaultServer) -> None:
    """It lists the nodes, each with what it brought and what others gave it; errors have their exit codes."""
    repository = server.hub("org/command", FILES)
    server.listing(repository)
    environment = {**os.environ, "HF_TOKEN": TOKEN, "HF_ENDPOINT": server.url}
    command = [sys.executable, "-m", "asyncfetch", "cluster-download", "--address", raylets.cluster.address]
    command += ["--connections", "1"]  # as CALM has it: so that counts are exact
    done = subprocess.run([*command, "org/command"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    head, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert head == ["address", "node", "downloaded", "received", "folder"]
    assert len(rows) == len(raylets.alive())
    total = sum(map(len, KEPT.values())) - len(KEPT[INDEX])
    assert sum(int(row[2]) for row in rows) == total
    assert all(int(row[2]) + int(row[3]) == total for row in rows)
    for arguments, code in ((["--nodes", "99"], 2), (["--revision", "gone"], 3)):
        failed = subprocess.run(
            [*command, *arguments, "org/command"], env=environment, capture_output=True, text=True, check=False
        )
        assert failed.returncode == code, failed.stderr
