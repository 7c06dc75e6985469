"""Folders for tests of the server."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write"]


def write(path: Path, data: bytes = b"data") -> Path:
    """A file with these bytes, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
