"""What `asyncfetch inspect` prints: what a checkpoint holds, where its bytes are, what a load needs in memory."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from ..api.results import Inspection, Quantized, ShardInspection
from ..format.layers import Part, parts_of
from ..progress.text import amount, printable, size_text
from .listing import TENSOR_COLUMNS, Row, print_result, tensor_cells, tensor_objects
from .output import print_table

__all__ = ["list_inspection"]

_MOST_SHARDS = 24  # lines, on a terminal


def list_inspection(found: Inspection, *, tensors: bool, as_json: bool) -> None:
    """Shards, parts, dtypes and totals of a checkpoint, and what a load of it needs; every tensor too if `tensors`."""
    rows = [(name, info.dtype, info.shape, info.nbytes, shard) for name, (shard, info) in found.tensors.items()]
    parts = parts_of((row[0], row[2], row[3]) for row in rows)
    nbytes = sum(row[3] for row in rows)
    if as_json:
        print_result(
            "inspect",
            source=found.source,
            commit=found.commit,
            index=found.index,
            parameters=found.parameters,
            nbytes=nbytes,
            metadata=found.metadata,
            dtypes=_by_dtype(rows),
            parts=[{key: value for key, value in asdict(part).items() if key != "stem"} for part in parts],
            quantized=[asdict(way) for way in found.quantized],
            memory=[asdict(need) for need in found.memory],
            shards=[{"file": s.file, "size": s.size, "present": s.present} for s in found.shards],
            tensors=tensor_objects(rows),
        )
        return
    _print_facts(found, nbytes)
    _print_shards(found.shards)
    _print_parts(parts, nbytes)
    counts = [(name, *count.values()) for name, count in _by_dtype(rows).items()]
    print_table(["dtype", "tensors", "parameters", "bytes"], counts, right=["tensors", "parameters", "bytes"])
    if found.memory:
        print()
        _print_memory(found)
    if tensors:
        print()
        print_table(TENSOR_COLUMNS, tensor_cells(rows), right=["bytes"], shortened="tensor")


def _print_facts(found: Inspection, nbytes: int) -> None:
    facts = {
        "source": found.source,
        "commit": found.commit or "none",
        "index": found.index or "none",
        "tensors": f"{len(found.tensors):,}",
        "parameters": f"{found.parameters:,}",
        "bytes": f"{nbytes:,} ({size_text(nbytes)})",
    }
    if found.quantized:
        facts["quantized"] = "; ".join(map(_way_text, found.quantized))
    facts |= {f"metadata {printable(str(key))}": value for key, value in sorted(found.metadata.items())}
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {printable(str(value))}")
    print()


def _way_text(way: Quantized) -> str:
    scales = f" with a scale ({way.scale}) for each {way.shared_by}" if way.shared_by else ""
    flaw = f", of which --dequantize cannot give the numbers ({way.flaw})" if way.flaw else ""
    return f"{way.count:,} weights as {way.dtype}{scales}, {size_text(way.nbytes)}{flaw}"


def _print_shards(shards: Sequence[ShardInspection]) -> None:
    if sys.stdout.isatty() and len(shards) > _MOST_SHARDS:
        size, present = sum(shard.size for shard in shards), sum(shard.present for shard in shards)
        whole = sum(shard.present >= shard.size for shard in shards)
        here = f"{whole:,} of them cached, {amount(present, size)}" if 0 < present < size else "none cached"
        print(f"{len(shards):,} shards, {size_text(size)}, {'all cached' if present >= size else here}")
    else:
        cells = [(shard.file, shard.size, _cached_text(shard.present, shard.size)) for shard in shards]
        print_table(["shard", "size", "cached"], cells, right=["size"], shortened="shard")
    print()


def _print_parts(parts: Sequence[Part], nbytes: int) -> None:
    cells = [
        (
            part.name,
            part.count,
            part.parameters,
            part.nbytes,
            f"{part.nbytes / nbytes:.0%}" if nbytes else "",
            _layer_text(part),
        )
        for part in parts
    ]
    columns = ["part", "tensors", "parameters", "bytes", "of all", "a layer"]
    print_table(columns, cells, right=columns[1:], shortened="part", optional=["parameters", "tensors"])
    print()


def _layer_text(part: Part) -> str:
    """The size of a layer of a stack, or of its smallest and its largest."""
    if len(part.layers) < 2:
        return ""
    least, most = size_text(min(part.layers.values())), size_text(max(part.layers.values()))
    return most if least == most else f"{least} to {most}"


def _print_memory(found: Inspection) -> None:
    shown = size_text if sys.stdout.isatty() else int
    cells = [(need.way, shown(need.own), shown(need.mapped)) for need in found.memory]
    columns = ["in memory, numpy or torch", "own", "mapped from the cache"]
    print_table(columns, cells, right=columns[1:], shortened=columns[0])


def _by_dtype(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """For each dtype how many tensors, parameters and bytes there are; most bytes first."""
    sums: dict[str, Counter[str]] = {}
    for _, dtype, shape, nbytes, _ in rows:
        sums.setdefault(dtype, Counter()).update(tensors=1, parameters=math.prod(shape), nbytes=nbytes)
    keys = ("tensors", "parameters", "nbytes")
    ordered = sorted(sums.items(), key=lambda item: -item[1]["nbytes"])
    return {dtype: {key: counts[key] for key in keys} for dtype, counts in ordered}


def _cached_text(present: int, size: int) -> str:
    if present >= size:
        return "yes"
    return amount(present, size) if present else "no"
