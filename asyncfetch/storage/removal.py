"""What goes when commits, files or blobs leave a repository's cache, and removing it. Blocking calls: run in a thread.

Names go before what they name: refs, then the entries of snapshots, then blobs. So a kill in between leaves blobs that
nothing names, and never a name of nothing. A blob goes under huggingface_hub's lock, and only if nothing names it by
then: downloads that run meanwhile lose nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from ..errors import StorageError, storage_errors
from .cache import RepoCache, is_commit
from .checksums import checksum_of_etag
from .files import sync_folder
from .journal import forget_journal, journal_of
from .locks import unlock

__all__ = [
    "Entry",
    "Removal",
    "Removed",
    "commits_of",
    "drop_if_empty",
    "entries_of",
    "plan_removal",
    "refs_of",
    "remove",
    "remove_partial",
]

# What is kept of a commit beside its snapshot.
_RECORDS = (".no_exist/{}", "trees/{}.json", "listings/{}.json", "identities/{}.json")
_AT_ONCE = 64  # blobs that are locked together, after one look at what is named


class Entry(NamedTuple):
    """A file of a snapshot. `blob` is the blob that its link names; None for a file that lies there itself."""

    commit: str
    name: str
    path: Path
    blob: Path | None


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes, in this order. `blobs` maps the path of each to its size in bytes.

    `commits` are those of which nothing is left. `nbytes` is what is freed, of blobs and of files in snapshots.
    """

    cache: RepoCache
    commits: tuple[str, ...]
    refs: tuple[Path, ...]
    entries: tuple[Entry, ...]
    blobs: dict[Path, int]
    nbytes: int


@dataclass(slots=True)
class Removed:
    """What went: `nbytes` are freed. `busy` are blobs that stay because another process has or names them."""

    nbytes: int = 0
    busy: list[Path] = field(default_factory=list)


def entries_of(cache: RepoCache) -> list[Entry]:
    """Every file of every snapshot; links that name no blob of this repository count as files. Raises StorageError."""
    snapshots, blobs = cache.folder / "snapshots", os.fspath(cache.folder / "blobs")
    found = []
    for commit in _names_in(snapshots):
        if not is_commit(commit):
            continue
        folder = os.fspath(snapshots / commit)
        for path in _files_below(folder):
            blob = None
            if os.path.islink(path):
                with suppress(OSError):  # removed meanwhile
                    target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
                    blob = Path(target) if os.path.dirname(target) == blobs else None
            name = os.path.relpath(path, folder).replace(os.sep, "/")
            found.append(Entry(commit, name, Path(path), blob))
    return found


def refs_of(cache: RepoCache) -> dict[Path, str]:
    """The file of each ref, with what it names. Raises StorageError."""
    found = {}
    for path in map(Path, _files_below(os.fspath(cache.folder / "refs"))):
        with suppress(OSError):
            found[path] = path.read_bytes()[:64].decode("ascii", "replace").strip()
    return found


def commits_of(cache: RepoCache) -> set[str]:
    """Every commit of which something is kept, be it a ref or a record alone. Raises StorageError."""
    found = {commit for commit in refs_of(cache).values() if is_commit(commit)}
    for kind in ("snapshots", *(record.partition("/")[0] for record in _RECORDS)):
        found |= {name.removesuffix(".json") for name in _names_in(cache.folder / kind)}
    return {commit for commit in found if is_commit(commit)}


def plan_removal(
    cache: RepoCache,
    *,
    commits: Collection[str] = (),
    files: Collection[tuple[str, str]] = (),
    blobs: Collection[str] = (),
) -> Removal:
    """What goes with these commits, with these `files` (each a commit and a name), and with these `blobs` (etags).

    A blob goes when no entry that stays names it; one that is given goes with all entries that name it. A commit of
    which nothing is left goes with its refs and its records, because huggingface_hub takes a ref to no snapshot for
    damage. Raises StorageError.
    """
    wanted, given = set(files), {cache.blob(etag) for etag in blobs}
    entries = entries_of(cache)
    leaving = [
        entry
        for entry in entries
        if entry.commit in commits or (entry.commit, entry.name) in wanted or entry.blob in given
    ]
    paths = {entry.path for entry in leaving}
    staying = [entry for entry in entries if entry.path not in paths]
    named = {entry.blob for entry in staying}
    empty = ({entry.commit for entry in leaving} | set(commits)) - {entry.commit for entry in staying}
    unnamed = given | {entry.blob for entry in leaving if entry.blob is not None and entry.blob not in named}
    sizes = {blob: size for blob in sorted(unnamed) if (size := _size(blob)) is not None}
    return Removal(
        cache,
        tuple(sorted(empty)),
        tuple(sorted(path for path, commit in refs_of(cache).items() if commit in empty)),
        tuple(leaving),
        sizes,
        sum(sizes.values()) + sum(_size(entry.path) or 0 for entry in leaving if entry.blob is None),
    )


