"""Files on their way from the source into the cache, and to those who read them meanwhile.

A fill is one transfer of one file. It begins with the first who asks, serves all who ask, and goes on when they leave.
A reader gets what is here at its offset, except for the last HELD bytes: these come when the hash is right, so nobody
ever has a whole file that is wrong. Where the hash is wrong, all who read what came so far are cut off, and may not
go on with what they have (distrust.py).

A file whose SHA-256 is known is fetched once, in whatever repositories it is: another one that has it lends it
(borrowing.py), or takes part in its fill. What another process is fetching is read as it comes (following.py).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio

from ..engine.signals import Signal
from ..engine.transfer import Transfer
from ..errors import AsyncfetchError, ChecksumMismatchError, StorageError
from ..events import Notifier, Retrying, Waiting
from ..network.ranges import read_span
from ..sources.located import Landed, Located, SourceFile
from ..spans import MiB, Span
from ..storage.partial import FilePartial
from ..tasks import off_loop, plain_errors
from .borrowing import borrow, is_same_everywhere
from .following import Followed, inode_of
from .freshness import PATIENCE

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from ..events import Event
    from ..network.ranges import Target
    from ..network.transport import Transport
    from ..policy import Policy
    from ..sources.hub import Hub
    from ..storage.cache import RepoCache
    from ..storage.partial import Partial
    from .counts import Counts
    from .distrust import Distrust

__all__ = ["HELD", "Fill", "Fills"]

LOG = logging.getLogger("asyncfetch.server")
HELD = 64 * 1024  # bytes at the end of a file that wait for the hash
AHEAD = 8 * MiB  # beyond what has come: who reads there gets a request of its own
AT_ONCE = 32  # files; the others wait for their turn
PIECE = 4 * MiB  # of such a request
LOOK_AGAIN = 0.1  # seconds between looks at what another process brings


class _Origin:
    """Where the file of a fill is served, as who began it may see it."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def target(self, file: SourceFile, *, renew: bool) -> Target:
        return await self._hub.target(file, file.commit or "main", renew=renew)


