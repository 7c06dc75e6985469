"""A file that another repository of the cache has already: it is the same where the SHA-256 is. Blocking calls."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from ...errors import StorageError
from ...storage.copies import link_or_copy
from ...storage.files import rename
from ...storage.locks import private_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ...storage.cache import RepoCache

__all__ = ["borrow", "is_same_everywhere"]

LOG = logging.getLogger("asyncfetch.server")


def is_same_everywhere(etag: str) -> bool:
    """Whether an etag stands for the same bytes in all repositories: a SHA-256. Of SHA-1 there are forgeries."""
    return re.fullmatch(r"[0-9a-f]{64}", etag, re.ASCII) is not None


def borrow(cache: RepoCache, etag: str, size: int) -> bool:
    """Give `cache` the blob `etag` if another repository beside it has it. Whether it did.

    It is a second name of one file, which takes no room, or a copy where there can be none.
    """
    if not is_same_everywhere(etag):
        return False
    try:
        if not cache.symlinks() or cache.whole_blob(etag, size) is not None:
            return False
        for blob in _elsewhere(cache, etag, size):
            cache.prepare()
            temporary = private_name(cache.blob(etag))
            try:
                link_or_copy(blob, temporary)
                rename(temporary, cache.blob(etag))
            except OSError as error:  # it was removed just now, or there is no room
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
                LOG.info("%s could not be taken from %s: %s.", etag, blob.parent.parent.name, error.strerror)
            else:
                return True
    except (OSError, StorageError) as error:
        LOG.info("%s could not be looked for in other repositories: %s.", etag, error)
    return False


def _elsewhere(cache: RepoCache, etag: str, size: int) -> Iterator[Path]:
    for blob in cache.root.glob(f"*--*/blobs/{etag}"):
        with suppress(OSError):
            if blob.parent.parent != cache.folder and blob.is_file() and blob.stat().st_size == size:
                yield blob
