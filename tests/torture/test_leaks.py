"""A thousand downloads, cancellations and failures in one process: it holds no more than after the first few."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

import asyncfetch
from asyncfetch.errors import ChecksumMismatchError, ServerError

from ..conftest import BACKENDS
from ..kit.fault_server import QUICK
from .leaks import Held, resident, settle
from .loaders import digest_of
from .served import hub_process, model

SEED, NBYTES = 37, 600_000
MiB = 1 << 20
RIGHT = digest_of(model(SEED, NBYTES))
POLICY = replace(QUICK, attempts=2, read_timeout=5.0)
GROWTH = 4 * MiB  # of memory, from a fifth of the runs to the last; a few runs alone vary by more

Once = Callable[[Any, Path], Awaitable[None]]
Scale = Callable[[int, int], int]
Figure = Callable[[str], None]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """pytest keeps each line that is logged, at DEBUG some 100 KiB for a download: that is no leak of ours."""
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def hub() -> Iterator[Any]:
    with hub_process() as running:
        for number, repo in enumerate(("org/model", "org/slow", "org/broken", "org/corrupt")):
            running.serve(repo, SEED + number, NBYTES)  # other bytes: storage tells files apart by their hash
        running.drip("org/slow", 8192, 0.005)
        running.fail("org/broken", 503)
        running.corrupt("org/corrupt", 100_000)
        yield running


def options(hub: Any, cache: Path) -> dict[str, Any]:
    return {"endpoint": hub.url(), "cache_dir": cache, "token": False, "policy": POLICY}


async def downloaded(hub: Any, cache: Path) -> None:
    assert digest_of(await asyncfetch.load_async("org/model", **options(hub, cache))) == RIGHT


async def cancelled(hub: Any, cache: Path) -> None:
    with anyio.move_on_after(random.uniform(0.0, 0.1)):
        await asyncfetch.load_async("org/slow", **options(hub, cache))


async def failed(hub: Any, cache: Path) -> None:
    with pytest.raises(ServerError):
        await asyncfetch.load_async("org/broken", **options(hub, cache))


async def corrupted(hub: Any, cache: Path) -> None:
    with pytest.raises(ChecksumMismatchError):
        await asyncfetch.load_async("org/corrupt", **options(hub, cache))


async def opened(hub: Any, cache: Path) -> None:
    async with asyncfetch.open_async("org/model", **options(hub, cache)) as checkpoint:
        await checkpoint.tensor("layer.3")


async def half_streamed(hub: Any, cache: Path) -> None:
    async with asyncfetch.stream_async("org/slow", storage="memory", early=True, **options(hub, cache)) as tensors:
        await anext(tensors)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("once", [downloaded, cancelled, failed, corrupted, opened, half_streamed])
def test_of_coroutines(
    hub: Any, once: Once, backend: tuple[str, dict[str, object]], tmp_path: Path, scale: Scale, figure: Figure
) -> None:
    """Within one loop, descriptors and tasks stay the same; after it, threads too; memory does not grow."""
    name, backend_options = backend
    count = scale(5, 340)  # of each on three kinds of loop: a thousand
    memory: list[int] = []

    async def run() -> None:
        for _ in range(5):
            await once(hub, tmp_path / "warm")
            shutil.rmtree(tmp_path / "warm", ignore_errors=True)
        gc.collect()
        before = Held()
        for turn in range(count):
            await once(hub, tmp_path / str(turn))
            assert "socket" not in Held().beyond(before), f"after {turn + 1} runs"
            shutil.rmtree(tmp_path / str(turn), ignore_errors=True)
            if turn + 1 in (count // 5, count):
                memory.append(resident())
        left = Held().beyond(before)
        # The loop's own workers, as many as ever worked at once: that they end with it is seen below.
        assert not {what for what in left if what not in ("AnyIO worker thread", "asyncio")}, left
        assert left.get("AnyIO worker thread", 0) < 20

    anyio.run(anyio.sleep, 0, backend=name, backend_options=backend_options)  # what a kind of loop keeps for all
    settle()
    before = Held()
    anyio.run(run, backend=name, backend_options=backend_options)
    settle()
    assert not Held().beyond(before)
    growth = memory[-1] - memory[0]
    figure(f"{count} times: nothing held, memory {growth / 1024:+,.0f} KiB from run {count // 5} on")
    assert growth < scale(8, 1) * GROWTH


def twin_downloaded(hub: Any, cache: Path) -> None:
    assert digest_of(asyncfetch.load("org/model", **options(hub, cache))) == RIGHT


def twin_failed(hub: Any, cache: Path) -> None:
    with pytest.raises(ServerError):
        asyncfetch.load("org/broken", **options(hub, cache))


def twin_opened(hub: Any, cache: Path) -> None:
    with asyncfetch.open("org/model", **options(hub, cache)) as checkpoint:
        checkpoint.tensor("layer.3")


def twin_half_streamed(hub: Any, cache: Path) -> None:
    with asyncfetch.stream("org/slow", early=True, **options(hub, cache)) as tensors:
        next(tensors)


def twin_left_by_an_error(hub: Any, cache: Path) -> None:
    with suppress(KeyError), asyncfetch.stream("org/slow", storage="memory", **options(hub, cache)) as tensors:
        next(tensors)
        raise KeyError


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("once", [twin_downloaded, twin_failed, twin_opened, twin_half_streamed, twin_left_by_an_error])
def test_of_the_blocking_twins(
    hub: Any, once: Callable[[Any, Path], None], tmp_path: Path, scale: Scale, figure: Figure
) -> None:
    """Each call ends the thread and the loop that it began; memory does not grow."""
    count = scale(5, 300)
    for _ in range(5):
        once(hub, tmp_path / "warm")
        shutil.rmtree(tmp_path / "warm", ignore_errors=True)
    settle()
    gc.collect()
    before = Held()
    memory: list[int] = []
    for turn in range(count):
        once(hub, tmp_path / str(turn))
        shutil.rmtree(tmp_path / str(turn), ignore_errors=True)
        if turn + 1 in (count // 5, count):
            memory.append(resident())
    settle()
    gc.collect()
    assert not Held().beyond(before)
    growth = memory[-1] - memory[0]
    figure(f"{count} times: nothing held, memory {growth / 1024:+,.0f} KiB from run {count // 5} on")
    assert growth < scale(8, 1) * GROWTH


def test_a_leak_is_seen(tmp_path: Path) -> None:
    """The measure itself: a descriptor, a socket, a task and memory that are held show."""

    async def run() -> None:
        before = Held()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            await anyio.lowlevel.checkpoint()
            descriptor = os.open(tmp_path / "file", os.O_CREAT)
            with anyio.from_thread.start_blocking_portal():
                found = Held().beyond(before)
            os.close(descriptor)
            group.cancel_scope.cancel()
        assert found["tasks"] == 1
        assert found[str(tmp_path / "file")] == 1
        assert found["socket"] == 2  # of the portal's loop
        assert any("portal" in what for what in found), found

    anyio.run(run)
    before = resident()
    kept = list(itertools.repeat(bytearray(MiB), 1)) + [bytearray(b"x" * MiB) for _ in range(8)]
    assert resident() - before > 6 * MiB
    assert kept
