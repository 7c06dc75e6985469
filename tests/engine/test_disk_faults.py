"""Disks and limits as users have them: full, small, read-only, with another umask. A whole load meets each of them."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import asyncfetch
from asyncfetch.errors import DiskFullError, SourceError, StorageError

from ..kit.child import in_child
from ..kit.fault_server import LOOK, FaultServer
from ..kit.users import public_folder
from ..torture.child import digest_of
from ..torture.crashes import INDEX, PREFIX, SHARDS, Model, violations
from ..torture.runs import ONE_LANE, Forks, forks

NOBODY = 65534


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """One process that forks for all tests here."""
    with forks(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def model() -> Iterator[Model]:
    """Three shards of 150 kB on a played Hub."""
    with FaultServer() as server:
        yield Model(server)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`disk("size=1m")` mounts a file system in memory with these options."""
    mounted: list[Path] = []

    def mount(options: str, at: Path | None = None) -> Path:
        folder = at or tmp_path / f"disk-{len(mounted)}"
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a tmpfs")
        mounted.append(folder)
        return folder

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def states_of(cache: Path) -> dict[str, tuple[int, int]]:
    """What would change if anything were written."""
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in [cache, *cache.rglob("*")]}


def assert_next_run_is_well(forker: Forks, model: Model, cache: Path) -> None:
    """Once nothing is in the way, the same call gives the right tensors, and does not fetch again what is here."""
    assert not violations(cache, model.commits)
    missing = model.missing(cache)
    model.server.seen.clear()
    outcome = forker.run(model.run(cache))
    assert outcome.digest == model.digest, outcome
    assert not any(model.refetched(missing).values())
    assert not violations(cache, model.commits)


# -- full ------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small(model: Model, disk: Callable[[str], Path]) -> None:
    """What does not fit is said before the first shard is asked for, with what is needed and what is free."""
    cache = disk("size=256k")
    with pytest.raises(DiskFullError) as caught:
        asyncfetch.load("org/model", endpoint=model.server.url, cache_dir=cache, token=False)
    assert caught.value.needed == sum(len(model.files[name]) for name in SHARDS)
    assert caught.value.free == shutil.disk_usage(cache).free
    assert max(model.server.sent(path) for path in model.repository.storage.values()) == PREFIX
    assert list(cache.iterdir()) == []


def test_a_disk_that_fills_up(forker: Forks, model: Model, disk: Callable[[str], Path]) -> None:
    """Whatever takes the room while it downloads: DiskFullError, and what was there by then is not fetched again."""
    cache = disk("size=1m")
    filler = cache / "filler"

    def fill(answer: Any) -> Any:
        filler.write_bytes(bytes(shutil.disk_usage(cache).free - 140_000))
        return answer

    model.server.fault(model.repository.storage[SHARDS[1]], LOOK, fill)
    outcome = forker.run(model.run(cache, policy=ONE_LANE))
    assert (outcome.error, outcome.code) == ("DiskFullError", "disk_full"), outcome
    assert SHARDS[0] not in model.missing(cache)
    filler.unlink()
    assert_next_run_is_well(forker, model, cache)


@pytest.mark.heavy
@pytest.mark.parametrize("limit", [0, 100, 100_000])
def test_files_that_may_not_grow(forker: Forks, model: Model, tmp_path: Path, limit: int) -> None:
    """RLIMIT_FSIZE, as batch systems set it, whether the first byte is too much or the last: no disk is called full."""
    cache, warm = tmp_path / "cache", tmp_path / "warm"
    outcome = forker.run(model.run(cache, limits={"RLIMIT_FSIZE": limit}, warm=str(warm)))
    assert (outcome.error, outcome.code) == ("StorageError", "storage"), outcome
    assert "a file of this size is more than" in outcome.message
    assert f"Raise the limit of {limit:,} bytes (ulimit -f)" in outcome.message
    assert " room " not in outcome.message
    assert_next_run_is_well(forker, model, cache)


@pytest.mark.heavy
def test_descriptors_that_run_out(forker: Forks, model: Model, tmp_path: Path, seed: int) -> None:
    """With any number of descriptors left a load ends, well or in an error of ours, and the next one is well.

    Every second number, the odd or the even ones.
    """
    cache, warm = tmp_path / "cache", tmp_path / "warm"
    ends = []
    for count in range(1 + seed % 2, 40, 2):
        shutil.rmtree(cache, ignore_errors=True)
        outcome = forker.run(model.run(cache, limits={"RLIMIT_NOFILE": count}, warm=str(warm)))
        assert outcome.digest == model.digest or outcome.error, (count, outcome)
        ends.append(outcome.error or "well")
        assert_next_run_is_well(forker, model, cache)
        if ends[-3:] == ["well"] * 3:
            break
    assert {"well", "StorageError"} <= set(ends)
    assert ends[0] != "well"
    assert ends[-1] == "well"


# -- other disks -----------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize("offline", [False, True], ids=["online", "offline"])
def test_a_disk_that_is_mounted_read_only(
    forker: Forks, model: Model, disk: Callable[[str], Path], offline: bool
) -> None:
    """A whole cache on a read-only disk serves, for root too; one that lacks a shard is an error of ours."""
    cache = disk("size=4m")
    assert forker.run(model.run(cache)).digest == model.digest
    with read_only(cache):
        before = states_of(cache)
        outcome = forker.run(model.run(cache, options={"offline": offline}))
        assert outcome.digest == model.digest, outcome
        assert states_of(cache) == before
    (cache / "models--org--model" / "blobs" / model.hashes[SHARDS[1]]).unlink()
    with read_only(cache):
        outcome = forker.run(model.run(cache, options={"offline": offline}))
        assert outcome.error == ("OfflineError" if offline else "StorageError"), outcome


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


