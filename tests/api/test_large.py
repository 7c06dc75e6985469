"""As many names as large mixtures of experts have: loaded by default, for work that grows no faster than they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import InvalidIndexError, SelectionError
from asyncfetch.format.index import parse_index, select_tensors
from asyncfetch.policy import Policy

from ..format.test_near import counting
from ..kit.files import index_bytes, safetensors_bytes
from ..kit.small_model import ONE_LOOP

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
ABSENT = "model.layers.7.mlp.experts.11.down_proj.weihgt"
MEANT = "model.layers.7.mlp.experts.11.down_proj.weight"


def names_of(count: int) -> dict[str, str]:
    """A weight_map of so many names, layer by layer."""
    names = (
        f"model.layers.{at // 4096}.mlp.experts.{at // 8 % 512}.{which}_proj.{leaf}"
        for at in range(0, count, 8)
        for which in ("down", "gate", "qkv", "up")
        for leaf in ("weight", "bias")
    )
    return {name: SHARDS[at % 2] for at, name in enumerate(names)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 250,000 tensors of one byte, its index laid out as writers do."""
    path = tmp_path_factory.mktemp("large")
    weight_map = names_of(250_000)
    for shard in SHARDS:
        held = {name: np.zeros(1, np.uint8) for name, where in weight_map.items() if where == shard}
        (path / shard).write_bytes(safetensors_bytes(held))
    (path / INDEX).write_bytes(index_bytes(weight_map, {"total_size": len(weight_map)}))
    return path


@pytest.mark.heavy
@pytest.mark.anyio
@ONE_LOOP
async def test_an_index_of_250_000_names(folder: Path) -> None:
    """It loads by default; a name that is absent costs less work than a look at each, whatever asks for it."""
    async with asyncfetch.open_async(folder) as checkpoint:
        assert len(checkpoint) == len(checkpoint.keys()) == 250_000
        assert MEANT in checkpoint
        assert ABSENT not in checkpoint
        looks = (
            lambda: checkpoint.tensor(ABSENT),
            lambda: checkpoint.tensor(ABSENT, np.s_[:1]),
            lambda: checkpoint.tensors([MEANT, ABSENT]),
            lambda: checkpoint.shard_of(ABSENT, rank=0, world_size=2),
        )
        for look in looks:
            with counting() as calls, pytest.raises(SelectionError, match=f"Is it '{MEANT}'"):
                await look()
            assert calls() < 100_000
        with counting() as calls, pytest.raises(SelectionError):
            checkpoint.plan_of(ABSENT, rank=0, world_size=2)
        assert calls() < 100_000
        assert (await checkpoint.tensor(MEANT)).tolist() == [0]


def test_parsing_and_selecting_are_linear() -> None:
    """Ten times the names take ten times the calls."""

    def work(count: int) -> list[int]:
        raw = index_bytes(names_of(count))
        index = parse_index(raw, file=INDEX, max_bytes=len(raw))
        exact = list(index.weight_map)[:: count // 1000]
        counts = []
        for one in (
            lambda: parse_index(raw, file=INDEX, max_bytes=len(raw)),
            lambda: select_tensors(index, ["*.experts.5.*", "*up_proj.bias"]),
            lambda: select_tensors(index, exact),
        ):
            with counting() as calls:
                one()
            counts.append(calls())
        return counts

    for few, many in zip(work(2_000), work(20_000), strict=True):
        assert many <= 11 * few


def test_the_default_limit() -> None:
    """It has room for the index of the largest models, and for names that are half as long again."""
    raw = index_bytes({f"language_model.decoder.{name}_scale_inv": shard for name, shard in names_of(250_000).items()})
    assert 30_000_000 < len(raw) < Policy().max_index_bytes


@pytest.mark.heavy
def test_a_larger_index_says_what_to_raise(folder: Path) -> None:
    """The limit is named, and the limit of the call is the one that counts."""
    size = (folder / INDEX).stat().st_size
    with pytest.raises(InvalidIndexError, match=r"give Policy\.max_index_bytes a larger number of bytes"):
        asyncfetch.inspect(folder, policy=Policy(max_index_bytes=size - 1))
