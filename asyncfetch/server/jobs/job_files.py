"""Where jobs are kept, over a restart and for all servers that share a cache: a file of JSON for each, replaced by
rename. Nothing in it says who asked.

    FOLDER/<id>.json
    FOLDER/<id>.lock      locked by the process that runs the job, or has it in its queue

A job that is not over and that nobody has locked is gone on with by who finds it first: its server has ended. Where the
file system has no locks nobody can tell, so there only what is found at the start is gone on with.

Blocking calls, one at a time: run them in a thread.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ...errors import StorageError
from ...storage.cache import is_commit
from ...storage.files import rename, write_synced
from ...storage.locks import claim_shared, private_name
from ..folders.layout import KINDS, is_id
from .jobs import Job, JobState, Look, Refusal, Wanted

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

__all__ = ["JobFiles"]

LOG = logging.getLogger("asyncfetch.server")
_FORMAT = 1
_SETTLED = 1.0  # seconds after which a change has another time stamp, whatever the file system
_ID = re.compile(r"[0-9a-f]{12}", re.ASCII)


class _Known(NamedTuple):
    """A file as it was read or written last. `open`: its job is neither over nor waiting for a token."""

    mark: tuple[int, int, int]
    open: bool


class JobFiles:
    """The jobs in `folder`. What cannot be read there is no job, and what cannot be written is only told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: bool | None = None  # whether they work here, once that is known
        self._held: dict[str, int | None] = {}  # the locks of jobs that are ours; None where there are no locks
        self._known: dict[str, _Known] = {}
        self._changed_at = -1
        self._settles: float | None = None

    def look(self) -> Look:
        """What is another than at the last look. Jobs that are open and not `elsewhere` are this process's from now on.

        Costs a call of stat while the folder is as it was, and one try for each job that another process has.
        """
        if self._locks is False:
            return Look()
        try:
            if self._locks is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._locks = self._try_locks()
            changed, gone = ({}, ()) if self._is_unchanged() else self._read_anew()
        except (OSError, StorageError) as error:
            if self._locks is None:
                self._locks = False
                reason = error.strerror if isinstance(error, OSError) else error.message
                LOG.warning("Jobs are not kept over a restart: %s cannot be used: %s.", self._folder, reason)
            return Look()
        ours = [key for key in changed if key in self._held]
        cancelled = tuple(key for key in ours if changed[key].state is JobState.CANCELLED)
        changed = {key: job for key, job in changed.items() if key not in self._held}
        for key in [key for key, known in self._known.items() if known.open and key not in self._held]:
            if (job := self._adopted(key)) is not None:
                changed[key] = job
        for job in changed.values():
            job.elsewhere = job.is_open and job.id not in self._held
        return Look(tuple(changed.values()), gone, cancelled)

    def claim(self, job_id: str) -> bool:
        """Have a job for this process alone. False: another one has it."""
        if job_id in self._held:
            return True
        try:
            descriptor = claim_shared(self._lock_of(job_id)) if self._locks else None
        except StorageError:  # nothing shows that somebody else is at it
            descriptor = None
        else:
            if self._locks and descriptor is None:
                return False
        self._held[job_id] = descriptor
        return True

    def save(self, job: Job) -> None:
        """Write a job down. This process has it for as long as it is open."""
        path = self._path_of(job.id)
        temporary = private_name(path)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if job.is_open and not self.claim(job.id):
                return
            write_synced(temporary, json.dumps(_document(job)).encode())
            known = _Known(_mark(temporary), job.is_open)
            rename(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            LOG.warning("A job could not be kept in %s: %s.", self._folder, error.strerror)
            return  # and a lock stays: what the file says is over for this process, and to be done for others
        self._known[job.id] = known
        if not job.is_open:
            self._release(job.id)

    def forget(self, job: Job) -> None:
        with suppress(OSError):
            self._path_of(job.id).unlink(missing_ok=True)
        self._known.pop(job.id, None)
        if self.claim(job.id):  # and so the lock goes that a killed process may have left
            self._release(job.id)

    def close(self) -> None:
        """Let other processes go on with what is not done."""
        self._locks = False
        while self._held:
            _, descriptor = self._held.popitem()
            if descriptor is not None:
                os.close(descriptor)

    def _path_of(self, job_id: str) -> Path:
        return self._folder / f"{job_id}.json"

    def _lock_of(self, job_id: str) -> Path:
        return self._folder / f"{job_id}.lock"

    def _try_locks(self) -> bool:
        path = self._lock_of(secrets.token_hex(6))
        descriptor = claim_shared(path)
        if descriptor is None:
            return False
        path.unlink(missing_ok=True)
        os.close(descriptor)
        return True

    def _is_unchanged(self) -> bool:
        """Whether no file came, went or was replaced. Time stamps are coarse, so a change is looked at twice."""
        changed_at, now = os.stat(self._folder).st_mtime_ns, time.monotonic()
        if changed_at != self._changed_at:
            self._changed_at, self._settles = changed_at, now + _SETTLED
        elif self._settles is None:
            return True
        elif now >= self._settles:
            self._settles = None
        return False

    def _read_anew(self) -> tuple[dict[str, Job], tuple[str, ...]]:
        """The jobs whose files are others than before, and the ids of those that have none any more."""
        found: dict[str, Job] = {}
        here = set[str]()
        for path in self._folder.glob("*.json"):
            with suppress(OSError):  # such as one that is forgotten in this moment
                here.add(path.stem)
                mark, known = _mark(path), self._known.get(path.stem)
                if known is not None and known.mark == mark:
                    continue
                job = _read(path)
                self._known[path.stem] = _Known(mark, job is not None and job.is_open)
                if job is not None:
                    found[job.id] = job
        gone = tuple(key for key in self._known if key not in here and key not in self._held)
        for key in gone:
            del self._known[key]
        return found, gone

    def _adopted(self, job_id: str) -> Job | None:
        """An open job that nobody has locked, as it is now; None where another process has it."""
        try:
            descriptor = claim_shared(self._lock_of(job_id)) if self._locks else None
        except StorageError:
            return None
        if self._locks and descriptor is None:
            return None
        self._held[job_id] = descriptor
        path = self._path_of(job_id)
        job = _read(path)  # once more: it may have come to its end before it was let go
        with suppress(FileNotFoundError):
            self._known[job_id] = _Known(_mark(path), job is not None and job.is_open)
        if job is None or not job.is_open:
            self._release(job_id)
        return job

    def _release(self, job_id: str) -> None:
        descriptor = self._held.pop(job_id, None)
        if descriptor is not None:
            with suppress(OSError):
                self._lock_of(job_id).unlink(missing_ok=True)
            os.close(descriptor)


def _mark(path: Path) -> tuple[int, int, int]:
    """What tells a file from the one that replaces it."""
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns, status.st_size


def _document(job: Job) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "id": job.id,
        "wanted": job.wanted._asdict(),
        "created": job.created,
        "with_token": job.with_token,
        "state": job.state.value,
        "started": job.started,
        "ended": job.ended,
        "commit": job.commit,
        "error": job.error and job.error._asdict(),
        "counted": job.counted,
    }


