"""A checkpoint that a cluster holds."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

import anyio

from ..api.results import StateDict
from ..errors import SourceError
from ..format.arrays import tensor_view
from ..format.dtypes import Array
from ..format.parallel import TpPlan
from ..tasks import off_loop, without_collections
from ..tensors.merge import state_dict
from ..tensors.portions import part_of
from ..words import some_of
from .layout import views
from .plan import Plan
from .ray_calls import plain, ray_module, result
from .results import NodeSnapshot
from .shares import Shares, Unit

__all__ = ["HeldCheckpoint"]

_STOP = 4.5  # seconds for the keeper to end all, before it is killed


class HeldCheckpoint:
    """A checkpoint that nodes of a cluster hold until it is released. It goes into any task or actor of Ray.

    `commit` is that of `Snapshot`. `refs` maps each shard to the objects in Ray's store that hold it: its header, and
    its data in groups of tensors, or what ranks have alike and then the parts of each; it is empty with `keep="disk"`.
    `nodes` are the nodes that had it when this was made, each with the ranks that were dealt to it. `downloaded` counts
    the bytes that the call brought from the source.

    It is released by the end of its block, by `release()`, or with the driver; with `hold="name"` by `release()` alone.
    """

    def __init__(
        self,
        plan: Plan,
        refs: Mapping[Unit, list[Any]],
        nodes: tuple[NodeSnapshot, ...],
        downloaded: int,
        keeper: Any,
        *,
        named: bool,
    ) -> None:
        self._plan, self._keeper, self._named = plan, keeper, named
        self.commit = plan.commit
        self._refs = dict(refs)
        self.refs = dict[str, list[Any]]()
        for unit, objects in refs.items():
            self.refs.setdefault(unit.shard, objects[:1]).extend(objects[1:])
        self.nodes = nodes
        self.downloaded = downloaded

    def __repr__(self) -> str:
        what = f"{len(self.nodes):,} nodes, {sum(map(len, self.refs.values())):,} objects"
        return f"HeldCheckpoint({self._plan.located.source!r}, commit={self.commit!r}, {what})"

    async def local_async(
        self, rank: int | None = None, *, world_size: int | None = None, tp_plan: TpPlan | None = None
    ) -> StateDict:
        """The state dict on this node, or what `rank` of `world_size` holds of it. Call it in a task or an actor.

        Arrays are read-only views on the node's shared memory, each on 64 bytes: all processes of the node share them,
        and nothing is copied. With `keep="disk"` they are writable views on private maps of the files in the node's
        cache, as `asyncfetch.load_async` gives them. Use `array.copy()` for training in place.

        Where it was loaded for ranks, `rank` is one of those, and each part of it lies on 64 bytes. Else `tp_plan` says
        which tensors are split: a glob over names to the axis, or to the arguments `axis`, `parts` and `split` of
        `Checkpoint.shard_of`. The first glob that matches counts; what none matches each rank has whole. A part that is
        one stretch of bytes, as rows are, is a view as well; another one is copied, into memory of its own, which is
        read-only too.

        Raises OfflineError on a node whose disk does not have it, NetworkError where it was lost; SelectionError for a
        glob that matches nothing, SourceError for a rank or a split that cannot be.
        """
        shares = self._asked(rank, world_size, tp_plan)
        if not self._refs:
            return await off_loop(lambda: self._from_disk(shares), slow=True)
        units = self._units(rank)
        objects = await result([ref for unit in units for ref in self._refs[unit][1:]])
        return await off_loop(lambda: self._from_store(units, objects, shares), slow=True)

    def local(
        self, rank: int | None = None, *, world_size: int | None = None, tp_plan: TpPlan | None = None
    ) -> StateDict:
        """The blocking twin of `local_async`."""
        shares, ray = self._asked(rank, world_size, tp_plan), ray_module()
        if not self._refs:
            return self._from_disk(shares)
        units = self._units(rank)
        try:
            objects = ray.get([ref for unit in units for ref in self._refs[unit][1:]])
        except ray.exceptions.RayError as error:
            raise plain(error) from error
        return self._from_store(units, objects, shares)

    def _asked(self, rank: int | None, world_size: int | None, tp_plan: TpPlan | None) -> Shares | None:
        """What is to be cut out of whole tensors, for one rank. None: what is held is what is wanted."""
        held = self._plan.shares
        if held is None and rank is None and world_size is None and tp_plan is None:
            return None
        if held is None:
            if rank is None:
                raise SourceError("A part is that of one rank.", hint="Give rank=, world_size= and tp_plan=.")
            return Shares.of(self._plan.located, world_size, tp_plan, [rank])
        if world_size not in (None, held.division.world_size) or tp_plan is not None:
            hint = "Call local(rank): how tensors are divided was said when it was loaded."
            raise SourceError(f"It is held in parts, for a group of {held.division.world_size:,} ranks.", hint=hint)
        if rank is None or rank not in held.ranks:
            ranks = some_of([*map(str, held.ranks)], 8)
            raise SourceError(f"It is held in parts, and rank={rank!r} is none of the ranks that are: {ranks}.")
        return None

    def _units(self, rank: int | None) -> list[Unit]:
        located = self._plan.located
        units = (unit for shard in located.wanted.shards for unit in self._plan.units(located.path_of(shard)))
        return [unit for unit in units if unit.rank in (None, rank)]

    def _from_disk(self, shares: Shares | None) -> StateDict:
        located, landed = self._plan.landed()
        found = state_dict(located, landed)
        return StateDict({name: self._part(name, array, shares) for name, array in found.items()})

    def _part(self, tensor: str, whole: Array, shares: Shares | None) -> Array:
        if shares is None:
            return whole
        located = self._plan.located
        file = self._plan.files[located.path_of(located.wanted.weight_map[tensor])]
        info = file.known_header.tensors[tensor]
        cut = shares.division.cut(tensor, info.shape, shares.ranks[0])
        return whole if cut is None else part_of(whole, tensor, file, info, cut)

    def _from_store(self, units: list[Unit], objects: list[Array], shares: Shares | None) -> StateDict:
        wanted, found, at = self._plan.located.wanted, dict[str, Array](), iter(objects)
        with without_collections():
            for unit in units:
                tensors = {*self._plan.wanted(unit.shard)}
                for group in self._plan.groups(unit):
                    data = next(at)
                    for tensor, info in views(group, self._plan.held(unit)):
                        if tensor in tensors:
                            whole = tensor_view(data, info, 0, file=unit.shard, tensor=tensor)
                            found[tensor] = self._part(tensor, whole, shares)
                            found[tensor].flags.writeable = False
        return StateDict({name: found[name] for name in wanted.weight_map})

    def release(self) -> None:
        """Let all nodes forget what they hold in memory, and end what is under way. Files on disk stay. Blocks."""
        ray = ray_module()
        with suppress(ray.exceptions.RayError):  # it has ended, or takes too long to
            ray.get(self._keeper.stop.remote(), timeout=_STOP)
        ray.kill(self._keeper, no_restart=True)

    async def aclose(self) -> None:
        """As `release`, for async code; but a checkpoint that is held by its name stays."""
        if not self._named:
            with anyio.CancelScope(shield=True):
                await off_loop(self.release)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._named:
            self.release()
