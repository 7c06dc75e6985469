"""A checkpoint in a repository of the Hub, or in the cache of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
from anyio import to_thread

from ..errors import AsyncfetchError, ChecksumMismatchError, EntryNotFoundError, OfflineError
from ..network.body import Body
from ..network.ranges import Target, read_span, strong_etag
from ..network.transport import Transport
from ..spans import Span
from ..storage.cache import RepoCache, is_commit
from ..storage.checksums import verify_small
from ..storage.listings import TreeEntry, entries_of
from .finder import State, file_on_disk, read_index
from .hub import Hub
from .located import PREFIX_LIMIT, FoundIndex, Listing, SourceFile, renewal
from .request import HubSource, Request

__all__ = ["HubPlace"]


class HubPlace:
    """A repository at a revision. With the commit pinned and all files cached, no request is sent."""

    def __init__(self, request: Request, source: HubSource, transport: Transport) -> None:
        self.cache = RepoCache(request.cache_root, source.repo_id)
        self.ref = None if is_commit(source.revision) else source.revision
        self._source, self._revision = source, source.revision
        self._offline, self._policy = request.settings.offline, request.policy
        self._transport = transport
        self._hub = Hub(transport, request.settings, source.repo_id)

    async def commits(self) -> Sequence[str | None]:
        if is_commit(self._revision):
            return [self._revision]
        if not self._offline:
            return [None]
        commit = await to_thread.run_sync(self.cache.commit_of, self._revision)
        if commit is None:
            raise OfflineError(self._source.repo_id, f"revision {self._revision!r}")
        return [commit]

    async def read(self, name: str, commit: str | None) -> FoundIndex:
        path = await self._cached(name, commit)
        if path is not None:
            cached = await to_thread.run_sync(self._read_cached_index, name, path)
            if cached is not None:
                return FoundIndex(name, cached, commit, path)
        limit = self._policy.max_index_bytes
        found, data = await self._hub.read_whole(name, commit or self._revision, limit=limit)
        verify_small(name, data, found.checksum)
        return FoundIndex(name, data, found.commit, etag=found.etag)

    def _read_cached_index(self, name: str, path: Path) -> bytes | None:
        """A cached index; None where it is damaged and the Hub can be asked."""
        data = read_index(name, path, self._policy.max_index_bytes)
        checksum = self.cache.checksum_of(path)
        try:
            if checksum is not None:
                verify_small(name, data, checksum)
        except ChecksumMismatchError:
            if self._offline:
                raise
            return None
        return data

    async def look(self, name: str, commit: str | None) -> SourceFile:
        path = await self._cached(name, commit)
        if path is not None:
            return await to_thread.run_sync(file_on_disk, name, path, commit, self.cache)
        found = await self._hub.ask(name, commit or self._revision, limit=PREFIX_LIMIT)
        file = SourceFile(
            name,
            found.size,
            found.checksum,
            commit=found.commit,
            key=found.etag,
            blob=found.etag,
            identity=f"{found.etag}:{found.size}",
            target=self._hub.target_of(name, found),
            prefix=found.prefix,
            splittable=found.splittable,
        )
        blob = await to_thread.run_sync(self.cache.whole_blob, found.etag, found.size)
        if blob is not None:
            file.in_blobs, file.path = True, blob
        elif found.link is not None:
            file.prefix = await self._read_prefix(file)
        return file

    async def has(self, name: str, commit: str | None, *, ask: bool) -> bool | None:
        if commit is None or not ask:
            return None
        try:
            with anyio.move_on_after(self._policy.connect_timeout):
                if await self._cached(name, commit) is None:
                    await self._hub.ask(name, commit, limit=1)
                return True
        except EntryNotFoundError as error:
            return False if error.commit == commit else None
        except AsyncfetchError:
            pass  # only advice: what was asked for is there
        return None

    async def listing(self, commit: str | None) -> Listing | None:
        commit = commit or await self._hub.commit_of(self._revision)
        if commit is None:
            return None
        entries, records = await to_thread.run_sync(self.cache.tree, commit), None
        if entries is None and self._offline:
            entries = await to_thread.run_sync(self.cache.present, commit)
        elif entries is None:
            records = await self._hub.listing(commit)
            if records is None:
                return None
            entries = entries_of(records)
        return Listing(await to_thread.run_sync(self._listed, entries, commit), records)

    def _listed(self, entries: Mapping[str, TreeEntry], commit: str) -> dict[str, SourceFile]:
        """The files of a listing, those that are here with their paths."""
        return {name: self._file_of(name, entry, commit) for name, entry in entries.items()}

    def _file_of(self, name: str, entry: TreeEntry, commit: str) -> SourceFile:
        etag = entry.checksum.hex if entry.checksum else ""
        file = SourceFile(
            name, entry.size, entry.checksum, commit=commit, key=etag, blob=etag, identity=f"{etag}:{entry.size}"
        )
        path = self.cache.find(commit, name)
        if path is not None and path.stat().st_size == entry.size:
            file.path = path
        elif etag and (blob := self.cache.whole_blob(etag, entry.size)) is not None:
            file.in_blobs, file.path = True, blob
        return file

    async def recall(self, files: Sequence[SourceFile], index: FoundIndex | None, commit: str | None) -> State:
        return State(commit)  # the Hub tells the hash of each file, so they were found by it when they were looked at

    async def target(self, file: SourceFile, *, renew: bool) -> Target:
        if file.target is None or renew:
            limit = PREFIX_LIMIT if file.target is None else 1  # of a small file the first answer brings the whole
            again = await self._hub.ask_again(
                file.name, file.commit or self._revision, etag=file.key, size=file.size, limit=limit
            )
            if file.target is None:
                file.prefix, file.splittable = again.prefix, again.splittable
            file.target = self._hub.target_of(file.name, again)
        return file.target

    async def _cached(self, name: str, commit: str | None) -> Path | None:
        """The cached file, or None where the Hub must be asked. Raises where the answer is known."""
        if commit is None:
            return None
        path = await to_thread.run_sync(self.cache.find, commit, name)
        if path is None:
            if await to_thread.run_sync(self.cache.known_absent, commit, name):
                raise EntryNotFoundError(name, str(self._source), commit=commit)
            if self._offline:
                raise OfflineError(str(self._source), name)
        return path

    async def _read_prefix(self, file: SourceFile) -> bytes:
        """The first bytes of a file, from where its bytes are served."""
        if file.target is None or not file.size:
            return b""

        def learn(body: Body, target: Target) -> None:
            file.etag = strong_etag(body, target)
            file.splittable = body.status == 206

        span = Span(0, min(PREFIX_LIMIT, file.size))
        return await read_span(
            self._transport,
            file.target,
            span,
            file=file.name,
            size=file.size,
            on_answer=learn,
            renew=renewal(self, file),
        )
