"""The real model for the tests: scripts/make_minilm.py imported by its path, since scripts/ is no package."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name: str) -> ModuleType:
    """scripts/`name`.py as a module, loaded once; one script then finds another by its plain name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


make_minilm = script("make_minilm")
make = make_minilm.make
source_tensors = functools.cache(make_minilm.source_tensors)


@pytest.fixture(scope="session")
def minilm_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to read from, with the repositories demo/all-MiniLM-L6-v2 (F32) and demo/all-MiniLM-L6-v2-bf16."""
    # The processes of one run share it: it takes a second to make.
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "minilm"
    with FileLock(f"{root}.lock"):
        if not root.is_dir():
            unfinished = tmp_path_factory.mktemp("unfinished")
            for name, (dtype, shards) in make_minilm.REPOSITORIES.items():
                make(unfinished / name, dtype, shards)
            unfinished.rename(root)
    return root
