"""A checkpoint in a folder on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from ..errors import EntryNotFoundError, ProtocolError, storage_errors
from ..network.ranges import Target
from ..storage.folders import BOOKKEEPING, LocalFolder
from ..tasks import off_loop
from .finder import State, file_on_disk, read_index
from .located import FoundIndex, Listing, SourceFile
from .request import LocalSource, Request

__all__ = ["LocalPlace"]

_DEPTH = 3  # folders below the one that was named, in which advice looks
_MOST = 10_000  # files


class LocalPlace:
    """A folder on disk: it has no commits and no cache, and all of it is here."""

    cache = None
    ref = None

    def __init__(self, request: Request, source: LocalSource) -> None:
        self._source = source
        self._max_index_bytes = request.policy.max_index_bytes
        self._folder = LocalFolder(Path(source.folder))

    async def commits(self) -> Sequence[str | None]:
        return [None]

    async def read(self, name: str, commit: str | None) -> FoundIndex:
        path = await self._path(name)
        data = await off_loop(lambda: read_index(name, path, self._max_index_bytes))
        return FoundIndex(name, data, path=path)

    async def look(self, name: str, commit: str | None) -> SourceFile:
        path = await self._path(name)
        return await off_loop(lambda: self._on_disk(name, path))

    async def on_disk(self, names: Sequence[str], commit: str | None) -> Mapping[str, SourceFile]:
        paths = {name: Path(self._source.folder, name) for name in names}
        return await off_loop(
            lambda: {name: self._on_disk(name, path) for name, path in paths.items() if path.is_file()}
        )

    async def has(self, name: str, commit: str | None, *, ask: bool) -> bool | None:
        return await off_loop(Path(self._source.folder, name).is_file)

    async def glance(self, commit: str | None) -> Sequence[str]:
        return await off_loop(lambda: list(islice(_files_in(Path(self._source.folder), _DEPTH), _MOST)))

    async def listing(self, commit: str | None) -> Listing | None:
        return Listing(await off_loop(self._walked))

    def _walked(self) -> dict[str, SourceFile]:
        folder = Path(self._source.folder)
        with storage_errors(folder):
            names = sorted(name for name in _files_in(folder) if (folder / name).is_file())
        return {name: self._on_disk(name, folder / name) for name in names if not name.startswith(f"{BOOKKEEPING}/")}

    def _on_disk(self, name: str, path: Path) -> SourceFile:
        file = file_on_disk(name, path)
        record = self._folder.record(name)
        file.vouched = None if record is None else record.checksum
        return file

    async def recall(self, files: Sequence[SourceFile], index: FoundIndex | None, commit: str | None) -> State:
        return State(None)

    async def target(self, file: SourceFile, *, renew: bool) -> Target:
        raise ProtocolError("nothing serves a file on disk", url=file.name)

    async def _path(self, name: str) -> Path:
        path = Path(self._source.folder, name)
        if not await off_loop(path.is_file):
            raise EntryNotFoundError(name, str(self._source))
        return path


def _files_in(folder: Path, depth: int | None = None) -> Iterator[str]:
    """The files in a folder, and in those below it, down to a depth."""
    for path, folders, files in os.walk(folder):
        below = Path(path).relative_to(folder)
        folders[:] = sorted(folders) if depth is None or len(below.parts) < depth else []
        yield from ((below / name).as_posix() for name in sorted(files))
