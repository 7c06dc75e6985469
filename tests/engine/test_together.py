"""Loads of one source at once, of whose files nobody tells a hash: one of them brings each file for all."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncfetch
from asyncfetch.events import Event, Finished, Waiting
from asyncfetch.sources.located import PREFIX_LIMIT

from ..kit.fault_server import LOOK, QUICK, Answer, FaultServer
from ..kit.files import safetensors_bytes, sharded_bytes
from ..kit.users import ROOT

SINGLE = "model.safetensors"
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
OLD = {f"layer.{n}.weight": np.full(70_000, n + 1, np.float32) for n in range(4)}
NEW = {name: -value for name, value in OLD.items()}
CALM = replace(QUICK, connections=1, min_split=1 << 30, read_timeout=30, lock_patience=30)  # what is held comes late

_CHILD = """
import sys, asyncfetch
from asyncfetch.events import Finished, Waiting
url, cache = sys.argv[1:]
def report(event):
    if isinstance(event, Waiting):
        print("waits", flush=True)
    if isinstance(event, Finished):
        print("downloaded", event.downloaded, flush=True)
state = asyncfetch.load(url, cache_dir=cache, token=False, report=report)
print("sum", sum(float(tensor.sum()) for tensor in state.values()), flush=True)
"""


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(6) as running:
        yield running


class Held:
    """Holds the bytes of a file back, at the server, until it is let go."""

    def __init__(self, server: FaultServer, path: str) -> None:
        self.begun, self._go = threading.Event(), threading.Event()
        server.fault(path, LOOK, self._hold)

    def _hold(self, answer: Answer) -> Answer:
        self.begun.set()
        assert self._go.wait(30)
        return answer

    @contextmanager
    def until_the_end_of_the_block(self) -> Iterator[None]:
        try:
            assert self.begun.wait(20)
            yield
        finally:
            self._go.set()


class Loading:
    """A load in a thread, and what it tells."""

    def __init__(self, pool: ThreadPoolExecutor, url: str, cache: Path, **options: Any) -> None:
        self.waits, self.events = threading.Event(), list[Event]()
        options = {"cache_dir": cache, "token": False, "policy": CALM, "report": self._hear, **options}
        self._future: Future[Any] = pool.submit(asyncfetch.load, url, **options)

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Waiting):
            self.waits.set()

    @property
    def state(self) -> dict[str, Any]:
        return dict(self._future.result(30))

    @property
    def downloaded(self) -> int:
        self._future.result(30)
        return sum(event.downloaded for event in self.events if isinstance(event, Finished))


def same(state: dict[str, Any], tensors: dict[str, Any]) -> bool:
    return state.keys() == tensors.keys() and all(np.array_equal(state[name], tensors[name]) for name in tensors)


def times(server: FaultServer, path: str) -> set[int]:
    """How often the bytes of a file were sent that no look at it brings."""
    return set(server.times_sent(path)[PREFIX_LIMIT:].tolist())


def the_second_waits(server: FaultServer, pool: ThreadPoolExecutor, url: str, cache: Path) -> None:
    """Two loads, of which one waits for what the other brings: both get it."""
    held = Held(server, f"/models/{SINGLE}")
    first = Loading(pool, url, cache)
    with held.until_the_end_of_the_block():
        second = Loading(pool, url, cache)
        assert second.waits.wait(20)
    assert same(first.state, OLD)
    assert same(second.state, OLD)


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_calls_of_one_process(server: FaultServer, pool: ThreadPoolExecutor, tmp_path: Path, folder: bool) -> None:
    """Who waits for a file finds it as soon as it is here, by what the server told of its version."""
    files = sharded_bytes(OLD, 2) if folder else {SINGLE: safetensors_bytes(OLD)}
    url = server.web("/models", files) + ("" if folder else SINGLE)
    paths = [f"/models/{name}" for name in files if name.endswith(".safetensors")]
    held = Held(server, paths[0])
    first = Loading(pool, url, tmp_path)
    with held.until_the_end_of_the_block():
        others = [Loading(pool, url, tmp_path) for _ in range(3)]
        assert all(other.waits.wait(20) for other in others)
    assert all(same(loading.state, OLD) for loading in (first, *others))
    assert [times(server, path) for path in paths] == [{1}] * len(paths)
    if not folder:
        assert [other.downloaded for other in others] == [0, 0, 0]


def test_processes(server: FaultServer, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    """The same between processes, as ranks of one job are, and with Last-Modified alone."""
    when = "Tue, 02 Jan 2024 03:04:05 GMT"
    url = server.web("/models", {SINGLE: safetensors_bytes(OLD)}, etag="", last_modified=when) + SINGLE
    held = Held(server, f"/models/{SINGLE}")
    first = Loading(pool, url, tmp_path)
    ranks: list[subprocess.Popen[str]] = []
    try:
        with held.until_the_end_of_the_block():
            command = [sys.executable, "-c", _CHILD, url, str(tmp_path)]
            ranks += [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
            for rank in ranks:
                assert rank.stdout is not None
                assert rank.stdout.readline() == "waits\n"
        expected = sum(float(tensor.sum()) for tensor in OLD.values())
        for rank in ranks:
            assert rank.communicate(timeout=30)[0].splitlines() == ["downloaded 0", f"sum {expected}"]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert same(first.state, OLD)
    assert times(server, f"/models/{SINGLE}") == {1}


def test_a_part_and_the_whole(server: FaultServer, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Snapshots of two selections are two: a file of one is linked into the other, and only the rest comes."""
    url = server.web("/models", sharded_bytes(OLD, 2))
    held = Held(server, f"/models/{A}")
    part = Loading(pool, url, tmp_path, select="layer.[02].weight")
    with held.until_the_end_of_the_block():
        whole = Loading(pool, url, tmp_path)
        assert whole.waits.wait(20)
    assert sorted(part.state) == ["layer.0.weight", "layer.2.weight"]
    assert same(whole.state, OLD)
    assert times(server, f"/models/{A}") == times(server, f"/models/{B}") == {1}
    blobs = [path for path in tmp_path.glob("models--*/blobs/*") if path.stat().st_size > PREFIX_LIMIT]
    assert len(blobs) == 2


