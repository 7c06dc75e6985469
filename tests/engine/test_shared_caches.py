"""Caches that others own, share, filled or closed: what is there is used, and what only helps is left out."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import StorageError
from asyncfetch.storage.cache import RepoCache

from ..kit.fault_server import COMMIT, FaultServer
from ..kit.files import safetensors_bytes, sharded_bytes
from ..kit.users import public_folder
from ..torture.child import digest_of
from ..torture.runs import Forks, Run, forks

ALICE, BOB = 65533, 65534
TENSORS = {f"layer.{n}": np.random.default_rng(n).integers(0, 256, 80_000, np.uint8) for n in range(4)}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = sharded_bytes(TENSORS, 2)
DIGEST = digest_of(TENSORS)
KINDS = pytest.mark.parametrize("files", [{SINGLE: safetensors_bytes(TENSORS)}, SHARDS], ids=["single file", "shards"])
BOOKKEEPING = (".no_exist", "refs", "trees")


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """One process that forks for all tests here."""
    with forks(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def load(forker: Forks, server: FaultServer, tmp_path: Path) -> Callable[..., str]:
    """`load(cache, uid)` is "right", or the error of ours, in a process of that user with a usual umask."""
    if os.getuid() != 0:
        pytest.skip("OTHER USERS CANNOT BE TRIED HERE: needs root")

    def run(cache: Path, uid: int, source: str = "org/model") -> str:
        end = forker.run(
            Run(server.url, str(cache), source=source, uid=uid, umask=0o022, warm=str(tmp_path / f"warm-{uid}"))
        )
        assert not end.foreign, end.message
        return "right" if end.digest == DIGEST else end.message

    return run


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder in which everyone may make files, and remove none of others."""
    with public_folder() as folder:
        folder.chmod(0o1777)
        yield folder


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder, bound over itself so that not even root may write there."""
    if os.getuid() != 0 or not shutil.which("mount"):
        pytest.skip("A READ-ONLY MOUNT CANNOT BE TRIED HERE: needs root")
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def forget(cache: Path, *names: str) -> None:
    """Remove bookkeeping, as a tool leaves a cache that keeps less of it."""
    for name in names:
        shutil.rmtree(cache / "models--org--model" / name, ignore_errors=True)
    shutil.rmtree(cache / ".locks", ignore_errors=True)
    (cache / "CACHEDIR.TAG").unlink(missing_ok=True)


def options(server: FaultServer, cache: Path) -> dict[str, object]:
    return {"endpoint": server.url, "cache_dir": cache, "token": False}


@KINDS
@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_whole_cache_without_bookkeeping_on_a_read_only_mount(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], links: bool
) -> None:
    """All that is there is used by each way to it, also when the Hub answers and there would be something to note."""
    server.hub("org/model", files)
    if not links:
        monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "1")
    asyncfetch.download("org/model", **options(server, tmp_path))
    forget(tmp_path, *BOOKKEEPING)
    with read_only(tmp_path):
        assert digest_of(asyncfetch.load("org/model", **options(server, tmp_path))) == DIGEST
        snapshot = asyncfetch.download("org/model", **options(server, tmp_path))
        assert {name: path.read_bytes() for name, path in snapshot.files.items()} == files
        with asyncfetch.stream("org/model", **options(server, tmp_path)) as tensors:
            streamed = dict(tensors)
        assert digest_of({name: streamed[name] for name in TENSORS}) == DIGEST
        with asyncfetch.open("org/model", **options(server, tmp_path)) as checkpoint:
            assert digest_of(checkpoint.state_dict()) == DIGEST


@pytest.mark.parametrize("lacks", [INDEX, sorted(SHARDS)[0]], ids=["the index", "a link"])
def test_a_read_only_cache_that_lacks_a_name(server: FaultServer, tmp_path: Path, lacks: str) -> None:
    """For tensors the bytes are enough; who wants files is told what cannot be made, and where."""
    server.hub("org/model", SHARDS)
    asyncfetch.download("org/model", **options(server, tmp_path))
    pointer = tmp_path / "models--org--model" / "snapshots" / COMMIT / lacks
    if lacks == INDEX:
        pointer.resolve().unlink()
    pointer.unlink()
    with read_only(tmp_path):
        assert digest_of(asyncfetch.load("org/model", **options(server, tmp_path))) == DIGEST
        with pytest.raises(StorageError, match="may only be read") as caught:
            asyncfetch.download("org/model", **options(server, tmp_path))
        assert caught.value.path.startswith(str(tmp_path / "models--org--model"))
        assert "cache_dir=" in caught.value.hint


def test_what_is_left_out_is_said_once(server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG, to who looks for it, and to nobody else."""
    server.hub("org/model", SHARDS)
    asyncfetch.download("org/model", **options(server, tmp_path))
    forget(tmp_path, *BOOKKEEPING)
    (tmp_path / ".locks").write_text("in the way")
    (tmp_path / "models--org--model" / "refs").write_text("in the way")
    for blob in (tmp_path / "models--org--model" / "blobs").iterdir():
        blob.unlink()
    with caplog.at_level(logging.DEBUG, "asyncfetch"):
        assert digest_of(asyncfetch.load("org/model", **options(server, tmp_path))) == DIGEST
    said = [record for record in caplog.records if record.name == "asyncfetch" and "Left out" in record.message]
    assert sorted(record.message.split(" (")[0] for record in said) == ["Left out: locks of files", "Left out: refs"]
    assert {record.levelno for record in said} == {logging.DEBUG}


