"""A shard cut into what ranks hold: out of the whole where that was fetched, else of parts that came by range."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..events import Event, Finished, Notifier
from ..format.arrays import tensor_view
from ..format.dtypes import Array
from ..format.slices import REQUEST_COST, coalesce
from ..network.transport import Transport
from ..sources.located import SourceFile
from ..spans import Span
from ..storage.buffers import aligned_buffer
from ..tasks import plain_errors
from ..tensors.gather import Gatherer, Sink, Want, missing
from ..tensors.portions import Portion, part_of, portion_of
from .fetching import RemoteOrigin, relayed_pieces
from .layout import views
from .plan import Plan
from .shares import Unit

__all__ = ["cut_by_range", "cut_from_whole"]

PartOf = Callable[[str, int | None], Array]


def cut_from_whole(plan: Plan, whole: memoryview, file: SourceFile) -> Iterator[Array]:
    """The objects of all units of a shard that is in memory."""
    header = file.known_header

    def part(name: str, rank: int | None) -> Array:
        array = tensor_view(whole, header.tensors[name], header.data_start, file=file.name, tensor=name)
        return _cut(plan, file, name, array, rank)

    return _objects(plan, file.name, part)


async def cut_by_range(plan: Plan, file: SourceFile, keeper: Any, notify: Callable[[Event], None]) -> Iterator[Array]:
    """The same of a shard of which only what ranks hold is fetched, as `asyncfetch.open` does.

    A part cannot be held against the hash of the whole. What holds the file fixed is its size and its strong ETag.
    """
    file, portions = replace(file, path=None), dict[tuple[str, int | None], Portion]()
    assert plan.shares is not None  # noqa: S101
    for name, whole in plan.shares.fetched(file, plan.wanted(file.name)).items():
        info = file.known_header.tensors[name]
        for rank in [None] if whole else plan.shares.ranks:
            cut = None if rank is None else plan.shares.division.cut(name, info.shape, rank)
            portions[name, rank] = portion_of(name, file, info, cut)
    received = await _read(plan, file, [want for one in portions.values() for want in one.wants()], keeper, notify)
    notify(Finished(1, file.size, received, 0.0))
    arrays = {key: portion.array(None) for key, portion in portions.items()}

    def part(name: str, rank: int | None) -> Array:
        if (name, rank) in arrays:
            return arrays[name, rank]
        return _cut(plan, file, name, arrays[name, None], rank)

    return _objects(plan, file.name, part)


def _cut(plan: Plan, file: SourceFile, name: str, whole: Array, rank: int | None) -> Array:
    info = file.known_header.tensors[name]
    cut = None if rank is None or plan.shares is None else plan.shares.division.cut(name, info.shape, rank)
    return whole if cut is None else part_of(whole, name, file, info, cut)


def _objects(plan: Plan, name: str, part: PartOf) -> Iterator[Array]:
    """The bytes of each group of each unit."""
    for unit in plan.units(name):
        yield from _packed(plan, unit, part)


def _packed(plan: Plan, unit: Unit, part: PartOf) -> Iterator[Array]:
    for group in plan.groups(unit):
        place = np.frombuffer(aligned_buffer(group.size, 0), np.uint8)
        for name, info in views(group, plan.held(unit)):
            place[info.begin : info.end] = part(name, unit.rank).reshape(-1).view(np.uint8)
        yield place


async def _read(
    plan: Plan, file: SourceFile, wants: Sequence[Want], keeper: Any, notify: Callable[[Event], None]
) -> int:
    """Fill what is wanted. Returns how many bytes came from the source."""
    origin = RemoteOrigin(keeper)
    with plain_errors():
        if not await origin.ask(file):
            return await _relayed(wants, keeper)
        located = replace(plan.located, files=[file], origin=origin)
        policy = replace(plan.policy, connections=plan.connections)
        async with Transport(policy, notify=Notifier(notify)) as transport:
            gatherer = Gatherer(located, transport, policy)
            try:
                await gatherer.read(wants)
            finally:
                await gatherer.aclose()
            return gatherer.received


async def _relayed(wants: Sequence[Want], keeper: Any) -> int:
    """The same, where the source lets in the keeper alone."""
    received = 0
    for file, pieces in missing(wants):
        for stretch in coalesce(pieces, REQUEST_COST):
            sink = Sink(stretch)
            async for _, data in relayed_pieces(keeper, file.name, Span(sink.position, sink.stop), whole=False):
                received += len(data)
                while data:
                    place = sink.place(min(sink.room, len(data)))
                    place[:] = data[: len(place)]
                    sink.accept(place)
                    data = data[len(place) :]
    return received
