"""A checkpoint in a folder on disk."""

from __future__ import annotations

from pathlib import Path

from anyio import to_thread

from ..errors import EntryNotFoundError
from .finder import Finder, file_on_disk, read_index
from .located import Located, SourceFile
from .request import LocalSource

__all__ = ["LocalFinder"]


class LocalFinder(Finder):
    """A folder on disk."""

    async def read_index(self, name: str) -> bytes:
        self.index_path = await self._path(name)
        return await to_thread.run_sync(read_index, name, self.index_path, self.request.policy.max_index_bytes)

    async def look(self, name: str) -> SourceFile:
        path = await self._path(name)
        return await to_thread.run_sync(file_on_disk, name, path)

    async def settle(self, located: Located) -> None:
        single = self.single_beside(located)
        if single is not None:
            try:
                await self._path(single)
            except EntryNotFoundError:
                return
            self.warn_of(single, located)

    async def _path(self, name: str) -> Path:
        assert isinstance(self.source, LocalSource)  # noqa: S101
        path = Path(self.source.folder, name)
        if not await to_thread.run_sync(path.is_file):
            raise EntryNotFoundError(name, str(self.source))
        return path
