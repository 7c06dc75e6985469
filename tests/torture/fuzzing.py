"""Cases by the million: counted, timed, each repeatable, in several processes. And mutants of what they test."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

Fuzz = Callable[[random.Random], str]
CHUNK = 5_000


@dataclass
class Tally:
    """What came of some cases: how often each outcome, the slowest (processor time), the most memory (MiB)."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    peak: float = 0.0
    seconds: float = 0.0

    def add(self, other: Tally) -> None:
        self.cases += other.cases
        self.outcomes += other.outcomes
        self.slowest = max(self.slowest, other.slowest)
        self.peak = max(self.peak, other.peak)

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {outcome}" for outcome, count in self.outcomes.most_common())
        return (
            f"{self.cases:,} cases ({self.cases / self.seconds:,.0f}/s): {counts}; "
            f"slowest {self.slowest:.3f} s, at most {self.peak:.0f} MiB"
        )


class Timer:
    """The time of what is tested, without that of what tests it. One case may stop the time more than once."""

    def __init__(self) -> None:
        self.spent = self.slowest = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        began = time.process_time()  # not that of the clock: the machine may be busy
        try:
            yield
        finally:
            self.spent += time.process_time() - began

    def next(self) -> None:
        self.slowest, self.spent = max(self.slowest, self.spent), 0.0


TIMER = Timer()


def case_rng(seed: int, number: int) -> random.Random:
    """The randomness of one case: it can be made again without those before it."""
    return random.Random((seed << 32) + number)


def run(fuzz: Fuzz, seed: int, first: int, last: int) -> Tally:
    """Cases `first` to `last` of `seed`. The failure of one names it, so that it can be repeated."""
    tally = Tally()
    TIMER.slowest = 0.0
    for number in range(first, last):
        TIMER.spent = 0.0
        try:
            outcome = fuzz(case_rng(seed, number))
        except Exception as error:
            raise AssertionError(f"case {number} of seed {seed}: {type(error).__name__}: {error}") from error
        TIMER.next()
        tally.outcomes[outcome] += 1
    tally.cases, tally.slowest, tally.peak = last - first, TIMER.slowest, peak_mebibytes()
    return tally


def survey(fuzz: Fuzz, seed: int, cases: int) -> Tally:
    """`run` in as many fresh processes as there are processors, so that the memory is that of the cases alone."""
    total, began = Tally(), time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    workers = min(os.cpu_count() or 1, -(-cases // CHUNK))
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        parts = [pool.submit(run, fuzz, seed, n, min(n + CHUNK, cases)) for n in range(0, cases, CHUNK)]
        for part in parts:
            total.add(part.result())
    total.seconds = time.perf_counter() - began
    return total


def first_failure(fuzz: Fuzz, seed: int, cases: int) -> int | None:
    """The number of the first case that fails, or None if `cases` of them pass."""
    for number in range(cases):
        try:
            fuzz(case_rng(seed, number))
        except Exception:
            return number
    return None


def peak_mebibytes() -> float:
    """The most memory that this process had since it began; unlike ru_maxrss not that of its parent before."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def mutant(modules: Sequence[ModuleType], before: str, after: str) -> ModuleType:
    """The last of `modules`, each of which imports those before it, made anew from their sources.

    In one of them is `before`, once, and it is replaced by `after`.
    """
    sources = {module: Path(str(module.__file__)).read_text(encoding="utf-8") for module in modules}
    counts = [source.count(before) for source in sources.values()]
    assert sum(counts) == 1, f"{before!r} is {counts} times in {modules}"
    with ExitStack() as stack:
        for module in modules:
            spec = importlib.util.spec_from_file_location(module.__name__, module.__file__)
            assert spec is not None
            twin = importlib.util.module_from_spec(spec)
            # Dataclasses look their module up by its name, and the next module imports it; so long that is the twin.
            stack.enter_context(_registered(twin))
            code = compile(sources[module].replace(before, after), f"<mutant of {module.__file__}>", "exec")
            exec(code, twin.__dict__)
    return twin


@contextmanager
def _registered(module: ModuleType) -> Iterator[None]:
    original = sys.modules[module.__name__]
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        sys.modules[module.__name__] = original
