"""Work that asyncio's own cancellation does not cut in two."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from anyio import to_thread

import asyncfetch
from asyncfetch.engine import bookkeeping
from asyncfetch.models import into as models
from asyncfetch.tasks import each, run_as_task, without_collections

from .conftest import BACKENDS
from .kit.files import sharded

TENSORS = {f"t{n}": np.full(20_000, n, dtype=np.int32) for n in range(4)}


@pytest.mark.anyio
async def test_each_begins_only_so_many() -> None:
    """Of a thousand shards, few wait for a connection at a time: each that waits is looked at when one is free."""
    running = most = 0

    async def work(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1

    await each(range(1000), work, 7)
    assert (running, most) == (0, 7)


@pytest.mark.anyio
async def test_results_and_errors() -> None:
    """What the work returns comes back; what it raises comes out as itself, and holds nothing in a cycle."""

    class Thing:
        pass

    async def work(error: BaseException | None) -> Thing:
        await anyio.lowlevel.checkpoint()
        if error is not None:
            raise error
        return Thing()

    assert isinstance(await run_as_task(lambda: work(None)), Thing)
    for error in (ValueError("its own"), ExceptionGroup("a group", [ValueError()]), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            await run_as_task(lambda: work(error))  # noqa: B023
        assert caught.value is error


@pytest.mark.anyio
async def test_a_cancelled_result_is_freed() -> None:
    """A result that came too late is not kept alive by the traceback of the cancellation."""

    class Thing:
        pass

    things = []

    async def work() -> Thing:
        thing = Thing()
        things.append(weakref.ref(thing))
        scope.cancel()
        return thing

    gc.disable()
    try:
        with anyio.CancelScope() as scope:
            await run_as_task(work)
            await anyio.sleep(1)
        assert scope.cancelled_caught
        await anyio.lowlevel.checkpoint()
        assert things[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("collects", [True, False])
def test_without_collections(collects: bool) -> None:
    """Blocks may overlap, in threads or not; after the last one it is as it was before the first."""
    assert gc.isenabled()
    try:
        if not collects:
            gc.disable()
        second = ExitStack()
        with suppress(ValueError), without_collections():
            second.enter_context(without_collections())
            assert not gc.isenabled()
            raise ValueError
        assert not gc.isenabled()
        second.close()
        assert gc.isenabled() is collects
    finally:
        gc.enable()


@pytest.mark.parametrize("anyio_backend", BACKENDS[:2])  # trio has no other cancellation than by scopes
@pytest.mark.anyio
@pytest.mark.parametrize("strikes", [1, 3])
async def test_a_thread_and_the_clean_up_end_first(strikes: int) -> None:
    """However often `Task.cancel` strikes: control is back after the thread's work and the shielded clean-up."""
    steps: list[str] = []
    started = threading.Event()

    def write() -> None:
        started.set()
        time.sleep(0.1)
        steps.append("written")

    async def work() -> None:
        try:
            await to_thread.run_sync(write)
            await anyio.sleep(1)
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(steps.append, "tidied")

    task = asyncio.ensure_future(run_as_task(work))
    await to_thread.run_sync(started.wait)
    for _ in range(strikes):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["written", "tidied"]


@pytest.mark.parametrize("anyio_backend", BACKENDS[:2])
@pytest.mark.anyio
@pytest.mark.parametrize("where", ["the look", "the model"])
async def test_nothing_is_written_after_a_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A time-out of asyncio's own strikes while a thread writes: when control is back, the thread has ended."""
    sharded(tmp_path / "model", TENSORS, shards=2)
    owner, name = (models.Loading, "finish") if where == "the model" else (bookkeeping, "file_states")
    working = threading.Event()
    original: Any = getattr(owner, name)
    done = []

    def slow(*arguments: Any, **options: Any) -> Any:
        working.set()
        time.sleep(0.3)
        result = original(*arguments, **options)
        done.append(name)
        return result

    monkeypatch.setattr(owner, name, slow)
    if where != "the model":
        monkeypatch.setattr("asyncfetch.api.session.file_states", slow)
    target = {name: np.zeros_like(tensor) for name, tensor in TENSORS.items()}
    task = asyncio.ensure_future(asyncfetch.load_into_async(target, tmp_path / "model"))
    await to_thread.run_sync(working.wait)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(task, 0.01)
    assert done
    assert all(np.array_equal(target[key], TENSORS[key]) for key in target) or not any(map(np.any, target.values()))
