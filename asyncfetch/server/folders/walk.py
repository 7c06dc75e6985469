"""The files of one folder, as a walk finds them, and how they are opened. Blocking calls: run them in a thread."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...errors import ChangedError
from ...storage.checksums import checksum_of_etag
from .layout import Layout, Watched, entries_of, is_folder, watch
from .repository import Listed, Signature

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["is_as_listed", "open_listed", "read_listed", "signature_of", "walk"]


def signature_of(status: os.stat_result) -> Signature:
    return Signature(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def walk(layout: Layout, folder: Path, *, blobs: Path | None = None) -> tuple[tuple[Listed, ...], Watched]:
    """All servable files under `folder`, in the order of paths, and the folders that were looked at.

    Whatever is not a regular, readable file is left out. Links to files are followed where they may lead;
    links to folders only where links may lead anywhere. What lies in `blobs` is promised by its name.
    """
    watched: Watched = {}
    walked = _Walk(layout, blobs, watched)
    return tuple(sorted(walked.under(folder, "", ()))), watched


class _Walk(NamedTuple):
    """What stays the same from folder to folder."""

    layout: Layout
    blobs: Path | None
    watched: Watched

    def under(self, folder: Path, prefix: str, left: tuple[Path, ...]) -> Iterator[Listed]:
        """The files under `folder`. `left` are the folders that a link led out of on the way here."""
        watch(folder, self.watched)
        for entry in entries_of(folder):
            path = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from self.under(folder / entry.name, f"{path}/", left)
            elif is_folder(entry):
                real = Path(os.path.realpath(entry.path))
                round_in_circles = any(passed.is_relative_to(real) for passed in (*left, folder))
                if self.layout.boundary is None and not round_in_circles:
                    yield from self.under(real, f"{path}/", (*left, folder))
            elif listed := _listed(self.layout, entry, path, self.blobs):
                yield listed


def _listed(layout: Layout, entry: os.DirEntry[str], path: str, blobs: Path | None) -> Listed | None:
    """The regular, readable file behind `entry`, if it may be served."""
    real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
    try:
        status, promised = os.stat(real, follow_symlinks=False), _promised(entry, blobs)
    except OSError:  # it is gone, or the link dangles
        return None
    if not stat.S_ISREG(status.st_mode) or not os.access(real, os.R_OK) or layout.leads_out(real, entry.path):
        return None
    return Listed(path, real, signature_of(status), promised)


def _promised(entry: os.DirEntry[str], blobs: Path | None) -> str | None:
    """The hash that a hub cache gives a file by the name of its blob."""
    if blobs is None or not entry.is_symlink():
        return None
    target = Path(os.path.normpath(os.path.join(os.path.dirname(entry.path), os.readlink(entry.path))))
    promised = checksum_of_etag(target.name) if target.parent == blobs else None
    return promised.hex if promised else None


def is_as_listed(listed: Listed) -> bool:
    """Whether the file still is what the walk found. Costs one stat."""
    try:
        return signature_of(os.stat(listed.real, follow_symlinks=False)) == listed.signature
    except OSError:
        return False


def open_listed(listed: Listed) -> int:
    """A descriptor of exactly the file that was listed. Raises ChangedError when it is another one now."""
    try:
        descriptor = os.open(listed.real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ChangedError(listed.path, "it can no longer be opened") from error
    if signature_of(os.fstat(descriptor)) != listed.signature:
        os.close(descriptor)
        raise ChangedError(listed.path, "it was written to")
    return descriptor


def read_listed(listed: Listed, span: range) -> bytes:
    """Some bytes of exactly the file that was listed. Raises ChangedError when it is another one now."""
    descriptor = open_listed(listed)
    try:
        found = os.pread(descriptor, len(span), span.start)
    finally:
        os.close(descriptor)
    if len(found) < len(span):
        raise ChangedError(listed.path, "it was cut short")
    return found
