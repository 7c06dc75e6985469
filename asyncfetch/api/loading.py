"""A checkpoint into a model: judged by its headers before it is downloaded, then streamed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np

from ..format.arrays import hollow_array
from ..format.dtypes import Array
from ..format.ranks import Cut
from ..models.into import Loading, LoadReport, Rename, Skip, Strict, cast_target
from ..sources.located import Located, aliases_of
from ..spans import MiB
from ..tasks import off_loop
from ..tensors.gather import Gatherer
from ..tensors.scaling import Scaling, refuse_plain_copy
from .form import usable
from .opened import Checkpoint
from .session import Session
from .streaming import feeding

if TYPE_CHECKING:
    from .options import DeviceLike, DTypeLike

__all__ = ["Wishes", "expected_tensors", "load_into"]

_AT_ONCE = 256 * MiB  # of parts of tensors that are read together


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the caller of load_into asks for, as `asyncfetch.models.load_state_dict_into` tells."""

    strict: Strict
    assign: bool
    dtype: DTypeLike | None
    rename: Rename
    skip: Skip
    device: DeviceLike | None = None


async def load_into(model: object, session: Session, wishes: Wishes, *, memory_limit: int | None) -> LoadReport:
    """Judge the fit of a checkpoint by its headers, then stream it into `model`."""
    dtype = cast_target(wishes.dtype)
    if wishes.device is not None:
        wishes = replace(wishes, device=await usable(wishes.device))
    located, scaling = await session.locate_values(dtype)
    loading = await off_loop(lambda: _judged(model, located, scaling, wishes), slow=True)
    try:
        if loading.parts is not None:
            gatherer = Gatherer(located, session.transport, session.request.policy)
            async with Checkpoint(located, gatherer, dtype, None, scaling) as checkpoint:
                await _read_parts(checkpoint, loading, loading.parts, memory_limit or _AT_ONCE)
        else:
            async with feeding(session, located, scaling, dtype=dtype, memory_limit=memory_limit) as tensors:
                async for name, array in tensors:
                    await _put(loading, name, array)
        return await off_loop(loading.finish, slow=True)
    finally:
        if loading.copies:
            with anyio.CancelScope(shield=True):
                await off_loop(loading.close, slow=True)


async def _put(loading: Loading, name: str, array: Array) -> None:
    if loading.copies:
        await off_loop(partial(loading.put, name, array), slow=True)
    else:
        loading.put(name, array)


async def _read_parts(checkpoint: Checkpoint, loading: Loading, parts: Mapping[str, Cut | None], at_once: int) -> None:
    """Read what this rank wants of each tensor, some at a time, of at most `at_once` bytes together."""
    batch: dict[str, Cut | None] = {}
    nbytes = 0
    for name, part in parts.items():
        size = checkpoint._nbytes_of(name, part)
        if batch and nbytes + size > at_once:
            await _put_batch(checkpoint, loading, batch)
            batch, nbytes = {}, 0
        batch[name] = part
        nbytes += size
    await _put_batch(checkpoint, loading, batch)


async def _put_batch(checkpoint: Checkpoint, loading: Loading, batch: Mapping[str, Cut | None]) -> None:
    for name, array in zip(batch, await checkpoint._cuts(batch), strict=True):
        await _put(loading, name, array)


def _judged(model: Any, located: Located, scaling: Scaling | None, wishes: Wishes) -> Loading:
    """The load, of which nothing is here yet; raises if the headers show that it cannot be."""
    if not wishes.assign and scaling is None:
        refuse_plain_copy(located)
    target = cast_target(wishes.dtype)
    expected = expected_tensors(located, target)
    if scaling is not None:
        expected = scaling.hollow(expected, target)
    return Loading(
        model,
        expected,
        strict=wishes.strict,
        assign=wishes.assign,
        dtype=wishes.dtype,
        rename=wishes.rename,
        skip=wishes.skip,
        device=wishes.device,
        aliases=aliases_of(located, expected),
    )


def expected_tensors(located: Located, dtype: np.dtype[Any] | None) -> dict[str, Array]:
    """The state dict to come, in its order: dtypes and shapes without memory."""
    files = {file.name: file for file in located.files}
    expected: dict[str, Array] = {}
    for name, shard in located.wanted.weight_map.items():
        file = files[located.path_of(shard)]
        expected[name] = hollow_array(file.known_header.tensors[name], file=file.name, tensor=name, cast_to=dtype)
    return expected
