"""Files on their way from the source into the cache, and to those who read them meanwhile.

A fill is one transfer of one file. It begins with the first who asks, serves all who ask, and goes on when they leave.
A reader gets what is here at its offset, except for the last HELD bytes: these come when the hash is right, so nobody
ever has a whole file that is wrong. Where the hash is wrong, all who read what came so far are cut off, and may not
go on with what they have (distrust.py).
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio

from ..api.progress import ProgressState
from ..engine.signals import Signal
from ..engine.transfer import Transfer
from ..errors import AsyncfetchError, ChecksumMismatchError, DiskFullError, StorageError
from ..events import Notifier, Retrying
from ..network.ranges import read_span
from ..sources.located import Landed, Located, SourceFile
from ..spans import MiB, Span
from ..storage.checksums import checksum_of_etag
from ..storage.partial import FilePartial
from ..tasks import off_loop, plain_errors
from .eviction import open_shared
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
    from .distrust import Distrust
    from .kept import Kept

__all__ = ["HELD", "Failure", "Fill", "Fills", "file_to_fetch"]

LOG = logging.getLogger("asyncfetch.server")
HELD = 64 * 1024  # bytes at the end of a file that wait for the hash
AHEAD = 8 * MiB  # beyond what has come: who reads there gets a request of its own
AT_ONCE = 32  # files; the others wait for their turn
PIECE = 4 * MiB  # of such a request
_FAILURES = 20  # that are remembered


def file_to_fetch(path: str, commit: str, etag: str, size: int) -> SourceFile:
    """A file of a repository, as the source tells it."""
    return SourceFile(path, size, checksum_of_etag(etag), commit=commit, key=etag, blob=etag, identity=etag)


class _Origin:
    """Where the file of a fill is served, as who began it may see it."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def target(self, file: SourceFile, *, renew: bool) -> Target:
        return await self._hub.target(file, file.commit or "main", renew=renew)


class Fill:
    """One file that arrives. It is the consumer of its transfer, in whose event loop all of it runs.

    `generation` counts how often the bytes were forgotten; `error` is why it ended without the file, None where the
    server is to blame or stops. `complete`: it is in the cache. `progress` is how it goes, and `retries` how often
    a request was sent again. `strict`: no byte is handed out before the hash is right.
    """

    def __init__(self, file: SourceFile, hub: Hub, distrust: Distrust, *, strict: bool = False) -> None:
        self.file, self.repository = file, hub.name
        self.name = f"{hub.name}/{file.name}"
        self._strict = strict
        self.progress = ProgressState()
        self.retries = 0
        self.generation = 0
        self.error: AsyncfetchError | None = None
        self.complete = False
        self.changed = Signal()
        self.wake = lambda: None
        self._origin, self._distrust = _Origin(hub), distrust
        self._verified = self._ended = False
        self._partial: Partial | None = None
        self._descriptor: int | None = None
        self._readers = self._jobs = 0
        self._asked_for = False  # by a reader, who may have left: it goes on then
        self.scope = anyio.CancelScope()

    # -- the side of who only wants it to be here ------------------------------------------------

    async def joined(self) -> None:
        """Wait until it ends. When all who wait so are cancelled, and nobody ever read it, it stops."""
        self._jobs += 1
        try:
            while not self._ended:
                await self.changed.wait()
        finally:
            self._jobs -= 1
            if not (self._jobs or self._asked_for or self._ended):
                self.scope.cancel()

    @property
    def stops(self) -> bool:
        return self.scope.cancel_called

    # -- the readers' side ---------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether it ended without the file, for who holds it."""
        return self._ended and not (self._verified and self._descriptor is not None)

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def readers(self) -> int:
        """How many clients wait for it or read it."""
        return self._readers

    async def begun(self, offset: int) -> None:
        """Wait until there is something to tell a reader at `offset`, for PATIENCE seconds at the most."""
        with anyio.move_on_after(PATIENCE):
            while not (self.ready(offset) or self.is_far(offset) or self._ended):
                await self.changed.wait()

    def ready(self, offset: int) -> int:
        """How many bytes from `offset` on may be handed out now."""
        size = self.file.size
        if self._descriptor is None or self.over or (self._strict and not self._verified):
            return 0
        here = self._partial.reach(offset) if self._partial is not None else size
        return max(min(here, size if self._verified else size - HELD) - offset, 0)

    def is_far(self, offset: int) -> bool:
        """Whether the fill comes to `offset` so late that a reader there gets a request of its own."""
        if self._ended or self._verified or self._strict or self.generation or self._partial is None:
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
        self._asked_for = True

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
        located = Located(self.name, self.file.commit, ref, "", None, None, [self.file], cache, self._origin)
        try:
            with plain_errors():
                transfer = Transfer(located, transport, policy, transport.notify, consumer=self, named=True)
                found = await transfer.run()
            if self._descriptor is None:
                self._descriptor = await off_loop(lambda: _opened(found[self.file.name]))
            self._verified = self.complete = True
        except AsyncfetchError as error:
            await self._failed(error)
        except Exception:
            LOG.exception("The fill of %s failed", self.name)
        finally:
            self.end()
        if self._verified and self._distrust.right(self.file.key):
            await off_loop(self._distrust.save)

    def end(self) -> None:
        """Let all know that no more comes."""
        self._ended = True
        self.changed.give()
        self._close_if_unused()

    def refuse(self) -> None:
        """There is no room for it."""
        self.error = DiskFullError(self.name, needed=self.file.size, free=None)
        LOG.warning("%s has no room here, and is passed on without being kept.", self.name)
        self.end()

    async def _failed(self, error: AsyncfetchError) -> None:
        self.error = error
        if isinstance(error, ChecksumMismatchError):
            LOG.error("%s came with wrong bytes again and again: %s It is not served.", self.name, error)
        elif isinstance(error, StorageError):
            LOG.warning("%s cannot be kept, and is passed on: %s", self.name, error)
            # What was handed out of it may be wrong, and what is passed on cannot show that.
            if self._distrust.passed(self.file.key):
                await off_loop(self._distrust.save)
        else:
            LOG.warning("%s could not be fetched: %s", self.name, error)

    def hear(self, event: Event) -> None:
        """Note what happens on the way."""
        self.retries += isinstance(event, Retrying)
        self.progress.apply(event, time.monotonic())

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
        return open_shared(path)
    except OSError as error:
        raise StorageError(str(path), error.strerror or str(error)) from error


