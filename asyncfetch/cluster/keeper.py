"""The actor that a cluster has for one checkpoint: it alone holds the token, it has the work done, and it owns it."""

from __future__ import annotations

import asyncio
import pickle
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

import anyio

from ..errors import AsyncfetchError, NetworkError
from ..events import Event, FileProgress, FileVerified, Finished, NodeProgress, Notifier, Warned
from ..network.ranges import Target
from ..network.reading import read_span
from ..network.transport import Transport
from ..sources.links import Links
from ..sources.request import Request
from ..sources.resolve import place_of
from ..spans import Span
from .fetching import Served
from .handover import taken
from .members import Members
from .plan import Errand, Plan
from .ray_calls import ray_module
from .results import NodeSnapshot
from .shares import Unit
from .spreading import Spreading

__all__ = ["Keeper", "News"]

_LOOK = 1.0  # seconds between two looks at which nodes there are
_NEWS = 1.0  # seconds that a question for news waits
_STOP = 2.0  # seconds for nodes to end what they do, and leave it resumable
_KEPT = 10_000  # events that wait for who asks
_PUBLIC = frozenset({"x-hf-download-counter"})  # headers that tell nothing of who asks


@dataclass(frozen=True, slots=True)
class News:
    """What happened since the last question. `error` is what ended it; `downloaded` counts bytes from the source."""

    events: list[Event]
    seen: int
    stage: Literal["working", "held", "failed"]
    error: AsyncfetchError | None
    downloaded: int


class Keeper:
    """An actor of Ray, beside the driver. With `hold=` it outlives that."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=_KEPT)
        self._told = 0
        self._news = asyncio.Event()
        self._stage: Literal["working", "held", "failed"] = "working"
        self._error: AsyncfetchError | None = None
        self._downloaded = 0
        self._scope = anyio.CancelScope()
        self._task: asyncio.Task[None] | None = None
        self._asked = ""

    async def begin(self, errand: Errand, plan: Plan) -> None:
        """Begin to bring a checkpoint to its nodes. The request, with the token, comes from the driver past Ray."""
        self._asked, self._plan, ray = errand.asked, plan, ray_module()
        request: Request = pickle.loads(await taken(errand.offer))  # noqa: S301 - of the same user, see `offered`
        me = ray.get_runtime_context().current_actor
        plan_ref = ray.put(plan)
        self._files = {file.name: replace(file) for file in plan.located.files}
        self._members = Members(plan, plan_ref, errand.nodes, errand.keep, me, self._notify)
        self._spreading = Spreading(plan, plan_ref, errand.keep, self._members, me, self._notify)
        self._task = asyncio.create_task(self._run(request))

    async def asked(self) -> str:
        """The digest of what was asked of it, so that another driver sees whether that is what it wants."""
        return self._asked

    async def _run(self, request: Request) -> None:
        notifier = Notifier(self._notify)
        with self._scope:
            try:
                async with Transport(self._plan.policy, notify=notifier) as transport:
                    self._transport = transport
                    self._links = Links(place_of(request, transport))
                    await self._members.look(first=True)
                    await self._spreading.settle()
                    self._enter("held")
                    await self._watch()
            except Exception as error:
                self._spreading.cancel_tasks()
                await self._members.stop(_STOP)
                self._error = error if isinstance(error, AsyncfetchError) else _unexpected(error)
                self._enter("failed")

    async def _watch(self) -> None:
        """Bring what is held to nodes that join, and do without those that are gone, for as long as it is held."""
        while True:
            await anyio.sleep(_LOOK)
            try:
                if await self._members.look(first=False):
                    await self._spreading.settle()
            except AsyncfetchError as error:
                self._notify(Warned(str(error)))

    # -- what drivers ask ----------------------------------------------------------------------

    async def news(self, seen: int) -> News:
        """What happened since `seen` events, as soon as something did, or after a second."""
        if self._told <= seen and self._stage == "working":
            self._news.clear()
            with anyio.move_on_after(_NEWS):
                await self._news.wait()
        missed = min(self._told - seen, len(self._events))
        events = list(self._events)[len(self._events) - missed :]
        return News(events, self._told, self._stage, self._error, self._downloaded)

    async def held(self) -> tuple[Plan, dict[Unit, list[Any]], tuple[NodeSnapshot, ...]]:
        """The plan, the objects of each unit, and what each node has."""
        refs = self._spreading.refs
        refs = {unit: refs[unit] for name in self._plan.shards for unit in self._plan.units(name) if unit in refs}
        return self._plan, refs, tuple(member.snapshot for member in self._members.all.values())

    async def stop(self) -> None:
        """End what is under way, so that a later run goes on with what is on the disks."""
        self._scope.cancel()
        if self._task is not None:
            self._spreading.cancel_tasks()
            await self._members.stop(_STOP)
            with anyio.move_on_after(_STOP):
                await asyncio.wait([self._task])

    # -- what nodes ask ------------------------------------------------------------------------

    async def served(self, name: str, refused: str | None) -> Served:
        """Where a file is served; asked for anew if that is still at the link that was `refused`."""
        file = self._files[name]
        target = await self._links.target(file, None if refused is None else Target(refused))
        ours = _identifies(target)
        return Served(None if ours else replace(target, until=None), file.size, file.prefix, file.splittable)

    async def relay(self, name: str, start: int, stop: int, *, whole: bool = True) -> bytes:
        """Some bytes of a file that the source gives to nobody else. `whole`: who asks holds it against its hash."""
        file = self._files[name]
        target = await self._links.target(file, None)
        if file.checksum is not None and whole:
            target = replace(target, hashed=True)

        async def renew() -> Target:
            return replace(await self._links.target(file, target), hashed=target.hashed)

        if stop <= len(file.prefix):
            return file.prefix[start:stop]
        return await read_span(self._transport, target, Span(start, stop), file=name, size=file.size, renew=renew)

    async def tell(self, node: str, events: list[Event]) -> None:
        """What happens at a node."""
        member = self._members.all.get(node)
        address = node if member is None else member.node.address
        for event in events:
            if isinstance(event, Finished):
                self._downloaded += event.downloaded
                if member is not None:
                    member.downloaded += event.downloaded
                continue
            if isinstance(event, FileProgress):
                present = min(event.received, max(event.size - 1, 0))
                self._notify(NodeProgress(node, address, event.file, present, event.size, True))
            if not isinstance(event, FileVerified):  # which is told when all have it
                self._notify(event)

    def _notify(self, event: Event) -> None:
        self._events.append(event)
        self._told += 1
        self._news.set()

    def _enter(self, stage: Literal["held", "failed"]) -> None:
        self._stage = stage
        self._news.set()


def _identifies(target: Target) -> bool:
    """Whether a link says who asks: a header that is not known to be harmless, or a name in the address."""
    return bool({name.lower() for name in target.headers} - _PUBLIC) or "@" in urlsplit(target.url).netloc


def _unexpected(error: Exception) -> AsyncfetchError:
    """An error of ours for one that nobody foresaw."""
    return NetworkError(f"the download failed: {type(error).__name__}: {error}", url="ray")
