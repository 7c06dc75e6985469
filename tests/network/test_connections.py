"""Connections shared out among calls, some of them spare ones for calls that have none."""

from __future__ import annotations

from contextlib import AsyncExitStack

import anyio
import pytest

from asyncfetch.network.limits import Connections

pytestmark = pytest.mark.anyio


class Call:
    """A call, and the connections that it holds."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._held: list[AsyncExitStack] = []

    async def take(self) -> None:
        held = AsyncExitStack()
        await held.enter_async_context(self._connections.hold(self))
        self._held.append(held)

    async def give(self) -> None:
        await self._held.pop().aclose()

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def owes(self) -> bool:
        return self._connections.owes(self)


async def test_who_has_none_gets_a_spare_one_and_who_has_several_gives_back() -> None:
    connections = Connections(3, spare=2)
    many, few, last, late = (Call(connections) for _ in range(4))
    async with anyio.create_task_group() as group:
        for _ in range(3):
            await many.take()
        assert not many.owes
        with anyio.fail_after(1):
            await few.take()
            await last.take()
        assert [many.owes for _ in range(3)] == [True, True, False]  # as many as there are spare ones in use
        assert not few.owes
        group.start_soon(few.take)  # a second one is no spare one
        group.start_soon(late.take)  # and there is none any more
        await anyio.wait_all_tasks_blocked()
        assert [call.held for call in (many, few, last, late)] == [3, 1, 1, 0]
        await many.give()
        await anyio.wait_all_tasks_blocked()
        assert [call.held for call in (many, few, last, late)] == [2, 1, 1, 1]
        await many.give()
        await last.give()
        await anyio.wait_all_tasks_blocked()
        assert [call.held for call in (many, few, last, late)] == [1, 1, 0, 1]  # as many as there are without them
        await many.give()
        await anyio.wait_all_tasks_blocked()
        assert few.held == 2


async def test_without_spare_ones_who_has_none_waits() -> None:
    connections = Connections(2)
    one, other = Call(connections), Call(connections)
    async with anyio.create_task_group() as group:
        await one.take()
        await one.take()
        group.start_soon(other.take)
        await anyio.wait_all_tasks_blocked()
        assert other.held == 0
        assert [one.owes, one.owes] == [True, False]
        await one.give()
        await anyio.wait_all_tasks_blocked()
        assert [one.held, other.held] == [1, 1]