class Fill:
    """One file that arrives. It is the consumer of its transfer, in whose event loop all of it runs.

    `generation` counts how often the bytes were forgotten; `error` is why it ended without the file, None where the
    server is to blame or stops.
    """

    def __init__(self, wanted: _Wanted, distrust: Distrust, counts: Counts) -> None:
        self.wanted, self.file = wanted, wanted.file
        self.others: list[_Wanted] = []  # in other repositories, from where it is a second name of the same file
        self.generation = 0
        self.error: AsyncfetchError | None = None
        self.changed = Signal()
        self.wake = lambda: None
        self._origin, self._distrust, self._counts = _Origin(wanted.hub), distrust, counts
        self._verified = self._ended = self._restarted = self._doubted = False
        self._partial: Partial | Followed | None = None
        self._descriptor: int | None = None
        self._readers = 0

    # -- the readers' side ---------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether it ended without the file, for who holds it."""
        return self._ended and not (self._verified and self._descriptor is not None)

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def succeeded(self) -> bool:
        """Whether it ended, and the file is in the cache."""
        return self._ended and self._verified

    def join(self, wanted: _Wanted) -> None:
        """The same file is wanted, maybe in another repository, or by another name."""
        places = [(one.cache.folder, one.file.commit, one.file.name) for one in (self.wanted, *self.others)]
        if (wanted.cache.folder, wanted.file.commit, wanted.file.name) not in places:
            self.others.append(wanted)

    async def begun(self, offset: int) -> None:
        """Wait until there is something to tell a reader at `offset`, for PATIENCE seconds at the most."""
        with anyio.move_on_after(PATIENCE):
            while not (self.ready(offset) or self.is_far(offset) or self._ended):
                await self.changed.wait()

    def ready(self, offset: int) -> int:
        """How many bytes from `offset` on may be handed out now."""
        size = self.file.size
        if self._descriptor is None or self.over:
            return 0
        here = self._partial.reach(offset) if self._partial is not None else size
        return max(min(here, size if self._verified else size - HELD) - offset, 0)

    def is_far(self, offset: int) -> bool:
        """Whether the fill comes to `offset` so late that a reader there gets a request of its own."""
        if self._ended or self._verified or self.generation or self._partial is None:
            return False
        missing = not self._partial.reach(offset) > offset
        return missing and self._partial.frontier + AHEAD < offset < self.file.size - HELD

    async def read_far(self, offset: int, stop: int, transport: Transport) -> bytes:
        """Some bytes from `offset` on, from the source and not kept. Raises the network's errors, ChangedError."""
        span = Span(offset, min(offset + PIECE, stop, self.file.size - HELD))
        target = await self._origin.target(self.file, renew=False)
        return await read_span(
            transport,
            target,
            span,
            file=self.file.name,
            size=self.file.size,
            renew=lambda: self._origin.target(self.file, renew=True),
        )

    def read(self, offset: int, nbytes: int) -> bytes:
        """Bytes that were ready. Blocks."""
        assert self._descriptor is not None  # noqa: S101
        return os.pread(self._descriptor, nbytes, offset)

    def hold(self) -> None:
        """Let the bytes be read until `release`, also when the file has got its name, or was removed."""
        self._readers += 1

    def release(self) -> None:
        self._readers -= 1
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._ended and not self._readers and self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    # -- the transfer's side -------------------------------------------------------------------

    async def run(self, transport: Transport, policy: Policy) -> None:
        """Bring the file into the cache, where it is not there yet. What goes wrong is told by `error`."""
        cache, ref = self.wanted.cache, self.wanted.ref
        name = f"{cache.name}/{self.file.name}"
        located = Located(name, self.file.commit, ref, "", None, None, [self.file], cache, self._origin)
        try:
            if await off_loop(lambda: borrow(cache, self.file.key, self.file.size)):
                self._counts.add("shared")
            with plain_errors():
                landed = await self._transfer(located, transport, policy)
            await self._landed_at(landed)
            self._verified = True
        except AsyncfetchError as error:
            self._failed(name, error)
        except Exception:
            LOG.exception("The fill of %s failed", name)
        finally:
            self._ended = True
            self.changed.give()
            self._close_if_unused()
        if (self._verified and self._distrust.right(self.file.key)) or self._doubted:
            await off_loop(self._distrust.save)

    async def _transfer(self, located: Located, transport: Transport, policy: Policy) -> Landed:
        """Run the transfer, and read what another process brings for as long as that has the file."""
        file, cache = self.file, located.cache
        file.identity = self._distrust.identity(file.key)
        async with anyio.create_task_group() as group:

            def hear(event: Event) -> None:
                if isinstance(event, Waiting) and event.delay is None and cache is not None:
                    group.start_soon(self._follow, Followed(cache.partial(file.key), file.size))

            found = await Transfer(located, transport, policy, Notifier(hear), consumer=self, named=True).run()
            group.cancel_scope.cancel()
        return found[file.name]

    async def _follow(self, followed: Followed) -> None:
        """Hand out what another process brings, until this one has the file."""
        self._partial = self._partial or followed
        try:
            while self._partial is followed:
                same = await off_loop(lambda: self._look(followed))
                if self._partial is followed:
                    self._descriptor = followed.descriptor
                    self._heed(same)
                    await anyio.sleep(LOOK_AGAIN)
        finally:
            if followed.descriptor not in (None, self._descriptor):
                os.close(followed.descriptor)

    def _look(self, followed: Followed) -> bool:
        """Whether what was there before still is. Blocks."""
        before = self._distrust.wrongs(self.file.key)
        self._distrust.refresh()
        self.file.identity = self._distrust.identity(self.file.key)
        return followed.look(self.file.identity) and self._distrust.wrongs(self.file.key) <= before

    def _heed(self, same: bool) -> None:
        """More may be here; or what came is another file now: then who reads is cut off."""
        self.generation += not same
        self.changed.give()

    async def _landed_at(self, landed: Landed) -> None:
        """The file is whole. Raises StorageError."""
        followed = self._partial
        if isinstance(followed, Followed):
            self._heed(await off_loop(lambda: self._look(followed)))
        if self._descriptor is None or isinstance(followed, Followed):
            self._read_from(await off_loop(lambda: _opened(landed)))
            self._partial = None

    def _read_from(self, descriptor: int) -> None:
        """Read from `descriptor` from now on. What was handed out of another file, nobody holds against a hash."""
        if self._descriptor is None:
            self._descriptor = descriptor
            return
        if inode_of(self._descriptor) != inode_of(descriptor):
            self._distrust.doubt(self.file.key)
            self._doubted = True
            self._heed(same=False)
        os.dup2(descriptor, self._descriptor, inheritable=False)  # a thread may be reading from it
        os.close(descriptor)

    def _failed(self, name: str, error: AsyncfetchError) -> None:
        self.error = error
        self._counts.add("fills_failed")
        if isinstance(error, ChecksumMismatchError):
            LOG.error("%s came with wrong bytes again and again: %s It is not served.", name, error)
        else:
            LOG.warning("%s could not be fetched: %s", name, error)

    @property
    def early(self) -> bool:
        """Whether a wrong hash is the last word."""
        return bool(self._distrust.rest_of(self.file.key))

    def admits(self, file: SourceFile) -> bool:  # noqa: ARG002
        return True

    def partial(self, file: SourceFile) -> Partial:
        raise NotImplementedError(f"{file.name} goes to the disk")

    def room(self, file: SourceFile, offset: int) -> int:
        return file.size - offset

    def advanced(self, file: SourceFile, partial: Partial) -> None:  # noqa: ARG002
        if not isinstance(self._partial, FilePartial) and isinstance(partial, FilePartial):
            self._read_from(partial.duplicate())
            self._partial = partial
        self.changed.give()

    def verified(self, file: SourceFile) -> None:  # noqa: ARG002
        self._verified = True
        self.changed.give()

    async def restarting(self, file: SourceFile) -> None:
        await off_loop(self._distrust.refresh)
        self._distrust.wrong(file.key)
        await off_loop(self._distrust.save)  # before anybody can come back for the rest
        file.identity = self._distrust.identity(file.key)
        if isinstance(self._partial, FilePartial):  # after a kill, the bytes that are forgotten next are none of it
            self._partial.identity = file.identity
        self._counts.add("wrong_hashes")
        self._counts.add("restarts", not (self.early or self._restarted))
        self._restarted = True
        LOG.error("%s came with wrong bytes: who reads it is cut off.", file.name)
        self.generation += 1
        self.changed.give()

    def landed(self, file: SourceFile, landed: Landed, partial: Partial | None) -> None:  # noqa: ARG002
        if partial is not None:
            self._counts.add("filled")
        elif isinstance(self._partial, Followed):
            self._counts.add("followed")


