"""Tensors on their way to numbers: what a reader is handed, whatever order they come in and however it waits."""

from __future__ import annotations

import itertools
from typing import Any

import anyio
import numpy as np
import pytest

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
        self._left = list(names)

    async def next(self) -> tuple[str, Array] | None:
        await anyio.lowlevel.checkpoint()
        return (name := self._left.pop(0), STORED[name]) if self._left else None

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
