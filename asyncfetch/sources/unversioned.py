"""What the cache has of a source without commits: of a web folder, of a bucket.

The identity of a file is made from its name, its size and its validator, and that of a snapshot from its files, so a
file that changed is fetched again and one that did not is found in the cache, whichever selection brought it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ..errors import OfflineError
from ..network.transport import Transport
from ..storage.cache import RepoCache
from ..storage.checksums import Checksum
from ..storage.identities import commit_of, known_states
from ..tasks import off_loop
from .finder import State, distrust, file_on_disk, files_on_disk, read_cached_index
from .located import FoundIndex, SourceFile
from .request import Request

__all__ = ["Kept"]


class Kept:
    """The snapshots of one source, each recorded under `name`: that of its only file, or of the folder."""

    def __init__(self, request: Request, cache: RepoCache, name: str, transport: Transport) -> None:
        self.cache, self._name, self._source = cache, name, str(request.source)
        self._max_index_bytes = request.policy.max_index_bytes
        self._transport = transport

    async def commits(self) -> Sequence[str]:
        """All snapshots: each load left one that is whole, for its own selection."""
        return list(await off_loop(lambda: known_states(self.cache, self._name)))

    async def read(self, name: str, commit: str | None) -> FoundIndex:
        """An index of a snapshot. Raises OfflineError."""
        path = await self._find(name, commit)
        data, wrong = await off_loop(lambda: read_cached_index(self.cache, name, path, self._max_index_bytes))
        if wrong is not None:
            await distrust(wrong, name, path, self.cache, self._transport, offline=True)
        return FoundIndex(name, data, commit, path)

    async def look(self, name: str, commit: str | None) -> SourceFile:
        """A file of a snapshot. Raises OfflineError."""
        path = await self._find(name, commit)
        return await off_loop(lambda: file_on_disk(name, path, commit, self.cache))

    async def on_disk(self, names: Sequence[str], commit: str | None) -> Mapping[str, SourceFile]:
        """Those of some files that a snapshot has."""
        return {} if commit is None else await off_loop(partial(files_on_disk, self.cache, names, commit))

    async def recall(self, files: Sequence[SourceFile], wanted: Mapping[str, str]) -> State:
        """Where files are recorded, by the keys of all that is `wanted`. Sets the paths of those that are here."""

        def look_up() -> State:
            states = known_states(self.cache, self._name)
            at = _commit_for(wanted, states if all(file.resumable for file in files) else {})
            for file in files:
                self._find_cached(file, wanted[file.name], at, states)
                if file.checksum is not None:
                    _name_by_hash(file, file.checksum)
            return State(at, {} if states.get(at) else wanted)

        return await off_loop(look_up)

    async def _find(self, name: str, commit: str | None) -> Path:
        path = None
        if commit is not None:
            path = await off_loop(partial(self.cache.find, commit, name))
        if path is None:
            raise OfflineError(self._source, name)
        return path

    def _find_cached(self, file: SourceFile, key: str, commit: str, states: Mapping[str, Mapping[str, str]]) -> None:
        """Set the path of a file that its snapshot has, or of its blob, which only needs a link then.

        Its hash is told by the source, the caller, or the link of another snapshot that has the same file.
        """
        path = self.cache.find(commit, file.name) if file.resumable else None
        if path is not None and (file.checksum is None or self.cache.checksum_of(path) in (None, file.checksum)):
            file.path, file.in_blobs = path, False
            return
        hashes = [file.checksum] if file.checksum else []
        if file.checksum is None and file.resumable:
            same = (other for other, keys in states.items() if keys.get(file.name) == key)
            links = (self.cache.find(other, file.name) for other in same)
            hashes = [known for link in links if link and (known := self.cache.checksum_of(link))]
        blobs = (self.cache.whole_blob(known.hex) for known in hashes)
        file.path = next((blob for blob in blobs if blob), None)
        file.in_blobs = file.path is not None


def _commit_for(wanted: Mapping[str, str], states: Mapping[str, Mapping[str, str]]) -> str:
    """The first snapshot that was made of all that is wanted and perhaps more, or else one of its own.

    What was not looked at may have changed since, so nothing is ever added to a snapshot: its files
    were all seen at one time, and offline they are loaded together.
    """
    joined = (commit for commit, keys in states.items() if wanted.items() <= keys.items())
    return next(joined, commit_of(wanted))


def _name_by_hash(file: SourceFile, checksum: Checksum) -> None:
    """Another run goes on with what is here of a file by its hash, whichever node of a site serves it then."""
    file.key, file.identity, file.resumable = checksum.hex, checksum.hex, True