def _opened(landed: Landed) -> int:
    """A descriptor of a file that was in the cache already. Raises StorageError."""
    path = landed.path or Path()
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(str(path), error.strerror or str(error)) from error


class _Wanted(NamedTuple):
    """A file, and where it is to be."""

    file: SourceFile
    hub: Hub
    cache: RepoCache
    ref: str | None


class Fills:
    """All files on their way, each once. `tasks` is where they run, so that they outlast their readers.

    `transport` is for fills, `passing` for what is handed on beside them.
    """

    def __init__(
        self, transport: Transport, policy: Policy, distrust: Distrust, tasks: TaskGroup, counts: Counts
    ) -> None:
        self.transport, self._policy = transport, policy
        self.passing = transport.for_call(transport.notify, counts.meter("passed"))
        self._distrust, self._tasks, self._counts = distrust, tasks, counts
        self._running: dict[tuple[Path | None, str, int], Fill] = {}
        # Each of a large file has several buffers; those of small files never wait for them.
        self._large, self._small = anyio.CapacityLimiter(AT_ONCE), anyio.CapacityLimiter(AT_ONCE)

    def of(self, file: SourceFile, hub: Hub, cache: RepoCache, ref: str | None) -> Fill:
        """The fill that brings `file` into `cache`; it is begun if there is none."""
        key = (None if is_same_everywhere(file.key) else cache.folder, file.key, file.size)
        wanted, fill = _Wanted(file, hub, cache, ref), self._running.get(key)
        if fill is not None and not fill.ended:
            self._counts.add("joined")
            fill.join(wanted)
            return fill
        self._counts.add("misses")
        fill = self._running[key] = Fill(wanted, self._distrust, self._counts)
        self._tasks.start_soon(self._run, key, fill)
        return fill

    async def _run(self, key: tuple[Path | None, str, int], fill: Fill) -> None:
        try:
            with self._counts.running("fills"):
                async with self._large if fill.file.size > AHEAD else self._small:
                    await fill.run(self.transport.for_call(self.transport.notify), self._policy)
        finally:
            if self._running.get(key) is fill:
                del self._running[key]
        for wanted in fill.others if fill.succeeded else ():
            await self._name(wanted)

    async def _name(self, wanted: _Wanted) -> None:
        """Give a file that was just fetched another name. Nothing is fetched for it."""
        cache, file = wanted.cache, wanted.file
        borrowed = await off_loop(lambda: borrow(cache, file.key, file.size))
        self._counts.add("shared", borrowed)
        if borrowed or await off_loop(lambda: cache.whole_blob(file.key, file.size)):
            await Fill(wanted, self._distrust, self._counts).run(self.transport, self._policy)
