"""How a node gets a file from its source: by our own transfer, on a link that the keeper hands out.

A link is all that leaves the keeper. Where the source lets in nobody without the token, as mirrors without signed
links do, and the Hub itself for its small files, the keeper reads and hands on the bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup

from ..engine.beginning import stored_partial
from ..engine.transfer import Transfer
from ..errors import ChecksumMismatchError, StorageError
from ..events import Event, FileProgress, FileStarted, FileVerified, Finished, Notifier
from ..network.ranges import Target
from ..network.transport import Transport
from ..sources.located import Landed, SourceFile
from ..spans import MiB, Span
from ..storage.cache import RepoCache
from ..storage.partial import MemoryPartial, Partial, StoredPartial
from ..tasks import off_loop, plain_errors
from .plan import Plan
from .ray_calls import answer

__all__ = ["Arriving", "RemoteOrigin", "Served", "Teller", "fetched", "relayed_pieces"]

_RELAYED = 8 * MiB  # bytes that the keeper reads for a node at once
_TELL = 0.2  # seconds between two messages to the keeper


@dataclass(frozen=True, slots=True)
class Served:
    """Where a file is served, and what came with that answer. `target` is None where only the keeper is let in."""

    target: Target | None = field(repr=False)
    size: int
    prefix: bytes = field(repr=False)
    splittable: bool


class RemoteOrigin:
    """The source of files, as the keeper tells of it."""

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    async def target(self, file: SourceFile, *, renew: bool) -> Target:
        """As `sources.located.Origin` has it."""
        if file.target is None or renew:
            await self.ask(file, None if file.target is None else file.target.url)
        assert file.target is not None  # noqa: S101
        return file.target

    async def ask(self, file: SourceFile, refused: str | None = None) -> bool:
        """Set where `file` is served. False: the keeper has to read it."""
        served: Served = await answer(self._keeper.served.remote(file.name, refused))
        file.target, file.size, file.splittable = served.target, served.size, served.splittable
        if served.prefix and not file.prefix:
            file.prefix = served.prefix
        return served.target is not None


class Teller:
    """Tells the keeper what happens at a node, a few times a second: of progress the latest. An `async with` block."""

    def __init__(self, keeper: Any, node: str) -> None:
        self._keeper, self._node = keeper, node
        self._events: list[Event] = []
        self._progress: dict[str, FileProgress] = {}
        self._group: TaskGroup | None = None

    def __call__(self, event: Event) -> None:
        """Tell of an event, soon."""
        if isinstance(event, FileProgress):
            self._progress[event.file] = event
        else:
            self._events += [*self._progress.values(), event]
            self._progress.clear()

    async def __aenter__(self) -> Self:
        self._group = await anyio.create_task_group().__aenter__()
        self._group.start_soon(self._tell)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._group is not None  # noqa: S101
        self._group.cancel_scope.cancel()
        await self._group.__aexit__(None, None, None)
        told = self.flush()
        if kind is None and told is not None:
            await answer(told)  # before the keeper hears that the work is done

    async def _tell(self) -> None:
        while True:
            await anyio.sleep(_TELL)
            self.flush()

    def flush(self) -> Any | None:
        """Tell it now. Returns the call, None if there is nothing to tell."""
        events = [*self._events, *self._progress.values()]
        self._events, self._progress = [], {}
        return self._keeper.tell.remote(self._node, events) if events else None


class Arriving:
    """A file on its way into the cache, piece by piece. It gets its name once its hash is right. Blocks."""

    def __init__(self, cache: RepoCache, commit: str, file: SourceFile) -> None:
        cache.prepare()
        self._cache, self._commit, self.file = cache, commit, file
        self.partial = stored_partial(cache, file)

    def accept(self, start: int, data: memoryview) -> int:
        """Write the bytes from `start` on. Returns how many are here. What is here already may come again."""
        self.partial.accept(start, data)
        return self.partial.received

    def finish(self) -> Path:
        """Give it its name. Raises ChecksumMismatchError, and keeps nothing then; StorageError."""
        file, partial = self.file, self.partial
        digest = _digest(partial, file)
        return partial.publish(
            lambda path: self._cache.publish(path, file.blob or digest, self._commit, file.name, size=file.size)
        )

    def suspend(self) -> None:
        """Stop here, so that a later run can go on."""
        with suppress(StorageError):
            self.partial.suspend()


def _digest(partial: Partial, file: SourceFile) -> str:
    while partial.backlog:
        partial.catch_up()
    digest = partial.digest()
    if file.checksum is not None and digest != file.checksum.hex:
        if isinstance(partial, StoredPartial):
            partial.discard()
        expected = file.checksum
        raise ChecksumMismatchError(file.name, algorithm=expected.algorithm, expected=expected.hex, actual=digest)
    return digest


async def fetched(
    plan: Plan, file: SourceFile, cache: RepoCache, keeper: Any, notify: Callable[[Event], None], *, disk: bool
) -> Landed:
    """Fetch a file from its source, into `cache` (with `disk`) or into memory, and hold it against its hash.

    Tells `notify` how it goes, at last by a Finished. Raises the errors of a transfer.
    """
    file, origin = replace(file), RemoteOrigin(keeper)
    with plain_errors():
        if not await origin.ask(file):
            landed = await _relayed(plan, file, cache if disk else None, keeper, notify)
            notify(Finished(1, file.size, file.size, 0.0))
            return landed
        only: dict[str, Any] = {"ref": None, "index_file": None, "records": None, "absent": [], "identities": {}}
        located = replace(plan.located, files=[file], cache=cache, origin=origin, **only)
        notifier = Notifier(notify)
        policy = replace(plan.policy, connections=plan.connections)
        async with Transport(policy, notify=notifier) as transport:
            storage = "disk" if disk else "memory"
            transfer = Transfer(located, transport, policy, notifier, storage, named=True)
            landed = (await transfer.run())[file.name]
        notify(Finished(1, file.size, transfer.downloaded, 0.0))
        return landed


async def relayed_pieces(keeper: Any, name: str, span: Span, *, whole: bool) -> AsyncIterator[tuple[int, memoryview]]:
    """What the keeper reads of a file, in order, each piece with where it begins. `whole`: as `Keeper.relay` has it."""
    for start in range(span.start, span.stop, _RELAYED):
        stop = min(start + _RELAYED, span.stop)
        yield start, memoryview(await answer(keeper.relay.remote(name, start, stop, whole=whole)))


async def _relayed(
    plan: Plan, file: SourceFile, cache: RepoCache | None, keeper: Any, notify: Callable[[Event], None]
) -> Landed:
    """The same of a file that the keeper reads, in order."""
    arriving = None if cache is None else await off_loop(lambda: Arriving(cache, plan.commit or "", file))
    whole = MemoryPartial(file.size, file.algorithm, data_start=len(file.raw_header))
    into: Partial = whole if arriving is None else arriving.partial
    notify(FileStarted(file.name, file.size, into.received))
    try:
        for span in into.missing():
            async for start, data in relayed_pieces(keeper, file.name, span, whole=True):
                await off_loop(partial(into.accept, start, data))
                notify(FileProgress(file.name, into.received, file.size))
        if arriving is None:
            await off_loop(lambda: _digest(whole, file), slow=True)
            landed = Landed(buffer=whole.buffer)
        else:
            landed = Landed(path=await off_loop(arriving.finish, slow=True))
    except BaseException:
        if arriving is not None:
            with anyio.CancelScope(shield=True):
                await off_loop(arriving.suspend)
        raise
    notify(FileVerified(file.name, file.size, str(file.checksum) if file.checksum else None))
    return landed
