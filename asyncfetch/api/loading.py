"""A checkpoint into a model: judged by its headers before it is downloaded, then streamed in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from anyio import to_thread

from ..errors import SourceError
from ..format.arrays import hollow_array
from ..format.dtypes import Array, dtype_or_none
from ..models.into import Loading, LoadReport, load_state_dict_into
from ..sources.located import Located, aliases_of
from ..tasks import in_own_task
from .blocking import blocking
from .session import open_session
from .streaming import check_memory_limit, feeding

__all__ = ["load_into", "load_into_async"]


@in_own_task
async def load_into_async(
    model: Any,
    source: str | os.PathLike[str] | Mapping[str, Array],
    *,
    strict: bool = True,
    assign: bool = True,
    memory_limit: int | None = None,
    **options: Any,
) -> LoadReport:
    """Load a checkpoint, or a state dict that is here already, into a model.

    `model` is a `torch.nn.Module`, or nested dicts and lists of numpy arrays with the same names
    joined by dots. `options` are those of `load_async`, `memory_limit` is that of `stream_async`. See
    `asyncfetch.models.load_state_dict_into` for strict, assign, meta devices and tied weights.

    Names, shapes and dtypes are known from the headers: what does not fit is refused before the
    first shard is downloaded. The tensors are then streamed in, so that what is downloaded never
    exists twice. With `assign=True` the model takes over the arrays in the end, all or none. With
    `assign=False` each is copied, in a worker thread, when its shard is verified, and dropped: a
    download that fails half-way leaves a model of which a part has its new values. Where only the
    values can tell whether all fits (a module with load hooks of its own, several names in the
    checkpoint of what is one tensor in the model), the state dict is collected and judged as a whole.

    Raises ModelMismatchError, SourceError, and the errors of `load_async`.
    """
    if isinstance(source, Mapping):
        if options or memory_limit is not None:
            raise SourceError(f"A state dict takes no options such as {next(iter(options), 'memory_limit')}=.")
        return await to_thread.run_sync(lambda: load_state_dict_into(model, source, strict=strict, assign=assign))
    check_memory_limit(memory_limit)
    dtype = dtype_or_none(options.pop("dtype", None))
    async with open_session(source, **options) as session:
        located = await session.locate_verified()
        loading = await to_thread.run_sync(lambda: _judged(model, located, dtype, strict=strict, assign=assign))
        async with feeding(session, located, dtype=dtype, memory_limit=memory_limit) as tensors:
            async for name, array in tensors:
                if loading.copies:
                    await to_thread.run_sync(loading.put, name, array)
                else:
                    loading.put(name, array)
        return await to_thread.run_sync(loading.finish)


def _judged(model: Any, located: Located, dtype: np.dtype[Any] | None, *, strict: bool, assign: bool) -> Loading:
    """The load, of which nothing is here yet; raises if the headers show that it cannot be."""
    expected = _expected(located, dtype)
    return Loading(model, expected, strict=strict, assign=assign, aliases=aliases_of(located, expected))


def _expected(located: Located, dtype: np.dtype[Any] | None) -> dict[str, Array]:
    """The state dict to come, in its order: dtypes and shapes without memory."""
    files = {file.name: file for file in located.files}
    expected: dict[str, Array] = {}
    for name, shard in located.wanted.weight_map.items():
        file = files[located.path_of(shard)]
        expected[name] = hollow_array(file.known_header.tensors[name], file=file.name, tensor=name, cast_to=dtype)
    return expected


load_into = blocking(load_into_async)
