"""Which models a directory holds, and what is known of their files."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import anyio
import pytest

from asyncfetch.errors import ChangedError, SourceError
from asyncfetch.server import catalog as catalog_module
from asyncfetch.server.catalog import Catalog, Listed, Repository


def write(path: Path, data: bytes = b"data") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


async def look(catalog: Catalog, name: str) -> Repository:
    folder = catalog.locate(name)
    assert folder is not None
    return await catalog.repository(name, folder)


def test_names(tmp_path: Path) -> None:
    """Folders with files are models; folders of folders hold models of two parts."""
    for file in ("single/config.json", "single/onnx/x", "org/a/x", "org/b/sub/x", ".git/x", "org/.cache/x"):
        write(tmp_path / file)
    assert Catalog(tmp_path).names() == ["org/a", "org/b", "single"]


def test_a_root_that_is_one_model(tmp_path: Path) -> None:
    """A checkpoint in the directory itself makes it one model with two names, and only that."""
    root = tmp_path / "my model"
    write(root / "model.safetensors")
    write(root / "sub" / "x")
    catalog = Catalog(root)
    assert catalog.names() == ["my-model"]
    assert catalog.locate("my-model") == catalog.locate("local/my-model") == root
    assert catalog.locate("sub") is None


@pytest.mark.parametrize(
    "name", ["..", "../x", "org/..", "org/../org", ".git", "org", "org/a/b", "", "org/", "/etc", "ORG/a", "org/a\0"]
)
def test_what_is_no_name(tmp_path: Path, name: str) -> None:
    """No name leads out of the directory, into a hidden folder, or to a folder of folders."""
    write(tmp_path / "root" / "org" / "a" / "x")
    write(tmp_path / "root" / ".git" / "x")
    write(tmp_path / "x" / "x")
    assert Catalog(tmp_path / "root").locate(name) is None


def test_links_of_models(tmp_path: Path) -> None:
    """A model may be a link to another folder inside the directory, never to one outside."""
    inside = write(tmp_path / "root" / "org" / "a" / "x").parent
    outside = write(tmp_path / "outside" / "x").parent
    (tmp_path / "root" / "org" / "alias").symlink_to(inside)
    (tmp_path / "root" / "org" / "escape").symlink_to(outside)
    (tmp_path / "root" / "escape").symlink_to(outside)
    (tmp_path / "root" / "itself").symlink_to(tmp_path / "root")
    catalog = Catalog(tmp_path / "root")
    assert catalog.locate("org/alias") == inside
    assert [catalog.locate(name) for name in ("org/escape", "escape", "itself")] == [None, None, None]


@pytest.mark.parametrize("root", ["missing", "file"])
def test_a_bad_root(tmp_path: Path, root: str) -> None:
    """What is not a directory is refused with its name."""
    write(tmp_path / "file")
    with pytest.raises(SourceError, match=root):
        Catalog(tmp_path / root)


@pytest.mark.anyio
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
    repository = await look(Catalog(tmp_path / "root"), "m")
    small = hashlib.sha1(b"blob 2\0{}").hexdigest()
    assert {path: file.etag for path, file in repository.files.items()} == {
        "a.safetensors": hashlib.sha256(b"weights").hexdigest(),
        "empty": "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",  # git's id of nothing
        "inside": small,
        "sub/deep/b.json": small,
    }
    assert set(repository.folders) == {"sub", "sub/deep"}


@pytest.mark.anyio
async def test_a_pointer_id(tmp_path: Path) -> None:
    """The git id of an LFS file is that of its pointer, as `git hash-object` has it."""
    write(tmp_path / "m" / "a.safetensors", b"weights")
    file = (await look(Catalog(tmp_path), "m")).files["a.safetensors"]
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.etag}\nsize 7\n".encode()
    assert file.oid == hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()


@pytest.mark.anyio
async def test_size_makes_lfs(tmp_path: Path) -> None:
    """Above 10 MB a file is named by its sha256 whatever it is called."""
    os.truncate(write(tmp_path / "m" / "big.txt"), 10_000_001)
    write(tmp_path / "m" / "limit.txt", bytes(10_000_000))
    files = (await look(Catalog(tmp_path), "m")).files
    assert (len(files["big.txt"].etag), len(files["limit.txt"].etag)) == (64, 40)


@pytest.mark.anyio
async def test_the_commit_follows_the_files(tmp_path: Path) -> None:
    """Equal files give an equal commit elsewhere; a rewrite, a rename and a removal each give another."""
    for root in ("one", "two"):
        write(tmp_path / root / "m" / "a", b"1")
        write(tmp_path / root / "m" / "b", b"2")
    one, two = Catalog(tmp_path / "one"), Catalog(tmp_path / "two")
    commits = [(await look(one, "m")).commit]
    assert commits == [(await look(two, "m")).commit]
    stamp = (tmp_path / "one" / "m" / "a").stat()
    write(tmp_path / "one" / "m" / "a", b"3")
    os.utime(tmp_path / "one" / "m" / "a", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # same size, same mtime
    commits.append((await look(one, "m")).commit)
    (tmp_path / "one" / "m" / "a").rename(tmp_path / "one" / "m" / "c")
    commits.append((await look(one, "m")).commit)
    (tmp_path / "one" / "m" / "c").unlink()
    commits.append((await look(one, "m")).commit)
    assert len(set(commits)) == 4


@pytest.mark.anyio
async def test_a_fresh_file_is_waited_for(tmp_path: Path) -> None:
    """A hash is taken only when a later write is sure to get another time stamp from a coarse clock."""
    for value in range(3):
        path = write(tmp_path / "m" / "a", b"%d" % value)
        repository = await look(Catalog(tmp_path), "m")
        assert time.time() - path.stat().st_ctime >= catalog_module.CLOCK_TICK
        assert repository.files["a"].etag == hashlib.sha1(b"blob 1\0%d" % value).hexdigest()


@pytest.mark.anyio
async def test_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many who ask at once wait for one hash, and later ones find it, under a second name too."""
    write(tmp_path / "m" / "a.safetensors", b"weights")
    (tmp_path / "m" / "b.safetensors").symlink_to("a.safetensors")
    hashed: list[str] = []
    real_hash = catalog_module._hash

    def counting(listed: Listed, closed: threading.Event) -> str:
        hashed.append(listed.path)
        closed.wait(0.05)
        return real_hash(listed, closed)

    monkeypatch.setattr(catalog_module, "_hash", counting)
    catalog = Catalog(tmp_path)
    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(look, catalog, "m")
    await look(catalog, "m")
    assert len(hashed) == 1


