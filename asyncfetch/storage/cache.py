"""The Hugging Face cache layout: look up, lock, publish. Blocking calls: run them in a thread.

    <cache>/                                   HF_HUB_CACHE, or HF_HOME/hub
      CACHEDIR.TAG
      .locks/models--org--name/<etag>.lock     advisory, never deleted
      models--org--name/
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
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from ..errors import CorruptError, SourceError, redact_url, storage_errors
from .checksums import Checksum, checksum_of_etag
from .listings import TreeEntry, read_listing

__all__ = ["RepoCache", "cache_root", "is_commit", "path_inside", "url_repo_id"]

_TRUE = {"1", "ON", "YES", "TRUE"}
_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Downloaded models; backup tools may skip this folder. See https://bford.info/cachedir/\n"
)


def cache_root(environ: Mapping[str, str], explicit: str | os.PathLike[str] | None = None) -> Path:
    """The folder of all cached repositories, by the same variables as huggingface_hub."""
    if explicit is not None:
        return Path(explicit).expanduser()
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(name):
            return Path(os.path.expandvars(environ[name])).expanduser()
    home = environ.get("HF_HOME")
    if not home:
        home = os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def is_commit(text: str) -> bool:
    """Whether `text` is a full commit hash: 40 lower-case hex digits."""
    return re.fullmatch(r"[0-9a-f]{40}", text, re.ASCII) is not None


class RepoCache:
    """One repository's part of the cache."""

    def __init__(self, root: Path, repo_id: str, *, symlinks: bool | None = None) -> None:
        self.root = root
        self.name = "models--" + repo_id.replace("/", "--")
        self.folder = root / self.name
        self._symlinks = symlinks

    # -- look up -----------------------------------------------------------------------------

    def commit_of(self, revision: str) -> str | None:
        """The commit that `revision` last resolved to, or None."""
        if is_commit(revision):
            return revision
        try:
            commit = (self.folder / "refs" / path_inside(revision)).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return commit if is_commit(commit) else None

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / _commit(commit)

    def find(self, commit: str, file: str) -> Path | None:
        """The cached file, or None. Tests the snapshot path: blobs/ is empty without symlinks."""
        path = self.snapshot(commit) / path_inside(file)
        with storage_errors(path):
            return path if path.is_file() else None

    def known_absent(self, commit: str, file: str) -> bool:
        """Whether an earlier look-up found that this commit has no such file."""
        marker = self.folder / ".no_exist" / _commit(commit) / path_inside(file)
        with storage_errors(marker):
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
        """What the name of the blob behind a snapshot path promises; None if it is no link."""
        with storage_errors(path):
            return checksum_of_etag(os.path.basename(os.readlink(path))) if path.is_symlink() else None

    def blob(self, etag: str) -> Path:
        return self.folder / "blobs" / _blob_name(etag)

    def whole_blob(self, etag: str, size: int) -> Path | None:
        """The blob if it is there with that size, so that only a link is missing; else None."""
        path = self.blob(etag)
        with storage_errors(path):
            return path if path.is_file() and path.stat().st_size == size else None

    def partial(self, key: str) -> Path:
        """Where the file that will be blob `key` is written."""
        return self.folder / "blobs" / f"{_blob_name(key)}.asyncfetch.incomplete"

    def lock(self, key: str) -> FileLock:
        """huggingface_hub's own lock for this blob. Poll it without blocking."""
        path = self.root / ".locks" / self.name / f"{_blob_name(key)}.lock"
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, mode=0o664, thread_local=False)

    def last_write(self, key: str) -> float:
        """When a file that will be blob `key` was last written to, by any tool; 0 if there is none."""
        times = [0.0]
        with suppress(OSError):
            for path in (self.folder / "blobs").glob(f"{_blob_name(key)}.*incomplete"):
                with suppress(OSError):
                    times.append(path.stat().st_mtime)
        return max(times)

    def free_bytes(self) -> int:
        """Free bytes on the file system that holds, or will hold, the cache."""
        folder = self.folder
        with storage_errors(folder):
            while not folder.exists() and folder != folder.parent:
                folder = folder.parent
            return shutil.disk_usage(folder).free

    # -- publish -----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the folders that a download writes to."""
        with storage_errors(self.folder):
            (self.folder / "blobs").mkdir(parents=True, exist_ok=True)
            tag = self.root / "CACHEDIR.TAG"
            if not tag.exists() or not tag.stat().st_size:  # a kill may have left it empty
                tag.write_text(_TAG, encoding="ascii")

    def publish(self, partial: Path, etag: str, commit: str, file: str, *, size: int | None = None) -> Path:
        """Give a verified, closed and synced partial its names. Returns the snapshot path.

        What another run published meanwhile stays if it has `size` bytes: others may have it mapped.
        """
        final = self.blob(etag) if self.symlinks() else self.snapshot(commit) / path_inside(file)
        with storage_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            if size is not None and _has_size(final, size):
                partial.unlink(missing_ok=True)
            else:
                try:
                    _rename(partial, final)
                except FileNotFoundError:  # on another host, where our lock is unknown, it was just published
                    if size is None or not _has_size(final, size):
                        raise
            _sync(final.parent)
        return self.link(etag, commit, file) if self.symlinks() else final

    def link(self, etag: str, commit: str, file: str) -> Path:
        """Make snapshots/<commit>/<file> of a blob that exists: a link, or a copy. Returns the snapshot path."""
        pointer, blob = self.snapshot(commit) / path_inside(file), self.blob(etag)
        with storage_errors(pointer):
            pointer.parent.mkdir(parents=True, exist_ok=True)
            target = os.path.relpath(blob, pointer.parent)
            if pointer.is_symlink() and os.readlink(pointer) == target:
                return pointer
            with self._temporary(etag) as temporary:
                if self.symlinks():
                    os.symlink(target, temporary)
                else:
                    shutil.copyfile(blob, temporary)
                    _sync(temporary)
                _rename(temporary, pointer)
            _sync(pointer.parent)
        return pointer

    @contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        """A fresh name among the blobs, where `hf cache prune` finds what a kill leaves behind."""
        path = self.folder / "blobs" / f"{_blob_name(key)}.{secrets.token_hex(4)}.incomplete"
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
        with self._temporary(etag) as temporary:
            with storage_errors(temporary, needed=len(data)):
                _write_synced(temporary, data)
            return self.publish(temporary, etag, commit, file)

    def remember_absent(self, commit: str, file: str) -> None:
        """Record that this commit has no such file."""
        marker = self.folder / ".no_exist" / _commit(commit) / path_inside(file)
        with storage_errors(marker):
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()

    def write_ref(self, revision: str, commit: str) -> None:
        """Record what a branch or a tag resolved to. Call it last."""
        ref, content = self.folder / "refs" / path_inside(revision), _commit(commit).encode()
        if is_commit(revision):
            return
        with storage_errors(ref):
            if ref.is_file() and ref.read_bytes() == content:
                return
            ref.parent.mkdir(parents=True, exist_ok=True)
            with self._temporary(commit) as temporary:  # not beside it: any name there is a ref
                temporary.parent.mkdir(exist_ok=True)
                _write_synced(temporary, content)
                _rename(temporary, ref)
            _sync(ref.parent)

    def quarantine(self, path: Path) -> None:
        """Take a cached file with wrong bytes out of use. Others may have it mapped: only rename.

        A link is followed for one step and no farther than blobs/: what a blob of the shared store,
        or a link made by hand, points to is not ours to move.
        """
        with storage_errors(path):
            file, blobs = path, self.folder / "blobs"
            if path.is_symlink():
                file = Path(os.path.normpath(path.parent / os.readlink(path)))
            if file == path or file.parent == blobs:
                os.replace(file, blobs / f"{file.name}.{secrets.token_hex(4)}.corrupt.incomplete")
            path.unlink(missing_ok=True)

    def symlinks(self) -> bool:
        """Whether links may be made here: probed once, and off by HF_HUB_DISABLE_SYMLINKS."""
        if self._symlinks is None:
            off = os.environ.get("HF_HUB_DISABLE_SYMLINKS", "").upper() in _TRUE
            self._symlinks = not off and self._probe_symlinks()
        return self._symlinks

    def _probe_symlinks(self) -> bool:
        probe = self.folder / "blobs" / f"probe.{secrets.token_hex(4)}.incomplete"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            os.symlink("nowhere", probe)
            probe.unlink()
        except OSError:
            return False
        return True


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _commit(commit: str) -> str:
    if not is_commit(commit):
        raise CorruptError(f"{commit!r} is not a commit hash.", file="X-Repo-Commit")
    return commit


