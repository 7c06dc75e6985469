"""No checkpoint where it was looked for: what the error says of what is there, and how to name it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asyncfetch
from asyncfetch.cli.wording import in_flags
from asyncfetch.errors import CheckpointNotFoundError
from asyncfetch.server import Server

from ..kit.fault_server import FaultServer, Hangup, Mute, Status
from ..kit.files import safetensors_bytes, sharded_bytes
from ..kit.small_model import CALM, ONE_LOOP

pytestmark = [pytest.mark.anyio, ONE_LOOP]

ONE = safetensors_bytes({"w": np.arange(3.0)})
SHARDS = sharded_bytes({"a": np.arange(3.0), "b": np.arange(2.0)}, 2)


@pytest.fixture(params=["local", "hub"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """A folder for files, what to load, and the options for it."""
    folder = tmp_path / "models" / "org" / "model"
    folder.mkdir(parents=True)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "token": False, "policy": CALM}
    if request.param == "local":
        yield folder, str(folder), options
        return
    with Server(tmp_path / "models") as server:
        yield folder, "org/model", {**options, "endpoint": server.url}


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


async def said(source: str, **options: Any) -> CheckpointNotFoundError:
    with pytest.raises(CheckpointNotFoundError) as caught:
        await asyncfetch.load_async(source, **options)
    return caught.value


@pytest.mark.parametrize("name", ["weights.safetensors", "my-model_v2.safetensors", "other.safetensors.index.json"])
async def test_a_name_of_its_own(site: tuple[Path, str, dict[str, Any]], name: str) -> None:
    """A file or an index with another name: the error gives its address, which works."""
    folder, source, options = site
    shards = {shard: content for shard, content in SHARDS.items() if shard.endswith(".safetensors")}
    put(folder, {name: ONE} if name.endswith("s") else {**shards, name: SHARDS["model.safetensors.index.json"]})
    error = await said(source, **options)
    assert name in error.message
    address = error.hint.partition("Give the file itself: ")[2].removesuffix(".")
    assert address.endswith(name)
    assert await asyncfetch.load_async(address, **options)


@pytest.mark.parametrize("names", [["unet"], ["unet", "text_encoder/deep"]])
async def test_subfolders_that_hold_one(site: tuple[Path, str, dict[str, Any]], names: list[str]) -> None:
    """The root of a pipeline: its parts are named, and each works."""
    folder, source, options = site
    put(folder, {"model_index.json": b"{}", **{f"{name}/model.safetensors": ONE for name in names}})
    error = await said(source, **options)
    for name in names:
        if source == "org/model":
            assert f"subfolder={name!r}" in error.hint
            assert f"--subfolder {name!r}" in in_flags(error.hint)
            assert await asyncfetch.load_async(source, subfolder=name, **options)
        else:
            assert f"Give the folder itself: {folder / name}." in error.hint


async def test_variants_that_there_are(site: tuple[Path, str, dict[str, Any]]) -> None:
    """Another variant than the one asked for, or none."""
    folder, source, options = site
    put(folder, {"model.fp16.safetensors": ONE, "model.safetensors.index.bf16.json": b"{}"})
    error = await said(source, **options)
    assert error.hint == "Pass variant='bf16' or variant='fp16'."
    put(folder, {"model.safetensors": ONE})
    error = await said(source, variant="fp32", **options)
    assert "Without variant= there is one." in error.hint
    assert "'fp32'" in error.message


async def test_pickles(site: tuple[Path, str, dict[str, Any]]) -> None:
    """Weights that are not read are named, and why."""
    folder, source, options = site
    put(folder, {"config.json": b"{}", "pytorch_model.bin": b"x"})
    error = await said(source, **options)
    assert "pytorch_model.bin" in error.message
    assert "can run code" in error.hint


async def test_shards_that_no_index_names(site: tuple[Path, str, dict[str, Any]]) -> None:
    """An upload that was left in the middle."""
    folder, source, options = site
    put(folder, {name: content for name, content in SHARDS.items() if name.endswith(".safetensors")})
    error = await said(source, **options)
    assert "no index" in error.hint
    assert "model-00001-of-00002.safetensors" in error.message


async def test_many_files(site: tuple[Path, str, dict[str, Any]]) -> None:
    """A message stays short; weights come first."""
    folder, source, options = site
    put(folder, {**{f"{n}.txt": b"x" for n in range(40)}, "z.gguf": b"x", "zz.pt": b"x"})
    error = await said(source, **options)
    assert "it has zz.pt, " in error.message
    assert "and 37 more" in error.message


@pytest.mark.parametrize(
    "fault",
    [Hangup, Mute, Status(404), Status(200, {}, b"<html>"), Status(200, {}, b'{"a": 1}'), Status(200, {}, b"[[]]")],
    ids=["hangs up", "silent", "none", "html", "object", "other"],
)
async def test_a_hub_that_lists_nothing(server: FaultServer, tmp_path: Path, fault: Any) -> None:
    """The look is for advice alone: one request, whose failure is not told.

    It goes once more over a new connection where one that had served before says nothing.
    """
    server.hub("org/model", {"config.json": b"{}"})
    listing = "/api/models/org/model/tree/0123456789abcdef0123456789abcdef01234567"
    server.fault(listing, fault, forever=True)
    policy = replace(CALM, connect_timeout=0.3, read_timeout=0.3) if fault is Mute else CALM
    error = await said("org/model", endpoint=server.url, cache_dir=tmp_path, token=False, policy=policy)
    assert "tried model.safetensors.index.json" in error.message
    assert 1 <= len(server.to(listing)) <= (2 if fault in (Hangup, Mute) else 1)
