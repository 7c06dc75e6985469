"""Shards that one listing tells of, instead of a request for each: their headers come with their first bytes.

Only what is listed by its sha256 is believed. A mirror that leaves it out, or a gated repository, which shows stars
in its place, is asked for each shard. What the Hub says of a file when its bytes are asked for still counts for more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

import anyio

from ..errors import AsyncfetchError
from ..format.index import check_index, check_tensors
from ..network.transport import Transport
from ..storage.cache import RepoCache
from .located import Listing, Located, SourceFile
from .request import HubSource, Request

__all__ = ["hold_against_index", "hold_one_against_index", "known_shards", "listing_at_once", "saves_requests"]

_FEW = 2  # shards that are missing: for one, a listing takes as many requests as a look


class _Lister(Protocol):
    """A place that lists its files."""

    @property
    def cache(self) -> RepoCache | None: ...

    async def listing(self, commit: str | None) -> Listing | None: ...


def saves_requests(place: _Lister, request: Request, missing: int, commit: str | None) -> bool:
    """Whether a listing takes fewer requests than a look at each shard that is `missing`, and headers may be late."""
    wanted = request.late and request.believed and isinstance(request.source, HubSource)
    if not wanted or request.settings.offline or place.cache is None or commit is None:
        return False
    return missing >= _FEW or (missing > 0 and request.chosen is not None)


async def listing_at_once(place: _Lister, transport: Transport, commit: str | None, seconds: float) -> Listing | None:
    """The listing, if it comes without trouble. A server that lists nothing, or fails at that, may have the files."""
    try:
        with anyio.move_on_after(seconds), transport.hurry(brief=0.0):
            return await place.listing(commit)
    except AsyncfetchError:
        pass
    return None


def known_shards(listing: Listing, paths: Iterable[str]) -> dict[str, SourceFile]:
    """The shards, by their paths, that are listed with their sha256. Looks at the disk."""
    found = {}
    for path in paths:
        file = listing.files.get(path)
        if file is not None and file.checksum is not None and file.checksum.algorithm == "sha256":
            file.late = True
            found[path] = file
    return found


def hold_against_index(located: Located, files: Collection[SourceFile]) -> list[str]:
    """Hold the headers of some shards against the index, as `check_index`. Returns its notes."""
    headers = {_shard_of(located, file): file.header for file in files if file.header is not None}
    return [] if located.index is None else check_index(located.index, headers)


def hold_one_against_index(located: Located, file: SourceFile) -> None:
    """The same for one shard, whose header is known, at a cost that does not grow with their number.

    Raises MissingTensorError.
    """
    index, shard = located.index, _shard_of(located, file)
    if index is not None and file.header is not None:
        check_tensors(index.tensors_of(shard), file.header, shard=shard, index_file=index.file)


def _shard_of(located: Located, file: SourceFile) -> str:
    """The name by which the index knows a file."""
    return file.name[len(located.folder) + 1 if located.folder else 0 :]
