"""What a server keeps of another Hub: what goes when there is no room, and what stays whatever happens."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest
from huggingface_hub import scan_cache_dir

from asyncfetch.errors import SourceError, StorageError
from asyncfetch.server.keeping import ledger
from asyncfetch.server.keeping.books import Books
from asyncfetch.server.keeping.eviction import open_shared
from asyncfetch.server.keeping.inventory import Inventory, Item, take_inventory
from asyncfetch.server.keeping.kept import Kept
from asyncfetch.server.keeping.room import Limits, excess, in_order
from asyncfetch.storage.cache import RepoCache

from ...kit.small_model import ONE_LOOP

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIZE = 1000
FREE = 10**18  # bytes; room on the disk is not what these tests are about


class DiskUsage(NamedTuple):
    total: int
    used: int
    free: int


class Clock:
    """Seconds since 1970, which go on when they are told to."""

    def __init__(self, at: float = 2e9) -> None:  # after all files of the tests were written
        self.at = at

    def __call__(self) -> float:
        self.at += 1
        return self.at


def fill(root: Path, repo: str, count: int = 3, *, symlinks: bool = True) -> list[Path]:
    """A repository of `count` files of SIZE bytes, as a download leaves it. Returns where they lie."""
    cache = RepoCache(root, repo, symlinks=symlinks)
    cache.prepare()
    paths = []
    for number in range(count):
        data = random.Random(f"{repo}{number}").randbytes(SIZE)
        etag = hashlib.sha256(data).hexdigest()
        link = cache.add_small(data, etag, COMMIT, f"part/{number}.bin")
        paths.append(cache.blob(etag) if symlinks else link)
    cache.write_ref("main", COMMIT)
    return paths


def left(root: Path) -> set[str]:
    """The repositories of which files are left, each with how many."""
    found: dict[str, int] = {}
    for item in take_inventory(root).items:
        found[item.folder.rpartition("--")[2]] = found.get(item.folder.rpartition("--")[2], 0) + 1
    return {f"{name}{count}" for name, count in found.items()}


@pytest.mark.parametrize("symlinks", [True, False])
def test_what_was_read_least_recently_goes_first(tmp_path: Path, symlinks: bool) -> None:
    files = {name: fill(tmp_path, f"org/{name}", symlinks=symlinks) for name in "abc"}
    kept = Kept(tmp_path, Limits(9 * SIZE, 0), now=Clock())
    for path in (files["c"][1], *files["a"], files["b"][0]):
        kept.note(path)
    kept.close()
    kept = Kept(tmp_path, Limits(9 * SIZE, 0), now=Clock(3e9))  # a restart forgets nothing
    kept.note(files["b"][1])
    assert not kept.make_room(9 * SIZE + 1)
    assert left(tmp_path) == {"a3", "b3", "c3"}  # nothing goes in vain
    assert kept.make_room(3 * SIZE)
    assert left(tmp_path) == {"a3", "b2", "c1"}
    assert files["c"][1].exists()
    assert kept.make_room(5 * SIZE)
    assert left(tmp_path) == {"a2", "b2"}
    assert not (tmp_path / "models--org--c").exists()
    found = scan_cache_dir(tmp_path)
    assert not found.warnings
    assert found.size_on_disk == 4 * SIZE
    (a, b) = kept.repositories()
    assert (a.kind, a.name, a.size, a.hits, b.hits) == ("models", "org/a", 2 * SIZE, 2, 2)
    assert {file.names for file in a.files} <= {(f"part/{number}.bin",) for number in range(3)}
    assert kept.make_room(9 * SIZE)
    assert not left(tmp_path)
    assert not scan_cache_dir(tmp_path).warnings


def test_pins(tmp_path: Path) -> None:
    for name in "abc":
        fill(tmp_path, f"org/{name}")
    kept, other = (Kept(tmp_path, Limits(9 * SIZE, 0)) for _ in range(2))  # another process pins
    other.pin("models", "org/b")
    assert kept.make_room(6 * SIZE)
    assert left(tmp_path) == {"b3"}
    assert not kept.make_room(6 * SIZE + 1)
    with pytest.raises(SourceError, match="pinned"):
        kept.evict("models", "org/b")
    (b,) = kept.repositories()
    assert b.pinned
    other.unpin("models", "org/b")
    assert kept.evict("models", "org/b", [b.files[0].etag]) == SIZE
    assert kept.evict("models", "org/b") == 2 * SIZE
    assert os.listdir(tmp_path)
    assert not left(tmp_path)


@contextmanager
def holding(path: Path, how: str) -> Iterator[None]:
    """Another process that has a lock on `path`."""
    code = f"""
