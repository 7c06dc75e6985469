"""Jobs: what was handed to the server to be done, such as a repository to be fetched before anybody asks for it.

A job goes on when who started it leaves, and after a restart of the server. It is kept as a file of its own
(job_files.py), so all servers that share a cache tell of it, one of them runs it, and another goes on with it when that
one has ended. The token that came with it is in memory alone: where the source wants one after a restart, the job says
so and waits for it. Few jobs run at a time, the others wait for their turn.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

import anyio

from ...errors import AccessError, AsyncfetchError, RepositoryNotFoundError
from ...tasks import off_loop, plain_errors
from ..source.upstream import Who

if TYPE_CHECKING:
    from ..arriving.fills import Fill
    from ..background import Background

__all__ = ["Job", "JobFailedError", "JobFile", "JobState", "Jobs", "Look", "Refusal", "Wanted", "Work"]

LOG = logging.getLogger("asyncfetch.server")
AT_ONCE = 2
MOST = 100  # jobs that have ended and are still told
LOOK = 2.0  # seconds between two looks for what other servers left or did
_ELSEWHERE = "Another server that shares this cache has it."


class JobState(StrEnum):
    """Where a job is. One that `needs_token` goes on when it is retried with one."""

    QUEUED = "queued"
    RUNNING = "running"
    NEEDS_TOKEN = "needs_token"  # noqa: S105
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class Wanted(NamedTuple):
    """What a job is to do. `task` is "prefetch" or "verify".

    `kind` is "models" or "datasets". `include` and `exclude` are globs over the files of the repository at `revision`.
    """

    task: str
    kind: str
    name: str
    revision: str = "main"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class Refusal(NamedTuple):
    """Why a job ended without what was wanted: `code` as of an error, a sentence, and what to do about it."""

    code: str
    message: str
    hint: str

    @classmethod
    def of(cls, error: AsyncfetchError) -> Refusal:
        """What an error says, in words for who asked a server, and not the library."""
        hint = re.sub("et HF_TOKEN or pass token=", "end a token of the source along", error.hint)
        return cls(error.code, error.message, hint)


class JobFailedError(Exception):
    """A job came to an end of its own kind."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(slots=True)
class JobFile:
    """One file of a job. `fill` is how it arrives, `done` whether it is here, `error` why not.

    `etag` is its hash, once the source has told it. `fetched` counts the bytes that came from the source.
    """

    size: int
    etag: str | None = None
    fetched: int = 0
    done: bool = False
    fill: Fill | None = None
    error: Refusal | None = None

    @property
    def received(self) -> int:
        """How many bytes of it are here."""
        if self.done:
            return self.size
        return min(self.fill.progress.received, self.size) if self.fill is not None else 0


