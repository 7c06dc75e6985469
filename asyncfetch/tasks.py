"""Work that asyncio's own cancellation does not cut in two.

`Task.cancel`, and so asyncio's time-outs, strike wherever the task waits: through shielded clean-up, and
while a worker thread writes, which then goes on alone. A task group hands a cancellation down as one of
anyio's, which waits for threads and spares what is shielded. So what touches disk, connections or
the caller's model runs in a task of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import anyio

__all__ = ["undivided", "whole"]

P = ParamSpec("P")
T = TypeVar("T")


async def whole(work: Callable[[], Awaitable[T]]) -> T:
    """What `work` returns or raises. When the caller is cancelled, `work` has ended before control is back."""
    results: list[T] = []
    failures: list[BaseException] = []

    async def run() -> None:
        try:
            results.append(await work())
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            failures.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
    if failures:
        raise failures.pop()
    if not results:  # someone cancelled the task itself, or raised its cancellation: so be it
        raise anyio.get_cancelled_exc_class()
    return results.pop()


def undivided(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """A coroutine function whose calls are `whole`."""

    @wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await whole(lambda: function(*args, **kwargs))

    return call
