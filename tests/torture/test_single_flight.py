"""One process, several loads of one model at once: each byte is fetched once, and no load depends on another's fate."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import asyncfetch
from asyncfetch.sources.located import PREFIX_LIMIT

from ..kit.fault_server import LOOK, OK, QUICK, Drip, FaultServer, Stall
from ..kit.files import sharded_bytes
from .loaders import digest_of

_RANDOM = np.random.default_rng(29)
TENSORS = {f"layer.{n}": _RANDOM.integers(0, 255, 600_000, dtype=np.uint8) for n in range(3)}
FILES = sharded_bytes(TENSORS)
RIGHT = digest_of(TENSORS)
CAME = PREFIX_LIMIT + 150_000  # bytes of a shard that a load has when it is cancelled
POLICY = replace(QUICK, read_timeout=10.0, lock_patience=20.0)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """The model, slow enough that all loads are at it at the same time."""
    with FaultServer() as running:
        for path in running.hub("org/model", FILES).storage.values():
            running.fault(path, Drip(16_384, 0.02), forever=True)
        yield running


def options(server: FaultServer, cache: Path) -> dict[str, Any]:
    return {"endpoint": server.url, "cache_dir": cache, "token": False, "policy": POLICY}


def sent_twice(server: FaultServer) -> int:
    """Bytes beyond the prefixes that were sent more than once. Each was sent at least once."""
    twice = 0
    for path in storage(server):
        counts = server.times_sent(path)
        assert counts.min() >= 1
        twice += int((counts[PREFIX_LIMIT:] - 1).sum())
    return twice


def storage(server: FaultServer) -> list[str]:
    """The paths of the shards."""
    return [path for path, resource in server.resources.items() if resource.second]


def under_way(server: FaultServer) -> bool:
    """Whether each shard is being received beyond its prefix."""
    return all(server.sent(path) > PREFIX_LIMIT + 100_000 for path in storage(server))


def came(server: FaultServer, cache: Path) -> bool:
    """Whether the first `CAME` bytes of each shard are in its partial file."""
    here = {partial.read_bytes()[:CAME] for partial in cache.glob("models--*/blobs/*.incomplete")}
    return all(server.resources[path].body[:CAME] in here for path in storage(server))


@pytest.mark.anyio
async def test_tasks(server: FaultServer, tmp_path: Path) -> None:
    """Three tasks of one loop."""
    digests: list[str] = []

    async def load() -> None:
        digests.append(digest_of(await asyncfetch.load_async("org/model", **options(server, tmp_path))))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(load)
    assert digests == [RIGHT] * 3
    assert sent_twice(server) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("who", ["leader", "waiter"])
async def test_one_task_is_cancelled(server: FaultServer, tmp_path: Path, who: str) -> None:
    """The other goes on; of a cancelled leader it takes over all that came, so that no byte comes twice."""
    if who == "leader":  # whose server says no more after a part, so that nothing is in flight when it is cancelled
        for path in storage(server):
            server.heal(path)
            server.fault(path, LOOK, Stall(CAME - PREFIX_LIMIT), OK, forever=True)
    scopes = {"leader": anyio.CancelScope(), "waiter": anyio.CancelScope()}
    digests: dict[str, str] = {}

    async def load(name: str) -> None:
        with scopes[name]:
            digests[name] = digest_of(await asyncfetch.load_async("org/model", **options(server, tmp_path)))

    with anyio.fail_after(POLICY.lock_patience / 2):
        async with anyio.create_task_group() as group:
            group.start_soon(load, "leader")
            await anyio.to_thread.run_sync(server.wait_for, lambda: under_way(server) and came(server, tmp_path), 9)
            group.start_soon(load, "waiter")
            await anyio.sleep(0.15)
            scopes[who].cancel()
    (left,) = {"leader", "waiter"} - {who}
    assert digests == {left: RIGHT}
    assert sent_twice(server) == 0


@pytest.mark.parametrize("how", ["the blocking twins", "loops of their own"])
def test_threads(server: FaultServer, tmp_path: Path, how: str) -> None:
    """Two threads, by the blocking twins or each with an event loop of its own kind."""

    async def load() -> dict[str, Any]:
        return await asyncfetch.load_async("org/model", **options(server, tmp_path))

    works: list[Callable[[], dict[str, Any]]] = [lambda: asyncfetch.load("org/model", **options(server, tmp_path))] * 2
    if how != "the blocking twins":
        works = [lambda: anyio.run(load, backend="trio"), lambda: anyio.run(load)]
    with ThreadPoolExecutor(2) as pool:
        assert [digest_of(state) for state in pool.map(lambda work: work(), works)] == [RIGHT] * 2
    assert sent_twice(server) == 0


@pytest.mark.timeout(900)
def test_many_with_cancellations(
    server: FaultServer, tmp_path: Path, seed: int, scale: Callable[[int, int], int], figure: Callable[[str], None]
) -> None:
    """Tasks of two loops, cancelled at random times while others wait: who is left ends right, within its bound."""
    choose = random.Random(seed)
    rounds = scale(2, 60)
    cancelled = 0
    for turn in range(rounds):
        fates = [choose.uniform(0.0, 0.6) if choose.random() < 0.6 else None for _ in range(6)]
        outcomes: list[tuple[float | None, str]] = []

        async def one(fate: float | None, cache: Path, outcomes: list[tuple[float | None, str]]) -> None:
            with anyio.move_on_after(30 if fate is None else fate):
                state = await asyncfetch.load_async("org/model", **options(server, cache))
                outcomes.append((fate, digest_of(state)))

        async def some(
            fates: list[float | None], cache: Path, outcomes: list[tuple[float | None, str]], one: Any = one
        ) -> None:
            async with anyio.create_task_group() as group:
                for fate in fates:
                    group.start_soon(one, fate, cache, outcomes)

        cache = tmp_path / str(turn)
        other = threading.Thread(target=anyio.run, args=(some, fates[3:], cache, outcomes))
        other.start()
        anyio.run(some, fates[:3], cache, outcomes, backend=choose.choice(["asyncio", "trio"]))
        other.join()
        assert all(digest == RIGHT for _, digest in outcomes)
        assert sum(fate is None for fate, _ in outcomes) == fates.count(None)
        cancelled += 6 - len(outcomes)
        if outcomes:
            assert not list(cache.glob("models--*/blobs/*incomplete"))
    figure(f"{rounds} rounds of 6 tasks, {cancelled} cancelled, all others right")
