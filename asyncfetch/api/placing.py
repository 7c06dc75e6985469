"""A download into a folder of the user's: what is there is looked at before a byte comes, what came is put there."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from anyio import from_thread

from ..engine.bookkeeping import room_needed
from ..errors import DiskFullError, StorageError
from ..sources.located import Landed, Located
from ..storage.cache import RepoCache
from ..storage.checksums import Checksum, checksum_of_etag, file_digest
from ..storage.copies import takes_clones
from ..storage.files import on_one_disk
from ..storage.folders import LocalFolder, Standing
from ..tasks import each, off_loop, plain_errors
from ..words import counted

__all__ = ["Placing"]

_AT_ONCE = 4  # files that are hashed or copied
_SHOWN = 5  # names in an error
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_WAYS_OUT = "Move it away to keep it, leave it out with exclude=, or pass overwrite=True."


@dataclass(eq=False, slots=True)
class Placing:
    """The folder that one call fills. `overwrite`: also what the user changed there."""

    folder: LocalFolder
    overwrite: bool
    _standings: dict[str, Standing] = field(default_factory=dict)
    _states: dict[str, tuple[int, ...] | None] = field(default_factory=dict)

    async def look(self, located: Located) -> None:
        """Find what is there already, which then needs no download. Writes nothing.

        Raises StorageError where something else is in the way of a file, SourceError where names meet in one place.
        """
        wanted = await off_loop(lambda: _wanted(located))
        await off_loop(lambda: self.folder.refuse_strays(wanted))
        await self._judge(wanted)
        self._refuse([name for name in wanted if wanted[name][0] is not None])
        for file in located.files:
            if file.path is None and self._standings[file.name] is Standing.SAME:
                file.path, file.vouched = self.folder.path / file.name, file.checksum

    async def make_room(self, located: Located) -> None:
        """Make the folder. Raises DiskFullError, before the download, where what is to be put there does not fit."""
        await off_loop(lambda: self._make_room(located))

    def _make_room(self, located: Located) -> None:
        self.folder.prepare(self._standings)
        cache, free = located.cache, self.folder.free_bytes()
        if cache is None or free is None or cache.root == self.folder.own_cache:
            return
        needed = sum(file.size for file in located.files if self._standings[file.name] is not Standing.SAME)
        if on_one_disk(cache.folder, self.folder.path):
            needed += sum(room_needed(located).values())
        if needed > free and not self._takes_clones(cache):
            raise DiskFullError(str(self.folder.path), needed=needed, free=free, writing="folder")

    def _takes_clones(self, cache: RepoCache) -> bool:
        with suppress(StorageError):  # of what is read there alone, nothing is cloned
            cache.prepare()
        return takes_clones(cache.folder / "blobs", self.folder.path)

    async def fill(self, located: Located, landed: Mapping[str, Landed]) -> dict[str, Path]:
        """Put there what landed, and record it. Returns where each file is, by name.

        A file that was changed since `look` is an error as well; then nothing more is put there.
        """
        came = await off_loop(lambda: _all_that_came(located, landed), slow=True)
        changed = [name for name in came if self._states[name] != self.folder.state(name)]
        unsure = [name for name in came if self._standings[name] is Standing.CHANGED]
        await self._judge({name: (came[name][1], None) for name in {*changed, *unsure}})
        self._refuse(came)
        own = located.cache is not None and located.cache.root == self.folder.own_cache

        def put(name: str) -> None:
            source, checksum = came[name]
            if self._standings[name] is not Standing.SAME:
                self.folder.put(name, source, link=own, check=from_thread.check_cancelled)
            record = self.folder.record(name)
            if located.commit is not None and (
                record is None or record.commit != located.commit or self.folder.promised(name) != checksum
            ):
                self.folder.write_record(name, located.commit, checksum)

        async def work(name: str) -> None:
            await off_loop(partial(put, name), slow=True)

        with plain_errors():
            await each(came, work, _AT_ONCE)
        if own:
            await off_loop(self.folder.drop_own_cache, slow=True)
        return {name: self.folder.path / name for name in came}

    def cannot_use(self, error: StorageError, cache: Path) -> bool:
        """Whether a download failed because the cache may not be written, so that one in the folder has to do."""
        refused = isinstance(error.__cause__, OSError) and error.__cause__.errno in _CLOSED
        where = Path(error.path)  # it, or the folder above in which it cannot be made
        return (
            refused
            and cache != self.folder.own_cache
            and (where.is_relative_to(cache) or cache.absolute().is_relative_to(where))
        )

    async def _judge(self, wanted: Mapping[str, tuple[Checksum | None, int | None]]) -> None:
        def judge(name: str) -> None:
            self._states[name] = self.folder.state(name)
            self._standings[name] = self.folder.standing(name, *wanted[name], from_thread.check_cancelled)

        async def work(name: str) -> None:
            await off_loop(partial(judge, name), slow=True)

        with plain_errors():
            await each(wanted, work, _AT_ONCE)

    def _refuse(self, names: Iterable[str]) -> None:
        """Raise StorageError if some of these files were changed and are not to be overwritten."""
        changed = sorted(name for name in names if self._standings[name] is Standing.CHANGED)
        if changed and not self.overwrite:
            shown = counted(changed[:_SHOWN], len(changed))
            raise StorageError(str(self.folder.path), f"not as downloaded, so not replaced: {shown}", hint=_WAYS_OUT)


def _wanted(located: Located) -> dict[str, tuple[Checksum | None, int | None]]:
    """The hash and the size of each file, as far as they are known."""
    files = {file.name: (file.checksum, file.size if file.sized else None) for file in located.files}
    return files if located.index is None else {located.index.file: (_index_checksum(located), None), **files}


def _index_checksum(located: Located) -> Checksum | None:
    """The hash of the index, as its source or its place in the cache tells."""
    if located.index_file is not None:
        return checksum_of_etag(located.index_file[2])
    cache, index = located.cache, located.index
    if cache is None or index is None or located.index_path is None:
        return None
    listed = (cache.tree(located.commit) if located.commit is not None else None) or {}
    entry = listed.get(index.file)
    return cache.checksum_of(located.index_path) or (None if entry is None else entry.checksum)


def _all_that_came(located: Located, landed: Mapping[str, Landed]) -> dict[str, tuple[Path, Checksum]]:
    """Each file of the download, where it is, and its hash, which is taken where nothing tells it."""
    found = {file.name: (landed[file.name].path, file.checksum) for file in located.files}
    if located.index is not None:
        found = {located.index.file: (located.index_path, _index_checksum(located)), **found}
    came = {}
    for name, (path, checksum) in found.items():
        if path is not None:
            if checksum is None and located.cache is not None:
                checksum = located.cache.checksum_of(path)
            checksum = checksum or Checksum("sha256", file_digest(path, "sha256", from_thread.check_cancelled))
            came[name] = (path, checksum)
    return came
