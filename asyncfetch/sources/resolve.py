"""From a request to a located checkpoint, its headers read and held against its index."""

from __future__ import annotations

import os

from anyio import to_thread

from ..errors import EntryNotFoundError, storage_errors
from ..format.header import PREFIX_BYTES, header_length, parse_header
from ..format.index import Index, check_index
from ..network.ranges import read_span
from ..network.transport import Transport
from ..spans import Span
from ..tasks import each
from .finder import Place, find
from .hub_finder import HubPlace
from .local_finder import LocalPlace
from .located import Located, Origin, SourceFile, renewal
from .request import HubSource, LocalSource, Request, UrlSource
from .selecting import selected_by
from .web_finder import WebPlace

__all__ = ["read_header", "resolve"]


async def resolve(request: Request, transport: Transport, *, headers: bool = True) -> Located:
    """Find the checkpoint: its commit, its shards, and what is in each. Writes nothing.

    A checkpoint that cannot be loaded is refused here, before its shards are downloaded. Raises
    the NotFoundError, AccessError, CorruptError, NetworkError, OfflineError kinds. `headers=False`
    leaves the shards' headers unread.
    """
    place = _place_of(request, transport)
    located = await find(place, request)
    if not headers:
        return located

    async def read(file: SourceFile) -> None:
        await read_header(file, transport, place)

    await each(located.files, read, request.policy.connections)
    if located.index is None:
        located.selected, located.companions = _select_in_file(located.files[0], request)
    elif located.selected is not None:
        by_shard = {
            shard: file.header
            for shard, file in zip(located.selected.shards, located.files, strict=True)
            if file.header is not None
        }
        located.warnings += check_index(located.index, by_shard)
    return located


def _place_of(request: Request, transport: Transport) -> Place:
    match request.source:
        case HubSource() as source:
            return HubPlace(request, source, transport)
        case UrlSource() as source:
            return WebPlace(request, source, transport)
        case LocalSource() as source:
            return LocalPlace(request, source)


def _select_in_file(file: SourceFile, request: Request) -> tuple[Index, frozenset[str]]:
    """The wanted tensors of a file that no index lists, as an index of its own."""
    names, metadata = (file.header.tensors, file.header.metadata) if file.header is not None else ({}, {})
    index = Index(file.name, dict.fromkeys(names, os.path.basename(file.name)))
    return selected_by(request, index, metadata)


async def read_header(file: SourceFile, transport: Transport | None, origin: Origin | None = None) -> None:
    """Set `file.header` and `file.raw_header`: from disk, from the prefix, or by one more range."""
    if file.path is not None or transport is None:
        file.raw_header = await to_thread.run_sync(_header_on_disk, file)
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
                renew=renewal(origin, file),
            )
        file.raw_header = file.prefix[:data_start]
    raw = memoryview(file.raw_header)[PREFIX_BYTES:]
    file.header = await to_thread.run_sync(lambda: parse_header(raw, file=file.name, file_size=file.size))


def _header_on_disk(file: SourceFile) -> bytes:
    path = file.path
    if path is None:
        raise EntryNotFoundError(file.name, "the cache")
    with storage_errors(path), open(path, "rb") as stream:
        file.size = os.fstat(stream.fileno()).st_size
        prefix = stream.read(4096)
        length = header_length(prefix, file=file.name, file_size=file.size)
        return (prefix + stream.read(max(PREFIX_BYTES + length - len(prefix), 0)))[: PREFIX_BYTES + length]
