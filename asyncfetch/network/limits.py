"""What bounds the bytes of all connections together: threads, and a bandwidth."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio import to_thread

from ..policy import Policy

__all__ = ["Limits"]

T = TypeVar("T")


class Limits:
    """The few threads that receive and hash, and the bandwidth that all connections share."""

    def __init__(self, policy: Policy) -> None:
        self.bandwidth = policy.bandwidth_limit
        threads = max(2, os.cpu_count() or 2)
        self.threads = anyio.CapacityLimiter(threads)
        self.hashing = anyio.CapacityLimiter(threads // 2)  # apart, so that hashing never queues behind all bodies
        self.busy = 0.0  # seconds that worker threads spent on bodies, all together
        self._paid_until = 0.0

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run `work` in one of the few threads for bytes, and count its time as busy."""

        def timed() -> tuple[T, float]:
            began = time.monotonic()
            return work(), time.monotonic() - began

        result, took = await to_thread.run_sync(timed, limiter=self.threads)
        self.busy += took
        return result

    def piece(self, limit: int) -> int:
        """At most `limit` bytes, and no more than a tenth of a second's worth under a bandwidth limit."""
        return limit if self.bandwidth is None else min(limit, max(int(self.bandwidth / 10), 1))

    async def spend(self, nbytes: int) -> None:
        """Wait until `nbytes` more are within the bandwidth limit, which all connections share."""
        if self.bandwidth is None:
            return
        now = time.monotonic()
        self._paid_until = max(self._paid_until, now) + nbytes / self.bandwidth
        await anyio.sleep(self._paid_until - now)
