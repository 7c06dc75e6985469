"""Tensors on their way to numbers: what a reader is handed, whatever order they come in and however it waits."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import anyio
import numpy as np
import pytest

from asyncfetch import tasks
from asyncfetch.errors import SourceError
from asyncfetch.format.dtypes import Array
from asyncfetch.format.header import Header, TensorInfo
from asyncfetch.format.index import Index
from asyncfetch.sources.located import Located, SourceFile
from asyncfetch.tensors.scaling import ScaledReader, scaling_of

from ..format.test_scaled import FORMS, info_of
from ..kit.small_model import ONE_LOOP

STORED: dict[str, Array] = {"plain": np.arange(5, dtype=np.float64)} | FORMS["NVFP4, ModelOpt ()"][0]
NUMBERS = {"plain": STORED["plain"].astype(np.float32), "a.weight": FORMS["NVFP4, ModelOpt ()"][2]}


class InOrder:
    """A reader of tensors that are here, in an order."""

    closed = False

    def __init__(self, names: Any) -> None:
        self._left = [(name, STORED[name]) for name in names]

    async def next(self) -> tuple[str, Array] | None:
        await anyio.lowlevel.checkpoint()
        return self._left.pop(0) if self._left else None

    def next_at_hand(self) -> tuple[str, Array] | None:
        return None

    def close(self) -> None:
        self.closed = True


def reader(names: Any) -> ScaledReader:
    """Of numbers in float32."""
    infos: dict[str, TensorInfo] = {name: info_of(array) for name, array in STORED.items()}
    file = SourceFile("one", 0, None, header=Header(infos, {}, 0, 0))
    located = Located("here", None, None, "", None, Index("one", dict.fromkeys(infos, "one")), [file])
    return ScaledReader(InOrder(names), scaling_of(located), np.dtype(np.float32))


@pytest.mark.anyio
@ONE_LOOP
@pytest.mark.parametrize("names", [*itertools.permutations(STORED)], ids=",".join)
async def test_any_order(names: tuple[str, ...]) -> None:
    """The weight comes once its scales are there; nothing is kept of what has gone into it."""
    one = reader(names)
    found = {}
    while (pair := await one.next()) is not None:
        found[pair[0]] = pair[1]
    assert found.keys() == NUMBERS.keys()
    for name, array in NUMBERS.items():
        np.testing.assert_array_equal(found[name], array)
    assert not one._stored
    assert not one._due


@pytest.mark.anyio
@ONE_LOOP
async def test_a_cancelled_wait_loses_nothing() -> None:
    """Each wait is cancelled at once, and again, and then not: all tensors come, each once."""
    one, found = reader(STORED), []
    for _ in range(10 * len(STORED)):
        with anyio.CancelScope() as scope:
            scope.cancel()
            found.append(await one.next())
        assert scope.cancelled_caught
    while (pair := await one.next()) is not None:
        found.append(pair)
    assert sorted(name for name, _ in found) == sorted(NUMBERS)
    one.close()
    assert one.closed


@pytest.mark.anyio
@ONE_LOOP
@pytest.mark.parametrize("names", [["plain"], [*STORED]], ids=",".join)
@pytest.mark.parametrize("made", [False, True], ids=["before it is made", "while it is made"])
async def test_closed_under_a_reader(names: list[str], made: bool) -> None:
    """Who waits for a tensor that is being made, or for a thread that makes it, is told that the stream is closed."""
    one, free, begun, told = reader(names[::-1]), threading.Event(), threading.Event(), list[str]()

    class Lasting(np.ndarray[Any, Any]):
        """Is cast when it may be."""

        def astype(self, *how: Any, **options: Any) -> Any:
            begun.set()
            assert free.wait(20)
            return super().astype(*how, **options)

    async def read() -> None:
        with pytest.raises(SourceError) as caught:
            await one.next()
        told.append(caught.value.message)

    async with anyio.create_task_group() as group:
        if made:
            one._reader._left = [(name, STORED[name].view(Lasting)) for name in names]  # type: ignore[attr-defined]
            group.start_soon(read)
            assert await tasks.off_loop(lambda: begun.wait(20))
        else:
            for _ in range(tasks._MOST_THREADS):
                group.start_soon(tasks.off_loop, lambda: free.wait(20))
            group.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        one.close()
        free.set()
    assert told == ["The stream is closed."]
    assert not one._stored