class Failure(NamedTuple):
    """A file that could not be fetched. `at` is in seconds since 1970, `repository` as in addresses."""

    at: float
    repository: str
    file: str
    error: AsyncfetchError


class Fills:
    """All files on their way, each once. `tasks` is where they run, so that they outlast their readers.

    `strict` is that of each fill; `kept` says whether there is room. `failures` are the last files that could not be
    fetched, and not since.
    """

    def __init__(
        self,
        transport: Transport,
        policy: Policy,
        distrust: Distrust,
        tasks: TaskGroup,
        kept: Kept,
        *,
        strict: bool = False,
    ) -> None:
        self.transport, self.strict = transport, strict
        self.policy, self._kept = policy, kept
        self._distrust, self._tasks = distrust, tasks
        self._running: dict[tuple[Path, str, int], Fill] = {}
        self.failures: deque[Failure] = deque(maxlen=_FAILURES)
        # Each of a large file has several buffers; those of small files never wait for them.
        self._large, self._small = anyio.CapacityLimiter(AT_ONCE), anyio.CapacityLimiter(AT_ONCE)

    @property
    def running(self) -> list[Fill]:
        """Those that are on their way, or wait for their turn; the first to begin first."""
        return list(self._running.values())

    def of(self, file: SourceFile, hub: Hub, cache: RepoCache, ref: str | None) -> Fill:
        """The fill that brings `file` into `cache`; it is begun if there is none."""
        key = (cache.folder, file.key, file.size)
        fill = self._running.get(key)
        if fill is None or fill.ended or fill.stops:
            fill = self._running[key] = Fill(file, hub, self._distrust, strict=self.strict)
            self._tasks.start_soon(self._run, key, fill, cache, ref)
        return fill

    async def _run(self, key: tuple[Path, str, int], fill: Fill, cache: RepoCache, ref: str | None) -> None:
        partial = cache.partial(fill.file.key)
        try:
            with fill.scope:
                async with self._large if fill.file.size > AHEAD else self._small:
                    if await self._kept.admit(partial, fill.file.size):
                        await fill.run(self.transport.for_call(Notifier(fill.hear)), self.policy, cache, ref)
                    else:
                        fill.refuse()
        finally:
            self._kept.left(partial)
            fill.end()
            self._note(fill)
            if self._running.get(key) is fill:
                del self._running[key]

    def _note(self, fill: Fill) -> None:
        before = [one for one in self.failures if (one.repository, one.file) == (fill.repository, fill.file.name)]
        for failure in before:
            self.failures.remove(failure)
        if fill.error is not None:
            self.failures.append(Failure(time.time(), fill.repository, fill.file.name, fill.error))
