"""Whether each mutant still finds its code and its tests: seconds, where to run them all takes many minutes."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import ROOT, LostError, Mutant, MutantError

__all__ = ["flaws", "follow"]


def flaws(mutants: Iterable[Mutant], root: Path = ROOT) -> Iterator[Exception]:
    """What is wrong with them in the repository at `root`."""
    mutants = tuple(mutants)
    names = Counter(mutant.name for mutant in mutants)
    yield from (MutantError(f"{name}: {count} mutants have this name") for name, count in names.items() if count > 1)
    breaks = Counter((mutant.place, mutant.old, mutant.new) for mutant in mutants)
    for mutant in mutants:
        if breaks[mutant.place, mutant.old, mutant.new] > 1:
            yield MutantError(f"{mutant.name}: another mutant does the same")
        for test in mutant.tests:
            if test not in _tests_of(root / "tests" / test.partition("::")[0]):
                yield MutantError(f"{mutant.name}: there is no test {test}")
        if not mutant.tests:
            yield MutantError(f"{mutant.name}: no test is named that catches it")
        try:
            mutant.source(root)
        except MutantError as error:
            yield error


_known: dict[Path, set[str]] = {}


def _tests_of(path: Path) -> set[str]:
    """The test functions in a file, as a mutant names them."""
    if path not in _known:
        body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
        functions = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        file = "/".join(path.parts[path.parts.index("tests") + 1 :])
        _known[path] = {f"{file}::{name}" for name in functions}
    return _known[path]


def follow(lost: Iterable[LostError], root: Path = ROOT) -> int:
    """Write into tests/mutants/ where the code of each is now, if that is one place. Returns how many that were."""
    moved = {error.mutant.name: error.now[0] for error in lost if len(error.now) == 1}
    for path in (root / "tests" / "mutants").glob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        for node in ast.walk(ast.parse("".join(lines))):
            if isinstance(node, ast.Call) and len(node.args) > 2 and isinstance(node.args[0], ast.Constant):
                place, now = node.args[2], moved.get(str(node.args[0].value))
                if now is not None and isinstance(place, ast.Constant):
                    lines[place.lineno - 1] = lines[place.lineno - 1].replace(f'"{place.value}"', f'"{now}"')
        path.write_text("".join(lines), encoding="utf-8")
    return len(moved)
