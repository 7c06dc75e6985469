"""A checkpoint in a bucket of S3, of Google Cloud Storage or of Azure, or of what speaks as one of these.

obstore finds the credentials, signs links and lists (`stores.py`); every byte comes over our own transport. A bucket
has no commits: what stands for them, `unversioned` says. Hashes come from `checksums=`, or from S3 where an object was
uploaded with a SHA-256 of the whole. An ETag is never taken for a hash: of objects in parts it is none. Where there is
no hash, size and ETag are held fixed from the first answer to the last.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime

import anyio

from ..errors import (
    AccessError,
    AsyncfetchError,
    ChangedError,
    EntryNotFoundError,
    NetworkError,
    ProtocolError,
    SourceError,
)
from ..format.index import index_too_large
from ..network.ranges import Target, differ, opaque, strong, version_of
from ..network.retry import retrying
from ..network.transport import Reply, Transport
from ..storage.cache import RepoCache, path_inside
from ..storage.checksums import Checksum, git_blob_id
from ..storage.roots import url_repo_id
from ..tasks import off_loop
from .bucket import BucketSource
from .finder import State
from .hub import size_of
from .listing import is_odd
from .located import PREFIX_LIMIT, FoundIndex, Listing, SourceFile
from .request import Request
from .store_refusals import refusal, words_in
from .stores import PAGE, Link, Listed, Store
from .unversioned import Kept

__all__ = ["StorePlace"]


class StorePlace:
    """A folder of a bucket, or one file of it. Each is recorded under a name of its own."""

    def __init__(self, request: Request, source: BucketSource, transport: Transport) -> None:
        self.cache = RepoCache(request.cache_root, url_repo_id(source.address, source.endpoint), wrong=request.wrong)
        name = source.file or "main"
        self.ref = None if request.settings.offline else name
        self._kept = Kept(request, self.cache, name, transport)
        self._source, self._offline, self._policy = source, request.settings.offline, request.policy
        self._transport = transport
        self._store = Store(source, request.policy, os.environ)

    async def commits(self) -> Sequence[str | None]:
        return await self._kept.commits() if self._offline else [None]

    async def read(self, name: str, commit: str | None) -> FoundIndex:
        if self._offline:
            return await self._kept.read(name, commit)
        limit = self._policy.max_index_bytes
        reply, _ = await self._ask(name, limit=limit)
        if reply.truncated:
            raise index_too_large(name, limit)
        return FoundIndex(name, reply.body, etag=git_blob_id(reply.body))

    async def look(self, name: str, commit: str | None) -> SourceFile:
        if self._offline:
            return await self._kept.look(name, commit)
        file = await self._looked_at(name, PREFIX_LIMIT)
        file.checksum = await self._checksum_of(file)
        return file

    async def on_disk(self, names: Sequence[str], commit: str | None) -> Mapping[str, SourceFile]:
        return await self._kept.on_disk(names, commit) if self._offline else {}

    async def has(self, name: str, commit: str | None, *, ask: bool) -> bool | None:
        if self._offline or not ask:
            return None
        with suppress(AsyncfetchError), anyio.move_on_after(self._policy.connect_timeout):
            await self._ask(name, limit=1, ranged=True)
            return True
        return None  # only advice: what was asked for is there

    async def glance(self, commit: str | None) -> Sequence[str] | None:
        with suppress(AsyncfetchError), anyio.move_on_after(self._policy.connect_timeout):
            return [one.key.removeprefix(self._source.folder) for one in await self._listed(PAGE)]
        return None

    async def listing(self, commit: str | None) -> Listing:
        if self._offline:
            entries = await off_loop(lambda: self.cache.present(commit) if commit else {})
            return Listing({name: await self._kept.look(name, commit) for name in entries})
        async for attempt in retrying(self._transport.budget(), self._transport.notify):
            with attempt:
                listed = await self._listed_anywhere()
        return Listing(await off_loop(lambda: self._files_of(listed)))

    async def recall(self, files: Sequence[SourceFile], index: FoundIndex | None, commit: str | None) -> State:
        if self._offline:
            return State(commit)
        wanted = {file.name: self._identity(file.name, file.size, file.version[0])[0] for file in files}
        if index is not None:
            wanted[index.name] = index.etag
        return await self._kept.recall(files, wanted)

    async def target(self, file: SourceFile, *, renew: bool) -> Target:
        target = file.target
        if renew:  # it was refused: the store says why, unless it was only too old
            again = await self._looked_at(file.name, 1)
            if file.checksum is None and (again.size, again.version) != (file.size, file.version):
                raise ChangedError(file.name, "its size or its ETag is another one")
            target = again.target
        elif target is None or (target.until is not None and time.monotonic() >= target.until):
            link = await self._link(file.name)
            known = target or Target("", signed=True, validator=file.etag)
            target = replace(known, url=link.url, headers=link.headers, until=link.until)
        if target is None:
            raise ProtocolError("the file is served nowhere", url=self._source.at(file.name))
        file.target = target
        return target

    async def _link(self, name: str) -> Link:
        key = self._source.key(name)
        return await off_loop(lambda: self._store.link(key), abandon=True)

    async def _looked_at(self, name: str, limit: int) -> SourceFile:
        """What the store says of a file, with its first bytes."""
        reply, link = await self._ask(name, limit=limit, ranged=True)
        size = size_of(reply.headers, reply.status)
        if size is None:
            raise ProtocolError("the answer tells no size", url=reply.url)
        etag = strong(reply.headers)
        key, identity = self._identity(name, size, opaque(reply.headers.get("etag", "")))
        return SourceFile(
            name,
            size,
            None,
            key=key,
            identity=identity,
            resumable=bool(etag),
            target=Target(
                link.url,
                link.headers,
                signed=True,
                validator=etag,
                version=("", "") if etag else version_of(reply.headers),
                until=link.until,
            ),
            prefix=reply.body if reply.status != 416 else b"",
            splittable=reply.status != 200,
        )

    async def _ask(self, name: str, *, limit: int, ranged: bool = False, moved: bool = False) -> tuple[Reply, Link]:
        """The beginning of a file, and the link that led there. Raises what the store's refusal means.

        `moved`: it was asked in another region before, which said that it is in this one.
        """
        here, link = self._store.region, await self._link(name)
        headers = dict(link.headers) | ({"range": f"bytes=0-{limit - 1}"} if ranged else {})
        reply = await self._transport.fetch(link.url, limit=limit, headers=headers, file=name)
        region = reply.headers.get("x-amz-bucket-region") or _region_in(reply)
        if reply.status in (301, 307, 400, 403) and region not in ("", here) and not moved:
            self._store.move_to(region)
            return await self._ask(name, limit=limit, ranged=ranged, moved=True)
        if reply.status not in (200, 206, 416):
            raise self._refused(name, reply)
        return reply, link

    def _refused(self, name: str, reply: Reply) -> AsyncfetchError:
        code, said = words_in(reply.body.decode(errors="replace"))
        code = reply.headers.get("x-ms-error-code", "") or code
        known = refusal(self._store, self._source.at(name), reply.status, code, said, _ahead(reply.headers))
        if known is None and reply.status in (404, 410):
            known = EntryNotFoundError(name, self._source.at(""))
        words = " ".join(filter(None, [code, said]))
        return known or ProtocolError(f"unexpected status {reply.status} {words}".rstrip(), url=reply.url)

    async def _checksum_of(self, file: SourceFile) -> Checksum | None:
        """The SHA-256 of a whole object of S3, if it was uploaded with one: asked of its head, which alone tells it.

        Of an object that was uploaded in parts S3 tells a hash of their hashes, which no reader of the whole can use.
        """
        name, key = file.name, self._source.key(file.name)
        link = await off_loop(lambda: self._store.checksum_link(key), abandon=True)
        if link is None:
            return None
        async for attempt in retrying(self._transport.budget(), self._transport.notify, file=name):
            with attempt:
                async with self._transport.open(link.url, method="HEAD", headers=link.headers, file=name) as body:
                    if body.status != 200:
                        return None
                    if differ(file.version, version_of(body.headers)):
                        raise ChangedError(name, "its ETag or its Last-Modified is another one")
                    return _sha256_in(body.headers)
        raise AssertionError("unreachable: the last attempt raises")

    async def _listed_anywhere(self) -> list[Listed]:
        """All objects of the folder. Where the bucket lies in another region, an object's refusal tells which."""
        try:
            return await self._listed(None)
        except (NetworkError, AccessError):
            known = self._store.region
            if self._source.scheme == "s3":
                with suppress(AsyncfetchError):
                    await self._ask("config.json", limit=1, ranged=True)
            if self._store.region == known:
                raise
            return await self._listed(None)

    async def _listed(self, most: int | None) -> list[Listed]:
        """All objects of the folder, or the first so many."""
        pages, found = self._store.list(self._source.folder), list[Listed]()
        while most is None or len(found) < most:
            page = await off_loop(lambda: next(pages, None), slow=True, abandon=True)
            if page is None:
                break
            found += page
        return found

    def _files_of(self, listed: Sequence[Listed]) -> dict[str, SourceFile]:
        """The files of a listing by their names in the folder, without what only stands for a folder."""
        below = {one.key.removeprefix(self._source.folder): one for one in listed}
        folders = {name[: match.start()] for name in below for match in re.finditer("/", name)}
        files = {}
        for name, one in below.items():
            if one.size or (name not in folders and one.key != self._source.folder.rstrip("/")):
                self._refuse_impossible(name)
                etag = f'"{opaque(one.etag)}"' if one.etag else None
                key, identity = self._identity(name, one.size, opaque(one.etag))
                resumable = etag is not None
                files[name] = SourceFile(
                    name, one.size, None, key=key, identity=identity, resumable=resumable, etag=etag
                )
        return files

    def _refuse_impossible(self, name: str) -> None:
        try:
            path_inside(name)
        except SourceError as error:
            if is_odd(name):  # who takes it leaves it out
                return
            raise SourceError(f"{self._source.at('')} has {name!r}, which is no path on a disk.") from error

    def _identity(self, name: str, size: int, etag: str) -> tuple[str, str]:
        """The key of a file in this state, and what a resumed partial of it must still be."""
        source = self._source
        identity = f"{source.endpoint} {source.scheme}://{source.bucket}/{source.folder}{name}\n{size}\n{etag}"
        return hashlib.sha256(identity.encode()).hexdigest(), identity


def _region_in(reply: Reply) -> str:
    """The region that a store of one's own names where the link was signed for another (MinIO)."""
    match = re.search(rb"<Region>([a-z0-9\-]{1,40})</Region>", reply.body) if reply.status == 400 else None
    return match[1].decode() if match else ""


def _ahead(headers: Mapping[str, str]) -> float:
    """Seconds that the server's clock is ahead of ours; 0 if it tells none."""
    with suppress(ValueError, TypeError, KeyError, OverflowError):
        return parsedate_to_datetime(headers["date"]).timestamp() - time.time()
    return 0.0


def _sha256_in(headers: Mapping[str, str]) -> Checksum | None:
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html"""
    text = headers.get("x-amz-checksum-sha256", "")
    whole = headers.get("x-amz-checksum-type", "FULL_OBJECT") == "FULL_OBJECT"
    if not whole or not re.fullmatch(r"[A-Za-z0-9+/]{43}=", text, re.ASCII):  # of parts: with "-2" at its end
        return None
    return Checksum("sha256", base64.b64decode(text).hex())
