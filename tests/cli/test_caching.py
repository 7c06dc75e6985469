"""`asyncfetch cache`: in agreement with huggingface_hub about the same cache, and safe beside running downloads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import scan_cache_dir
from huggingface_hub.cli.hf import main as hf

from asyncfetch.cli.main import main
from asyncfetch.storage.cache import RepoCache
from asyncfetch.storage.checksums import git_blob_id
from asyncfetch.storage.locks import claim

ONE, TWO, OLD = "1" * 40, "2" * 40, "3" * 40


def put(cache: RepoCache, commit: str, **files: bytes) -> None:
    for name, data in files.items():
        large = len(data) > 100
        etag = hashlib.sha256(data).hexdigest() if large else git_blob_id(data)
        partial = cache.partial(etag)
        partial.write_bytes(data)
        cache.publish(partial, etag, commit, name.replace("_", "."))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two repositories, a commit that no ref names, half a download, and a blob that nobody has."""
    root = tmp_path / "hub"
    model, data = RepoCache(root, "org/model"), RepoCache(root, "org/data", repo_type="dataset")
    for cache in (model, data):
        cache.prepare()
    put(model, ONE, config_json=b"{}", a_safetensors=b"a" * 1000)
    put(model, OLD, config_json=b"{}", a_safetensors=b"o" * 3000)
    put(data, TWO, part_0=b"p" * 500)
    model.write_ref("main", ONE)
    data.write_ref("main", TWO)
    data.write_ref("refs/pr/1", TWO)
    model.remember_absent(ONE, "gone")
    model.partial("9" * 64).write_bytes(b"x" * 5000)
    model.blob("f" * 64).write_bytes(b"ffff")
    return root


