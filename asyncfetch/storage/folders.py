"""A folder of the user's that a download fills, and what is recorded of it. Blocking calls: run them in a thread.

    DIR/<path>                                        a file, as the repository has it
    DIR/.cache/huggingface/.gitignore, CACHEDIR.TAG
    DIR/.cache/huggingface/download/<path>.metadata   three lines: commit, etag, seconds since 1970
    DIR/.cache/huggingface/download/*.incomplete      a file being written
    DIR/.cache/asyncfetch/                            a cache for one download, where the shared one cannot be written

That is how huggingface_hub fills and records one
(https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/_local_folder.py), so each goes on with
what the other left. Nothing is written through a link, or outside of the folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
import unicodedata
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..errors import SourceError, StorageError, storage_errors
from .cache import is_commit, path_inside
from .checksums import Checksum, checksum_of_etag, file_digest
from .copies import copy_file, link_or_copy
from .files import LONGEST_NAME, LeftOut, free_bytes, make_folder, named_beside, rename, sync_folder, write_synced

__all__ = ["BOOKKEEPING", "LocalFolder", "Record", "Standing", "refuse_collisions"]

BOOKKEEPING = ".cache/huggingface"
_OWN_CACHE = ".cache/asyncfetch"
_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# What was downloaded here. See https://bford.info/cachedir/\n"
_DEAD = 3600.0  # seconds since a temporary file was written to, after which nobody writes it any more
_LEAVE_OUT = "Leave one of them out with exclude=."


class Standing(Enum):
    """How a file in the folder stands to the one that is wanted there."""

    ABSENT = "there is none"
    SAME = "it is that file"
    OLDER = "it is as it was downloaded, and another one by now is wanted"
    CHANGED = "nobody knows it: the user's, or changed by the user"


@dataclass(frozen=True, slots=True)
class Record:
    """What was put there: the hash is that of the whole file; `written` is in seconds since 1970."""

    commit: str
    checksum: Checksum
    written: float


class LocalFolder:
    """One such folder, by its path. It need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.own_cache = path / _OWN_CACHE
        self._records = path / BOOKKEEPING / "download"

    # -- look up -----------------------------------------------------------------------------

    def record(self, name: str) -> Record | None:
        """What is recorded of a file; None if that is nothing, or makes no sense."""
        try:
            commit, etag, written = self._record_path(name).read_text("ascii").split()[:3]
            checksum, when = checksum_of_etag(etag), float(written)
        except (OSError, ValueError):
            return None
        return Record(commit, checksum, when) if checksum is not None and is_commit(commit) else None

    def promised(self, name: str) -> Checksum | None:
        """The hash that a file had when it was put there; None if it was touched since, or nothing is known of it."""
        record = self.record(name)
        with suppress(OSError):
            if record is not None and _touched(self.path / path_inside(name)) <= record.written:
                return record.checksum
        return None

    def state(self, name: str) -> tuple[int, ...] | None:
        """What changes when a file is edited or replaced; None if there is none."""
        try:
            status = os.lstat(self.path / path_inside(name))
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def standing(
        self, name: str, wanted: Checksum | None, size: int | None, check: Callable[[], None] = lambda: None
    ) -> Standing:
        """How the file stands to that of this hash and this size in bytes, None for what is not known of them.

        What the record vouches for is not hashed, but before it is replaced. Raises StorageError.
        """
        path, record = self.path / path_inside(name), self.record(name)
        with storage_errors(path):
            if not os.path.lexists(path):
                return Standing.ABSENT
            if not path.is_file() or (path.is_symlink() and not self._holds(path)):
                return Standing.CHANGED
            here = path.stat().st_size
        fits = wanted is not None and size in (None, here)
        if fits and self.promised(name) == wanted:
            return Standing.SAME
        digests: dict[str, str] = {}
        known = [(wanted, Standing.SAME)] if fits else []
        for checksum, standing in [*known, (record.checksum if record else None, Standing.OLDER)]:
            if checksum is not None:
                if checksum.algorithm not in digests:
                    digests[checksum.algorithm] = file_digest(path, checksum.algorithm, check)
                if digests[checksum.algorithm] == checksum.hex:
                    return standing
        return Standing.CHANGED

    def _holds(self, path: Path) -> bool:
        """Whether what is at a path lies in the folder, links followed."""
        home = os.path.realpath(self.path)
        return os.path.commonpath([home, os.path.realpath(path)]) == home

    def free_bytes(self) -> int | None:
        """Free bytes where the folder is, or will be; None where that is not told."""
        return free_bytes(self.path)

    # -- fill --------------------------------------------------------------------------------

    def prepare(self, names: Collection[str]) -> None:
        """Refuse what cannot be put there, and make the folder. Raises SourceError, StorageError."""
        self.refuse_strays(names)
        make_folder(self._records, writing="folder")
        self._drop_leftovers()
        home = self.path / BOOKKEEPING
        with LeftOut()("what marks bookkeeping"):
            for name, content in ((".gitignore", b"*"), ("CACHEDIR.TAG", _TAG)):
                if not (home / name).exists():
                    write_synced(home / name, content)

    def refuse_strays(self, names: Collection[str]) -> None:
        """Refuse names that meet in one place or belong to the bookkeeping, and folders that are links out of here."""
        refuse_collisions(names)
        inside = {Path(BOOKKEEPING, "download"), Path(_OWN_CACHE)}
        for name in names:
            path = path_inside(name)
            inside |= {path.parent, Path(BOOKKEEPING, "download", path.parent)}
        for folder in sorted(inside):
            if not self._holds(self.path / folder):
                hint = "Remove the link, or choose another folder with local_dir=."
                raise StorageError(str(self.path / folder), f"a link leads out of {self.path}", hint=hint)

    def put(self, name: str, source: Path, *, link: bool, check: Callable[[], None] = lambda: None) -> Path:
        """Let the file be what `source` is, in one step: a clone or a copy. Returns its path.

        With `link` a second name of it will do: then nobody else may have it, because who edits one edits both.
        """
        path = self.path / path_inside(name)
        make_folder(path.parent, writing="folder")
        with storage_errors(path, writing="folder"), self._temporary(name) as temporary:
            if link:
                link_or_copy(source, temporary, check)
            else:
                copy_file(source, temporary, check)
            rename(temporary, path)
            sync_folder(path.parent)
        return path

    def write_record(self, name: str, commit: str, checksum: Checksum) -> None:
        """Record what is there. Call it once the file is.

        Of a name to which nothing can be added there is no record: then the file is hashed the next time.
        """
        path = self._record_path(name)
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            return
        make_folder(path.parent, writing="folder")
        with storage_errors(path, writing="folder"), self._temporary(name) as temporary:
            touched = _touched(self.path / path_inside(name))  # and not now: it may be edited at once
            temporary.write_text(f"{commit}\n{checksum.hex}\n{touched}\n", "ascii")
            rename(temporary, path)

    def drop_own_cache(self) -> None:
        """Remove the cache of one download, once all of it has been put where it belongs."""
        shutil.rmtree(self.own_cache, ignore_errors=True)

    def _drop_leftovers(self) -> None:
        """Remove what killed processes left half-written, and what no other process may be writing just now."""
        with suppress(OSError):
            for path in self._records.rglob("*.asyncfetch.*.incomplete"):
                if path.stat().st_mtime + _DEAD < time.time():
                    path.unlink()

    def _record_path(self, name: str) -> Path:
        path = path_inside(name)
        return self._records / path.with_name(f"{path.name}.metadata")

    @contextmanager
    def _temporary(self, name: str) -> Iterator[Path]:
        """A fresh name among the records, so that the user's tree has whole files alone."""
        record = self._record_path(name)
        make_folder(record.parent, writing="folder")
        path = named_beside(record.with_suffix(""), f".asyncfetch.{secrets.token_hex(4)}.incomplete")
        try:
            yield path
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise


def _touched(path: Path) -> float:
    """When a file was written to, or became what it is, in seconds since 1970. Tools may set back the former alone."""
    status = path.stat()
    return max(status.st_mtime, status.st_ctime)


def refuse_collisions(names: Collection[str]) -> None:
    """Refuse files that are one where a system takes no notice of case, or would overwrite the bookkeeping.

    Such a folder could not be copied to a Mac or to Windows, and there one of the files would silently be lost.
    Raises SourceError.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        parts = [unicodedata.normalize("NFC", part).casefold() for part in name.split("/")]
        above = ["/".join(parts[:end]) for end in range(1, len(parts))]
        if not {BOOKKEEPING, _OWN_CACHE}.isdisjoint(above):
            hint = f"Leave it out: exclude={name!r}."
            raise SourceError(f"{name!r} lies where what is downloaded is recorded.", hint=hint)
        path = "/".join(parts)
        other = files.get(path) or folders.get(path) or next((files[one] for one in above if one in files), None)
        if other is not None:
            raise SourceError(f"{other!r} and {name!r} are the same where case does not count.", hint=_LEAVE_OUT)
        files[path] = name
        folders |= dict.fromkeys(above, name)