import fcntl, os, sys
from asyncfetch.server.keeping.eviction import open_shared
from filelock import FileLock
path = {str(path)!r}
if {how!r} == "hub":
    held = FileLock(path)
    held.acquire()
elif {how!r} == "reads":
    held = open_shared(path)
else:
    held = os.open(path, os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield
        process.kill()


@pytest.mark.parametrize("how", ["reads", "hub"])
def test_what_another_process_uses_stays(tmp_path: Path, how: str) -> None:
    (first, *_) = fill(tmp_path, "org/a")
    fill(tmp_path, "org/b")
    lock = tmp_path / ".locks" / "models--org--a" / f"{first.name}.lock"
    kept = Kept(tmp_path, Limits(6 * SIZE, 0))
    with holding(first if how == "reads" else lock, how):
        assert not kept.make_room(6 * SIZE)
        assert first.exists()
        assert left(tmp_path) == {"a1"}
    assert kept.make_room(6 * SIZE)
    assert not left(tmp_path)


def test_who_reads_a_file_that_goes_reads_on(tmp_path: Path) -> None:
    (first, *_) = fill(tmp_path, "org/a")
    whole = first.read_bytes()
    descriptor = open_shared(first)
    kept = Kept(tmp_path)
    assert kept.evict("models", "org/a") == 2 * SIZE
    assert first.exists()
    fcntl.flock(descriptor, fcntl.LOCK_UN)  # as where there are no locks
    assert kept.evict("models", "org/a") == SIZE
    assert not first.exists()
    assert os.pread(descriptor, SIZE + 1, 0) == whole
    os.close(descriptor)


def test_partials(tmp_path: Path) -> None:
    fill(tmp_path, "org/a", 1)
    cache = RepoCache(tmp_path, "org/a")
    ours, theirs = cache.partial("e" * 64), cache.folder / "blobs" / f"{'f' * 64}.abcd1234.incomplete"
    for partial in (ours, theirs):
        partial.write_bytes(b"\1" * SIZE)
    journal = ours.with_name(f"{'e' * 64}.asyncfetch.map.incomplete")
    journal.write_bytes(b"{}")
    kept = Kept(tmp_path, Limits(3 * SIZE, 0), now=Clock())
    kept.note(cache.folder / "blobs" / next(item.name for item in take_inventory(tmp_path).items if not item.partial))
    with holding(ours, "writes"):
        assert not kept.make_room(3 * SIZE)
        assert ours.exists()
        assert journal.exists()
        assert not theirs.exists()
    assert kept.make_room(3 * SIZE)
    assert not ours.exists()
    assert not journal.exists()


def test_other_limits(tmp_path: Path) -> None:
    fill(tmp_path, "org/a")
    free = take_inventory(tmp_path).free
    assert free is not None
    assert not Kept(tmp_path, Limits(min_free=free + 10**9)).make_room(0)
    assert left(tmp_path) == {"a3"}  # all that may go would not do
    assert not Kept(tmp_path).make_room(free)
    assert left(tmp_path) == {"a3"}  # nobody said that anything may go
    assert Kept(tmp_path, Limits(SIZE, 0)).make_room(0)
    assert left(tmp_path) == {"a1"}


def test_nothing_goes_that_nobody_gave_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "org/a")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**9, 10**9, 10**7 - SIZE))
    assert not Kept(tmp_path).make_room(0)
    assert left(tmp_path) == {"a3"}


