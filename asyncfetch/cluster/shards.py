"""One shard into Ray's object store: tasks that Ray runs again, wherever it likes, when all copies are lost."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio

from ..errors import ChecksumMismatchError, StorageError, storage_errors
from ..events import Warned
from ..sources.located import SourceFile
from ..storage.buffers import aligned_buffer
from ..storage.checksums import new_hash
from ..tasks import off_loop
from ..tensors.merge import read_into
from .fetching import Teller, fetched
from .layout import packed
from .parts import cut_by_range, cut_from_whole
from .plan import Plan, hold_against_plan
from .ray_calls import ray_module
from .shares import Unit

__all__ = ["moved", "shard_objects"]


def shard_objects(plan: Plan, name: str, keeper: Any) -> tuple[Any, ...]:
    """The header of a shard, and the groups of each of its units: from this node's cache, else from the source."""
    return anyio.run(partial(_shard_objects, plan, name, keeper))


async def _shard_objects(plan: Plan, name: str, keeper: Any) -> tuple[Any, ...]:
    file, cache = plan.files[name], plan.cache()
    async with Teller(keeper, ray_module().get_runtime_context().get_node_id()) as tell:
        whole = await off_loop(lambda: _cached(plan.find(cache, name), tell), slow=True)
        if whole is None and not plan.verified(name):
            return file.raw_header, *await cut_by_range(plan, file, keeper, tell)
        if whole is None:
            whole = (await fetched(plan, file, cache, keeper, tell, disk=False)).buffer
        assert whole is not None  # noqa: S101
        hold_against_plan(whole, file)
        if plan.shares is not None:
            return file.raw_header, *cut_from_whole(plan, whole, file)
        return file.raw_header, *packed(whole, file.known_header, plan.groups(Unit(name)))


def moved(*objects: Any) -> tuple[Any, ...]:
    """The same objects, at the node where this runs: the ones that were copied there may be forgotten elsewhere."""
    return objects


def _cached(file: SourceFile, tell: Teller) -> memoryview | None:
    """The file in memory, read from this node's cache and held against its hash; None if a good one is not there."""
    path = file.path
    if path is None:
        return None
    try:
        whole = aligned_buffer(file.size, len(file.raw_header))
        with storage_errors(path), open(path, "rb") as stream:
            read_into(stream.fileno(), whole)
        if file.checksum is not None:
            digest = new_hash(file.algorithm, file.size)
            digest.update(whole)
            if digest.hexdigest() != file.checksum.hex:
                raise ChecksumMismatchError(
                    file.name, algorithm=file.algorithm, expected=file.checksum.hex, actual=digest.hexdigest()
                )
    except (ChecksumMismatchError, StorageError) as error:
        tell(Warned(f"{error.message} What the cache has of it is not used: {path}", file.name))
        return None
    return whole
