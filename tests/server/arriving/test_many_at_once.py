"""More cold files than turns or connections: whoever reads one gets bytes of it, slowly, and then the whole."""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx
import pytest

from asyncfetch.server import Server
from asyncfetch.server.arriving import fills
from asyncfetch.server.arriving.wanted import HELD
from asyncfetch.spans import MiB

from ...kit.fault_server import FaultServer
from ..services import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "org/model"


def page(file: str) -> str:
    return f"/{NAME}/resolve/main/{file}"


@pytest.fixture
def source() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def files_of(source: FaultServer, count: int, size: int) -> tuple[dict[str, bytes], dict[str, str]]:
    """So many files, and where each is served."""
    files = {f"{number}.safetensors": random.Random(number).randbytes(size + number) for number in range(count)}
    return files, source.hub(NAME, files).storage


@pytest.mark.parametrize("size", [3 * MiB, 9 * MiB], ids=["small", "large"])
def test_who_reads_a_file_that_waits_for_its_turn(
    source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """It is passed on up to the bytes that wait for the hash, which come when the file does."""
    monkeypatch.setattr(fills, "AT_ONCE", 2)
    files, storage = files_of(source, 3, size)
    first, second, third = files
    gate = Gate(MiB)
    for name in (first, second):
        source.fault(storage[name], gate, forever=True)
    with Server(tmp_path, upstream=source.url) as service, ExitStack() as open_ones:
        slow = {}
        for name in (first, second):
            response = open_ones.enter_context(httpx.stream("GET", service.url + page(name), timeout=30))
            slow[name] = (response.iter_bytes(100_000), bytearray())
            slow[name][1].extend(next(slow[name][0]))
        response = open_ones.enter_context(httpx.stream("GET", service.url + page(third), timeout=30))
        pieces, came = response.iter_bytes(MiB // 8), bytearray()
        while len(came) < len(files[third]) - HELD - MiB // 8:
            came.extend(next(pieces))
        assert not gate.opened.is_set()
        gate.opened.set()
        for piece in pieces:
            came.extend(piece)
        assert came == files[third]
        for name, (rest, begun) in slow.items():
            assert bytes(begun) + b"".join(rest) == files[name]
        source.wait_for(lambda: len([*tmp_path.rglob("*.safetensors")]) == 3)
        assert httpx.get(service.url + page(third), timeout=30).content == files[third]
        assert [source.times_sent(storage[name]).max() for name in (first, second)] == [1, 1]
        assert source.times_sent(storage[third]).max() <= 2


def test_more_files_than_connections(source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file has one of its own, and nothing comes twice."""
    monkeypatch.setenv("ASYNCFETCH_CONNECTIONS", "1")  # and so four of the server
    files, storage = files_of(source, 7, 9 * MiB)
    gate = Gate(MiB)
    for path in storage.values():
        source.fault(path, gate, forever=True)
    with Server(tmp_path, upstream=source.url) as service, ExitStack() as open_ones:
        begun = {}
        for name in files:
            response = open_ones.enter_context(httpx.stream("GET", service.url + page(name), timeout=30))
            pieces = response.iter_bytes(100_000)
            begun[name] = (next(pieces), pieces)
        assert not gate.opened.is_set()
        gate.opened.set()
        for name, (start, rest) in begun.items():
            assert start + b"".join(rest) == files[name]
    assert [source.times_sent(path).max() for path in storage.values()] == [1] * 7


@pytest.mark.parametrize(("soft", "most"), [(1024, 64), (100, 6), (10, 1), (1_000_000, 256), (-1, 256)])
def test_as_many_as_descriptors_allow(soft: int, most: int) -> None:
    assert fills.most_at_once(soft) == most
