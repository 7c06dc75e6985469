"""Several processes want one model: locks that work, that lie, whose holder sleeps, whose holder is killed."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asyncfetch.sources.located import PREFIX_LIMIT

from ..kit.fault_server import LOOK, OK, QUICK, Drip, FaultServer, Repository
from ..kit.files import sharded_bytes
from .loaders import Job, Loader, digest_of

PROCESSES = 8
_RANDOM = np.random.default_rng(17)
TENSORS = {f"layer.{n}": _RANDOM.integers(0, 255, 450_000, dtype=np.uint8) for n in range(3)}  # too small to share
FILES = sharded_bytes(TENSORS)
RIGHT = digest_of(TENSORS)
PATIENT = replace(QUICK, lock_patience=20.0, read_timeout=10.0)
HASTY = replace(PATIENT, lock_patience=0.5)

Figure = Callable[[str], None]
Scale = Callable[[int, int], int]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def hub(server: FaultServer) -> Repository:
    """The model, its shards slow enough that all processes are at it at the same time."""
    repository = server.hub("org/model", FILES)
    for path in repository.storage.values():
        server.fault(path, Drip(16_384, 0.01), forever=True)
    return repository


def storage_of(repository: Repository) -> dict[str, int]:
    """The size of each shard, by the path at which storage serves it."""
    return {path: len(repository.files[name]) for name, path in repository.storage.items()}


def leftovers(cache: Path) -> list[str]:
    return [file.name for file in cache.glob("models--*/blobs/*") if "incomplete" in file.name]


class Watch:
    """Opens each blob when it appears, and tells in the end which of them were changed after that.

    `changed` have other bytes, or wrong ones from the start; `touched` were written to. `replaced` counts
    shards whose names were given to another file: who has the first one open or mapped keeps it, but it is waste.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._seen: dict[tuple[str, int], tuple[int, os.stat_result, str]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.changed: list[str] = []
        self.touched: list[str] = []
        self.replaced = 0

    def _run(self) -> None:
        while not self._ended.wait(0.0005):
            self._look()

    def _look(self) -> None:
        for path in self._cache.glob("models--*/blobs/*"):
            if "incomplete" in path.name or (path.name, path.stat().st_ino) in self._seen:
                continue
            descriptor = os.open(path, os.O_RDONLY)
            status = os.fstat(descriptor)
            self._seen[path.name, status.st_ino] = (descriptor, status, _hash_of(descriptor))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for (name, _), (descriptor, before, digest) in self._seen.items():
            now = os.fstat(descriptor)
            if (before.st_size, before.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
                self.touched.append(name)
            if digest != _hash_of(descriptor) or (len(name) == 64 and digest != name):
                self.changed.append(name)
            os.close(descriptor)
        shards = [name for name, _ in self._seen if len(name) == 64]  # the index is small and not locked
        self.replaced = len(shards) - len(set(shards))

    @property
    def blobs(self) -> int:
        return len({name for name, _ in self._seen})


def _hash_of(descriptor: int) -> str:
    return hashlib.sha256(os.pread(descriptor, 1 << 30, 0)).hexdigest()


@contextmanager
def loaders(number: int, job: Job) -> Iterator[list[Loader]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Loader(job)) for _ in range(number)]


@pytest.mark.timeout(600)
def test_at_once(server: FaultServer, tmp_path: Path, scale: Scale, figure: Figure) -> None:
    """All get the right tensors; beyond the prefixes, which each reads to judge the headers, no byte is sent twice."""
    repository = hub(server)
    rounds = scale(1, 25)
    for turn in range(rounds):
        server.seen.clear()
        cache = tmp_path / str(turn)
        with Watch(cache) as watch, loaders(PROCESSES, Job(server.url, str(cache), policy=PATIENT)) as running:
            for loader in running:
                loader.begin()
            assert [loader.result(30) for loader in running] == [RIGHT] * PROCESSES
        assert not watch.changed
        assert not watch.touched
        assert (watch.blobs, watch.replaced) == (len(FILES), 0)
        assert not leftovers(cache)
        for path in storage_of(repository):
            counts = server.times_sent(path)
            assert (counts[PREFIX_LIMIT:] == 1).all()
            assert counts[:PREFIX_LIMIT].max() <= PROCESSES
    figure(f"{rounds} rounds of {PROCESSES} processes: all right, each byte beyond the prefixes was sent once")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("locks", ["none", "host"])
def test_locks_that_lie(server: FaultServer, tmp_path: Path, locks: str, scale: Scale, figure: Figure) -> None:
    """Locks that are granted to all, or held on one host only: right results, and blobs that stay as they are.

    In the second case two hosts may write the same bytes to one file, and one of them still does so when
    the other has published it: the bytes stay the same, its time does not.
    """
    repository = hub(server)
    rounds = scale(2, 25)
    replaced = sent = 0
    for turn in range(rounds):
        cache = tmp_path / str(turn)
        with Watch(cache) as watch, loaders(PROCESSES, Job(server.url, str(cache), locks, policy=PATIENT)) as running:
            for loader in running:
                loader.begin()
                time.sleep(0.02 * (turn % 2))  # at once; and each into the middle of what the one before does
            assert [loader.result(30) for loader in running] == [RIGHT] * PROCESSES
        assert not watch.changed
        assert locks == "host" or not watch.touched
        assert watch.blobs == len(FILES)
        assert not leftovers(cache)
        replaced += watch.replaced
    sent = sum(server.sent(path) for path in repository.storage.values())
    whole = rounds * sum(storage_of(repository).values())
    figure(f"{rounds} rounds of {PROCESSES}: 0 wrong, {replaced} blobs replaced, {sent / whole:.1f} x the bytes")


@pytest.mark.timeout(600)
def test_a_holder_that_is_stopped(server: FaultServer, tmp_path: Path, scale: Scale, figure: Figure) -> None:
    """The others wait for the policy's bound, do without it, and are not disturbed when it goes on and ends."""
    repository = hub(server)
    first = next(iter(repository.storage.values()))
    waits, replaced = [], 0
    for turn in range(scale(1, 15)):
        cache = tmp_path / str(turn)
        server.seen.clear()
        job = Job(server.url, str(cache), policy=HASTY)
        with Watch(cache) as watch, Loader(job) as holder, loaders(PROCESSES - 1, job) as others:
            holder.begin()
            server.wait_for(lambda: server.sent(first) > 2 * PREFIX_LIMIT, 20)
            holder.stop()
            began = time.monotonic()
            for loader in others:
                loader.begin()
            assert [loader.result(30) for loader in others] == [RIGHT] * (PROCESSES - 1)
            waits.append(time.monotonic() - began)
            assert holder.running
            holder.go_on()
            assert holder.result(30) == RIGHT
        assert not watch.changed
        assert not watch.touched
        assert watch.blobs == len(FILES)
        replaced += watch.replaced  # two that stopped waiting may end in the same instant
        assert not leftovers(cache)
        assert waits[-1] >= HASTY.lock_patience
    figure(
        f"{len(waits)} times, patience {HASTY.lock_patience} s: the others took {min(waits):.1f}-{max(waits):.1f} s; "
        f"{replaced} blobs replaced"
    )


@pytest.mark.timeout(600)
def test_a_holder_that_is_killed(server: FaultServer, tmp_path: Path, scale: Scale, figure: Figure) -> None:
    """Its lock is free at once, and who waited goes on where its journal ends."""
    repository = hub(server)
    sizes = storage_of(repository)
    again = []
    for turn in range(scale(1, 15)):
        cache = tmp_path / str(turn)
        server.seen.clear()
        for path in sizes:
            server.heal(path)
            server.fault(path, LOOK, Drip(8_192, 0.05), OK, OK, forever=True)
        job = Job(server.url, str(cache), policy=PATIENT)
        with Loader(job) as holder, Loader(job) as waiter:
            holder.begin()
            server.wait_for(lambda cache=cache: bool(list(cache.glob("models--*/blobs/*.map.incomplete"))), 20)
            waiter.begin()
            server.wait_for(lambda: all(len(server.to(path)) > 2 for path in sizes), 20)
            holder.kill()
            began = time.monotonic()
            assert waiter.result(10) == RIGHT
            assert time.monotonic() - began < PATIENT.lock_patience / 2
        assert not leftovers(cache)
        twice = sum(int((server.times_sent(path)[PREFIX_LIMIT:] - 1).sum()) for path in sizes)
        journalled = sum(seen.start or 0 for path in sizes for seen in server.to(path)[3:])
        assert journalled > len(sizes) * PREFIX_LIMIT, "the waiter goes on beyond the prefix"
        again.append(twice)
    figure(f"{len(again)} kills: at most {max(again):,} of {sum(sizes.values()):,} bytes were sent twice")
