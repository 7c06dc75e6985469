"""What an opened checkpoint tells without a request: names, dtypes, shapes, places, plans."""

from __future__ import annotations

from collections.abc import KeysView
from dataclasses import dataclass
from typing import Any

from ..errors import SelectionError, SourceError
from ..format.header import TensorInfo
from ..format.hostile import short_repr
from ..format.near import near_name
from ..format.ranks import Cut, Parts, Split, cut_of_rank
from ..format.slices import BasicIndex, SlicePlan
from ..progress.text import size_text
from ..sources.located import Located, SourceFile, aliases_of
from ..tensors.portions import plan_cut
from ..tensors.scaling import Scaling
from .html import tensor_table

__all__ = ["Contents", "StoredTensor"]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is. `dtype` is the format's name; `shape` counts elements, also of F4 and F6.

    Its `nbytes` bytes begin at byte `offset` of the file `shard`, a path in the source.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    shard: str
    offset: int


class Contents:
    """What both faces of an opened checkpoint tell without a request."""

    def __repr__(self) -> str:
        located = self._located
        commit = f"@{located.commit[:12]}" if located.commit else ""
        what = f"{len(self):,} tensors in {len(located.files):,} shards, {self.nbytes:,} bytes"
        return f"<{type(self).__name__} of {located.source}{commit}: {what}>"

    def _repr_html_(self) -> str:
        located = self._located
        commit = f" at {located.commit[:12]}" if located.commit else ""
        what = f"{len(self):,} tensors in {len(located.files):,} shards, {size_text(self.nbytes)}"
        found = ((name, self._find(name)[2]) for name in self.keys())
        return tensor_table(
            f"{located.source}{commit}: {what}", ((name, info.dtype, info.shape, info.nbytes) for name, info in found)
        )

    def __init__(self, located: Located, scaling: Scaling | None = None) -> None:
        self._located = located
        self._scaling = scaling
        self._names = located.wanted.weight_map if scaling is None else scaling.names
        self._selected = located.wanted
        self._aliases: dict[str, str] | None = None
        self._files = {file.name: file for file in located.files}

    def keys(self) -> KeysView[str]:
        """The names of the selected tensors, in the order of the index (a single file: of its data).

        With `dequantize`, scales that go into a weight are none.
        """
        return self._names.keys()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._names or name in self._tied())

    def __len__(self) -> int:
        return len(self._names)

    def info(self, name: str) -> StoredTensor:
        """Dtype, shape, bytes and place of a tensor as it is stored. Raises SelectionError for an unknown name."""
        _, file, info = self._find(name)
        offset = file.known_header.data_start + info.begin
        return StoredTensor(info.dtype, info.shape, info.nbytes, file.name, offset)

    @property
    def metadata(self) -> dict[str, Any]:
        """The `__metadata__` of all shards in one, and over it the `metadata` of the index."""
        merged: dict[str, Any] = {}
        for file in self._located.files:
            merged |= file.header.metadata if file.header is not None else {}
        return merged | self._selected.metadata

    @property
    def aliases(self) -> dict[str, str]:
        """Tied names that the writer dropped, as the metadata tells: {dropped name: name that was kept}.

        Whatever takes a name takes these too.
        """
        return dict(self._tied())

    def _tied(self) -> dict[str, str]:
        if self._aliases is None:
            self._aliases = aliases_of(self._located, self._names)
        return self._aliases

    @property
    def nbytes(self) -> int:
        """Bytes of all these tensors as they are stored, without scales that go into them."""
        return sum(self._find(name)[2].nbytes for name in self.keys())

    def plan_of(
        self,
        name: str,
        index: BasicIndex = ...,
        *,
        axis: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        parts: Parts = 1,
        split: Split = "chunk",
    ) -> SlicePlan:
        """How `tensor(name, index)` is fetched; or, with `rank` and `world_size`, `shard_of`.

        The plan is that of a file of which nothing is here: cached shards answer without a request,
        and so do the first bytes of a file, which came with its header. A weight that is dequantised is
        fetched whole, and the plan is that of its bytes without its scales.
        """
        kept, file, info = self._find(name)
        shape = self._shape(kept, info)
        cut = Cut(shape, (index,))
        if rank is not None or world_size is not None:
            if index is not ... or rank is None or world_size is None:
                raise SourceError("A plan is of an index, or else of a rank and a world_size.")
            cut = cut_of_rank(shape, axis=axis, rank=rank, world_size=world_size, parts=parts, split=split)
        scaled = self._scaling is not None and kept in self._scaling.weights
        return plan_cut(kept, file, info, Cut(info.shape, (...,)) if scaled else cut)

    def _nbytes_of(self, name: str, cut: Cut | None) -> int:
        """Bytes of a part of a tensor, or of all of it, as they are stored; of a scaled weight always of all."""
        kept, file, info = self._find(name)
        if cut is None or (self._scaling is not None and kept in self._scaling.weights):
            return info.nbytes
        return plan_cut(kept, file, info, cut).nbytes

    def _shape(self, kept: str, info: TensorInfo) -> tuple[int, ...]:
        """The shape of what a stored tensor becomes."""
        found = None if self._scaling is None else self._scaling.weights.get(kept)
        return info.shape if found is None else found.result

    def _find(self, name: str) -> tuple[str, SourceFile, TensorInfo]:
        """The name under which a tensor is stored, its file, and its header's entry."""
        kept = self._tied().get(name, name) if isinstance(name, str) else None
        if kept is None or kept not in self._names:
            close = near_name(str(name), self._names)
            hint = "keys() has the names." if close is None else f"Is it {short_repr(close)}?"
            raise SelectionError(f"{self._located.source} has no tensor {short_repr(name)}.", hint=hint)
        return self._stored(kept if self._scaling is None else self._scaling.names[kept])

    def _stored(self, name: str) -> tuple[str, SourceFile, TensorInfo]:
        """The same of a name that is stored, whether it is a result or goes into one."""
        file = self._files[self._located.path_of(self._selected.weight_map[name])]
        return name, file, file.known_header.tensors[name]
