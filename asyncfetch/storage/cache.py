"""The Hugging Face cache layout: look up, lock, publish. Blocking calls: run them in a thread.

    <cache>/                                   HF_HUB_CACHE, or HF_HOME/hub
      CACHEDIR.TAG
      .locks/models--org--name/<etag>.lock     advisory, never deleted
      models--org--name/                       or datasets--org--name/
        blobs/<etag>                           a whole file, its hash verified
        blobs/<etag>.asyncfetch.incomplete     a file being written, and beside it
        blobs/<etag>.asyncfetch.map.incomplete its journal; `hf cache prune` removes both
        refs/<revision>                        40 hex digits, no newline
        snapshots/<commit>/<path>              a relative link to the blob, or the file itself
        .no_exist/<commit>/<path>              empty: the source has no such file
        trees/<commit>.json                    huggingface_hub's listing of a commit; only read
        listings/<commit>.json                 ours
        identities/<commit>.json               of a plain URL: what its commit was made from

Published in this order: blob, link, and the ref last, so that a ref never names a hole that we
made. Correctness rests on unique names, hashes and rename; the lock only saves work.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from ..errors import CorruptError, SourceError, StorageError, storage_errors
from .checksums import Checksum, checksum_of_etag
from .files import (
    LeftOut,
    copy_to,
    free_bytes,
    has_locks,
    make_folder,
    make_link,
    rename,
    sync_names,
    takes_any_order,
    write_synced,
)
from .listings import Records, TreeEntry, listing_text, read_listing
from .wrong import WrongFiles

__all__ = ["RepoCache", "is_commit", "path_inside"]

_TRUE = {"1", "ON", "YES", "TRUE"}
_TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# Downloaded models; backup tools may skip this folder. See https://bford.info/cachedir/\n"
)


def is_commit(text: str) -> bool:
    """Whether `text` is a full commit hash: 40 lower-case hex digits."""
    return re.fullmatch(r"[0-9a-f]{40}", text, re.ASCII) is not None


class RepoCache:
    """One repository's part of the cache, without the files that are known to be `wrong`."""

    def __init__(
        self,
        root: Path,
        repo_id: str,
        *,
        repo_type: str = "model",
        symlinks: bool | None = None,
        wrong: WrongFiles | None = None,
    ) -> None:
        self.root = root
        self.wrong = WrongFiles() if wrong is None else wrong
        self.name = f"{repo_type}s--{repo_id.replace('/', '--')}"
        self.folder = root / self.name
        self._blobs = self.folder / "blobs"
        self.left_out = LeftOut()
        self._symlinks = symlinks
        self._any_order: bool | None = None
        self._locks: bool | None = None

    # -- look up -----------------------------------------------------------------------------

    def commit_of(self, revision: str) -> str | None:
        """The commit that `revision` last resolved to, or None."""
        if is_commit(revision):
            return revision
        try:
            commit = (self.folder / "refs" / path_inside(revision)).read_bytes().decode("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return commit if is_commit(commit) else None

    def resolved_at(self, revision: str) -> float | None:
        """When `revision` was recorded, in seconds since 1970; None if it was not."""
        try:
            return (self.folder / "refs" / path_inside(revision)).stat().st_mtime
        except OSError:
            return None

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / _commit(commit)

    def find(self, commit: str, file: str) -> Path | None:
        """The cached file, or None. Tests the snapshot path: blobs/ is empty without symlinks."""
        path = self.snapshot(commit) / path_inside(file)
        with storage_errors(path):
            return path if path.is_file() and path not in self.wrong else None

    def known_absent(self, commit: str, file: str) -> bool:
        """Whether an earlier look-up found that this commit has no such file."""
        marker = self.folder / ".no_exist" / _commit(commit) / path_inside(file)
        with suppress(OSError):
            if marker.is_file():
                return True
        tree = self.tree(commit)
        return tree is not None and file not in tree

    def tree(self, commit: str) -> dict[str, TreeEntry] | None:
        """The full listing of a commit; None if there is none that can be read."""
        return read_listing(self.folder, _commit(commit))

    def present(self, commit: str) -> dict[str, TreeEntry]:
        """The files of a commit that are here."""
        folder = self.snapshot(commit)
        with storage_errors(folder):
            files = [path for path in folder.rglob("*") if path.is_file()]
            return {
                path.relative_to(folder).as_posix(): TreeEntry(path.stat().st_size, self.checksum_of(path))
                for path in files
            }

    def checksum_of(self, path: Path) -> Checksum | None:
        """What the name of the blob behind a snapshot path promises, or that of a blob; None if it is neither."""
        with storage_errors(path):
            if path.is_symlink():
                return checksum_of_etag(os.path.basename(os.readlink(path)))
            return checksum_of_etag(path.name) if path.parent == self.folder / "blobs" else None

    def blob(self, etag: str) -> Path:
        return self._blobs / _blob_name(etag)

    def whole_blob(self, etag: str, size: int | None = None) -> Path | None:
        """The blob if it is there (with that size), so that only a link is missing; else None."""
        path = self.blob(etag)
        with storage_errors(path):
            return path if self._is_good(path, size) else None

    def _is_good(self, path: Path, size: int | None) -> bool:
        """Whether a file is there that nothing speaks against."""
        try:
            status = path.stat()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise
        return stat.S_ISREG(status.st_mode) and size in (None, status.st_size) and path not in self.wrong

    def partial(self, key: str) -> Path:
        """Where the file that will be blob `key` is written."""
        return self._blobs / f"{_blob_name(key)}.asyncfetch.incomplete"

    def lock(self, key: str) -> FileLock | None:
        """huggingface_hub's own lock for this blob, None where there can be none. Poll it without blocking."""
        path = self.root / ".locks" / self.name / f"{_blob_name(key)}.lock"
        with self.left_out("locks of files"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._locks is None:
                self._locks = has_locks(path.parent)
            if self._locks:
                return FileLock(path, mode=0o664, thread_local=False)
        return None

    def last_write(self, key: str) -> float:
        """When a file that will be blob `key` was last written to, by any tool; 0 if there is none."""
        times = [0.0]
        with suppress(OSError):
            for path in (self.folder / "blobs").glob(f"{_blob_name(key)}.*incomplete"):
                with suppress(OSError):
                    times.append(path.stat().st_mtime)
        return max(times)

    def free_bytes(self) -> int | None:
        """Free bytes where the cache is, or will be; None where that is not told."""
        return free_bytes(self.folder)

    # -- publish -----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the folders that a download writes to."""
        make_folder(self.folder / "blobs")
        with self.left_out("CACHEDIR.TAG"):
            tag = self.root / "CACHEDIR.TAG"
            if not tag.exists() or not tag.stat().st_size:  # a kill may have left it empty
                tag.write_bytes(_TAG)

    def publish(
        self, partial: Path, etag: str, commit: str, file: str, *, size: int | None = None, named: bool = True
    ) -> Path:
        """Give a verified, closed and synced partial its names. Returns the snapshot path.

        What another run published meanwhile stays if it has `size` bytes: others may have it mapped. What is
        known to be wrong is replaced. `named` is that of `link`.
        """
        return self.publish_all([(partial, etag, file, size)], commit, named=named)[0]

    def publish_all(
        self, whole: Sequence[tuple[Path, str, str, int | None]], commit: str, *, named: bool = True
    ) -> list[Path]:
        """As `publish`, of several: each partial, etag, file and size. Each folder is synced once.

        So no link is made before its blob would survive a power cut.
        """
        finals = [self._rename(partial, etag, commit, file, size) for partial, etag, file, size in whole]
        sync_names(finals)
        if not self.symlinks():
            return finals
        paths = [self._linked(etag, commit, file, named=named) for _, etag, file, _ in whole]
        self._sync_links(paths, named)
        return paths

    def _rename(self, partial: Path, etag: str, commit: str, file: str, size: int | None) -> Path:
        """Give a partial the name of its blob, or of the file in the snapshot where there are no links."""
        final = self.blob(etag) if self.symlinks() else self.snapshot(commit) / path_inside(file)
        make_folder(final.parent)
        with storage_errors(final, writing="cache"):
            if size is not None and self._is_good(final, size):
                partial.unlink(missing_ok=True)
            else:
                try:
                    rename(partial, final)
                except FileNotFoundError:  # on another host, where our lock is unknown, it was just published
                    if size is None or not self._is_good(final, size):
                        raise
        return final

    def link(self, etag: str, commit: str, file: str, *, named: bool = True) -> Path:
        """Make snapshots/<commit>/<file> of a blob that exists: a link, or a copy. Returns the snapshot path.

        Where that cannot be written it is an error, or with `named=False` the path of the blob itself.
        """
        path = self._linked(etag, commit, file, named=named)
        self._sync_links([path], named)
        return path

    def _sync_links(self, paths: Sequence[Path], named: bool) -> None:
        with nullcontext() if named else self.left_out("links of snapshots"):
            sync_names(paths)

    def _linked(self, etag: str, commit: str, file: str, *, named: bool) -> Path:
        try:
            return self._link(etag, commit, file)
        except StorageError as error:
            if named or not (blob := self.blob(etag)).is_file():
                raise
            self.left_out.say("links of snapshots", error)
            return blob

    def _link(self, etag: str, commit: str, file: str) -> Path:
        pointer, blob = self.snapshot(commit) / path_inside(file), self.blob(etag)
        with storage_errors(pointer, writing="cache"):
            target = f"{'../' * (2 + file.count('/'))}blobs/{blob.name}"
            if self.symlinks() and make_link(target, pointer):
                return pointer
            pointer.parent.mkdir(parents=True, exist_ok=True)
            with self._temporary(etag) as temporary:
                if self.symlinks():
                    os.symlink(target, temporary)
                else:
                    with open(blob, "rb") as stream:
                        copy_to(stream.fileno(), temporary)
                rename(temporary, pointer)
        return pointer

    @contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        """A fresh name among the blobs, where `hf cache prune` finds what a kill leaves behind."""
        path = self._blobs / f"{_blob_name(key)}.{secrets.token_hex(4)}.incomplete"
        path.parent.mkdir(parents=True, exist_ok=True)  # it may have been pruned
        try:
            yield path
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise

    def add_small(self, data: bytes, etag: str, commit: str, file: str) -> Path:
        """Publish a whole small file, already verified, such as an index."""
        found = self.find(commit, file)
        if found is not None:
            with storage_errors(found):
                if found.read_bytes() == data:
                    return found
        with storage_errors(self.blob(etag), needed=len(data), writing="cache"), self._temporary(etag) as temporary:
            write_synced(temporary, data)
            return self.publish(temporary, etag, commit, file)

    def remember_absent(self, commit: str, file: str) -> None:
        """Record that this commit has no such file, where that can be written."""
        marker = self.folder / ".no_exist" / _commit(commit) / path_inside(file)
        with self.left_out("what the source does not have"):
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()

    def write_ref(self, revision: str, commit: str) -> None:
        """Record what a branch or a tag resolved to, where that can be written. Call it last."""
        ref, content = self.folder / "refs" / path_inside(revision), _commit(commit).encode()
        if is_commit(revision):
            return
        with self.left_out("refs"):
            if ref.is_file() and ref.read_bytes() == content:
                return
            ref.parent.mkdir(parents=True, exist_ok=True)
            with self._temporary(commit) as temporary:  # not beside it: any name there is a ref
                write_synced(temporary, content)
                rename(temporary, ref)
            sync_names([ref])

    def keep_listing(self, commit: str, records: Records) -> None:
        """Keep the full listing of a commit, where that can be written. Else it is asked for again next time."""
        path = self.folder / "listings" / f"{_commit(commit)}.json"
        with self.left_out("the listing of the commit"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._temporary(commit) as temporary:
                write_synced(temporary, listing_text(records))
                rename(temporary, path)

    def drop_wrong(self) -> None:
        """Remove what is known to be wrong. Others may have it mapped: nothing is written to.

        A link is followed for one step and no farther than blobs/: what a blob of the shared store,
        or a link made by hand, points to is not ours to remove.
        """
        for path in self.wrong.paths:
            with storage_errors(path):
                file, blobs = path, self.folder / "blobs"
                if path.is_symlink():
                    file = Path(os.path.normpath(path.parent / os.readlink(path)))
                if file.parent == blobs:
                    file.unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    def symlinks(self) -> bool:
        """Whether links may be made here: probed once, and off by HF_HUB_DISABLE_SYMLINKS."""
        if self._symlinks is None:
            off = os.environ.get("HF_HUB_DISABLE_SYMLINKS", "").upper() in _TRUE
            self._symlinks = not off and self._probe_symlinks()
        return self._symlinks

    def any_order(self) -> bool:
        """Whether files can be written here in any order, and read meanwhile: probed once, before the first."""
        if self._any_order is None:
            self._any_order = takes_any_order(self.folder / "blobs")
        return self._any_order

    def _probe_symlinks(self) -> bool:
        probe = self.folder / "blobs" / f"probe.{secrets.token_hex(4)}.incomplete"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            os.symlink("nowhere", probe)
            probe.unlink()
        except OSError:
            return False
        return True


def _commit(commit: str) -> str:
    if not is_commit(commit):
        raise CorruptError(f"{commit!r} is not a commit hash.", file="X-Repo-Commit")
    return commit


def _blob_name(etag: str) -> str:
    if checksum_of_etag(etag) is None:
        raise CorruptError(f"{etag!r} is not a hash of 40 or 64 hex digits.", file="ETag")
    return etag


@lru_cache(maxsize=4096)  # each file of a checkpoint is asked for time and again
def path_inside(path: str) -> Path:
    """`path` if it stays in its folder, on disk under the rules of every system and in a URL. Else SourceError."""
    parts = path.split("/")
    for part in parts:
        if part in ("", ".", "..") or re.search(r"[\x00-\x1f\\\ud800-\udfff]", part) or part[1:2] == ":":
            raise SourceError(f"{path!r} is not a path inside a repository.")
    return Path(*parts)