@pytest.mark.heavy
@KINDS
def test_another_users_model(
    server: FaultServer, shared: Path, load: Callable[..., str], files: dict[str, bytes]
) -> None:
    """Bob loads what Alice has, downloads what she has not, and each uses what the other brought."""
    server.hub("org/model", files)
    server.hub("org/second", SHARDS)
    assert load(shared, ALICE) == "right"
    forget(shared, "refs", ".no_exist")
    assert load(shared, BOB) == "right"
    assert load(shared, BOB, "org/second") == "right"
    brought = {path: path.stat().st_ino for path in (shared / "models--org--second" / "blobs").iterdir()}
    assert load(shared, ALICE, "org/second") == "right"
    assert {path: path.stat().st_ino for path in (shared / "models--org--second" / "blobs").iterdir()} == brought


@pytest.mark.heavy
@pytest.mark.parametrize("mode", [0o2777, 0o1777, 0o3777], ids=oct)
def test_a_part_of_another_users_model(server: FaultServer, shared: Path, load: Callable[..., str], mode: int) -> None:
    """What Alice lacks cannot be put into her folders: the error names the one that refuses, and what Bob can do."""
    server.hub("org/model", SHARDS)
    shared.chmod(mode)
    assert load(shared, ALICE) == "right"
    folder = shared / "models--org--model" / "blobs"
    max(folder.iterdir(), key=lambda path: path.stat().st_size).unlink()
    said = load(shared, BOB)
    assert said.startswith(f"{folder}: Permission denied. Choose another folder with cache_dir= or HF_HUB_CACHE"), said


def test_a_folder_of_ones_own_in_a_cache_of_roots(server: FaultServer, load: Callable[..., str]) -> None:
    """Neither locks nor a tag can be made beside it, and neither is needed."""
    server.hub("org/model", SHARDS)
    with public_folder() as cache:
        mine = cache / "models--org--model"
        mine.mkdir()
        os.chown(mine, BOB, BOB)
        assert load(cache, BOB) == "right"
        assert {path.name for path in cache.iterdir()} == {mine.name}
        assert (mine / "refs" / "main").read_text() == COMMIT


def test_locks_of_another_user(server: FaultServer, shared: Path, load: Callable[..., str]) -> None:
    """A lock that may not be opened is gone without."""
    server.hub("org/model", SHARDS)
    cache = RepoCache(shared, "org/model")
    folder = shared / ".locks" / cache.name
    folder.mkdir(parents=True)
    for path in (folder.parent, folder):
        path.chmod(0o777)
    for name in SHARDS:
        repository = server.hub("org/model", SHARDS)
        if name in repository.storage:
            lock = folder / f"{repository.storage[name].rpartition('/')[2]}.lock"
            lock.touch(0o600)
            os.chown(lock, ALICE, ALICE)
    assert load(shared, BOB) == "right"


def test_a_snapshot_that_may_not_grow(server: FaultServer, shared: Path, load: Callable[..., str]) -> None:
    """Where a blob can be written and its link cannot, the tensors come from the blob, and no ref promises the link."""
    server.hub("org/model", SHARDS)
    folder = shared / "models--org--model"
    (folder / "snapshots").mkdir(parents=True)
    (folder / "blobs").mkdir()
    os.chown(folder, BOB, BOB)
    os.chown(folder / "blobs", BOB, BOB)
    assert load(shared, BOB) == "right"
    assert not (folder / "refs" / "main").exists()