@pytest.mark.anyio
async def test_a_file_that_changes_while_it_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One change is waited out; a file that never holds still is a ChangedError."""
    path = write(tmp_path / "m" / "a", b"0")
    real_open = catalog_module._open
    changes = 1

    def changing(listed: Listed) -> int:
        nonlocal changes
        descriptor = real_open(listed)
        if changes:
            changes -= 1
            write(path, b"longer %d" % changes)
        return descriptor

    monkeypatch.setattr(catalog_module, "_open", changing)
    catalog = Catalog(tmp_path)
    assert (await look(catalog, "m")).files["a"].size == len("longer 0")
    changes = 100
    write(path, b"again")
    with pytest.raises(ChangedError, match="a changed"):
        await look(catalog, "m")


@pytest.mark.anyio
async def test_opening_what_was_replaced(tmp_path: Path) -> None:
    """A file is opened only if it is still the one that was hashed, even if a link took its place."""
    path = write(tmp_path / "root" / "m" / "a")
    catalog = Catalog(tmp_path / "root")
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


@pytest.mark.anyio
async def test_closing_ends_the_hashing(tmp_path: Path) -> None:
    """After close, a hash in progress ends within a moment, with an error."""
    os.truncate(write(tmp_path / "m" / "huge.safetensors"), 1 << 40)
    catalog = Catalog(tmp_path)
    threading.Timer(0.1, catalog.close).start()
    with anyio.fail_after(10), pytest.raises(ChangedError, match="stopping"):
        await look(catalog, "m")
