"""The suite is tested: deliberately broken variants of asyncfetch, each of which certain tests must catch.

    scripts/mutants                 all of them: twenty minutes
    scripts/mutants -k if-range     some of them
    scripts/mutants --check         whether each finds its place: seconds; scripts/check does it too
    scripts/mutants --fix           moves those that lost their place to where their code is now

A mutant is one replacement in one definition: see places.py. `row` is the row of tests/CATALOGUE.md to
which it belongs, and `tests` are those that must fail with it, relative to tests/. To add one: write it
into the file of its group, run it, and name it in its row. A replacement whose code is gone is an
error, not a pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .places import find, module_of, same, source_of

__all__ = ["ROOT", "LostError", "Mutant", "MutantError", "every_mutant"]

ROOT = Path(__file__).parents[2]


class MutantError(Exception):
    """A mutant that cannot be made, or whose tests do not run: it says nothing about the suite."""


class LostError(MutantError):
    """The code that a mutant replaces is not in its place. `now` are the places where it could be meant to be."""

    def __init__(self, mutant: Mutant, count: int, now: tuple[str, ...]) -> None:
        there = f"; it is now in {' or '.join(now)}" if now else ""
        super().__init__(f"{mutant.name}: its old code is {count} times in {mutant.place}{there}")
        self.mutant, self.now = mutant, now


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to break asyncfetch: in the definition `place`, "module:name", the code `old` becomes `new`.

    What counts are the tokens of `old`. `new` is put in their place; its further lines are indented
    against its first, which stands where the statement stood that `old` begins in.
    """

    name: str
    row: str
    place: str
    old: str
    new: str
    tests: tuple[str, ...]

    def file(self, root: Path = ROOT) -> Path:
        """Where the definition is."""
        return module_of(root / "asyncfetch", self.place)

    def source(self, root: Path = ROOT) -> str:
        """The broken text of its file.

        Raises LostError unless `old` is in its place once, and MutantError unless the result is other Python.
        """
        path, name = self.file(root), self.place.partition(":")[2]
        source = source_of(path) if path.is_file() else None
        runs = source.within(name, self.old) if source and (not name or name in source.definitions) else []
        if source is None or len(runs) != 1:
            now = () if runs else tuple(find(root / "asyncfetch", name, self.old))
            raise LostError(self, len(runs), now)
        if same(self.old, self.new):
            raise MutantError(f"{self.name}: its old code is the new one")
        broken = source.replaced(*runs[0], self.new)
        try:
            compile(broken, path.name, "exec")
        except SyntaxError as error:
            raise MutantError(f"{self.name}: {error}") from error
        return broken

    def apply(self, root: Path) -> None:
        """Break the copy of the repository at `root`."""
        self.file(root).write_text(self.source(root), encoding="utf-8")


def every_mutant() -> tuple[Mutant, ...]:
    """All groups in the order of the catalogue."""
    from . import (
        adapters,
        clusters,
        content,
        disk,
        enemies,
        faces,
        http_answers,
        http_origins,
        jobs,
        models,
        processes,
        pull_through,
        reasons,
        repositories,
        room,
        saving,
        secrets,
        serving,
        stores,
        tensors,
        transport,
    )

    of_bytes = (transport, http_answers, http_origins, content, repositories, stores, disk, processes, secrets, reasons)
    groups = (*of_bytes, faces, serving, pull_through, room, jobs, enemies, tensors, models, adapters, saving, clusters)
    return tuple(mutant for group in groups for mutant in group.MUTANTS)
