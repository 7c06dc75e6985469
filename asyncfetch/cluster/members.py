"""The nodes that are to have a checkpoint: who they are, what each has of it, and how they are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from ..errors import AsyncfetchError, NetworkError, SourceError
from ..events import Event, Warned
from ..policy import __version__
from ..tasks import off_loop, plain_errors
from .agent import Agent
from .nodes import Node, NodeState, check_room, chosen, nodes_of, tasks_at_once
from .options import Keep, Nodes
from .plan import Plan
from .ray_calls import answer, is_lost, placed_at, ray_module
from .results import NodeSnapshot
from .shares import Unit, dealt

__all__ = ["LostError", "Member", "Members"]


class LostError(Exception):
    """A node, or what we have there, ended. It never leaves the keeper: the others go on."""


@dataclass(eq=False, slots=True)
class Member:
    """A node that is to have the checkpoint. `whole` are the files on its disk, `held` what is in its store.

    `ranks` are those whose parts it is to have, where ranks hold parts; `divided`: they do.
    `downloaded` and `received` are those of its `NodeSnapshot`.
    """

    node: Node
    agent: Any
    slots: anyio.CapacityLimiter
    state: NodeState | None = None  # until it was asked
    whole: set[str] = field(default_factory=set)
    held: set[Unit] = field(default_factory=set)
    divided: bool = False
    ranks: tuple[int, ...] = ()
    folder: str | None = None
    downloaded: int = 0
    received: int = 0

    @property
    def snapshot(self) -> NodeSnapshot:
        """What is told of it."""
        path = None if self.folder is None else Path(self.folder)
        return NodeSnapshot(self.node.id, self.node.address, path, self.downloaded, self.received, self.ranks)

    def wants(self, unit: Unit) -> bool:
        """Whether it is to have that in its store."""
        return not self.divided or (bool(self.ranks) if unit.rank is None else unit.rank in self.ranks)


class Members:
    """All of them, by the ids of their nodes."""

    def __init__(
        self, plan: Plan, plan_ref: Any, wanted: Nodes, keep: Keep, keeper: Any, notify: Callable[[Event], None]
    ) -> None:
        self._plan, self._plan_ref, self._wanted, self._keep = plan, plan_ref, wanted, keep
        self._keeper, self._notify = keeper, notify
        self.all: dict[str, Member] = {}
        self._refused: set[str] = set()  # nodes that joined and have no room, or no asyncfetch
        self._sizes = {name: file.size for name, file in plan.files.items()}

    async def look(self, *, first: bool) -> bool:
        """Take in nodes that are wanted and new, drop those that are gone. Whether anything changed.

        The first time each must have room, and none is taken in before all were seen. Later, one that has none is
        told in a warning. Raises DiskFullError, SourceError.
        """
        alive = await off_loop(_alive)
        known = {node.id for node in alive}
        gone = [member for member in self.all.values() if member.node.id not in known]
        for member in gone:
            self.drop(member)
        try:
            wanted = chosen([node for node in alive if node.id not in self._refused], self._wanted, [*self.all])
        except SourceError as error:
            if first:
                raise
            if gone:
                self._notify(Warned(error.message))
            return bool(gone)
        new = [self._member(node) for node in wanted if node.id not in self.all]
        self._deal([*self.all.values(), *new])
        with plain_errors():
            async with anyio.create_task_group() as group:
                for member in new:
                    group.start_soon(self._admit, member, first)
        self.all |= {member.node.id: member for member in new if member.state is not None}
        self._deal([*self.all.values()])
        return bool(gone or new)

    def _deal(self, members: Sequence[Member]) -> None:
        """Say which ranks are whose."""
        if self._plan.shares is not None:
            so_far = {member.node.id: member.ranks for member in members}
            ranks = dealt(self._plan.all_ranks, [*so_far], so_far)
            for member in members:
                member.ranks = ranks[member.node.id]

    def of_rank(self, rank: int | None) -> Member | None:
        """Who is to have the part of a rank; None where that is not one alone."""
        return next((member for member in self.all.values() if rank is not None and rank in member.ranks), None)

    def _member(self, node: Node) -> Member:
        ray = ray_module()
        actor = ray.remote(Agent).options(
            num_cpus=0, max_restarts=0, scheduling_strategy=placed_at(node.id, soft=False), name=None
        )
        largest = max(self._sizes.values(), default=0)
        slots = anyio.CapacityLimiter(tasks_at_once(node.memory, largest))
        agent = actor.remote(self._plan_ref, node.id, self._keeper)
        return Member(node, agent, slots, divided=self._plan.shares is not None)

    async def _admit(self, member: Member, first: bool) -> None:
        """Ask a node what it has, and see that there is room. Sets its state."""
        node = member.node
        try:
            state: NodeState = await self.ask(member, "probe")
            if state.version != __version__:
                raise SourceError(
                    f"Node {node.address} has asyncfetch {state.version}, and the driver {__version__}.",
                    hint="Install the same version on each node.",
                )
            self._check(member, state)
        except (AsyncfetchError, LostError) as error:
            if first and isinstance(error, LostError):
                hint = "Install the same version of asyncfetch[ray] on each node; the logs of Ray tell more."
                raise SourceError(f"Nothing of ours runs on node {node.address}: {error}", hint=hint) from error
            if first:
                raise
            self._refused.add(node.id)
            self._notify(Warned(f"Node {node.address} does not get it: {error}"))
            return
        member.state = state
        member.whole = {name for name, size in self._sizes.items() if state.present.get(name, 0) >= size and size}

    def _check(self, member: Member, state: NodeState) -> None:
        in_memory = 0
        if self._keep != "disk":
            in_memory = sum(self._plan.held_bytes(name, member.ranks) for name in self._plan.shards)
        if self._plan.shares is not None:
            # Shards that it cuts for others pass through its store: as many at once as there is room for.
            ranks, shards = self._plan.all_ranks, self._plan.shards
            passing = max((self._plan.held_bytes(name, ranks) for name in shards), default=0)
            room = (member.node.store - in_memory) // max(passing, 1)
            member.slots.total_tokens = max(1, min(member.slots.total_tokens, room))
            in_memory += passing
        on_disk = [] if self._keep == "memory" else [*self._sizes]
        check_room(member.node, state, self._sizes, in_memory=in_memory, on_disk=on_disk)

    def drop(self, member: Member) -> None:
        """Forget a node that is gone."""
        if self.all.pop(member.node.id, None) is not None:
            self._notify(Warned(f"Node {member.node.address} is gone: the others go on without it"))

    async def ask(self, member: Member, method: str, *arguments: Any) -> Any:
        """What a node's agent answers. An error of ours names the node; LostError where it is gone."""
        try:
            return await answer(getattr(member.agent, method).remote(*arguments))
        except NetworkError as error:
            if is_lost(error):
                self.drop(member)
                raise LostError(error.message) from error
            raise _at(error, member) from error.__cause__
        except AsyncfetchError as error:
            raise _at(error, member) from error.__cause__

    async def stop(self, seconds: float) -> None:
        """Have all end what is under way, and leave no trace of those that do not in time."""
        with anyio.move_on_after(seconds, shield=True):
            async with anyio.create_task_group() as group:
                for member in list(self.all.values()):
                    group.start_soon(self._stop, member)

    async def _stop(self, member: Member) -> None:
        with suppress(AsyncfetchError, LostError):  # it ends with its actor
            await self.ask(member, "stop")


def _at(error: AsyncfetchError, member: Member) -> AsyncfetchError:
    """`error`, which says at which node it happened."""
    if not str(error.args[0]).startswith("Node "):
        error.args = (f"Node {member.node.address}: {error.args[0]}", *error.args[1:])
    return error


def _alive() -> list[Node]:
    ray = ray_module()
    free: dict[str, dict[str, float]] = {}
    state: Any = getattr(getattr(ray, "_private", None), "state", None)
    if hasattr(state, "available_resources_per_node"):  # what is free is told by no public call
        free = state.available_resources_per_node()
    return nodes_of(ray.nodes(), free)
