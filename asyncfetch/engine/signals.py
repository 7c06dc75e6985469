"""What a lane waits for, by its name."""

from __future__ import annotations

import anyio

__all__ = ["Signal"]


class Signal:
    """Wakes all who wait, each time that it is given. Who is woken looks again at what it waits for."""

    def __init__(self) -> None:
        self._next = anyio.Event()

    @property
    def next(self) -> anyio.Event:
        """Set when the signal is given from now on."""
        return self._next

    @property
    def waiting(self) -> int:
        """How many wait for it."""
        return self._next.statistics().tasks_waiting

    async def wait(self) -> None:
        """Return when it is given from now on."""
        await self._next.wait()

    def give(self) -> None:
        """Wake all."""
        self._next.set()
        self._next = anyio.Event()
