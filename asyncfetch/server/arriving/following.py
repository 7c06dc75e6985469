"""A file that another process fetches into the same cache, as its journal tells of it. Blocking calls.

Who writes a partial notes at least once a second which spans of it are on the disk (storage/journal.py). So another
server of the same cache can hand them out, without asking the source for what is on its way already.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ...spans import SpanSet
from ...storage.journal import spans_on_disk

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Followed", "inode_of"]


class Followed:
    """What is here of the partial at `path`, of `size` bytes. To be closed."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._present = SpanSet()
        self.descriptor: int | None = None

    def look(self, identity: str) -> bool:
        """Look at what is here by now. False: what was there before is not, and what is there is another file.

        `identity` is what its journal is to be bound to. `descriptor` stays the same number.
        """
        try:
            found = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # it was not made yet, or has got its name
            return True
        present = spans_on_disk(self._path, self._size, identity=identity)
        if not present.nbytes or not _is_at(self._path, found):  # no journal yet, or the writer is just replacing it
            os.close(found)
            return True
        before, self._present = self._present, present
        if self.descriptor is None:
            self.descriptor = found
            return True
        same = inode_of(found) == inode_of(self.descriptor)
        if not same:
            os.dup2(found, self.descriptor, inheritable=False)  # a thread may be reading from it
        os.close(found)
        return same and all(present.reach(span.start) >= span.stop for span in before)

    @property
    def frontier(self) -> int:
        """The end of the run of bytes that begins at 0."""
        return self._present.frontier

    def reach(self, offset: int) -> int:
        """The end of the run of bytes that begins at `offset`."""
        return self._present.reach(offset)


def inode_of(descriptor: int) -> tuple[int, int]:
    """What tells an open file from all others."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a name is still that of an open file."""
    try:
        now = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == inode_of(descriptor)
