"""One repository in one state: its files, their hashes, its commit. Pure, without I/O."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ...storage.checksums import git_blob_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["File", "Listed", "Repository", "Signature", "lfs_pointer"]

LFS_SIZE = 10_000_000  # bytes; above this the Hub asks for LFS


class Signature(NamedTuple):
    """What stat says about one state of a file; another state has another one."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Listed(NamedTuple):
    """A file as the walk finds it, before it is hashed. `real` has no links left in it.

    `promised` is the hash that a hub cache gives a file by the name of its blob (hex).
    """

    path: str
    real: str
    signature: Signature
    promised: str | None = None

    @property
    def lfs(self) -> bool:
        """Whether the Hub would keep it in LFS, and so name it by its sha256."""
        if self.promised is not None:
            return len(self.promised) == 64
        return self.path.endswith(".safetensors") or self.signature.size > LFS_SIZE

    @property
    def algorithm(self) -> str:
        """How it is hashed, as `storage.checksums` names it."""
        return "sha256" if self.lfs else "git-sha1"


@dataclass(frozen=True, slots=True)
class File:
    """One file of a repository. `etag` is the sha256 of an LFS file, the git blob id of any other (hex)."""

    listed: Listed
    etag: str

    @property
    def path(self) -> str:
        """The path within the repository, with forward slashes."""
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
    """A repository in one state. `commit` is that of its source, or else made of paths, sizes and hashes alone.

    `files` maps a path to its File, in the order of paths; `folders` maps a path to its tree id. `kept` is for
    what is made of it once, such as the text of an answer.
    """

    def __init__(
        self,
        name: str,
        listing: tuple[Listed, ...],
        etags: Mapping[Listed, str],
        *,
        commit: str | None = None,
    ) -> None:
        self.name = name
        self.listing = listing
        self.kept: dict[object, Any] = {}
        self.files = {listed.path: File(listed, etags[listed]) for listed in listing}
        self.modified = max((listed.signature.mtime_ns for listed in listing), default=0) / 1e9
        trees = {"": hashlib.sha1(usedforsecurity=False)}
        for file in self.files.values():
            line = f"{file.path}\0{file.size}\0{file.etag}\n".encode()
            for folder in _folders_of(file.path):
                trees.setdefault(folder, hashlib.sha1(usedforsecurity=False)).update(line)
        made = trees.pop("").hexdigest()
        self.commit = commit or made
        self.folders = {path: tree.hexdigest() for path, tree in trees.items()}


def _folders_of(path: str) -> Iterator[str]:
    """The folders above `path`, up to and with the root, which is the empty string."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git holds in place of an LFS file (git-lfs docs/spec.md)."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
