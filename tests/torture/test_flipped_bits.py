"""A wrong bit in any byte of a shard, header or data, is found, whatever receives it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import CorruptError
from asyncfetch.format.header import PREFIX_BYTES, parse_header
from asyncfetch.storage.partial import FilePartial, MemoryPartial, Partial
from asyncfetch.tensors.segments import TensorPartial, segments_of

from ..kit.fault_server import QUICK, FaultServer, Flip
from ..kit.files import safetensors_bytes

SINGLE = "model.safetensors"
_RANDOM = np.random.default_rng(5)
# A file of exactly 64 KiB: a header of 128 bytes, a large tensor and a small one.
CONTENT = safetensors_bytes(
    {"w": _RANDOM.integers(0, 255, 60_000, dtype=np.uint8), "b": _RANDOM.integers(0, 255, 5400, dtype=np.uint8)}, pad=8
)
HEADER_STOP = PREFIX_BYTES + int.from_bytes(CONTENT[:8], "little")
SIZE = len(CONTENT)
CALM = replace(QUICK, read_timeout=10, connect_timeout=10)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def positions(count: int, seed: int) -> list[int]:
    """Each byte of the header and `count` others, or all bytes."""
    if count >= SIZE:
        return list(range(SIZE))
    rest = random.Random(seed).sample(range(HEADER_STOP, SIZE), count)
    return [*range(0, HEADER_STOP, 7 if count < 1000 else 1), *rest, HEADER_STOP, SIZE - 1]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """A folder with the file."""
    with FaultServer() as running:
        running.web("/files", {SINGLE: CONTENT})
        yield running


async def load(server: FaultServer, cache: Path, storage: str, way: str) -> dict[str, Any]:
    options: dict[str, Any] = {"policy": CALM, "storage": storage, "checksums": {SINGLE: f"sha256:{SHA256}"}}
    url = f"{server.url}/files/{SINGLE}"
    if way == "stream":
        async with asyncfetch.stream_async(url, cache_dir=cache, **options) as tensors:
            return {name: array async for name, array in tensors}
    return await asyncfetch.load_async(url, cache_dir=cache, **options)


def named_blobs(cache: Path) -> list[Path]:
    return [path for path in cache.glob("models--*/blobs/*") if not path.name.endswith("incomplete")]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
@pytest.mark.parametrize(("way", "storage"), [("load", "disk"), ("load", "memory"), ("stream", "memory")])
async def test_every_byte_over_the_wire(
    server: FaultServer,
    tmp_path: Path,
    way: str,
    storage: str,
    seed: int,
    scale: Callable[[int, int], int],
    figure: Callable[[str], None],
) -> None:
    """The whole way, from a socket to a state dict: an error each time, and nothing has a name in the cache."""
    assert 60_000 < SIZE <= 65_536
    assert await load(server, tmp_path / "good", storage, way)
    every = positions(scale(10, SIZE // 8), seed)  # other ones with each seed
    missed = []
    for position in every:
        server.fault(f"/files/{SINGLE}", Flip(position, 1 << position % 8), forever=True)
        try:
            await load(server, tmp_path / "bad", storage, way)
            missed.append(position)
        except CorruptError:
            pass
        server.seen.clear()
    figure(f"{len(every)} of {SIZE} bytes flipped, {len(every) - len(missed)} found")
    assert not missed
    assert not named_blobs(tmp_path / "bad")


@pytest.mark.parametrize("kind", ["file", "memory", "tensors"])
def test_every_byte_in_every_form(
    tmp_path: Path, kind: str, seed: int, scale: Callable[[int, int], int], figure: Callable[[str], None]
) -> None:
    """What receives a shard: its digest tells, in order and with the second half first."""
    every = positions(scale(150, SIZE), seed)
    header = parse_header(CONTENT[PREFIX_BYTES:HEADER_STOP], file=SINGLE, file_size=SIZE)

    def make() -> Partial:
        if kind == "tensors":
            return TensorPartial(SIZE, "sha256", segments_of(header, ["w"]), in_order=False)
        if kind == "memory":
            return MemoryPartial(SIZE, "sha256", data_start=HEADER_STOP)
        return FilePartial(tmp_path / "x.asyncfetch.incomplete", SIZE, "sha256", identity="x")

    found = 0
    for position in (None, *every):
        data = bytearray(CONTENT)
        if position is not None:
            data[position] ^= 1 << position % 8
        partial = make()
        halves = [(0, data[: SIZE // 2]), (SIZE // 2, data[SIZE // 2 :])]
        for offset, half in halves if position is None or position % 2 else reversed(halves):
            partial.accept(offset, memoryview(half))
        while partial.catch_up():
            pass
        wrong = partial.digest() != SHA256
        if isinstance(partial, FilePartial):
            partial.discard()
        assert wrong is (position is not None), position
        found += wrong
    figure(f"{len(every)} of {SIZE} bytes flipped, {found} found")
