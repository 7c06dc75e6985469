"""What is known of the files of a directory, while they change and are hashed."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from asyncfetch.errors import ChangedError
from asyncfetch.server.folders import catalog as catalog_module
from asyncfetch.server.folders import hashing as hashing_module
from asyncfetch.server.folders import walk as walk_module
from asyncfetch.server.folders.catalog import Catalog
from asyncfetch.server.folders.hashing import Hashing, Unready
from asyncfetch.server.folders.layout import CLOCK_TICK, Layout, Watched
from asyncfetch.server.folders.repository import Listed, Repository

from ...kit.small_model import ONE_LOOP
from ..trees import write

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = [ONE_LOOP, pytest.mark.anyio]


async def look(catalog: Catalog, name: str, revision: str = "main", path: str | None = None) -> Repository:
    place = catalog.locate("models", name)
    assert place is not None
    repository = await catalog.repository(place, revision, path)
    assert isinstance(repository, Repository)
    return repository


async def look_alone(root: Path, name: str) -> Repository:
    """What a catalog that knows nothing yet says."""
    async with Catalog(root) as catalog:
        return await look(catalog, name)


async def test_files(tmp_path: Path) -> None:
    """Only plain files inside the directory are listed, each under the hash that the Hub would use."""
    model = tmp_path / "root" / "m"
    write(model / "a.safetensors", b"weights")
    write(model / "sub" / "deep" / "b.json", b"{}")
    write(model / "empty", b"")
    for ignored in (".hidden", ".cache/x", "x.incomplete", "new\nline"):
        write(model / ignored)
    write(Path(os.fsdecode(os.fsencode(model) + b"/\xff")))
    os.mkfifo(model / "fifo")
    (model / "inside").symlink_to("sub/deep/b.json")
    (model / "escape").symlink_to(write(tmp_path / "secret"))
    (model / "loop").symlink_to(model)
    (model / "dangling").symlink_to("nowhere")
    (model / "itself").symlink_to("itself")
    repository = await look_alone(tmp_path / "root", "m")
    small = hashlib.sha1(b"blob 2\0{}").hexdigest()
    assert {path: file.etag for path, file in repository.files.items()} == {
        "a.safetensors": hashlib.sha256(b"weights").hexdigest(),
        "empty": "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",  # git's id of nothing
        "inside": small,
        "sub/deep/b.json": small,
    }
    assert set(repository.folders) == {"sub", "sub/deep"}


async def test_a_pointer_id(tmp_path: Path) -> None:
    """The git id of an LFS file is that of its pointer, as `git hash-object` has it."""
    write(tmp_path / "m" / "a.safetensors", b"weights")
    file = (await look_alone(tmp_path, "m")).files["a.safetensors"]
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.etag}\nsize 7\n".encode()
    assert file.oid == hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()


async def test_size_makes_lfs(tmp_path: Path) -> None:
    """Above 10 MB a file is named by its sha256 whatever it is called."""
    os.truncate(write(tmp_path / "m" / "big.txt"), 10_000_001)
    write(tmp_path / "m" / "limit.txt", bytes(10_000_000))
    files = (await look_alone(tmp_path, "m")).files
    assert (len(files["big.txt"].etag), len(files["limit.txt"].etag)) == (64, 40)


async def test_the_commit_follows_the_files(tmp_path: Path) -> None:
    """Equal files give an equal commit elsewhere; a rewrite, a rename and a removal each give another."""
    for root in ("one", "two"):
        write(tmp_path / root / "m" / "a", b"1")
        write(tmp_path / root / "m" / "b", b"2")
    commits = [(await look_alone(tmp_path / "two", "m")).commit]
    async with Catalog(tmp_path / "one") as one:
        assert [(await look(one, "m")).commit] == commits
        stamp = (tmp_path / "one" / "m" / "a").stat()
        write(tmp_path / "one" / "m" / "a", b"3")
        os.utime(tmp_path / "one" / "m" / "a", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # same size, same mtime
        commits.append((await look(one, "m", path="a")).commit)
        (tmp_path / "one" / "m" / "a").rename(tmp_path / "one" / "m" / "c")
        commits.append((await look(one, "m")).commit)
        (tmp_path / "one" / "m" / "c").unlink()
        commits.append((await look(one, "m")).commit)
    assert len(set(commits)) == 4


async def test_a_fresh_file_is_waited_for(tmp_path: Path) -> None:
    """A hash is taken only when a later write is sure to get another time stamp from a coarse clock."""
    for value in range(3):
        path = write(tmp_path / "m" / "a", b"%d" % value)
        repository = await look_alone(tmp_path, "m")
        assert time.time() - path.stat().st_ctime >= CLOCK_TICK
        assert repository.files["a"].etag == hashlib.sha1(b"blob 1\0%d" % value).hexdigest()


async def test_hashed_once(tmp_path: Path, hashed: list[str]) -> None:
    """Many who ask at once wait for one hash; later ones find it, under a second name too, and after a restart."""
    write(tmp_path / "root" / "m" / "a.safetensors", b"weights")
    (tmp_path / "root" / "m" / "b.safetensors").symlink_to("a.safetensors")
    for _ in range(2):
        async with Catalog(tmp_path / "root", state_dir=tmp_path / "state") as catalog:
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(look, catalog, "m")
            await look(catalog, "m")
        assert hashed == ["a.safetensors"]
    write(tmp_path / "root" / "m" / "a.safetensors", b"another")
    async with Catalog(tmp_path / "root", state_dir=tmp_path / "state") as catalog:
        file = (await look(catalog, "m")).files["b.safetensors"]
    assert file.etag == hashlib.sha256(b"another").hexdigest()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the files whose bytes are read, in that order."""
    read: list[str] = []
    real_open = walk_module.open_listed

    def counting(listed: Listed) -> int:
        read.append(listed.path)
        return real_open(listed)

    monkeypatch.setattr("asyncfetch.server.folders.hashes.open_listed", counting)
    return read


