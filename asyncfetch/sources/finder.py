"""Finding a checkpoint in a source: the order of the candidates, and index before shards.

The rules: a revision is resolved to a commit once, and index and shards come from that commit.
The index comes before any single file. Only a file that does not exist moves on to the next
candidate; a refusal, a time-out or a server error is an error. A shard that the index names and
the source lacks is an error too. Nothing is written here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from anyio import to_thread

from ..errors import (
    CheckpointNotFoundError,
    EntryNotFoundError,
    OfflineError,
    ShardNotFoundError,
    storage_errors,
)
from ..format.index import Index, index_too_large, parse_index, select_tensors
from ..network.body import Body
from ..network.ranges import Target, read_span, strong_etag
from ..network.transport import Transport
from ..spans import Span
from ..storage.cache import RepoCache
from ..storage.checksums import verify_small
from ..tasks import each
from .located import PREFIX_LIMIT, Located, Origin, SourceFile, renewal
from .request import LocalSource, Request, Source, candidates, is_index_name

__all__ = ["Finder"]

T = TypeVar("T")


class Finder:
    """What the kinds of source share. A subclass says how to read an index and look at a file."""

    def __init__(self, request: Request, source: Source, transport: Transport) -> None:
        self.request = request
        self.source = source
        self.transport = transport
        self.commit: str | None = None
        self.cache: RepoCache | None = None
        self.origin: Origin | None = None
        self.index_path: Path | None = None
        self.index_file: tuple[str, bytes, str] | None = None
        self.absent: list[str] = []

    async def read_index(self, name: str) -> bytes:
        """The bytes of an index. Raises EntryNotFoundError; OfflineError if it is not cached."""
        raise NotImplementedError

    async def look(self, name: str) -> SourceFile:
        """What the source says of a shard. Raises as `read_index` does."""
        raise NotImplementedError

    async def settle(self, located: Located) -> None:
        """Complete what was found, once the caller's checksums are known."""

    def names(self) -> list[str]:
        """The candidates as paths in the source: one only, where the user named a file."""
        return [self.source.file] if self.source.file else candidates(self.request.variant)

    async def find(self) -> Located:
        """The checkpoint, by the rules above."""
        names = self.names()
        for name in names:
            try:
                if is_index_name(name):
                    raw = await self.read_index(name)
                else:
                    file = await self.look(name)
            except EntryNotFoundError as error:
                self.commit = self.commit or error.commit
                self.absent.append(name)
                continue
            except OfflineError:
                continue
            if is_index_name(name):
                return await self._from_index(name, raw)
            return self._located(None, None, [file], os.path.dirname(name))
        if self.request.settings.offline and not isinstance(self.source, LocalSource):
            raise OfflineError(str(self.source), "a checkpoint")
        raise CheckpointNotFoundError(str(self.source), names)

    async def _from_index(self, name: str, raw: bytes) -> Located:
        checksums = self.request.checksums or {}
        expected = checksums.get(name) or checksums.get(os.path.basename(name))
        if expected is not None:
            verify_small(name, raw, expected)
        limit = self.request.policy.max_index_bytes
        index = await to_thread.run_sync(lambda: parse_index(raw, file=name, max_bytes=limit))
        selected = index if self.request.select is None else select_tensors(index, self.request.select)
        located = self._located(index, selected, [], os.path.dirname(name))
        files: dict[str, SourceFile] = {}

        async def look(shard: str) -> None:
            path = located.path_of(shard)
            try:
                files[shard] = await self.look(path)
            except EntryNotFoundError as error:
                raise ShardNotFoundError(path, str(self.source), name) from error

        await each(selected.shards, look, self.request.policy.connections)
        located.files = [files[shard] for shard in selected.shards]
        located.commit = self.commit
        return located

    def _located(self, index: Index | None, selected: Index | None, files: list[SourceFile], folder: str) -> Located:
        return Located(
            str(self.source),
            self.commit,
            None,
            folder,
            index,
            selected,
            files,
            self.cache,
            self.origin,
            self.index_file,
            self.index_path,
            self.absent,
        )

    def single_beside(self, located: Located) -> str | None:
        """The name that a single file beside the index would have; None without an index."""
        variant = f".{self.request.variant}" if self.request.variant else ""
        single = located.path_of(f"model{variant}.safetensors")
        return None if located.index is None or any(file.name == single for file in located.files) else single

    def warn_of(self, single: str, located: Located) -> None:
        index = located.index.file if located.index else ""
        located.warnings.append(
            f"{located.source} has {index} and also {single}, which some loaders prefer: the index was used"
        )

    async def read_prefix(self, file: SourceFile) -> bytes:
        """The first bytes of a file, from where its bytes are served."""
        if file.target is None or not file.size:
            return b""

        def learn(body: Body, target: Target) -> None:
            file.etag = strong_etag(body, target)
            file.splittable = body.status == 206

        return await read_span(
            self.transport,
            file.target,
            Span(0, min(PREFIX_LIMIT, file.size)),
            file=file.name,
            size=file.size,
            on_answer=learn,
            renew=renewal(self.origin, file),
        )


def file_on_disk(name: str, path: Path, cache: RepoCache | None = None) -> SourceFile:
    """A file that is here, with the hash that its blob's name promises."""
    with storage_errors(path):
        return SourceFile(name, path.stat().st_size, cache.checksum_of(path) if cache else None, path=path)


def read_index(name: str, path: Path, limit: int) -> bytes:
    """The bytes of an index on disk. Raises InvalidIndexError if they are more than `limit`."""
    with storage_errors(path), open(path, "rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise index_too_large(name, limit)
    return data
