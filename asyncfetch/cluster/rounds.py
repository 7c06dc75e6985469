"""When nodes ask for an object: as many at once as have it already, and sixteen where fewer have it.

Where all of a thousand ask at once they share the link of the one node that has it, and all are served last; where few
nodes ask at all, it costs time to let them wait. "Many nodes" in docs/architecture.md has figures.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import anyio

from ..tasks import plain_errors

__all__ = ["FIRST", "in_rounds"]

T = TypeVar("T")

FIRST = 16  # nodes that may ask at once while fewer have it


async def in_rounds(members: Iterable[T], bring: Callable[[T], Coroutine[Any, Any, bool]]) -> None:
    """Bring members an object that one node has. `bring` returns whether the member has it then."""
    limiter, having = anyio.CapacityLimiter(FIRST), 1

    async def one(member: T) -> None:
        nonlocal having
        async with limiter:
            if await bring(member):
                having += 1
                limiter.total_tokens = max(FIRST, having)

    with plain_errors():
        async with anyio.create_task_group() as group:
            for member in members:
                group.start_soon(one, member)
