"""A run that is struck at one of its system calls on the cache, and what must hold then."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ..kit.fault_server import FaultServer
from .crashes import NEW, Model, violations
from .injection import Calls, OutOfStepError, Tracer, skip_without_strace
from .runs import ONE_LANE, Forks, Outcome, Run, forks

__all__ = ["Experiment", "experiments", "some"]

T = TypeVar("T")
TAG = "Signature: 8a477f597d28d172789f06886806bc55\n"


class Experiment:
    """`run` is struck in one `state` of the cache, with links or without; `calls` is what it calls unhurt."""

    def __init__(self, forker: Forks, model: Model, folder: Path, state: str, links: bool) -> None:
        self.forker, self.model, self.state, self.links = forker, model, state, links
        self.cache = folder / "cache"
        self.tracer = Tracer(forker, folder)
        self.run: Run = model.run(self.cache, links=links, policy=ONE_LANE, one_thread=True, often=True)
        self.calls = self._record()

    def prepare(self) -> None:
        self.model.prepare(self.forker, self.cache, self.state, self.links)

    def _record(self) -> Calls:
        calls = self._prepared(lambda: self.tracer.record(self.run))
        again = self._prepared(lambda: self.tracer.record(self.run, calls.paths))
        more, fewer = again.counts - calls.counts, calls.counts - again.counts
        assert again.counts == calls.counts, f"the paths select other calls: {dict(more)} more, {dict(fewer)} fewer"
        return calls

    def _prepared(self, trace: Callable[[], T]) -> T:
        """What `trace` gives with the cache in its state; over again where strace fell out of step."""
        for _ in range(4):
            self.prepare()
            with suppress(OutOfStepError):
                return trace()
        self.prepare()
        return trace()

    def points(self, without: frozenset[str] = frozenset()) -> list[tuple[str, int]]:
        """Each call that is not in `without`: its name, and the how manieth of that name it is."""
        counts = self.calls.counts
        names = sorted(set(counts) - without)
        return [(name, when) for name in names for when in range(1, counts[name] + 1)]

    def strike(self, name: str, when: int, what: str) -> tuple[Outcome, list[str]]:
        """A run with `what` in place of, or before, one call; and the lines of the calls of that name."""
        inject = f"inject={name}:{what}:when={when}"
        return self._prepared(lambda: self.tracer.inject(self.run, self.calls.paths, inject))

    def faults_after(self) -> list[str]:
        """What is wrong in the cache now, or after a run that nothing hurts: that fetches what is missing, no more."""
        wrong = violations(self.cache, self.model.commits)
        missing = self.model.missing(self.cache)
        self.model.server.seen.clear()
        outcome = self.forker.run(self.model.run(self.cache, links=self.links))
        refetched = self.model.refetched(missing)
        if outcome.digest != self.model.digest:
            wrong.append(f"the next run: {outcome}")
        elif any(refetched.values()):
            wrong.append(f"the next run fetched too much: {refetched} although {missing} were missing")
        elif (self.cache / "models--org--model" / "refs" / "main").read_text() != NEW:
            wrong.append("the next run wrote no ref")
        elif not (self.cache / "CACHEDIR.TAG").read_text().startswith(TAG):
            wrong.append("the next run left an empty CACHEDIR.TAG")
        return wrong + violations(self.cache, self.model.commits)


@contextmanager
def experiments(folder: Path) -> Iterator[Callable[[str, bool], Experiment]]:
    """A function that gives the experiment of a state of the cache, with links or without. Skips without strace."""
    skip_without_strace()
    with FaultServer() as server, forks(folder / "home") as forker:
        model = Model(server, (150_000, 150_000, 40_000))  # the last one is written and published as small files are

        @functools.cache
        def get(state: str, links: bool) -> Experiment:
            place = folder / f"{state}-{links}"
            place.mkdir()
            return Experiment(forker, model, place, state, links)

        yield get


def some(points: list[tuple[str, int]], seed: str, count: int) -> list[tuple[str, int]]:
    """`count` of `points` for a seed; all of them for 0."""
    return random.Random(seed).sample(points, min(count, len(points))) if count else points
