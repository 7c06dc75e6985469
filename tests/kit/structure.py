"""The shape of the code: python -m tests.kit.structure

How long files and functions may be, what may be imported where, and whether the table of wings in the
package docstring is the one that import-linter checks. Who imports whom is for import-linter.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ROOT", "tables", "violations"]

ROOT = Path(__file__).parents[2]
MAX_LINES = 400  # of a file
MAX_FUNCTION = 60  # lines of a function, its docstring included
# What may be imported inside a function: the extras, which need not be installed, and the wing that needs one.
EXTRAS = frozenset(
    {"IPython", "boto3", "cyclopts", "diffusers", "google", "h2", "jax", "matplotlib", "obstore"}
    | {"opentelemetry", "ray", "rich", "starlette", "torch", "transformers", "uvicorn", "vllm"}
)
# Where what takes a while to load is imported late: in a thread, or when a name of it is first used.
LATE = frozenset({"__init__.py", "api/public.py", "cli/main.py"})
NEED_AN_EXTRA = ("cluster", "progress.terminal", "server")
# Longer than that today. What is shortened leaves this list; nothing joins it.
TO_BE_SHORTENED: frozenset[str] = frozenset()
_ROW = re.compile(r"^    [ 1]\d  (\S.*?)(?:\s{2,}|$)", re.MULTILINE)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def tables(root: Path) -> tuple[list[str], list[str]]:
    """The rows of wings, in the package docstring and in pyproject.toml."""
    # The raw docstring: cleaning would take the indentation that tells a row from prose.
    docstring = ast.get_docstring(ast.parse((root / "asyncfetch/__init__.py").read_text()), clean=False) or ""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return _ROW.findall(docstring), layers


def violations(package: Path, known: frozenset[str] = TO_BE_SHORTENED) -> list[str]:
    """Every broken rule of the package in the folder `package`, as a sentence; empty if there is none."""
    found, long = [], []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > MAX_LINES:
            long.append((name, f"{name} has {lines} lines"))
        for node, outer in _walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                where, lines = f"{name}:{outer}{node.name}", (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    long.append((where, f"{where} has {lines} lines"))
            found += [f"{name}:{getattr(node, 'lineno', 0)} {flaw}" for flaw in _imports(node, outer, path, package)]
    found += [flaw for where, flaw in long if where not in known]
    return found + [f"{where} is short enough now" for where in sorted(known - {where for where, _ in long})]


def _walk(tree: ast.AST, outer: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Every node, with the name of what it lies in: "Class.", "function()."; the latter runs only when called."""
    for child in ast.iter_child_nodes(tree):
        yield child, outer
        inner = outer
        if isinstance(child, _FUNCTIONS):
            inner += f"{getattr(child, 'name', 'lambda')}()."
        elif isinstance(child, ast.ClassDef):
            inner += f"{child.name}."
        yield from _walk(child, inner)


def _imports(node: ast.AST, outer: str, path: Path, package: Path) -> Iterator[str]:
    """What is wrong with an import statement, or with what imports when it is called."""
    if isinstance(node, ast.Name | ast.Attribute):
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        if name in {"import_module", "__import__"} and path.relative_to(package).as_posix() not in LATE:
            yield "imports dynamically"
        return
    for module in _imported(node, path, package):
        first, _, rest = module.partition(".")
        own = first == package.name
        if module == package.name:
            yield "imports the package root"
        if "()." in outer and not (
            f"{rest}.".startswith(tuple(f"{one}." for one in NEED_AN_EXTRA)) if own else first in EXTRAS
        ):
            yield f"imports {module} inside a function"


def _imported(node: ast.AST, path: Path, package: Path) -> Iterator[str]:
    """The modules that a statement names, by their full names. A name of a package counts as the package."""
    if isinstance(node, ast.Import):
        # `import package.x` binds the root, whatever x is.
        names = [alias.name for alias in node.names]
        yield from (package.name if name.split(".")[0] == package.name else name for name in names)
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            here = (package.name, *path.relative_to(package).parent.parts)
            module = ".".join((*here[: len(here) - node.level + 1], *filter(None, [module])))
        folder = package.parent.joinpath(*module.split("."))
        for alias in node.names:
            inner = folder / alias.name
            yield f"{module}.{alias.name}" if inner.is_dir() or inner.with_suffix(".py").is_file() else module


def main() -> int:
    found = violations(ROOT / "asyncfetch")
    docstring, layers = tables(ROOT)
    if docstring != layers:
        found.append(f"the table in the package docstring has {docstring}, pyproject.toml {layers}")
    print(*found or ["The structure is sound."], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
