"""A file that another repository of the cache has already: it is the same where the SHA-256 is.

The name of a blob says what was to be written there. Another program may have written it without a look, or its disk
may have gone bad since: so what is lent is held against its hash first. Blocking calls.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from ...errors import ChecksumMismatchError, StorageError
from ...storage.checksums import checksum_of_etag, verify_file
from ...storage.copies import link_or_copy
from ...storage.files import rename
from ...storage.locks import private_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ...storage.cache import RepoCache

__all__ = ["Lender", "is_same_everywhere", "wrong_elsewhere"]

LOG = logging.getLogger("asyncfetch.server")
_REMEMBERED = 100_000  # files whose hash is known


def is_same_everywhere(etag: str) -> bool:
    """Whether an etag stands for the same bytes in all repositories: a SHA-256. Of SHA-1 there are forgeries."""
    return re.fullmatch(r"[0-9a-f]{64}", etag, re.ASCII) is not None


class Lender:
    """Gives a repository what others of the cache have. Each file is hashed once, for as long as it stays as it is."""

    def __init__(self) -> None:
        self._right: dict[tuple[int, ...], None] = {}  # the states of files whose hash is that of their names

    def learn(self, blob: Path) -> None:
        """`blob` was just held against its hash, and is right."""
        with suppress(OSError):
            self._right[_state(blob)] = None
            if len(self._right) > _REMEMBERED:
                del self._right[next(iter(self._right))]

    def borrow(self, cache: RepoCache, etag: str, size: int, check: Callable[[], None] = lambda: None) -> bool:
        """Give `cache` the blob `etag` if another repository beside it has it. Whether it did.

        It is a second name of one file, which takes no room, or a copy where there can be none. `check` runs now and
        then while one is hashed, and may raise.
        """
        if not is_same_everywhere(etag):
            return False
        try:
            if not cache.symlinks() or cache.whole_blob(etag, size) is not None:
                return False
            for blob in _elsewhere(cache, etag):
                if blob.stat().st_size == size and self._lent(cache, blob, check):
                    return True
        except (OSError, StorageError) as error:
            LOG.info("%s could not be looked for in other repositories: %s.", etag, error)
        return False

    def _lent(self, cache: RepoCache, blob: Path, check: Callable[[], None]) -> bool:
        """Give `cache` this blob, if that can be and its hash is right."""
        cache.prepare()
        place = cache.blob(blob.name)
        temporary = private_name(place)
        try:
            link_or_copy(blob, temporary, check)
            if _state(temporary) not in self._right:
                _hold_against_name(temporary, blob.name, check)
                self.learn(temporary)
            rename(temporary, place)
        except ChecksumMismatchError as error:
            LOG.error("%s of %s is wrong, and is lent to nobody: verify that. %s", blob.name, _owner(blob), error)
        except OSError as error:  # it was removed just now, or there is no room
            LOG.info("%s could not be taken from %s: %s.", blob.name, _owner(blob), error.strerror)
        else:
            return True
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return False


def wrong_elsewhere(cache: RepoCache, etag: str, check: Callable[[], None] = lambda: None) -> list[str]:
    """The folders of other repositories where the blob `etag` is wrong as well. Each file is hashed once."""
    if not is_same_everywhere(etag):
        return []
    wrong, seen = list[str](), dict[tuple[int, ...], bool]()
    for blob in _elsewhere(cache, etag):
        with suppress(OSError, StorageError):
            state = _state(blob)
            if state not in seen:
                seen[state] = False
                try:
                    _hold_against_name(blob, etag, check)
                except ChecksumMismatchError:
                    seen[state] = True
            if seen[state]:
                wrong.append(_owner(blob))
    return wrong


def _hold_against_name(path: Path, etag: str, check: Callable[[], None]) -> None:
    """Raises ChecksumMismatchError, StorageError."""
    checksum = checksum_of_etag(etag)
    assert checksum is not None  # noqa: S101  # it is_same_everywhere
    verify_file(path, checksum, file=etag, check=check)


def _state(path: Path) -> tuple[int, ...]:
    """What tells a file from what it was: another name of it changes nothing of this. Raises OSError."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _owner(blob: Path) -> str:
    return blob.parent.parent.name


def _elsewhere(cache: RepoCache, etag: str) -> Iterator[Path]:
    for blob in cache.root.glob(f"*--*/blobs/{etag}"):
        with suppress(OSError):
            if blob.parent.parent != cache.folder and blob.is_file():
                yield blob
