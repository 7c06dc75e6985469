"""Small files, published many at once."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from asyncfetch.errors import CorruptError, StorageError
from asyncfetch.storage.cache import RepoCache
from asyncfetch.storage.small import SmallFile, publish_small

from ..kit.strace import strace

COMMIT = "c" * 40


def small(name: str, data: bytes, *, size: bool = True) -> SmallFile:
    return SmallFile(name, hashlib.sha256(data).hexdigest(), memoryview(data), len(data) if size else None)


@pytest.mark.parametrize("symlinks", [True, False])
def test_each_has_its_names(tmp_path: Path, symlinks: bool) -> None:
    """Two with the same bytes, one that is there, one in a folder, an empty one: whole, and nothing is left beside."""
    cache = RepoCache(tmp_path, "org/model", symlinks=symlinks)
    cache.prepare()
    publish_small(cache, COMMIT, [small("there", b"there")], named=True)
    contents = {"a": b"same", "b/c/d": b"same", "e": b"", "there": b"there", "f/g": b"other"}
    before = os.stat(cache.snapshot(COMMIT) / "there").st_ino
    places = publish_small(cache, COMMIT, [small(name, data) for name, data in contents.items()], named=True)
    assert places == [cache.snapshot(COMMIT) / name for name in contents]
    assert [place.read_bytes() for place in places] == [*contents.values()]
    assert os.stat(cache.snapshot(COMMIT) / "there").st_ino == before, "others may have it mapped"
    blobs = {hashlib.sha256(data).hexdigest() for data in contents.values()} if symlinks else set()
    assert {path.name for path in (cache.folder / "blobs").iterdir()} == blobs


def test_what_changes_without_telling_is_replaced(tmp_path: Path) -> None:
    """Of a file of which nothing tells the version, what is there may be another one."""
    cache = RepoCache(tmp_path, "org/model", symlinks=False)
    cache.prepare()
    for data, size, now in ((b"one", False, b"one"), (b"two", True, b"one"), (b"two", False, b"two")):
        (place,) = publish_small(cache, COMMIT, [small("a", data, size=size)], named=True)
        assert place.read_bytes() == now


def test_a_failure_leaves_whole_files_alone(tmp_path: Path) -> None:
    """What has its blob keeps it; what was written under another name is removed."""
    cache = RepoCache(tmp_path, "org/model", symlinks=True)
    cache.prepare()
    (cache.folder / "snapshots").write_bytes(b"in the way")
    with pytest.raises(StorageError):
        publish_small(cache, COMMIT, [small("a", b"1"), small("b", b"2")], named=True)
    (cache.folder / "blobs" / small("d", b"4").blob).mkdir()
    (cache.folder / "blobs" / small("d", b"4").blob / "of others").mkdir()
    with pytest.raises(StorageError):
        publish_small(cache, COMMIT, [small("c", b"3"), small("d" * 300, b"4")], named=True)
    with pytest.raises(CorruptError):
        publish_small(cache, COMMIT, [small("e", b"5"), SmallFile("f", "../f", memoryview(b""), 0)], named=True)
    kept = {path.name: path.read_bytes() for path in (cache.folder / "blobs").iterdir() if path.is_file()}
    assert kept == {small("", data).blob: data for data in (b"1", b"2", b"3", b"4")}


def test_a_pruned_folder_is_made_again(tmp_path: Path) -> None:
    """Nothing but the bytes is needed."""
    cache = RepoCache(tmp_path, "org/model", symlinks=True)
    (place,) = publish_small(cache, COMMIT, [small("a", b"1")], named=True)
    assert place.read_bytes() == b"1"


PUBLISH = f"""
import sys
from pathlib import Path
from tests.storage.test_small import RepoCache, publish_small, small
cache = RepoCache(Path(sys.argv[1]), "org/name", symlinks=True)
cache.prepare()
publish_small(cache, {COMMIT!r}, [small(name, name.encode()) for name in "ab"], named=True)
"""


def test_the_order_of_publication(tmp_path: Path) -> None:
    """All files synced, all blobs named, their folder synced, and only then the links: each folder once."""
    calls = strace([sys.executable, "-c", PUBLISH, str(tmp_path)], "fsync,rename,symlink", tmp_path)
    steps = [
        (call.split("(")[0].split()[-1], "snapshots" if "snapshots" in call else "blobs")
        for call in calls
        if "= 0" in call and ("/blobs" in call or "/snapshots" in call) and "CACHEDIR" not in call
    ]
    files = [("fsync", "blobs"), ("fsync", "blobs"), ("rename", "blobs"), ("rename", "blobs")]
    links = [("symlink", "snapshots"), ("symlink", "snapshots")]
    assert steps == [*files, ("fsync", "blobs"), *links, ("fsync", "snapshots")]