def _read(path: Path) -> Job | None:
    """The job in a file; None where that is none that this version can go on with."""
    try:
        told = json.loads(path.read_bytes())
        given, error = told["wanted"], told["error"]
        include, exclude = (tuple(map(str, given[globs])) for globs in ("include", "exclude"))
        wanted = Wanted(
            str(given["task"]), str(given["kind"]), str(given["name"]), str(given["revision"]), include, exclude
        )
        files, done, nbytes, received = map(int, told["counted"])
        job = Job(
            str(told["id"]),
            wanted,
            float(told["created"]),
            with_token=bool(told["with_token"]),
            state=JobState(told["state"]),
            started=_time(told["started"]),
            ended=_time(told["ended"]),
            commit=None if told["commit"] is None else str(told["commit"]),
            error=error and Refusal(str(error["code"]), str(error["message"]), str(error["hint"])),
            counted=(files, done, nbytes, received),
        )
        usable = told["format"] == _FORMAT and _ID.fullmatch(job.id) and path.stem == job.id
        known = wanted.task in ("prefetch", "verify") and wanted.kind in KINDS and is_id(wanted.name)
        if usable and known and (job.commit is None or is_commit(job.commit)):
            return job
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        LOG.warning("%s is no job that can be gone on with: %s.", path, type(error).__name__)
    return None


def _time(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]
