"""A client of the caller that speaks HTTP/2. Our own sockets speak HTTP/1.1 only: one body for each connection."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import NetworkError

from ..kit.fault_server import QUICK
from ..kit.files import safetensors_bytes, sharded_bytes

pytest.importorskip("h2", reason="needs httpx[http2]")

from ..kit.http2_server import Http2Server

TENSORS = {f"t{n}": np.arange(80_000, dtype=np.uint32) * (n + 1) for n in range(2)}
FILES = {f"/files/{name}": body for name, body in sharded_bytes(TENSORS, 2).items()}
SINGLE = {"/files/model.safetensors": safetensors_bytes(TENSORS)}
POLICY = replace(QUICK, connections=4, min_split=60_000)
FAULTS = ["refused", "goaway", "goaway-mid", "rst", "short", "close"]


async def load(server: Http2Server, source: str, **options: object) -> Mapping[str, np.ndarray]:
    async with httpx.AsyncClient(http1=False, http2=True, verify=False) as client:
        state: Mapping[str, np.ndarray] = await asyncfetch.load_async(server.url + source, client=client, **options)  # type: ignore[arg-type]
        return state


def same(state: Mapping[str, np.ndarray]) -> bool:
    return list(state) == list(TENSORS) and all(np.array_equal(state[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.anyio
@pytest.mark.parametrize("storage", ["disk", "memory"])
async def test_streams_share_connections(tmp_path: Path, storage: str) -> None:
    """Index, shards and ranges are streams of few connections, and nothing waits for frames that do not come."""
    policy = replace(POLICY, connections=2, read_timeout=20)
    with Http2Server(FILES, []) as server:
        began = time.monotonic()
        assert same(await load(server, "/files/", policy=policy, cache_dir=tmp_path, storage=storage))
        assert time.monotonic() - began < 4
        assert len(server.seen) >= 5  # the index, and of each shard its header and the rest
        assert server.connections <= 2


@pytest.mark.anyio
@pytest.mark.parametrize("at", [0, 1, 2], ids=["index", "prefix", "body"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_faults(tmp_path: Path, fault: str, at: int) -> None:
    """A stream or a connection that ends too early, whatever it says, costs a request: the bytes are right."""
    faults = [*at * [None], fault]
    with Http2Server(FILES, faults) as server:
        assert same(await load(server, "/files/", policy=POLICY, cache_dir=tmp_path))


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["goaway-mid", "rst", "short"])
async def test_goes_on_where_it_broke(tmp_path: Path, fault: str) -> None:
    """What came before the break is kept: the next range begins after it."""
    policy = replace(POLICY, connections=1, min_split=1 << 30, max_redirects=0)
    with Http2Server(SINGLE, [None, fault]) as server:
        url = "/files/model.safetensors"
        assert same(await load(server, url, policy=policy, cache_dir=tmp_path))
        starts = [start for _, start in server.seen]
    assert starts[:2] == [0, 65_536]
    assert starts[2] is not None
    assert 65_536 <= starts[2] <= 65_536 + 20_000
    assert len(starts) == 3


@pytest.mark.anyio
@pytest.mark.parametrize("fault", FAULTS)
async def test_faults_that_stay(tmp_path: Path, fault: str) -> None:
    """Without progress the attempts end in an error of ours, also for what h2 itself raises."""
    with Http2Server(SINGLE, [None, *40 * [fault]]) as server:
        policy = replace(POLICY, progress_unit=1 << 30, min_split=1 << 30)  # one span: attempts are counted for each
        with pytest.raises(NetworkError):
            await load(server, "/files/model.safetensors", policy=policy, cache_dir=tmp_path)
