"""Files on their way from the source into the cache, and to those who read them meanwhile.

A fill is one transfer of one file. It begins with the first who asks, serves all who ask, and goes on when they leave.
A reader gets what is here at its offset, except for the last HELD bytes: these come when the hash is right, so nobody
ever has a whole file that is wrong. Where the hash is wrong, all who read what came so far are cut off, and may not
go on with what they have (distrust.py).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from ..engine.signals import Signal
from ..engine.transfer import Transfer
from ..errors import AsyncfetchError, ChangedError, ChecksumMismatchError, ProtocolError, StorageError
from ..events import Notifier
from ..network.ranges import read_span
from ..sources.located import Landed, Located, SourceFile
from ..spans import MiB, Span
from ..storage.partial import FilePartial
from ..tasks import off_loop, plain_errors
from .freshness import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from ..network.ranges import Target
    from ..network.transport import Transport
    from ..policy import Policy
    from ..sources.hub import Hub
    from ..storage.cache import RepoCache
    from ..storage.partial import Partial
    from .distrust import Distrust

    Forget = Callable[[], Awaitable[None]]

__all__ = ["HELD", "Fill", "Fills"]

LOG = logging.getLogger("asyncfetch.server")
HELD = 64 * 1024  # bytes at the end of a file that wait for the hash
AHEAD = 8 * MiB  # beyond what has come: who reads there gets a request of its own
AT_ONCE = 32  # files; the others wait for their turn
PIECE = 4 * MiB  # of such a request


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

    def __init__(self, file: SourceFile, hub: Hub, distrust: Distrust, forget: Forget) -> None:
        self.file = file
        self.size = file.size  # as readers were told; the source may tell another one on the way
        self.generation = 0
        self.error: AsyncfetchError | None = None
        self.changed = Signal()
        self.wake = lambda: None
        self._origin, self._distrust, self._forget = _Origin(hub), distrust, forget
        self._verified = self._ended = False
        self._partial: Partial | None = None
        self._descriptor: int | None = None
        self._readers = 0

    # -- the readers' side ---------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether there is nothing more to come for who holds it: it ended without the file, or with another one."""
        return self.misled or (self._ended and not (self._verified and self._descriptor is not None))

    @property
    def misled(self) -> bool:
        """Whether the source told readers a size that it does not stand by."""
        return self.file.size != self.size

    @property
    def ended(self) -> bool:
        return self._ended

    async def begun(self, offset: int) -> None:
        """Wait until there is something to tell a reader at `offset`, for PATIENCE seconds at the most."""
        with anyio.move_on_after(PATIENCE):
            while not (self.ready(offset) or self.is_far(offset) or self._ended or self.misled):
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

    async def run(self, transport: Transport, policy: Policy, cache: RepoCache, ref: str | None) -> None:
        """Bring the file into the cache, where it is not there yet. What goes wrong is told by `error`."""
        name = f"{cache.name}/{self.file.name}"
        located = Located(name, self.file.commit, ref, "", None, None, [self.file], cache, self._origin)
        try:
            with plain_errors():
                transfer = Transfer(located, transport, policy, Notifier(None), consumer=self, named=True)
                found = await transfer.run()
            if self._descriptor is None:
                self._descriptor = await off_loop(lambda: _opened(found[self.file.name]))
            self._verified = True
        except AsyncfetchError as error:
            self._failed(name, error)
        except Exception:
            LOG.exception("The fill of %s failed", name)
        finally:
            self._ended = True
            self.changed.give()
            self._close_if_unused()
        if self.misled or isinstance(self.error, ChangedError | ChecksumMismatchError | ProtocolError):
            await self._forget()
        if self._verified and self._distrust.right(self.file.key):
            await off_loop(self._distrust.save)

    def _failed(self, name: str, error: AsyncfetchError) -> None:
        self.error = error
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
        if self._partial is None and isinstance(partial, FilePartial):
            self._descriptor = partial.duplicate()
            self._partial = partial
        self.changed.give()

    def verified(self, file: SourceFile) -> None:  # noqa: ARG002
        self._verified = True
        self.changed.give()

    async def restarting(self, file: SourceFile) -> None:
        self._distrust.wrong(file.key)
        await off_loop(self._distrust.save)  # before anybody can come back for the rest
        LOG.error("%s came with wrong bytes: who reads it is cut off.", file.name)
        self.generation += 1
        self.changed.give()

    def landed(self, file: SourceFile, landed: Landed, partial: Partial | None) -> None:
        pass  # run() hears of it too


def _opened(landed: Landed) -> int:
    """A descriptor of a file that was in the cache already. Raises StorageError."""
    path = landed.path or Path()
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(str(path), error.strerror or str(error)) from error


class Fills:
    """All files on their way, each once. `tasks` is where they run, so that they outlast their readers."""

    def __init__(self, transport: Transport, policy: Policy, distrust: Distrust, tasks: TaskGroup) -> None:
        self.transport, self._policy = transport, policy
        self._distrust, self._tasks = distrust, tasks
        self._running: dict[tuple[Path, str, int], Fill] = {}
        # Each of a large file has several buffers; those of small files never wait for them.
        self._large, self._small = anyio.CapacityLimiter(AT_ONCE), anyio.CapacityLimiter(AT_ONCE)

    def of(self, file: SourceFile, hub: Hub, cache: RepoCache, ref: str | None, forget: Forget) -> Fill:
        """The fill that brings `file` into `cache`; it is begun if there is none.

        `forget`: what to do where the file does not come as the source told, so that it is asked anew.
        """
        key = (cache.folder, file.key, file.size)
        fill = self._running.get(key)
        if fill is None or fill.ended:
            fill = self._running[key] = Fill(file, hub, self._distrust, forget)
            self._tasks.start_soon(self._run, key, fill, cache, ref)
        return fill

    async def _run(self, key: tuple[Path, str, int], fill: Fill, cache: RepoCache, ref: str | None) -> None:
        try:
            async with self._large if fill.file.size > AHEAD else self._small:
                await fill.run(self.transport.for_call(Notifier(None)), self._policy, cache, ref)
        finally:
            if self._running.get(key) is fill:
                del self._running[key]
