"""Cached files that are wrong: told, not used and replaced where a source can be asked; offline, what to do is said.

Each kind of damage meets each kind of source and of call, with links in the cache and without.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import CorruptError, OfflineError
from asyncfetch.events import Event, FileVerified, Warned

from ..kit import mounts
from ..kit.fault_server import COMMIT, FaultServer
from ..kit.files import safetensors_bytes
from ..kit.small_model import CALM, FILES, INDEX, ONE_FILE, ONE_LOOP, SHARD, SINGLE, TENSORS, same

pytestmark = [pytest.mark.anyio, ONE_LOOP]


def cut(nbytes: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path.resolve(), nbytes)


def longer(path: Path) -> None:
    with open(path, "ab") as stream:
        stream.write(b"\0" * 100)


def emptied(path: Path) -> None:
    path.resolve().write_bytes(b"")


def bad_header(path: Path) -> None:
    """Of the right size, and nothing in it is a header."""
    path.resolve().write_bytes(b"\xff" * path.stat().st_size)


def web_page(path: Path) -> None:
    """What a captive portal put there."""
    path.resolve().write_bytes(b"<html><body>Please sign in.</body></html>")


def pointer(path: Path) -> None:
    path.resolve().write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 9\n" % 0)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("../../blobs/" + "e" * 64)


def dangling_blob(path: Path) -> None:
    """The shared store behind a blob is gone."""
    target = path.resolve()
    target.unlink()
    target.symlink_to("../../blobs/ab/gone")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


# Told by what the file is, and by its absence.
WRONG = {
    "cut in its data": cut(100_000),
    "cut by one byte": lambda path: os.truncate(path.resolve(), path.stat().st_size - 1),
    "cut in its header": cut(50),
    "cut in its first bytes": cut(7),
    "empty": emptied,
    "longer": longer,
    "bad header": bad_header,
    "web page": web_page,
    "pointer": pointer,
}
GONE = {"folder": folder, "dangling": dangling, "dangling blob": dangling_blob, "loop": loop}
DAMAGE = {**WRONG, **GONE}
SOURCES = ["sharded", "single", "pinned", "web sharded", "web single"]
FEW = ["pinned", "web single"]  # which differ most: no request, or one for each file; where all damages are tried


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        running.hub("org/sharded", FILES)
        running.hub("org/single", ONE_FILE)
        running.web("/sharded", FILES)
        running.web("/single", ONE_FILE)
        yield running


def left_in(folder: Path) -> list[Path]:
    """What an end of a download leaves of itself: nothing."""
    return [path for path in folder.rglob("*") if path.name.endswith("incomplete")]


class Place:
    """A source, the name of a file of it, and how it is called."""

    def __init__(self, kind: str, server: FaultServer, cache: Path) -> None:
        self.file = SINGLE if "single" in kind else SHARD
        self.source = f"{server.url}/{kind.split()[1]}/" if "web" in kind else f"org/{kind.split()[-1]}"
        if kind == "pinned":
            self.source = f"org/sharded@{COMMIT}"
        self.options: dict[str, Any] = {"cache_dir": cache, "token": False, "policy": CALM}
        if "web" not in kind:
            self.options["endpoint"] = server.url
        self.events: list[Event] = []

    async def load(self, **options: Any) -> Any:
        self.events.clear()
        return await asyncfetch.load_async(self.source, report=self.events.append, **{**self.options, **options})

    async def path(self) -> Path:
        return (await asyncfetch.download_async(self.source, **self.options)).files[self.file]

    @property
    def warned(self) -> list[str]:
        """Which files were told to be wrong."""
        return [event.file or "" for event in self.events if isinstance(event, Warned) and "not used" in event.message]

    @property
    def fetched(self) -> list[str]:
        return [event.file for event in self.events if isinstance(event, FileVerified)]


@pytest.fixture(params=SOURCES)
def place(request: pytest.FixtureRequest, server: FaultServer, tmp_path: Path) -> Place:
    return Place(request.param, server, tmp_path)


@pytest.mark.parametrize("place", FEW, indirect=True)
@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_wrong_file_is_fetched_again(place: Place, damage: str, links: bool, tmp_path: Path) -> None:
    """Online the tensors are right, the file is replaced and told of, nothing else is fetched, and nothing is left."""
    path = await place.path()
    good = path.read_bytes()
    DAMAGE[damage](path)
    assert same(await place.load())
    assert place.warned == ([place.file] if damage in WRONG else [])
    assert place.fetched == [place.file]
    assert path.read_bytes() == good
    assert left_in(tmp_path) == []
    assert same(await place.load(offline=True))
    assert (place.warned, place.fetched) == ([], [])


@pytest.mark.parametrize("place", FEW, indirect=True)
@pytest.mark.parametrize("damage", WRONG)
async def test_offline_it_is_said_what_is_wrong(place: Place, damage: str, links: bool) -> None:
    """The error names the file and its path, and its advice works."""
    path = await place.path()
    DAMAGE[damage](path)
    before = path.read_bytes()
    with pytest.raises(CorruptError, match=place.file) as caught:
        await place.load(offline=True)
    assert str(path) in caught.value.hint
    assert "offline=False once" in caught.value.hint
    assert path.read_bytes() == before
    assert same(await place.load(offline=False))
    assert same(await place.load(offline=True))


@pytest.mark.parametrize("place", FEW, indirect=True)
@pytest.mark.parametrize("damage", GONE)
async def test_offline_a_missing_file_is_said(place: Place, damage: str) -> None:
    """Where nothing is in its place, it is not in the cache; the advice works."""
    DAMAGE[damage](await place.path())
    with pytest.raises(OfflineError) as caught:
        await place.load(offline=True)
    assert "offline=False once" in caught.value.hint
    assert same(await place.load(offline=False))
    assert same(await place.load(offline=True))


async def _load_into(place: Place, **options: Any) -> Any:
    model: dict[str, Any] = {"layer": [np.zeros_like(TENSORS["layer.0"]), np.zeros_like(TENSORS["layer.1"])]}
    await asyncfetch.load_into_async(model, place.source, **place.options, **options)
    return {f"layer.{n}": array for n, array in enumerate(model["layer"])}


async def _stream(place: Place, **options: Any) -> Any:
    async with asyncfetch.stream_async(place.source, **place.options, **options) as tensors:
        got = {name: np.array(array) async for name, array in tensors}
    return {name: got[name] for name in sorted(got)}


async def _open(place: Place, **options: Any) -> Any:
    async with asyncfetch.open_async(place.source, **place.options, **options) as checkpoint:
        return {name: await checkpoint.tensor(name) for name in list(checkpoint.keys())}


async def _download(place: Place, **options: Any) -> Any:
    await asyncfetch.download_async(place.source, **place.options, **options)
    return await asyncfetch.load_async(place.source, **place.options, offline=True)


async def _memory(place: Place, **options: Any) -> Any:
    return await asyncfetch.load_async(place.source, storage="memory", **place.options, **options)


CALLS = {"load_into": _load_into, "stream": _stream, "open": _open, "download": _download, "memory": _memory}


@pytest.mark.parametrize("damage", ["cut in its data", "bad header"])
@pytest.mark.parametrize("call", CALLS)
async def test_every_call(place: Place, call: str, damage: str) -> None:
    """What reads without writing takes it from the source and leaves the file; all give the right tensors."""
    path = await place.path()
    DAMAGE[damage](path)
    assert same(await CALLS[call](place, report=place.events.append))
    assert place.warned == ([place.file] if damage in WRONG else [])


@pytest.mark.parametrize("call", CALLS)
async def test_every_call_with_hashes(place: Place, call: str) -> None:
    """`verify="always"` finds a flipped bit, also of a file for which only its own name in the cache gives a hash."""
    path = await place.path()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.resolve().write_bytes(data)
    assert same(await CALLS[call](place, verify="always", report=place.events.append))
    assert place.warned == [place.file]


async def test_looking_changes_nothing(place: Place) -> None:
    """An inspection and a dry run tell of a wrong file, take its header from the source, and leave it where it is."""
    path = await place.path()
    size = path.stat().st_size
    DAMAGE["cut in its data"](path)
    found = await asyncfetch.inspect_async(place.source, report=place.events.append, **place.options)
    assert place.warned == [place.file]
    (shard,) = [shard for shard in found.shards if shard.file == place.file]
    assert (shard.size, shard.present) == (size, 0)
    plan = await asyncfetch.dry_run_async(place.source, **place.options)
    assert [file.present for file in plan.files if file.file == place.file] == [0]
    assert path.stat().st_size == 100_000


async def test_many_wrong_files(server: FaultServer, tmp_path: Path) -> None:
    """All of them are found in one go, each is told once, and the good ones stay."""
    place = Place("sharded", server, tmp_path)
    shards = [name for name in FILES if name != INDEX]
    snapshot = await asyncfetch.download_async(place.source, **place.options)
    for name in shards:
        DAMAGE["empty"](snapshot.files[name])
    server.seen.clear()
    assert same(await place.load())
    assert sorted(place.warned) == sorted(shards) == sorted(place.fetched)
    asked = [seen.path for seen in server.seen if not seen.second]
    assert len([path for path in asked if path.endswith(".safetensors")]) <= 3 * len(shards)


async def test_a_download_that_fails_loses_nothing(server: FaultServer, tmp_path: Path) -> None:
    """The wrong file is there until a good one is: a source that is away costs no hole in the cache."""
    place = Place("pinned", server, tmp_path)
    path = await place.path()
    DAMAGE["cut in its data"](path)
    server.resources = {name: one for name, one in server.resources.items() if not name.startswith("/storage/")}
    with pytest.raises(asyncfetch.AsyncfetchError):
        await place.load()
    assert path.stat().st_size == 100_000
    server.hub("org/sharded", FILES)
    assert same(await place.load())


INDEX_DAMAGE = {
    "cut": cut(30),
    "empty": emptied,
    "no JSON": lambda path: path.resolve().write_bytes(b"not JSON at all"),
    "no index": lambda path: path.resolve().write_bytes(b"{}"),
    "other names": lambda path: path.resolve().write_bytes(path.read_bytes().replace(b"layer.0", b"layer.7")),
    "folder": folder,
    "dangling": dangling,
}


@pytest.mark.parametrize("damage", INDEX_DAMAGE)
@pytest.mark.parametrize("kind", ["sharded", "pinned", "web sharded"])
async def test_a_wrong_index(kind: str, damage: str, server: FaultServer, tmp_path: Path, links: bool) -> None:
    """It is fetched again, and no shard is. Offline it is said, and the advice works."""
    if damage == "other names" and not links:
        pytest.skip("without links nothing tells the hash of a cached file, and this is an index")
    place = Place(kind, server, tmp_path)
    place.file = INDEX
    path = await place.path()
    good = path.read_bytes()
    INDEX_DAMAGE[damage](path)
    with pytest.raises(OfflineError if damage in GONE else CorruptError) as caught:
        await place.load(offline=True)
    assert "offline=False once" in caught.value.hint
    assert same(await place.load(offline=False))
    assert place.fetched == []
    assert path.read_bytes() == good
    assert same(await place.load(offline=True))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with mounts.tiny_disk(tmp_path / "tiny", "1m") as folder:
        yield folder


async def test_room_for_one_alone(tiny_disk: Path, server: FaultServer) -> None:
    """Where there is no room for a wrong file and its replacement, the wrong one goes first."""
    large = {"w": np.ones(600_000, np.uint8)}
    server.hub("org/large", {SINGLE: safetensors_bytes(large)})
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tiny_disk, "token": False, "policy": CALM}
    snapshot = await asyncfetch.download_async("org/large", **options)
    path = snapshot.files[SINGLE]
    path.resolve().write_bytes(b"\xff" * path.stat().st_size)
    assert shutil.disk_usage(tiny_disk).free < path.stat().st_size
    assert (await asyncfetch.load_async("org/large", **options))["w"].sum() == 600_000