def _blob_name(etag: str) -> str:
    if checksum_of_etag(etag) is None:
        raise CorruptError(f"{etag!r} is not a hash of 40 or 64 hex digits.", file="ETag")
    return etag


def path_inside(path: str) -> Path:
    """`path` if it stays in its folder, on disk under the rules of every system and in a URL. Else SourceError."""
    parts = path.split("/")
    for part in parts:
        if part in ("", ".", "..") or re.search(r"[\x00-\x1f\\\ud800-\udfff]", part) or part[1:2] == ":":
            raise SourceError(f"{path!r} is not a path inside a repository.")
    return Path(*parts)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _rename(source: Path, target: Path) -> None:
    """Rename a file or a link, also from a folder of blobs that is on another disk."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = target.with_name(source.name)
        shutil.copyfile(source, beside, follow_symlinks=False)
        if not beside.is_symlink():
            _sync(beside)
        os.replace(beside, target)
        source.unlink()


def _sync(path: Path) -> None:
    """Make a file, or the renames in a folder, survive a power cut. Some file systems refuse: that is no error."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def url_repo_id(url: str) -> str:
    """The cache name for files of a plain URL: a repository of the reserved owner `url`.

    Kept in the same layout, so that the Hub's tools list and delete them like any other. Nothing of
    a user name or a password in the URL is in it.
    """
    shown = redact_url(url)
    host = re.sub(r"[^A-Za-z0-9]+", "-", urlsplit(shown).netloc)[:60].strip("-") or "host"
    return f"url/{host}-{hashlib.sha256(shown.encode()).hexdigest()[:16]}"