def test_without_links(
    server: FaultServer, pool: ThreadPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a snapshot holds the files themselves, who waited takes it from there."""
    monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "1")
    url = server.web("/models", {SINGLE: safetensors_bytes(OLD)}) + SINGLE
    the_second_waits(server, pool, url, tmp_path)
    assert times(server, f"/models/{SINGLE}") == {1}


def test_the_file_changes_between_two_loads(server: FaultServer, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Another version is another file, of the same size and at the same time: nobody waits for it, or gets it."""
    url = server.web("/models", {SINGLE: safetensors_bytes(OLD)}) + SINGLE
    held = Held(server, f"/models/{SINGLE}")
    first = Loading(pool, url, tmp_path)
    with held.until_the_end_of_the_block():
        server.web("/models", {SINGLE: safetensors_bytes(NEW)})
        second = Loading(pool, url, tmp_path)
        assert same(second.state, NEW)
        assert not second.waits.is_set()
    assert same(first.state, OLD)
    third = Loading(pool, url, tmp_path)
    assert same(third.state, NEW)
    assert third.downloaded == 0
    newest = {name: value * 3 for name, value in OLD.items()}
    server.web("/models", {SINGLE: safetensors_bytes(newest)})
    assert same(Loading(pool, url, tmp_path).state, newest)


def test_a_server_that_tells_no_version(server: FaultServer, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Nothing tells that what is here is what was found: so each load brings its own."""
    url = server.web("/models", {SINGLE: safetensors_bytes(OLD)}, etag="") + SINGLE
    the_second_waits(server, pool, url, tmp_path)
    assert times(server, f"/models/{SINGLE}") == {2}
    server.web("/models", {SINGLE: safetensors_bytes(NEW)}, etag="")
    assert same(Loading(pool, url, tmp_path).state, NEW)
