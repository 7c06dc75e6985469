"""A checkpoint in a folder of any web server.

Such a server has no commits. The identity of a snapshot is made from the names, sizes and
validators (ETag or Last-Modified) of its files, so a file that changed is fetched again and one
that did not is found in the cache. Hashes come from `checksums=` or a Repr-Digest header
(RFC 9530); where there is neither, size and header are all that can be checked, and that is said.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from anyio import to_thread

from ..errors import AccessError, ChangedError, EntryNotFoundError, OfflineError, ProtocolError, redact_url
from ..format.header import PREFIX_BYTES, header_length, parse_header
from ..format.index import index_too_large
from ..network.ranges import Target, strong, version_of
from ..network.transport import Reply, Transport
from ..network.urls import no_downgrade, origin_of
from ..storage.cache import RepoCache, url_repo_id
from ..storage.checksums import Checksum, git_blob_id
from .finder import Finder, file_on_disk, read_index
from .hub import size_of
from .located import PREFIX_LIMIT, Located, SourceFile
from .request import Request, UrlSource

__all__ = ["WebFinder"]

_REVISION = "main"  # the name under which the last snapshot of a URL is recorded


class WebFinder(Finder):
    """A URL as a source."""

    def __init__(self, request: Request, source: UrlSource, transport: Transport) -> None:
        super().__init__(request, source, transport)
        self.web = source
        self.repo_cache = RepoCache(request.cache_root, url_repo_id(source.folder))
        self.cache, self.origin = self.repo_cache, WebOrigin(self)
        self.offline = request.settings.offline

    async def find(self) -> Located:
        if self.offline:
            self.commit = await to_thread.run_sync(self.repo_cache.commit_of, _REVISION)
        return await super().find()

    async def read_index(self, name: str) -> bytes:
        limit = self.request.policy.max_index_bytes
        if self.offline:
            self.index_path = await self._find_offline(name)
            return await to_thread.run_sync(read_index, name, self.index_path, limit)
        reply = await self._ask(name, limit=limit)
        if reply.truncated:
            raise index_too_large(name, limit)
        data = reply.body
        self.index_file = (name, data, git_blob_id(data))
        return data

    async def look(self, name: str) -> SourceFile:
        if self.offline:
            path = await self._find_offline(name)
            return await to_thread.run_sync(file_on_disk, name, path, self.repo_cache)
        return self.file_of(name, await self._ask(name, limit=PREFIX_LIMIT, ranged=True))

    async def _find_offline(self, name: str) -> Path:
        path = None
        if self.commit is not None:
            path = await to_thread.run_sync(self.repo_cache.find, self.commit, name)
        if path is None:
            raise OfflineError(str(self.source), name)
        return path

    async def _ask(self, name: str, *, limit: int, ranged: bool = False, told: str | None = None) -> Reply:
        headers = {"want-repr-digest": "sha-256=10"}
        if ranged:
            headers["range"] = f"bytes=0-{limit - 1}"
        url = self.web.url(name)
        reply = await self.transport.fetch(url, limit=limit, headers=headers, may_follow=no_downgrade, file=told)
        if reply.status in (404, 410):
            raise EntryNotFoundError(name, redact_url(self.web.folder))
        if reply.status in (401, 403):
            raise AccessError(
                f"{redact_url(url)}: the server answered {reply.status}.",
                hint="Pass client= with the credentials that it wants; some stores also answer so for a missing file.",
            )
        if reply.status not in (200, 206, 416):
            raise ProtocolError(f"unexpected status {reply.status}", url=url)
        return reply

    def file_of(self, name: str, reply: Reply, known: int | None = None) -> SourceFile:
        """What an answer to a request for the first bytes says of a file.

        An answer that tells no size is of the `known` one, or of the one that its header implies.
        """
        size = size_of(reply.headers, reply.status)
        if size is None:
            size = known or (_implied_size(name, reply.body) if reply.truncated else len(reply.body))
        if size is None:
            raise ProtocolError("the answer tells no size", url=reply.url)
        etag, modified = reply.headers.get("etag", ""), reply.headers.get("last-modified", "")
        validator = strong(reply.headers)
        identity = f"{redact_url(self.web.url(name)).partition('?')[0]}\n{size}\n{etag or modified}"
        checksum = _digest_of(reply.headers)
        url = self.web.url(name)
        neutral = origin_of(reply.url) != origin_of(url)
        version = ("", "") if validator else version_of(reply.headers)
        target = Target(reply.url, neutral=neutral, signed=reply.url != url, validator=validator, version=version)
        key = hashlib.sha256(identity.encode()).hexdigest()
        resumable = bool(etag or modified)
        prefix = reply.body if reply.status != 416 else b""
        return SourceFile(
            name,
            size,
            checksum,
            key=key,
            identity=identity,
            resumable=resumable,
            target=target,
            prefix=prefix,
            splittable=reply.status != 200,
        )

    async def settle(self, located: Located) -> None:
        if self.offline:
            return
        parts = sorted(file.identity for file in located.files)
        if self.index_file is not None:
            parts.append(self.index_file[2])
        self.commit = hashlib.sha1("\n".join(parts).encode(), usedforsecurity=False).hexdigest()
        located.commit, located.ref = self.commit, _REVISION
        for file in located.files:
            await to_thread.run_sync(self._find_cached, file)
            if file.checksum is None:
                located.warnings.append(f"{file.name}: no checksum is known, so only its size and header are checked")

    def _find_cached(self, file: SourceFile) -> None:
        if self.commit is None:
            return
        path = self.repo_cache.find(self.commit, file.name) if file.resumable else None
        if path is not None and file.checksum is not None and self.repo_cache.checksum_of(path) != file.checksum:
            path = None
        if path is None and file.checksum is not None:
            path = self.repo_cache.whole_blob(file.checksum.hex, file.size)
            file.in_blobs = path is not None
        file.path = path


class WebOrigin:
    """Where the files of one folder are served, after redirects."""

    def __init__(self, finder: WebFinder) -> None:
        self._finder = finder

    async def target(self, file: SourceFile, *, renew: bool) -> Target:
        if file.target is None or renew:
            finder = self._finder
            again = finder.file_of(
                file.name, await finder._ask(file.name, limit=1, ranged=True, told=file.name), file.size
            )
            if again.identity != file.identity:
                raise ChangedError(file.name, "its size or its validator is another one")
            file.target = again.target
        if file.target is None:
            raise ProtocolError("the file is served nowhere", url=finder.web.url(file.name))
        # Where a hash decides in the end, a date that differs between two servers of a site does no harm.
        return file.target if file.checksum is None else replace(file.target, version=("", ""))


def _implied_size(name: str, prefix: bytes) -> int | None:
    """The size that a header gives its file: data follow it to the end, without a hole. None if it is cut off."""
    length = header_length(prefix, file=name, file_size=sys.maxsize)
    raw = memoryview(prefix)[PREFIX_BYTES : PREFIX_BYTES + length]
    return parse_header(raw, file=name, file_size=None).file_size if len(raw) == length else None


def _digest_of(headers: Mapping[str, str]) -> Checksum | None:
    """The sha-256 of the whole file from Repr-Digest (RFC 9530), if it is there and well-formed."""
    match = re.search(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):", headers.get("repr-digest", ""), re.ASCII)
    return Checksum("sha256", base64.b64decode(match[1]).hex()) if match else None
