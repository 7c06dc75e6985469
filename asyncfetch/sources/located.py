"""What a source turned out to be: its commit, its index, its files with sizes, hashes and headers."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from anyio import to_thread

from ..engine.schedule import Checksum, Span
from ..errors import EntryNotFoundError, MissingTensorError, SourceError
from ..format.header import PREFIX_BYTES, Header, header_length, parse_header
from ..format.index import Index
from ..network.ranges import Target, read_span
from ..network.transport import OnRetry, Transport
from ..storage.cache import RepoCache, storage_errors

__all__ = ["PREFIX_LIMIT", "Located", "Origin", "SourceFile", "check_index", "check_tensors", "read_header", "renewal"]

PREFIX_LIMIT = 64 * 1024  # bytes of a shard read with its metadata: most headers fit


class Origin(Protocol):
    """Knows where the bytes of a file are served, also after a signed link has expired."""

    async def target(self, file: SourceFile, *, renew: bool, on_retry: OnRetry | None = None) -> Target:
        """Where to read `file`. `renew` asks the source again; ChangedError if it is another file now."""
        ...


@dataclass(eq=False, slots=True)
class SourceFile:
    """One file of a located checkpoint.

    `name` is its path in the source, `size` bytes. `key` names its partial and its lock, `blob`
    its blob (empty: its sha256, known once it is here); `identity` is what a resumed partial must
    still be.
    `path` is set where the whole file is on disk already, `in_blobs` where only its link is
    missing. `prefix` are its first bytes, read with its metadata, landed later so that no byte is
    fetched twice; `etag` is the strong ETag that they came with, where `target` has no validator.
    `splittable` is false where the server is known to answer a range with the whole file.
    """

    name: str
    size: int
    checksum: Checksum | None
    key: str = ""
    blob: str = ""
    identity: str = ""
    resumable: bool = True
    target: Target | None = None
    prefix: bytes = b""
    etag: str | None = None
    splittable: bool = True
    path: Path | None = None
    in_blobs: bool = False
    raw_header: bytes = b""
    header: Header | None = None

    @property
    def algorithm(self) -> str:
        return self.checksum.algorithm if self.checksum else "sha256"

    @property
    def known_header(self) -> Header:
        """Its header. Raises SourceError if it was not read."""
        if self.header is None:
            raise SourceError(f"The header of {self.name} was not read.")
        return self.header


@dataclass(eq=False, slots=True)
class Located:
    """A checkpoint that was found. `files` are its distinct shards, in the index's order.

    `ref` is the branch or tag to record once all is there. `absent` are names that the source is
    known not to have. `folder` is the index's folder within the source: shard names count from it.
    `index` is None for a single file. `selected` is the index, or else the file's own tensors,
    narrowed to what is wanted; None where no header was read.
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
        return f"{self.folder}/{shard}" if self.folder else shard


def renewal(origin: Origin | None, file: SourceFile) -> Callable[[], Awaitable[Target]] | None:
    """What asks `origin` for a new link to `file`."""
    return None if origin is None else lambda: origin.target(file, renew=True)


async def read_header(
    file: SourceFile, transport: Transport | None, on_retry: OnRetry | None, origin: Origin | None = None
) -> None:
    """Set `file.header` and `file.raw_header`: from disk, from the prefix, or by one more range."""
    if file.path is not None or transport is None:
        file.raw_header = await to_thread.run_sync(_local_header, file)
    else:
        length = header_length(file.prefix, file=file.name, file_size=file.size)
        data_start = PREFIX_BYTES + length
        if data_start > len(file.prefix) and file.target is not None:
            rest = Span(len(file.prefix), data_start)
            file.prefix += await read_span(
                transport,
                file.target,
                rest,
                file=file.name,
                size=file.size,
                on_retry=on_retry,
                renew=renewal(origin, file),
            )
        file.raw_header = file.prefix[:data_start]
    raw = memoryview(file.raw_header)[PREFIX_BYTES:]
    file.header = await to_thread.run_sync(lambda: parse_header(raw, file=file.name, file_size=file.size))


def _local_header(file: SourceFile) -> bytes:
    path = file.path
    if path is None:
        raise EntryNotFoundError(file.name, "the cache")
    with storage_errors(path), open(path, "rb") as stream:
        file.size = os.fstat(stream.fileno()).st_size
        prefix = stream.read(4096)
        length = header_length(prefix, file=file.name, file_size=file.size)
        return (prefix + stream.read(max(PREFIX_BYTES + length - len(prefix), 0)))[: PREFIX_BYTES + length]


def check_tensors(names: Iterable[str], header: Header, *, shard: str, index_file: str) -> None:
    """Raises MissingTensorError if a shard lacks one of `names`."""
    missing = [name for name in names if name not in header.tensors]
    if missing:
        raise MissingTensorError(shard, index_file, missing)


def check_index(index: Index, headers: Mapping[str, Header]) -> list[str]:
    """Hold the index against the headers of its shards: tensors present and not listed, as notes.

    `headers` maps shard names, as in the index, to headers. The index is an allow-list: what it
    does not list is skipped. Raises MissingTensorError for what it lists and a shard lacks.
    """
    notes = []
    for shard, header in headers.items():
        listed = index.tensors_of(shard)
        check_tensors(listed, header, shard=shard, index_file=index.file)
        extra = len(header.tensors) - len(listed)
        if extra:
            wanted = set(listed)
            example = next(name for name in header.tensors if name not in wanted)
            notes.append(f"{shard} has {extra} tensor(s) that {index.file} does not list, such as {example!r}: skipped")
    return notes
