"""The two ways that once led to wrong values without an error, over and over: on each event loop, and from threads.

    scripts/torture -k wrong_values        a hundred times each

A number of a descriptor that a block has given back is the next opened file's; and who looks for the end of
a head in the body (lines that end with a bare LF) loses bytes of it. Nothing here has a hash that would tell:
right bytes, or an error of ours.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import AsyncfetchError, SourceError

from ..kit.fault_server import OK, Drip, FaultServer, Lines
from ..kit.files import safetensors_bytes
from ..kit.small_model import CALM, SINGLE

Scale = Callable[[int, int], int]
NEWLINES = (("\n",), ("\n", "\r\n"), ("\r\n", "\n"), ("\r\n", "\r\n", "\n"))


@pytest.fixture
def model(tmp_path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Two tensors of ones in a file, and beside it a file of the same size of zeros."""
    tensors = {name: np.ones(400_000, np.uint8) for name in ("a", "b")}
    (tmp_path / SINGLE).write_bytes(safetensors_bytes(tensors))
    (tmp_path / "zeros").write_bytes(bytes(os.path.getsize(tmp_path / SINGLE)))
    return tensors


def take_numbers(folder: Path) -> list[int]:
    """Open files of zeros: they get the numbers that are free."""
    return [os.open(folder / "zeros", os.O_RDONLY) for _ in range(8)]


def close(numbers: list[int]) -> None:
    for number in numbers:
        os.close(number)


@pytest.mark.anyio
async def test_wrong_values_by_a_descriptor(tmp_path: Path, model: dict[str, Any], seed: int, scale: Scale) -> None:
    """The block ends at any moment of reads in other tasks, and somebody opens files at once."""
    chance, policy = random.Random(seed), replace(CALM, connections=2, burst=20_000)
    told = {"right": 0, "closed": 0}

    async def read(checkpoint: Any, name: str) -> None:
        try:
            array = await checkpoint.tensor(name)
        except SourceError:
            told["closed"] += 1
        else:
            assert np.array_equal(array, model[name])
            told["right"] += 1

    for _ in range(scale(25, 100)):
        numbers: list[int] = []
        async with anyio.create_task_group() as group:
            async with asyncfetch.open_async(tmp_path / SINGLE, policy=policy) as checkpoint:
                for name in ("a", "b", "a"):
                    group.start_soon(read, checkpoint, name)
                for _ in range(chance.randrange(30)):
                    await anyio.lowlevel.checkpoint()
            numbers += take_numbers(tmp_path)
        close(numbers)
    assert told["closed"] + told["right"] == 3 * scale(25, 100)


def test_wrong_values_by_a_descriptor_in_threads(
    tmp_path: Path, model: dict[str, Any], seed: int, scale: Scale
) -> None:
    """A blocking checkpoint is closed by one thread while others read in it."""
    chance, policy, wrong = random.Random(seed), replace(CALM, burst=20_000), list[object]()

    def read(checkpoint: Any, name: str, began: threading.Event) -> None:
        began.set()
        try:
            array = checkpoint.tensor(name)
        except SourceError:
            return
        except BaseException as error:
            wrong.append(error)
            raise
        if not np.array_equal(array, model[name]):
            wrong.append(name)

    for _ in range(scale(10, 100)):
        checkpoint = asyncfetch.open(tmp_path / SINGLE, policy=policy)
        began = [threading.Event() for _ in range(2)]
        threads = [
            threading.Thread(target=read, args=(checkpoint, name, event))
            for name, event in zip(("a", "b"), began, strict=True)
        ]
        for thread in threads:
            thread.start()
        for event in began[: chance.randrange(3)]:
            event.wait()
        checkpoint.close()
        numbers = take_numbers(tmp_path)
        for thread in threads:
            thread.join()
        close(numbers)
    assert wrong == []


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def odd_body(chance: random.Random) -> tuple[np.ndarray[Any, Any], bytes]:
    """A tensor with the end of a head in it, anywhere: here and there, about where a read ends, everywhere."""
    data = np.frombuffer(chance.randbytes(chance.randrange(1, 200_000)), np.uint8).copy()
    end = np.frombuffer(b"\r\n\r\n", np.uint8)
    size = len(data)
    for at in [chance.randrange(size) for _ in range(chance.choice((0, 1, 3)))] + [
        at + chance.randrange(-90, 3) for at in (0, 16_384, 65_536, 131_072)
    ]:
        if 0 <= at <= size - 4:
            data[at : at + 4] = end
    if not chance.randrange(4):
        data = np.resize(end, size)
    return data, safetensors_bytes({"w": data})


def serve_oddly(server: FaultServer, number: int, chance: random.Random) -> tuple[str, np.ndarray[Any, Any]]:
    """A file whose every answer has a head with bare line feeds, sent in pieces of any size."""
    data, body = odd_body(chance)
    url = server.web(f"/{number}", {SINGLE: body})
    lines, pace = Lines(*chance.choice(NEWLINES)), Drip(chance.randrange(2000, 70_000), 0.0002)
    server.fault(f"/{number}/{SINGLE}", (lines, chance.choice((OK, pace))), forever=True)
    return url + SINGLE, data


@pytest.mark.anyio
async def test_wrong_values_by_a_head(server: FaultServer, tmp_path: Path, seed: int, scale: Scale) -> None:
    """The bytes of the body are the right ones, wherever in it something looks like the end of a head."""
    chance = random.Random(seed)
    for number in range(scale(25, 100)):
        url, data = serve_oddly(server, number, chance)
        storage = chance.choice(("disk", "memory"))
        with anyio.fail_after(60):
            state = await asyncfetch.load_async(url, cache_dir=tmp_path / "cache", storage=storage, policy=CALM)
        assert np.array_equal(state["w"], data)


def test_wrong_values_by_a_head_in_threads(server: FaultServer, tmp_path: Path, seed: int, scale: Scale) -> None:
    """The same, by blocking calls in several threads at once."""
    wrong: list[object] = []

    def work(thread: int) -> None:
        chance = random.Random(seed + thread)
        for number in range(scale(8, 100)):
            url, data = serve_oddly(server, 1000 * thread + number, chance)
            try:
                state = asyncfetch.load(url, cache_dir=tmp_path / "cache", policy=CALM)
            except AsyncfetchError as error:
                wrong.append(error)
            else:
                if not np.array_equal(state["w"], data):
                    wrong.append(url)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
