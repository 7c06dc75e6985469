"""What bounds all calls of a client together: threads for bytes, connections, a bandwidth."""

from __future__ import annotations

import copy
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import anyio
from anyio import to_thread

from ..policy import Policy

__all__ = ["Connections", "Hold", "Limits", "Meter"]

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Hold:
    """One connection that a call may have, as soon as it is granted. `used`: it turned out that there is one."""

    call: object
    granted: anyio.Event = field(default_factory=anyio.Event)
    used: bool = False


class Connections:
    """At most `most` connections at a time, shared out among calls: who holds fewest is served first.

    A call is any object that stands for it. A call that has several connections is asked to give one
    back (`owes`) while another call has none. A connection that waits for something else than its
    server is to be given back as soon as somebody wants one (`wanted`).

    `spare`: as many more are there for calls that have none, so that these need not wait for others
    to end. Who has several gives them back while there are more than `most`.

    There may be fewer than that where they are those of a caller's client, which has a bound of its own. Who then gets
    none waits for one that another uses to be given back (`exchange`).
    """

    def __init__(self, most: int, spare: int = 0) -> None:
        self._free = most  # below zero: so many of the spare ones are in use
        self._spare = spare
        self._held: Counter[object] = Counter()
        self._waiting: list[Hold] = []
        self._used = 0
        self._promised = 0  # connections that were asked back and are on their way
        self._arrival = anyio.Event()

    @asynccontextmanager
    async def hold(self, call: object) -> AsyncIterator[Hold]:
        """One connection for `call`, as long as the block."""
        hold = Hold(call)
        try:
            behind = self._waiting and (self._held[call] or not self._spare)
            if self._is_free_for(call) and not behind:
                self._grant(hold)
            else:
                await self._wait(hold)
            yield hold
        finally:
            if hold.granted.is_set():  # also where it was cancelled in the moment in which it was granted
                self._release(hold)
            else:
                self._waiting.remove(hold)

    def use(self, hold: Hold) -> None:
        """There is a connection, and a request goes over it."""
        self._used += not hold.used
        hold.used = True

    def others_used(self, hold: Hold) -> bool:
        """Whether others have a connection, so that one of them will be given back."""
        return self._used > hold.used

    async def exchange(self, hold: Hold) -> None:
        """Wait for a connection that one of the others gives back, in place of one that there turned out not to be."""
        self._take(hold)  # and nobody who waits gets it, since it is none
        hold.granted = anyio.Event()
        await self._wait(hold)

    async def _wait(self, hold: Hold) -> None:
        self._waiting.append(hold)
        self._arrival.set()
        self._arrival = anyio.Event()
        await hold.granted.wait()

    def _grant(self, hold: Hold) -> None:
        self._free -= 1
        self._held[hold.call] += 1
        hold.granted.set()

    def _take(self, hold: Hold) -> None:
        self._free += 1
        self._used -= hold.used
        hold.used = False
        self._held[hold.call] -= 1
        if not self._held[hold.call]:
            del self._held[hold.call]

    def _release(self, hold: Hold) -> None:
        self._take(hold)
        self._promised = max(self._promised - 1, 0)
        if not self._waiting:
            return
        waiter = min(self._waiting, key=lambda one: self._held[one.call])  # of equals the first
        if self._is_free_for(waiter.call):
            self._waiting.remove(waiter)
            self._grant(waiter)

    def _is_free_for(self, call: object) -> bool:
        return self._free > (0 if self._held[call] else -self._spare)

    def owes(self, call: object) -> bool:
        """Whether `call` must give a connection back now: it has several, and another has none, or a spare one.

        Who is told so must close one: no other connection is asked for that other call's sake.
        """
        if self._held[call] < 2 or not (self._waiting or self._free < 0):
            return False
        without = {waiter.call for waiter in self._waiting} - self._held.keys()
        if self._promised >= len(without) + max(-self._free, 0):
            return False
        self._promised += 1
        return True

    async def wanted(self) -> None:
        """Return once somebody waits for a connection."""
        if not self._waiting:
            await self._arrival.wait()


class Meter(Protocol):
    """Counts what a source is asked for and sends. From any thread; does not block for long."""

    def asked(self) -> None:
        """One more request was sent."""
        ...

    def received(self, nbytes: int) -> None:
        """So many bytes of a body came, whatever becomes of them."""
        ...


class Limits:
    """Few threads that receive and hash, a bandwidth, and connections. `for_call` shares them all with one call.

    `meter` is told of requests and bytes; `spare` is that of Connections.
    """

    def __init__(self, policy: Policy, meter: Meter | None = None, spare: int = 0) -> None:
        self.meter = meter
        threads = max(2, os.cpu_count() or 2)
        self.threads = anyio.CapacityLimiter(threads)
        self.hashing = anyio.CapacityLimiter(threads // 2)  # apart, so that hashing never queues behind all bodies
        self.connections = Connections(policy.connections, spare)
        self.busy = 0.0  # seconds that worker threads spent on the bodies of this call
        self._bandwidth = _Bandwidth(policy.bandwidth_limit)

    def for_call(self, meter: Meter | None = None) -> Limits:
        """The same limits for one call, which counts for itself how busy it is, and by `meter` what it costs."""
        shared = copy.copy(self)
        shared.busy, shared.meter = 0.0, meter or self.meter
        return shared

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
        rate = self._bandwidth.rate
        return limit if rate is None else min(limit, max(int(rate / 10), 1))

    async def spend(self, nbytes: int) -> None:
        """Wait until `nbytes` more are within the bandwidth limit, which all connections share."""
        await self._bandwidth.spend(nbytes)


class _Bandwidth:
    def __init__(self, rate: float | None) -> None:
        self.rate = rate  # bytes a second
        self._paid_until = 0.0

    async def spend(self, nbytes: int) -> None:
        if self.rate is None:
            return
        now = time.monotonic()
        self._paid_until = max(self._paid_until, now) + nbytes / self.rate
        await anyio.sleep(self._paid_until - now)
