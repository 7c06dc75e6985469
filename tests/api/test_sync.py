"""The blocking twins: with no loop, inside running loops, in threads, and under Ctrl-C."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

import asyncfetch
from asyncfetch.errors import CheckpointNotFoundError
from asyncfetch.server import Server

from ..kit.child import interrupted
from ..kit.fault_server import LOOK, Drip, FaultServer
from ..kit.files import sharded, sharded_bytes

ROOT = Path(__file__).parents[2]
TENSORS = {f"t{n}": np.full(20_000, n, dtype=np.int32) for n in range(4)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = tmp_path / "models" / "org" / "model"
    folder.mkdir(parents=True)
    sharded(folder, TENSORS, shards=2)
    with Server(tmp_path / "models") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def right(tensors: dict[str, Any]) -> bool:
    return tensors.keys() == TENSORS.keys() and all(np.array_equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_without_a_loop(hub: Server) -> None:
    """Each twin, called plainly."""
    assert right(asyncfetch.load("org/model"))
    snapshot = asyncfetch.download("org/model")
    assert all(path.is_file() for path in snapshot.files.values())
    assert len(asyncfetch.dry_run("org/model").files) == 2
    assert len(asyncfetch.inspect("org/model").shards) == 2
    assert all(file.ok for file in asyncfetch.verify("org/model"))
    model = {name: np.zeros_like(tensor) for name, tensor in TENSORS.items()}
    asyncfetch.load_into(model, "org/model")
    assert right(model)


def test_inside_asyncio(hub: Server) -> None:
    """Called from a coroutine, as a notebook cell does."""

    async def cell() -> dict[str, Any]:
        return asyncfetch.load("org/model")

    assert right(asyncio.run(cell()))


def test_inside_trio(hub: Server) -> None:
    """Called from a trio task."""

    async def task() -> dict[str, Any]:
        return asyncfetch.load("org/model")

    assert right(trio.run(task))


def test_from_two_threads(hub: Server) -> None:
    """Two threads at once share the cache and get the same."""
    with ThreadPoolExecutor(2) as pool:
        assert all(right(tensors) for tensors in pool.map(asyncfetch.load, ["org/model"] * 2))


def test_an_error_comes_out_as_itself(hub: Server, tmp_path: Path) -> None:
    """The same class as from the coroutine."""
    (tmp_path / "models" / "org" / "bare").mkdir()
    (tmp_path / "models" / "org" / "bare" / "config.json").write_text("{}")
    with pytest.raises(CheckpointNotFoundError):
        asyncfetch.load("org/bare")


def test_ctrl_c(tmp_path: Path) -> None:
    """KeyboardInterrupt reaches the caller in half a second; what came stays for the next run."""
    big = {f"t{n}": np.zeros(4_000_000, dtype=np.uint8) for n in range(2)}
    code = (
        "import asyncfetch, os, sys, time\n"
        "def report(event):\n"
        "    if type(event).__name__ == 'FileProgress' and event.received > 500_000: print('going', flush=True)\n"
        "try:\n"
        "    asyncfetch.load('org/model', report=report)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', time.monotonic(), flush=True)\n"
    )
    with FaultServer() as server:
        repository = server.hub("org/model", sharded_bytes(big, 2))
        for path in repository.storage.values():
            server.fault(path, LOOK, Drip(65_536, 0.05), forever=True)
        seconds = interrupted(code, HF_ENDPOINT=server.url, HF_HUB_CACHE=str(tmp_path))
        assert not list(tmp_path.glob("models--org--model/refs/*"))
        assert not list(tmp_path.glob("models--org--model/snapshots/*/*.safetensors"))
        partials = list(tmp_path.glob("models--org--model/blobs/*.map.incomplete"))
        before = len(server.seen)
        for path in repository.storage.values():
            server.heal(path)
        tensors = asyncfetch.load("org/model", endpoint=server.url, cache_dir=tmp_path)
        again = sum(server.covered(path, before) for path in repository.storage.values())
    assert partials
    assert again < 8_000_000 - 400_000, "what came before the interrupt is not asked for again"
    assert all(not tensor.any() for tensor in tensors.values())
    assert seconds < 0.5


def test_in_a_cell_of_a_notebook(hub: Server) -> None:
    """Called where a loop runs already, the loop's own tasks go on afterwards, and the result can be awaited upon."""

    async def notebook() -> list[str]:
        seen: list[str] = []

        async def background() -> None:
            await asyncio.sleep(0)
            seen.append("background")

        task = asyncio.create_task(background())
        model = {name: np.zeros_like(tensor) for name, tensor in TENSORS.items()}
        asyncfetch.load_into(model, "org/model")
        assert right(model)
        seen.append("cell")
        await task
        assert right(await asyncfetch.load_async("org/model"))
        return seen

    assert asyncio.run(notebook()) == ["cell", "background"]


def test_signatures() -> None:
    """A twin has the parameters of its coroutine, and its own name."""
    for name in ("load", "download", "dry_run", "inspect", "verify", "load_into"):
        twin, original = getattr(asyncfetch, name), getattr(asyncfetch, f"{name}_async")
        assert inspect.signature(twin).parameters == inspect.signature(original).parameters
        assert not inspect.iscoroutinefunction(twin)
        assert twin.__name__ == name
        assert f"{name}_async" in twin.__doc__


def test_an_interrupt_inside_the_loop(hub: Server, tmp_path: Path) -> None:
    """A KeyboardInterrupt that strikes in the loop's own thread comes out as itself too."""

    def report(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncfetch.load("org/model", report=report, cache_dir=tmp_path / "cache")
