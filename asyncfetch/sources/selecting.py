"""Which tensors a request wants of those that an index, or a single file, lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..format.index import Index, aliases_in, select_tensors
from ..format.scaled import possible_scales, renamed
from .request import Request

__all__ = ["selected_by"]


def selected_by(request: Request, index: Index, metadata: Mapping[str, Any]) -> tuple[Index, frozenset[str]]:
    """`index` narrowed to what is wanted of it, and which names are so only because they may scale what is.

    `metadata` tells the names of tied tensors. Raises SelectionError if nothing is selected.
    """
    if request.select is None:
        return index, frozenset()
    every = index.weight_map
    aliases = aliases_in([metadata], every)
    if not request.dequantize:
        return select_tensors(index, request.select, aliases), frozenset()
    wanted = select_tensors(index, request.select, aliases | renamed(every)).weight_map
    scales = {scale for name in wanted for scale in possible_scales(name, every)}
    both = {name: shard for name, shard in every.items() if name in wanted or name in scales}
    return replace(index, weight_map=both), frozenset(scales - wanted.keys())
