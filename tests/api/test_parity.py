"""The same repository by huggingface_hub and by asyncfetch, file by file; and its own check of what we brought."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi, snapshot_download

import asyncfetch

from ..kit.fault_server import COMMIT, QUICK, FaultServer
from ..kit.files import sharded_bytes

FILES = {
    **sharded_bytes({f"layer.{n}": np.full(30_000, n, dtype=np.uint8) for n in range(3)}, 2),
    "config.json": b"{}",
    "same.json": b"{}",
    "README.md": b"",
    "1_Pooling/config.json": b'{"a": 1}',
    "deep/er/a b.txt": b"x" * 100_000,
    "pytorch_model.bin": b"\x80",
}


@pytest.fixture(params=["org/model", "datasets/org/data"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(name: str) -> Iterator[FaultServer]:
    with FaultServer() as running:
        running.listing(running.hub(name, FILES, links="none"))
        yield running


def by_hub(server: FaultServer, name: str, **where: Any) -> dict[str, Any]:
    kind = "dataset" if name.startswith("datasets/") else "model"
    named = {"repo_id": name.removeprefix("datasets/"), "repo_type": kind, "token": False}
    snapshot_download(endpoint=server.url, **named, **where)
    return named


def by_us(server: FaultServer, name: str, **where: Any) -> None:
    asyncfetch.download(name, include="*", endpoint=server.url, token=False, policy=QUICK, **where)


def tree(folder: Path) -> dict[str, bytes | str]:
    """Each file with its bytes, or with what it links to."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if not path.is_dir()
    }


def test_the_cache(server: FaultServer, name: str, tmp_path: Path) -> None:
    """Blobs, links and refs are the same; it finds nothing wrong with ours."""
    named = by_hub(server, name, cache_dir=tmp_path / "theirs")
    by_us(server, name, cache_dir=tmp_path / "ours")
    theirs, ours = (
        {
            path: content
            for path, content in tree(tmp_path / who).items()
            if {"blobs", "refs", "snapshots"} & set(path.split("/")[1:2])
        }
        for who in ("theirs", "ours")
    )
    assert ours == theirs
    assert len(ours) > len(FILES)
    found = HfApi(endpoint=server.url).verify_repo_checksums(**named, revision=COMMIT, cache_dir=tmp_path / "ours")
    assert (found.checked_count, found.mismatches, found.missing_paths, found.extra_paths) == (len(FILES), [], [], [])


def test_a_folder(server: FaultServer, name: str, tmp_path: Path) -> None:
    """Files and records are the same but for the time; it finds nothing wrong with ours."""
    named = by_hub(server, name, local_dir=tmp_path / "theirs")
    by_us(server, name, local_dir=tmp_path / "ours", cache_dir=tmp_path / "cache")

    def told(who: str) -> dict[str, Any]:
        found = {path: content for path, content in tree(tmp_path / who).items() if not path.endswith(".lock")}
        records = {path: content.split()[:2] for path, content in found.items() if path.endswith(".metadata")}
        ignored = {".cache/huggingface/CACHEDIR.TAG"} | {path for path in found if "/trees/" in path}
        return {path: content for path, content in {**found, **records}.items() if path not in ignored}

    assert told("ours") == told("theirs")
    assert len(told("ours")) == 2 * len(FILES) + 1
    found = HfApi(endpoint=server.url).verify_repo_checksums(**named, revision=COMMIT, local_dir=tmp_path / "ours")
    assert (found.checked_count, found.mismatches, found.missing_paths, found.extra_paths) == (len(FILES), [], [], [])
