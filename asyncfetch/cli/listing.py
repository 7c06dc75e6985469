"""What the commands found, on stdout: as tables, or as one JSON object of type "result"."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..api.results import Inspection, Snapshot, VerifiedFile
from ..events import Resolved
from ..format.layers import folded_layers
from ..format.writer import format_dtype, logical_shape
from ..progress.text import files, printable, size_text
from ..words import redact_source
from .output import NO_ROOM, flush_stdout, print_json, print_table, stdout_errors
from .planning import Room

__all__ = [
    "TENSOR_COLUMNS",
    "Row",
    "list_plan",
    "list_snapshot",
    "list_tensors",
    "list_verified",
    "print_result",
    "tensor_cells",
    "tensor_objects",
]

TENSOR_COLUMNS = ["tensor", "dtype", "shape", "bytes", "shard"]


def list_tensors(
    tensors: Mapping[str, np.ndarray[Any, Any]],
    found: Inspection,
    *,
    output: Path | None,
    every: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """The tensors of a state dict, each with its shard; on a terminal those that are alike together, unless `every`."""
    rows = [
        (name, format_dtype(array), logical_shape(array), array.nbytes, found.tensors[name][0])
        for name, array in tensors.items()
    ]
    parameters, nbytes = sum(math.prod(row[2]) for row in rows), sum(row[3] for row in rows)
    if as_json:
        print_result(
            "load",
            source=found.source,
            commit=found.commit,
            index=found.index,
            parameters=parameters,
            nbytes=nbytes,
            output=None if output is None else str(output),
            tensors=tensor_objects(rows),
        )
        return
    _print_tensors(rows, every=every)
    if not quiet:
        _aside(f"{len(rows):,} tensors, {parameters:,} parameters, {size_text(nbytes)}")


def list_snapshot(source: str, snapshot: Snapshot, *, command: str = "download", as_json: bool) -> None:
    """The folder that holds a checkpoint: its path alone, or all its files as JSON."""
    if as_json:
        files = {name: str(path) for name, path in snapshot.files.items()}
        print_result(
            command, source=redact_source(source), commit=snapshot.commit, path=str(snapshot.path), files=files
        )
    else:
        _print_path(snapshot.path)


def list_plan(
    command: str,
    resolved: Resolved,
    *,
    cache: Room | None,
    local: Room | None,
    as_json: bool,
    quiet: bool,
) -> bool:
    """What a download would fetch, where to (`cache` is None for memory), and the folder that it would fill as well.

    Returns whether there is room for it, as far as that is known.
    """
    columns = ["file", "size", "present", "missing", "checksum"]
    rows = [(file.file, file.size, file.present, file.size - file.present, file.checksum) for file in resolved.files]
    size, missing = sum(row[1] for row in rows), sum(row[3] for row in rows)
    fits = all(room is None or room.fits for room in (cache, local))
    if as_json:
        print_result(
            command,
            dry_run=True,
            exit_code=0 if fits else NO_ROOM,
            source=resolved.source,
            commit=resolved.commit,
            index=resolved.index,
            size=size,
            present=size - missing,
            missing=missing,
            cache_dir=None if cache is None else str(cache.folder),
            disk_free=None if cache is None else cache.free,
            **({} if local is None else _local_values(local)),
            files=[dict(zip(columns, row, strict=True)) for row in rows],
        )
        return fits
    cells = [(*row[:4], row[4] or "none") for row in rows]
    print_table(columns, cells, right=columns[1:4], shortened="file", optional=["checksum", "present"])
    if not quiet:
        room = ""
        if cache is not None and cache.free is not None:
            room = f"; {size_text(cache.free)} free in {printable(str(cache.folder))}"
        there = "" if local is None else f"; then put into {printable(str(local.folder))}"
        _aside(f"{files(len(rows))}, {size_text(size)}; {size_text(missing)} to download{room}{there}")
    for what, place, flag in (("download", cache, "--cache-dir"), ("put there", local, "--local-dir")):
        if place is not None and not place.fits:
            room = f"{printable(str(place.folder))} has room for {size_text(place.free or 0)}"
            _aside(f"asyncfetch: {size_text(place.needed)} to {what}, and {room}.")
            _aside(f"hint: Free some space, or name another place with {flag}.")
    return fits


def _local_values(local: Room) -> dict[str, object]:
    return {"local_dir": str(local.folder), "local_needed": local.needed, "local_free": local.free}


def list_verified(source: str, files: Sequence[VerifiedFile], *, mend: str, exit_code: int, as_json: bool) -> None:
    """Each cached file, and whether its bytes are still right. `mend`: what helps where they are not."""
    if as_json:
        objects = [
            {
                "file": file.file,
                "path": str(file.path),
                "size": file.size,
                "checksum": file.checksum,
                "ok": file.ok,
                "error": file.error,
            }
            for file in files
        ]
        ok = exit_code == 0
        print_result("verify", source=redact_source(source), ok=ok, exit_code=exit_code, files=objects)
        return
    words = {True: "ok", False: "wrong", None: "no checksum known"}
    print_table(["file", "size", "state"], [(file.file, file.size, words[file.ok]) for file in files], right=["size"])
    wrong = [file for file in files if file.ok is False]
    for file in wrong:
        _aside(f"asyncfetch: {printable(file.error or f'{file.file} is wrong')}")
    if wrong:
        _aside(f"hint: {printable(mend)}")


Row = tuple[str, str, tuple[int, ...], int, str]


def print_result(command: str, **values: object) -> None:
    print_json({"type": "result", "command": command, **values})


def _aside(line: str) -> None:
    """A line on stderr, after what stdout has so far."""
    flush_stdout()
    print(line, file=sys.stderr)


def _print_path(path: Path) -> None:
    """The path as the bytes that the file system has for it, whatever the locale."""
    with stdout_errors():
        sys.stdout.flush()
        sys.stdout.buffer.write(bytes(path) + b"\n")


def _print_tensors(rows: Sequence[Row], *, every: bool) -> None:
    """A line for each tensor, or on a terminal for those that differ in the number of their layer alone."""
    if every or not sys.stdout.isatty():
        print_table(TENSOR_COLUMNS, tensor_cells(rows), right=["bytes"], shortened="tensor")
        return
    layers = folded_layers(row[:4] for row in rows)
    cells = ((one.name, one.dtype, _shape_text(one.shape), one.count, one.nbytes) for one in layers)
    print_table(["tensor", "dtype", "shape", "tensors", "bytes"], cells, right=["tensors", "bytes"], shortened="tensor")


def _shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def tensor_objects(rows: Sequence[Row]) -> dict[str, dict[str, object]]:
    return {
        name: {"dtype": dtype, "shape": shape, "nbytes": nbytes, "shard": shard}
        for name, dtype, shape, nbytes, shard in rows
    }


def tensor_cells(rows: Sequence[Row]) -> Iterator[tuple[object, ...]]:
    for name, dtype, shape, nbytes, shard in rows:
        yield name, dtype, _shape_text(shape), nbytes, shard
