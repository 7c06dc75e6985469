"""Moving the bytes: connections pull spans, retry, verify, publish, report.

One task group holds one task per connection (a lane). A lane takes the next piece of its file, else
opens the next file, else helps with the file that has most left, else takes a piece of the largest
span in flight; it ends when nothing is left. Lanes are added only while those that run
wait for the network: where the processor is the limit, more connections would only cost. The lane
that completes a file verifies and publishes it. On failure and on cancellation the lanes
end, and every open file is suspended so that the next run goes on where this one stopped.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field

import anyio
from anyio import to_thread
from filelock import FileLock

from ..errors import ChecksumMismatchError, ProtocolError, StorageError
from ..events import FileProgress, FileStarted, FileVerified, Notifier, Retrying, Waiting
from ..format.header import PREFIX_BYTES
from ..network.body import Body
from ..network.ranges import Intake, Target, receive
from ..network.transport import Transport
from ..policy import Policy
from ..sources.links import Links
from ..sources.located import Landed, Located, SourceFile
from ..spans import MiB, Span
from ..storage.buffers import aligned_buffer
from ..storage.cache import RepoCache
from ..storage.locks import lock_blob, unlock
from ..storage.partial import FilePartial, MemoryPartial, Partial
from .bookkeeping import prepare_cache, record
from .consumer import Consumer
from .schedule import Board, Growth, Lease, least_cut

__all__ = ["Landed", "Transfer"]

_REPORT_INTERVAL = 0.1
_GROW_INTERVAL = 0.05  # seconds between looks at whether more connections would help
_FIRST_LANES = 4
_FAR = 0.02  # seconds to an answer: where it takes so long, few connections do not fill the line
_BACKLOG = 8 * MiB  # bytes at the frontier that wait to be hashed before a task of its own does that
_MOST_BACKLOG = 32 * MiB  # before lanes make room for it: a hash that is left for the end has one processor only


@dataclass(eq=False, slots=True)
class _Open:
    """A file that is being received."""

    file: SourceFile
    partial: Partial
    lock: FileLock | None
    restarts: int = 0
    hashing: bool = False
    finishing: bool = False
    outran: bool = False  # a lane waits for the hash
    reported: float = 0.0


@dataclass(eq=False)
class Transfer:
    """Fetches the files of a located checkpoint that are not on disk yet.

    `storage` is "disk" or "memory". `run` returns where each file is, by its name. Raises
    ChecksumMismatchError, DiskFullError, StorageError, and the network's errors after retries.
    """

    located: Located
    transport: Transport
    policy: Policy
    notify: Notifier
    storage: str = "disk"
    consumer: Consumer | None = None
    downloaded: int = 0
    landed: dict[str, Landed] = field(default_factory=dict)
    _waiting: deque[SourceFile] = field(default_factory=deque)
    _open: dict[str, _Open] = field(default_factory=dict)
    _opening: int = 0  # files whose spans will be on the board soon
    _running: int = 0  # lanes

    def __post_init__(self) -> None:
        self._board: Board[str] = Board(self.policy.min_split)
        self._growth = Growth()
        self._links = Links(self.located.origin)
        self._opened = anyio.Event()
        self._done = anyio.Event()
        if self.consumer is not None:
            self.consumer.wake = self._wake

    async def run(self) -> dict[str, Landed]:
        for file in self.located.files:
            if file.path is not None and not (file.in_blobs and self.storage == "disk"):
                self._record(file, Landed(path=file.path))
            else:
                self._waiting.append(file)
        if self.storage == "disk":
            await to_thread.run_sync(prepare_cache, self.located)
        try:
            await self._run_lanes()
        finally:
            await self._suspend()
        if self.storage == "disk":
            await to_thread.run_sync(record, self.located)
        return self.landed

    # -- lanes ---------------------------------------------------------------------------------

    async def _run_lanes(self) -> None:
        """Run lanes until all is done, and add lanes while those that run wait for the network."""
        threads = int(self.transport.limits.threads.total_tokens)
        spans = sum(max(file.size // self.policy.min_split, 1) for file in self._waiting)
        most = min(self.policy.connections, spans)
        wanted = most if self._far() else min(max(_FIRST_LANES, threads), most)
        async with anyio.create_task_group() as self._group:
            while wanted and not self._done.is_set():
                while self._running < wanted:
                    self._add_lane()
                before = self.transport.limits.busy
                with anyio.move_on_after(_GROW_INTERVAL):
                    await self._done.wait()
                busy = (self.transport.limits.busy - before) / (_GROW_INTERVAL * threads)
                if self._opened.statistics().tasks_waiting:  # lanes, for a file or for memory
                    self._growth.forget()
                elif self._growth.look(time.monotonic(), self.downloaded, busy):
                    wanted = min(2 * self._running, most)

    def _far(self) -> bool:
        """Whether the bytes come from far away, as the looks at the files have shown."""
        urls = [file.target.url for file in self._waiting if file.target is not None]
        return any(self.transport.distance(url) >= _FAR for url in urls)

    def _add_lane(self) -> None:
        async def lane() -> None:
            await self._lane()
            self._running -= 1
            if not self._running:
                self._done.set()

        self._running += 1
        self._group.start_soon(lane)

    async def _lane(self) -> None:
        # Not a bytearray: to zero so many would hold up the event loop.
        scratch = aligned_buffer(self.policy.burst if self.storage == "disk" else 0, 0)
        file = ""
        while True:
            # With a file for each connection, one request brings the whole of it.
            files = self._board.files + len(self._waiting) + self._opening
            sharers = math.ceil(self._running / max(files, 1))
            lease = self._board.take(file, sharers)
            if lease is None and self._waiting and (self.consumer is None or self.consumer.admits(self._waiting[0])):
                file = await self._begin_next()
                continue
            if lease is None:
                lease = self._board.take_any(sharers) or self._board.steal(self._least_cut(), sharers)
            if lease is None and (self._opening or self._waiting):
                await self._opened.wait()
                continue
            if lease is None:
                return
            file = lease.file
            task = self._open[file]
            try:
                await self._fetch(task, lease, scratch)
            finally:
                self._board.release(lease)
                self._let_go(task)
            self._hash_behind(task, 0)
            await self._finish_if_whole(task)

    def _least_cut(self) -> int:
        """The fewest bytes to take from another connection, which loses what is in its socket beyond the cut."""
        limited = self.policy.bandwidth_limit is not None  # then the rate is not the connections' own
        return least_cut(0.0 if limited else self._growth.rate, self._running, self.policy.min_split)

    async def _begin_next(self) -> str:
        """Begin the next file, and return its name; the lanes that found nothing to do look again then."""
        file = self._waiting.popleft()
        self._opening += 1
        try:
            await self._begin(file)
            return file.name
        finally:
            self._opening -= 1
            self._wake()

    def _wake(self) -> None:
        self._opened.set()
        self._opened = anyio.Event()

    async def _begin(self, file: SourceFile) -> None:
        """Open a file and offer its missing spans; or find that it is here by now."""
        lock = None
        partial: Partial
        algorithm = file.algorithm
        if self.storage == "memory" and self.consumer is not None:
            partial = await to_thread.run_sync(self.consumer.partial, file)
            if partial.in_order:
                self._board.unsplittable.add(file.name)
        elif self.storage == "memory":
            data_start = len(file.raw_header) or PREFIX_BYTES
            partial = await to_thread.run_sync(lambda: MemoryPartial(file.size, algorithm, data_start=data_start))
        else:
            cache = self._cache()
            waiting = Waiting(file.name, "another process is downloading this file", None)
            lock = await lock_blob(cache, file.key, self.policy.lock_patience, lambda: self.notify(waiting))
            try:
                if await self._already_there(cache, file):
                    unlock(lock)
                    return
                path = cache.partial(file.key)
                identity = file.identity if file.resumable else f"{file.identity}:{time.time_ns()}"
                partial = await to_thread.run_sync(lambda: FilePartial(path, file.size, algorithm, identity=identity))
            except BaseException:
                unlock(lock)
                raise
        if not file.splittable:
            self._board.unsplittable.add(file.name)
        task = self._open[file.name] = _Open(file, partial, lock)
        present = partial.received
        self.notify(FileStarted(file.name, file.size, present))
        if file.prefix and not partial.present.frontier:
            await self.transport.limits.in_thread(lambda: partial.accept(0, memoryview(file.prefix)))
            self.downloaded += len(file.prefix)
        self._board.add(file.name, partial.missing())
        self._advanced(task)
        self._hash_behind(task, 0)
        await self._finish_if_whole(task)

    async def _already_there(self, cache: RepoCache, file: SourceFile) -> bool:
        """Another run, or another commit, may have brought the same blob: then only link it."""
        blob = file.path.name if file.path else file.blob or (file.checksum.hex if file.checksum else "")
        commit = self._commit()
        if not blob or await to_thread.run_sync(cache.whole_blob, blob, file.size) is None:
            return False
        path = await to_thread.run_sync(cache.link, blob, commit, file.name)
        self._record(file, Landed(path=path))
        self.notify(FileVerified(file.name, file.size, str(file.checksum) if file.checksum else None))
        return True

    async def _fetch(self, task: _Open, lease: Lease[str], scratch: memoryview) -> None:
        """Receive a lease to its end, over as many requests as that takes."""
        intake = _LeaseIntake(self, task, lease, scratch)
        await receive(self.transport, intake, file=task.file.name, size=task.file.size, told=task.file.name)

    async def _catch_up(self, task: _Open) -> None:
        """Hash what landed out of order."""
        task.hashing = True
        try:
            threads = self.transport.limits.hashing
            while task.partial.backlog and await to_thread.run_sync(task.partial.catch_up, limiter=threads):
                self._advanced(task)
                if task.partial.backlog <= _MOST_BACKLOG // 2:
                    self._let_go(task)
        finally:
            task.hashing = False
            self._let_go(task)

    async def _wait_for_hash(self, task: _Open, lease: Lease[str]) -> None:
        """Leave a processor that is the limit to a hash that fell behind, unless this lease is the earliest."""
        if self._growth.busy < Growth.IDLE_SHARE:
            return
        while task.hashing and task.partial.backlog > _MOST_BACKLOG and not self._board.leads(lease):
            task.outran = True
            await self._opened.wait()

    def _let_go(self, task: _Open) -> None:
        if task.outran:
            task.outran = False
            self._wake()

    def _hash_behind(self, task: _Open, backlog: int) -> None:
        """Catch up beside the lanes, so that little is left to hash when the last byte lands."""

        async def catch_up() -> None:
            await self._catch_up(task)
            await self._finish_if_whole(task)

        if not task.hashing and not task.finishing and task.partial.backlog > backlog:
            task.hashing = True
            self._group.start_soon(catch_up)

    async def _finish_if_whole(self, task: _Open) -> None:
        """Verify and publish a file of which nothing is missing or in flight."""
        file, partial = task.file, task.partial
        if task.finishing or task.hashing or not self._board.idle(file.name) or partial.missing():
            return
        task.finishing = True
        await self._catch_up(task)
        digest = partial.digest()
        if file.checksum is not None and digest != file.checksum.hex:
            await self._restart(task, digest)
            return
        self.notify(FileProgress(file.name, file.size, file.size))
        if not isinstance(partial, FilePartial):
            self._record(file, Landed(buffer=partial.buffer), partial)
        else:
            blob, cache, commit = file.blob or digest, self._cache(), self._commit()
            same = file.size if file.resumable else None  # else nothing tells what is there from its successor
            path = await to_thread.run_sync(
                partial.publish, lambda p: cache.publish(p, blob, commit, file.name, size=same)
            )
            self._record(file, Landed(path=path), partial)
        del self._open[file.name]
        unlock(task.lock)
        self.notify(FileVerified(file.name, file.size, str(file.checksum) if file.checksum else None))

    async def _restart(self, task: _Open, digest: str) -> None:
        """All bytes are here and the hash is wrong: fetch the whole file once more, then give up."""
        file = task.file
        assert file.checksum is not None  # noqa: S101
        error = ChecksumMismatchError(
            file.name, algorithm=file.checksum.algorithm, expected=file.checksum.hex, actual=digest
        )
        await to_thread.run_sync(task.partial.reset)
        if task.restarts or (self.consumer is not None and self.consumer.early):
            if isinstance(task.partial, FilePartial):
                await to_thread.run_sync(task.partial.discard)
            raise error
        task.restarts += 1
        task.finishing = False
        self.notify(Retrying.after(error, file.name, attempt=1, attempts=2, delay=0.0))
        self._board.add(file.name, task.partial.missing())
        self._add_lane()  # the lanes before may have ended

    # -- small parts ---------------------------------------------------------------------------

    def _progress(self, task: _Open, nbytes: int) -> None:
        self.downloaded += nbytes
        now = time.monotonic()
        if now - task.reported >= _REPORT_INTERVAL:
            task.reported = now
            self.notify(FileProgress(task.file.name, task.partial.received, task.file.size))

    def _record(self, file: SourceFile, landed: Landed, partial: Partial | None = None) -> None:
        self.landed[file.name] = landed
        if self.consumer is not None:
            self.consumer.landed(file, landed, partial)

    def _advanced(self, task: _Open) -> None:
        if self.consumer is not None:
            self.consumer.advanced(task.file, task.partial)

    async def _room(self, task: _Open, lease: Lease[str]) -> int:
        """How much of a lease may be received now. Waits while the consumer has no memory for it."""
        assert self.consumer is not None  # noqa: S101
        while not (room := self.consumer.room(task.file, lease.start)):
            self._hash_behind(task, 0)  # what waits to be hashed holds memory too
            await self._opened.wait()
        return min(room, lease.remaining)

    async def _suspend(self) -> None:
        """Leave what is open resumable: journal written, closed, unlocked. Bounded, not cancelled."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(10):
            for task in self._open.values():
                try:
                    if isinstance(task.partial, FilePartial):
                        await to_thread.run_sync(task.partial.suspend)
                except StorageError:  # this file's bytes are fetched again; what failed first is what is told
                    pass
                finally:
                    unlock(task.lock)
        self._open.clear()

    def _cache(self) -> RepoCache:
        if self.located.cache is None:
            raise ProtocolError("a local checkpoint has nothing to download", url=self.located.source)
        return self.located.cache

    def _commit(self) -> str:
        if self.located.commit is None:
            raise ProtocolError("no commit is known", url=self.located.source)
        return self.located.commit


