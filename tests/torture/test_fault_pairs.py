"""Every fault of the catalogue alone, and every two in a row, on the beginning of a file and in its midst."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ..conftest import BACKENDS
from ..engine.test_faults import FATAL, SURVIVED
from ..kit.fault_server import OK
from .scripted import CLIENTS, HASTY, SHARD, Script, Step, Strike, play

# With so many attempts two faults that pass cannot use them up, and nor can a busy machine.
PATIENT = replace(HASTY, attempts=20, read_timeout=0.4)
NOTHING = "nothing"


def catalogue() -> dict[str, tuple[tuple[Step, ...], ...]]:
    """Each fault by its name: for each request that it strikes, what happens at once. Fatal ones strike once here."""
    passing = {f"passing {name}": faults for name, faults in SURVIVED.items()}
    fatal = {f"fatal {name}": (fault,) for name, (fault, _) in FATAL.items()}
    named: dict[str, tuple[tuple[Step, ...], ...]] = {NOTHING: ()}
    for name, faults in {**passing, **fatal}.items():
        named[name] = tuple(
            tuple((name, one) for one in (fault if isinstance(fault, tuple) else (fault,))) for fault in faults
        )
    return named


def pairs(client: str) -> Iterator[Script]:
    """All of them. A pair of faults that pass must pass; two flipped bits in a row are a wrong file, though."""
    faults = catalogue()
    for number, (first, second, begun) in enumerate(itertools.product(faults, faults, (0, 1))):
        lead = begun * ((("OK", OK),),)
        flips = [name for name in (first, second) if name == "passing flipped-bit"]
        yield Script(
            f"pair {number}, {first} and {second}",
            client=client,
            storage=("memory", "disk")[number // 2 % 2],
            strikes=(Strike(SHARD, "bytes", (*lead, *faults[first], *faults[second])),),
            must_pass="fatal" not in first + second and len(flips) < 2,
            policy=PATIENT,
        )


def test_the_catalogue_is_whole() -> None:
    """Nothing is left out by having the name of another."""
    assert len(catalogue()) == 1 + len(SURVIVED) + len(FATAL)
    assert len({script.label for script in pairs("own")}) == 2 * len(catalogue()) ** 2


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("portion", range(3))
def test_pairs(
    client: str,
    portion: int,
    seed: int,
    scale: Callable[[int, int], int],
    figure: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two faults that pass alone pass together, and any others end in an error of ours."""
    every = list(pairs(client))[portion::3]
    count = scale(15, len(every))
    chosen = random.Random(f"{seed}/{portion}").sample(every, count) if count < len(every) else every
    report = play(chosen, tmp_path, monkeypatch, BACKENDS[portion].values[0])
    figure(f"{report}; {dict(report.outcomes.most_common())}")
    assert not report.violations, "\n\n".join(report.violations[:10])
    assert sum(report.outcomes.values()) == len(chosen)
    assert report.outcomes["right"] >= sum(script.must_pass for script in chosen)
