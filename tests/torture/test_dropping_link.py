"""A link that breaks every few megabytes: the file comes whole, and at most a tenth more bytes travel than it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

import asyncfetch
from asyncfetch.policy import Policy
from asyncfetch.spans import MiB

from ..kit.fault_server import LOOK, Fault, FaultServer, Reset, Truncate
from ..kit.files import safetensors_bytes

SINGLE = "model.safetensors"
PREFIX = 65_536
TENSORS = {f"w{n}": np.random.default_rng(n).integers(0, 255, 12 * MiB, dtype=np.uint8) for n in range(4)}
CONTENT = safetensors_bytes(TENSORS)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """A server without files."""
    with FaultServer() as running:
        yield running


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
@pytest.mark.parametrize("kind", ["own", "client"])
@pytest.mark.parametrize("storage", ["disk", "memory"])
@pytest.mark.parametrize(
    ("fault", "connections"), [(Truncate, 1), (Truncate, 4), (Reset, 1)], ids=["closed-1", "closed-4", "reset-1"]
)
async def test_every_three_megabytes(
    server: FaultServer,
    tmp_path: Path,
    kind: str,
    storage: str,
    fault: Callable[[int], Fault],
    connections: int,
    figure: Callable[[str], None],
) -> None:
    """48 MiB over a link that drops after each 3 MiB: each request after a break begins where the last one ended."""
    path = server.hub("org/model", {SINGLE: CONTENT}).storage[SINGLE]
    server.fault(path, LOOK, fault(3 * MiB), forever=True)
    policy = replace(Policy(), connections=connections, backoff=0.001, min_split=4 * MiB)
    options = {"policy": policy, "storage": storage, "token": False, "cache_dir": tmp_path, "endpoint": server.url}
    async with httpx.AsyncClient() as client:
        if kind == "client":
            options["client"] = client
        state = await asyncfetch.load_async("org/model", **options)  # type: ignore[arg-type]
    assert all(np.array_equal(state[name], TENSORS[name]) for name in TENSORS)
    sent, starts = server.sent(path), [seen.start for seen in server.to(path)]
    figure(f"{len(starts)} requests, {sent / len(CONTENT):.4f} of the file's bytes")
    assert sent <= 1.1 * len(CONTENT)
    assert len(starts) >= len(CONTENT) // (3 * MiB)
    assert None not in starts  # each of them sent a Range
    assert len(set(starts)) >= len(starts) - 1
    if (connections, fault) == (1, Truncate):
        assert starts == sorted(starts)
        assert sent == len(CONTENT)
