"""How a state dict is split into shards, what they are called, and the index of them. Pure.

The split, the names and the index are those of huggingface_hub's `split_torch_state_dict_into_shards` and
`save_torch_state_dict`
(https://huggingface.co/docs/huggingface_hub/package_reference/serialization), so that other tools find what they know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SourceError
from ..words import size_of
from .hostile import short_repr
from .index import SUFFIX

__all__ = ["NAMES", "Layout", "check_metadata", "index_text", "laid_out", "names_like", "parse_size"]

NAMES = f"model{{suffix}}{SUFFIX}"
_MOST_SHARDS = 99_999  # the names count with five digits


@dataclass(frozen=True, slots=True)
class Layout:
    """Which tensors each shard holds, in order, by the name of its file; `index` is that of the index, or None."""

    shards: dict[str, list[str]]
    index: str | None
    total_size: int


def parse_size(size: int | str | None) -> int | None:
    """`"5GB"` (10**9 bytes each), `"512MiB"` (2**20) or a number, in bytes; None for no bound. Raises SourceError."""
    if size is None or (type(size) is int and size > 0):
        return size
    found = size_of(size) if isinstance(size, str) else None
    if not found:
        raise SourceError(
            f"max_shard_size={size!r:.80} is no size.", hint='Give "5GB", "512MiB", or a number of bytes.'
        )
    return found


def names_like(pattern: str) -> re.Pattern[str]:
    """The names of all files that a checkpoint with this pattern of names may have. Raises SourceError."""
    before, found, after = str(pattern).partition("{suffix}")
    if not found or not after.endswith(SUFFIX) or re.search(r"[/\\{}:\x00-\x1f]", before + after) or before[:1] == ".":
        hint = f"Give a name with {{suffix}} in it that ends in {SUFFIX}, such as {NAMES!r}."
        raise SourceError(f"filename_pattern={pattern!r:.80} is no pattern of file names.", hint=hint)
    return re.compile(rf"{re.escape(before)}(-\d{{5}}-of-\d{{5}})?{re.escape(after)}(\.index\.json)?")


def laid_out(sizes: Mapping[str, int], limit: int | None, pattern: str = NAMES) -> Layout:
    """The shards of tensors with these sizes, in bytes and in order: none above `limit` but those of one tensor alone.

    Raises SourceError where that would be more than the names can count.
    """
    shards: list[list[str]] = []
    current: list[str] = []
    filled = 0
    for name, nbytes in sizes.items():
        if limit is not None and nbytes > limit:
            shards.append([name])
            continue
        if limit is not None and filled + nbytes > limit:
            shards.append(current)
            current, filled = [], 0
        current.append(name)
        filled += nbytes
    if current or not shards:
        shards.append(current)
    total = sum(sizes.values())
    whole = pattern.format(suffix="")
    if len(shards) == 1:
        return Layout({whole: shards[0]}, None, total)
    if len(shards) > _MOST_SHARDS:
        raise SourceError(f"That would be {len(shards):,} shards.", hint="Give a larger max_shard_size=.")
    names = [pattern.format(suffix=f"-{number:05d}-of-{len(shards):05d}") for number in range(1, len(shards) + 1)]
    return Layout(dict(zip(names, shards, strict=True)), f"{whole}.index.json", total)


def index_text(layout: Layout, metadata: Mapping[str, Any], *, below: str = "") -> bytes:
    """The file that says which tensor is in which shard. `below`: the folder in which the shards are."""
    weight_map = {name: f"{below}{shard}" for shard, names in layout.shards.items() for name in names}
    text = {"metadata": {"total_size": layout.total_size, **metadata}, "weight_map": weight_map}
    return json.dumps(text, indent=2).encode()


def check_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """What a checkpoint says about itself, if it is text by text. Raises SourceError."""
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise SourceError(f"metadata= takes text by text, not {short_repr(key)}: {short_repr(value)}.")
    return dict(metadata or {})
