"""From a request to a located checkpoint, its headers read and held against its index."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..engine.schedule import Checksum
from ..errors import CorruptError, SourceError
from ..format.index import Index, Selector, select_tensors
from ..network.transport import OnRetry, Transport
from .finder import Finder, LocalFinder, Request, each
from .hub_finder import HubFinder
from .located import Located, SourceFile, check_index, read_header
from .request import HubSource, LocalSource, UrlSource
from .web_finder import WebFinder

__all__ = ["resolve"]


async def resolve(
    request: Request, transport: Transport, on_retry: OnRetry | None = None, *, headers: bool = True
) -> Located:
    """Find the checkpoint: its commit, its shards, and what is in each. Writes nothing.

    A checkpoint that cannot be loaded is refused here, before its shards are downloaded. Raises
    the NotFoundError, AccessError, CorruptError, NetworkError, OfflineError kinds. `headers=False`
    leaves the shards' headers unread.
    """
    finder: Finder
    match request.source:
        case HubSource():
            finder = HubFinder(request, request.source, transport, on_retry)
        case UrlSource():
            finder = WebFinder(request, request.source, transport, on_retry)
        case LocalSource():
            finder = LocalFinder(request, request.source, transport, on_retry)
    located = await finder.find()
    _apply_checksums(located, request.checksums or {})
    await finder.settle(located)

    if not headers:
        return located

    async def header(file: SourceFile) -> None:
        await read_header(file, transport, on_retry, located.origin)

    await each(located.files, header, request.policy.connections)
    if located.index is None:
        located.selected = _select_in_file(located.files[0], request.select)
    elif located.selected is not None:
        by_shard = {
            shard: file.header
            for shard, file in zip(located.selected.shards, located.files, strict=True)
            if file.header is not None
        }
        located.warnings += check_index(located.index, by_shard)
    return located


def _select_in_file(file: SourceFile, select: Selector) -> Index:
    """The wanted tensors of a file that no index lists, as an index of its own."""
    names = file.header.tensors if file.header is not None else {}
    return select_tensors(Index(file.name, dict.fromkeys(names, os.path.basename(file.name))), select)


def _apply_checksums(located: Located, checksums: Mapping[str, Checksum]) -> None:
    files = {file.name: file for file in located.files}
    index = located.index.file if located.index else None
    for name, checksum in checksums.items():
        if index is not None and name in (index, os.path.basename(index)):
            continue  # held against it when it was read
        file = files.get(name) or files.get(located.path_of(name))
        if file is None:
            raise SourceError(f"checksums= names {name!r}, which is no file of this checkpoint.")
        if file.checksum is not None and file.checksum.algorithm == checksum.algorithm and file.checksum != checksum:
            raise CorruptError(f"{name}: the source says {file.checksum}, checksums= says {checksum}.", file=name)
        file.checksum = checksum
