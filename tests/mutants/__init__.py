"""The suite is tested: deliberately broken variants of asyncfetch, each of which certain tests must catch.

    scripts/mutants                 all of them: half an hour
    scripts/mutants -k if-range     some of them

A mutant is one replacement in one file. `row` is the row of tests/CATALOGUE.md to which it belongs,
and `tests` are those that must fail with it, relative to tests/. To add one: write it into the file
of its group, run it, and name it in its row. A replacement whose text is gone is an error, not a pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Mutant", "MutantError", "every_mutant"]

ROOT = Path(__file__).parents[2]


class MutantError(Exception):
    """A mutant that cannot be made, or whose tests do not run: it says nothing about the suite."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to break asyncfetch: `old` becomes `new` in asyncfetch/`file`."""

    name: str
    row: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def source(self, root: Path = ROOT) -> str:
        """The broken text of the file. Raises MutantError unless `old` is there once and the result compiles."""
        text = (root / "asyncfetch" / self.file).read_text(encoding="utf-8")
        count = text.count(self.old)
        if count != 1 or self.old == self.new:
            raise MutantError(f"{self.name}: its old text is {count} times in {self.file}, or is the new one")
        broken = text.replace(self.old, self.new)
        try:
            compile(broken, self.file, "exec")
        except SyntaxError as error:
            raise MutantError(f"{self.name}: {error}") from error
        return broken

    def apply(self, root: Path) -> None:
        """Break the copy of the repository at `root`."""
        (root / "asyncfetch" / self.file).write_text(self.source(root), encoding="utf-8")


def every_mutant() -> tuple[Mutant, ...]:
    """All groups in the order of the catalogue."""
    from . import content, disk, http_answers, http_origins, processes, secrets, transport

    groups = (transport, http_answers, http_origins, content, disk, processes, secrets)
    return tuple(mutant for group in groups for mutant in group.MUTANTS)
