"""What the public functions return."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress.text import size_text
from .html import tensor_table

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from ..format.dtypes import Array
    from ..format.header import Header, TensorInfo

    T = TypeVar("T", default=Array)
else:
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["Inspection", "MemoryNeed", "Quantized", "ShardInspection", "Snapshot", "StateDict", "VerifiedFile"]

_SHOWN = 4  # names in a short repr


class StateDict(dict[str, T]):
    """Tensor names to numpy arrays, or to tensors of torch: a dict with a short repr.

    It is a dict wherever types are asked for, and a plain one once it is copied or pickled. Where JAX has
    been imported, it is a pytree as dicts are.
    """

    def __init__(self, tensors: Mapping[str, T]) -> None:
        super().__init__(tensors)
        if "jax" in sys.modules:
            _register_as_pytree(sys.modules["jax"])

    def __repr__(self) -> str:
        tensors: dict[str, Any] = {**self}
        shown = [
            f"{name!r}: {str(one.dtype).removeprefix('torch.')}{list(one.shape)}"
            for name, one in islice(tensors.items(), _SHOWN + 1)
        ]
        nbytes = sum(one.nbytes for one in tensors.values())
        return f"StateDict({len(self):,} tensors, {nbytes:,} bytes: {_some(shown)})"

    def _repr_html_(self) -> str:
        tensors: dict[str, Any] = {**self}
        nbytes = sum(one.nbytes for one in tensors.values())
        rows = (
            (name, str(one.dtype).removeprefix("torch."), tuple(one.shape), one.nbytes) for name, one in tensors.items()
        )
        return tensor_table(f"{len(self):,} tensors, {size_text(nbytes)}", rows)

    def __reduce__(self) -> tuple[type[dict[str, T]], tuple[dict[str, T]]]:
        return dict, (dict(self),)

    def copy(self) -> dict[str, T]:
        """A plain dict of the same arrays."""
        return dict(self)


def _register_as_pytree(jax: Any) -> None:
    """JAX knows pytrees by their exact type, so it is told of this one."""
    with suppress(AttributeError, ValueError):  # it is registered already, or JAX is half imported
        jax.tree_util.register_pytree_node(
            StateDict,
            lambda tensors: ([tensors[name] for name in sorted(tensors)], tuple(sorted(tensors))),
            lambda names, arrays: dict(zip(names, arrays, strict=True)),
        )


def _some(shown: list[str]) -> str:
    return ", ".join([*shown[:_SHOWN], *(["..."] if len(shown) > _SHOWN else [])])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint on disk. `path` is its folder, `files` maps names in the source to paths.

    `commit` is the Hub's commit, None for a local folder; for a plain URL it names the state that
    the server's validators describe.
    """

    path: Path
    commit: str | None
    files: dict[str, Path]

    def __repr__(self) -> str:
        return (
            f"Snapshot({str(self.path)!r}, commit={self.commit!r}, {len(self.files):,} files: {_some([*self.files])})"
        )


@dataclass(frozen=True, slots=True)
class ShardInspection:
    """One shard: `size` and `present` are bytes; `present` of them need no download."""

    file: str
    size: int
    present: int
    header: Header

    def __repr__(self) -> str:
        tensors = len(self.header.tensors)
        return f"ShardInspection({self.file!r}, {tensors:,} tensors, {self.present:,} of {self.size:,} bytes present)"


@dataclass(frozen=True, slots=True)
class Quantized:
    """Weights that are stored in fewer bits than their numbers have, all in one way.

    `count` weights of `dtype`, with an entry of a scale of dtype `scale` for each `shared_by`: "row", "tensor", "block
    of 128 x 128". `nbytes` are those of weights and scales. `flaw` says why `dequantize=True` cannot give their
    numbers; it is "" where it can.
    """

    dtype: str
    scale: str | None
    shared_by: str
    count: int
    nbytes: int
    flaw: str


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What one way of loading needs in memory, in bytes, beside what Python and its libraries take.

    `way` is one such as "load, dequantized" or "stream, in memory alone" (`storage="memory"`). `own`: memory of the
    process alone, at most at any moment. `mapped`: pages of files in the cache, which the system gives back where it
    has no room. Tensors of torch are on the same memory as arrays.
    """

    way: str
    own: int
    mapped: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a checkpoint holds. `tensors` maps each selected name to (shard, dtype and shape).

    `parameters` counts numbers: of a weight that is stored beside a scale those that it stands for, and not the scale.
    """

    source: str
    commit: str | None
    index: str | None
    shards: tuple[ShardInspection, ...]
    tensors: dict[str, tuple[str, TensorInfo]]
    metadata: dict[str, Any]
    parameters: int = 0
    quantized: tuple[Quantized, ...] = ()
    memory: tuple[MemoryNeed, ...] = ()

    def __repr__(self) -> str:
        size = sum(shard.size for shard in self.shards)
        what = f"{len(self.tensors):,} tensors in {len(self.shards):,} shards of {size:,} bytes"
        return f"Inspection({self.source!r}, commit={self.commit!r}, {what})"

    def _repr_html_(self) -> str:
        size, missing = sum(one.size for one in self.shards), sum(one.size - one.present for one in self.shards)
        at = f" at {self.commit[:12]}" if self.commit else ""
        here = f"{size_text(missing)} to download" if missing else "all here"
        what = f"{len(self.tensors):,} tensors in {len(self.shards):,} shards, {size_text(size)}, {here}"
        what = f"{self.parameters:,} parameters, {what}" if self.parameters else what
        return tensor_table(
            f"{self.source}{at}: {what}", ((name, i.dtype, i.shape, i.nbytes) for name, (_, i) in self.tensors.items())
        )


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """A cached file after its hash was taken again. `ok` is None where no hash is known, and its header is right."""

    file: str
    path: Path
    size: int
    checksum: str | None
    ok: bool | None
    error: str | None
