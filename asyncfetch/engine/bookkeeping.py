"""What a transfer does in the cache around its bytes: how much is there, the index, the lock, the ref."""

from __future__ import annotations

from contextlib import nullcontext

from ..errors import DiskFullError
from ..events import FileState
from ..sources.located import Located
from ..storage.identities import write_identities
from ..storage.journal import spans_on_disk

__all__ = ["file_states", "prepare_cache", "record"]


def file_states(located: Located, storage: str) -> tuple[FileState, ...]:
    """How much of each file needs no transfer. Reads journals: call it in a thread."""
    states = []
    for file in located.files:
        present = file.size if file.path is not None else 0
        if file.path is None and storage == "disk" and located.cache is not None and file.resumable:
            spans = spans_on_disk(located.cache.partial(file.key), file.size, identity=file.journal_identity)
            present = spans.nbytes
        checksum = str(file.checksum) if file.checksum else None
        states.append(FileState(file.name, file.size, present, checksum))
    return tuple(states)


def prepare_cache(located: Located, *, named: bool) -> None:
    """Check that there is room for what is missing, make the folders, publish the index.

    Writes nothing where there is nothing to download. What cannot be written is an error only where it is needed:
    the folders where a shard is missing, the index where it is wanted by its name (`named`).
    Raises DiskFullError, StorageError.
    """
    cache = located.cache
    states = file_states(located, "disk")
    needed = sum(state.size - state.present for state in states)
    if cache is None or not (needed or located.index_file or any(file.in_blobs for file in located.files)):
        return
    free = cache.free_bytes()
    if free is not None and needed > free and cache.wrong.paths:
        cache.drop_wrong()
        free = cache.free_bytes()
    if free is not None and needed > free:
        raise DiskFullError(str(cache.folder), needed=needed, free=free)
    with nullcontext() if needed else cache.left_out("folders"):
        cache.prepare()
    if located.identities:
        write_identities(cache, located.identities)
    if located.index_file is not None and located.commit is not None:
        name, data, etag = located.index_file
        with nullcontext() if named else cache.left_out("the index"):
            located.index_path = cache.add_small(data, etag, located.commit, name)


def record(located: Located) -> None:
    """Write what the source does not have, and last of all what its revision resolved to, where that can be.

    Not if a name in the snapshot could not be made, or was removed meanwhile: a ref promises that all is there.
    """
    cache = located.cache
    if cache is None or located.commit is None:
        return
    if located.records is not None:
        cache.keep_listing(located.commit, located.records)
    if located.ref is None and not located.absent:
        return
    names = [file.name for file in located.files] + ([located.index_file[0]] if located.index_file else [])
    with cache.left_out("refs"):
        if not all(cache.find(located.commit, name) for name in names):
            return
    if all(cache.known_absent(located.commit, name) for name in located.absent) and (
        located.ref is None or cache.commit_of(located.ref) == located.commit
    ):
        return  # nothing new to say: a cache that may only be read stays usable
    for name in located.absent:
        cache.remember_absent(located.commit, name)
    if located.ref is not None:
        cache.write_ref(located.ref, located.commit)
