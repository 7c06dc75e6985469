"""What the commits of a plain URL stand for: names that follow from the files, records that are whole or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asyncfetch.storage.cache import RepoCache, is_commit
from asyncfetch.storage.identities import commit_of, known_states, read_identities, write_identities

FILES = {"b.safetensors": "2" * 64, "a.safetensors": "1" * 64}
COMMIT = commit_of(FILES)


@pytest.fixture
def cache(tmp_path: Path) -> RepoCache:
    return RepoCache(tmp_path, "url/host-0")


def snapshot(cache: RepoCache, files: dict[str, str], *, written: int) -> str:
    """A snapshot with a record, last written to at that second."""
    write_identities(cache, files)
    commit = commit_of(files)
    cache.snapshot(commit).mkdir(parents=True)
    os.utime(cache.snapshot(commit), (written, written))
    return commit


def test_a_commit_follows_from_its_files() -> None:
    """From names and keys in any order, and from nothing else."""
    assert is_commit(COMMIT)
    assert commit_of(dict(reversed(FILES.items()))) == COMMIT
    assert commit_of({**FILES, "a.safetensors": "3" * 64}) != COMMIT
    assert commit_of({"a.safetensors": "1" * 64}) != COMMIT


def test_a_record_is_whole_or_none(cache: RepoCache) -> None:
    """What is torn or of other files is no record, and is written anew."""
    assert read_identities(cache, COMMIT) == {}
    write_identities(cache, FILES)
    assert read_identities(cache, COMMIT) == FILES
    path = cache.folder / "identities" / f"{COMMIT}.json"
    for content in (path.read_bytes()[:-1], b"", b"{}"):
        path.write_bytes(content)
        assert read_identities(cache, COMMIT) == {}
    write_identities(cache, FILES)
    assert read_identities(cache, COMMIT) == FILES


def test_a_record_is_written_once(cache: RepoCache) -> None:
    """A cache that may only be read stays usable."""
    write_identities(cache, FILES)
    path = cache.folder / "identities" / f"{COMMIT}.json"
    before = path.stat()
    write_identities(cache, FILES)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_the_order_of_states(cache: RepoCache) -> None:
    """That of the ref comes first, then the newest. What is no commit is none, and a snapshot may have no record."""
    assert known_states(cache, "main") == {}
    old = snapshot(cache, {"a": "1"}, written=1_000)
    new = snapshot(cache, {"a": "2"}, written=3_000)
    middle = snapshot(cache, {"a": "3"}, written=2_000)
    (cache.folder / "snapshots" / "notes").mkdir()
    (cache.folder / "identities" / f"{middle}.json").unlink()
    assert list(known_states(cache, "main").items()) == [(new, {"a": "2"}), (middle, {}), (old, {"a": "1"})]
    (cache.folder / "blobs").mkdir()
    cache.write_ref("main", old)
    assert list(known_states(cache, "main")) == [old, new, middle]
