"""A checkpoint that a cluster holds."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

import anyio

from ..api.results import StateDict
from ..format.arrays import tensor_view
from ..format.dtypes import Array
from ..format.index import check_tensors
from ..tasks import off_loop, without_collections
from ..tensors.merge import state_dict
from .layout import views
from .plan import Plan
from .ray_calls import plain, ray_module, result
from .results import NodeSnapshot

__all__ = ["HeldCheckpoint"]

_STOP = 4.5  # seconds for the keeper to end all, before it is killed


class HeldCheckpoint:
    """A checkpoint that nodes of a cluster hold until it is released. It goes into any task or actor of Ray.

    `commit` is that of `Snapshot`. `refs` maps each shard to the objects in Ray's store that hold it: its header, and
    its data in groups of tensors; it is empty with `keep="disk"`. `nodes` are the nodes that had it when this was made,
    `downloaded` counts the bytes that the call brought from the source.

    It is released by the end of its block, by `release()`, or with the driver; with `hold="name"` by `release()` alone.
    """

    def __init__(
        self,
        plan: Plan,
        refs: Mapping[str, list[Any]],
        nodes: tuple[NodeSnapshot, ...],
        downloaded: int,
        keeper: Any,
        *,
        named: bool,
    ) -> None:
        self._plan, self._keeper, self._named = plan, keeper, named
        self.commit = plan.commit
        self.refs = dict(refs)
        self.nodes = nodes
        self.downloaded = downloaded

    def __repr__(self) -> str:
        what = f"{len(self.nodes):,} nodes, {sum(map(len, self.refs.values())):,} objects"
        return f"HeldCheckpoint({self._plan.located.source!r}, commit={self.commit!r}, {what})"

    async def local_async(self) -> StateDict:
        """The state dict on this node. Call it in a task or an actor.

        Arrays are read-only views on the node's shared memory, each on 64 bytes: all processes of the node share them,
        and nothing is copied. With `keep="disk"` they are writable views on private maps of the files in the node's
        cache, as `asyncfetch.load_async` gives them. Use `array.copy()` for training in place.

        Raises OfflineError on a node whose disk does not have it, NetworkError where it was lost.
        """
        if not self.refs:
            return await off_loop(self._from_disk, slow=True)
        names = self._wanted()
        objects = await result([ref for name in names for ref in self.refs[name][1:]])
        return await off_loop(lambda: self._from_store(names, objects), slow=True)

    def local(self) -> StateDict:
        """The blocking twin of `local_async`."""
        ray = ray_module()
        if not self.refs:
            return self._from_disk()
        names = self._wanted()
        try:
            objects = ray.get([ref for name in names for ref in self.refs[name][1:]])
        except ray.exceptions.RayError as error:
            raise plain(error) from error
        return self._from_store(names, objects)

    def _wanted(self) -> list[str]:
        located = self._plan.located
        return [located.path_of(shard) for shard in located.wanted.shards]

    def _from_disk(self) -> StateDict:
        located, landed = self._plan.landed()
        return StateDict(state_dict(located, landed))

    def _from_store(self, names: list[str], objects: list[Array]) -> StateDict:
        located, found = self._plan.located, dict[str, Array]()
        at = iter(objects)
        with without_collections():
            for name, shard in zip(names, located.wanted.shards, strict=True):
                header = self._plan.files[name].known_header
                wanted = located.wanted.tensors_of(shard)
                check_tensors(wanted, header, shard=shard, index_file=located.wanted.file)
                views_of = {}
                for group in self._plan.groups(name):
                    data = next(at)
                    for tensor, info in views(group, header):
                        views_of[tensor] = (data, info)
                for tensor in wanted:
                    data, info = views_of[tensor]
                    found[tensor] = tensor_view(data, info, 0, file=name, tensor=tensor)
        return StateDict({name: found[name] for name in located.wanted.weight_map})

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
