"""Tensors that are alike, as one line; and the parts of a model."""

from __future__ import annotations

import random

from asyncfetch.format.layers import folded_layers, parts_of


def test_layers_are_folded() -> None:
    """Those of one dtype and shape whose names differ in whole numbers, in the order of the first; others stay."""
    tensors = [
        ("embed.weight", "F32", (10, 4), 160),
        *((f"layers.{n}.up.weight", "BF16", (8, 4), 64) for n in (2, 0, 1)),
        ("layers.3.up.weight", "F32", (8, 4), 128),
        *((f"layers.{n}.experts.{e}.w1", "BF16", (4,), 8) for n in range(3) for e in range(8)),
        *((f"odd.{n}.w", "F32", (), 4) for n in (1, 5, 9)),
        *((f"many.{n}.w", "F32", (), 4) for n in range(0, 20, 2)),
        ("h1.layer_2.w", "F32", (2,), 8),
        ("h2.layer_2.w", "F32", (2,), 8),
    ]
    assert [(one.name, one.dtype, one.count, one.nbytes) for one in folded_layers(tensors)] == [
        ("embed.weight", "F32", 1, 160),
        ("layers.{0-2}.up.weight", "BF16", 3, 192),
        ("layers.3.up.weight", "F32", 1, 128),
        ("layers.{0-2}.experts.{0-7}.w1", "BF16", 24, 192),
        ("odd.{1,5,9}.w", "F32", 3, 12),
        ("many.{0,2,4,6,…}.w", "F32", 10, 40),
        ("h1.layer_2.w", "F32", 1, 8),
        ("h2.layer_2.w", "F32", 1, 8),
    ]


def test_nothing_is_lost(seed: int) -> None:
    """Whatever the names: each tensor is in one line, and in one part."""
    rng = random.Random(seed)
    words = ["a", "layers", "7", "0", "12", "weight", "1x", ""]
    names = {".".join(rng.choices(words, k=rng.randint(1, 5))) for _ in range(300)}
    tensors = [(name, rng.choice(["F32", "BF16"]), (rng.randint(0, 2),), rng.randint(0, 99)) for name in names]
    lines = folded_layers(tensors)
    parts = parts_of((name, shape, nbytes) for name, _, shape, nbytes in tensors)
    for found in (lines, parts):
        assert sum(one.count for one in found) == len(names)
        assert sum(one.nbytes for one in found) == sum(row[3] for row in tensors)
    assert sum(part.parameters for part in parts) == sum(row[2][0] for row in tensors)


def test_parts() -> None:
    """A stack of layers is one part, what is in none belongs to its module; most bytes first."""
    tensors = [("model.embed.weight", (10, 4), 80), ("lm_head", (3,), 6), ("model.norm.weight", (4,), 8)]
    tensors += [(f"model.layers.{n}.mlp.{e}.w", (4, 4), 32) for n in range(4) for e in range(2)]
    assert [(part.name, part.count, part.parameters, part.nbytes) for part in parts_of(tensors)] == [
        ("model.layers.{0-3}", 8, 128, 256),
        ("model.embed", 1, 40, 80),
        ("model.norm", 1, 4, 8),
        ("lm_head", 1, 3, 6),
    ]
