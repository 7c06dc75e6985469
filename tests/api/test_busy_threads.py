"""An application that keeps all of its threads busy holds up no call of ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from anyio import to_thread

import asyncfetch
from asyncfetch.tasks import off_loop

from ..kit.fault_server import FaultServer
from ..kit.small_model import FILES, TENSORS, same

Call = Callable[..., Awaitable[Any]]


async def into(source: str, **options: Any) -> dict[str, Any]:
    model = {name: np.zeros_like(array) for name, array in TENSORS.items()}
    await asyncfetch.load_into_async(model, source, **options)
    return model


async def opened(source: str, **options: Any) -> dict[str, Any]:
    async with asyncfetch.open_async(source, **options) as checkpoint:
        return {name: await checkpoint.tensor(name) for name in TENSORS}


async def streamed(source: str, **options: Any) -> dict[str, Any]:
    async with asyncfetch.stream_async(source, **options) as tensors:
        found = {name: array async for name, array in tensors}
    return {name: found[name] for name in TENSORS}  # they come in the order in which they are here


async def verified(source: str, **options: Any) -> dict[str, Any]:
    await asyncfetch.inspect_async(source, **options)
    await asyncfetch.dry_run_async(source, **options)
    state = await asyncfetch.load_async(source, verify="always", **options)
    assert all(file.ok is not False for file in await asyncfetch.verify_async(source, cache_dir=options["cache_dir"]))
    return state


@pytest.fixture(params=["repository", "web", "local"])
def source(request: pytest.FixtureRequest, server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "local":
        for name, content in FILES.items():
            (tmp_path / name).write_bytes(content)
        return str(tmp_path)
    if request.param == "web":
        server.web("/files", FILES)
        return f"{server.url}/files"
    server.hub("org/model", FILES)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    return "org/model"


@pytest.mark.anyio
@pytest.mark.parametrize("call", [into, opened, streamed, verified])
async def test_calls_need_no_thread_of_the_application(tmp_path: Path, source: str, call: Call) -> None:
    """Whatever the source, and whether it is cached: no step waits for one of anyio's default threads."""
    threads = to_thread.current_default_thread_limiter()
    holders = [object() for _ in range(int(threads.total_tokens))]
    for holder in holders:
        await threads.acquire_on_behalf_of(holder)
    try:
        for _ in range(2):
            with anyio.fail_after(30):
                assert same(await call(source, cache_dir=tmp_path / "cache", token=False))
    finally:
        for holder in holders:
            threads.release_on_behalf_of(holder)


@pytest.mark.anyio
async def test_what_is_slow_holds_up_nothing_short() -> None:
    """However many files are hashed at once, a lock is given back and a partial suspended."""
    release = anyio.Event()

    def hash_a_big_file() -> None:
        anyio.from_thread.run(release.wait)

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(lambda: off_loop(hash_a_big_file, slow=True))
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(30):
            assert await off_loop(lambda: "suspended") == "suspended"
        release.set()
