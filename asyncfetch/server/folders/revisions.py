"""The revisions of a repository that lies on disk. Blocking calls: run them in a thread.

A folder has `main` and the commit that follows from its files. A repository of a hub cache has its refs and the
commits of its snapshots; `main` is the ref of that name, or where there is none the only snapshot. `HEAD` is `main`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import SourceError
from ...storage.cache import is_commit, path_inside
from ...storage.listings import read_listing

if TYPE_CHECKING:
    from .layout import Place

__all__ = ["commit_of", "has_file", "refs_of", "snapshot_of"]


def snapshot_of(place: Place, commit: str) -> Path:
    """The folder of a commit in a hub cache."""
    return place.folder / "snapshots" / commit


def _snapshots_of(place: Place) -> list[str]:
    if place.only is not None:
        return [place.only]
    try:
        return sorted(name for name in os.listdir(place.folder / "snapshots") if is_commit(name))
    except OSError:
        return []


def refs_of(place: Place) -> dict[str, str]:
    """The names of what a hub cache holds of a repository, and the commits that they stand for."""
    here = _snapshots_of(place)
    found: dict[str, str] = {}
    folder = place.folder / "refs"
    for path in folder.rglob("*"):
        commit = _read_ref(path)
        if commit in here:
            found[path.relative_to(folder).as_posix()] = commit
    if "main" not in found and len(here) == 1:
        found["main"] = here[0]
    return found


def commit_of(place: Place, revision: str) -> str | None:
    """The commit that a revision stands for in a hub cache. None if there is none, and for a folder."""
    if not place.cached:
        return None
    if is_commit(revision):
        return revision if revision in _snapshots_of(place) else None
    revision = "main" if revision == "HEAD" else revision
    try:
        commit = _read_ref(place.folder / "refs" / path_inside(revision))
    except SourceError:
        return None
    here = _snapshots_of(place)
    if commit in here:
        return commit
    return here[0] if revision == "main" and len(here) == 1 else None


def _read_ref(path: Path) -> str | None:
    try:
        commit = path.read_bytes().decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if is_commit(commit) else None


def has_file(place: Place, commit: str, path: str) -> bool | None:
    """Whether a commit has a file or a folder that is not here; None where nobody knows. A folder has what it has."""
    if not place.cached:
        return False
    listing = read_listing(place.folder, commit)
    if listing is not None:
        return path in listing or any(name.startswith(f"{path}/") for name in listing)
    try:
        marker = place.folder / ".no_exist" / commit / path_inside(path)
        return False if marker.is_file() else None
    except (SourceError, OSError):
        return False
