"""Moving the bytes: which connection fetches what, and how many there are.

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
from collections.abc import Collection
from itertools import zip_longest

import anyio

from ..events import Notifier
from ..network.transport import Transport
from ..policy import Policy
from ..sources.located import Landed, Located, SourceFile
from ..spans import Span
from ..storage.buffers import aligned_buffer
from ..storage.maps import pages_of
from ..storage.partial import Partial
from ..tasks import off_loop
from .beginning import begin
from .bookkeeping import prepare_cache, record
from .consumer import Consumer
from .job import Job
from .receiving import Receiving
from .schedule import Lease, least_cut, least_piece, most_connections
from .signals import Signal

__all__ = ["Landed", "Transfer"]

_GROW_INTERVAL = 0.05  # seconds between looks at whether more connections would help
_FIRST_LANES = 4
_FAR = 0.02  # seconds to an answer: where it takes so long, few connections do not fill the line
_MOST_OPEN = 32  # files at once, each with two descriptors: where hashing is slow, connections run ahead of it
_SUSPEND_SECONDS = 10.0  # for all files together, however slow the disk is


class Transfer:
    """Fetches the files of a located checkpoint that are not on disk yet.

    `storage` is "disk" or "memory". `run` returns where each file is, by its name. With `named` they are
    wanted as files, each by its name in the snapshot; else for their tensors, which then outlast the files. A
    `frugal` one asks for less at once, so that hardly a byte is sent twice. Raises ChecksumMismatchError,
    DiskFullError, StorageError, and the network's errors after retries.
    """

    def __init__(
        self,
        located: Located,
        transport: Transport,
        policy: Policy,
        notify: Notifier,
        storage: str = "disk",
        consumer: Consumer | None = None,
        *,
        named: bool = False,
        frugal: bool = False,
    ) -> None:
        self._frugal = frugal
        self._job = Job(located, transport, policy, notify, storage, named, consumer, self._landed)
        self._found: dict[str, Landed] = {}
        self._waiting: deque[SourceFile] = deque()
        self._open: dict[str, Receiving] = {}
        self._opening = 0  # files whose spans will be on the board soon
        self._sought: deque[tuple[str, Span]] = deque()  # what somebody waits for, of which file
        self._in_order = True  # of two pieces, one comes in order
        self._work = Signal()  # there are spans of a new file, or memory to begin one
        self._running = 0  # lanes
        self._wanted = 0  # lanes, while there is something to do for all of them
        self._measured = False  # how far away the bytes come from is known, or will not be known better

    @property
    def downloaded(self) -> int:
        """How many bytes came over the network."""
        return self._job.downloaded

    @property
    def landed(self) -> Collection[str]:
        """The names of the files that are where they belong, so far."""
        return self._found

    async def run(self) -> dict[str, Landed]:
        """Fetch what is missing. Call it once."""
        located, on_disk = self._job.located, self._job.storage == "disk"
        if self._job.consumer is not None:
            self._job.consumer.wake = self._memory_is_free
        here = [(file, file.path) for file in located.files if file.path and not (file.in_blobs and on_disk)]
        self._waiting.extend(file for file in located.files if file.path is None or (file.in_blobs and on_disk))
        pages = [] if self._job.named else await off_loop(lambda: [pages_of(path, file.size) for file, path in here])
        for (file, path), kept in zip_longest(here, pages):
            self._landed(file, Landed(path=path, pages=kept), None)
        if on_disk:
            await off_loop(lambda: prepare_cache(located, named=self._job.named))
        try:
            if self._waiting:
                await self._run_lanes()
        finally:
            await self._suspend()
        if on_disk:
            await off_loop(lambda: record(located))
        return self._found

    def seek(self, name: str, wanted: Span) -> bool:
        """Bring these bytes of a file before what comes in order.

        At once, by a lane more for one piece, since those that run may wait for the source. There may be as many of
        these as the policy has connections; then it comes in turn. False where nothing can be brought so: the file
        comes in one piece, or is not on its way.
        """
        policy, board = self._job.policy, self._job.board
        if name not in self._open or name in board.unsplittable or policy.connections == 1:
            return False
        self._sought.append((name, wanted))
        if self._running < 2 * policy.connections and (lease := self._take_sought()) is not None:
            self._running += 1
            self._job.group.start_soon(self._lane, lease)
        return True

    # -- how many lanes ------------------------------------------------------------------------

    async def _run_lanes(self) -> None:
        """Run lanes until all has landed, and add lanes while those that run wait for the network."""
        job, limits = self._job, self._job.transport.limits
        self._done = anyio.Event()
        threads = int(limits.threads.total_tokens)
        sizes = [file.size for file in self._waiting]
        self._wanted = min(max(_FIRST_LANES, threads), self._most(sizes))
        async with anyio.create_task_group() as job.group:
            while not self._done.is_set():
                self._look_how_far(sizes)
                self._add_lanes()
                before, spent = limits.busy, time.thread_time()
                with anyio.move_on_after(_GROW_INTERVAL):
                    await self._done.wait()
                busy = (limits.busy - before) / (_GROW_INTERVAL * threads)
                if job.transport.injected:  # its bytes pass through the event loop, which has one processor
                    busy = max((time.thread_time() - spent) / _GROW_INTERVAL, busy)
                if self._lanes_wait():
                    job.growth.forget()
                elif job.growth.observe(time.monotonic(), job.downloaded, busy):
                    self._wanted = max(min(2 * self._running, self._most(sizes)), self._wanted)

    def _most(self, sizes: list[int]) -> int:
        """How many lanes files of these sizes in bytes are worth, as fast as those are that run."""
        policy = self._job.policy
        worth = most_connections(sizes, self._rate(), max(self._running, 1), policy.min_split)
        return min(policy.connections, worth)

    def _rate(self) -> float:
        """Bytes a second that connections bring by themselves; 0 while it is not known, or is held back."""
        return 0.0 if self._job.policy.bandwidth_limit is not None else self._job.growth.rate

    def _look_how_far(self, sizes: list[int]) -> None:
        """Want all lanes where the bytes come from far away: few do not fill the line.

        So the first answer of who serves them tells, and until it is here that of others. Through a client of the
        caller's an answer comes when the event loop has time for it: there those before the first lane must do.
        """
        if self._measured:
            return
        transport = self._job.transport
        files = [*self._waiting, *(receiving.file for receiving in self._open.values())]
        urls = [file.target.url for file in files if file.target is not None]
        known = [distance for url in urls if (distance := transport.distance(url))]
        self._measured = bool(known) or transport.injected
        if max(known, default=transport.farthest()) >= _FAR:
            self._wanted = max(self._most(sizes), self._wanted)

    def _add_lanes(self) -> None:
        """As many as are wanted, if there is something to do for one more."""
        while self._running < self._wanted and (
            self._waiting or self._opening or self._job.board.offers(self._least_cut())
        ):
            self._running += 1
            self._job.group.start_soon(self._lane)

    def _lanes_wait(self) -> bool:
        """Whether some wait for a file, for memory, or for a hash."""
        signals = [self._work, self._job.memory, *(receiving.hashed for receiving in self._open.values())]
        return any(signal.waiting for signal in signals)

    def _least_cut(self) -> int:
        """The fewest bytes to take from another connection, which loses what is in its socket beyond the cut."""
        return least_cut(self._rate(), max(self._running, 1), self._job.policy.min_split, frugal=self._frugal)

    def _least_piece(self) -> int | None:
        """The fewest bytes to ask for at once, if not those of the policy."""
        policy = self._job.policy
        if not self._frugal or policy.connections == 1:
            return None
        return least_piece(self._rate(), max(self._running, 1), policy.min_split)

    # -- what a lane does ----------------------------------------------------------------------

    async def _lane(self, lease: Lease[str] | None = None) -> None:
        """Fetch `lease`, then what is next, until there is nothing left, or more lanes than are wanted."""
        # Not a bytearray: to zero so many would hold up the event loop.
        scratch = aligned_buffer(self._job.policy.burst if self._job.storage == "disk" else 0, 0)
        lease = lease or await self._next_lease("")
        while lease is not None:
            await self._open[lease.file].receive(lease, scratch)
            lease = await self._next_lease(lease.file) if self._running <= self._wanted else None
        self._running -= 1

    async def _next_lease(self, file: str) -> Lease[str] | None:
        """What a lane that stays with `file` fetches next, once there is something; None if nothing is left."""
        board, consumer = self._job.board, self._job.consumer
        while True:
            sharers, least = self._sharers(), self._least_piece()
            self._in_order = not self._in_order
            sought = None if self._in_order else self._take_sought()
            lease = sought or board.take(file, sharers, least)
            may_begin = self._waiting and len(self._open) + self._opening < max(
                _MOST_OPEN, self._job.policy.connections
            )
            if lease is None and may_begin and (consumer is None or consumer.admits(self._waiting[0])):
                file = await self._begin_next()
                continue
            lease = lease or board.take_any(sharers, least) or board.steal(self._least_cut(), sharers)
            if lease is not None or not (self._opening or self._waiting):
                return lease
            await self._work.wait()

    def _sharers(self) -> int:
        """How many lanes there are for a file, or may be soon. With a file for each, one request brings all of it."""
        files = self._job.board.files + len(self._waiting) + self._opening
        lanes = self._running if self._measured else self._job.policy.connections
        return math.ceil(lanes / max(files, 1))

    def _take_sought(self) -> Lease[str] | None:
        """The next piece of what somebody waits for. Who has got one waits until the others have."""
        board, least = self._job.board, self._least_piece() or self._job.policy.min_split
        while self._sought:
            name, wanted = self._sought.popleft()
            lease = board.take_within(name, wanted, self._sharers(), least)
            if lease is not None:
                if lease.stop < wanted.stop:
                    self._sought.append((name, Span(lease.stop, wanted.stop)))
                return lease
        return None

    async def _begin_next(self) -> str:
        """Begin the next file, and return its name; the lanes that found nothing to do look again then."""
        file = self._waiting.popleft()
        self._opening += 1
        try:
            receiving = await begin(self._job, file)
            if receiving is not None:
                self._open[file.name] = receiving  # before anything can be cancelled: it has to be suspended
                await receiving.start()
            return file.name
        finally:
            self._opening -= 1
            self._work.give()
            self._end_if_done()

    # -- what becomes of files -----------------------------------------------------------------

    def _landed(self, file: SourceFile, landed: Landed, partial: Partial | None) -> None:
        consumer = self._job.consumer
        # What a consumer has read is to be free again, though the transfer goes on.
        self._found[file.name] = landed if consumer is None else Landed(landed.path)
        if consumer is not None:
            consumer.landed(file, landed, partial)
        if self._open.pop(file.name, None) is not None:
            if self._waiting:
                self._work.give()  # one more may be open
            self._end_if_done()

    def _end_if_done(self) -> None:
        if not (self._waiting or self._opening or self._open):
            self._done.set()

    def _memory_is_free(self) -> None:
        self._job.memory.give()
        self._work.give()

    async def _suspend(self) -> None:
        """Leave what is open resumable. Bounded, not cancelled, and in threads of our own."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(_SUSPEND_SECONDS):
            async with anyio.create_task_group() as group:
                for receiving in self._open.values():
                    group.start_soon(receiving.suspend)
        self._open.clear()
