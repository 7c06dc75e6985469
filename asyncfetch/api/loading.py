"""A checkpoint into a model: judged by its headers before it is downloaded, then streamed in."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..format.arrays import hollow_array
from ..format.dtypes import Array
from ..models.into import Loading, LoadReport
from ..sources.located import Located, aliases_of
from ..tasks import off_loop
from ..tensors.scaling import Scaling
from .session import Session
from .streaming import feeding

__all__ = ["load_into"]


async def load_into(
    model: object,
    session: Session,
    *,
    dtype: np.dtype[Any] | None,
    strict: bool,
    assign: bool,
    memory_limit: int | None,
) -> LoadReport:
    """Judge the fit of a checkpoint by its headers, then stream it into `model`."""
    located, scaling = await session.locate_values(dtype)
    loading = await off_loop(lambda: _judged(model, located, scaling, dtype, strict=strict, assign=assign), slow=True)
    async with feeding(session, located, scaling, dtype=dtype, memory_limit=memory_limit) as tensors:
        async for name, array in tensors:
            if loading.copies:
                await off_loop(partial(loading.put, name, array), slow=True)
            else:
                loading.put(name, array)
    return await off_loop(loading.finish, slow=True)


def _judged(
    model: Any, located: Located, scaling: Scaling | None, dtype: np.dtype[Any] | None, *, strict: bool, assign: bool
) -> Loading:
    """The load, of which nothing is here yet; raises if the headers show that it cannot be."""
    expected = _expected(located, dtype)
    if scaling is not None:
        expected = scaling.hollow(expected, dtype)
    return Loading(model, expected, strict=strict, assign=assign, aliases=aliases_of(located, expected))


def _expected(located: Located, dtype: np.dtype[Any] | None) -> dict[str, Array]:
    """The state dict to come, in its order: dtypes and shapes without memory."""
    files = {file.name: file for file in located.files}
    expected: dict[str, Array] = {}
    for name, shard in located.wanted.weight_map.items():
        file = files[located.path_of(shard)]
        expected[name] = hollow_array(file.known_header.tensors[name], file=file.name, tensor=name, cast_to=dtype)
    return expected
