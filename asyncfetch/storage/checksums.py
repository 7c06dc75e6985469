"""Hashes of files: which there are, what a file must have, and whether it has it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import ChecksumMismatchError, SourceError, storage_errors
from ..spans import MiB

__all__ = [
    "Checksum",
    "Hash",
    "checksum_of_etag",
    "digest_of",
    "file_digest",
    "git_blob_id",
    "new_hash",
    "parse_checksum",
    "verify_file",
    "verify_small",
]


_HEX = {"sha256": 64, "git-sha1": 40}


@dataclass(frozen=True, slots=True)
class Checksum:
    """The hash that a whole file must have.

    `algorithm` is "sha256", or "git-sha1": SHA-1 over `blob <size>\\0` and the bytes, which is how
    git (and so the Hub, for files outside LFS) names a file. `hex` is lower-case.
    """

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def checksum_of_etag(etag: str) -> Checksum | None:
    """What the Hub's etag promises: 64 hex digits are sha256 (LFS), 40 are git's SHA-1."""
    if re.fullmatch(r"[0-9a-f]{64}", etag, re.ASCII):
        return Checksum("sha256", etag)
    if re.fullmatch(r"[0-9a-f]{40}", etag, re.ASCII):
        return Checksum("git-sha1", etag)
    return None


def parse_checksum(text: str, *, file: str) -> Checksum:
    """`"sha256:<64 hex>"`, or the 64 hex digits alone. Raises SourceError on anything else."""
    algorithm, colon, digits = str(text).strip().rpartition(":")
    if not colon:
        algorithm = "sha256"
    digits = digits.lower()
    if algorithm not in _HEX or not re.fullmatch(rf"[0-9a-f]{{{_HEX[algorithm]}}}", digits, re.ASCII):
        raise SourceError(
            f"The checksum of {file!r} is not usable.", hint='Write it as "sha256:" and 64 hexadecimal digits.'
        )
    return Checksum(algorithm, digits)


def verify_small(name: str, data: bytes, checksum: Checksum) -> None:
    """Hold a small file against its hash. Raises ChecksumMismatchError."""
    actual = digest_of(data, checksum.algorithm)
    if actual != checksum.hex:
        raise ChecksumMismatchError(name, algorithm=checksum.algorithm, expected=checksum.hex, actual=actual)


def digest_of(data: bytes, algorithm: str) -> str:
    """The hex digest of a small file."""
    running = new_hash(algorithm, len(data))
    running.update(memoryview(data))
    return running.hexdigest()


def file_digest(path: Path, algorithm: str, check: Callable[[], None] = lambda: None) -> str:
    """The hex digest of a file, read in 4 MiB pieces; `check` runs between them and may raise."""
    with storage_errors(path), open(path, "rb") as stream:
        running = new_hash(algorithm, os.fstat(stream.fileno()).st_size)
        buffer = memoryview(bytearray(4 * MiB))
        while got := stream.readinto(buffer):
            running.update(buffer[:got])
            check()
    return running.hexdigest()


def verify_file(path: Path, checksum: Checksum, *, file: str, check: Callable[[], None] = lambda: None) -> None:
    """Hash a whole file again. Raises ChecksumMismatchError."""
    actual = file_digest(path, checksum.algorithm, check)
    if actual != checksum.hex:
        raise ChecksumMismatchError(file, algorithm=checksum.algorithm, expected=checksum.hex, actual=actual)


class Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


def new_hash(algorithm: str, size: int) -> Hash:
    """A running hash of a file of `size` bytes."""
    if algorithm == "git-sha1":
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return hashlib.sha256()


def git_blob_id(data: bytes) -> str:
    """The git object id of a file with this content."""
    return digest_of(data, "git-sha1")
