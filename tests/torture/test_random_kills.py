"""Killed at random moments, again and again: the download still ends, with the right bytes and hardly one twice."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asyncfetch.spans import MiB

from ..kit.fault_server import Drip, FaultServer
from .crashes import SHARDS, Model, violations
from .runs import FAST, Forks, forks

PARTS = 4
LOSS = 8 * MiB  # of a file, that had landed and is fetched again
POLICY = {**FAST, "read_timeout": 10.0}


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """One process that forks for all tests here."""
    with forks(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """Three shards of 16 MiB, each connection at no more than 100 MiB/s."""
    with FaultServer() as server:
        made = Model(server, 3 * [16 * MiB])
        for path in made.repository.storage.values():
            server.fault(path, Drip(256 * 1024, 0.0025), forever=True)
        yield made


class Chain:
    """Runs of one download after another, of which all but the last are killed."""

    def __init__(self, forker: Forks, model: Model, cache: Path, *, split: bool) -> None:
        self.forker, self.model, self.cache = forker, model, cache
        # Under a limit on the rate no connection is taken for a slow one, whose file others would share.
        self.policy = {**POLICY, **({"min_split": 4 * MiB} if split else {"bandwidth_limit": 1e9})}
        # A connection whose end another one has taken over is closed with some of it under way.
        self.under_way = LOSS if split else 0
        self.most_lost = self.left_behind = 0
        self.seconds = 0.0  # of the last run
        self.stages: Counter[str] = Counter()
        self.missing: dict[str, int] = {}
        self.begin()

    def begin(self) -> None:
        """A download without anything on disk."""
        shutil.rmtree(self.cache, ignore_errors=True)
        self.missing = {name: len(self.model.files[name]) for name in SHARDS}

    @property
    def left(self) -> float:
        """The part of all bytes that is missing."""
        return sum(self.missing.values()) / sum(len(self.model.files[name]) for name in SHARDS)

    def run(self, kill_after: float | None) -> bool:
        """One run; whether it was killed. What it left, and what it fetched, is held against what must be."""
        model, cache = self.model, self.cache
        model.server.seen.clear()
        began = time.monotonic()
        outcome = self.forker.run(model.run(cache, policy=self.policy, kill_after=kill_after))
        self.seconds = time.monotonic() - began
        assert outcome.killed or outcome.digest == model.digest, outcome
        assert not outcome.late, "it waited for something that a killed run had left"
        assert not violations(cache, model.commits)
        refetched = model.refetched(self.missing)
        assert max(refetched.values()) <= self.under_way, (self.missing, refetched)
        self.missing = model.missing(cache)
        if outcome.killed:
            self._look_at_what_is_left()
        else:
            blobs = [path.name for path in cache.glob("models--*/blobs/*.incomplete")]
            assert not [name for name in blobs if name.endswith(".asyncfetch.incomplete")], blobs
            self.left_behind += len(blobs)
        return outcome.killed

    def _look_at_what_is_left(self) -> None:
        for name, landed in self.model.landed(self.cache).items():
            lost = landed - (len(self.model.files[name]) - self.missing[name])
            assert lost <= LOSS, f"{lost:,} bytes of {name} had landed and are in no journal"
            self.most_lost = max(self.most_lost, lost)
        whole = len(SHARDS) - len(self.missing)
        begun = sum(left < len(self.model.files[name]) for name, left in self.missing.items())
        self.stages[f"{whole} whole, {begun} begun"] += 1


@pytest.mark.parametrize("part", range(PARTS))
def test_random_kills(
    forker: Forks,
    model: Model,
    tmp_path: Path,
    part: int,
    seed: int,
    scale: Callable[[int, int], int],
    figure: Callable[[str], None],
) -> None:
    """SIGKILL at any moment of a run that goes on from a killed one: no wrong byte, no stuck lock, little lost."""
    chain = Chain(forker, model, tmp_path / "cache", split=part % 2 == 1)
    choose = random.Random(seed * PARTS + part)
    chain.run(None)
    whole = chain.seconds
    chain.begin()
    kills, chains = 0, 0
    while kills < scale(2, 1000 // PARTS):
        if chain.run(choose.uniform(0, whole * (0.3 + 0.7 * chain.left))):
            kills += 1
        else:
            chains += 1
            chain.begin()
    while chain.run(None):
        pass
    figure(
        f"{kills} kills in {chains + 1} downloads, 0 violations; at most {chain.most_lost:,} bytes of a file that had"
        f" landed were lost; {chain.left_behind} temporary files left; {dict(sorted(chain.stages.items()))}"
    )
