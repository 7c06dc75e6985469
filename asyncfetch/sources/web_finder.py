"""A checkpoint in a folder of any web server.

Such a server has no commits: what stands for them, `unversioned` says. A validator is an ETag or a Last-Modified.
Hashes come from `checksums=` or a Repr-Digest header (RFC 9530); where there is neither, size and header are all
that can be checked, and that is said.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence

from ..errors import AccessError, ChangedError, EntryNotFoundError, ProtocolError, redact_url
from ..format.header import PREFIX_BYTES, header_length, parse_header
from ..format.index import index_too_large
from ..network.ranges import Target, strong, version_of
from ..network.transport import Reply, Transport
from ..network.urls import no_downgrade, origin_of
from ..network.wall import words_of
from ..storage.cache import RepoCache
from ..storage.checksums import Checksum, git_blob_id
from ..storage.roots import url_repo_id
from ..words import quoted
from .finder import State
from .hub import size_of
from .located import PREFIX_LIMIT, FoundIndex, SourceFile
from .request import Request, UrlSource
from .unversioned import Kept

__all__ = ["WebPlace"]


class WebPlace:
    """A folder of a web server, or one file of it. Each is recorded under a name of its own."""

    def __init__(self, request: Request, source: UrlSource, transport: Transport) -> None:
        self.cache = RepoCache(request.cache_root, url_repo_id(source.folder, source.selecting), wrong=request.wrong)
        name = source.file or "main"
        self.ref = None if request.settings.offline else name
        self._kept = Kept(request, self.cache, name, transport)
        self._source, self._offline = source, request.settings.offline
        self._max_index_bytes = request.policy.max_index_bytes
        self._transport = transport

    async def commits(self) -> Sequence[str | None]:
        return await self._kept.commits() if self._offline else [None]

    async def read(self, name: str, commit: str | None) -> FoundIndex:
        if self._offline:
            return await self._kept.read(name, commit)
        reply = await self._ask(name, limit=self._max_index_bytes)
        if reply.truncated:
            raise index_too_large(name, self._max_index_bytes)
        return FoundIndex(name, reply.body, etag=git_blob_id(reply.body))

    async def look(self, name: str, commit: str | None) -> SourceFile:
        if self._offline:
            return await self._kept.look(name, commit)
        reply = await self._ask(name, limit=PREFIX_LIMIT, ranged=True)
        if size_of(reply.headers, reply.status) is None and reply.truncated:  # then its header must tell, all of it
            stop = PREFIX_BYTES + header_length(reply.body, file=name, file_size=sys.maxsize)
            if stop > len(reply.body):
                reply = await self._ask(name, limit=stop, ranged=True)
        return _file_of(self._source, name, reply)

    async def on_disk(self, names: Sequence[str], commit: str | None) -> Mapping[str, SourceFile]:
        return await self._kept.on_disk(names, commit) if self._offline else {}

    async def has(self, name: str, commit: str | None, *, ask: bool) -> bool | None:
        return None  # a request of a stranger's server for advice alone is not worth it

    async def glance(self, commit: str | None) -> None:
        return  # a web server has none that all understand

    async def listing(self, commit: str | None) -> None:
        return  # nor here

    async def recall(self, files: Sequence[SourceFile], index: FoundIndex | None, commit: str | None) -> State:
        if self._offline:
            return State(commit)
        wanted = {file.name: file.key for file in files}
        if index is not None:
            wanted[index.name] = index.etag
        return await self._kept.recall(files, wanted)

    async def target(self, file: SourceFile, *, renew: bool) -> Target:
        target = file.target
        if target is None or renew:
            reply = await self._ask(file.name, limit=1, ranged=True, told=file.name)
            again = _file_of(self._source, file.name, reply, file.size)
            if file.checksum is None and again.identity != file.identity:
                raise ChangedError(file.name, "its size or its validator is another one")
            file.target = target = again.target
        if target is None:
            raise ProtocolError("the file is served nowhere", url=self._source.url(file.name))
        return target

    async def _ask(self, name: str, *, limit: int, ranged: bool = False, told: str | None = None) -> Reply:
        headers = {"want-repr-digest": "sha-256=10"}
        if ranged:
            headers["range"] = f"bytes=0-{limit - 1}"
        url = self._source.url(name)
        reply = await self._transport.fetch(url, limit=limit, headers=headers, may_follow=_may_follow, file=told)
        if reply.status in (404, 410):
            raise EntryNotFoundError(name, redact_url(self._source.folder))
        if reply.status in (401, 403):
            raise AccessError(
                f"{redact_url(url)}: the server answered {reply.status}.{quoted(words_of(reply.headers))}",
                hint="Pass client= with the credentials that it wants; some stores also answer so for a missing file.",
            )
        if reply.status not in (200, 206, 416):
            raise ProtocolError(f"unexpected status {reply.status}", url=url)
        return reply


def _may_follow(redirect: Reply, target: str) -> bool:
    return no_downgrade(redirect.url, target)


def _file_of(source: UrlSource, name: str, reply: Reply, known: int | None = None) -> SourceFile:
    """What an answer to a request for the first bytes says of a file.

    An answer that tells no size is of the `known` one, or of the one that its header implies.
    """
    size = size_of(reply.headers, reply.status)
    if size is None:
        size = known or (_implied_size(name, reply.body) if reply.truncated else len(reply.body))
    if size is None:
        raise ProtocolError("the answer tells no size", url=reply.url)
    url, validator = source.url(name), strong(reply.headers)
    version = reply.headers.get("etag", "") or reply.headers.get("last-modified", "")
    identity = f"{redact_url(url).partition('?')[0]}\n{size}\n{version}"
    return SourceFile(
        name,
        size,
        _digest_of(reply.headers),
        key=hashlib.sha256(identity.encode()).hexdigest(),
        identity=identity,
        resumable=bool(version),
        target=Target(
            reply.url,
            neutral=origin_of(reply.url) != origin_of(url),
            signed=reply.url != url,
            validator=validator,
            version=("", "") if validator else version_of(reply.headers),
        ),
        prefix=reply.body if reply.status != 416 else b"",
        splittable=reply.status != 200,
    )


def _implied_size(name: str, prefix: bytes) -> int | None:
    """The size that a header gives its file: data follow it to the end, without a hole. None if it is cut off."""
    length = header_length(prefix, file=name, file_size=sys.maxsize)
    raw = memoryview(prefix)[PREFIX_BYTES : PREFIX_BYTES + length]
    return parse_header(raw, file=name, file_size=None).file_size if len(raw) == length else None


def _digest_of(headers: Mapping[str, str]) -> Checksum | None:
    """The sha-256 of the whole file from Repr-Digest (RFC 9530), if it is there and well-formed."""
    match = re.search(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]{43}=):", headers.get("repr-digest", ""), re.ASCII)
    return Checksum("sha256", base64.b64decode(match[1]).hex()) if match else None
