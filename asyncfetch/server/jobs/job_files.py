"""Where jobs are kept over a restart: a file of JSON for each, replaced by rename. Nothing in it says who asked.

    FOLDER/<id>.json
    FOLDER/lock           locked by the one process that goes on with the jobs of an earlier one

Blocking calls: run them in a thread.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from ...storage.cache import is_commit
from ...storage.files import rename, write_synced
from ...storage.locks import private_name
from ..folders.layout import KINDS, is_id
from .jobs import Job, JobState, Refusal, Wanted

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

__all__ = ["JobFiles"]

LOG = logging.getLogger("asyncfetch.server")
_FORMAT = 1
_ID = re.compile(r"[0-9a-f]{12}", re.ASCII)


class JobFiles:
    """The jobs in `folder`. What cannot be read there is no job, and what cannot be written is only told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: int | None = None

    def load(self) -> list[Job]:
        """The jobs that are kept; none where another process goes on with them."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._claim():
                LOG.info("Another server has the jobs in %s.", self._folder)
                return []
            found = [_read(path) for path in self._folder.glob("*.json")]
        except OSError as error:
            LOG.warning("Jobs are not kept over a restart: %s cannot be used: %s.", self._folder, error.strerror)
            return []
        return [job for job in found if job is not None]

    def _claim(self) -> bool:
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:  # there are no locks here: nothing shows that somebody else is at it
            pass
        self._lock = descriptor
        return True

    def save(self, job: Job) -> None:
        path = self._folder / f"{job.id}.json"
        temporary = private_name(path)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_synced(temporary, json.dumps(_document(job)).encode())
            rename(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            LOG.warning("A job could not be kept in %s: %s.", self._folder, error.strerror)

    def forget(self, job: Job) -> None:
        with suppress(OSError):
            (self._folder / f"{job.id}.json").unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process go on with what is not done."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


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
