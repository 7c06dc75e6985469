"""A file that is wanted of the source: what was told of it, where it is to be, and what if it comes another way."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...errors import ChangedError, ChecksumMismatchError, ProtocolError
from ...sources.located import SourceFile
from ...storage.checksums import checksum_of_etag

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ...errors import AsyncfetchError
    from ...sources.hub import Hub
    from ...storage.cache import RepoCache

__all__ = ["HELD", "WantedFile", "file_to_fetch"]

HELD = 64 * 1024  # bytes at the end of a file that wait for the hash


def file_to_fetch(path: str, commit: str, etag: str, size: int) -> SourceFile:
    """A file of a repository, as the source tells it."""
    return SourceFile(path, size, checksum_of_etag(etag), commit=commit, key=etag, blob=etag, identity=etag)


class WantedFile(NamedTuple):
    """A file, and where it is to be. `ref` is the branch or the tag that it was asked for by.

    `forget` lets what was told of it be forgotten, so that the source is asked anew.
    """

    file: SourceFile
    hub: Hub
    cache: RepoCache
    ref: str | None
    forget: Callable[[], Awaitable[None]]

    async def heed(self, error: AsyncfetchError | None) -> None:
        """Forget what was told of the file, where `error` says that it does not come that way."""
        if isinstance(error, ChangedError | ChecksumMismatchError | ProtocolError):
            await self.forget()