def run(capsys: pytest.CaptureFixture[str], root: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON of a command."""
    code = main(["cache", *arguments, "--cache-dir", str(root), "--json"])
    return code, json.loads(capsys.readouterr().out)


def tree(root: Path) -> set[str]:
    """What is there but locks, records and folders."""
    kinds = {"blobs", "refs", "snapshots"}
    paths = [path for path in root.rglob("*") if path.is_symlink() or not path.is_dir()]
    found = {path.relative_to(root).as_posix() for path in paths}
    return {path for path in found if path.split("/")[1:2] and path.split("/")[1] in kinds}


def test_list_agrees_with_huggingface_hub(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes, times, refs and files of each commit; and what is not complete."""
    _, told = run(capsys, root, "list")
    theirs = scan_cache_dir(root)
    assert {one["name"].removeprefix("datasets/") for one in told["repositories"]} == {
        one.repo_id for one in theirs.repos
    }
    for one in told["repositories"]:
        (repo,) = [repo for repo in theirs.repos if one["name"].endswith(repo.repo_id)]
        assert (one["nbytes"], one["accessed"], one["modified"]) == (
            repo.size_on_disk,
            repo.last_accessed,
            repo.last_modified,
        )
        assert {each["commit"]: (sorted(each["refs"]), each["files"], each["nbytes"]) for each in one["commits"]} == {
            each.commit_hash: (sorted(each.refs), len(each.files), each.size_on_disk) for each in repo.revisions
        }
    partials = [partial for one in told["repositories"] for partial in one["partials"]]
    assert [(partial["path"], partial["busy"]) for partial in partials] == [
        (str(one.file_path), False) for one in theirs.incomplete_files
    ]
    assert main(["cache", "ls", "--commits", "--cache-dir", str(root)]) == 0
    out, err = capsys.readouterr()
    assert [line.split("\t")[1:4] for line in out.splitlines()[2:]] == [[ONE, "2", "1002"], [OLD, "2", "3002"]]
    assert "cache prune removes 1 commit that no ref names, 1 file not complete (5.00 kB), 1 file that no commit" in err


def test_verify_finds_what_is_damaged(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flipped bit, a blob that is gone, a blob that nobody names; all, or of a repository or a commit."""
    assert run(capsys, root, "verify", "datasets/org/data", f"org/model@{OLD[:9]}")[0] == 0
    code, told = run(capsys, root, "verify")
    assert (code, told["checked"], [one["file"] for one in told["wrong"]]) == (5, 5, ["f" * 64])
    shard = (root / "models--org--model" / "snapshots" / ONE / "a.safetensors").resolve()
    shard.write_bytes(b"b" + shard.read_bytes()[1:])
    (root / "datasets--org--data" / "snapshots" / TWO / "part.0").resolve().unlink()
    code, told = run(capsys, root, "verify", "org/model@main", "datasets/org/data")
    assert code == 5
    assert {(one["repository"], one["file"]) for one in told["wrong"]} == {
        ("org/model", "a.safetensors"), ("datasets/org/data", "part.0")
    }  # fmt: skip
    assert run(capsys, root, "verify", OLD)[0] == 0
    assert main(["cache", "verify", "org/model", "--cache-dir", str(root)]) == 5
    out, err = capsys.readouterr()
    assert "org/model: a.safetensors: expected sha256" in out
    assert "hint: asyncfetch download --verify-cache org/model" in err


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (["prune"], ["prune"]),
        (["rm", OLD], ["rm", OLD]),
        (["rm", "org/model"], ["rm", "model/org/model"]),
        (["rm", "datasets/org/data", ONE], ["rm", "dataset/org/data", ONE]),
    ],
    ids=" ".join,
)
def test_what_goes_is_what_goes_there(
    ours: list[str], theirs: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by `hf cache`, after which nothing is left that it complains of. With --dry-run nothing goes."""
    shutil.copytree(root, tmp_path / "theirs", symlinks=True)
    before = tree(root)
    _, planned = run(capsys, root, *ours, "--dry-run")
    assert tree(root) == before
    _, told = run(capsys, root, *ours)
    assert told["removed"] == planned["removed"]
    assert told["nbytes"] > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hf", "cache", *theirs, "--yes", "--cache-dir", str(tmp_path / "theirs")])
        with suppress(SystemExit):
            hf()
    expected = tree(tmp_path / "theirs")
    if ours == ["prune"]:  # it leaves what no commit has
        expected -= {f"models--org--model/blobs/{'f' * 64}"}
    assert tree(root) == expected
    assert not scan_cache_dir(root).warnings
    assert (root / "models--org--model").exists() == (ours != ["rm", "org/model"])


def test_what_is_being_downloaded_stays(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A partial that another process writes, by our lock or by huggingface_hub's; a blob that it has locked."""
    model = RepoCache(root, "org/model")
    theirs = model.blob("8" * 64).with_name(f"{'8' * 64}.incomplete")
    theirs.write_bytes(b"y" * 100)
    path, descriptor, shared = claim(model.partial("9" * 64))
    assert shared
    blob = (model.snapshot(OLD) / "a.safetensors").resolve().name
    locks = [model.lock("8" * 64), model.lock(blob)]
    for lock in locks:
        assert lock is not None
        lock.acquire()
    try:
        partials = [one for repo in run(capsys, root, "list")[1]["repositories"] for one in repo["partials"]]
        assert [one["busy"] for one in partials] == [True, True]
        _, told = run(capsys, root, "prune")
        assert sorted(told["busy"]) == sorted(map(str, [path, theirs, model.blob(blob)]))
        assert path.exists()
        assert theirs.exists()
        assert model.blob(blob).exists()
    finally:
        os.close(descriptor)
        for lock in locks:
            if lock is not None:
                lock.release()
    assert run(capsys, root, "prune")[1]["busy"] == []
    assert not path.exists()
    assert not theirs.exists()
    assert not model.blob(blob).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rm"], "Name what is to be removed"),
        (["rm", "org/other"], "'org/other' is not in the cache"),
        (["rm", "org/modle"], "Is it 'org/model'?"),
        (["rm", "org/model@v9"], "org/model@v9 is not in the cache"),
        (["verify", "4" * 40], "is not in the cache"),
        (["list", "--cache-dir", "/nowhere/at/all"], "There is no cache in /nowhere"),
    ],
)
def test_what_is_refused(arguments: list[str], said: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not there is wrong usage."""
    where = [] if "--cache-dir" in arguments else ["--cache-dir", str(root)]
    assert main(["cache", *arguments, *where]) == 2
    assert said in capsys.readouterr().err
