"""What a source turned out to be: its commit, its index, its files with sizes, hashes and headers."""

from __future__ import annotations

import mmap
from collections.abc import Awaitable, Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..errors import SourceError
from ..format.header import Header
from ..format.index import Index, aliases_in
from ..network.ranges import Target, opaque
from ..storage.boot import boot_id
from ..storage.cache import RepoCache
from ..storage.checksums import Checksum
from ..storage.listings import Records

__all__ = [
    "PREFIX_LIMIT",
    "FoundIndex",
    "Landed",
    "Listing",
    "Located",
    "Origin",
    "SourceFile",
    "aliases_of",
    "path_in",
    "renewal",
]

PREFIX_LIMIT = 64 * 1024  # bytes of a shard read with its metadata: most headers fit


class Origin(Protocol):
    """Knows where the bytes of a file are served, also after a signed link has expired."""

    async def target(self, file: SourceFile, *, renew: bool) -> Target:
        """Where to read `file`. `renew` asks the source again; ChangedError if it is another file now."""
        ...


@dataclass(eq=False, slots=True)
class SourceFile:
    """One file of a located checkpoint.

    `name` is its path in the source, `size` bytes, `commit` that at which it was found, where the
    source has commits. `key` names its partial and its lock, `blob` its blob (empty: its sha256,
    known once it is here); `identity` is what a resumed partial must still be.
    `path` is set where the whole file is on disk already, `in_blobs` where only its link is
    missing; `vouched` is the hash that a record of the folder which it is in promises, if nobody touched it
    since. `prefix` are its first bytes, read with its metadata, landed later so that no byte is
    fetched twice; `etag` is the strong ETag that they came with, where `target` has no validator.
    `sized` is false while nothing has told the size; then `size` is 0. `splittable` is false where the
    server is known to answer a range with the whole file. `late`: what is known of it is what the Hub tells; its
    header comes with its first bytes.
    """

    name: str
    size: int
    checksum: Checksum | None
    commit: str | None = None
    key: str = ""
    blob: str = ""
    identity: str = ""
    resumable: bool = True
    target: Target | None = None
    prefix: bytes = b""
    sized: bool = True
    etag: str | None = None
    splittable: bool = True
    path: Path | None = None
    in_blobs: bool = False
    vouched: Checksum | None = None
    raw_header: bytes = b""
    header: Header | None = None
    late: bool = False

    @property
    def algorithm(self) -> str:
        return self.checksum.algorithm if self.checksum else "sha256"

    @property
    def version(self) -> tuple[str, str]:
        """What the answer that brought its first bytes told of their version, as `network.ranges:version_of`."""
        if self.target is not None and self.target.version != ("", ""):
            return self.target.version
        return opaque((self.target.validator if self.target else None) or self.etag or ""), ""

    @property
    def journal_identity(self) -> str:
        """What the journal of its partial is bound to.

        Only a hash finds out that pages which a journal lists never reached the disk. Where none is known, a
        journal counts no longer than until the machine is started again: it may have lost its power.
        """
        return self.identity if self.checksum is not None else f"{self.identity}\n{boot_id()}"

    @property
    def known_header(self) -> Header:
        """Its header. Raises SourceError if it was not read."""
        if self.header is None:
            raise SourceError(f"The header of {self.name} was not read.")
        return self.header


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a source, by their paths, those that are here with where they are.

    Which are here may be looked at when one is taken: that is for a thread. `records` are what a server said of
    them, to be kept with the download.
    """

    files: Mapping[str, SourceFile]
    records: Records | None = None


@dataclass(frozen=True, slots=True)
class FoundIndex:
    """An index that was found: its path in the source, its bytes, and the commit at which it was found.

    `path` is where it is on disk. Where it came from a server, `etag` is to be the name of its blob.
    """

    name: str
    data: bytes = field(repr=False)
    commit: str | None = None
    path: Path | None = None
    etag: str = ""


@dataclass(eq=False, slots=True)
class Located:
    """A checkpoint that was found. `files` are its distinct shards, in the index's order.

    `ref` is the branch or tag to record once all is there. `absent` are names that the source is
    known not to have. `folder` is the index's folder within the source: shard names count from it.
    `index` is None for a single file. `selected` is the index, or else the file's own tensors,
    narrowed to what is wanted; None where no header was read. `identities` are what `commit` was made
    from and is to be recorded with, where the source has no commits of its own; `records` are the commit's
    listing, to be recorded too. `scales` are selected only because they may scale what is wanted.
    """

    source: str
    commit: str | None
    ref: str | None
    folder: str
    index: Index | None
    selected: Index | None
    files: list[SourceFile]
    cache: RepoCache | None = None
    origin: Origin | None = None
    index_file: tuple[str, bytes, str] | None = None  # name, bytes, etag: to be published
    index_path: Path | None = None
    identities: Mapping[str, str] = field(default_factory=dict)
    records: Records | None = None
    scales: frozenset[str] = frozenset()
    listing: Listing | None = None  # by which its files are known
    absent: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def wanted(self) -> Index:
        """The selected index. Raises SourceError if no header was read."""
        if self.selected is None:
            raise SourceError(f"The headers of {self.source} were not read.")
        return self.selected

    def path_of(self, shard: str) -> str:
        """The path in the source of a shard that the index names."""
        return path_in(self.folder, shard)


def path_in(folder: str, name: str) -> str:
    """The path in the source of what is called `name` in one of its folders ("": the source itself)."""
    return f"{folder}/{name}" if folder else name


def renewal(origin: Origin | None, file: SourceFile) -> Callable[[], Awaitable[Target]] | None:
    """What asks `origin` for a new link to `file`."""
    return None if origin is None else lambda: origin.target(file, renew=True)


def aliases_of(located: Located, names: Container[str]) -> dict[str, str]:
    """Names that writers dropped because they were tied: {dropped name: name that was kept}."""
    headers = [file.header.metadata for file in located.files if file.header is not None]
    return aliases_in([located.index.metadata if located.index else {}, *headers], names)


@dataclass(frozen=True, slots=True)
class Landed:
    """Where a whole, verified file is: on disk, or in memory with its data aligned.

    `pages` is a private map of the file on disk, for who wants its tensors: it lasts when the file is removed.
    """

    path: Path | None = None
    buffer: memoryview | None = None
    pages: mmap.mmap | None = None
