"""A file on its way from the source into the cache, and to those who read it meanwhile.

A fill is one transfer of one file. It begins with the first who asks, serves all who ask, and goes on when they leave.
A reader gets what is here at its offset, except for the last HELD bytes: these come when the hash is right, so nobody
ever has a whole file that is wrong. Where the hash is wrong, all who read what came so far are cut off, and may not
go on with what they have (distrust.py).

What another process is fetching is read as it comes (following.py).
"""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from ...engine.signals import Signal
from ...engine.transfer import Transfer
from ...errors import AsyncfetchError, ChecksumMismatchError, DiskFullError, StorageError
from ...events import Retrying, Waiting
from ...network.reading import read_span
from ...progress.state import ProgressState
from ...sources.located import Landed, Located
from ...spans import MiB, Span
from ...storage.partial import FilePartial
from ...tasks import off_loop, plain_errors
from ..keeping.eviction import open_shared
from .following import Followed, inode_of
from .wanted import HELD

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from ...events import Event
    from ...network.ranges import Target
    from ...network.transport import Transport
    from ...policy import Policy
    from ...sources.hub import Hub
    from ...sources.located import SourceFile
    from ...storage.partial import Partial
    from ..counts import Counts
    from .distrust import Distrust
    from .wanted import WantedFile

__all__ = ["AHEAD", "Fill"]

