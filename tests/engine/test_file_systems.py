"""Caches on file systems that refuse what a disk can: loaded from, downloaded to, gone on with."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import NetworkError, StorageError

from ..kit.fault_server import LOOK, QUICK, FaultServer, Flip, Reset, Truncate
from ..kit.files import sharded_bytes
from ..kit.odd_mount import SMALL, odd_mount

TENSORS = {f"layer.{n}": np.random.default_rng(n).integers(0, 256, 90_000 + 1_000 * n, np.uint8) for n in range(7)}
FILES = sharded_bytes(TENSORS, 3)
NEXT = "1" * 40  # a later commit
BUCKET = ("in order", "no links", "no rename")


def right(state: Mapping[str, np.ndarray]) -> bool:
    return set(state) == set(TENSORS) and all(np.array_equal(state[name], TENSORS[name]) for name in TENSORS)


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*.incomplete")]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "rules",
    [
        BUCKET,
        ("in order, EINVAL",),
        ("in order", "no links", "no rename", "no locks", "no sync", "no size"),
        ("no links",),
        ("no links", "no rename"),
        ("no rename over",),
        ("no locks",),
        ("no lock left",),
        ("no sync",),
        ("no size",),
    ],
    ids=", ".join,
)
def test_a_load_and_the_next_one(server: FaultServer, tmp_path: Path, rules: tuple[str, ...]) -> None:
    """Whatever a file system refuses, the tensors are right, all is kept for the next run, and nobody is warned."""
    server.hub("org/model", FILES)
    with odd_mount(tmp_path, *rules) as cache, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert right(asyncfetch.load("org/model", endpoint=server.url, cache_dir=cache, token=False))
        assert leftovers(cache) == []
        assert right(asyncfetch.load("org/model", cache_dir=cache, offline=True))
        server.seen.clear()
        options = {"endpoint": server.url, "cache_dir": cache, "token": False}
        snapshot = asyncfetch.download("org/model", weights_only=True, **options)
        assert {name: path.read_bytes() for name, path in snapshot.files.items()} == FILES
        assert not any("/storage/" in seen.path for seen in server.seen)
        server.hub("org/model", FILES, commit=NEXT)
        assert right(asyncfetch.load("org/model", endpoint=server.url, cache_dir=cache, token=False))
        assert (cache / "models--org--model" / "refs" / "main").read_text() == NEXT


@pytest.mark.parametrize("how", ["download", "stream", "early", "open", "load_into"])
def test_other_ways_to_a_bucket(server: FaultServer, tmp_path: Path, how: str) -> None:
    """Where bytes can only be written in order each way brings the right ones."""
    server.hub("org/model", FILES)
    with odd_mount(tmp_path, *BUCKET) as cache:
        options = {"endpoint": server.url, "cache_dir": cache, "token": False}
        state: dict[str, np.ndarray] = {}
        if how == "download":
            for path in asyncfetch.download("org/model", **options).path.iterdir():
                assert path.read_bytes() == FILES[path.name]
            state = asyncfetch.load("org/model", cache_dir=cache, offline=True)
        elif how == "open":
            with asyncfetch.open("org/model", **options) as checkpoint:
                state = checkpoint.state_dict()
        elif how == "load_into":
            state = {name: np.zeros_like(tensor) for name, tensor in TENSORS.items()}
            asyncfetch.load_into(state, "org/model", **options)
        else:
            with asyncfetch.stream("org/model", early=how == "early", **options) as tensors:
                state = dict(tensors)
        assert right(state)
        assert leftovers(cache) == []


def test_connections_that_break_on_the_way_to_a_bucket(server: FaultServer, tmp_path: Path) -> None:
    """A file goes on in order after its connection broke, and begins anew where its hash is wrong."""
    repository = server.hub("org/model", FILES)
    first, second, third = repository.storage.values()
    server.fault(first, LOOK, Truncate(30_000), Reset(50_000))
    server.fault(second, LOOK, Flip(100_000))
    server.fault(third, LOOK, Reset(1))
    with odd_mount(tmp_path, *BUCKET) as cache:
        policy = replace(QUICK, connections=8, min_split=20_000)  # else no file would be large enough to be shared
        assert right(asyncfetch.load("org/model", endpoint=server.url, cache_dir=cache, token=False, policy=policy))
        assert leftovers(cache) == []


def test_an_interrupted_download_to_a_bucket(server: FaultServer, tmp_path: Path) -> None:
    """What was whole is kept, what was not leaves nothing, and the next run fetches that alone."""
    repository = server.hub("org/model", FILES)
    names = list(repository.storage)
    server.fault(repository.storage[names[1]], LOOK, Truncate(30_000), *[Truncate(0)] * 20)
    policy = asyncfetch.Policy(connections=1, attempts=2, patience=0, backoff=0.01)
    with odd_mount(tmp_path, *BUCKET) as cache:
        options = {"endpoint": server.url, "cache_dir": cache, "token": False}
        with pytest.raises(NetworkError):
            asyncfetch.load("org/model", policy=policy, **options)
        assert leftovers(cache) == []
        server.heal(repository.storage[names[1]])
        server.seen.clear()
        assert right(asyncfetch.load("org/model", **options))
        assert server.sent(repository.storage[names[0]]) == 0


def test_a_file_that_is_too_large_for_its_file_system(server: FaultServer, tmp_path: Path) -> None:
    """That is told as it is, for there is room on the disk, and before the bytes are fetched."""
    repository = server.hub("org/model", FILES)
    with odd_mount(tmp_path, "small files") as cache:
        with pytest.raises(StorageError, match="more than its file system") as caught:
            asyncfetch.load("org/model", endpoint=server.url, cache_dir=cache, token=False)
        assert caught.value.code == "storage"
        assert "room" not in str(caught.value)
        assert "cache_dir=" in caught.value.hint
        assert all(server.sent(path) < SMALL for path in repository.storage.values())
        assert not [path for path in cache.rglob("*") if path.is_file() and path.name in hashes()]


def hashes() -> set[str]:
    return {hashlib.sha256(content).hexdigest() for content in FILES.values()}
