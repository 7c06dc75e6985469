"""vLLM's own code without vLLM: read from its wheel, since the package wants gigabytes and, mostly, a GPU."""

from __future__ import annotations

import abc
import ast
import dataclasses
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

__all__ = ["VllmWheel", "attributes", "fields", "inner_class", "methods", "parameters", "stand_in", "wheels"]

_FOLDER = Path(sys.prefix) / "wheels"  # where scripts/test puts it


def wheels() -> list[Path]:
    """The wheels of vLLM that are here."""
    return sorted(_FOLDER.glob("vllm*.whl"))


class VllmWheel:
    """The sources in a wheel."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self._path)

    def text(self, module: str) -> str:
        """The source of `module`, such as "vllm.plugins"."""
        path = module.replace(".", "/")
        names = [name for name in (f"{path}.py", f"{path}/__init__.py") if name in self._archive.namelist()]
        assert names, f"{self._path.name} has no {module}"
        return self._archive.read(names[0]).decode()

    def definition(self, module: str, name: str) -> ast.ClassDef | ast.FunctionDef:
        """A class or a function at the top of a module."""
        for node in ast.parse(self.text(module)).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                return node
        raise AssertionError(f"{module} has no {name}")


def methods(of: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in of.body if isinstance(node, ast.FunctionDef)}


def fields(of: ast.ClassDef) -> dict[str, ast.AnnAssign]:
    return {
        node.target.id: node
        for node in of.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def parameters(of: ast.FunctionDef) -> list[str]:
    return [one.arg for one in (*of.args.posonlyargs, *of.args.args, *of.args.kwonlyargs)]


def inner_class(of: ast.ClassDef, name: str) -> ast.ClassDef:
    return next(node for node in of.body if isinstance(node, ast.ClassDef) and node.name == name)


def attributes(of: ast.AST) -> Iterator[str]:
    """The names of all attributes that are read or set in it."""
    return (node.attr for node in ast.walk(of) if isinstance(node, ast.Attribute))


class _Log:
    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def stand_in(wheel: VllmWheel, monkeypatch: pytest.MonkeyPatch, parallel: dict[str, Any]) -> None:
    """Put a `vllm` into sys.modules that has the loaders of the wheel, as they are written there, and nothing else.

    `parallel`: what its parallel_config has.
    """
    package = "vllm.model_executor.model_loader"
    registry: dict[str, Any] = {}
    names: dict[str, Any] = {
        **{name: getattr(abc, name) for name in ("ABC", "abstractmethod")},
        "dataclasses": dataclasses,
        "time": time,
        "cast": cast,
        "logger": _Log(),
        "Iterable": Iterable,
        "instrument": lambda **_: lambda function: function,
        "_LOAD_FORMAT_TO_MODEL_LOADER": registry,
        "_CONFIG_BUILT_PARAMS": (),
        "BaseKVCacheMethod": type("BaseKVCacheMethod", (), {}),
    }
    for module, name in (
        (f"{package}.ep_weight_filter", "compute_local_expert_ids"),
        (f"{package}.base_loader", "BaseModelLoader"),
        (f"{package}.default_loader", "DefaultModelLoader"),
        (package, "register_model_loader"),
    ):
        future = ast.ImportFrom("__future__", [ast.alias("annotations")], 0)
        tree = ast.Module([future, wheel.definition(module, name)], [])
        exec(compile(ast.fix_missing_locations(tree), module, "exec"), names)
    config = SimpleNamespace(parallel_config=SimpleNamespace(**parallel))
    group = SimpleNamespace(rank_in_group=0)
    modules: dict[str, dict[str, Any]] = {
        "vllm": {},
        "vllm.model_executor": {},
        package: {"register_model_loader": names["register_model_loader"], "registry": registry},
        f"{package}.default_loader": {"DefaultModelLoader": names["DefaultModelLoader"]},
        f"{package}.ep_weight_filter": {},
        "vllm.config": {"get_current_vllm_config": lambda: config},
        "vllm.distributed": {
            **{name: lambda: group for name in ("get_dp_group", "get_pcp_group")},
            "get_tensor_model_parallel_rank": lambda: parallel["rank"],
        },
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    text = wheel.text(f"{package}.ep_weight_filter").replace("import regex as re", "import re")
    exec(text, sys.modules[f"{package}.ep_weight_filter"].__dict__)
