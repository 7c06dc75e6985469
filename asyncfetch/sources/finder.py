"""Finding a checkpoint in a source: the order of the candidates, and index before shards.

The rules: a revision is resolved to a commit once, and index and shards come from that commit.
The index comes before any single file. Only a file that does not exist moves on to the next
candidate; a refusal, a time-out or a server error is an error. A shard that the index names and
the source lacks is an error too. Nothing is written here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from ..errors import (
    CheckpointNotFoundError,
    ChecksumMismatchError,
    CorruptError,
    EntryNotFoundError,
    InvalidHeaderError,
    OfflineError,
    ShardNotFoundError,
    SourceError,
    storage_errors,
)
from ..events import Warned
from ..format.index import Index, index_too_large, parse_index
from ..network.transport import Transport
from ..storage.cache import RepoCache
from ..storage.checksums import Checksum, verify_file, verify_small
from ..tasks import each, off_loop, plain_errors, without_collections
from .advice import look_again
from .candidates import is_index_name
from .late import known_shards, listing_at_once, saves_requests
from .located import FoundIndex, Listing, Located, Origin, SourceFile, path_in
from .request import LocalSource, Request, Source, names_in
from .selecting import selected_by

__all__ = ["Place", "State", "distrust", "file_on_disk", "files_on_disk", "find", "read_cached_index", "read_index"]


@dataclass(frozen=True, slots=True)
class State:
    """Under which commit files are recorded, and what it was made from if it is not the source's own."""

    commit: str | None
    identities: Mapping[str, str] = field(default_factory=dict)


class Place(Origin, Protocol):
    """One source, whatever its kind. It remembers nothing of what was found: that is told as values.

    `cache` is its part of the cache, None where it needs none. `ref` is the name under which the commit
    is to be recorded, None for none.
    """

    @property
    def cache(self) -> RepoCache | None: ...

    @property
    def ref(self) -> str | None: ...

    async def commits(self) -> Sequence[str | None]:
        """The commits in which to look, in this order. None: the one that the first answer names, or none.

        A commit is the last one unless something that is wanted of it is not in the cache. Raises
        OfflineError if there is none.
        """
        ...

    async def read(self, name: str, commit: str | None) -> FoundIndex:
        """An index, whole. Raises EntryNotFoundError; OfflineError if it is not cached."""
        ...

    async def look(self, name: str, commit: str | None) -> SourceFile:
        """What the source says of a shard. Raises as `read` does."""
        ...

    async def on_disk(self, names: Sequence[str], commit: str | None) -> Mapping[str, SourceFile]:
        """Those of some files for which `look` needs nothing but the disk, in one step for all; perhaps none."""
        ...

    async def has(self, name: str, commit: str | None, *, ask: bool) -> bool | None:
        """Whether there is such a file, None if that is not known. For advice only: no failure is raised.

        `ask` allows one request.
        """
        ...

    async def glance(self, commit: str | None) -> Sequence[str] | None:
        """The names of files, as far as one answer tells; None where nobody tells. For advice only: it never fails."""
        ...

    async def listing(self, commit: str | None) -> Listing | None:
        """All files of a commit; None if the source lists none.

        Without a commit: of the one that the source names now.
        """
        ...

    async def recall(self, files: Sequence[SourceFile], index: FoundIndex | None, commit: str | None) -> State:
        """Where these files of one checkpoint are recorded. Sets the paths of those that are found there.

        Their checksums are known by now, also the caller's.
        """
        ...


class Ahead(Protocol):
    """What was asked for ahead, beside the index. A place is asked for what it does not know."""

    async def file(self, name: str, commit: str | None) -> SourceFile | None:
        """What the source says of a file of a commit, any if that is None; None if that is not known.

        Raises EntryNotFoundError if it is known that the commit does not have it.
        """
        ...

    async def has(self, name: str, commit: str | None) -> bool | None:
        """Whether the commit has a file, None if that is not known."""
        ...

    async def listing(self, index: FoundIndex) -> Listing | None:
        """All files of the commit of an index; None if that is not known."""
        ...


async def find(
    place: Place, request: Request, transport: Transport | None = None, ahead: Ahead | None = None
) -> Located:
    """The checkpoint, by the rules above. Raises the NotFoundError, CorruptError, NetworkError, OfflineError kinds.

    With a transport, and if headers may be late, one listing tells of many shards, instead of a look at each.
    """
    names = names_in(request.source, request.variant)
    missing: OfflineError | None = None
    for commit in await place.commits():
        try:
            found, absent = await first_candidate(place, request, names, commit, ahead)
            names = [found.name]  # a shard that is missing here is no reason to fall back there
            return await _located(place, request, found, absent, transport, ahead)
        except OfflineError as error:
            missing = missing or error
    raise missing or OfflineError(str(request.source), "a checkpoint")


