"""A checkpoint as a stream of tensors, in the order in which its shards land."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, ParamSpec

import anyio
import numpy as np
from anyio import to_thread

from ..errors import SourceError
from ..events import Reporter
from ..format.dtypes import Array, dtype_or_none
from ..format.index import Selector
from ..policy import Policy
from ..sources.located import Located
from ..tasks import plain_errors, run_as_task
from ..tensors.feed import Feed
from .blocking import Portal, blocking_block
from .session import Session, open_session

__all__ = ["check_memory_limit", "feeding", "stream", "stream_async"]

P = ParamSpec("P")


class _Tensors(AsyncIterator[tuple[str, Array]]):
    """The reader's end of a feed. Not a generator: it owns nothing, so it may be left at any point."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def __anext__(self) -> tuple[str, Array]:
        found = await self._feed.next()
        if found is None:
            raise StopAsyncIteration
        return found


class _BlockingTensors(Iterator[tuple[str, Array]]):
    """The same for blocking code. An interrupt while it waits cancels the wait."""

    def __init__(self, tensors: AsyncIterator[tuple[str, Array]], portal: Portal) -> None:
        assert isinstance(tensors, _Tensors)  # noqa: S101
        self._feed = tensors._feed
        self._portal = portal

    def __next__(self) -> tuple[str, Array]:
        if self._feed.closed:
            raise SourceError("The stream is closed.", hint="Use it inside its `with` block.")
        at_hand = self._feed.next_at_hand()  # spares small tensors a hop between threads
        if at_hand is not None:
            return at_hand
        found = self._portal.run(self._feed.next)
        if found is None:
            raise StopIteration
        return found


def check_memory_limit(memory_limit: int | None) -> None:
    """Raises SourceError unless `memory_limit` is a positive number of bytes, or None."""
    if memory_limit is not None and (type(memory_limit) is not int or memory_limit <= 0):
        raise SourceError(f"memory_limit={memory_limit!r} is not a positive number of bytes.")


@asynccontextmanager
async def feeding(
    session: Session,
    located: Located,
    *,
    dtype: np.dtype[Any] | None,
    early: bool = False,
    memory_limit: int | None = None,
) -> AsyncIterator[_Tensors]:
    """The download of `located` beside the block, which reads its tensors. It is cancelled when the block ends."""
    policy = session.request.policy
    feed = await to_thread.run_sync(
        lambda: Feed(
            located, storage=session.storage, policy=policy, early=early, memory_limit=memory_limit, dtype=dtype
        )
    )

    async def download() -> None:
        failure: Exception | None = None
        try:
            with plain_errors():
                await session.download(located, feed)
        except Exception as error:
            failure = error
        feed.finish(failure)

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(download)
            try:
                yield _Tensors(feed)
            finally:
                group.cancel_scope.cancel()
    finally:
        feed.close()


@asynccontextmanager
async def stream_async(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    select: Selector = None,
    dtype: object = None,
    storage: str = "disk",
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    offline: bool | None = None,
    checksums: Mapping[str, str] | None = None,
    verify: str = "download",
    policy: Policy | None = None,
    client: Any = None,
    report: Reporter | None = None,
    early: bool = False,
    memory_limit: int | None = None,
) -> AsyncIterator[AsyncIterator[tuple[str, Array]]]:
    """The tensors of a checkpoint as pairs of name and array, while the rest is still downloaded.

        async with asyncfetch.stream_async("org/model", storage="memory") as tensors:
            async for name, array in tensors:
                ...

    Takes the arguments of `load_async`, and gives the same tensors: those of one shard together, the
    shards in the order in which they land. A shard is handed over when its hash was checked.

    `early=True` hands a tensor over as soon as its own bytes are here, before the hash of its shard
    is known. If that turns out wrong, the iteration ends with ChecksumMismatchError instead of
    another download, since tensors that were handed over may be wrong: use none of them before the
    iteration has ended without an error. In memory each shard is then received over one connection.

    `storage="memory"` writes nothing, and each array has 64-byte aligned memory of its own, free
    once the array is dropped (what is on disk already is mapped instead). `memory_limit` bounds it,
    in bytes: a tensor is received only while those that are being received or not yet consumed stay
    within the limit, so a slow reader slows the download down. A tensor counts as consumed when the
    next one is asked for. One shard (with `early`, one tensor) always has its memory, however large.
    The default is 1.25 times the largest shard (with `early`, twice the largest tensor), and at least
    64 MiB. `dtype` casts one tensor at a time.

    `storage="disk"` fills the cache as `load_async` does, without waiting for the reader, and
    `memory_limit` has no effect. Arrays are views on a private map of the shard; with `early`,
    copies read from the file that is being downloaded.

    Leaving the block cancels what is not finished: what came stays in the cache, and the next load
    goes on from there. Enter, iterate and leave in one task.

    Raises what `load_async` raises, on entering or, once the download has begun, where the next
    tensor is asked for and after all that landed. Never an ExceptionGroup. SourceError if the
    iterator is used after the block.
    """
    check_memory_limit(memory_limit)
    target = dtype_or_none(dtype)
    failure: Exception | None = None
    async with open_session(
        source, revision=revision, subfolder=subfolder, variant=variant, select=select, storage=storage,
        cache_dir=cache_dir, token=token, endpoint=endpoint, offline=offline, checksums=checksums, verify=verify,
        policy=policy, client=client, report=report,
    ) as session:  # fmt: skip
        located = await run_as_task(session.locate_verified)
        async with feeding(session, located, dtype=target, early=early, memory_limit=memory_limit) as tensors:
            try:
                yield tensors
            except Exception as error:  # the caller's own, or one that the iterator raised: it leaves as it is
                failure = error
    if failure is not None:
        raise failure


stream = blocking_block(
    stream_async,
    _BlockingTensors,
    name="stream",
    summary="The blocking twin of `stream_async`: "
    "`with asyncfetch.stream(source) as tensors: for name, array in tensors`.",
)
