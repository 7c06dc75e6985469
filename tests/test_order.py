"""One import direction: the package docstring lists the files in order, and a file imports only from files above it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "asyncfetch"
MAX_LINES = 420
# What may be imported inside a function: the extras, which need not be installed, and our files that need one.
EXTRAS = frozenset({"cyclopts", "h2", "rich", "starlette", "torch", "uvicorn"})
NEED_AN_EXTRA = frozenset({"server"})
ROW = re.compile(r"^    (\w+)\s{2,}\S", re.MULTILINE)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def listed(package: Path) -> list[str]:
    """The modules that the package docstring lists, as rows `    name    what it is`, in order."""
    # The raw docstring: cleaning would take the indentation that tells a row from prose.
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text()), clean=False)
    return ROW.findall(docstring or "")


def imported(node: ast.AST, package: Path) -> Iterator[tuple[str, bool]]:
    """What an import statement or a dynamic import names: (module, whether it is one of the package's own).

    The package root is "". `from . import x` means the file x if there is one, otherwise a name of the root.
    """
    names: list[str] = []
    if isinstance(node, ast.Import):
        # `import package.x` binds the root, whatever x is.
        names = [package.name if alias.name.split(".")[0] == package.name else alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        root = module in {".", package.name}
        files = [alias.name if (package / f"{alias.name}.py").exists() else "" for alias in node.names]
        names = [f".{file}" for file in files] if root else [module]
    elif isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in {"import_module", "__import__"}:
            first = node.args[0] if node.args else None
            known = isinstance(first, ast.Constant) and isinstance(first.value, str)
            names = [str(ast.literal_eval(first)) if first is not None and known else "<computed>"]
    for name in names:
        own = name.startswith(".") or name.split(".")[0] == package.name
        yield (name.removeprefix(package.name).removeprefix(".") if own else name).split(".")[0], own


def walk(tree: ast.AST, deferred: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, with whether it runs only when a function is called."""
    for child in ast.iter_child_nodes(tree):
        yield child, deferred
        yield from walk(child, deferred or isinstance(child, FUNCTIONS))


def violations(package: Path) -> list[str]:
    """Every broken rule of the package in `package`, as a sentence; empty if there is none."""
    order = listed(package)
    files = {path.stem: path for path in sorted(package.glob("*.py")) if path.stem != "__init__"}
    found = [f"{name} is listed {order.count(name)} times" for name in sorted(set(order)) if order.count(name) > 1]
    found += [f"{name} is listed and has no file" for name in order if name not in files]
    found += [f"{name} is not listed" for name in files if name not in order]
    found += [f"{path.name}/ is a subpackage" for path in sorted(package.iterdir()) if (path / "__init__.py").exists()]
    for name, path in [("__init__", package / "__init__.py"), *files.items()]:
        lines = len(path.read_text().splitlines())
        if lines > MAX_LINES:
            found.append(f"{name} has {lines} lines")
    for name in [name for name in dict.fromkeys(order) if name in files]:
        path, above = files[name], order[: order.index(name)]
        for node, deferred in walk(ast.parse(path.read_text())):
            for module, own in imported(node, package):
                where = f"{name}:{getattr(node, 'lineno', 0)}"
                if own and module not in above:
                    found.append(f"{where} imports {module or 'the package root'}, which is not above it")
                if isinstance(node, ast.Call) and module not in EXTRAS:
                    found.append(f"{where} imports {module} dynamically")
                elif deferred and module not in (NEED_AN_EXTRA if own else EXTRAS):
                    found.append(f"{where} imports {module or 'the package root'} inside a function")
    return found


def test_the_package_keeps_its_order() -> None:
    """Each file is listed once, imports only from above, defers nothing but extras, and stays short."""
    assert violations(PACKAGE) == []


GOOD = {
    "__init__": '"""Toy.\n\nthe floor\n    low      words\n    middle   rules\nthe top\n    high     faces\n"""',
    "low": "import os\n",
    "middle": "from typing import TYPE_CHECKING\nfrom .low import x\nif TYPE_CHECKING:\n    from toy.low import y\n",
    "high": "from . import low\nfrom .middle import y\n\n\ndef f():\n    import torch.nn\n",
}


def toy(folder: Path, **changed: str | None) -> Path:
    """The package GOOD in `folder`, with some files changed, added or (None) left out."""
    package = folder / "toy"
    package.mkdir()
    for name, text in (GOOD | changed).items():
        if text is not None:
            (package / f"{name}.py").write_text(text)
    return package


def test_a_good_package_passes(tmp_path: Path) -> None:
    """The checker finds nothing in a package that keeps the rules, headings between the rows and all."""
    package = toy(tmp_path)
    assert listed(package) == ["low", "middle", "high"]
    assert violations(package) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"low": "from .high import x\n"}, ["low:1 imports high, which is not above it"]),
        ({"low": "from .low import x\n"}, ["low:1 imports low, which is not above it"]),
        ({"low": "from toy.middle import x\n"}, ["low:1 imports middle, which is not above it"]),
        ({"high": "import toy\n"}, ["high:1 imports the package root, which is not above it"]),
        ({"high": "import toy.low\n"}, ["high:1 imports the package root, which is not above it"]),
        ({"high": "from toy import name\n"}, ["high:1 imports the package root, which is not above it"]),
        ({"high": "from . import low, name\n"}, ["high:1 imports the package root, which is not above it"]),
        ({"low": "from . import high\n"}, ["low:1 imports high, which is not above it"]),
        ({"low": "from toy import high\n"}, ["low:1 imports high, which is not above it"]),
        ({"low": "from ..toy import high\n"}, ["low:1 imports the package root, which is not above it"]),
        (
            {"low": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .high import x\n"},
            ["low:3 imports high, which is not above it"],
        ),
        ({"high": "def f():\n    import json\n"}, ["high:2 imports json inside a function"]),
        (
            {"high": "class C:\n    async def f(self):\n        import json\n"},
            ["high:3 imports json inside a function"],
        ),
        ({"high": "def f():\n    from .low import x\n"}, ["high:2 imports low inside a function"]),
        ({"high": "import importlib\nimportlib.import_module('.low', 'toy')\n"}, ["high:2 imports low dynamically"]),
        ({"high": "__import__(name)\n"}, ["high:1 imports <computed> dynamically"]),
        ({"stray": "x = 1\n"}, ["stray is not listed"]),
        ({"middle": None, "high": ""}, ["middle is listed and has no file"]),
        ({"__init__": GOOD["__init__"].replace("words", "words\n    low      again")}, ["low is listed 2 times"]),
        ({"high": "x = 1\n" * (MAX_LINES + 1)}, [f"high has {MAX_LINES + 1} lines"]),
    ],
)
def test_a_bad_package_fails(tmp_path: Path, changed: dict[str, str | None], expected: list[str]) -> None:
    """Each rule, broken once in a toy package, is reported with its place, and nothing else is."""
    assert violations(toy(tmp_path, **changed)) == expected


def test_a_subpackage_fails(tmp_path: Path) -> None:
    """A folder with modules would escape the list, so there is none."""
    package = toy(tmp_path)
    (package / "inner").mkdir()
    (package / "inner" / "__init__.py").write_text("")
    assert violations(package) == ["inner/ is a subpackage"]
