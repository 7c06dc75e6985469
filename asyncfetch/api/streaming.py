"""A checkpoint as a stream of tensors, in the order in which its shards land."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import numpy as np

from ..errors import AsyncfetchError
from ..sources.located import Located
from ..tasks import off_loop, plain_errors
from ..tensors.feed import Feed
from ..tensors.reader import Reader, stream_closed
from ..tensors.scaling import ScaledReader, Scaling
from .blocking import Handle
from .form import Maker, RenamedReader
from .public import shortened, within
from .results import T
from .session import Session

__all__ = ["BlockingTensors", "Tensors", "feeding"]


_ARRAYS = Maker(torch=False)


class Tensors(AsyncIterator[tuple[str, T]]):
    """The reader's end of a feed. Not a generator: it owns nothing, so it may be left at any point."""

    def __init__(self, feed: Reader, hand_over: Callable[[Any], T], timeout: float | None) -> None:
        self.feed = feed
        self.hand_over = hand_over  # in the thread of the reader
        self.timeout = timeout  # seconds for each tensor
        self.download = anyio.CancelScope()
        self.ended = anyio.Event()  # the download has
        self._exhausted = False  # so is it for ever, whether the block has ended or not

    async def __anext__(self) -> tuple[str, T]:
        if self._exhausted:
            raise StopAsyncIteration
        try:
            found = await within(self.timeout, self.feed.next)
        except AsyncfetchError as error:
            raise shortened(error) from error.__cause__
        if found is None:
            self._exhausted = True
            raise StopAsyncIteration
        return found[0], self.hand_over(found[1])

    async def stop(self) -> None:
        """End the download now: the reader is told that the stream is closed."""
        self.feed.close()
        self.download.cancel()
        await self.ended.wait()

    def blocking(self, handle: Handle[Tensors[T]]) -> BlockingTensors[T]:
        """The same for blocking code."""
        return BlockingTensors(handle)


class BlockingTensors(Iterator[tuple[str, T]]):
    """Tensors as they land: `for name, array in asyncfetch.stream(source)`, also in a `with` block.

    It closes itself at the end of the iteration. An interrupt while it waits cancels the wait.
    """

    def __init__(self, handle: Handle[Tensors[T]]) -> None:
        self._handle = handle
        self._feed = handle.value.feed
        self._hand_over = handle.value.hand_over
        self._exhausted = False

    def __next__(self) -> tuple[str, T]:
        if self._exhausted:
            raise StopIteration
        if self._feed.closed:
            raise stream_closed()
        at_hand = self._feed.next_at_hand()  # spares small tensors a hop between threads
        if at_hand is not None:
            return at_hand[0], self._hand_over(at_hand[1])
        try:
            found = self._handle.run(lambda: within(self._handle.value.timeout, self._feed.next))
        except AsyncfetchError:
            self.close()
            raise
        if found is None:
            self._exhausted = True
            self.close()
            raise StopIteration
        return found[0], self._hand_over(found[1])

    def close(self) -> None:
        """Cancel what is not finished. What came stays in the cache. A second time it does nothing."""
        self._handle.close()

    def __enter__(self) -> BlockingTensors[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@asynccontextmanager
async def feeding(
    session: Session,
    located: Located,
    scaling: Scaling | None = None,
    *,
    dtype: np.dtype[Any] | None,
    names: Mapping[str, str] | None = None,
    maker: Maker = _ARRAYS,
    early: bool = False,
    memory_limit: int | None = None,
    timeout: float | None = None,
) -> AsyncIterator[Tensors[Any]]:
    """The download of `located` beside the block, which reads its tensors. It is cancelled when the block ends.

    `names`: the new names of tensors, without which they are left out. `maker`: in which form the reader gets them.
    """
    policy = session.request.policy
    if scaling is not None:  # what is scaled waits for its scale
        lenders = scaling.lenders(located)
        located.files.sort(key=lambda file: file.name not in lenders)
    feed = await off_loop(
        lambda: Feed(
            located,
            storage=session.storage,
            policy=policy,
            early=early,
            memory_limit=memory_limit,
            dtype=None if scaling is not None else dtype,
        ),
        slow=True,
    )
    reader: Reader = feed if scaling is None else ScaledReader(feed, scaling, dtype)
    reader = maker.reader(reader if names is None else RenamedReader(reader, names))
    tensors: Tensors[Any] = Tensors(reader, maker.handed_over, timeout)

    async def download() -> None:
        failure: Exception | None = None
        try:
            with tensors.download, plain_errors():
                await session.download(located, feed)
        except Exception as error:
            failure = error
        finally:
            tensors.ended.set()
        feed.finish(failure)

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(download)
            try:
                yield tensors
            finally:
                group.cancel_scope.cancel()
    finally:
        tensors.feed.close()
        await maker.aclose()
