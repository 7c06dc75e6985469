"""The name that was probably meant, among any number of names, for next to no work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from asyncfetch.format.near import near_name


def mixture(layers: int, experts: int) -> dict[str, str]:
    """The names of a mixture of experts."""
    body = [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.{leaf}"
        for layer in range(layers)
        for expert in range(experts)
        for part in ("down", "gate", "up")
        for leaf in ("weight", "weight_scale_inv")
    ]
    return dict.fromkeys(["lm_head.weight", "model.embed_tokens.weight", *body, "model.norm.weight"], "x")


LARGE, SMALL = mixture(61, 256), mixture(1, 2)


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """How many functions are called in the block, of Python and of C."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield lambda: calls
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("model.layers.0.mlp.expert.1.down_proj.weight", "model.layers.0.mlp.experts.1.down_proj.weight"),
        ("model.layers.0.mlp.experts.1.donw_proj.weight", "model.layers.0.mlp.experts.1.down_proj.weight"),
        ("model.layer.0.mlp.expert.1.up_proj.wieght", "model.layers.0.mlp.experts.1.up_proj.weight"),
        ("layers.0.mlp.experts.1.up_proj.weight", "model.layers.0.mlp.experts.1.up_proj.weight"),
        ("module.model.norm.weight", "model.norm.weight"),
        ("model.norm", "model.norm.weight"),
        ("model.layers.0.mlp.experts.1.up_proj.weight_scale", "model.layers.0.mlp.experts.1.up_proj.weight_scale_inv"),
        ("lm_haed.weight", "lm_head.weight"),
        ("x", None),
        ("", None),
        ("m" * 100_000, None),
        (".".join(map(str, range(10_000))), None),
    ],
)
@pytest.mark.parametrize("names", [SMALL, LARGE], ids=["few", "many"])
def test_finds_what_was_meant(names: dict[str, str], asked: str, meant: str | None) -> None:
    """A word misspelt, two of them, a prefix too many or too few, a last word left out: in 14 names and in 93,699."""
    assert near_name(asked, names.keys()) == meant


def test_the_work_does_not_grow_with_the_names() -> None:
    """Of 93,699 names it does not call a function for each, however little a name looks like them."""
    for asked in ("model.layers.17.mlp.expert.233.down_proj.weight", "model", "a.b.c.d.e.f", "q" * 499):
        with counting() as calls:
            near_name(asked, LARGE.keys())
        assert calls() < 60_000