def remove(removal: Removal, check: Callable[[], None] = lambda: None) -> Removed:
    """Remove what was planned, as far as nobody uses it by now; `check` runs now and then and may raise.

    Raises StorageError.
    """
    cache, removed = removal.cache, Removed()
    for ref in removal.refs:
        with storage_errors(ref, writing="removal"), suppress(FileNotFoundError):
            if ref.read_bytes().decode("ascii", "replace").strip() in removal.commits:
                ref.unlink()
    for entry in removal.entries:
        check()
        size = 0 if entry.blob is not None else _size(entry.path) or 0
        with storage_errors(entry.path, writing="removal"), suppress(FileNotFoundError):
            entry.path.unlink()
            removed.nbytes += size
    _sync({path.parent for path in (*removal.refs, *(entry.path for entry in removal.entries))})
    blobs = list(removal.blobs)
    for start in range(0, len(blobs), _AT_ONCE):
        check()
        _remove_blobs(cache, blobs[start : start + _AT_ONCE], removed)
    _forget(removal)
    return removed


def drop_if_empty(cache: RepoCache) -> None:
    """Remove the folders of a repository of which no file is left: huggingface_hub would list it all the same.

    Where one is left, all stay: it takes a repository without snapshots for damage.
    """
    if not _files_below(os.fspath(cache.folder)):
        _drop_empty(cache.folder)


def _remove_blobs(cache: RepoCache, blobs: list[Path], removed: Removed) -> None:
    with _locked(cache, blobs) as ours:
        named = {entry.blob for entry in entries_of(cache)}
        for blob in blobs:
            if blob not in ours or blob in named:
                removed.busy.append(blob)
                continue
            size = _size(blob) or 0
            with storage_errors(blob, writing="removal"), suppress(FileNotFoundError):
                blob.unlink()
                removed.nbytes += size


@contextmanager
def _locked(cache: RepoCache, blobs: list[Path]) -> Iterator[set[Path]]:
    """The blobs that no other process has locked, locked here; where locks do not work, all."""
    locks: dict[Path, FileLock | None] = {}
    try:
        for blob in blobs:
            lock = cache.lock(blob.name)
            try:
                if lock is not None:
                    lock.acquire(timeout=0)
            except Timeout:
                continue
            except (NotImplementedError, OSError) as error:
                cache.left_out.say("locks of files", error)
                lock = None
            locks[blob] = lock
        yield set(locks)
    finally:
        for lock in locks.values():
            unlock(lock)


def _forget(removal: Removal) -> None:
    """Remove what is kept of commits that are gone, and folders that are empty by now."""
    cache = removal.cache
    for commit in removal.commits:
        for record in _RECORDS:
            path = cache.folder / record.format(commit)
            for file in _files_below(os.fspath(path)) if path.is_dir() else [os.fspath(path)]:
                with storage_errors(file, writing="removal"), suppress(FileNotFoundError):
                    os.unlink(file)
            _drop_empty(path)
        _drop_empty(cache.snapshot(commit))
    for entry in removal.entries:
        folder, snapshot = entry.path.parent, cache.snapshot(entry.commit)
        while folder != snapshot and _removed_folder(folder):
            folder = folder.parent
    for ref in removal.refs:
        folder = ref.parent
        while folder != cache.folder / "refs" and _removed_folder(folder):
            folder = folder.parent


def _drop_empty(folder: Path) -> None:
    """Remove a folder and those in it, as far as they hold no file."""
    for path, _, _ in os.walk(folder, topdown=False):
        _removed_folder(Path(path))


def _removed_folder(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # something is in it, by now or of somebody else's
        return False
    return True


def _sync(folders: Iterable[Path]) -> None:
    """Let what was removed be gone after a power cut too, before what it named goes."""
    for folder in folders:
        with storage_errors(folder), suppress(FileNotFoundError):
            sync_folder(folder)


def _names_in(folder: Path) -> list[str]:
    with storage_errors(folder):
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []


def _files_below(folder: str) -> list[str]:
    """All that is below a folder but folders; links are not followed."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise StorageError(str(error.filename), error.strerror or "it cannot be read") from error

    found = []
    for path, folders, files in os.walk(folder, onerror=refuse):
        linked = [name for name in folders if os.path.islink(os.path.join(path, name))]
        found += [os.path.join(path, name) for name in (*files, *linked)]
    return found


def _size(path: Path) -> int | None:
    """Bytes that go with a name; None if there is none. A link is not followed: what it names elsewhere stays."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_size


def remove_partial(cache: RepoCache, path: Path) -> int | None:
    """Remove a partial and its journal, if nobody writes it. Returns the bytes freed on the disk, None if it is busy.

    Who writes one has locked it, or, by other tools, holds huggingface_hub's lock of its blob.
    """
    key = path.name.partition(".")[0]
    blobs = [cache.blob(key)] if checksum_of_etag(key) is not None else []  # else it is of a tool without such locks
    with storage_errors(path, writing="removal"), _locked(cache, blobs) as ours:
        if len(ours) < len(blobs):
            return None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return 0
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            except OSError:  # there are no locks here
                pass
            freed = os.fstat(descriptor).st_blocks * 512
            forget_journal(journal_of(path))
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
    return freed
