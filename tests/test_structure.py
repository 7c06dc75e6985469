"""The shape of the code, by tests/kit/structure.py, and the contract on imports; and that both would notice."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .kit.structure import MAX_FUNCTION, MAX_LINES, ROOT, tables, violations


def test_the_package_is_in_shape() -> None:
    """Files and functions are short, only extras are imported late, and nothing imports the package root."""
    assert violations(ROOT / "asyncfetch") == []


def test_the_table_of_wings_is_the_one_that_is_checked() -> None:
    """The package docstring and the contract in pyproject.toml name the same wings in the same order."""
    docstring, layers = tables(ROOT)
    assert docstring == layers
    assert {wing for row in layers for wing in row.split(" | ")} == {
        path.stem for path in (ROOT / "asyncfetch").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"__init__", "__main__"}


# -- the checker itself --------------------------------------------------------------------------

GOOD = {
    "__init__.py": "from importlib import import_module\nx = import_module('.low', 'toy')\n",
    "low.py": "import os\n",
    "wing/__init__.py": "",
    "wing/one.py": "from ..low import x\nfrom toy.low import y\n",
    "wing/two.py": "from . import one\nfrom .. import low\nfrom toy import low as x\ndef f():\n    import torch.nn\n",
    "server/__init__.py": "",
    "cli.py": "def f():\n    from .server import x\n    import rich\n",
}


def toy(folder: Path, changed: str = "low.py", text: str = GOOD["low.py"]) -> Path:
    """The package GOOD in `folder`, with one file changed or added."""
    for name, content in (GOOD | {changed: text}).items():
        path = folder / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder / "toy"


def test_a_good_package_passes(tmp_path: Path) -> None:
    """The checker finds nothing in a package that keeps the rules."""
    assert violations(toy(tmp_path), frozenset()) == []


LONG = "def f(a):\n" + "    a += 1\n" * MAX_FUNCTION


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("low.py", "x = 1\n" * (MAX_LINES + 1), f"low.py has {MAX_LINES + 1} lines"),
        ("low.py", LONG, f"low.py:f has {MAX_FUNCTION + 1} lines"),
        ("low.py", LONG.replace("def", "async def"), f"low.py:f has {MAX_FUNCTION + 1} lines"),
        ("low.py", "class C:\n    " + LONG.replace("\n", "\n    "), f"low.py:C.f has {MAX_FUNCTION + 1} lines"),
        ("wing/one.py", "import toy\n", "wing/one.py:1 imports the package root"),
        ("wing/one.py", "import toy.low\n", "wing/one.py:1 imports the package root"),
        ("wing/one.py", "from toy import name\n", "wing/one.py:1 imports the package root"),
        ("wing/one.py", "from .. import low, name\n", "wing/one.py:1 imports the package root"),
        ("low.py", "from . import name\n", "low.py:1 imports the package root"),
        ("low.py", "def f():\n    import json\n", "low.py:2 imports json inside a function"),
        (
            "low.py",
            "class C:\n    async def f(self):\n        import json\n",
            "low.py:3 imports json inside a function",
        ),
        ("low.py", "def f():\n    def g():\n        import a.b\n", "low.py:3 imports a.b inside a function"),
        ("wing/one.py", "def f():\n    from ..low import x\n", "wing/one.py:2 imports toy.low inside a function"),
        ("wing/one.py", "def f():\n    from . import two\n", "wing/one.py:2 imports toy.wing.two inside a function"),
        ("low.py", "import importlib\nimportlib.import_module('.cli', 'toy')\n", "low.py:2 imports dynamically"),
        ("wing/__init__.py", "__import__(name)\n", "wing/__init__.py:1 imports dynamically"),
    ],
)
def test_a_bad_package_fails(tmp_path: Path, file: str, text: str, expected: str) -> None:
    """Each rule, broken once in a toy package, is reported with its place, and nothing else is."""
    assert violations(toy(tmp_path, file, text), frozenset()) == [expected]


def test_what_is_to_be_shortened(tmp_path: Path) -> None:
    """What is known to be too long is let through, until it is short: then it must leave the list."""
    package = toy(tmp_path, "low.py", LONG)
    assert violations(package, frozenset({"low.py:f"})) == []
    assert violations(package, frozenset({"low.py:f", "low.py"})) == ["low.py is short enough now"]


# -- the contract on imports ---------------------------------------------------------------------


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=50)


@pytest.mark.parametrize(
    ("file", "line", "says"),
    [
        (None, "", ""),
        ("spans.py", "from .policy import Policy", "asyncfetch.spans -> asyncfetch.policy"),
        (
            "network/urls.py",
            "from ..storage.cache import RepoCache",
            "asyncfetch.network.urls -> asyncfetch.storage.cache",
        ),
        ("format/dtypes.py", "from .header import Header", "- .header -> .dtypes"),
        ("extra.py", "", "extra"),
    ],
    ids=["as it is", "upwards", "sideways", "in a circle", "without a row"],
)
def test_the_contract_on_imports(tmp_path: Path, file: str | None, line: str, says: str) -> None:
    """An import upwards, from a wing beside, a circle within a wing and a file without a row break the contract."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    package = shutil.copytree(
        ROOT / "asyncfetch", tmp_path / "asyncfetch", ignore=shutil.ignore_patterns("__pycache__")
    )
    if file is not None:
        text = (package / file).read_text() if line else '"""A stray file."""\n'
        (package / file).write_text(
            text.replace("from __future__ import annotations\n", f"from __future__ import annotations\n{line}\n")
        )
    run = lint_imports(tmp_path)
    assert (run.returncode == 0) == (file is None), run.stdout + run.stderr
    assert says in run.stdout + run.stderr
