"""Doing what a job wants: fetching a repository before anybody asks for it, and hashing again what is kept of one.

A prefetch asks the source as clients of the Hub do, through the same store of answers and the same fills. So what it
fetched is served in all its parts when the source is away, and nothing that a client brings meanwhile comes twice.
"""

from __future__ import annotations

import json
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio import from_thread

from ...errors import (
    AccessError,
    AsyncfetchError,
    ChangedError,
    ChecksumMismatchError,
    EntryNotFoundError,
    ProtocolError,
    RateLimitedError,
    RepositoryNotFoundError,
    redact_url,
)
from ...network.transport import Reply
from ...sources.hub import following_page, records_of
from ...sources.listing import Chosen, chosen_of, companions_of, without_odd, words_of_odd
from ...sources.refusals import Asked, refusal
from ...storage.cache import RepoCache, is_commit
from ...storage.checksums import checksum_of_etag, verify_file
from ...storage.listings import entries_of
from ...storage.removal import entries_of as names_of
from ...storage.removal import plan_removal, remove
from ...tasks import each, off_loop
from ..arriving.wanted import WantedFile, file_to_fetch
from ..folders.layout import qualified
from ..keeping.borrowing import wrong_elsewhere
from ..keeping.eviction import cache_of
from ..protocol.wire import Resource
from .jobs import JobFailedError, JobFile, Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping
    from pathlib import Path

    from ...storage.listings import Records
    from ..arriving.distrust import Distrust
    from ..arriving.fills import Fills
    from ..source.freshness import Answer
    from ..source.upstream import Upstream, Who
    from .jobs import Job, Wanted

__all__ = ["Worker", "wanted_paths"]

LOG = logging.getLogger("asyncfetch.server")
AT_ONCE = 4  # files of a job; large ones have several connections each
_LONGEST = 60.0  # seconds between two questions to a source that does not answer

T = TypeVar("T")


def wanted_paths(paths: Collection[str], wanted: Wanted) -> list[str]:
    """Which files of a repository a prefetch brings. Raises EntryNotFoundError, SelectionError, SourceError.

    Without globs to include, all that holds no weights, and the safetensors: of a dataset, and of a repository that
    has none of these, everything. What cannot be kept for its name is left out, and the log says so.
    """
    name = f"{qualified(wanted.kind, wanted.name)}@{wanted.revision}"
    include = wanted.include
    shards = [path for path in paths if path.endswith(".safetensors") or ".safetensors.index." in path]
    if not include and wanted.kind == "models" and shards:
        beside = set(companions_of(paths, "")) | set(shards)
        paths = [path for path in paths if path in beside]
    chosen = chosen_of(paths, Chosen(exact=True, include=include, exclude=wanted.exclude), name)
    kept, odd = without_odd(chosen, include, name)
    if odd:
        LOG.warning("%s.", words_of_odd(name, odd))
    return kept


