"""What leaves the cache: the same as by huggingface_hub, and nothing that anybody names or writes by then."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir

from asyncfetch.storage.cache import RepoCache
from asyncfetch.storage.journal import journal_of, write_journal
from asyncfetch.storage.locks import claim
from asyncfetch.storage.removal import Removal, entries_of, plan_removal, remove, remove_partial

from ..saving.kills import STRUCK, no_syncs, strike

ROOT = Path(__file__).parents[2]
ONE, TWO, OLD = "1" * 40, "2" * 40, "3" * 40
# Which blob each commit has under which name: one of them twice, some shared.
FILES = {
    ONE: {"config.json": "a" * 40, "model.safetensors": "b" * 64, "copy.safetensors": "b" * 64},
    TWO: {"config.json": "c" * 40, "model.safetensors": "b" * 64, "deep/er/vocab.txt": "d" * 40},
    OLD: {"model.safetensors": "e" * 64},
}


@pytest.fixture(autouse=True)
def _no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time, and no power fails here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def filled(root: Path, *, symlinks: bool = True) -> RepoCache:
    cache = RepoCache(root, "org/name", symlinks=symlinks)
    cache.prepare()
    for commit, files in FILES.items():
        for name, etag in files.items():
            partial = cache.partial(etag)
            partial.write_bytes(etag[0].encode() * 100)
            cache.publish(partial, etag, commit, name)
        cache.remember_absent(commit, "deep/gone.bin")
        cache.keep_listing(commit, {})
    for ref, commit in (("main", TWO), ("v1", ONE), ("refs/pr/1", TWO)):
        cache.write_ref(ref, commit)
    return cache


def tree(cache: RepoCache) -> set[str]:
    """Every file and link of the repository that huggingface_hub knows of."""
    kinds = ("blobs", "refs", "snapshots")
    paths = [path for kind in kinds for path in (cache.folder / kind).rglob("*")]
    return {path.relative_to(cache.folder).as_posix() for path in paths if path.is_symlink() or not path.is_dir()}


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> RepoCache:
    return filled(tmp_path / "hub", symlinks=request.param)


@pytest.mark.parametrize("commits", [(ONE,), (TWO,), (OLD,), (ONE, OLD)], ids=len)
def test_commits_go_as_by_huggingface_hub(cache: RepoCache, commits: tuple[str, ...], tmp_path: Path) -> None:
    """What stays is what stays there, and it finds no fault with it; what is said to be freed is."""
    shutil.copytree(tmp_path / "hub", tmp_path / "theirs", symlinks=True)
    scan_cache_dir(tmp_path / "theirs").delete_revisions(*commits).execute()
    before = _bytes(cache)
    plan = plan_removal(cache, commits=commits)
    assert plan.commits == tuple(sorted(commits))
    removed = remove(plan)
    assert tree(cache) == tree(RepoCache(tmp_path / "theirs", "org/name"))
    assert removed.nbytes == plan.nbytes == before - _bytes(cache)
    assert not removed.busy
    scanned = scan_cache_dir(tmp_path / "hub")
    assert not scanned.warnings
    assert {one.commit_hash for repo in scanned.repos for one in repo.revisions} == FILES.keys() - set(commits)
    assert not [path for path in cache.folder.rglob("*") if any(commit in path.name for commit in commits)]
    assert not [
        path for path in cache.folder.rglob("*") if path.is_dir() and not os.listdir(path) and path.name != "blobs"
    ]


def _bytes(cache: RepoCache) -> int:
    below = [*(cache.folder / "blobs").rglob("*"), *(cache.folder / "snapshots").rglob("*")]
    return sum(path.stat().st_size for path in below if path.is_file() and not path.is_symlink())


def test_files_go_as_by_huggingface_hub(tmp_path: Path) -> None:
    """A blob goes with the last name of it."""
    cache = filled(tmp_path / "hub")
    for gone in (
        [(TWO, "deep/er/vocab.txt"), (ONE, "copy.safetensors")],
        [(ONE, "model.safetensors")],
        [(TWO, "model.safetensors")],
    ):
        shutil.rmtree(tmp_path / "theirs", ignore_errors=True)
        shutil.copytree(tmp_path / "hub", tmp_path / "theirs", symlinks=True)
        scanned = scan_cache_dir(tmp_path / "theirs")
        theirs = [
            file
            for repo in scanned.repos
            for one in repo.revisions
            for file in one.files
            if (one.commit_hash, file.file_path.relative_to(one.snapshot_path).as_posix()) in gone
        ]
        scanned.delete_files(*theirs).execute()
        remove(plan_removal(cache, files=gone))
        assert tree(cache) == tree(RepoCache(tmp_path / "theirs", "org/name"))
    assert not cache.blob("b" * 64).exists()
    assert cache.commit_of("v1") == ONE


def test_a_blob_goes_with_its_names_and_a_commit_with_its_last_file(tmp_path: Path) -> None:
    """No ref is left to a commit of which nothing is there, which huggingface_hub would take for damage."""
    cache = filled(tmp_path / "hub")
    plan = plan_removal(cache, blobs=["b" * 64])
    assert {(entry.commit, entry.name) for entry in plan.entries} == {
        (ONE, "model.safetensors"), (ONE, "copy.safetensors"), (TWO, "model.safetensors")
    }  # fmt: skip
    assert plan.commits == ()
    remove(plan)
    remove(plan_removal(cache, files=[(ONE, "config.json")]))
    assert cache.commit_of("v1") is None
    assert cache.commit_of("main") == TWO
    assert not scan_cache_dir(tmp_path / "hub").warnings
    unnamed = cache.blob("f" * 64)
    unnamed.write_bytes(b"12345")
    assert remove(plan_removal(cache, blobs=["f" * 64, "0" * 64])).nbytes == 5
    assert not unnamed.exists()


@pytest.fixture
def planned(tmp_path: Path) -> tuple[RepoCache, Removal]:
    cache = filled(tmp_path / "hub")
    return cache, plan_removal(cache, commits=[ONE, TWO])


def test_what_somebody_uses_by_then_stays(planned: tuple[RepoCache, Removal]) -> None:
    """A blob that another process has locked, or has linked since the plan was made; a ref that was moved on."""
    cache, plan = planned
    lock = cache.lock("d" * 40)
    assert lock is not None
    cache.link("b" * 64, OLD, "again.safetensors")
    cache.write_ref("main", OLD)
    with lock:
        removed = remove(plan)
    assert sorted(removed.busy) == [cache.blob("b" * 64), cache.blob("d" * 40)]
    assert (cache.snapshot(OLD) / "again.safetensors").read_bytes() == b"b" * 100
    assert cache.blob("d" * 40).exists()
    assert cache.commit_of("main") == OLD
    assert cache.commit_of("v1") is None
    assert removed.nbytes == 200
    assert remove(plan).nbytes == 100, "the lock is free, and the same plan may be carried out again"


def test_a_partial_that_is_written_stays(tmp_path: Path) -> None:
    """By our lock of it, or by huggingface_hub's of its blob. Else it goes with its journal; what it took is told."""
    cache = filled(tmp_path / "hub")
    path, descriptor, _ = claim(cache.partial("9" * 64))
    os.write(descriptor, b"x" * 10_000)
    write_journal(journal_of(path), descriptor, 10_000, [(0, 10_000)], identity="")
    assert remove_partial(cache, path) is None
    os.close(descriptor)
    lock = cache.lock("9" * 64)
    assert lock is not None
    with lock:
        assert remove_partial(cache, path) is None
    assert journal_of(path).exists()
    freed = remove_partial(cache, path)
    assert freed is not None
    assert freed >= 10_000
    assert not [one for one in (cache.folder / "blobs").iterdir() if "incomplete" in one.name]
    assert remove_partial(cache, path) == 0
    foreign = cache.folder / "blobs" / "tmp1234.incomplete"  # its name tells no hash, so there is no lock of its blob
    foreign.write_bytes(b"x" * 10_000)
    assert remove_partial(cache, foreign)
    assert not foreign.exists()


