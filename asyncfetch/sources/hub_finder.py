"""A checkpoint in a repository of the Hub, or in the cache of one."""

from __future__ import annotations

from pathlib import Path

import anyio
from anyio import to_thread

from ..errors import AsyncfetchError, ChecksumMismatchError, CorruptError, EntryNotFoundError, OfflineError
from ..network.ranges import Target
from ..network.transport import Transport
from ..storage.cache import RepoCache, is_commit
from ..storage.checksums import verify_small
from .finder import Finder, file_on_disk, read_index
from .hub import Hub, HubFile
from .located import PREFIX_LIMIT, Located, SourceFile
from .request import HubSource, Request

__all__ = ["HubFinder"]


class HubFinder(Finder):
    """With the commit pinned and all files cached, no request is sent."""

    def __init__(self, request: Request, source: HubSource, transport: Transport) -> None:
        super().__init__(request, source, transport)
        self.hub = Hub(transport, request.settings, source.repo_id)
        self.revision = source.revision
        self.subfolder = source.subfolder
        self.repo_cache = RepoCache(request.cache_root, source.repo_id)
        self.cache, self.origin = self.repo_cache, HubOrigin(self)
        self.offline = request.settings.offline
        if is_commit(source.revision):
            self.commit = source.revision

    def names(self) -> list[str]:
        folder = f"{self.subfolder}/" if self.subfolder else ""
        return [folder + name for name in super().names()]

    async def find(self) -> Located:
        if self.offline:
            self.commit = await to_thread.run_sync(self.repo_cache.commit_of, self.revision)
        if self.offline and self.commit is None:
            raise OfflineError(self.hub.repo_id, f"revision {self.revision!r}")
        located = await super().find()
        located.ref = None if is_commit(self.revision) else self.revision
        return located

    async def settle(self, located: Located) -> None:
        await self._look_for_single_file(located)

    async def read_index(self, name: str) -> bytes:
        limit = self.request.policy.max_index_bytes
        path = await self._cached(name)
        if path is not None:
            cached = await to_thread.run_sync(self._read_cached_index, name, path)
            if cached is not None:
                self.index_path = path
                return cached
        found, data = await self.hub.read_whole(name, self.commit or self.revision, limit=limit)
        verify_small(name, data, found.checksum)
        self._pin(found)
        self.index_file = (name, data, found.etag)
        return data

    def _read_cached_index(self, name: str, path: Path) -> bytes | None:
        """A cached index; None where it is damaged and the Hub can be asked."""
        data = read_index(name, path, self.request.policy.max_index_bytes)
        checksum = self.repo_cache.checksum_of(path)
        try:
            if checksum is not None:
                verify_small(name, data, checksum)
        except ChecksumMismatchError:
            if self.offline:
                raise
            return None
        return data

    async def look(self, name: str) -> SourceFile:
        path = await self._cached(name)
        if path is not None:
            return await to_thread.run_sync(file_on_disk, name, path, self.repo_cache)
        found = await self.hub.look(name, self.commit or self.revision, limit=PREFIX_LIMIT)
        self._pin(found)
        file = SourceFile(
            name,
            found.size,
            found.checksum,
            key=found.etag,
            blob=found.etag,
            identity=f"{found.etag}:{found.size}",
            target=self.hub.target(name, found),
            prefix=found.prefix,
            splittable=found.splittable,
        )
        blob = await to_thread.run_sync(self.repo_cache.whole_blob, found.etag, found.size)
        if blob is not None:
            file.in_blobs, file.path = True, blob
        elif found.link is not None:
            file.prefix = await self.read_prefix(file)
        return file

    async def _cached(self, name: str) -> Path | None:
        """The cached file, or None where the Hub must be asked. Raises where the answer is known."""
        if self.commit is None:
            return None
        path = await to_thread.run_sync(self.repo_cache.find, self.commit, name)
        if path is None:
            if await to_thread.run_sync(self.repo_cache.known_absent, self.commit, name):
                raise EntryNotFoundError(name, str(self.source), commit=self.commit)
            if self.offline:
                raise OfflineError(str(self.source), name)
        return path

    def _pin(self, found: HubFile) -> None:
        if self.commit not in (None, found.commit):
            raise CorruptError(f"The Hub went from commit {self.commit} to {found.commit}.", file=str(self.source))
        self.commit = found.commit

    async def _look_for_single_file(self, located: Located) -> None:
        """A single file beside an index is another checkpoint, which other loaders prefer: say so."""
        single = self.single_beside(located)
        if single is None or self.commit is None or all(file.path is not None for file in located.files):
            return
        try:
            with anyio.move_on_after(self.request.policy.connect_timeout) as scope:
                if await self._cached(single) is None:
                    await self.hub.look(single, self.commit, limit=1)
        except EntryNotFoundError:
            self.absent.append(single)
        except AsyncfetchError:
            pass  # only advice: what was asked for is there
        else:
            if not scope.cancelled_caught:
                self.warn_of(single, located)


class HubOrigin:
    """Where the files of one located repository are served."""

    def __init__(self, finder: HubFinder) -> None:
        self._finder = finder

    async def target(self, file: SourceFile, *, renew: bool) -> Target:
        finder = self._finder
        if file.target is None or renew:
            revision = finder.commit or finder.revision
            file.target = await finder.hub.target_anew(file.name, revision, etag=file.key, size=file.size)
        return file.target
