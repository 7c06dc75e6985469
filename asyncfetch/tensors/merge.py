"""The merge: shards that are here become one state dict of arrays. Blocking: run it in a thread.

Each shard is one private map (or one buffer), each tensor a view on it: no bytes are copied, so
the time does not grow with the size. `safetensors.numpy` is not used for data, since it holds the
GIL while it copies a whole file; its rules for headers are kept in format/header.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..errors import CorruptError, storage_errors
from ..format.arrays import tensor_view
from ..format.dtypes import Array, cast, dtype_or_none
from ..format.header import Header, header_of
from ..format.index import check_tensors
from ..sources.located import Landed, Located, SourceFile
from ..spans import MiB
from ..storage.buffers import aligned_buffer
from ..storage.maps import map_file, on_network
from ..tasks import without_collections
from .ahead import read_wanted_ahead
from .scaling import Scaling

__all__ = ["state_dict"]


_READ_JOB = 16 * MiB
_READ_THREADS = 2


def state_dict(
    located: Located, landed: Mapping[str, Landed], *, dtype: object = None, scaling: Scaling | None = None
) -> dict[str, Array]:
    """All selected tensors by name, in the order of the index (a single file: of its data).

    `landed` says where each file of `located` is. With `scaling`, weights and their scales become numbers.
    Arrays are writable views, 64-byte aligned per shard in memory; a tensor whose address is no multiple of
    its item size is a copy. F4 and F6 tensors are PackedArray. Raises InvalidHeaderError, CorruptError,
    MissingTensorError.
    """
    target, selected = dtype_or_none(dtype), located.wanted
    files = {file.name: file for file in located.files}
    views: dict[str, Array] = {}
    at_hand = all(one.buffer is not None or one.pages is not None for one in landed.values())
    with without_collections() if at_hand and target is None else nullcontext():  # then it is a moment
        for shard in selected.shards:
            file = files[located.path_of(shard)]
            header, buffer = open_landed(file, landed[file.name])
            names = selected.tensors_of(shard)
            check_tensors(names, header, shard=shard, index_file=selected.file)
            read_wanted_ahead(landed[file.name], buffer, header, names)
            for name in names:
                view = tensor_view(buffer, header.tensors[name], header.data_start, file=file.name, tensor=name)
                views[name] = view if target is None or scaling is not None else cast(view, target)
    if scaling is not None:
        return scaling.merged(views, target)
    return {name: views[name] for name in selected.weight_map}


def open_landed(file: SourceFile, landed: Landed) -> tuple[Header, Any]:
    """A shard's header and its bytes: a map, or a buffer."""
    buffer: Any
    if landed.buffer is not None:
        buffer = landed.buffer
    elif landed.pages is not None:
        buffer = landed.pages
    elif landed.path is not None:
        buffer = _load(landed.path, file)
    else:
        raise CorruptError(f"{file.name} is nowhere.", file=file.name)
    header = file.header
    if header is None or bytes(memoryview(buffer)[: len(file.raw_header)]) != file.raw_header:
        # The first look at it and the verified bytes differ (a restart): only the latter count.
        header = header_of(buffer, file=file.name)
    return header, buffer


def _load(path: Path, file: SourceFile) -> Any:
    with storage_errors(path), open(path, "rb") as stream:
        descriptor = stream.fileno()
        size = os.fstat(descriptor).st_size
        if size != file.size:
            raise CorruptError(f"{path} has {size:,} bytes instead of {file.size:,}.", file=file.name)
        pages = None if on_network(path) else map_file(descriptor, size)
        if pages is not None:
            return pages
        buffer = aligned_buffer(size, len(file.raw_header))
        read_into(descriptor, buffer)
        return buffer


def read_into(descriptor: int, buffer: memoryview) -> None:
    """Fill `buffer` from the start of a file: large reads, two at a time."""

    def job(start: int) -> None:
        at, stop = start, min(start + _READ_JOB, len(buffer))
        while at < stop:
            got = os.preadv(descriptor, [buffer[at:stop]], at)
            if not got:
                raise OSError(0, f"the file ends at byte {at}")
            at += got

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        list(pool.map(job, range(0, len(buffer), _READ_JOB)))
