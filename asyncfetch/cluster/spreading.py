"""Bringing a checkpoint to its nodes, each byte from the source once.

On disk, a node downloads a file into its cache, and from there it goes piece by piece through Ray's object store to
the others, each of which holds it against its hash; so a small store does for any file. In memory, a task makes the
objects of a shard, from the disk of its node or from the source, and each node's agent keeps them in the store there.
Who is gone is dropped, and its share is brought by another.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from itertools import islice
from typing import Any

import anyio

from ..errors import ChecksumMismatchError, NetworkError, StorageError
from ..events import Event, FileVerified, NodeProgress, Warned
from ..sources.located import SourceFile
from ..tasks import plain_errors
from .members import LostError, Member, Members
from .nodes import piece_bytes, spread
from .options import Keep
from .plan import Plan
from .ray_calls import answer, placed_at, ray_module
from .rounds import in_rounds
from .shards import moved, shard_objects
from .shares import Unit

__all__ = ["Spreading"]

_FILES_A_NODE = 4  # on their way from disk to disk at once, for each node
_MOST_TRIES = 5  # for one file, each after a node or a copy was lost


class Spreading:
    """Brings what members lack. `refs` are the objects of each unit: the header of its shard, and its groups."""

    def __init__(
        self, plan: Plan, plan_ref: Any, keep: Keep, members: Members, keeper: Any, notify: Callable[[Event], None]
    ) -> None:
        self._plan, self._plan_ref, self._keep = plan, plan_ref, keep
        self._members, self._keeper, self._notify = members, keeper, notify
        self.refs: dict[Unit, list[Any]] = {}
        self._running: set[Any] = set()
        self._fetched: dict[str, str | None] = {}  # by this run, so their hashes are right: the sha256 of each
        self._told: set[str] = set()

    async def settle(self) -> None:
        """Bring all members what they lack. Raises the errors of a download."""
        with plain_errors():
            if self._keep != "memory":
                await self._each([*self._plan.files], self._on_disk)
                await self._complete()
            if self._keep != "disk":
                await self._each(self._plan.shards, self._in_memory)

    def cancel_tasks(self) -> None:
        """Have the tasks end that make objects."""
        ray = ray_module()
        while self._running:
            ray.cancel(self._running.pop(), force=False)

    async def _each(self, names: Sequence[str], bring: Callable[[SourceFile, str], Any]) -> None:
        """Bring files, the largest first, each from the node that has most of it."""
        files = self._plan.files
        states = {member.node.id: member.state for member in self._members.all.values()}
        present = {node: state.present for node, state in states.items() if state is not None}
        sizes = {name: files[name].size for name in names}
        places = spread(sizes, [*present], present) if present else {}
        limiter = anyio.CapacityLimiter(max(_FILES_A_NODE * len(present), 1))
        self._piece = piece_bytes(member.node for member in self._members.all.values())

        async def one(name: str) -> None:
            async with limiter:
                for attempt in range(_MOST_TRIES):
                    if not self._members.all:
                        break
                    try:
                        await bring(files[name], places.get(name, ""))
                    except LostError:
                        if attempt == _MOST_TRIES - 1:
                            raise NetworkError(f"nodes were lost time and again under {name}", url="ray") from None
                        continue
                    self._verified(files[name])
                    return
                raise NetworkError("no node is left that is to have it", url="ray")

        async with anyio.create_task_group() as group:
            for name in sorted(names, key=lambda name: -sizes[name]):
                group.start_soon(one, name)

    def _verified(self, file: SourceFile) -> None:
        if file.name not in self._told and (self._keep != "memory" or self._plan.verified(file.name)):
            self._told.add(file.name)
            self._notify(FileVerified(file.name, file.size, str(file.checksum) if file.checksum else None))

    def _progress(self, member: Member, file: SourceFile, present: int, *, downloads: bool = False) -> None:
        self._notify(NodeProgress(member.node.id, member.node.address, file.name, present, file.size, downloads))

    # -- disk ----------------------------------------------------------------------------------

    async def _on_disk(self, file: SourceFile, place: str) -> None:
        while True:
            members = [*self._members.all.values()]
            if not members:
                raise LostError
            lacking = [member for member in members if file.name not in member.whole]
            if not lacking:
                return
            having = [member for member in members if file.name in member.whole]
            if having:
                await self._copy(file, min(having, key=lambda member: member.slots.borrowed_tokens), lacking)
                continue
            bringer = self._members.all.get(place) or min(lacking, key=lambda member: member.slots.borrowed_tokens)
            async with bringer.slots:
                self._fetched[file.name] = await self._members.ask(bringer, "fetch", file.name)
            self._now_whole(bringer, file, downloads=True)

    def _now_whole(self, member: Member, file: SourceFile, *, downloads: bool = False) -> None:
        member.whole.add(file.name)
        self._progress(member, file, file.size, downloads=downloads)

    async def _copy(self, file: SourceFile, source: Member, targets: Sequence[Member]) -> None:
        """Bring a file from one node's disk to others. A source whose file is wrong is a source no more."""
        alive, starts = list(targets), range(0, file.size, self._piece)
        following = self._read(file, source, 0) if file.size else None
        for start in starts:
            (here, piece), following = following, None  # type: ignore[misc]
            await self._of(source, file, here)
            if start + self._piece < file.size:
                following = self._read(file, source, start + self._piece)
            await in_rounds(list(alive), self._asking(alive, file, "write", start, piece))
            for member in alive:
                self._progress(member, file, min(start + self._piece, file.size - 1))
            del piece
        try:
            await self._finish(alive, file)
        except ChecksumMismatchError as error:
            if file.name in self._fetched:
                raise
            self._notify(Warned(f"{error.message} What node {source.node.address} has of it is not used", file.name))
            await self._members.ask(source, "distrust", file.name)
            source.whole.discard(file.name)
            return
        for member in alive:
            member.received += file.size
            self._now_whole(member, file)

    def _read(self, file: SourceFile, source: Member, start: int) -> tuple[Any, Any]:
        stop = min(start + self._piece, file.size)
        here, piece = source.agent.read.options(num_returns=2).remote(file.name, start, stop)
        return here, piece

    async def _of(self, source: Member, file: SourceFile, here: Any) -> None:
        """Wait until a node has read what it was told to. LostError where it, or its file, is gone."""
        try:
            await answer(here)
        except NetworkError as error:
            self._members.drop(source)
            raise LostError(error.message) from error
        except StorageError as error:
            self._notify(Warned(f"Node {source.node.address} cannot give what it has: {error.message}", file.name))
            source.whole.discard(file.name)
            raise LostError(error.message) from error

    async def _finish(self, alive: list[Member], file: SourceFile) -> None:
        ask = self._asking(alive, file, "finish", self._fetched.get(file.name))
        with plain_errors():
            async with anyio.create_task_group() as group:
                for member in list(alive):
                    group.start_soon(ask, member)

    def _asking(
        self, alive: list[Member], file: SourceFile, method: str, *arguments: Any
    ) -> Callable[[Member], Coroutine[Any, Any, bool]]:
        """What asks a node, and tells whether it did it: one that is gone leaves `alive`."""

        async def ask(member: Member) -> bool:
            try:
                await self._members.ask(member, method, file.name, *arguments)
            except LostError:
                alive.remove(member)
                return False
            return True

        return ask

    async def _complete(self) -> None:
        async def complete(member: Member) -> None:
            if member.folder is None:
                try:
                    member.folder = await self._members.ask(member, "complete")
                except LostError:
                    return

        async with anyio.create_task_group() as group:
            for member in list(self._members.all.values()):
                group.start_soon(complete, member)

    # -- memory --------------------------------------------------------------------------------

    async def _in_memory(self, file: SourceFile, place: str) -> None:
        units = self._plan.units(file.name)
        if any(unit not in self.refs for unit in units):
            self.refs |= await self._make(file, place, units)

        async def hold(member: Member) -> bool:
            lacking = [unit for unit in units if unit not in member.held and member.wants(unit)]
            try:
                for unit in lacking:
                    await self._members.ask(member, "hold", unit, *self.refs[unit])
                    member.held.add(unit)
            except LostError:
                return False
            self._held(member, file)
            return True

        members = [*self._members.all.values()]
        await in_rounds(
            [one for one in members if any(one.wants(unit) and unit not in one.held for unit in units)], hold
        )

    def _held(self, member: Member, file: SourceFile) -> None:
        if self._plan.shares is None:
            self._progress(member, file, file.size)
            return
        nbytes = self._plan.held_bytes(file.name, member.ranks)
        self._notify(NodeProgress(member.node.id, member.node.address, file.name, nbytes, nbytes, False))

    async def _make(self, file: SourceFile, place: str, units: Sequence[Unit]) -> dict[Unit, list[Any]]:
        """Have a node make the objects of a shard: one that has it on its disk, or else `place`."""
        members = [*self._members.all.values()]
        having = [member for member in members if file.name in member.whole]
        at = min(having, key=lambda member: member.slots.borrowed_tokens) if having else self._members.all.get(place)
        at = at or min(members, key=lambda member: member.slots.borrowed_tokens)
        ray = ray_module()
        task = ray.remote(shard_objects).options(
            name=f"asyncfetch {file.name}",
            num_cpus=0,
            num_returns=1 + sum(len(self._plan.groups(unit)) for unit in units),
            max_retries=3,
            scheduling_strategy=placed_at(at.node.id, soft=True),
        )
        async with at.slots:
            refs: list[Any] = list(task.remote(self._plan_ref, file.name, self._keeper))
            self._running.add(refs[0])
            await answer(refs[0])
            self._running.discard(refs[0])
            header, groups = refs[0], iter(refs[1:])
            del refs
            made = {unit: [header, *islice(groups, len(self._plan.groups(unit)))] for unit in units}
            moved_units = {unit: self._moved(unit, made.pop(unit), at) for unit in units}
            for objects in moved_units.values():
                await answer(objects[0])
                self._running.discard(objects[0])
            return moved_units

    def _moved(self, unit: Unit, objects: list[Any], at: Member) -> list[Any]:
        """What one rank holds, on its way to its own node alone: an object stays for good where it was made."""
        home = self._members.of_rank(unit.rank)
        if home is None or home is at:
            return objects
        task = ray_module().remote(moved)
        task = task.options(
            name=f"asyncfetch {unit.shard}",
            num_cpus=0,
            num_returns=len(objects),
            max_retries=3,
            scheduling_strategy=placed_at(home.node.id, soft=True),
        )
        refs: list[Any] = list(task.remote(*objects))
        self._running.add(refs[0])
        return refs
