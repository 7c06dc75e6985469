"""What the programs beside this compare with: the folder that is served, named by the variable ORIGINALS."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["ORIGINALS", "expect_same"]

ORIGINALS = Path(os.environ["ORIGINALS"])


def expect_same(found: str | os.PathLike[str], repository: str, name: str = "") -> None:
    """Exit with an error unless a downloaded file, or folder, has the bytes of the one that is served."""
    original, found = ORIGINALS / repository / name, Path(found)
    paths = [path for path in original.rglob("*") if path.is_file()] if original.is_dir() else [original]
    assert paths
    for path in paths:
        copy = found / path.relative_to(original) if original.is_dir() else found
        assert copy.read_bytes() == path.read_bytes(), f"{copy} is not {path}"
