"""Tensors on demand: a checkpoint whose headers were read, and of which only what is asked for is fetched."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

import anyio
import numpy as np

from ..errors import SourceError
from ..format.dtypes import Array, dtype_of
from ..format.hostile import short_repr
from ..format.index import Selector, select_tensors
from ..format.ranks import Cut, Parts, Split, cut_of_rank
from ..format.slices import BasicIndex
from ..sources.located import Located
from ..tasks import off_loop, plain_errors
from ..tensors.gather import Gatherer
from ..tensors.portions import portion_of
from ..tensors.scaled import ScaledIn
from ..tensors.scaling import Scaling, cast_alone
from .asked import Asked
from .blocking import Handle, blocking_method
from .contents import Contents, StoredTensor
from .form import Maker
from .options import DTypeLike
from .public import within
from .results import StateDict, T

__all__ = ["BlockingCheckpoint", "Checkpoint", "StoredTensor"]

R = TypeVar("R")


class Checkpoint(Contents, Generic[T]):
    """An opened checkpoint: `async with asyncfetch.open_async(source) as checkpoint`, or
    `checkpoint = await asyncfetch.open_async(source)`, and then `await checkpoint.aclose()`.

    Each array that it returns has memory of its own, 64-byte aligned, filled by the network or the
    disk itself; with `framework="torch"` it is a tensor on that memory. Files in the cache, and local
    ones, are read without a request; of the others only ranges are fetched, and nothing is written. Calls
    may run at the same time; all of them together use at most `policy.connections` connections.

    A part of a file cannot be held against the hash of the whole: what is checked of a range is its
    place, the file's size and its strong ETag, which must stay the same from the header to the last
    read (ChangedError). Use `load_async` where each byte must be verified. A server without ranges sends
    a file from its beginning for each read.
    """

    def __init__(
        self,
        located: Located,
        gatherer: Gatherer,
        dtype: np.dtype[Any] | None,
        timeout: float | None = None,
        scaling: Scaling | None = None,
        maker: Maker | None = None,
    ) -> None:
        super().__init__(located, scaling)
        self.timeout = timeout  # seconds for each blocking call
        self._gatherer = gatherer
        self._dtype = dtype
        self._scaled = ScaledIn(located)
        self._maker = Maker(torch=False) if maker is None else maker
        self._open = True
        self._holds = AsyncExitStack()

    async def tensor(self, name: str, index: BasicIndex = ..., *, dtype: DTypeLike | None = None) -> T:
        """One tensor, or `full[index]` of it, of which only the stretches that are needed are fetched.

        `index` is numpy's basic indexing: ints, slices with any step, Ellipsis, None, such as
        `np.s_[:10, ..., ::2]`. A single element comes as an array without dimensions. F4 and F6
        come as PackedArray; a part of one must begin and end with whole bytes, as rows mostly do.
        `dtype` casts as in `load_async`; None is that of `open_async`. A tied name that was not
        written (`aliases`) gives the tensor that was.

        Raises IndexError as numpy does, SelectionError for an unknown name, SourceError for what is
        no basic index or has no bytes of its own, ChangedError, and the network's errors after retries.
        """
        return (await self._fetch([self._part(name, index)], dtype))[0]

    async def tensors(self, names: Iterable[str], *, dtype: DTypeLike | None = None) -> dict[str, T]:
        """Some whole tensors, in the order of `names`: neighbours in one range, all ranges at once.

        Names that are tied get the same array.
        """
        if isinstance(names, str):
            raise SourceError(f"tensors() takes several names, not one: {short_repr(names)}.", hint="Use tensor().")
        kept = {name: self._find(name)[0] for name in names}
        stored = list(dict.fromkeys(kept.values()))
        arrays = dict(zip(stored, await self._fetch([self._asked(name) for name in stored], dtype), strict=True))
        return {name: arrays[source] for name, source in kept.items()}

    async def slices(
        self, wanted: Mapping[str, Sequence[BasicIndex]], *, dtype: DTypeLike | None = None
    ) -> dict[str, list[T]]:
        """Several parts of several tensors: `{name: [index, ...]}`, each part as `tensor(name, index)` gives it.

        Neighbours are fetched in one range, and all ranges at once. Ranges of parts that overlap are
        fetched for each of them.
        """
        if not isinstance(wanted, Mapping):
            raise SourceError(f"slices() takes lists of indices by name, not {short_repr(wanted)}.")
        for name, indices in wanted.items():
            if not isinstance(indices, Sequence) or isinstance(indices, tuple | str):
                given = f"{short_repr(indices)} for {short_repr(name)}"
                hint = "Use tensor() for one part."
                raise SourceError(f"slices() takes a list of indices for each name, not {given}.", hint=hint)
        parts = [self._part(name, index) for name, indices in wanted.items() for index in indices]
        arrays = iter(await self._fetch(parts, dtype))
        return {name: [next(arrays) for _ in indices] for name, indices in wanted.items()}

    async def state_dict(self, select: Selector = None, *, dtype: DTypeLike | None = None) -> StateDict[T]:
        """All tensors, or those that `select` picks as in `load_async`, in the order of `keys()`."""
        chosen = select_tensors(replace(self._selected, weight_map=self._names), select, self._tied())
        return StateDict(await self.tensors(chosen.weight_map, dtype=dtype))

    async def shard_of(
        self,
        name: str,
        axis: int = 0,
        *,
        rank: int,
        world_size: int,
        parts: Parts = 1,
        split: Split = "chunk",
        dtype: DTypeLike | None = None,
    ) -> T:
        """The part of a tensor that `rank` of `world_size` holds, split along `axis`.

        `split="chunk"` is the rule of torch.chunk, DTensor's Shard and the inference engines: blocks of
        ceil(size / world_size), of which the last ranks get less, or nothing (an empty array): 4 rows over
        3 ranks are 2, 2, 0. `split="array_split"` is that of numpy.array_split: 4 rows over 3 ranks are 2, 1, 1.

        `parts` splits each of the tensors that were fused along `axis` for itself, and joins what the rank
        holds of each: their number where they are equal (`parts=3` for query, key and value, 2 for gate
        and up), or else their sizes (`parts=(4096, 1024, 1024)` for grouped queries).

        Along axis 0 a rank fetches just its bytes. Along another axis it fetches its stretches in
        several ranges where that is cheaper, otherwise all rows, and keeps its columns only;
        `plan_of` tells which. Raises SourceError when there is no such axis, rank or part, and where a part
        of a packed tensor (F4, F6) would begin or end within a byte.
        """
        kept, _, info = self._find(name)
        shape = self._shape(kept, info)
        cut = cut_of_rank(shape, axis=axis, rank=rank, world_size=world_size, parts=parts, split=split)
        return (await self._fetch([self._asked(kept, cut)], dtype))[0]

    async def _cuts(self, wanted: Mapping[str, Cut | None]) -> list[Array]:
        """A part of each of some tensors, or all of it, as arrays."""
        return await self._arrays([self._asked(self._find(name)[0], cut) for name, cut in wanted.items()], None)

    async def _fetch(self, asked: list[Asked], dtype: DTypeLike | None) -> list[T]:
        arrays = await self._arrays(asked, dtype)
        if self._maker.mover is None:
            return self._maker.every(arrays)
        return await off_loop(partial(self._maker.every, arrays), slow=True)

    async def _arrays(self, asked: list[Asked], dtype: DTypeLike | None) -> list[Array]:
        self._check_open()
        target = self._dtype if dtype is None else dtype_of(dtype)
        if target is not None and self._scaling is None:
            for found in self._scaled.of(one.name for one in asked):
                raise cast_alone(found, target)
        with plain_errors():
            await self._gatherer.read([want for one in asked for want in one.wants()])
        if target is None and self._scaling is None:
            return [one.array(None) for one in asked]
        arrays = []
        for one in asked:
            arrays.append(await off_loop(partial(one.array, target), slow=True))
            one.drop()  # so that both copies live for one tensor only
        return arrays

    def _part(self, name: str, index: BasicIndex = ...) -> Asked:
        kept, _, info = self._find(name)
        return self._asked(kept, None if index is ... else Cut(self._shape(kept, info), (index,)))

    def _asked(self, kept: str, cut: Cut | None = None) -> Asked:
        """What is fetched for a part of a stored tensor: just that, or a weight and its scales."""
        scaling = self._scaling
        if scaling is None or kept not in scaling.weights:
            return Asked(kept, [portion_of(*self._stored(kept), cut)])
        names = (kept, *scaling.weights[kept].scales)
        return Asked(kept, [portion_of(*self._stored(name), None) for name in names], scaling, cut)

    def blocking(self, handle: Handle[Checkpoint[T]]) -> BlockingCheckpoint[T]:
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
            await self._maker.aclose()
            await holds.aclose()

    async def __aenter__(self) -> Checkpoint[T]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def keep_until_closed(self, holds: AsyncExitStack) -> None:
        """`holds` is what it needs as long as it is open."""
        self._holds = holds


class BlockingCheckpoint(Contents, Generic[T]):
    """The blocking form of `Checkpoint`: `checkpoint = asyncfetch.open(source)`, or the same in a `with` block.

    Threads may share it. A process that is forked meanwhile may not use it (SourceError): it opens its own.
    """

    def __init__(self, handle: Handle[Checkpoint[T]]) -> None:
        super().__init__(handle.value._located, handle.value._scaling)
        self._handle = handle

    def _run(self, work: Callable[[Checkpoint[T]], Coroutine[Any, Any, R]]) -> R:
        checkpoint = self._handle.value
        checkpoint._check_open()
        return self._handle.run(lambda: within(checkpoint.timeout, lambda: work(checkpoint)))

    tensor = blocking_method(Checkpoint[T].tensor)
    tensors = blocking_method(Checkpoint[T].tensors)
    slices = blocking_method(Checkpoint[T].slices)
    state_dict = blocking_method(Checkpoint[T].state_dict)
    shard_of = blocking_method(Checkpoint[T].shard_of)

    def close(self) -> None:
        """Close the connections and the files that it holds. A second time it does nothing."""
        self._handle.close()

    def __enter__(self) -> BlockingCheckpoint[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
