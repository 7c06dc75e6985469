"""What a server before another Hub is doing and has, as one document: for the API, for the page and for who watches.

Names of repositories are shown to who may change something here, and of those that the source shows to everybody also
to everybody; of the others it is told how many there are. Sizes are bytes, rates bytes a second, and times seconds
since 1970. Nothing in it is a token.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from ...errors import NetworkError, RateLimitedError, redact_url
from ...tasks import off_loop
from ..folders.layout import qualified
from ..jobs.jobs import JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ...progress.state import FileRow
    from ..arriving.fills import Fill, Fills
    from ..counts import Counts
    from ..jobs.jobs import Job, Jobs
    from ..keeping.kept import Kept, KeptRepository
    from ..source.upstream import Upstream

__all__ = ["Parts", "State", "job_document", "kept_document"]

MOST = 100  # of a kind in the document, which is sent to who watches at each change
_FRESH = 5.0  # seconds for which a look at the disk counts
_SHARE = 20  # and so many times as long as it took: a large cache is not walked all the time


class Parts(NamedTuple):
    """What a state is made of."""

    upstream: Upstream
    fills: Fills
    jobs: Jobs
    kept: Kept
    counts: Counts


class State:
    """Makes the document. What is kept on the disk is looked at every few seconds, and after each change."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._kept: list[KeptRepository] = []
        self._until = 0.0
        self._turn = anyio.Lock()

    @property
    def endpoint(self) -> str:
        """Where the source is."""
        return self._parts.upstream.settings.endpoint

    def changed(self) -> None:
        """What is kept may be another by now."""
        self._until = 0.0

    async def kept(self) -> list[KeptRepository]:
        """What is kept, as it was a moment ago, the largest first. Raises StorageError."""
        async with self._turn:
            began = time.monotonic()
            if began >= self._until:
                self._until = math.inf  # unless it changes meanwhile
                try:
                    found = await off_loop(self._parts.kept.repositories, slow=True)
                except BaseException:
                    self._until = 0.0
                    raise
                self._kept = sorted(found, key=lambda repository: (-repository.size, repository.name))
                took = time.monotonic() - began
                self._until = min(self._until, began + took + max(_FRESH, _SHARE * took))
            return self._kept

    def sees(self, *, full: bool) -> Callable[[str], bool]:
        """Whether a repository, by its name in addresses, is named to who may see all (`full`), or to everybody."""
        return lambda repository: full or self._parts.upstream.is_open(repository)

    async def document(self, *, full: bool, every: bool = False) -> dict[str, Any]:
        """The state, for who may see all of it or for everybody; with `every` repository that is kept.

        Raises StorageError.
        """
        sees, now = self.sees(full=full), time.monotonic()
        fills = sorted(self._parts.fills.running, key=lambda fill: not fill.progress.rows)
        arriving = [_arriving(fill, now) for fill in fills if sees(fill.repository)]
        jobs = [job for job in self._parts.jobs.all() if sees(_name_of(job))]
        kept = await self.kept()
        shown = [one for one in kept if sees(qualified(one.kind, one.name))]
        failures = [one for one in self._parts.fills.failures if sees(one.repository)]
        return {
            "source": self._source(),
            "arriving": arriving[:MOST],
            "arriving_in_all": len(fills),
            "jobs": [job_document(job) for job in jobs[:MOST]],
            "jobs_in_all": len(self._parts.jobs.all()),
            "kept": [kept_document(one) for one in (shown if every else shown[:MOST])],
            "kept_named": len(shown),
            "kept_in_all": len(kept),
            "room": self._room(kept),
            "traffic": traffic_of(self._parts.counts.snapshot()),
            "failures": [
                {
                    "at": one.at,
                    "repository": one.repository,
                    "file": one.file,
                    "code": one.error.code,
                    "message": one.error.message,
                    "hint": one.error.hint,
                }
                for one in reversed(failures)
            ],
        }

    def _source(self) -> dict[str, Any]:
        """How the source is: "well", "away" or "limiting"."""
        upstream = self._parts.upstream
        trouble = upstream.trouble
        state = "limiting" if isinstance(trouble, RateLimitedError) else "away" if trouble is not None else "well"
        limit, now = upstream.rate_limit, time.monotonic()
        after = trouble.retry_after if isinstance(trouble, RateLimitedError | NetworkError) else None
        return {
            "url": redact_url(self.endpoint),
            "state": state,
            "reason": trouble.code if trouble is not None else None,
            "retry_after": after,
            "rate_limit": {"remaining": limit.remaining, "seconds": round(limit.until - now)}
            if limit and limit.until > now
            else None,
        }

    def _room(self, kept: list[KeptRepository]) -> dict[str, Any]:
        limits = self._parts.kept.limits
        return {"used": sum(one.size for one in kept), "max_size": limits.max_size, "min_free": limits.min_free}