async def test_what_is_kept_may_be_damaged(tmp_path: Path, hashed: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """Lines that are cut short or none of ours say nothing; a folder that cannot be written to is told of once."""
    for name in "ab":
        write(tmp_path / "root" / "m" / name, name.encode())
    state = tmp_path / "state"
    async with Catalog(tmp_path / "root", state_dir=state) as catalog:
        await look(catalog, "m")
    (kept,) = state.iterdir()
    first, second = kept.read_text().splitlines()
    kept.write_text(f"{first}\n[]\n{{}}\nnonsense\n{second[:-20]}")
    hashed.clear()
    async with Catalog(tmp_path / "root", state_dir=state) as catalog:
        assert (await look(catalog, "m")).files["a"].etag == hashlib.sha1(b"blob 1\0a").hexdigest()
    assert len(hashed) == 1
    write(tmp_path / "blocked")
    async with Catalog(tmp_path / "root", state_dir=tmp_path / "blocked") as catalog:
        await look(catalog, "m")
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert warning.startswith(f"Hashes cannot be kept in {tmp_path / 'blocked'}")


async def test_what_is_kept_does_not_grow(tmp_path: Path, hashed: list[str]) -> None:
    """Lines about what is gone or was replaced are dropped."""
    write(tmp_path / "root" / "m" / "a", b"a")
    async with Catalog(tmp_path / "root", state_dir=tmp_path / "state") as catalog:
        await look(catalog, "m")
    (kept,) = (tmp_path / "state").iterdir()
    line = kept.read_text()
    kept.write_text(line * 1005 + line.replace("root/m/a", "root/m/gone"))
    async with Catalog(tmp_path / "root", state_dir=tmp_path / "state") as catalog:
        await look(catalog, "m")
    assert kept.read_text() == line
    assert hashed == ["a"]


async def test_who_asks_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files are hashed from the beginning if that is wanted, and what a client waits for before all others."""
    read, asked = list[str](), threading.Event()
    hash_file, want = hashing_module.hash_file, Hashing.want

    def noting(listed: Listed, *given: Any) -> str:
        read.append(Path(listed.real).parent.name)
        asked.wait(20)
        return hash_file(listed, *given)

    def noted(hashing: Hashing, files: Iterable[Listed], *, first: bool = False) -> Any:
        jobs = want(hashing, files, first=first)
        if first:
            asked.set()
        return jobs

    monkeypatch.setattr(hashing_module, "_MOST_THREADS", 1)
    monkeypatch.setattr(hashing_module, "hash_file", noting)
    monkeypatch.setattr(Hashing, "want", noted)
    for number in range(20):
        write(tmp_path / f"m{number:02}" / "a", b"a")
    async with Catalog(tmp_path, ahead=True) as catalog:
        while not read:
            await anyio.lowlevel.checkpoint()
        last = next(name for name in ("m19", "m18") if name not in read)
        await look(catalog, last)
        assert read[1] == last
        while len(read) < 20:
            await anyio.lowlevel.checkpoint()


async def test_hashing_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits longer than a client does; how far it is, is told and logged; it ends within a moment."""
    monkeypatch.setattr(catalog_module, "PATIENCE", 0.05)
    monkeypatch.setattr(hashing_module, "SHOWN_EVERY", 0.01)
    caplog.set_level(logging.INFO, "asyncfetch.server")
    os.truncate(write(tmp_path / "m" / "huge.safetensors"), 1 << 40)
    write(tmp_path / "m" / "small", b"small")
    async with Catalog(tmp_path) as catalog:
        place = catalog.locate("models", "m")
        assert place is not None
        started = time.monotonic()
        found = None
        while "Hashed" not in caplog.text or not (isinstance(found, Unready) and found.done > 5):
            found = await catalog.repository(place, "main")
    assert time.monotonic() - started < 10
    assert isinstance(found, Unready)
    assert found.done < found.total == (1 << 40) + 5
    assert found.seconds > 0
    assert "Hashing 1.1 TB in " in caplog.text
    assert " of 1.1 TB." in caplog.text


async def test_a_change_is_seen_at_once(tmp_path: Path) -> None:
    """What needs no hashing is told without a walk, as long as no folder and not the file in question has changed."""
    file = write(tmp_path / "o" / "m" / "sub" / "a", b"0")
    async with Catalog(tmp_path) as catalog:
        first = await look(catalog, "o/m")
        place = catalog.locate("models", "o/m")
        assert place is not None
        settled = time.monotonic() + CLOCK_TICK
        while time.monotonic() < settled:  # a folder that was written to just now is not relied on
            await anyio.lowlevel.checkpoint()
        await look(catalog, "o/m")
        assert catalog.peek(place, "main") is catalog.peek(place, "HEAD", "absent") is first
        assert catalog.peek(place, first.commit, "sub/a") is first
        assert catalog.peek(place, "other") is None
        write(file, b"1")
        assert catalog.peek(place, "main", "sub/a") is None
        write(tmp_path / "o" / "m" / "sub" / "b")
        assert catalog.peek(place, "main") is None
        assert set((await look(catalog, "o/m")).files) == {"sub/a", "sub/b"}


async def test_one_walk_for_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many who ask when it is time to look again wait for one walk."""
    write(tmp_path / "m" / "a", b"0")
    walks: list[Path] = []
    real_walk = catalog_module.walk

    def counting(layout: Layout, folder: Path, **options: Path) -> tuple[tuple[Listed, ...], Watched]:
        walks.append(folder)
        return real_walk(layout, folder, **options)

    monkeypatch.setattr(catalog_module, "walk", counting)
    async with Catalog(tmp_path) as catalog:
        first = await look(catalog, "m")
        place = catalog.locate("models", "m")
        assert place is not None
        settled = time.monotonic() + CLOCK_TICK
        while time.monotonic() < settled:
            await anyio.lowlevel.checkpoint()
        walks.clear()
        found: list[object] = []

        async def ask() -> None:
            found.append(await catalog.repository(place, "main"))

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(ask)
    assert found == [first] * 50
    assert len(walks) <= 3  # who is next in line may begin before the first has said what it found


async def test_a_change_in_place_is_seen_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What shows in no folder is looked for now and then."""
    file = write(tmp_path / "m" / "a", b"0")
    monkeypatch.setattr(catalog_module, "LOOK_AGAIN", 0.0)
    monkeypatch.setattr(catalog_module, "REST", 0.0)
    async with Catalog(tmp_path) as catalog:
        await look(catalog, "m")
        place = catalog.locate("models", "m")
        write(file, b"1")
        assert place is not None
        assert catalog.peek(place, "main") is None


async def test_a_file_that_changes_while_it_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One change is waited out; a file that never holds still is a ChangedError."""
    path = write(tmp_path / "m" / "a", b"0")
    real_open = walk_module.open_listed
    changes = 1

    def changing(listed: Listed) -> int:
        nonlocal changes
        descriptor = real_open(listed)
        if changes:
            changes -= 1
            write(path, b"longer %d" % changes)
        return descriptor

    monkeypatch.setattr("asyncfetch.server.folders.hashes.open_listed", changing)
    async with Catalog(tmp_path) as catalog:
        assert (await look(catalog, "m")).files["a"].size == len("longer 0")
        changes = 100
        write(path, b"again")
        with pytest.raises(ChangedError, match="a changed"):
            await look(catalog, "m", path="a")


async def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk refuses is told to who asks for it, and the other files are hashed all the same."""
    write(tmp_path / "bad" / "a", b"0")
    write(tmp_path / "good" / "a", b"1")
    real_open = walk_module.open_listed

    def refusing(listed: Listed) -> int:
        return os.open(tmp_path, os.O_RDONLY) if "bad" in listed.real else real_open(listed)

    monkeypatch.setattr("asyncfetch.server.folders.hashes.open_listed", refusing)
    async with Catalog(tmp_path, ahead=True) as catalog:
        with pytest.raises(ChangedError, match="cannot be read: Is a directory"):
            await look(catalog, "bad")
        assert (await look(catalog, "good")).files["a"].size == 1


async def test_opening_what_was_replaced(tmp_path: Path) -> None:
    """A file is opened only if it is still the one that was hashed, even if a link took its place."""
    path = write(tmp_path / "root" / "m" / "a")
    async with Catalog(tmp_path / "root") as catalog:
        file = (await look(catalog, "m")).files["a"]
        os.close(await catalog.open(file))
        write(tmp_path / "root" / "other").replace(path)
        with pytest.raises(ChangedError):
            await catalog.open(file)
        path.unlink()
        with pytest.raises(ChangedError):
            await catalog.open(file)
        path.symlink_to(write(tmp_path / "secret"))
        with pytest.raises(ChangedError):
            await catalog.open(file)


async def test_closing_ends_the_hashing(tmp_path: Path) -> None:
    """After close, a hash in progress ends within a moment, with an error."""
    os.truncate(write(tmp_path / "m" / "huge.safetensors"), 1 << 40)
    async with Catalog(tmp_path) as catalog:
        threading.Timer(0.1, catalog.close).start()
        with anyio.fail_after(10), pytest.raises(ChangedError, match="stopping"):
            await look(catalog, "m")


COMMIT, OTHER = "c" * 40, "d" * 40


def cached(cache: Path, name: str = "models--org--name") -> Path:
    """A repository of a hub cache with two commits, of which `main` is one, and one file that is damaged."""
    folder = cache / name
    for commit, files in {COMMIT: {"config.json": b"{}", "w.safetensors": b"weights"}, OTHER: {"bad": b"bad"}}.items():
        for path, data in files.items():
            sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            etag = hashlib.sha256(data).hexdigest() if path.endswith("tensors") else sha1
            blob = write(folder / "blobs" / etag, data if path != "bad" else b"BAD")
            (folder / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
            (folder / "snapshots" / commit / path).symlink_to(f"../../blobs/{blob.name}")
    write(folder / "refs" / "main", COMMIT.encode())
    write(folder / "refs" / "pr" / "7", OTHER.encode())
    write(folder / "refs" / "gone", b"e" * 40)
    return folder


async def test_a_hub_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Commits and hashes are those of the source, told without a hash taken; that is done later, and damage is said."""
    cached(tmp_path)
    async with Catalog(tmp_path) as catalog:
        main = await look(catalog, "org/name")
        assert (main.commit, main.files["w.safetensors"].etag) == (COMMIT, hashlib.sha256(b"weights").hexdigest())
        assert main.files["config.json"].etag == hashlib.sha1(b"blob 2\0{}").hexdigest()
        other = await look(catalog, "org/name", "pr/7")
        assert other is await look(catalog, "org/name", OTHER)
        place = catalog.locate("models", "org/name")
        assert place is not None
        for absent in ("gone", "e" * 40, "../main", ""):
            assert await catalog.repository(place, absent) is None
        while not catalog.is_damaged(other.files["bad"]):
            await anyio.lowlevel.checkpoint()
        while not catalog.hashes.lookup(main.files["w.safetensors"].listed):
            await anyio.lowlevel.checkpoint()
        assert not catalog.is_damaged(main.files["w.safetensors"])
    (said,) = (record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert f"{other.files['bad'].listed.real} is damaged" in said
