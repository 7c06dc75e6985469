"""What a transfer does in the cache around its bytes: how much is there, the index, the lock, the ref."""

from __future__ import annotations

from ..errors import DiskFullError, storage_errors
from ..events import FileState
from ..sources.located import Located
from ..storage.identities import write_identities
from ..storage.listings import write_listing
from ..storage.partial import spans_on_disk

__all__ = ["file_states", "prepare_cache", "record"]


def file_states(located: Located, storage: str) -> tuple[FileState, ...]:
    """How much of each file needs no transfer. Reads journals: call it in a thread."""
    states = []
    for file in located.files:
        present = file.size if file.path is not None else 0
        if file.path is None and storage == "disk" and located.cache is not None and file.resumable:
            spans = spans_on_disk(located.cache.partial(file.key), file.size, identity=file.identity)
            present = spans.nbytes
        checksum = str(file.checksum) if file.checksum else None
        states.append(FileState(file.name, file.size, present, checksum))
    return tuple(states)


def prepare_cache(located: Located) -> None:
    """Check that there is room for what is missing, make the folders, publish the index.

    Writes nothing where there is nothing to download. Raises DiskFullError, StorageError.
    """
    cache = located.cache
    states = file_states(located, "disk")
    needed = sum(state.size - state.present for state in states)
    if cache is None or not (needed or located.index_file or any(file.in_blobs for file in located.files)):
        return
    free = cache.free_bytes()
    if needed > free:
        raise DiskFullError(str(cache.folder), needed=needed, free=free)
    cache.prepare()
    if located.identities:
        write_identities(cache, located.identities)
    if located.index_file is not None and located.commit is not None:
        name, data, etag = located.index_file
        located.index_path = cache.add_small(data, etag, located.commit, name)


def record(located: Located) -> None:
    """Write what the source does not have, and last of all what its revision resolved to."""
    cache = located.cache
    if cache is None or located.commit is None:
        return
    if located.records is not None:
        write_listing(cache.folder, located.commit, located.records)
    if located.ref is None and not located.absent:
        return
    with storage_errors(cache.folder):
        if not cache.snapshot(located.commit).is_dir():
            return
    if all(cache.known_absent(located.commit, name) for name in located.absent) and (
        located.ref is None or cache.commit_of(located.ref) == located.commit
    ):
        return  # nothing new to say: a cache that may only be read stays usable
    for name in located.absent:
        cache.remember_absent(located.commit, name)
    if located.ref is not None:
        cache.write_ref(located.ref, located.commit)
