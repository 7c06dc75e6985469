"""The tensors of files on disk on their way into other files: as they are stored, cast, or dequantised.

Files are read, not mapped: what is mapped would count as memory of this process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import ChangedError, storage_errors
from ..format.arrays import tensor_view
from ..format.dequantize import in_rows
from ..format.dtypes import DTYPES, Array, cast, is_floating
from ..format.header import TensorInfo
from ..format.scaled import ScaledWeight
from ..format.writer import STEP, Outgoing, format_dtype
from ..storage.buffers import aligned_buffer

__all__ = ["Overflows", "StoredFile", "as_stored", "cast_to", "made_numbers"]

_CAST = STEP // 4  # bytes that are cast at once: of one byte may become eight
_NUMBERS = 1 << 22  # that are made of a scaled weight at once


@dataclass(slots=True)
class Overflows:
    """Tensors with numbers that were finite and are not any more, in the dtype that they were cast to."""

    names: dict[str, None] = field(default_factory=dict)

    def look(self, name: str, before: Array, after: Array) -> None:
        """Note the tensor `name` if a number of it got lost."""
        if name not in self.names and np.isfinite(before[~np.isfinite(after)]).any():
            self.names[name] = None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A shard on disk, whose data begins at byte `data_start`. `state` is as it was when its header was read."""

    name: str
    path: Path
    data_start: int
    state: tuple[int, ...]

    @classmethod
    def at(cls, name: str, path: Path, data_start: int) -> StoredFile:
        """The file at `path`. Raises StorageError."""
        with storage_errors(path):
            return cls(name, path, data_start, _state(os.stat(path)))

    def read(self, begin: int, end: int, at_once: int) -> Iterator[memoryview]:
        """The bytes from `begin` to `end` of its data, `at_once` of them. Raises ChangedError, StorageError."""
        buffer = aligned_buffer(min(at_once, end - begin), 0)
        with storage_errors(self.path), open(self.path, "rb", buffering=0) as stream:
            if _state(os.fstat(stream.fileno())) != self.state:
                raise ChangedError(self.name, "it was written to or replaced while it was converted")
            while begin < end:
                view, got = buffer[: min(at_once, end - begin)], 0
                while got < len(view):
                    read = os.preadv(stream.fileno(), [view[got:]], self.data_start + begin + got)
                    if not read:
                        raise ChangedError(self.name, "it was cut short while it was converted")
                    got += read
                yield view
                begin += got

    def array(self, info: TensorInfo, name: str) -> Array:
        """All of a tensor, or of a part of one."""
        nbytes = info.nbytes
        data = next(self.read(info.begin, info.end, nbytes)) if nbytes else memoryview(b"")
        return tensor_view(data, TensorInfo(info.dtype, info.shape, 0, nbytes), 0, file=self.name, tensor=name)


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def as_stored(file: StoredFile, info: TensorInfo) -> Outgoing:
    """A tensor as it is."""
    return Outgoing(info.dtype, info.shape, partial(file.read, info.begin, info.end, STEP))


def cast_to(file: StoredFile, info: TensorInfo, *, name: str, target: np.dtype[Any], overflows: Overflows) -> Outgoing:
    """A tensor in another dtype, as `format.dtypes:cast` does it: what is no float stays as it is."""
    own = DTYPES[info.dtype]
    if own.packed or not is_floating(own.numpy) or own.numpy == target:
        return as_stored(file, info)
    narrower = _is_narrower(target, own.numpy)

    def pieces() -> Iterator[memoryview]:
        for view in file.read(info.begin, info.end, _CAST):
            numbers = np.frombuffer(view, own.numpy)
            with np.errstate(over="ignore", invalid="ignore"):
                made = cast(numbers, target)
            if narrower:
                overflows.look(name, numbers, made)
            yield made.view(np.uint8).data

    return Outgoing(format_dtype(np.empty(0, target)), info.shape, pieces)


def _is_narrower(target: np.dtype[Any], own: np.dtype[Any]) -> bool:
    """Whether a number of `own` may lie beyond those of `target`; F8_E8M0 has none below zero."""
    one, other = (ml_dtypes.finfo(dtype) for dtype in (target, own))  # type: ignore[no-untyped-call]
    return float(one.max) < float(other.max) or float(one.min) > float(other.min)


def made_numbers(
    found: ScaledWeight,
    stored: dict[str, tuple[StoredFile, TensorInfo]],
    target: np.dtype[Any] | None,
    overflows: Overflows,
) -> Outgoing:
    """The numbers of a scaled weight, as `format.dequantize:dequantized` gives them, some of its rows at a time.

    `stored` has the weight and its scales by their names.
    """
    dtype = np.dtype(np.float32) if target is None else target
    narrow = _is_narrower(dtype, np.dtype(np.float32))
    file, info = stored[found.weight]

    def pieces() -> Iterator[memoryview]:
        scale, *others = [at.array(entry, name) for name in found.scales for at, entry in [stored[name]]]
        for rows in in_rows(found, info, scale, others[0] if others else None, _NUMBERS):
            made = rows.numbers(file.array(rows.info, found.weight), target)
            if narrow and not np.isfinite(made).all():
                overflows.names[found.name] = None
            yield np.ascontiguousarray(made).reshape(-1).view(np.uint8).data

    return Outgoing(format_dtype(np.empty(0, dtype)), found.result, pieces)
