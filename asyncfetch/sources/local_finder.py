"""A checkpoint in a folder on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import EntryNotFoundError, ProtocolError
from ..network.ranges import Target
from ..tasks import off_loop
from .finder import State, file_on_disk, read_index
from .located import FoundIndex, SourceFile
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
        data = await off_loop(lambda: read_index(name, path, self._max_index_bytes))
        return FoundIndex(name, data, path=path)

    async def look(self, name: str, commit: str | None) -> SourceFile:
        path = await self._path(name)
        return await off_loop(lambda: file_on_disk(name, path))

    async def has(self, name: str, commit: str | None, *, ask: bool) -> bool | None:
        return await off_loop(Path(self._source.folder, name).is_file)

    async def recall(self, files: Sequence[SourceFile], index: FoundIndex | None, commit: str | None) -> State:
        return State(None)

    async def target(self, file: SourceFile, *, renew: bool) -> Target:
        raise ProtocolError("nothing serves a file on disk", url=file.name)

    async def _path(self, name: str) -> Path:
        path = Path(self._source.folder, name)
        if not await off_loop(path.is_file):
            raise EntryNotFoundError(name, str(self._source))
        return path
