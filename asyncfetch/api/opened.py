"""Tensors on demand: a checkpoint whose headers were read, and of which only what is asked for is fetched."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, KeysView
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import anyio
import numpy as np
from anyio import to_thread

from ..errors import SelectionError, SourceError
from ..format.arrays import tensor_view
from ..format.dtypes import DTYPES, Array, cast, dtype_of
from ..format.header import TensorInfo
from ..format.hostile import short_repr
from ..format.index import Selector, select_tensors
from ..format.near import near_name
from ..format.slices import BasicIndex, Selection, SlicePlan, plan_slice, rank_index, select_part, tensor_piece
from ..sources.located import Located, SourceFile, aliases_of
from ..storage.buffers import aligned_buffer
from ..tasks import plain_errors
from ..tensors.gather import Gatherer, Want
from .blocking import Handle, blocking_method
from .options import DTypeLike
from .public import within
from .results import StateDict

__all__ = ["BlockingCheckpoint", "Checkpoint", "StoredTensor"]

P = ParamSpec("P")
T = TypeVar("T")


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


class _Contents:
    """What both faces of an opened checkpoint tell without a request."""

    def __repr__(self) -> str:
        located = self._located
        commit = f"@{located.commit[:12]}" if located.commit else ""
        what = f"{len(self):,} tensors in {len(located.files):,} shards, {self.nbytes:,} bytes"
        return f"<{type(self).__name__} of {located.source}{commit}: {what}>"

    def __init__(self, located: Located) -> None:
        self._located = located
        self._selected = located.wanted
        self._files = {file.name: file for file in located.files}

    def keys(self) -> KeysView[str]:
        """The names of the selected tensors, in the order of the index (a single file: of its data)."""
        return self._selected.weight_map.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._selected.weight_map

    def __len__(self) -> int:
        return len(self._selected.weight_map)

    def info(self, name: str) -> StoredTensor:
        """Dtype, shape, bytes and place of a tensor. Raises SelectionError for an unknown name."""
        file, info, offset = self._find(name)
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
        """Tied names that the writer dropped, as the metadata tells: {dropped name: name that was kept}."""
        return aliases_of(self._located, self._selected.weight_map)

    @property
    def nbytes(self) -> int:
        """Bytes of all selected tensors as they are stored."""
        return sum(self._find(name)[1].nbytes for name in self.keys())

    def plan_of(
        self,
        name: str,
        index: BasicIndex = ...,
        *,
        axis: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> SlicePlan:
        """How `tensor(name, index)` is fetched; or, with `rank` and `world_size`, `shard_of`.

        The plan is that of a file of which nothing is here: cached shards answer without a request,
        and so do the first bytes of a file, which came with its header.
        """
        _, info, offset = self._find(name)
        if rank is not None or world_size is not None:
            if index is not ... or rank is None or world_size is None:
                raise SourceError("A plan is of an index, or else of a rank and a world_size.")
            index = rank_index(info.shape, axis=axis, rank=rank, world_size=world_size)
        if DTYPES[info.dtype].packed:
            if index is not ...:
                raise _packed(name, info)
            return plan_slice((info.nbytes,), 1, offset=offset)
        return plan_slice(info.shape, DTYPES[info.dtype].numpy.itemsize, index, offset=offset)

    def _find(self, name: str) -> tuple[SourceFile, TensorInfo, int]:
        """The file of a tensor, its header's entry, and its first byte in the file."""
        shard = self._selected.weight_map.get(name) if isinstance(name, str) else None
        if shard is None:
            close = near_name(str(name), self.keys())
            hint = "keys() has the names." if close is None else f"Is it {short_repr(close)}?"
            raise SelectionError(f"{self._located.source} has no tensor {short_repr(name)}.", hint=hint)
        file = self._files[self._located.path_of(shard)]
        header = file.known_header
        info = header.tensors[name]
        return file, info, header.data_start + info.begin


def _packed(name: str, info: TensorInfo) -> SourceError:
    return SourceError(
        f"{short_repr(name)} is packed ({info.dtype}): a part of it has no bytes of its own.",
        hint="Fetch the whole tensor and unpack() it, then slice.",
    )


@dataclass(eq=False, slots=True)
class _Part:
    """A tensor or a part of one, on its way. `selection` is None for a whole tensor."""

    name: str
    file: SourceFile
    info: TensorInfo
    selection: Selection | None
    memory: memoryview
    want: Want

    def array(self, dtype: np.dtype[Any] | None) -> Array:
        """The array on the part's memory, which is full; cast where `dtype` asks for it."""
        shape = self.info.shape if self.selection is None else self.selection.shape
        info = TensorInfo(self.info.dtype, shape, 0, len(self.memory))
        array = tensor_view(self.memory, info, 0, file=self.file.name, tensor=self.name)
        for axis in self.selection.reversed_axes if self.selection is not None else ():
            array = np.flip(array, axis)
        return array if dtype is None else cast(array, dtype)


