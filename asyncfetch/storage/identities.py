"""What the commits of a plain URL stand for. Blocking calls: run them in a thread.

A web server has no commits, so one is made from what is known of the files: a key for each name, made of
size and validator. The keys are recorded beside the snapshots, in `identities/<commit>.json`, whose SHA-1
the commit is. So a later call finds which snapshots hold a file as it is now, a record never changes, and
one that is damaged is told from a whole one. The Hub's tools leave the folder alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..errors import storage_errors
from .cache import RepoCache, is_commit

__all__ = ["commit_of", "known_states", "read_identities", "same_blob", "write_identities"]


def commit_of(identities: Mapping[str, str]) -> str:
    """The commit of files with these keys: 40 hex digits."""
    return hashlib.sha1(_record(identities), usedforsecurity=False).hexdigest()


def known_states(cache: RepoCache, ref: str) -> dict[str, dict[str, str]]:
    """The keys of each snapshot's files: first that which `ref` names, then from the newest to the oldest."""
    snapshots, named = _snapshots(cache), cache.commit_of(ref)
    snapshots.sort(key=lambda path: (path.name == named, _written(path)), reverse=True)
    return {path.name: read_identities(cache, path.name) for path in snapshots}


def same_blob(cache: RepoCache, file: str, key: str) -> str:
    """The blob of a file in the state that `key` stands for, as a snapshot links it; "" if none does."""
    for snapshot in _snapshots(cache):
        link = cache.find(snapshot.name, file)  # first, since most have no such file
        checksum = cache.checksum_of(link) if link is not None else None
        if checksum is not None and read_identities(cache, snapshot.name).get(file) == key:
            return checksum.hex
    return ""


def _snapshots(cache: RepoCache) -> list[Path]:
    folder = cache.folder / "snapshots"
    with storage_errors(folder):
        return [path for path in folder.iterdir() if is_commit(path.name)] if folder.is_dir() else []


def _written(path: Path) -> float:
    with suppress(OSError):  # pruned meanwhile
        return path.stat().st_mtime
    return 0.0


def read_identities(cache: RepoCache, commit: str) -> dict[str, str]:
    """The keys that a commit was made from; empty where there is no whole record."""
    try:
        raw = _path(cache, commit).read_bytes()
    except OSError:
        return {}
    if hashlib.sha1(raw, usedforsecurity=False).hexdigest() != commit:
        return {}
    return {str(name): str(key) for name, key in json.loads(raw).items()}


def write_identities(cache: RepoCache, identities: Mapping[str, str]) -> None:
    """Record what the commit of these files is made from.

    Half a record is none, so no rename is needed. Where it cannot be written nothing is lost but time:
    what is here is fetched again when it is part of another selection.
    """
    commit = commit_of(identities)
    if read_identities(cache, commit):
        return
    path = _path(cache, commit)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_record(identities))


def _path(cache: RepoCache, commit: str) -> Path:
    return cache.folder / "identities" / f"{commit}.json"


def _record(identities: Mapping[str, str]) -> bytes:
    return json.dumps(dict(sorted(identities.items())), indent=0).encode()
