"""A checkpoint in a repository of the Hub, or in the cache of one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio

from ..errors import AsyncfetchError, ChangedError, EntryNotFoundError, OfflineError
from ..format.header import PREFIX_BYTES
from ..network.ranges import Target
from ..network.transport import Transport
from ..storage.cache import RepoCache, is_commit
from ..storage.checksums import verify_small
from ..storage.listings import Records, TreeEntry, entries_of
from ..tasks import off_loop
from .finder import State, distrust, file_on_disk, files_on_disk, read_cached_index
from .headers import read_beginning
from .hub import Hub
from .located import PREFIX_LIMIT, FoundIndex, Listing, SourceFile
from .request import HubSource, Request, names_in

__all__ = ["HubPlace"]


class _Listed(Mapping[str, SourceFile]):
    """The files of a listing: of many, few are wanted, and only those are looked for on the disk."""

    def __init__(self, names: Collection[str], look: Callable[[str], SourceFile]) -> None:
        self._names, self._look = names, look
        self._found: dict[str, SourceFile] = {}

    def __getitem__(self, name: str) -> SourceFile:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._found:
            self._found[name] = self._look(name)
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class HubPlace:
    """A repository at a revision. With the commit pinned and all files cached, no request is sent."""

    def __init__(self, request: Request, source: HubSource, transport: Transport) -> None:
        self.cache = RepoCache(request.cache_root, source.repo_id, repo_type=source.repo_type, wrong=request.wrong)
        self.ref = None if is_commit(source.revision) else source.revision
        self._source, self._revision = source, source.revision
        self._offline, self._policy = request.settings.offline, request.policy
        self._transport = transport
        self._hub = Hub(transport, request.settings, source.name)
        self._late = names_in(source, request.variant) if request.nameless and request.believed else []

    async def commits(self) -> Sequence[str | None]:
        if is_commit(self._revision):
            return [self._revision]
        if not self._offline:
            return [None]
        commit = await off_loop(lambda: self.cache.commit_of(self._revision))
        if commit is None:
            raise OfflineError(self._source.name, f"revision {self._revision!r}")
        return [commit]

    async def read(self, name: str, commit: str | None) -> FoundIndex:
        limit, path = self._policy.max_index_bytes, await self._cached(name, commit)
        if path is not None:
            data, wrong = await off_loop(lambda: read_cached_index(self.cache, name, path, limit))
            if wrong is None:
                return FoundIndex(name, data, commit, path)
            await distrust(wrong, name, path, self.cache, self._transport, offline=self._offline)
        found, data = await self._hub.read_whole(name, commit or self._revision, limit=limit)
        verify_small(name, data, found.checksum)
        return FoundIndex(name, data, found.commit, etag=found.etag)

    async def look(self, name: str, commit: str | None) -> SourceFile:
        return await self._begun(await self.asked(name, commit))

    async def asked(self, name: str, commit: str | None) -> SourceFile:
        """What the Hub says of a file, without the bytes that are served elsewhere. Raises as `look` does."""
        path = await self._cached(name, commit)
        if path is not None:
            return await off_loop(partial(file_on_disk, name, path, commit, self.cache))
        found = await self._hub.ask(name, commit or self._revision, limit=PREFIX_LIMIT)
        return SourceFile(
            name,
            found.size or 0,
            found.checksum,
            commit=found.commit,
            key=found.etag,
            blob=found.etag,
            identity=found.etag,
            target=self._hub.target_of(name, found),
            prefix=found.prefix,
            sized=found.size is not None,
            splittable=found.splittable,
        )

    async def recognised(self, file: SourceFile) -> SourceFile:
        """What `look` returns for a file that was asked for when its commit was not known."""
        path = await self._cached(file.name, file.commit)
        if path is not None:
            return await off_loop(partial(file_on_disk, file.name, path, file.commit, self.cache))
        return await self._begun(file)

    async def _begun(self, file: SourceFile) -> SourceFile:
        """The same file with its first bytes, or with where it is if the cache has it under another name."""
        if file.path is not None:
            return file
        blob = await off_loop(lambda: self.cache.whole_blob(file.blob))
        if blob is not None:
            file.in_blobs, file.path = True, blob
        elif file.target is not None and file.target.signed:
            file.late = file.name in self._late and _is_large(file)
            file.prefix = b"" if file.late else await self._read_prefix(file)
        return file

    async def on_disk(self, names: Sequence[str], commit: str | None) -> Mapping[str, SourceFile]:
        return {} if commit is None else await off_loop(partial(files_on_disk, self.cache, names, commit))

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

    async def glance(self, commit: str | None) -> Sequence[str] | None:
        try:
            with anyio.move_on_after(self._policy.connect_timeout), self._transport.hurry():
                return await self._hub.glance(commit or self._revision)
        except AsyncfetchError:
            pass
        return None

    async def listing(self, commit: str | None) -> Listing | None:
        commit = commit or await self._hub.commit_of(self._revision)
        if commit is None:
            return None
        entries = await off_loop(lambda: self.cache.tree(commit))
        if entries is None and self._offline:
            entries = await off_loop(lambda: self.cache.present(commit))
        if entries is not None:
            return self._listing_of(entries, commit)
        records = await self._hub.listing(commit)
        return None if records is None else self.listing_of(records, commit)

    async def records(self) -> Records | None:
        """What the revision lists now. Of a branch that may be another commit than it names a moment later."""
        return await self._hub.listing(self._revision)

    def listing_of(self, records: Records, commit: str, *, sure: bool = True) -> Listing:
        """Records as the listing of a commit, to be kept with it if that is `sure`.

        So are not those that tell more to who is let in.
        """
        entries = entries_of(records)
        kept = sure and all(entry.checksum for entry in entries.values())
        return self._listing_of(entries, commit, records if kept else None)

    def _listing_of(self, entries: Mapping[str, TreeEntry], commit: str, records: Records | None = None) -> Listing:
        return Listing(_Listed(entries, lambda name: self._file_of(name, entries[name], commit)), records)

    async def knows_nothing(self) -> bool:
        """Whether the cache has nothing of the revision, so that all of it is to be asked for."""
        if self._offline:
            return False
        if is_commit(self._revision):
            return not await off_loop(self.cache.snapshot(self._revision).exists)
        return await off_loop(lambda: self.cache.commit_of(self._revision)) is None

    def _file_of(self, name: str, entry: TreeEntry, commit: str) -> SourceFile:
        etag = entry.checksum.hex if entry.checksum else ""
        file = SourceFile(name, entry.size, entry.checksum, commit=commit, key=etag, blob=etag, identity=etag)
        path = self.cache.find(commit, name)
        if path is not None and path.stat().st_size == entry.size:
            file.path = path
        elif etag and (blob := self.cache.whole_blob(etag, entry.size)) is not None:
            file.in_blobs, file.path = True, blob
        return file

    async def recall(self, files: Sequence[SourceFile], index: FoundIndex | None, commit: str | None) -> State:
        return State(commit)  # the Hub tells the hash of each file, so they were found by it when they were looked at

    async def target(self, file: SourceFile, *, renew: bool) -> Target:
        return await self._hub.target(file, file.commit or self._revision, renew=renew)

    async def _cached(self, name: str, commit: str | None) -> Path | None:
        """The cached file, or None where the Hub must be asked. Raises where the answer is known."""
        if commit is None:
            return None
        path = await off_loop(lambda: self.cache.find(commit, name))
        if path is None:
            if await off_loop(lambda: self.cache.known_absent(commit, name)):
                raise EntryNotFoundError(name, str(self._source), commit=commit)
            if self._offline:
                raise OfflineError(str(self._source), name)
        return path

    async def _read_prefix(self, file: SourceFile) -> bytes:
        """The first bytes of a file, from where its bytes are served.

        Of a file whose size nobody tells, or which is smaller than is told, those that any checkpoint has.
        """
        target = file.target
        if target is None or (file.sized and not file.size):
            return b""
        if file.sized:
            with suppress(ChangedError):
                nbytes = min(PREFIX_LIMIT, file.size)
                return await read_beginning(file, target, nbytes, self._transport, self)
        file.size, file.sized = 0, False
        return await read_beginning(file, target, PREFIX_BYTES, self._transport, self)


def _is_large(file: SourceFile) -> bool:
    """Whether its sha256 and its size are known, and more bytes are to come than are read with a header."""
    sure = file.sized and file.checksum is not None and file.checksum.algorithm == "sha256"
    return sure and file.size > PREFIX_LIMIT
