"""A directory of models: which there are, which files each holds, and under which hashes.

    DIR/org/name/...   the model "org/name"
    DIR/name/...       the model "name", when the folder itself holds a file
    DIR/...            when DIR itself holds a checkpoint or a config: one model, called "name" and
                       "local/name" after the folder, and nothing else

Skipped are names that start with a dot (.git, .cache, .DS_Store), `*.incomplete`, names that are not
UTF-8 or hold control characters, and whatever is not a regular file. Links to files are followed when
they end inside DIR; links to folders inside a model are not followed.

A request never becomes a path: the disk is walked, and requests are looked up in what was found.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio
from anyio import to_thread

from ..errors import ChangedError, SourceError
from ..spans import MiB
from ..storage.checksums import git_blob_id, new_hash

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Catalog", "File", "Listed", "Repository", "lfs_pointer"]

LFS_SIZE = 10_000_000  # bytes; above this the Hub asks for LFS
CLOCK_TICK = 0.05  # seconds; file systems stamp changes with a clock no coarser than this
ATTEMPTS = 3  # how often a folder that changes while it is hashed is looked at again

_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_\-][A-Za-z0-9_\-.]{0,95}")
_MODEL_MARKS = ("config.json", ".safetensors", ".safetensors.index.json")


class Signature(NamedTuple):
    """What stat says about one state of a file; another state has another one."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Listed(NamedTuple):
    """A file as the walk finds it, before it is hashed. `real` has no links left in it."""

    path: str
    real: str
    signature: Signature

    @property
    def lfs(self) -> bool:
        """Whether the Hub would keep it in LFS, and so name it by its sha256."""
        return self.path.endswith(".safetensors") or self.signature.size > LFS_SIZE


@dataclass(frozen=True, slots=True)
class File:
    """One file of a model. `etag` is the sha256 of an LFS file, the git blob id of any other (hex)."""

    listed: Listed
    etag: str

    @property
    def path(self) -> str:
        """The path within the model, with forward slashes."""
        return self.listed.path

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.listed.signature.size

    @property
    def lfs(self) -> bool:
        """Whether `etag` is a sha256."""
        return self.listed.lfs

    @property
    def oid(self) -> str:
        """The git blob id; for an LFS file that of its pointer."""
        return git_blob_id(lfs_pointer(self.etag, self.size)) if self.lfs else self.etag


class Repository:
    """One model in one state. `commit` is 40 hex digits that depend on paths, sizes and hashes alone.

    `files` maps a path to its File, in the order of paths; `folders` maps a path to its tree id.
    """

    def __init__(self, name: str, listing: tuple[Listed, ...], etags: dict[Listed, str]) -> None:
        self.name = name
        self.listing = listing
        self.files = {listed.path: File(listed, etags[listed]) for listed in listing}
        self.modified = max((listed.signature.mtime_ns for listed in listing), default=0) / 1e9
        trees = {"": hashlib.sha1(usedforsecurity=False)}
        for file in self.files.values():
            line = f"{file.path}\0{file.size}\0{file.etag}\n".encode()
            for folder in _folders_of(file.path):
                trees.setdefault(folder, hashlib.sha1(usedforsecurity=False)).update(line)
        self.commit = trees.pop("").hexdigest()
        self.folders = {path: tree.hexdigest() for path, tree in trees.items()}