def test_links_out_of_the_cache_are_not_followed(tmp_path: Path) -> None:
    """What a blob, an entry or a folder of a snapshot links to elsewhere stays."""
    cache = filled(tmp_path / "hub")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_bytes(b"x" * 1000)
    cache.blob("e" * 64).unlink()
    cache.blob("e" * 64).symlink_to(outside / "mine")
    (cache.snapshot(OLD) / "file").symlink_to(outside / "mine")
    (cache.snapshot(OLD) / "folder").symlink_to(outside)
    assert {entry.name for entry in entries_of(cache) if entry.commit == OLD} == {"model.safetensors", "file", "folder"}
    assert remove(plan_removal(cache, commits=[OLD])).nbytes < 1000
    assert not cache.snapshot(OLD).exists()
    assert (outside / "mine").stat().st_size == 1000


@pytest.mark.heavy
@pytest.mark.timeout(120)
def test_a_kill_at_any_moment_leaves_no_name_of_nothing(tmp_path: Path) -> None:
    """Struck before each change of the file system: every ref names a snapshot, and every link a whole blob."""
    script = "from tests.storage.test_removal import killed; import sys; killed(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    statuses = json.loads(run.stdout)
    assert statuses == [STRUCK] * (len(statuses) - 1) + [0]
    assert len(statuses) > 12


def killed(root: str) -> None:
    """Prints how each removal ended. In a process of its own, since it forks."""
    no_syncs()
    hub, statuses = Path(root, "hub"), []
    for after in itertools.count():
        shutil.rmtree(hub, ignore_errors=True)
        cache = filled(hub)
        plan = plan_removal(cache, commits=[ONE, TWO])
        statuses.append(strike(lambda: remove(plan), after))  # noqa: B023
        assert not scan_cache_dir(hub).warnings
        for entry in entries_of(cache):
            assert entry.path.read_bytes() == entry.path.resolve().name[0].encode() * 100
        remove(plan_removal(cache, commits=[ONE, TWO], blobs=[path.name for path in plan.blobs]))
        assert tree(cache) == {f"blobs/{'e' * 64}", f"snapshots/{OLD}/model.safetensors"}
        if not statuses[-1]:
            break
    print(json.dumps(statuses))