@dataclass(eq=False)
class Job:
    """One job. Times are in seconds since 1970, sizes in bytes.

    `files` are known once the source has listed them; of a job that ended before a restart `counted` tells how many
    there were, how many were done, and the bytes of both. `with_token`: one was sent along. `hold` is why nothing
    moves for now. `elsewhere`: another server runs it, or has it in its queue.
    """

    id: str
    wanted: Wanted
    created: float
    with_token: bool = False
    state: JobState = JobState.QUEUED
    started: float | None = None
    ended: float | None = None
    commit: str | None = None
    error: Refusal | None = None
    hold: str | None = None
    files: dict[str, JobFile] = field(default_factory=dict)
    counted: tuple[int, int, int, int] = (0, 0, 0, 0)
    elsewhere: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it is to be done by some server now."""
        return self.state in (JobState.QUEUED, JobState.RUNNING)

    def count(self) -> tuple[int, int, int, int]:
        """How many files there are, how many are done, and the bytes of all and of what is here."""
        if not self.files:
            return self.counted
        files = self.files.values()
        done, received = sum(file.done for file in files), sum(file.received for file in files)
        return len(files), done, sum(file.size for file in files), received

    def enter(self, state: JobState, error: Refusal | None = None) -> None:
        """Be in `state` from now on."""
        self.state, self.error, self.hold = state, error, None
        if state is JobState.RUNNING:
            self.started, self.ended = time.time(), None
        elif state is not JobState.QUEUED:
            self.ended, self.counted = time.time(), self.count()


Work = Callable[[Job, Who], Awaitable[None]]


@dataclass(eq=False)
class _Run:
    """A job on its way, or in the queue."""

    scope: anyio.CancelScope
    ended: anyio.Event


class Look(NamedTuple):
    """What other processes did: jobs as they are now, the ids of those that are told no more, and of ours that are to
    be cancelled."""

    changed: tuple[Job, ...] = ()
    gone: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()


class Folder(Protocol):
    """Where jobs are kept. Blocking calls, never two at a time."""

    def look(self) -> Look: ...

    def claim(self, job_id: str) -> bool: ...

    def save(self, job: Job) -> None: ...

    def forget(self, job: Job) -> None: ...


class Jobs:
    """The jobs of one server. `work` does what one of them wants; `tasks` is where that runs.

    Raises nothing for what cannot be kept: the log tells, and the jobs last as long as the process.
    """

    def __init__(self, folder: Folder, work: Work, tasks: Background) -> None:
        self._folder, self._work, self._tasks = folder, work, tasks
        self._jobs: dict[str, Job] = {}
        self._running: dict[str, _Run] = {}
        self._turns = anyio.CapacityLimiter(AT_ONCE)
        self._saving = anyio.Lock()  # what is newer is written later
        self._heir = Who(None)

    async def resume(self, who: Who) -> None:
        """Go on with the jobs of processes that ended, now and from then on, as `who`: their own tokens are gone."""
        self._heir = who
        await self.look()
        self._tasks.start_soon(self._look_for_ever)

    async def _look_for_ever(self) -> None:
        while True:
            await anyio.sleep(LOOK)
            await self.look()

    async def look(self) -> None:
        """See what other servers on this cache did, and go on with what they left."""
        async with self._saving:
            changed, gone, cancelled = await off_loop(self._folder.look)
            for job in sorted(changed, key=lambda job: job.created):
                self._jobs[job.id] = job
                if job.elsewhere:
                    job.hold = _ELSEWHERE
                elif job.is_open:
                    job.enter(JobState.QUEUED)
                    self._begin(job, self._heir)
            for job_id in gone:
                self._jobs.pop(job_id, None)
        for job in [self._jobs[job_id] for job_id in cancelled if job_id in self._jobs]:
            await self.cancel(job)

    def all(self) -> list[Job]:
        """The newest first."""
        return sorted(self._jobs.values(), key=lambda job: job.created, reverse=True)

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    async def start(self, wanted: Wanted, who: Who) -> tuple[Job, bool]:
        """The job that does what is wanted, and whether it is a new one. One that waits for a token gets this one."""
        for job in self.all():
            if job.wanted == wanted and not job.state.is_over:
                if job.state is JobState.NEEDS_TOKEN:
                    await self.retry(job, who)
                return job, False
        job = Job(secrets.token_hex(6), wanted, time.time(), with_token=who.token is not None)
        self._jobs[job.id] = job
        self._begin(job, who)
        await self._keep(job)
        await self._forget_old()
        return job, True

    async def retry(self, job: Job, who: Who) -> bool:
        """Begin a job that ended, or that waits for a token, once more; what is here is not fetched again.

        False: another server has it still, or again.
        """
        async with self._saving:
            if job.id in self._running:
                return True
            if not await off_loop(lambda: self._folder.claim(job.id)):
                return False
            job.with_token = job.with_token or who.token is not None
            job.files, job.commit, job.elsewhere = {}, None, False
            job.enter(JobState.QUEUED)
            self._begin(job, who)
        await self._keep(job)
        return True

    async def cancel(self, job: Job) -> None:
        """Stop a job. What of its files nobody else waits for stops too, and can be resumed.

        Where another server has it, that one reads in its file that it is cancelled, within moments.
        """
        if job.state.is_over:
            return
        job.elsewhere = False
        job.enter(JobState.CANCELLED)
        if (run := self._running.get(job.id)) is not None:
            run.scope.cancel()
            await run.ended.wait()
        await self._keep(job)

    async def forget(self, job: Job) -> None:
        """Tell no more of a job that is over."""
        self._jobs.pop(job.id, None)
        async with self._saving:
            await off_loop(lambda: self._folder.forget(job))

    async def _forget_old(self) -> None:
        for job in [job for job in self.all() if job.state.is_over][MOST:]:
            await self.forget(job)

    def _begin(self, job: Job, who: Who) -> None:
        run = self._running[job.id] = _Run(anyio.CancelScope(), anyio.Event())
        self._tasks.start_soon(self._run, job, who, run)

    async def _run(self, job: Job, who: Who, run: _Run) -> None:
        try:
            with run.scope:
                async with self._turns:
                    job.enter(JobState.RUNNING)
                    await self._keep(job)
                    await self._do(job, who)
        finally:
            del self._running[job.id]
            run.ended.set()
        await self._keep(job)

    async def _do(self, job: Job, who: Who) -> None:
        try:
            with plain_errors():
                await self._work(job, who)
            job.enter(JobState.DONE)
        except AsyncfetchError as error:
            refused = isinstance(error, AccessError | RepositoryNotFoundError)
            lost = refused and job.with_token and who.token is None
            job.enter(JobState.NEEDS_TOKEN if lost else JobState.FAILED, Refusal.of(error))
            LOG.warning("%s of %s: %s", job.wanted.task, job.wanted.name, error)
        except JobFailedError as failed:
            job.enter(JobState.FAILED, failed.refusal)
            LOG.warning("%s of %s: %s", job.wanted.task, job.wanted.name, failed)
        except Exception as error:
            LOG.exception("%s of %s failed", job.wanted.task, job.wanted.name)
            job.enter(JobState.FAILED, Refusal("unexpected", f"The server failed: {type(error).__name__}.", ""))

    async def _keep(self, job: Job) -> None:
        async with self._saving:
            if job.id in self._jobs:
                told = replace(job, files={}, counted=job.count())
                await off_loop(lambda: self._folder.save(told))