def _folders_of(path: str) -> Iterator[str]:
    """The folders above `path`, up to and with the root, which is the empty string."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git holds in place of an LFS file (git-lfs docs/spec.md)."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _signature(status: os.stat_result) -> Signature:
    return Signature(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _servable(name: str) -> bool:
    if name.startswith(".") or name.endswith(".incomplete"):
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return all(ord(character) >= 32 and ord(character) != 127 for character in name)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What `folder` holds that may be served; nothing when it is gone or not readable."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if _servable(entry.name)]
    except OSError:
        return []


def _folder_names(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _listed(entry: os.DirEntry[str], path: str, root: Path) -> Listed | None:
    """The regular, readable file behind `entry`, if it lies inside `root`."""
    real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
    try:
        status = os.stat(real, follow_symlinks=False)
    except OSError:  # it is gone, or the link dangles
        return None
    if not stat.S_ISREG(status.st_mode) or not Path(real).is_relative_to(root) or not os.access(real, os.R_OK):
        return None
    return Listed(path, real, _signature(status))


def _walk(folder: Path, root: Path, prefix: str = "") -> Iterator[Listed]:
    """All servable files under `folder`, which is resolved and inside `root`."""
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, root, f"{prefix}{entry.name}/")
        elif listed := _listed(entry, f"{prefix}{entry.name}", root):
            yield listed


def _open(listed: Listed) -> int:
    """A descriptor of exactly the file that was listed. Raises ChangedError when it is another one now."""
    try:
        descriptor = os.open(listed.real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ChangedError(listed.path, "it can no longer be opened") from error
    if _signature(os.fstat(descriptor)) != listed.signature:
        os.close(descriptor)
        raise ChangedError(listed.path, "it was written to")
    return descriptor


def _hash(listed: Listed, closed: threading.Event) -> str:
    """The etag of a file. Raises ChangedError when it changes meanwhile, or when `closed` is set."""
    age = time.time() - listed.signature.ctime_ns / 1e9
    if 0 <= age < CLOCK_TICK:  # a write in the same tick would leave the stamp as it is
        closed.wait(CLOCK_TICK - age)
    digest = new_hash("sha256" if listed.lfs else "git-sha1", listed.signature.size)
    with open(_open(listed), "rb", buffering=0) as file:
        buffer = memoryview(bytearray(MiB))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if closed.is_set():
                raise ChangedError(listed.path, "the server is stopping")
        if _signature(os.fstat(file.fileno())) != listed.signature:
            raise ChangedError(listed.path, "it was written to")
    return digest.hexdigest()


class Catalog:
    """The models of one directory. Raises SourceError when `root` is not a directory.

    Hashes are computed when first asked for, in worker threads, once for all who wait, and kept in
    memory for as long as device, inode, size and both time stamps of the file stay the same.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        try:
            self.root = Path(root).resolve(strict=True)
        except OSError as error:
            raise SourceError(f"{os.fspath(root)} cannot be served: {error.strerror or error}.") from error
        if not self.root.is_dir():
            raise SourceError(f"{self.root} cannot be served: it is not a directory.")
        self._closed = threading.Event()
        self._hashing: anyio.CapacityLimiter | None = None  # of the loop that serves, not of the one that asks
        self._known: dict[tuple[str, bool], tuple[Signature, str]] = {}
        self._running: dict[tuple[str, bool], anyio.Event] = {}
        self._repositories: dict[tuple[str, Path], Repository] = {}

    def close(self) -> None:
        """End all hashing soon, from any thread; who waits for it gets a ChangedError."""
        self._closed.set()

    def names(self) -> list[str]:
        """The ids that are served, sorted. Looks at two levels of folders and hashes nothing. Blocks."""
        if self._is_one_model():
            return [self._own_name()]
        names = []
        for first in _folder_names(self.root):
            if self.locate(first):
                names.append(first)
            else:
                names += [f"{first}/{second}" for second in _folder_names(self.root / first)]
        return sorted(filter(self.locate, names))

    def locate(self, name: str) -> Path | None:
        """The folder of the model `name`, resolved and inside the root; None when there is none. Blocks.

        Names are compared with the folder's entries, so that their case counts on every file system.
        """
        parts = name.split("/")
        if len(parts) > 2 or not all(_NAME.fullmatch(part) for part in parts):
            return None
        if self._is_one_model():
            return self.root if name in (self._own_name(), f"local/{self._own_name()}") else None
        folder = self.root
        for part in parts:
            if part not in _folder_names(folder):
                return None
            folder = folder / part
        folder = folder.resolve()
        if not folder.is_relative_to(self.root) or folder == self.root:
            return None
        if len(parts) == 1 and not any(entry.is_file() for entry in _entries(folder)):
            return None
        return folder

    async def repository(self, name: str, folder: Path) -> Repository:
        """The model `name` in `folder`, as it is now. Raises ChangedError when it does not hold still."""
        for attempt in range(ATTEMPTS):
            listing = await to_thread.run_sync(lambda: tuple(sorted(_walk(folder, self.root))))
            known = self._repositories.get((name, folder))
            if known is not None and known.listing == listing:
                return known
            try:
                etags = await self._etags(listing)
            except ChangedError:
                if attempt == ATTEMPTS - 1 or self._closed.is_set():
                    raise
                continue
            repository = await to_thread.run_sync(Repository, name, listing, etags)
            self._repositories[name, folder] = repository
            return repository
        raise AssertionError("unreachable")

    async def open(self, file: File) -> int:
        """A descriptor for reading `file`, to be closed by the caller. Raises ChangedError."""
        return await to_thread.run_sync(_open, file.listed)

    async def _etags(self, listing: tuple[Listed, ...]) -> dict[Listed, str]:
        etags: dict[Listed, str] = {}
        changed: list[ChangedError] = []

        async def fill(listed: Listed) -> None:
            try:
                etags[listed] = await self._etag(listed)
            except ChangedError as error:  # the others go on: what they find is needed for the next look
                changed.append(error)

        async with anyio.create_task_group() as tasks:
            for listed in listing:
                if known := self._lookup(listed):
                    etags[listed] = known
                else:
                    tasks.start_soon(fill, listed)
        if changed:
            raise changed[0]
        return etags

    def _lookup(self, listed: Listed) -> str | None:
        signature, etag = self._known.get((listed.real, listed.lfs), (None, None))
        return etag if signature == listed.signature else None

    async def _etag(self, listed: Listed) -> str:
        key = (listed.real, listed.lfs)
        while (etag := self._lookup(listed)) is None:
            if (running := self._running.get(key)) is not None:
                await running.wait()
                continue
            self._running[key] = done = anyio.Event()
            try:
                self._hashing = self._hashing or anyio.CapacityLimiter(min(os.cpu_count() or 1, 4))
                await to_thread.run_sync(self._learn, key, listed, limiter=self._hashing)
            finally:
                del self._running[key]
                done.set()
        return etag

    def _learn(self, key: tuple[str, bool], listed: Listed) -> None:
        self._known[key] = (listed.signature, _hash(listed, self._closed))  # kept even if nobody waits any more

    def _is_one_model(self) -> bool:
        return any(entry.name.endswith(_MODEL_MARKS) and entry.is_file() for entry in _entries(self.root))

    def _own_name(self) -> str:
        name = re.sub(r"[^A-Za-z0-9_\-.]+", "-", self.root.name).strip("-.")[:96]
        return re.sub(r"\.{2,}", ".", name) or "model"
