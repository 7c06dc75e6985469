"""What a load has to say where no reporter listens: a warning at the caller's line, and a line in the log."""

from __future__ import annotations

import asyncio
import logging
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncfetch
from asyncfetch import AsyncfetchWarning
from asyncfetch.events import Warned
from asyncfetch.server import Server
from asyncfetch.words import folded

from ..kit.files import index_bytes, safetensors_bytes

SHARDS = 6
LISTED = {f"layer.{n}": f"model-{n + 1:05}-of-{SHARDS:05}.safetensors" for n in range(SHARDS)}
SAID = (
    "has 1 tensor(s) that model.safetensors.index.json does not list, such as 'odd.0': skipped (and 5 more like this)"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Each of its shards has a tensor that the index does not list."""
    model = tmp_path / "models" / "org" / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors.index.json").write_bytes(index_bytes(LISTED))
    for n, shard in enumerate(LISTED.values()):
        (model / shard).write_bytes(safetensors_bytes({f"layer.{n}": np.ones(3), f"odd.{n}": np.ones(1)}))
    return model


def load_async(folder: Path) -> None:
    async def main() -> None:
        await asyncfetch.load_async(folder)  # here

    asyncio.run(main())


def streams_async(folder: Path) -> None:
    async def main() -> None:
        async with asyncfetch.stream_async(folder) as tensors:  # here
            assert len([name async for name, _ in tensors]) == SHARDS

    asyncio.run(main())


def open_async(folder: Path) -> None:
    async def main() -> None:
        checkpoint = await asyncfetch.open_async(folder)  # here
        await checkpoint.tensor("layer.1")
        await checkpoint.aclose()

    asyncio.run(main())


def as_a_task(folder: Path) -> None:
    async def main() -> None:
        await asyncio.create_task(asyncfetch.load_async(folder))

    asyncio.run(main())  # here


def load(folder: Path) -> None:
    asyncfetch.load(folder)  # here


def load_into(folder: Path) -> None:
    asyncfetch.load_into(dict.fromkeys(LISTED), folder)  # here


def stream(folder: Path) -> None:
    for _ in asyncfetch.stream(folder):  # here
        pass


def opens(folder: Path) -> None:
    with asyncfetch.open(folder) as checkpoint:  # here
        checkpoint.tensor("layer.0")


def client(folder: Path) -> None:
    with asyncfetch.BlockingClient() as shared:
        shared.load(folder)  # here


def client_stream(folder: Path) -> None:
    with asyncfetch.BlockingClient() as shared, shared.stream(folder) as tensors:  # here
        assert len(list(tensors)) == SHARDS


WAYS: list[Callable[[Path], None]] = [load_async, streams_async, open_async, as_a_task, load, load_into, stream, opens]
WAYS += [client, client_stream]


@pytest.mark.parametrize("way", WAYS)
def test_the_caller_is_warned_once(folder: Path, way: Callable[[Path], None], caplog: Any) -> None:
    """One line for many that are alike, at the line of the call, and the same in the log."""
    with pytest.warns(AsyncfetchWarning) as caught:
        way(folder)
    (warned,) = caught
    assert SAID in str(warned.message)
    assert warned.filename == __file__
    assert Path(__file__).read_text().splitlines()[warned.lineno - 1].endswith("# here")
    logged = [
        record.message for record in caplog.records if record.name == "asyncfetch" and record.levelno > logging.INFO
    ]
    assert logged == [str(warned.message)]


def test_who_has_a_reporter_hears_it_there(folder: Path, caplog: Any) -> None:
    """Each of them, and neither a warning nor a line in the log."""
    said: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncfetch.load(folder, report=said.append)
    assert sum(isinstance(event, Warned) for event in said) == SHARDS
    assert not [record for record in caplog.records if record.name == "asyncfetch" and record.levelno > logging.INFO]


@pytest.mark.parametrize("way", WAYS)
def test_where_a_warning_is_an_error_nothing_is_left_half(folder: Path, way: Callable[[Path], None]) -> None:
    """It is raised when all is done: what was opened is closed, no thread of ours is left, and the next call works."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", AsyncfetchWarning)
        with pytest.raises(AsyncfetchWarning, match="does not list") as caught:
            way(folder)
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("asyncfetch portal")]
    assert left == [], f"closed by hand, not with the last trace of {caught.value!r}"
    assert len(asyncfetch.load(folder)) == SHARDS


def test_a_model_is_whole_where_a_warning_is_an_error(folder: Path, tmp_path: Path) -> None:
    """It is filled, and the cache is too."""
    tree: dict[str, Any] = dict.fromkeys(LISTED)
    with Server(tmp_path / "models") as server, warnings.catch_warnings():
        warnings.simplefilter("error", AsyncfetchWarning)
        with pytest.raises(AsyncfetchWarning):
            asyncfetch.load_into(tree, "org/model", endpoint=server.url, cache_dir=tmp_path / "cache")
    assert all(array.tolist() == [1, 1, 1] for array in tree.values())
    warnings.simplefilter("ignore", AsyncfetchWarning)
    assert len(asyncfetch.load("org/model", offline=True, cache_dir=tmp_path / "cache")) == SHARDS


def test_a_call_within_another_block_speaks_for_itself(folder: Path) -> None:
    """What is loaded while a stream is open is told at its own line."""
    with pytest.warns(AsyncfetchWarning) as caught, asyncfetch.stream(folder):
        asyncfetch.load(folder)
    lines = [warned.lineno for warned in caught]
    assert lines[1] == lines[0] + 1


def test_an_error_is_not_hidden_by_a_warning(folder: Path, caplog: Any) -> None:
    """What was said before it is in the log."""
    tree: dict[str, Any] = dict.fromkeys([*LISTED, "another"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", AsyncfetchWarning)
        with pytest.raises(asyncfetch.ModelMismatchError):
            asyncfetch.load_into(tree, folder)
    levels = [record.levelno for record in caplog.records if record.name == "asyncfetch"]
    assert [level for level in levels if level > logging.INFO] == [logging.WARNING]


def test_what_is_folded() -> None:
    """What differs in numbers, names of files and what is quoted; the first of each kind is said."""
    assert folded(["a.safetensors: odd", "b is odd", "c/d-1.safetensors: odd", "b is odd", "x has 3 of 'y'"]) == [
        "a.safetensors: odd (and 1 more like this)",
        "b is odd (and 1 more like this)",
        "x has 3 of 'y'",
    ]