@ONE_LOOP
@pytest.mark.anyio
async def test_what_landed_counts_once(tmp_path: Path) -> None:
    kept = Kept(tmp_path, Limits(4 * SIZE, 0))
    for at, etag in enumerate(("e" * 64, "f" * 64)):
        partial = RepoCache(tmp_path, "org/a").partial(etag)
        assert await kept.admit(partial, 2 * SIZE)
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.with_name(etag).write_bytes(b"\0" * 2 * SIZE)  # it has its name, and its fill has not ended yet
        kept._last = None
        assert kept._look().used == (at + 1) * 2 * SIZE
        assert not await kept.admit(RepoCache(tmp_path, "org/b").partial(etag), 5 * SIZE)
    assert left(tmp_path) == {"a2"}


def test_how_much_has_to_go() -> None:
    found = Inventory([], used=800, owed=50, free=300, total=20_000)
    assert excess(found, 100, Limits(1000, 0)) <= 0
    assert excess(found, 300, Limits(1000, 0)) == 100
    assert excess(found, 100, Limits(1000, 200)) == 50  # 50 are promised to what is being written
    assert excess(found, 0, Limits(1000, 0)._replace(max_size=500)) == 300
    assert excess(found, 100, Limits()) == 50  # a hundredth of the disk stays free
    assert excess(found._replace(free=None), 100, Limits()) <= 0
    assert Limits().floor(10**15) == 2**30


def test_what_goes_together() -> None:
    def item(folder: str, name: str, at: float, inode: int) -> Item:
        return Item(folder, f"blobs/{name}", 10, 0, at, (1, inode))

    one, same, late = item("models--a", "x", 5, 1), item("models--b", "x", 5, 1), item("models--c", "y", 6, 2)
    assert in_order([late, one, same], {}) == [([one, same], 5), ([late], 6)]
    assert in_order([late, one, same], {same.key: 9.0}) == [([late], 6), ([one, same], 9.0)]
    assert in_order([late, one, same], {}, {"models--b"}) == [([late], 6)]


def test_pins_that_cannot_be_read_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_WAIT", 0.0)
    fill(tmp_path, "org/a")
    kept = Kept(tmp_path, Limits(SIZE, 0))
    kept.pin("models", "org/a")
    kept.close()
    with closing(sqlite3.connect(kept.books.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match="pins"):
            kept.make_room(0)
    assert left(tmp_path) == {"a3"}


def test_two_names_of_one_file(tmp_path: Path) -> None:
    (first, *_) = fill(tmp_path, "org/a", 1)
    fill(tmp_path, "org/b", 1)
    second = RepoCache(tmp_path, "org/b").blob(first.name)
    second.hardlink_to(first)
    kept = Kept(tmp_path, Limits(2 * SIZE, 0), now=Clock())
    kept.note(next(path for path in second.parent.iterdir() if path != second))
    assert kept.make_room(0)
    assert left(tmp_path) == {"a1", "b2"}  # it takes its room once
    assert kept.evict("models", "org/a") == 0  # there is another name of it
    assert left(tmp_path) == {"b2"}
    assert kept.make_room(SIZE)
    assert left(tmp_path) == {"b1"}
    assert not second.exists()


def test_damaged_books_are_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "books.sqlite3"
    path.write_bytes(b"no database" * 1000)
    books = Books(path)
    books.note("models--a/blobs/x")
    books.flush()
    books.pin("models--a")
    again = Books(path)
    assert again.pins() == {"models--a"}
    assert again.reads()["models--a/blobs/x"].hits == 1
    assert "is damaged" in caplog.text


def test_books_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    books = Books(tmp_path / "file" / "books.sqlite3")
    assert not books.pins()  # there never were any
    books.note("models--a/blobs/x")
    books.flush()
    books.flush()
    assert books.reads()["models--a/blobs/x"].hits == 1
    assert caplog.text.count("cannot be used") == 1