class Worker:
    """Does jobs, one call for each.

    `patience`: for how many seconds a source that is away is asked again. `admit` says of a kind and a name whether
    such a repository may be asked for now.
    """

    def __init__(
        self,
        upstream: Upstream,
        fills: Fills,
        distrust: Distrust,
        root: Path,
        patience: float,
        admit: Callable[[str, str], bool],
    ) -> None:
        self._upstream, self._fills, self._distrust = upstream, fills, distrust
        self._root, self._patience, self._admit = root, patience, admit

    async def __call__(self, job: Job, who: Who) -> None:
        """Do what the job wants, and note on it how that goes. Raises AsyncfetchError, JobFailedError."""
        if job.wanted.task == "verify":
            await self._verify(job)
        else:
            await self._prefetch(job, who)
        wrong = [(path, file.error) for path, file in job.files.items() if file.error is not None]
        if wrong:
            path, first = wrong[0]
            named = first.message if first.message.startswith(path) else f"{path}: {first.message}"
            others = f" And {len(wrong) - 1:,} more." if len(wrong) > 1 else ""
            raise JobFailedError(first._replace(message=f"{named}{others}"))

    # -- prefetch ----------------------------------------------------------------------------------

    async def _prefetch(self, job: Job, who: Who) -> None:
        wanted = job.wanted
        if not self._admit(wanted.kind, wanted.name):
            raise AccessError(f"This server does not serve {qualified(wanted.kind, wanted.name)}.", hint="")
        job.commit = commit = await self._commit(job, who)
        records = await self._listing(job, who, commit)
        sizes = {path: entry.size for path, entry in entries_of(records).items()}
        paths = await off_loop(lambda: wanted_paths(sizes, wanted), slow=True)
        job.files = {path: JobFile(sizes[path]) for path in paths}

        async def bring(path: str) -> None:
            await self._bring(job, who, commit, path)

        await each(paths, bring, AT_ONCE)

    async def _commit(self, job: Job, who: Who) -> str:
        wanted = job.wanted
        target = Resource("info", wanted.name, wanted.revision, kind=wanted.kind)
        told = self._checked(who, target, await self._answer(job, lambda: self._upstream.document(target, "", who)))
        try:
            commit = str(json.loads(told.body)["sha"])
        except (ValueError, TypeError, KeyError, RecursionError):
            commit = ""
        if not is_commit(commit):
            raise ProtocolError("no commit in the answer, so this is not a Hub", url=self._upstream.settings.endpoint)
        return commit

    async def _listing(self, job: Job, who: Who, commit: str) -> Records:
        """All files of a commit, asked for as huggingface_hub asks."""
        target = Resource("tree", job.wanted.name, commit, kind=job.wanted.kind)
        records: dict[str, Mapping[str, int | str]] = {}
        query: str | None = "recursive=true&expand=false"
        asked = set[str]()
        while query is not None and query not in asked:
            asked.add(query)
            page = self._checked(who, target, await self._answer(job, self._asking(target, query, who)))
            try:
                entries = json.loads(page.body)
            except (ValueError, RecursionError):
                entries = None
            records |= records_of(entries, self._upstream.settings.endpoint)
            query = following_page(page.headers.get("link", ""))
        return records

    def _asking(self, target: Resource, query: str, who: Who) -> Callable[[], Awaitable[Answer]]:
        return lambda: self._upstream.document(target, query, who)

    async def _bring(self, job: Job, who: Who, commit: str, path: str) -> None:
        """Bring one file into the cache. What is wrong with this file alone is noted."""
        wanted, file = job.wanted, job.files[path]
        # Asked of the branch, so that clients who ask for it find an answer; of the commit where it has moved on.
        target = Resource("resolve", wanted.name, wanted.revision, path, wanted.kind)
        told = await self._answer(job, lambda: self._upstream.file(target, who))
        if told.headers.get("x-repo-commit") != commit:
            target = target._replace(revision=commit)
            told = await self._answer(job, lambda: self._upstream.file(target, who))
        try:
            self._checked(who, target, told)
        except EntryNotFoundError as error:
            file.error = Refusal.of(error)
            return
        etag, file.size = told.headers["etag"], int(told.headers["size"])
        file.etag = etag
        if rest := self._distrust.rest_of(etag):
            hint = f"Retry in {rest / 60:.0f} minutes, or tell who runs the source."
            file.error = Refusal("checksum_mismatch", "The source sends wrong bytes for it.", hint)
        elif file.size:
            await self._fill(job, who, target, file, etag)
        else:
            file.done = True

    async def _fill(self, job: Job, who: Who, target: Resource, file: JobFile, etag: str) -> None:
        commit, ref = job.commit or "", None if is_commit(target.revision) else target.revision
        cache = RepoCache(self._root, target.name, repo_type=target.kind.removesuffix("s"))
        hub = self._upstream.hub(target, who, self._fills.transport)
        asked = file_to_fetch(target.path, commit, etag, file.size)
        fill = self._fills.of(WantedFile(asked, hub, cache, ref, lambda: self._upstream.forget(target, commit)))
        file.fill = fill
        await fill.joined()
        file.fill, file.done, file.fetched = None, fill.complete, fill.progress.transferred
        if fill.complete:
            return
        if fill.error is None:
            raise JobFailedError(Refusal("stopped", "The server could not go on with it.", "Retry it."))
        if not isinstance(fill.error, ChecksumMismatchError | ChangedError):
            raise fill.error
        file.error = Refusal.of(fill.error)

    async def _answer(self, job: Job, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` returns. A source that is away or limits the rate is waited for, within the policy's patience."""
        until, failed = time.monotonic() + self._patience, 0
        while True:
            try:
                found = await ask()
            except AsyncfetchError as error:
                failed += 1
                asked = getattr(error, "retry_after", None)
                wait = min(2.0**failed, _LONGEST) if asked is None else asked + 1.0
                limited = isinstance(error, RateLimitedError)
                if not error.transient or (time.monotonic() + wait > until and not (limited and failed < 5)):
                    raise
                why = "limits the rate of requests" if limited else "does not answer"
                job.hold = f"The source {why}: it is asked again in {wait:.0f} s."
                await anyio.sleep(wait)
            else:
                job.hold = None
                return found

    def _checked(self, who: Who, target: Resource, told: Answer) -> Answer:
        """An answer, if it is no refusal. Raises the NotFoundError, AccessError and NetworkError kinds."""
        if told.status == 200:
            return told
        endpoint, name = redact_url(self._upstream.settings.endpoint), qualified(target.kind, target.name)
        if told.status == 404 and not target.path and "x-error-code" not in told.headers:  # of a mirror
            raise RepositoryNotFoundError(name, authenticated=who.token is not None)
        reply = Reply(endpoint, told.status, told.headers, told.body, truncated=False)
        page = f"{endpoint}/{name}"
        raise refusal(reply, Asked(name, target.path, target.revision, page, authenticated=who.token is not None))

    # -- verify ------------------------------------------------------------------------------------

    async def _verify(self, job: Job) -> None:
        """Hash all blobs of a repository again. A wrong one is removed, and so fetched anew when it is wanted."""
        cache = RepoCache(self._root, job.wanted.name, repo_type=job.wanted.kind.removesuffix("s"))
        found = await off_loop(lambda: _blobs(cache))
        job.files = {name: JobFile(size, etag=blob.name) for name, (blob, size) in found.items()}

        async def check(name: str) -> None:
            blob, checksum = found[name][0], checksum_of_etag(found[name][0].name)
            assert checksum is not None  # noqa: S101  # else it is none of _blobs
            try:
                await off_loop(
                    lambda: verify_file(blob, checksum, file=name, check=from_thread.check_cancelled), slow=True
                )
                job.files[name].done = True
            except ChecksumMismatchError as error:
                await self._remove(cache, blob.name)
                message = f"{error.message} It was removed."
                job.files[name].error = Refusal(error.code, message, "It is fetched anew when it is asked for.")

        await each(job.files, check, 2)

    async def _remove(self, cache: RepoCache, etag: str) -> None:
        """Remove a wrong blob, also from other repositories where it is wrong: else it would be lent again."""
        checked = from_thread.check_cancelled
        folders = await off_loop(lambda: wrong_elsewhere(cache, etag, checked), slow=True)

        def take_out(one: RepoCache) -> None:
            remove(plan_removal(one, blobs=[etag]))
            LOG.warning("A wrong file was removed from %s: %s.", one.name, etag)

        for one in (cache, *(cache_of(self._root, folder) for folder in folders)):
            await off_loop(partial(take_out, one))


def _blobs(cache: RepoCache) -> dict[str, tuple[Path, int]]:
    """The blobs that snapshots name, by the name of one such file, and their sizes. Raises StorageError."""
    found: dict[Path, str] = {}
    for entry in names_of(cache):
        if entry.blob is not None and entry.blob.exists() and checksum_of_etag(entry.blob.name) is not None:
            found.setdefault(entry.blob, entry.name)
    named: dict[str, tuple[Path, int]] = {}
    for blob, name in found.items():
        shown = name if name not in named else f"{name} ({blob.name[:12]})"  # of another commit
        named[shown] = (blob, blob.stat().st_size)
    return named
