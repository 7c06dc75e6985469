"""The config.json beside a checkpoint: which library it is for, and what must not be loaded from it.

What a config says is the publisher's word: it chooses among the classes of a library, and runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CorruptError, SourceError, storage_errors
from ..format.hostile import short_repr

__all__ = ["code_of", "library_of", "read_config"]

_ALL_FILES = 'asyncfetch.download(source, include="*") brings all files: give its path to from_pretrained.'


def read_config(folder: Path | None, source: str) -> dict[str, Any]:
    """The config of a model that can be loaded. Raises SourceError for an adapter, a pipeline or none, CorruptError."""
    if folder is None:
        raise _no_config(source)
    path, adapter = folder / "config.json", folder / "adapter_config.json"
    if adapter.is_file():
        base = short_repr(_parsed(adapter).get("base_model_name_or_path"))
        if not path.is_file():
            raise SourceError(
                f"{source} is an adapter of {base}, and no model.",
                hint="Load that model, then give asyncfetch.download(source, include='*').path to "
                "peft.PeftModel.from_pretrained.",
            )
        raise SourceError(f"{source} has an adapter beside its model, which would be left out.", hint=_ALL_FILES)
    if path.is_file():
        return _parsed(path)
    if (folder / "model_index.json").is_file():
        raise SourceError(
            f"{source} is a pipeline of several models.", hint=f"Name one with subfolder=, such as 'unet'. {_ALL_FILES}"
        )
    raise _no_config(source)


def _no_config(source: str) -> SourceError:
    return SourceError(
        f"{source} has no config.json beside its weights, so nothing tells what model it is.",
        hint="load() gives its tensors, and load_into() fills a module of your own.",
    )


def _parsed(path: Path) -> dict[str, Any]:
    with storage_errors(path):
        data = path.read_bytes()
    try:
        config = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise CorruptError(f"{path.name} is no JSON object.", file=path.name)
    return config


def library_of(config: Mapping[str, Any], source: str) -> str:
    """Which library a model is of: `"transformers"` or `"diffusers"`. Raises SourceError."""
    if "_class_name" in config:
        return "diffusers"
    if "model_type" in config or "architectures" in config:
        return "transformers"
    raise SourceError(f"The config of {source} names neither a class of transformers nor one of diffusers.")


def code_of(config: Mapping[str, Any], name: str, source: str) -> str | None:
    """The code in the repository, `"file.Class"`, that `auto_map` has for a class or an AutoClass; None if it has none.

    Raises SourceError for code of another repository, which is of no commit that was asked for.
    """
    table = config.get("auto_map")
    found = next(
        (
            code
            for auto, code in (table.items() if isinstance(table, dict) else ())
            if isinstance(code, str) and (auto == name or code.rpartition(".")[2] == name)
        ),
        None,
    )
    if found is not None and "--" in found:
        raise SourceError(
            f"The code of {source} is in another repository: {short_repr(found)}.", hint="Pass the class as cls=."
        )
    return found