LOG = logging.getLogger("asyncfetch.server")
AHEAD = 8 * MiB  # beyond what has come: who reads there is not kept waiting until that comes in order
PIECE = 4 * MiB  # of a request for it alone
PIECE_IN_QUEUE = MiB // 4  # where many share the line: it comes before the client gives up
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
    server is to blame or stops. `complete`: it is in the cache; `brought`: by this transfer, which hashed it.
    `progress` is how it goes, and `retries` how often a request was sent again. `strict`: no byte is handed out
    before the hash is right.
    """

    def __init__(self, wanted: WantedFile, distrust: Distrust, counts: Counts, *, strict: bool = False) -> None:
        self._strict = strict
        self.wanted, self.file, self.repository = wanted, wanted.file, wanted.hub.name
        self.name = f"{self.repository}/{self.file.name}"
        self.size = self.file.size  # as readers were told; the source may tell another one on the way
        self.others: list[WantedFile] = []  # in other repositories, from where it is a second name of the same file
        self.progress = ProgressState()
        self.retries = 0
        self.generation = 0
        self.error: AsyncfetchError | None = None
        self.complete = self.brought = False
        self.changed = Signal()
        self.wake = lambda: None
        self._origin, self._distrust, self._counts = _Origin(wanted.hub), distrust, counts
        self._verified = self._ended = self._restarted = self._doubted = False
        self._partial: Partial | Followed | None = None
        self._marked = distrust.marked_at(self.file.key)  # when what comes was last found wrong
        self._group: TaskGroup | None = None  # of the transfer
        self._transfer: Transfer | None = None
        self._descriptor: int | None = None
        self._readers = self._jobs = 0
        self._queued = False
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
        """Whether there is nothing more to come for who holds it: it ended without the file, or with another one."""
        return self.misled or (self._ended and not (self._verified and self._descriptor is not None))

    @property
    def misled(self) -> bool:
        """Whether the source told readers a size that it does not stand by."""
        return self.file.size != self.size

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def readers(self) -> int:
        """How many clients wait for it or read it."""
        return self._readers

    def join(self, wanted: WantedFile) -> None:
        """The same file is wanted, maybe in another repository, or by another name."""
        places = [(one.cache.folder, one.file.commit, one.file.name) for one in (self.wanted, *self.others)]
        if (wanted.cache.folder, wanted.file.commit, wanted.file.name) not in places:
            self.others.append(wanted)

    async def begun(self, offset: int, deadline: float = math.inf) -> None:
        """Wait until there is something to tell a reader at `offset`, or until `deadline` by the event loop's clock."""
        with anyio.CancelScope(deadline=deadline):
            while not (self.ready(offset) or self.is_far(offset) or self._ended or self.misled):
                await self.changed.wait()

    def ready(self, offset: int) -> int:
        """How many bytes from `offset` on may be handed out now."""
        size = self.file.size
        if self._descriptor is None or self.over or (self._strict and not self._verified):
            return 0
        here = self._partial.reach(offset) if self._partial is not None else size
        return max(min(here, size if self._verified else size - HELD) - offset, 0)

    def is_far(self, offset: int) -> bool:
        """Whether the fill comes to `offset` late: in order, or since it waits for its turn."""
        if self._ended or self._verified or self._strict or self.generation:
            return False
        if self._partial is None:
            return self._queued and offset < self.file.size - HELD
        missing = not self._partial.reach(offset) > offset
        return missing and self._partial.frontier + AHEAD < offset < self.file.size - HELD

    def seek(self, offset: int, stop: int) -> bool:
        """Bring bytes that are far before what comes in order. False where that cannot be: they are passed on."""
        return (
            isinstance(self._partial, FilePartial)
            and self._transfer is not None
            and self._transfer.seek(self.file.name, Span(offset, stop))
        )

    async def read_far(self, offset: int, stop: int, transport: Transport) -> bytes:
        """Some bytes from `offset` on, from the source and not kept. Raises the network's errors, ChangedError."""
        piece = PIECE_IN_QUEUE if self._queued else PIECE
        span = Span(offset, min(offset + piece, stop, self.file.size - HELD))
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

    def queue(self, *, waits: bool) -> None:
        """Whether it `waits` for its turn: who reads it is passed on until then."""
        self._queued = waits
        self.changed.give()

    async def run(self, transport: Transport, policy: Policy) -> None:
        """Bring the file into the cache, where it is not there yet. What goes wrong is told by `error`."""
        cache, ref = self.wanted.cache, self.wanted.ref
        located = Located(self.name, self.file.commit, ref, "", None, None, [self.file], cache, self._origin)
        try:
            with plain_errors():
                landed = await self._bring(located, transport, policy)
            await self._landed_at(landed)
            self._verified = self.complete = True
        except AsyncfetchError as error:
            await self._failed(error)
        except Exception:
            LOG.exception("The fill of %s failed", self.name)
        finally:
            self.end()
        for wanted in (self.wanted, *self.others):
            await (wanted.forget() if self.misled else wanted.heed(self.error))
        if (self._verified and self._distrust.right(self.file.key)) or self._doubted:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await off_loop(self._distrust.save)

    async def _bring(self, located: Located, transport: Transport, policy: Policy) -> Landed:
        """Run the transfer, and read what another process brings for as long as that has the file."""
        self.file.identity = self._distrust.identity(self.file.key)
        async with anyio.create_task_group() as group:
            self._group = group
            self._transfer = Transfer(
                located, transport, policy, transport.notify, consumer=self, named=True, frugal=True
            )
            found = await self._transfer.run()
            group.cancel_scope.cancel()
        return found[self.file.name]

    async def _follow(self) -> None:
        """Hand out what another process brings, until this one has the file."""
        followed = Followed(self.wanted.cache.partial(self.file.key), self.file.size)
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
        self._distrust.refresh()
        self.file.identity = self._distrust.identity(self.file.key)
        return followed.look(self.file.identity)

    def _heed(self, same: bool) -> None:
        """More may be here; or what came is another file now, or was found wrong: then who reads is cut off.

        What was handed out of another file, nobody holds against a hash any more.
        """
        found_wrong = self._distrust.marked_at(self.file.key) > self._marked
        if not same and not found_wrong:
            self._distrust.doubt(self.file.key)
            self._doubted = True
        self._marked = self._distrust.marked_at(self.file.key)
        self.generation += not same or found_wrong
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
        """Read from `descriptor` from now on."""
        if self._descriptor is None:
            self._descriptor = descriptor
            return
        if inode_of(self._descriptor) != inode_of(descriptor):
            self._heed(same=False)
        os.dup2(descriptor, self._descriptor, inheritable=False)  # a thread may be reading from it
        os.close(descriptor)

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
        self._counts.add("fills_failed")
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
        if isinstance(event, Retrying):
            self.retries += 1
            self._counts.add("retries")
        elif isinstance(event, Waiting) and event.delay is None and self._group is not None:
            self._group.start_soon(self._follow)  # another process has the lock of this file
        self.progress.apply(event, time.monotonic())

    @property
    def early(self) -> bool:
        """Whether a wrong hash is the last word."""
        return bool(self._distrust.rest_of(self.file.key))

    @property
    def reads_partials(self) -> bool:
        return True

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
            self.brought = True
            self._counts.add("filled")
        elif isinstance(self._partial, Followed):
            self._counts.add("followed")


def _opened(landed: Landed) -> int:
    """A descriptor of a file that was in the cache already. Raises StorageError."""
    path = landed.path or Path()
    try:
        return open_shared(path)
    except OSError as error:
        raise StorageError(str(path), error.strerror or str(error)) from error
