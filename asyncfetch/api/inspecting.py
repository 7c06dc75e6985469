"""What a checkpoint holds, by its headers: shards, tensors, how they are quantised, and what a load of it needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..engine.bookkeeping import file_states
from ..format.dtypes import DTYPES, dtype_of, is_floating
from ..format.header import TensorInfo
from ..format.scaled import ScaledWeight, foreign_weights
from ..sources.located import Located
from ..tensors.allowance import limit_in_memory
from ..tensors.scaled import scaled_in
from ..tensors.scaling import Scaling
from .results import Inspection, MemoryNeed, Quantized, ShardInspection

__all__ = ["inspection"]


def inspection(located: Located, scaling: Scaling | None = None) -> Inspection:
    """What the headers say of what was located. With `scaling`, tensors are listed by the names of its results."""
    states = {state.file: state for state in file_states(located, "disk")}
    shards = [
        ShardInspection(file.name, file.size, states[file.name].present, file.known_header) for file in located.files
    ]
    by_name = {shard.file: shard for shard in shards}
    tensors: dict[str, tuple[str, TensorInfo]] = {}
    metadata: dict[str, Any] = {}
    for shard in shards:
        metadata |= shard.header.metadata
    index = located.index.file if located.index else None
    if located.selected is None:
        return Inspection(located.source, located.commit, index, tuple(shards), tensors, metadata)
    shard_of = located.selected.weight_map
    for name, source in scaling.names.items() if scaling is not None else zip(shard_of, shard_of, strict=True):
        path = located.path_of(shard_of[source])
        tensors[name] = (path, by_name[path].header.tensors[source])
    metadata |= located.selected.metadata
    scaled = {found.weight: found for found in scaled_in(located, shard_of)}
    stored = {name: by_name[located.path_of(shard)].header.tensors[name] for name, shard in shard_of.items()}
    return Inspection(
        located.source,
        located.commit,
        index,
        tuple(shards),
        tensors,
        metadata,
        parameters=_parameters(stored, scaled),
        quantized=(*_quantized(stored, scaled), *_foreign(stored, scaled)),
        memory=tuple(_needs(shards, stored, scaled)),
    )


def _parameters(stored: Mapping[str, TensorInfo], scaled: Mapping[str, ScaledWeight]) -> int:
    """The numbers of all tensors; of a scaled weight those that it stands for, and none of its scales."""
    scales = {scale for found in scaled.values() for scale in found.scales}
    return sum(
        math.prod(scaled[name].result if name in scaled and not scaled[name].flaw else info.shape)
        for name, info in stored.items()
        if name not in scales
    )


def _quantized(stored: Mapping[str, TensorInfo], scaled: Mapping[str, ScaledWeight]) -> Iterator[Quantized]:
    """The scaled weights, those together that are stored in one way; most bytes first."""
    alike: dict[tuple[str, str | None, str, bool], list[ScaledWeight]] = {}
    for found in scaled.values():
        scale = stored.get(found.scale)
        key = (found.dtype, None if scale is None else scale.dtype, found.shared_by, not found.flaw)
        alike.setdefault(key, []).append(found)
    ways = [
        Quantized(
            dtype,
            scale,
            shared_by,
            count=len(weights),
            nbytes=sum(stored[name].nbytes for one in weights for name in (one.weight, *one.scales) if name in stored),
            flaw=next((f"{one.weight}: {one.flaw}" for one in weights if one.flaw), ""),
        )
        for (dtype, scale, shared_by, _), weights in alike.items()
    ]
    return iter(sorted(ways, key=lambda way: -way.nbytes))


def _foreign(stored: Mapping[str, TensorInfo], scaled: Mapping[str, ScaledWeight]) -> Iterator[Quantized]:
    """Weights that other libraries have quantised, in ways of which only they know the numbers."""
    alike: dict[str, list[str]] = {}
    for name in foreign_weights(stored, scaled):
        alike.setdefault(stored[name].dtype, []).append(name)
    for dtype, names in alike.items():
        nbytes = sum(stored[name].nbytes for name in names)
        flaw = f"{names[0]}: only the library that wrote it knows its numbers"
        yield Quantized(dtype, None, "", count=len(names), nbytes=nbytes, flaw=flaw)


def _needs(
    shards: Iterable[ShardInspection], stored: Mapping[str, TensorInfo], scaled: Mapping[str, ScaledWeight]
) -> Iterator[MemoryNeed]:
    """What each way of loading takes that makes a difference here."""
    sizes = [shard.size for shard in shards]
    whole, largest = sum(sizes), max(sizes, default=0)
    nbytes = sum(info.nbytes for info in stored.values())
    yield MemoryNeed("load", 0, nbytes)
    yield MemoryNeed("load, in memory alone", whole, 0)
    if not scaled:
        for dtype in ("float32", "bfloat16"):
            if cast := {name: size for name, info in stored.items() if (size := _cast_size(info, dtype)) is not None}:
                yield MemoryNeed(
                    f"load, as {dtype}", sum(cast.values()), nbytes - sum(stored[name].nbytes for name in cast)
                )
    elif not any(found.flaw for found in scaled.values()) and not any(True for _ in foreign_weights(stored, scaled)):
        yield from _dequantized_needs(stored, scaled)
    yield MemoryNeed("stream", 0, largest)
    yield MemoryNeed("stream, in memory alone", min(limit_in_memory(None, sizes, {}, early=False), whole), 0)


def _dequantized_needs(stored: Mapping[str, TensorInfo], scaled: Mapping[str, ScaledWeight]) -> Iterator[MemoryNeed]:
    scales = {scale for found in scaled.values() for scale in found.scales}
    numbers = sum(math.prod(found.result) for found in scaled.values())
    others = {name: info for name, info in stored.items() if name not in scaled and name not in scales}
    there = sum(info.nbytes for info in others.values())
    yield MemoryNeed("load, dequantized", 4 * numbers, there)
    cast = {name: size for name, info in others.items() if (size := _cast_size(info, "bfloat16")) is not None}
    own = 2 * numbers + sum(cast.values())
    yield MemoryNeed("load, dequantized to bfloat16", own, there - sum(others[name].nbytes for name in cast))


def _cast_size(info: TensorInfo, dtype: str) -> int | None:
    """The bytes of a tensor that is cast to `dtype`; None where that leaves it as it is."""
    target, there = dtype_of(dtype), DTYPES[info.dtype].numpy
    if DTYPES[info.dtype].packed or not is_floating(there) or there == target:
        return None
    return math.prod(info.shape) * np.dtype(target).itemsize
