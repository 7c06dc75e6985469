"""`--dry-run`: whether there is room for what a download would write, in the cache and in the folder of --local-dir."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import SourceError, StorageError, storage_errors
from ..events import FileState, Resolved
from ..storage.checksums import Checksum, parse_checksum
from ..storage.copies import could_take_clones
from ..storage.files import free_bytes, nearest, on_one_disk, refuse_obstacles
from ..storage.folders import LocalFolder, Standing
from ..storage.roots import cache_root, expanded

__all__ = ["Room", "room_of_cache", "room_of_folder"]


@dataclass(frozen=True, slots=True)
class Room:
    """A place, the bytes that its disk would take, and those that are free there: None where that is not told."""

    folder: Path
    needed: int
    free: int | None

    @property
    def fits(self) -> bool:
        return self.free is None or self.needed <= self.free


def room_of_cache(resolved: Resolved, environ: Mapping[str, str], given: Path | None) -> Room | None:
    """The room of the cache; None where there is no place for one, and none was needed."""
    with suppress(SourceError):
        folder, free = cache_root(environ, given), None
        with suppress(StorageError):
            free = free_bytes(folder)
        return Room(folder, _missing(resolved), free)
    return None


def room_of_folder(resolved: Resolved, given: Path, cache: Path | None) -> Room:
    """The room of a folder that is filled from a cache. Raises StorageError for what is in its way.

    Where both are on one disk, it takes what is missing twice, unless it can clone files.
    """
    local = LocalFolder(expanded(str(given), variables=False) or given)
    with storage_errors(local.path, writing="folder"):
        refuse_obstacles(local.path, writing="folder")
        needed = sum(file.size for file in resolved.files if not _is_there(local, file))
        if cache is not None and on_one_disk(local.path, cache):
            above = nearest(local.path)
            needed = _missing(resolved) + (0 if above is not None and could_take_clones(above) else needed)
    return Room(local.path, needed, local.free_bytes())


def _missing(resolved: Resolved) -> int:
    return sum(file.size - file.present for file in resolved.files)


def _is_there(local: LocalFolder, file: FileState) -> bool:
    """Whether a file is in the folder as it is wanted. It is hashed only where its size and no record tells."""
    state, wanted = local.state(file.file), _checksum(file)
    if state is None or wanted is None:
        return False
    promised = local.promised(file.file)
    if promised is not None:
        return promised == wanted
    return local.standing(file.file, wanted, file.size) is Standing.SAME


def _checksum(file: FileState) -> Checksum | None:
    return None if file.checksum is None else parse_checksum(file.checksum, file=file.file)
