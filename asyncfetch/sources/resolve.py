"""From a request to a located checkpoint, its headers read and held against its index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from anyio import from_thread

from ..errors import CorruptError, RepositoryNotFoundError, RevisionNotFoundError
from ..format.index import Index
from ..network.transport import Transport
from ..tasks import each, off_loop, without_collections
from .ahead import asking_ahead
from .fallback import find_or_recall, offline
from .files import add_companions, find_files
from .finder import Place, distrust, find
from .headers import header_on_disk, read_header
from .hub_finder import HubPlace
from .late import hold_against_index
from .local_finder import LocalPlace
from .located import Located, SourceFile
from .request import BucketSource, HubSource, LocalSource, Request, UrlSource
from .selecting import selected_by
from .store_finder import StorePlace
from .suggestions import suggest
from .web_finder import WebPlace

__all__ = ["place_of", "resolve", "select_in_file"]

_READERS = 4  # threads that read headers: a network file system takes a while for each


async def resolve(request: Request, transport: Transport, *, headers: bool = True) -> Located:
    """As `_resolve`, whose errors say what was probably meant by a repository or a revision that is not there."""
    try:
        return await _resolve(request, transport, headers)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        await suggest(error, request, transport)
        raise


async def _resolve(request: Request, transport: Transport, headers: bool) -> Located:
    """Find the checkpoint: its commit, its shards, and what is in each. Writes nothing.

    A checkpoint that cannot be loaded is refused here, before its shards are downloaded. Raises
    the NotFoundError, AccessError, CorruptError, NetworkError, OfflineError kinds. `headers=False`
    leaves the shards' headers unread. A cached file whose header is wrong is told and not used, if the
    source can be asked for it.
    """
    place = place_of(request, transport)
    chosen = request.chosen
    exact = chosen if chosen is not None and chosen.exact else None

    async def found(place: Place, request: Request) -> Located:
        if exact is not None:
            return await find_files(place, request, exact)
        source = request.source
        asks = not (request.settings.offline or transport.injected)  # there, what is cancelled leaves a socket open
        if not (asks and isinstance(place, HubPlace) and isinstance(source, HubSource)):
            return await find(place, request, transport)
        async with asking_ahead(place, lambda: HubPlace(request, source, transport.aside()), request) as ahead:
            return await find(place, request, transport, ahead)

    if place.cache is None or request.settings.offline:
        located = await found(place, request)
    else:
        kept = place_of(offline(request), transport)
        located = await find_or_recall(place, kept, request, transport, found)
        if located.origin is kept:
            place, request = kept, offline(request)
    if exact is not None:
        return located
    if headers:
        while not await _read_headers(located, request, transport):
            located = await found(place, request)
        _select(located, request)
    if chosen is not None:
        await add_companions(place, request, chosen, located)
    return located


def _select(located: Located, request: Request) -> None:
    """Hold the headers against the index, and narrow the tensors of a file that no index lists."""
    if located.index is None:
        select_in_file(located, request)
    elif located.selected is not None:
        located.warnings += hold_against_index(located, located.files)


async def _read_headers(located: Located, request: Request, transport: Transport) -> bool:
    """Read all headers. False: some cached files are wrong, and are not found any more."""
    here = [(file, file.path) for file in located.files if file.path is not None]
    served = [file for file in located.files if file.path is None and not file.late]

    async def read(file: SourceFile) -> None:
        await read_header(file, transport, located.origin)

    async def read_here(some: Sequence[tuple[SourceFile, Path]]) -> None:
        wrong.extend(await off_loop(partial(_read_those_here, some), slow=True))

    wrong: list[tuple[SourceFile, Path, CorruptError]] = []
    await each([here[start::_READERS] for start in range(min(_READERS, len(here)))], read_here, _READERS)
    for file, path, error in wrong:
        await distrust(error, file.name, path, located.cache, transport, offline=request.settings.offline)
    await each(served, read, request.policy.connections)
    return not wrong


def _read_those_here(files: Sequence[tuple[SourceFile, Path]]) -> list[tuple[SourceFile, Path, CorruptError]]:
    """Read the headers of some files on disk. Returns those that are wrong, and why."""
    wrong = []
    with without_collections():
        for file, path in files:
            from_thread.check_cancelled()
            try:
                file.size, file.raw_header, file.header = header_on_disk(path, file.name)
            except CorruptError as error:
                wrong.append((file, path, error))
    return wrong


def place_of(request: Request, transport: Transport) -> Place:
    """The source of a request, by its kind."""
    match request.source:
        case HubSource() as source:
            return HubPlace(request, source, transport)
        case UrlSource() as source:
            return WebPlace(request, source, transport)
        case BucketSource() as source:
            return StorePlace(request, source, transport)
        case LocalSource() as source:
            return LocalPlace(request, source)


def select_in_file(located: Located, request: Request) -> None:
    """Select the wanted tensors of a file that no index lists, by an index of its own, if its header is known."""
    file = located.files[0]
    if file.header is not None:
        index = Index(file.name, dict.fromkeys(file.header.tensors, os.path.basename(file.name)))
        located.selected, located.scales = selected_by(request, index, file.header.metadata)