def test_a_cache_that_another_user_filled_in_part(forker: Forks, model: Model, tmp_path: Path) -> None:
    """Where nothing may be written a missing shard is an error of ours, and the cache stays as it is."""
    if os.getuid() != 0:
        pytest.skip("needs root for a second user")
    with public_folder() as cache:
        assert forker.run(model.run(cache)).digest == model.digest
        as_nobody = {"uid": NOBODY, "warm": str(tmp_path / "warm")}
        outcome = forker.run(model.run(cache, **as_nobody))
        assert outcome.digest == model.digest, outcome
        (cache / "models--org--model" / "blobs" / model.hashes[SHARDS[1]]).unlink()
        before = states_of(cache)
        outcome = forker.run(model.run(cache, **as_nobody))
        assert outcome.error == "StorageError", outcome
        assert "Permission denied" in outcome.message
        assert states_of(cache) == before


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_blobs_on_a_disk_of_their_own(
    forker: Forks, model: Model, tmp_path: Path, disk: Callable[..., Path], links: bool
) -> None:
    """Files cannot be renamed from there: they come into the snapshot all the same, and nothing else is left."""
    cache = tmp_path / "cache"
    blobs = disk("size=4m", cache / "models--org--model" / "blobs")
    outcome = forker.run(model.run(cache, links=links))
    assert outcome.digest == model.digest, outcome
    assert not violations(cache, model.commits)
    assert len(list(blobs.iterdir())) == (4 if links else 0)
    (snapshot,) = (cache / "models--org--model" / "snapshots").iterdir()
    assert {path.name: path.is_symlink() for path in snapshot.iterdir()} == dict.fromkeys([INDEX, *SHARDS], links)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_umask(forker: Forks, model: Model, tmp_path: Path, umask: int) -> None:
    """Every file and folder of the cache has the mode that the user's umask gives; a group can share it, or cannot."""
    cache = tmp_path / "cache"
    assert forker.run(model.run(cache, umask=umask)).digest == model.digest
    kinds = set()
    for path in [cache, *cache.rglob("*")]:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) or path.suffix == ".lock":  # filelock's locks have the mode of huggingface_hub's
            continue
        kinds.add(path.is_dir())
        assert stat.S_IMODE(mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path
    assert kinds == {True, False}


# -- what only helps -------------------------------------------------------------------------------


def test_a_lock_that_cannot_be_given_back(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks only save work: a download that is whole by then does not fail for one."""
    real, refused = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_UN:
            refused.append(descriptor)
            raise OSError(errno.EIO, "input/output error")
        real(descriptor, operation)

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", flock)
        state_dict = asyncfetch.load("org/model", endpoint=model.server.url, cache_dir=tmp_path, token=False)
    assert digest_of(state_dict) == model.digest
    assert refused
    assert not violations(tmp_path, model.commits)


def test_a_disk_that_cannot_be_asked(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first look at the cache fails, the error is one of ours and names the folder."""

    def refuse(_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    with pytest.raises(StorageError, match="input/output error") as caught:
        asyncfetch.load("org/model", endpoint=model.server.url, cache_dir=tmp_path, token=False)
    assert caught.value.path == str(tmp_path / "models--org--model")


@pytest.mark.parametrize("path", ["", "a\0b", Path("a\0b")], ids=repr)
def test_what_is_no_path(path: object) -> None:
    """No file system takes it, so it is refused as any other value that makes no sense."""
    with pytest.raises(SourceError, match="cache_dir= takes a path"):
        asyncfetch.load("org/model", cache_dir=path)


def test_a_working_directory_that_was_removed(model: Model, tmp_path: Path) -> None:
    """What counts from it cannot be; all else works."""
    code = """
import os, tempfile
gone = tempfile.mkdtemp(dir=sys.argv[2])
os.chdir(gone)
os.rmdir(gone)
options = dict(endpoint=sys.argv[1], token=False)
names = len(asyncfetch.load("org/model", cache_dir=sys.argv[2], **options))
try:
    asyncfetch.load("org/model", cache_dir="hub", **options)
except errors.StorageError as error:
    tell(names=names, path=error.path, said=str(error))
"""
    told = in_child(code, model.server.url, tmp_path)
    assert (told["names"], told["path"]) == (3, "hub")
    assert "the working directory was removed. Give an absolute path" in told["said"]


@pytest.mark.parametrize("name", ["with blanks ", "new\nline", "\udcff\udcfe", "-x", "'\"$(x)`", "ünï"], ids=ascii)
def test_unusual_names_of_caches(model: Model, tmp_path: Path, name: str) -> None:
    """Any name that the file system takes is one, also bytes that are no text."""
    options = {"endpoint": model.server.url, "token": False, "cache_dir": tmp_path / name}
    assert digest_of(asyncfetch.load("org/model", **options)) == model.digest
    assert not violations(tmp_path / name, model.commits)
    shutil.rmtree(tmp_path / name)  # what looks at files after a test reads names as text
