"""Repositories of data: all files by default, in huggingface_hub's cache, by each way to name one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import hf_hub_download, snapshot_download

import asyncfetch
from asyncfetch.errors import CheckpointNotFoundError, EntryNotFoundError, OfflineError, SourceError

from ..kit.fault_server import COMMIT, QUICK, FaultServer
from ..kit.files import safetensors_bytes

NAME = "datasets/org/data"
FILES = {
    "README.md": b"# data",
    "data/train-00000-of-00001.parquet": b"PAR1" * 5_000,
    "data/test.csv": b"a,b\n",
    "other/pickled.bin": b"\x80",
}
TENSORS = {"a": np.arange(3, dtype=np.uint8)}


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        running.listing(running.hub(NAME, FILES, links=r".*\.parquet"))
        yield running


def access(server: FaultServer, home: Path) -> dict[str, Any]:
    return {"endpoint": server.url, "cache_dir": home, "token": False, "policy": QUICK}


def files_of(snapshot: asyncfetch.Snapshot) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in snapshot.files.items()}


@pytest.mark.parametrize(
    ("source", "options", "names"),
    [
        (NAME, {}, [*FILES]),
        ("org/data", {"repo_type": "dataset"}, [*FILES]),
        (f"{NAME}@main", {"repo_type": "dataset", "exclude": "other/"}, [*FILES][:3]),
        (NAME, {"include": "*.csv"}, ["data/test.csv"]),
        (NAME, {"files": "README.md"}, ["README.md"]),
        (NAME, {"subfolder": "data"}, [*FILES][1:3]),
        ("https://huggingface.co/datasets/org/data", {}, [*FILES]),
        ("https://huggingface.co/datasets/org/data/tree/main/data", {"exclude": "*.csv"}, [[*FILES][1]]),
        ("https://huggingface.co/datasets/org/data/blob/main/data/test.csv", {}, ["data/test.csv"]),
        ("{endpoint}/datasets/org/data/resolve/main/README.md", {}, ["README.md"]),
    ],
)
def test_which_files(
    server: FaultServer, tmp_path: Path, source: str, options: dict[str, Any], names: list[str]
) -> None:
    """All, or those that are asked for; huggingface_hub finds them in its own folder; offline they are there again."""
    given = {**access(server, tmp_path), **options}
    source = source.format(endpoint=server.url)
    plan = asyncfetch.dry_run(source, **given)
    snapshot = asyncfetch.download(source, **given)
    assert files_of(snapshot) == {name: FILES[name] for name in names}
    assert {file.file for file in plan.files} == set(names)
    assert snapshot.path.parents[1] == tmp_path / "datasets--org--data"
    for name in names:
        local = hf_hub_download("org/data", name, repo_type="dataset", cache_dir=tmp_path, local_files_only=True)
        assert Path(local).read_bytes() == FILES[name]
    assert files_of(asyncfetch.download(source, offline=True, **given)) == files_of(snapshot)


def test_what_huggingface_hub_has_is_found(server: FaultServer, tmp_path: Path) -> None:
    """Nothing of it is fetched again, and its own snapshot is complete after ours."""
    server.listing(server.hub(NAME, FILES, links="none"))
    path = snapshot_download("org/data", repo_type="dataset", endpoint=server.url, cache_dir=tmp_path, token=False)
    before = len(server.seen)
    assert asyncfetch.download(NAME, **access(server, tmp_path)).path == Path(path)
    assert not [seen for seen in server.seen[before:] if "/resolve/" in seen.path]


def test_verify(server: FaultServer, tmp_path: Path) -> None:
    """Of what is here each file is hashed; for a download all of it must be."""
    given = access(server, tmp_path)
    with pytest.raises(OfflineError):
        asyncfetch.verify(NAME, cache_dir=tmp_path)
    snapshot = asyncfetch.download(NAME, exclude="other/", **given)
    snapshot.files["data/test.csv"].resolve().write_bytes(b"a;b\n")
    checked = {file.file: file.ok for file in asyncfetch.verify(NAME, cache_dir=tmp_path)}
    assert checked == {**dict.fromkeys([*FILES][:3], True), "data/test.csv": False}
    with pytest.raises(OfflineError, match=r"other/pickled\.bin"):
        asyncfetch.download(NAME, offline=True, **given)


def test_nothing_is_listed(server: FaultServer, tmp_path: Path) -> None:
    """By a mirror without the API, or of an empty repository."""
    server.hub("datasets/org/mirrored", FILES)
    with pytest.raises(SourceError, match=r"lists no files\. Give the names"):
        asyncfetch.download("datasets/org/mirrored@" + COMMIT, **access(server, tmp_path))
    server.listing(server.hub("datasets/org/empty", {}))
    with pytest.raises(EntryNotFoundError, match="It is empty"):
        asyncfetch.download("datasets/org/empty", **access(server, tmp_path))


def test_a_checkpoint_in_a_dataset(server: FaultServer, tmp_path: Path) -> None:
    """It loads as any other; without one, what there is instead is said."""
    given = access(server, tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"datasets/org/data has no safetensors checkpoint; it has "):
        asyncfetch.load(NAME, **given)
    server.listing(server.hub("datasets/org/weights", {**FILES, "model.safetensors": safetensors_bytes(TENSORS)}))
    assert np.array_equal(asyncfetch.load("datasets/org/weights", **given)["a"], TENSORS["a"])
    assert [*asyncfetch.download("datasets/org/weights", weights_only=True, **given).files] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("source", "options", "error", "text"),
    [
        (NAME, {"repo_type": "model"}, SourceError, "is a dataset, and repo_type= says model"),
        (NAME, {"repo_type": "space"}, SourceError, 'repo_type= takes "model" or "dataset"'),
        ("https://host.invalid/folder", {"repo_type": "dataset"}, SourceError, "plain URL, which has no type"),
        ("tests", {"repo_type": "dataset"}, SourceError, "is a local path, which has no type. For the repository"),
        ("datasets/a/b/c", {}, SourceError, "neither an existing path nor a repository id"),
        (NAME, {"subfolder": "dat"}, EntryNotFoundError, r"no file 'dat'. It has README\.md"),
        (NAME, {"include": "*.json"}, EntryNotFoundError, r"no file '\*\.json'"),
    ],
)
def test_senseless(
    server: FaultServer, tmp_path: Path, source: str, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        asyncfetch.download(source, **access(server, tmp_path), **options)