class _LeaseIntake(Intake):
    """A lease on its way into the partial of its file."""

    def __init__(self, transfer: Transfer, task: _Open, lease: Lease[str], scratch: memoryview) -> None:
        self._transfer = transfer
        self._task = task
        self._lease = lease
        self._scratch = scratch

    @property
    def span(self) -> Span:
        start = self._lease.start  # a thread may move it on meanwhile
        return Span(start, max(self._lease.stop, start))

    async def target(self, refused: Target | None) -> Target:
        return await self._transfer._links.target(self._task.file, refused)

    def place(self, nbytes: int) -> memoryview:
        # Read anew for each piece: another connection may have taken over the end of the lease.
        room = min(nbytes, self._transfer.policy.burst, self._lease.remaining)
        return self._task.partial.target(self._lease.start, room, self._scratch)

    def accept(self, view: memoryview) -> None:
        self._task.partial.accept(self._lease.start, view)
        self._lease.start += len(view)

    def answered(self, body: Body, target: Target, at: int) -> None:  # noqa: ARG002
        if at < self._lease.start:
            self._transfer._board.unsplittable.add(self._lease.file)

    async def room(self) -> int:
        await self._transfer._wait_for_hash(self._task, self._lease)
        if self._transfer.consumer is None:
            return self._lease.remaining
        return await self._transfer._room(self._task, self._lease)

    def pulled(self, nbytes: int) -> None:
        self._transfer._progress(self._task, nbytes)
        self._transfer._advanced(self._task)
        self._transfer._hash_behind(self._task, _BACKLOG)
