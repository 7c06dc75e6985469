"""A cache that is pruned, moved or removed under a running download: what came is not lost, no error is raw."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import StorageError
from asyncfetch.events import FileStarted, FileVerified, Warned

from ..kit.fault_server import COMMIT, OK, Answer, Fault, FaultServer
from ..kit.files import sharded_bytes

TENSORS = {f"layer.{n}": np.random.default_rng(n).integers(0, 256, 300_000, np.uint8) for n in range(3)}
FILES = sharded_bytes(TENSORS, 3)
SHARDS = sorted(name for name in FILES if name.endswith(".safetensors"))
ONE = asyncfetch.Policy(connections=1, backoff=0.01)
FOLDER = "models--org--model"


def prune(cache: Path) -> None:
    """As `hf cache prune`: snapshots without a ref, with their blobs, and all that is incomplete."""
    shutil.rmtree(cache / FOLDER / "snapshots")
    for path in (cache / FOLDER / "blobs").iterdir():
        path.unlink()


def remove_blobs(cache: Path) -> None:
    shutil.rmtree(cache / FOLDER / "blobs")


def remove_model(cache: Path) -> None:
    shutil.rmtree(cache / FOLDER)


def remove_all(cache: Path) -> None:
    shutil.rmtree(cache)


def move_away(cache: Path) -> None:
    (cache / FOLDER).rename(cache / "elsewhere")


WAYS = pytest.mark.parametrize("how", [prune, remove_blobs, remove_model, remove_all, move_away])
LINKS = pytest.mark.parametrize("links", [True, False], ids=["links", "no links"], indirect=True)


class Pruner:
    """A reporter that prunes once, when an event comes that `when` accepts."""

    def __init__(self, cache: Path, how: Callable[[Path], None], when: Callable[[Any], bool], times: int = 1) -> None:
        self._cache, self._how, self._when, self._left = cache, how, when, times
        self.warnings: list[str] = []

    def __call__(self, event: Any) -> None:
        if isinstance(event, Warned):
            self.warnings.append(event.message)
        if self._left and self._when(event):
            self._left -= 1
            self._how(self._cache)


def second_is_whole(event: Any) -> bool:
    return isinstance(event, FileVerified) and event.file == SHARDS[1]


def third_begins(event: Any) -> bool:
    return isinstance(event, FileStarted) and event.file == SHARDS[2]


@pytest.fixture
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "1")
    return bool(request.param)


def right(state: dict[str, np.ndarray[Any, Any]]) -> bool:
    return set(state) == set(TENSORS) and all(np.array_equal(state[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.heavy
@WAYS
@pytest.mark.parametrize("when", [second_is_whole, third_begins])
@LINKS
def test_tensors_are_not_lost(
    server: FaultServer, tmp_path: Path, how: Callable[[Path], None], when: Callable[[Any], bool], links: bool
) -> None:
    """What had landed, and what was on its way, is used: not a byte is fetched again, and no ref names what is gone."""
    repository = server.hub("org/model", FILES)
    cache = tmp_path / "cache"
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": cache, "token": False, "policy": ONE}
    assert right(asyncfetch.load("org/model", report=Pruner(cache, how, when), **options))
    for name in SHARDS:
        assert server.sent(repository.storage[name]) == len(FILES[name])
    names = [cache / FOLDER / "snapshots" / COMMIT / name for name in FILES]
    assert (cache / FOLDER / "refs" / "main").exists() == all(path.exists() for path in names)
    assert right(asyncfetch.load("org/model", **options))
    assert (cache / FOLDER / "refs" / "main").read_text() == COMMIT
    assert not list(cache.joinpath(FOLDER).rglob("*.incomplete"))


@WAYS
@LINKS
def test_files_are_there_in_the_end(
    server: FaultServer, tmp_path: Path, how: Callable[[Path], None], links: bool
) -> None:
    """Who wants files gets files: those that were removed are fetched again, and that is said."""
    server.hub("org/model", FILES)
    cache = tmp_path / "cache"
    pruner = Pruner(cache, how, second_is_whole)
    snapshot = asyncfetch.download(
        "org/model", endpoint=server.url, cache_dir=cache, token=False, policy=ONE, report=pruner
    )
    assert {name: path.read_bytes() for name, path in snapshot.files.items()} == FILES
    said = [text for text in pruner.warnings if "was removed meanwhile" in text]
    assert len(said) == (0 if how is remove_blobs and not links else 1)  # without links nothing stays among the blobs
    assert (cache / FOLDER / "refs" / "main").read_text() == COMMIT


@pytest.mark.parametrize("early", [False, True])
@WAYS
def test_a_stream_goes_on(server: FaultServer, tmp_path: Path, how: Callable[[Path], None], early: bool) -> None:
    """Also one whose reader has not come to what was removed."""
    server.hub("org/model", FILES)
    cache = tmp_path / "cache"
    pruner = Pruner(cache, how, third_begins)
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": cache, "token": False, "policy": ONE}
    with asyncfetch.stream("org/model", early=early, report=pruner, **options) as tensors:
        assert right(dict(tensors))


def test_what_was_cached_is_removed_meanwhile(server: FaultServer, tmp_path: Path) -> None:
    """Files of an earlier run are held from the begin, and not fetched again."""
    repository = server.hub("org/model", FILES)
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path, "token": False, "policy": ONE}
    asyncfetch.download("org/model", **options)
    third = tmp_path / FOLDER / "snapshots" / COMMIT / SHARDS[2]
    third.resolve().unlink()
    server.seen.clear()
    assert right(asyncfetch.load("org/model", report=Pruner(tmp_path, prune, third_begins), **options))
    assert not [seen for name in SHARDS[:2] for seen in server.to(repository.storage[name])]


def test_a_cache_that_is_always_pruned(server: FaultServer, tmp_path: Path) -> None:
    """Not for ever: after a few times the error says what happens, and what to do."""
    server.hub("org/model", FILES)
    pruner = Pruner(tmp_path, prune, second_is_whole, times=99)
    with pytest.raises(StorageError, match="removed each time that it had been downloaded") as caught:
        asyncfetch.download(
            "org/model", endpoint=server.url, cache_dir=tmp_path, token=False, policy=ONE, report=pruner
        )
    assert "prune" in caught.value.hint


def test_pruned_while_bytes_come(server: FaultServer, tmp_path: Path) -> None:
    """In the middle of a file, by another program."""
    repository = server.hub("org/model", FILES)
    removed = threading.Event()

    def strike(answer: Answer) -> Answer:
        shutil.rmtree(tmp_path / FOLDER)
        removed.set()
        return answer

    faults: list[Fault] = [OK, strike]
    server.fault(repository.storage[SHARDS[1]], *faults)
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path, "token": False, "policy": ONE}
    assert right(asyncfetch.load("org/model", **options))
    assert removed.is_set()
    assert right(asyncfetch.load("org/model", **options))