class Checkpoint(_Contents):
    """An opened checkpoint: `async with asyncfetch.open_async(source) as checkpoint`, or
    `checkpoint = await asyncfetch.open_async(source)`, and then `await checkpoint.aclose()`.

    Each array that it returns has memory of its own, 64-byte aligned, filled by the network or the
    disk itself. Files in the cache, and local ones, are read without a request; of the others only
    ranges are fetched, and nothing is written. Calls may run at the same time; all of them
    together use at most `policy.connections` connections.

    A part of a file cannot be held against the hash of the whole: what is checked of a range is its
    place, the file's size and its strong ETag, which must stay the same from the header to the last
    read (ChangedError). Use `load_async` where each byte must be verified. A server without ranges sends
    a file from its beginning for each read.
    """

    def __init__(
        self, located: Located, gatherer: Gatherer, dtype: np.dtype[Any] | None, timeout: float | None = None
    ) -> None:
        super().__init__(located)
        self.timeout = timeout  # seconds for each blocking call
        self._gatherer = gatherer
        self._dtype = dtype
        self._open = True
        self._holds = AsyncExitStack()

    async def tensor(self, name: str, index: BasicIndex = ..., *, dtype: DTypeLike | None = None) -> Array:
        """One tensor, or `full[index]` of it, of which only the stretches that are needed are fetched.

        `index` is numpy's basic indexing: ints, slices with any step, Ellipsis, None, such as
        `np.s_[:10, ..., ::2]`. A single element comes as an array without dimensions. F4 and F6
        come whole, as PackedArray. `dtype` casts as in `load_async`; None is that of `open_async`.

        Raises IndexError as numpy does, SelectionError for an unknown name, SourceError for what is
        no basic index, ChangedError, and the network's errors after retries.
        """
        return (await self._fetch([(name, index)], dtype))[name]

    async def tensors(self, names: Iterable[str], *, dtype: DTypeLike | None = None) -> dict[str, Array]:
        """Some whole tensors, in the order of `names`: neighbours in one range, all ranges at once."""
        if isinstance(names, str):
            raise SourceError(f"tensors() takes several names, not one: {short_repr(names)}.", hint="Use tensor().")
        return await self._fetch([(name, ...) for name in dict.fromkeys(names)], dtype)

    async def state_dict(self, select: Selector = None, *, dtype: DTypeLike | None = None) -> StateDict:
        """All tensors, or those that `select` picks as in `load_async`, in the order of `keys()`."""
        chosen = select_tensors(self._selected, select)
        return StateDict(await self._fetch([(name, ...) for name in chosen.weight_map], dtype))

    async def shard_of(
        self, name: str, axis: int = 0, *, rank: int, world_size: int, dtype: DTypeLike | None = None
    ) -> Array:
        """The part of a tensor that `rank` of `world_size` holds: `numpy.array_split(full, world_size, axis)[rank]`.

        Along axis 0 a rank fetches just its bytes. Along another axis it fetches its stretches in
        several ranges where that is cheaper, otherwise all rows, and keeps its columns only;
        `plan_of` tells which. Raises SourceError when there is no such axis or rank.
        """
        index = rank_index(self._find(name)[1].shape, axis=axis, rank=rank, world_size=world_size)
        return (await self._fetch([(name, index)], dtype))[name]

    async def _fetch(self, wanted: list[tuple[str, BasicIndex]], dtype: DTypeLike | None) -> dict[str, Array]:
        self._check_open()
        target = self._dtype if dtype is None else dtype_of(dtype)
        parts = [self._part(name, index) for name, index in wanted]
        with plain_errors():
            await self._gatherer.read([part.want for part in parts])
        if target is None:
            return {part.name: part.array(None) for part in parts}
        arrays: dict[str, Array] = {}
        for part in parts:
            arrays[part.name] = await to_thread.run_sync(part.array, target)
            part.memory = part.want = None  # type: ignore[assignment]  # so that both copies live for one tensor only
        return arrays

    def _part(self, name: str, index: BasicIndex) -> _Part:
        file, info, offset = self._find(name)
        selection = None
        if index is ...:
            nbytes = info.nbytes
            pieces = [tensor_piece(offset, nbytes)] if nbytes else []
        else:
            if DTYPES[info.dtype].packed:
                raise _packed(name, info)
            selection = select_part(info.shape, DTYPES[info.dtype].numpy.itemsize, index, offset=offset)
            nbytes = selection.nbytes
            pieces = list(selection.pieces())
        memory = aligned_buffer(nbytes, 0)
        return _Part(name, file, info, selection, memory, Want(file, pieces, memory))

    def blocking(self, handle: Handle[Checkpoint]) -> BlockingCheckpoint:
        """The same for blocking code."""
        return BlockingCheckpoint(handle)

    def _check_open(self) -> None:
        if not self._open:
            raise SourceError("The checkpoint is closed.", hint="Use it inside its `with` block, or before close().")

    async def aclose(self) -> None:
        """Close the connections and the files that it holds. A second time it does nothing."""
        self._open = False
        holds = self._holds.pop_all()
        with anyio.CancelScope(shield=True):
            await self._gatherer.aclose()
            await holds.aclose()

    async def __aenter__(self) -> Checkpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def keep_until_closed(self, holds: AsyncExitStack) -> None:
        """`holds` is what it needs as long as it is open."""
        self._holds = holds


class BlockingCheckpoint(_Contents):
    """The blocking form of `Checkpoint`: `checkpoint = asyncfetch.open(source)`, or the same in a `with` block.

    Threads may share it. A process that is forked meanwhile may not use it (SourceError): it opens its own.
    """

    def __init__(self, handle: Handle[Checkpoint]) -> None:
        super().__init__(handle.value._located)
        self._handle = handle

    def _run(self, work: Callable[[Checkpoint], Coroutine[Any, Any, T]]) -> T:
        checkpoint = self._handle.value
        checkpoint._check_open()
        return self._handle.run(lambda: within(checkpoint.timeout, lambda: work(checkpoint)))

    tensor = blocking_method(Checkpoint.tensor)
    tensors = blocking_method(Checkpoint.tensors)
    state_dict = blocking_method(Checkpoint.state_dict)
    shard_of = blocking_method(Checkpoint.shard_of)

    def close(self) -> None:
        """Close the connections and the files that it holds. A second time it does nothing."""
        self._handle.close()

    def __enter__(self) -> BlockingCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
