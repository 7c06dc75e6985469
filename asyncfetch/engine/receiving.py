"""One file on its way: received, hashed, verified, published, or started over.

Its hash follows the bytes that come in order; what came out of order is hashed by a task behind the
lanes, so that little is left when the last byte is here. Whoever brings the file to its end, a
lane or that task, verifies and publishes it.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import replace
from enum import Enum
from pathlib import Path

from anyio import to_thread
from filelock import FileLock

from ..errors import ChecksumMismatchError, StorageError
from ..events import FileProgress, FileStarted, FileVerified, Retrying
from ..format.header import PREFIX_BYTES
from ..network.body import Body
from ..network.ranges import Intake, Target, differ, receive, version_of
from ..sources.headers import read_early
from ..sources.late import hold_one_against_index
from ..sources.located import PREFIX_LIMIT, Landed, SourceFile
from ..spans import MiB, Span
from ..storage.files import vanished
from ..storage.locks import unlock
from ..storage.maps import pages_of
from ..storage.partial import FilePartial, MemoryPartial, Partial, StoredPartial
from ..storage.small import SMALL, SmallFile
from ..tasks import off_loop
from .job import Job
from .schedule import Lease
from .signals import Signal

__all__ = ["Receiving", "Stage", "tell_landed"]

_REPORT_INTERVAL = 0.1
_BACKLOG = 8 * MiB  # bytes at the frontier that wait to be hashed before a task of its own does that
_MOST_BACKLOG = 32 * MiB  # before lanes make room for it: a hash that is left for the end has one processor only


class Stage(Enum):
    """Where a file is on its way. From VERIFYING it goes back to RECEIVING once, if its hash is wrong."""

    RECEIVING = "bytes are missing or in flight"
    CATCHING_UP = "so they are, and a task hashes what the lanes left behind"
    VERIFYING = "all bytes are here: the rest of the hash, then its name"
    LANDED = "whole, verified, and where it belongs"


def tell_landed(job: Job, file: SourceFile, landed: Landed, partial: Partial | None = None) -> None:
    """Tell the transfer and the reporter where a file is."""
    job.landed(file, landed, partial)
    job.notify(FileVerified(file.name, file.size, str(file.checksum) if file.checksum else None))


class Receiving:
    """One file, from its first byte to its name. All on the event loop."""

    def __init__(self, job: Job, file: SourceFile, partial: Partial, lock: FileLock | None) -> None:
        self.job = job
        self.file = file
        self.partial = partial
        self.stage = Stage.RECEIVING
        self.hashed = Signal()  # the hash that lanes outran came on, or another lane is the earliest now
        self._lock = lock
        self._second_try = False
        self._version = file.version  # that the last answer told
        self._mixed = False  # its answers told different versions, or one not which part it is
        self._reported = 0.0
        early = file.late and file.header is None and file.size > PREFIX_LIMIT and isinstance(partial, FilePartial)
        self._header_at = PREFIX_BYTES if early else None  # bytes that must be here before its header is looked at

    async def start(self) -> None:
        """Take what came with the metadata, and offer what is missing to the lanes."""
        job, file, partial = self.job, self.file, self.partial
        if partial.in_order or not file.splittable:
            job.board.unsplittable.add(file.name)
        job.notify(FileStarted(file.name, file.size, partial.received))
        prefix = memoryview(file.prefix)[: file.size]
        if prefix and not partial.present.frontier:
            if partial.in_memory and len(prefix) <= SMALL:
                partial.accept(0, prefix)
            else:
                await job.transport.limits.in_thread(lambda: partial.accept(0, prefix))
            job.downloaded += len(prefix)
        job.board.add(file.name, partial.missing())
        self.advanced()
        self.hash_behind(0)
        await self._finish_if_whole()

    async def receive(self, lease: Lease[str], scratch: memoryview) -> None:
        """Bring a lease to its end, and with the last one the file. `scratch` holds a burst on its way to disk."""
        name, size = self.file.name, self.file.size
        try:
            await receive(self.job.transport, _LeaseIntake(self, lease, scratch), file=name, size=size, told=name)
        finally:
            self.job.board.release(lease)
            self.hashed.give()
        self.hash_behind(0)
        await self._finish_if_whole()

    def answered(self, body: Body) -> None:
        """An answer came. What it tells of the version is no reason to refuse it, but one for a wrong hash."""
        now = version_of(body.headers)
        unplaced = body.status == 206 and "content-range" not in body.headers
        self._mixed = self._mixed or unplaced or differ(self._version, now)
        self._version = now

    def pulled(self, nbytes: int) -> None:
        """So many bytes of it came."""
        self.job.downloaded += nbytes
        if time.monotonic() - self._reported >= _REPORT_INTERVAL:
            self.report()
        self.advanced()
        self.hash_behind(_BACKLOG)

    def report(self) -> None:
        """Tell how much is here."""
        self._reported = time.monotonic()
        self.job.notify(FileProgress(self.file.name, self.partial.received, self.file.size))

    def advanced(self) -> None:
        """Tell the consumer that more is here, or hashed. A header that is here is read."""
        if self.job.consumer is not None:
            self.job.consumer.advanced(self.file, self.partial)
        if self._header_at is not None and self.partial.frontier >= self._header_at:
            self._header_at = None
            self.job.group.start_soon(self._read_header)

    async def _read_header(self) -> None:
        """Read the header of a late shard, so that one that cannot be loaded ends the download with its first bytes.

        If it lands meanwhile its header is read afterwards. Raises CorruptError.
        """
        partial, file = self.partial, self.file
        assert isinstance(partial, FilePartial)  # noqa: S101
        try:
            stop = await off_loop(lambda: read_early(file, partial.path, partial.frontier))
        except StorageError as error:
            if not vanished(error):
                raise
            return
        if file.header is None:
            self._header_at = stop
        else:
            hold_one_against_index(self.job.located, file)

    # -- its hash ------------------------------------------------------------------------------

    def hash_behind(self, backlog: int) -> None:
        """Catch up beside the lanes, if more than `backlog` bytes wait to be hashed."""
        if self.stage is Stage.RECEIVING and self.partial.backlog > backlog:
            self.stage = Stage.CATCHING_UP
            self.job.group.start_soon(self._hash_behind)

    async def _hash_behind(self) -> None:
        await self._catch_up()
        self.stage = Stage.RECEIVING
        self.hashed.give()
        await self._finish_if_whole()

    async def _catch_up(self) -> None:
        """Hash what landed out of order."""
        threads, more = self.job.transport.limits.hashing, True
        while more and self.partial.backlog:
            more = await to_thread.run_sync(self.partial.catch_up, limiter=threads)
            self.advanced()
            if self.partial.backlog <= _MOST_BACKLOG // 2:
                self.hashed.give()

    def outran(self, lease: Lease[str]) -> bool:
        """Whether `lease` is to wait for a hash that fell behind: where the processor is the limit, that needs one.

        The earliest lease never waits: the hash waits for it.
        """
        behind = self.stage is Stage.CATCHING_UP and self.partial.backlog > _MOST_BACKLOG
        return behind and self.job.growth.saturated and not self.job.board.leads(lease)

    # -- its end -------------------------------------------------------------------------------

    async def _finish_if_whole(self) -> None:
        """Verify and publish a file of which nothing is missing or in flight."""
        file = self.file
        if self.stage is not Stage.RECEIVING or not self.job.board.idle(file.name) or self.partial.missing():
            return
        self.stage = Stage.VERIFYING
        await self._catch_up()
        digest = self.partial.digest()
        if file.checksum is not None and digest != file.checksum.hex:
            await self._start_over(digest)
            return
        self.job.notify(FileProgress(file.name, file.size, file.size))
        if self.job.consumer is not None:
            self.job.consumer.verified(file)
        if self.job.storage == "disk" and isinstance(self.partial, MemoryPartial):
            small = SmallFile(file.name, file.blob or digest, self.partial.buffer, self._size_of_same)
            self.job.outbox.put(small, self._land, self.job.group)
        else:
            self._land(await self._publish(digest))

    def _land(self, landed: Landed) -> None:
        self.stage = Stage.LANDED
        unlock(self._lock)
        tell_landed(self.job, self.file, landed, self.partial)

    @property
    def _size_of_same(self) -> int | None:
        """The size of a file that may stay in its place; None where nothing tells what is there from its successor."""
        return self.file.size if self.file.resumable else None

    async def _publish(self, digest: str) -> Landed:
        partial, file = self.partial, self.file
        if not isinstance(partial, StoredPartial):
            return Landed(buffer=partial.buffer)
        blob, cache, commit = file.blob or digest, self.job.cache, self.job.commit
        named, pages = self.job.named, list[mmap.mmap | None]()

        def give_name(path: Path) -> Path:
            return cache.publish(path, blob, commit, file.name, size=self._size_of_same, named=named)

        def keep(descriptor: int) -> None:
            pages.append(None if named else pages_of(descriptor, file.size))

        path = await off_loop(lambda: partial.publish(give_name, keep))
        return Landed(path=path, pages=pages.pop() if pages else None)

    async def _start_over(self, digest: str) -> None:
        """All bytes are here and the hash is wrong: fetch the whole file once more, then give up.

        Where the nodes of a mirror may have mixed two versions, in one piece, from one of them.
        """
        file, partial, consumer = self.file, self.partial, self.job.consumer
        assert file.checksum is not None  # noqa: S101
        error = ChecksumMismatchError(
            file.name, algorithm=file.checksum.algorithm, expected=file.checksum.hex, actual=digest
        )
        if consumer is not None:
            await consumer.restarting(file)
        await off_loop(partial.reset)
        if self._second_try or (consumer is not None and consumer.early):
            if isinstance(partial, StoredPartial):
                await off_loop(partial.discard)
            raise error
        self._second_try, self.stage = True, Stage.RECEIVING
        if self._mixed:
            self.job.board.unsplittable.add(file.name)
        self.job.notify(Retrying.after(error, file.name, attempt=1, attempts=2, delay=0.0))
        self.job.board.add(file.name, partial.missing())

    async def suspend(self) -> None:
        """Stop here, so that another run can go on: journal written, closed, unlocked. It may be cancelled."""
        try:
            if isinstance(self.partial, StoredPartial):
                await off_loop(self.partial.suspend, abandon=True)
        except StorageError:  # this file's bytes are fetched again; what failed first is what is told
            pass
        finally:
            unlock(self._lock)


class _LeaseIntake(Intake):
    """A lease on its way into the partial of its file."""

    def __init__(self, receiving: Receiving, lease: Lease[str], scratch: memoryview) -> None:
        self._receiving = receiving
        self._job = receiving.job
        self._lease = lease
        self._scratch = scratch
        self.in_memory = receiving.partial.in_memory

    @property
    def span(self) -> Span:
        start = self._lease.start  # a thread may move it on meanwhile
        return Span(start, max(self._lease.stop, start))

    async def target(self, refused: Target | None) -> Target:
        target = await self._job.links.target(self._receiving.file, refused)
        return target if self._receiving.file.checksum is None else replace(target, hashed=True)

    def place(self, nbytes: int) -> memoryview:
        # Read anew for each piece: another connection may have taken over the end of the lease.
        room = min(nbytes, self._job.policy.burst, self._lease.remaining)
        return self._receiving.partial.target(self._lease.start, room, self._scratch)

    def accept(self, view: memoryview) -> None:
        self._receiving.partial.accept(self._lease.start, view)
        self._lease.start += len(view)

    def answered(self, body: Body, target: Target, at: int) -> None:  # noqa: ARG002
        self._receiving.answered(body)
        lease, whole = self._lease, body.status == 200 and self._lease.stop < self._receiving.file.size
        if lease.remaining and (whole or at < lease.start):
            self._job.board.comes_whole(lease)
        lease.answered = True

    async def room(self) -> int:
        while (obstacle := self._obstacle()) is not None:
            if not await self._job.wait_connected(obstacle):
                return 0
        consumer, remaining = self._job.consumer, self._lease.remaining
        return remaining if consumer is None else min(consumer.room(self._receiving.file, self._lease.start), remaining)

    async def ready(self) -> None:
        while (obstacle := self._obstacle()) is not None:
            await obstacle.wait()

    def _obstacle(self) -> Signal | None:
        """What has to come before more of the lease may: the hash that it outran, or memory of the consumer's."""
        if self._receiving.outran(self._lease):
            return self._receiving.hashed
        consumer = self._job.consumer
        if consumer is None or consumer.room(self._receiving.file, self._lease.start):
            return None
        self._receiving.hash_behind(0)  # what waits to be hashed holds memory too
        return self._job.memory

    def pulled(self, nbytes: int) -> None:
        self._receiving.pulled(nbytes)

    def interrupted(self) -> None:
        self._receiving.report()  # nothing comes for a while, and what is told last is what is seen
