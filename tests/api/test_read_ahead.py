"""Who asks for tensors of a cold disk has them read ahead; who asks for a part has nothing else read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import asyncfetch
from asyncfetch.spans import MiB
from tests.kit.files import raw_file
from tests.kit.pages import forget, read_ahead_ended, resident

NBYTES, MIDDLE = 16 * MiB, 128 * MiB  # the kernel itself may read some MiB more than it is told


@contextmanager
def loaded(folder: Path) -> Iterator[object]:
    yield asyncfetch.load(folder, select=["first", "last"])


@contextmanager
def streamed(folder: Path) -> Iterator[object]:
    with asyncfetch.stream(folder, select=["first", "last"]) as tensors:
        yield next(tensors)


@contextmanager
def loaded_into(folder: Path) -> Iterator[object]:
    model = dict.fromkeys(("first", "last"))
    asyncfetch.load_into(model, folder, select=["first", "last"], strict=False)
    yield model


@contextmanager
def opened(folder: Path) -> Iterator[object]:
    with asyncfetch.open(folder) as checkpoint:
        yield checkpoint.tensor("first", 0)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    header, at = {}, 0
    for name, nbytes in (("first", NBYTES), ("middle", MIDDLE), ("last", NBYTES)):
        header[name] = {"dtype": "U8", "shape": [nbytes], "data_offsets": [at, at + nbytes]}
        at += nbytes
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_file(json.dumps(header).encode()))
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + at)
    forget(path)
    return path


@pytest.mark.parametrize("way", [loaded, streamed, loaded_into])
def test_what_is_wanted_comes_before_it_is_touched(
    shard: Path, way: Callable[[Path], AbstractContextManager[object]]
) -> None:
    end = shard.stat().st_size
    for _ in range(20):  # where others need the memory, what was read may be gone already
        with way(shard.parent):
            read_ahead_ended()
        if resident(shard, 0, NBYTES) and resident(shard, end - NBYTES, end):
            break
    else:
        pytest.fail("it was not read")
    middle = end - NBYTES - MIDDLE // 2
    assert not resident(shard, middle, middle + 4096)


def test_open_reads_what_it_is_asked_for(shard: Path) -> None:
    end = shard.stat().st_size
    with opened(shard.parent):
        assert not resident(shard, end - NBYTES - 1, end - NBYTES)
        assert not resident(shard, end - NBYTES // 2, end)
