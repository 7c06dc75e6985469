"""A model of two small tensors, in two shards or one file, and how it is loaded from a fault server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import asyncfetch

from .fault_server import QUICK, FaultServer
from .files import safetensors_bytes, sharded_bytes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD = "model-00001-of-00002.safetensors"
TENSORS = {f"layer.{n}": np.random.default_rng(n).integers(0, 255, 150_000, dtype=np.uint8) for n in range(2)}
FILES = sharded_bytes(TENSORS, 2)
ONE_FILE = {SINGLE: safetensors_bytes(TENSORS)}
CALM = replace(QUICK, read_timeout=10, connect_timeout=10)  # time-outs are not what is tested
KINDS = pytest.mark.parametrize("kind", ["own", "client"])
ONE_LOOP = pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])  # the loop has no part in it


async def load(server: FaultServer, cache: Path, source: str = "org/model", **options: Any) -> dict[str, Any]:
    """The state dict of a repository, or of a web folder where `source` is a path."""
    options = {"policy": CALM, "token": False, "cache_dir": cache, **options}
    if source.startswith("/"):
        source = server.url + source
    else:
        options["endpoint"] = server.url
    if options.pop("kind", "own") == "client":
        async with httpx.AsyncClient() as client:
            return await asyncfetch.load_async(source, client=client, **options)
    return await asyncfetch.load_async(source, **options)


def same(state: dict[str, Any]) -> bool:
    return list(state) == list(TENSORS) and all(np.array_equal(state[name], TENSORS[name]) for name in TENSORS)
