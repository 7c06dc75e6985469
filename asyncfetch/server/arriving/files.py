"""What clients get of a file of the source: from the cache, while it arrives, or passed on where it cannot be kept."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from starlette.responses import Response

from ...errors import ChecksumMismatchError, ProtocolError, StorageError
from ...storage.cache import RepoCache, is_commit
from ...tasks import off_loop
from ..keeping.eviction import open_shared
from ..protocol.answers import failure, source_failure, wrong_bytes
from ..protocol.body import FileBody, Part, without_bytes
from .passing import Passage, PassBody
from .tailing import FillBody
from .wanted import WantedFile, file_to_fetch

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request

    from ...errors import AsyncfetchError
    from ...sources.located import SourceFile
    from ..counts import Counts
    from ..keeping.kept import Kept
    from ..protocol.wire import Resource
    from ..source.freshness import Answer
    from ..source.upstream import Upstream, Who
    from .distrust import Distrust
    from .fills import Fill, Fills

__all__ = ["FileAnswers"]


class _File(NamedTuple):
    """A file of a repository as the source tells it: its path there, a commit that has it, its hash, its bytes."""

    path: str
    commit: str
    etag: str
    size: int

    def to_fetch(self) -> SourceFile:
        return file_to_fetch(self.path, self.commit, self.etag, self.size)


class FileAnswers:
    """Answers with files, and the heads of such answers. `strict`: no byte of a file before its hash is right."""

    def __init__(
        self,
        root: Path,
        upstream: Upstream,
        fills: Fills,
        distrust: Distrust,
        kept: Kept,
        counts: Counts,
        *,
        strict: bool,
    ) -> None:
        self.root, self.upstream, self.fills, self.strict = root, upstream, fills, strict
        self.distrust, self.kept, self.counts = distrust, kept, counts

    async def answer(self, request: Request, target: Resource, who: Who, told: Answer, deadline: float) -> Response:
        """What `who` asks for of a file of which the source `told`; by `deadline`, on the event loop's clock."""
        file = _File(target.path, told.headers["x-repo-commit"], told.headers["etag"], int(told.headers["size"]))
        part, headers = self._part(request, file)
        if (answer := without_bytes(file.path, part, headers)) is not None:
            return answer
        if request.method == "HEAD" or not part.span:
            return Response(status_code=part.status, headers=headers)
        cache = RepoCache(self.root, target.name, repo_type=target.kind.removesuffix("s"))
        descriptor = await off_loop(lambda: self._open_cached(cache, file))
        part, headers = self._part(request, file)  # another process may have found it wrong
        if descriptor is not None:
            self.counts.add("hits")
            return FileBody(descriptor, part.span, part.status, headers, "cache")
        if rest := self.distrust.rest_of(file.etag):
            return wrong_bytes(file.path, rest)
        ref = None if is_commit(target.revision) else target.revision
        hub = self.upstream.hub(target, who, self.fills.transport)
        wanted = WantedFile(file.to_fetch(), hub, cache, ref, lambda: self.upstream.forget(target, file.commit))
        fill = self.fills.of(wanted)
        fill.hold()
        try:
            await fill.begun(part.span.start, deadline)
            if not fill.over:
                part, headers = self._part(request, file)  # what came may have proved wrong meanwhile
                self.kept.note(cache.blob(file.etag))
                return FillBody(fill, self.fills.apart(), part.span, part.status, headers)
        except BaseException:
            fill.release()
            raise
        fill.release()
        if isinstance(fill.error, StorageError) and not self.strict:
            return await self._passed_on(request, file, wanted._replace(file=file.to_fetch()))
        return self._fill_failed(fill)

    async def _passed_on(self, request: Request, file: _File, wanted: WantedFile) -> Response:
        """A file that cannot be kept."""
        if self.distrust.passed(file.etag):
            await off_loop(self.distrust.save)  # before anybody can come back for the rest
        part, headers = self._part(request, file)
        passage = Passage(wanted, part.span, self.fills.apart(), self.distrust, self.counts)
        return PassBody(passage, part.status, headers, lambda error: self._not_fetched(file.path, file.etag, error))

    def _part(self, request: Request, file: _File) -> tuple[Part, dict[str, str]]:
        """What of the file is sent, and the head of the answer."""
        etag = f'"{file.etag}"'
        part = Part.asked(request, file.size, etag)
        if part.status == 206 and part.span.start and not self._may_go_on(request, file):
            part = Part(200, range(file.size), file.size)
        told = {"X-Repo-Commit": file.commit, "X-Linked-Etag": etag, "X-Linked-Size": str(file.size)}
        return part, {**part.headers(file.path, etag), **told}

    def _may_go_on(self, request: Request, file: _File) -> bool:
        """Whether a client may add a range to what it has of a file."""
        to_the_end = request.headers.get("range", "").rstrip().endswith("-")
        return self.distrust.may_resume(file.etag) and (not to_the_end or self.distrust.may_take_the_rest(file.etag))

    def _fill_failed(self, fill: Fill) -> Response:
        if fill.misled:
            return source_failure(
                ProtocolError("it tells another size of the file by now", url=self.upstream.settings.endpoint)
            )
        if fill.error is None:
            return failure(503, "Stopped", "The server could not go on with this file.", {"Retry-After": "5"})
        return self._not_fetched(fill.file.name, fill.file.key, fill.error)

    def _not_fetched(self, path: str, etag: str, error: AsyncfetchError) -> Response:
        wrong = isinstance(error, ChecksumMismatchError)
        return wrong_bytes(path, self.distrust.rest_of(etag)) if wrong else source_failure(error)

    def _open_cached(self, cache: RepoCache, file: _File) -> int | None:
        """A descriptor of a file that is in the cache, whole and with this etag; None where it is not. Blocks."""
        self.distrust.refresh()
        found = cache.find(file.commit, file.path)
        if found is None:
            return None
        named = cache.checksum_of(found)
        if named is not None and named.hex != file.etag:
            return None
        try:
            descriptor = open_shared(found)
        except OSError:
            return None
        if os.fstat(descriptor).st_size != file.size:
            os.close(descriptor)
            return None
        self.kept.note(found if named is None else cache.blob(file.etag))
        return descriptor
