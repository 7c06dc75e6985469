"""A checkpoint in a folder on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anyio import to_thread

from ..errors import EntryNotFoundError, ProtocolError, storage_errors
from ..network.ranges import Target
from .finder import State, file_on_disk, read_index
from .located import FoundIndex, Listing, SourceFile
from .request import LocalSource, Request

__all__ = ["LocalPlace"]


class LocalPlace:
    """A folder on disk: it has no commits and no cache, and all of it is here."""

    cache = None
    ref = None

    def __init__(self, request: Request, source: LocalSource) -> None:
        self._source = source
        self._max_index_bytes = request.policy.max_index_bytes

    async def commits(self) -> Sequence[str | None]:
        return [None]

    async def read(self, name: str, commit: str | None) -> FoundIndex:
        path = await self._path(name)
        data = await to_thread.run_sync(read_index, name, path, self._max_index_bytes)
        return FoundIndex(name, data, path=path)

    async def look(self, name: str, commit: str | None) -> SourceFile:
        path = await self._path(name)
        return await to_thread.run_sync(file_on_disk, name, path)

    async def has(self, name: str, commit: str | None, *, ask: bool) -> bool | None:
        return await to_thread.run_sync(Path(self._source.folder, name).is_file)

    async def listing(self, commit: str | None) -> Listing | None:
        return Listing(await to_thread.run_sync(self._walked))

    def _walked(self) -> dict[str, SourceFile]:
        folder = Path(self._source.folder)
        with storage_errors(folder):
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
        return {name: file_on_disk(name, path) for name, path in zip(names, paths, strict=True)}

    async def recall(self, files: Sequence[SourceFile], index: FoundIndex | None, commit: str | None) -> State:
        return State(None)

    async def target(self, file: SourceFile, *, renew: bool) -> Target:
        raise ProtocolError("nothing serves a file on disk", url=file.name)

    async def _path(self, name: str) -> Path:
        path = Path(self._source.folder, name)
        if not await to_thread.run_sync(path.is_file):
            raise EntryNotFoundError(name, str(self._source))
        return path
