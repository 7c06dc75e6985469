"""Hashing in the background: what a client waits for comes first, and how far it is can be told."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import anyio
from anyio import to_thread

from ...errors import ChangedError
from ..text import size_text
from .hashes import hash_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .hashes import Hashes
    from .repository import Listed, Signature

__all__ = ["Hashing", "Unready"]

LOG = logging.getLogger("asyncfetch.server")
SHOWN_FROM = 64_000_000  # bytes; less is hashed before anyone has read that it is
SHOWN_EVERY = 5.0  # seconds
FIRST_RATE = 500e6  # bytes a second, as long as none is measured
_MOST_THREADS = 4


class Unready(NamedTuple):
    """Files are still being hashed: of `total` bytes `done` are, the others take about `seconds`."""

    done: int
    total: int
    seconds: float


class _Job:
    """A file that is to be hashed, or is being hashed; `error` says why that failed."""

    def __init__(self, listed: Listed) -> None:
        self.listed = listed
        self.done = anyio.Event()
        self.first: bool | None = None  # in which queue it is; None before it is in one
        self.started = False
        self.read = 0  # bytes
        self.error: ChangedError | None = None

    def advance(self, count: int) -> None:
        self.read += count


_Key = tuple[str, str, "Signature"]


def _key(listed: Listed) -> _Key:
    """What makes two files one: several names may lead to it."""
    return listed.real, listed.algorithm, listed.signature


class Hashing:
    """Worker tasks that fill `hashes`, once it has begun. `stop` ends them soon, from any thread."""

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = hashes
        self._stop = threading.Event()
        self._jobs: dict[_Key, _Job] = {}
        self._first: deque[_Job] = deque()
        self._later: deque[_Job] = deque()
        self._began = 0.0
        self._finished = 0  # bytes of files that are done, since `_began`

    def begin(self) -> None:
        """Be of this event loop: it may be another one than that in which the server was made."""
        self._work, self._idle = anyio.Event(), anyio.Event()

    def stop(self) -> None:
        """Who waits for a hash gets a ChangedError."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def want(self, files: Iterable[Listed], *, first: bool = False) -> list[_Job]:
        """Have files hashed, as far as they are not known: before all others, or after them. Returns their jobs."""
        unknown: dict[_Key, Listed] = {}
        for listed in files:
            if self.hashes.lookup(listed) is None:
                unknown.setdefault(_key(listed), listed)
        if unknown and not self._jobs:
            self._began, self._finished, self._idle = time.monotonic(), 0, anyio.Event()
        jobs = [self._jobs.setdefault(key, _Job(listed)) for key, listed in unknown.items()]
        for job in jobs:
            if job.first is None or (first and not job.first):
                (self._first if first else self._later).append(job)
                job.first = first
        if jobs:
            self._work.set()
        return jobs

    async def settle(self, files: Iterable[Listed]) -> None:
        """Wait until files are hashed. Raises ChangedError when one of them is not what it was."""
        jobs = self.want(files, first=True)
        for job in jobs:
            await job.done.wait()
        if errors := [job.error for job in jobs if job.error]:
            raise errors[0]

    def unready(self, files: Iterable[Listed]) -> Unready:
        """How far the hashing of files is, and how long the rest takes at the rate of what is being hashed."""
        wanted = {_key(listed): listed for listed in files}
        total = sum(listed.signature.size for listed in wanted.values())
        jobs = [job for key in wanted if (job := self._jobs.get(key))]
        left = sum(job.listed.signature.size - job.read for job in jobs)
        done, _ = self._progress()
        rate = done / max(time.monotonic() - self._began, 0.1) or FIRST_RATE
        return Unready(total - left, total, left / rate)

    async def run(self) -> None:
        """Work until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            limiter = anyio.CapacityLimiter(min(os.cpu_count() or 1, _MOST_THREADS))
            for _ in range(int(limiter.total_tokens)):
                tasks.start_soon(self._worker, limiter)
            tasks.start_soon(self._show)

    async def _worker(self, limiter: anyio.CapacityLimiter) -> None:
        while True:
            while (job := self._next()) is None:
                self._work = anyio.Event() if self._work.is_set() else self._work
                await self._work.wait()
            job.started = True
            try:
                await to_thread.run_sync(self._hash, job, limiter=limiter)
            except ChangedError as error:
                job.error = error
            except Exception as error:
                LOG.exception("%s could not be hashed", job.listed.real)
                job.error = ChangedError(job.listed.path, f"it cannot be hashed: {type(error).__name__}")
            finally:
                del self._jobs[_key(job.listed)]
                self._finished += job.read
                job.done.set()
                if not self._jobs:
                    self._idle.set()

    def _next(self) -> _Job | None:
        for queue in (self._first, self._later):
            while queue:
                if not (job := queue.popleft()).started:
                    return job
        return None

    def _hash(self, job: _Job) -> None:
        digest = hash_file(job.listed, self._stop, job.advance)
        self.hashes.learn(job.listed, digest)
        if job.listed.promised not in (None, digest):
            LOG.error("%s is damaged and is not served: its %s is %s.", job.listed.real, job.listed.algorithm, digest)

    def _progress(self) -> tuple[int, int]:
        """Bytes that are hashed, and that are to be, since there last was nothing to do."""
        jobs = self._jobs.values()
        done = self._finished + sum(job.read for job in jobs)
        return done, self._finished + sum(job.listed.signature.size for job in jobs)

    async def _show(self) -> None:
        """Say that files are hashed, how far it is, and when all are done; nothing where that is soon."""
        shown = False
        while True:
            if not self._jobs:
                await self._work.wait()
            done, total = self._progress()
            if not shown and total >= SHOWN_FROM:
                LOG.info("Hashing %s in %s files, which is done once.", size_text(total), len(self._jobs))
                shown = True
            with anyio.move_on_after(SHOWN_EVERY):
                await self._idle.wait()
            done, total = self._progress()
            if self._jobs and shown:
                LOG.info("Hashed %s of %s.", size_text(done), size_text(total))
            elif shown:
                LOG.info("Hashed all %s in %.0f s.", size_text(done), time.monotonic() - self._began)
                shown = False
