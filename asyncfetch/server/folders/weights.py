"""How many parameters a repository holds, by its safetensors headers. Blocking calls: run them in a thread."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import AsyncfetchError
from ...format.index import parse_index
from ...sources.headers import header_on_disk

if TYPE_CHECKING:
    from .repository import File, Repository

__all__ = ["parameters_of"]

_INDEX = "model.safetensors.index.json"
_MOST_INDEX_BYTES = 64_000_000


def parameters_of(repository: Repository) -> dict[str, object] | None:
    """Parameters by dtype, and in all, as the Hub counts them: of one model, not of its variants. None without any."""
    known: dict[str, object] | None = repository.kept.get("safetensors")
    if known is None and (counted := _count(repository)):
        repository.kept["safetensors"] = known = {"parameters": dict(counted), "total": counted.total()}
    return known


def _count(repository: Repository) -> Counter[str]:
    counted: Counter[str] = Counter()
    for file in _shards(repository):
        with suppress(AsyncfetchError):  # a file that is no checkpoint, or is gone, holds no parameters
            _, _, header = header_on_disk(Path(file.listed.real), file.path)
            for info in header.tensors.values():
                counted[info.dtype] += math.prod(info.shape)
    return counted


def _shards(repository: Repository) -> list[File]:
    files = repository.files
    if "model.safetensors" in files:
        return [files["model.safetensors"]]
    if (index := files.get(_INDEX)) is not None:
        with suppress(AsyncfetchError, OSError):
            raw = Path(index.listed.real).read_bytes() if index.size <= _MOST_INDEX_BYTES else b""
            shards = dict.fromkeys(parse_index(raw, file=_INDEX, max_bytes=_MOST_INDEX_BYTES).weight_map.values())
            return [files[shard] for shard in shards if shard in files]
    return [file for file in files.values() if file.path.endswith(".safetensors")]
