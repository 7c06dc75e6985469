"""What a server does beside its answers, for as long as it runs.

An error that ends one of these tasks is told in the log, and ends nothing else: in a task group it would end the
others too, and every answer that needs one of them would fail from then on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

__all__ = ["Background"]

LOG = logging.getLogger("asyncfetch.server")
Given = TypeVarTuple("Given")


class Background:
    """Tasks in a group, none of which takes the others with it."""

    def __init__(self, group: TaskGroup) -> None:
        self._group = group

    def start_soon(self, work: Callable[[*Given], Awaitable[object]], *given: *Given) -> None:
        """Begin a task."""
        self._group.start_soon(_alone, work, *given)


async def _alone(work: Callable[[*Given], Awaitable[object]], *given: *Given) -> None:
    try:
        await work(*given)
    except Exception:
        LOG.exception("%s ended before its time", getattr(work, "__qualname__", work))