async def first_candidate(
    place: Place, request: Request, names: Sequence[str], commit: str | None, ahead: Ahead | None = None
) -> tuple[FoundIndex | SourceFile, list[str]]:
    """The first candidate that is there, and the names that its commit is known not to have."""
    missing: list[EntryNotFoundError] = []
    for name in names:
        found: FoundIndex | SourceFile
        try:
            if is_index_name(name):
                found = await place.read(name, commit)
            else:
                told = None if ahead is None else await ahead.file(name, commit)
                found = told or await place.look(name, commit)
        except EntryNotFoundError as error:
            commit = commit or error.commit
            missing.append(error)
        except OfflineError:
            continue
        else:
            return found, _absent_at(found.commit, missing)
    if request.settings.offline and place.cache is not None:
        raise OfflineError(str(request.source), "a checkpoint")
    nothing = CheckpointNotFoundError(str(request.source), names)
    there = await place.glance(commit)
    raise nothing if there is None else look_again(nothing, there, request)


async def _located(
    place: Place,
    request: Request,
    found: FoundIndex | SourceFile,
    absent: list[str],
    transport: Transport | None,
    ahead: Ahead | None,
) -> Located:
    """The checkpoint of which `found` is the index or the only file."""
    folder = os.path.dirname(found.name)
    listed = index = selected = listing = None
    scales: frozenset[str] = frozenset()
    if isinstance(found, FoundIndex):
        listed, index = found, await parsed(found, request)
        selected, scales = selected_by(request, index, index.metadata)
        paths = [path_in(folder, shard) for shard in selected.shards]
        known = await place.on_disk(paths, found.commit)
        if transport is not None and saves_requests(place, request, len(paths) - len(known), found.commit):
            listing = None if ahead is None else await ahead.listing(found)
            if listing is None:
                listing = await listing_at_once(place, transport, found.commit, request.policy.connect_timeout)
        if listing is not None:
            known = await off_loop(partial(known_shards, listing, paths))
        files = await _look_at_shards(place, request, selected, found.commit, known)
    else:
        files = [found]
    _apply_checksums(request.checksums or {}, files, folder, index)
    state = await place.recall(files, listed, found.commit)
    located = Located(
        source=str(request.source),
        commit=state.commit,
        ref=place.ref,
        folder=folder,
        index=index,
        selected=selected,
        files=files,
        cache=place.cache,
        origin=place,
        index_file=(listed.name, listed.data, listed.etag) if listed and listed.path is None else None,
        index_path=listed.path if listed else None,
        identities=state.identities,
        records=listing.records if listing else None,
        scales=scales,
        listing=listing,
        absent=absent,
        warnings=[*_shadowed(request.source), *_unverifiable(files)],
    )
    await _look_for_single_file(place, request, located, ahead)
    return located


def _absent_at(commit: str | None, missing: Iterable[EntryNotFoundError]) -> list[str]:
    """The names that this commit lacks. What was asked of a branch that may have moved since is no fact of it."""
    return [error.file for error in missing if error.commit == commit]


async def parsed(found: FoundIndex, request: Request) -> Index:
    name, checksums, limit = found.name, request.checksums or {}, request.policy.max_index_bytes
    expected = checksums.get(name) or checksums.get(os.path.basename(name))
    if expected is not None:
        verify_small(name, found.data, expected)

    def parse() -> Index:
        with without_collections():
            return parse_index(found.data, file=name, max_bytes=limit)

    return await off_loop(parse, slow=True)


async def _look_at_shards(
    place: Place, request: Request, selected: Index, commit: str | None, known: Mapping[str, SourceFile]
) -> list[SourceFile]:
    """The shards in their order; those that are not `known` by their paths are looked at."""
    folder = os.path.dirname(selected.file)
    paths = [path_in(folder, shard) for shard in selected.shards]
    files = dict(known)

    async def look(path: str) -> None:
        try:
            files[path] = await place.look(path, commit)
        except EntryNotFoundError as error:
            raise ShardNotFoundError(path, str(request.source), selected.file) from error

    with plain_errors():
        await each([path for path in paths if path not in files], look, request.policy.connections)
    return [files[path] for path in paths]