def _name_of(job: Job) -> str:
    return qualified(job.wanted.kind, job.wanted.name)


def _arriving(fill: Fill, now: float) -> dict[str, Any]:
    row = fill.progress.rows.get(fill.file.name)
    rate = row.rate.per_second(now) if row is not None and row.rate is not None else None
    received = min(row.received, fill.file.size) if row is not None else 0
    return {
        "repository": fill.repository,
        "file": fill.file.name,
        "size": fill.file.size,
        "received": received,
        "state": "queued" if row is None else row.state.name.lower(),
        "rate": rate and round(rate),
        "seconds_left": round((fill.file.size - received) / rate, 1) if rate else None,
        "retries": fill.retries,
        "restarts": fill.generation,
        "readers": fill.readers,
        **_hold(row, now),
    }


def _hold(row: FileRow | None, now: float) -> dict[str, Any]:
    """Why a file does not move, and for how many seconds, None where nobody can tell."""
    if row is None or row.hold is None:
        return {"reason": None, "retry_in": None}
    left = row.hold.seconds_left(now)
    return {"reason": row.hold.event.reason, "retry_in": left and round(left, 1)}


def job_document(job: Job, *, files: bool = False) -> dict[str, Any]:
    """A job; with `files` also how each of its files is."""
    wanted, (count, done, nbytes, received) = job.wanted, job.count()
    document: dict[str, Any] = {
        "id": job.id,
        "task": wanted.task,
        "repository": qualified(wanted.kind, wanted.name),
        "revision": wanted.revision,
        "include": list(wanted.include),
        "exclude": list(wanted.exclude),
        "state": job.state.value,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "commit": job.commit,
        "files": count,
        "files_done": done,
        "size": nbytes,
        "received": received,
        "rate": _rate(job),
        "reason": job.hold,
        "error": job.error and job.error._asdict(),
    }
    if files:
        now = time.monotonic()
        document["each"] = [
            {
                "file": path,
                "size": file.size,
                "received": file.received,
                "fetched": file.fill.progress.transferred if file.fill else file.fetched,
                "etag": file.etag,
                "done": file.done,
                "retries": file.fill.retries if file.fill else 0,
                **_hold(file.fill.progress.rows.get(path) if file.fill else None, now),
                "error": file.error and file.error._asdict(),
            }
            for path, file in job.files.items()
        ]
    return document


def _rate(job: Job) -> int | None:
    if job.state is not JobState.RUNNING:
        return None
    now = time.monotonic()
    rates = [file.fill.progress.per_second(now) for file in job.files.values() if file.fill is not None]
    return round(sum(rate for rate in rates if rate is not None)) if rates else None


def kept_document(kept: KeptRepository, *, files: bool = False) -> dict[str, Any]:
    """A repository that is kept; with `files` also each of its files."""
    document: dict[str, Any] = {
        "repository": qualified(kept.kind, kept.name),
        "files": len(kept.files),
        "size": kept.size,
        "last_read": kept.last_read,
        "hits": kept.hits,
        "pinned": kept.pinned,
    }
    if files:
        document["each"] = [file._asdict() | {"names": list(file.names)} for file in kept.files]
    return document


def traffic_of(counts: Mapping[str, int]) -> dict[str, int]:
    """What was handed out, what came from the source, and what that saved: bytes that did not have to come."""
    served = sum(counts[f"served_bytes_{origin}"] for origin in ("cache", "fill", "passed"))
    fetched = sum(counts[f"upstream_bytes_{kind}"] for kind in ("fills", "passed"))
    return {
        "served": served,
        "fetched": fetched,
        "saved": max(served - fetched, 0),
        "asked": sum(counts[f"upstream_requests_{kind}"] for kind in ("questions", "fills", "passed")),
        "retries": counts["retries"],
        "wrong_hashes": counts["wrong_hashes"],
    }
