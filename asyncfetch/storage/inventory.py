"""What is in a cache: its repositories and commits, what is on its way, and what nothing names. Blocking calls.

Sizes and times are those that huggingface_hub's `scan_cache_dir` tells of the same cache
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import SourceError, storage_errors
from .cache import RepoCache
from .checksums import checksum_of_etag
from .journal import journal_of
from .removal import Entry, entries_of, refs_of

__all__ = ["CachedCommit", "CachedRepository", "Leftover", "cached_repositories"]

_REPOSITORY = re.compile(r"(model|dataset|space|kernel)s--(.+)", re.DOTALL)
_PARTIAL = re.compile(r"(?!.*\.map\.incomplete)([0-9a-f]{40}|[0-9a-f]{64})\..*incomplete", re.DOTALL)


@dataclass(frozen=True, slots=True)
class CachedCommit:
    """One commit: `refs` name it, `nbytes` are those of its files, some of which other commits may have too."""

    commit: str
    refs: tuple[str, ...]
    files: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Leftover:
    """A partial: `nbytes` of it are here, as far as is known. `busy`: another process is writing it now."""

    path: Path
    nbytes: int
    busy: bool


@dataclass(frozen=True, slots=True)
class CachedRepository:
    """One repository. `accessed` and `modified` are seconds since 1970, 0 where nothing is here.

    `unnamed` are whole blobs that no commit has, with their bytes; `dangling` entries whose blob is gone.
    """

    cache: RepoCache
    kind: str
    repo_id: str
    commits: tuple[CachedCommit, ...]
    nbytes: int
    accessed: float
    modified: float
    partials: tuple[Leftover, ...]
    unnamed: dict[Path, int]
    dangling: tuple[Entry, ...]

    @property
    def name(self) -> str:
        """As it is named to be downloaded: "org/name", "datasets/org/name"."""
        return self.repo_id if self.kind == "model" else f"{self.kind}s/{self.repo_id}"

    @property
    def detached(self) -> tuple[str, ...]:
        """The commits that no ref names."""
        return tuple(one.commit for one in self.commits if not one.refs)


def cached_repositories(root: Path) -> list[CachedRepository]:
    """All repositories of a cache, by their names. Raises SourceError where there is none, StorageError."""
    with storage_errors(root):
        if not root.is_dir():
            raise SourceError(f"There is no cache in {root}.", hint="Name one with cache_dir= or HF_HUB_CACHE.")
        names = sorted(os.listdir(root))
    found = []
    for name in names:
        match = _REPOSITORY.fullmatch(name)
        if match is not None and (root / name).is_dir():
            found.append(_repository(RepoCache(root, match[2].replace("--", "/"), repo_type=match[1]), match[1]))
    return found


def _repository(cache: RepoCache, kind: str) -> CachedRepository:
    entries, refs = entries_of(cache), refs_of(cache)
    files: dict[str, list[os.stat_result]] = {}
    different: dict[str, os.stat_result] = {}
    dangling = []
    for entry in entries:
        try:
            status = os.stat(entry.path)
        except OSError:
            dangling.append(entry)
            continue
        files.setdefault(entry.commit, []).append(status)
        different[os.path.realpath(entry.path)] = status
    named = {entry.blob for entry in entries}
    commits = {entry.commit for entry in entries}
    return CachedRepository(
        cache,
        kind,
        cache.name.split("--", 1)[1].replace("--", "/"),
        tuple(_commit(cache, commit, refs, files.get(commit, [])) for commit in sorted(commits)),
        sum(status.st_size for status in different.values()),
        max((status.st_atime for status in different.values()), default=0.0),
        max((status.st_mtime for status in different.values()), default=0.0),
        tuple(_partials(cache)),
        {path: size for path, size in _blobs(cache) if path not in named},
        tuple(dangling),
    )


def _commit(cache: RepoCache, commit: str, refs: dict[Path, str], files: list[os.stat_result]) -> CachedCommit:
    named = sorted(path.relative_to(cache.folder / "refs").as_posix() for path, to in refs.items() if to == commit)
    sizes = {(status.st_dev, status.st_ino): status.st_size for status in files}
    return CachedCommit(commit, tuple(named), len(files), sum(sizes.values()))


def _blobs(cache: RepoCache) -> Iterator[tuple[Path, int]]:
    for entry in _scan(cache):
        if checksum_of_etag(entry.name) is not None:
            with suppress(OSError):  # removed meanwhile
                yield Path(entry.path), entry.stat(follow_symlinks=False).st_size


def _partials(cache: RepoCache) -> Iterator[Leftover]:
    for entry in _scan(cache):
        match = _PARTIAL.fullmatch(entry.name)
        if match is not None and entry.is_file(follow_symlinks=False):
            with suppress(OSError):
                path = Path(entry.path)
                yield Leftover(path, _held(path), _is_locked(path) or _is_locked(lock_path(cache, match[1])))


def _scan(cache: RepoCache) -> list[os.DirEntry[str]]:
    folder = cache.folder / "blobs"
    with storage_errors(folder):
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            return []


def lock_path(cache: RepoCache, key: str) -> Path:
    """Where huggingface_hub's lock of a blob is."""
    return cache.root / ".locks" / cache.name / f"{key}.lock"


def _held(path: Path) -> int:
    """How many bytes of a partial are here: what its journal lists, or what takes room on the disk."""
    try:
        spans = json.loads(journal_of(path).read_bytes())["spans"]
        return sum(int(stop) - int(start) for start, stop in spans)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        status = os.stat(path)
        return min(status.st_size, status.st_blocks * 512)


def _is_locked(path: Path) -> bool:
    """Whether another process has locked a file, as who writes a partial has. False where locks do not work."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