def _apply_checksums(
    checksums: Mapping[str, Checksum], files: Sequence[SourceFile], folder: str, index: Index | None
) -> None:
    """Give the files the caller's checksums. Raises SourceError for one of no file, CorruptError for another one."""
    by_name = {file.name: file for file in files}
    for name, checksum in checksums.items():
        if index is not None and name in (index.file, os.path.basename(index.file)):
            continue  # held against it when it was read
        file = by_name.get(name) or by_name.get(path_in(folder, name))
        if file is None:
            raise SourceError(f"checksums= names {name!r}, which is no file of this checkpoint.")
        if file.checksum is not None and file.checksum.algorithm == checksum.algorithm and file.checksum != checksum:
            raise CorruptError(f"{name}: the source says {file.checksum}, checksums= says {checksum}.", file=name)
        file.checksum = checksum


def _shadowed(source: Source) -> list[str]:
    """A warning of a folder that was used, where a repository could have been meant."""
    if not (isinstance(source, LocalSource) and source.shadows):
        return []
    return [f"{source.shadows} is a folder here, which was used. {source.both_readings()}"]


def _unverifiable(files: Iterable[SourceFile]) -> list[str]:
    """A warning of each file that a server serves and for which nobody gives a hash."""
    return [
        f"{file.name}: no checksum is known, so only its size and header are checked"
        for file in files
        if file.checksum is None and file.target is not None
    ]


async def _look_for_single_file(place: Place, request: Request, located: Located, ahead: Ahead | None) -> None:
    """A single file beside an index is another checkpoint, which other loaders prefer: say so."""
    variant = f".{request.variant}" if request.variant else ""
    single = located.path_of(f"model{variant}.safetensors")
    if located.index is None or any(file.name == single for file in located.files):
        return
    if located.listing is not None:
        there: bool | None = single in located.listing.files
    else:
        there = None if ahead is None else await ahead.has(single, located.commit)
        if there is None:
            there = await place.has(single, located.commit, ask=any(file.path is None for file in located.files))
    if there:
        both = f"{located.index.file} and also {single}, which some loaders prefer"
        located.warnings.append(f"{located.source} has {both}: the index was used")
    elif there is not None:
        located.absent.append(single)


def file_on_disk(name: str, path: Path, commit: str | None = None, cache: RepoCache | None = None) -> SourceFile:
    """A file that is here, with the hash that its blob's name promises."""
    with storage_errors(path):
        checksum = cache.checksum_of(path) if cache else None
        return SourceFile(name, path.stat().st_size, checksum, commit=commit, path=path)


def files_on_disk(cache: RepoCache, names: Iterable[str], commit: str) -> dict[str, SourceFile]:
    """Those of some files that the cache has. Blocks."""
    found = ((name, cache.find(commit, name)) for name in names)
    return {name: file_on_disk(name, path, commit, cache) for name, path in found if path is not None}


def read_index(name: str, path: Path, limit: int) -> bytes:
    """The bytes of an index on disk. Raises InvalidIndexError if they are more than `limit`."""
    with storage_errors(path), open(path, "rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise index_too_large(name, limit)
    return data


def read_cached_index(cache: RepoCache, name: str, path: Path, limit: int) -> tuple[bytes, CorruptError | None]:
    """A cached index, and what is wrong with it: not its hash, or no index where nothing tells its hash.

    It is small, so that is always looked at. Raises InvalidIndexError if it is more than `limit`.
    """
    checksum = cache.checksum_of(path)
    try:
        if checksum is not None:
            verify_file(path, checksum, file=name)
            return read_index(name, path, limit), None
        data = read_index(name, path, limit)
    except ChecksumMismatchError as error:
        return b"", error
    try:
        parse_index(data, file=name, max_bytes=limit)
    except CorruptError as error:
        return data, error
    return data, None


async def distrust(
    error: CorruptError, file: str, path: Path, cache: RepoCache | None, transport: Transport, *, offline: bool
) -> None:
    """`error` is what is wrong with a file on disk. One of the cache is used no more, and that is told.

    Where nobody can be asked for a better one `error` is raised, and says what to do.
    """
    if cache is None:
        error.hint = error.hint if isinstance(error, InvalidHeaderError) and error.hint else _GET_IT_AGAIN.format(path)
        raise error
    if offline:
        error.hint = f"{path} is damaged, or another file. Pass offline=False once, and it is fetched again."
        raise error
    with storage_errors(path):
        await off_loop(lambda: cache.wrong.add(path))
    transport.notify(Warned(f"{error.message} What the cache has of it is not used: {path}", file))


_GET_IT_AGAIN = "{} is damaged, or another file: copy or download it again."
