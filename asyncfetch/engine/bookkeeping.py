"""What a transfer does in the cache around its bytes: how much is there, the index, the lock, the ref."""

from __future__ import annotations

from contextlib import nullcontext

from ..errors import DiskFullError
from ..events import FileState
from ..sources.located import Located
from ..storage.files import held_bytes
from ..storage.identities import write_identities
from ..storage.journal import spans_on_disk

__all__ = ["file_states", "prepare_cache", "record", "room_needed"]


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


def room_needed(located: Located) -> dict[str, int]:
    """How many more bytes of the disk each file takes that is missing. Reads journals: call it in a thread.

    What an earlier run has written is written over where it counts no more, as without a hash after a restart.
    """
    cache, needed = located.cache, dict[str, int]()
    for file, state in zip(located.files, file_states(located, "disk"), strict=True):
        if file.path is None:
            held = held_bytes(cache.partial(file.key)) if cache is not None else 0
            needed[file.name] = file.size - max(state.present, min(held, file.size))
    return needed


def prepare_cache(located: Located, *, named: bool) -> None:
    """Check that there is room for what is missing, make the folders, publish the index.

    Writes nothing where there is nothing to download. What cannot be written is an error only where it is needed:
    the folders where a shard is missing, the index where it is wanted by its name (`named`).
    Raises DiskFullError, StorageError.
    """
    cache = located.cache
    missing = any(file.path is None and file.size for file in located.files)
    if cache is None or not (missing or located.index_file or any(file.in_blobs for file in located.files)):
        return
    needed = sum(room_needed(located).values())
    free = cache.free_bytes()
    if free is not None and needed > free and cache.wrong.paths:
        cache.drop_wrong()
        free = cache.free_bytes()
    if free is not None and needed > free:
        raise DiskFullError(str(cache.folder), needed=needed, free=free)
    with nullcontext() if missing else cache.left_out("folders"):
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
