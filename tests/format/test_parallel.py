"""A plan of a tensor parallel group: which tensors are split, and how."""

from __future__ import annotations

from typing import Any

import pytest

from asyncfetch.errors import SelectionError, SourceError
from asyncfetch.format.parallel import Division

SHAPES = {
    "layers.0.q.weight": (8, 6),
    "layers.1.q.weight": (9, 6),
    "layers.0.qkv.weight": (2, 12),
    "layers.0.o.weight": (6, 8),
    "norm.weight": (6,),
    "scale": (),
}


def test_what_a_plan_says() -> None:
    """Globs over names, the first that matches; an axis, or the arguments of `shard_of`; the rest is whole."""
    tp_plan = {
        "layers.1.q.weight": {"split": "array_split"},
        "*.q.weight": 0,
        "*.qkv.weight": {"axis": -1, "parts": (8, 4)},
        "*.o.weight": 1,
    }
    division = Division.of(tp_plan, 4, SHAPES)
    shapes = {name: [getattr(division.cut(name, SHAPES[name], n), "result", None) for n in range(4)] for name in SHAPES}
    assert shapes == {
        "layers.0.q.weight": [(2, 6)] * 4,
        "layers.1.q.weight": [(3, 6), (2, 6), (2, 6), (2, 6)],
        "layers.0.qkv.weight": [(2, 3)] * 4,
        "layers.0.o.weight": [(6, 2)] * 4,
        "norm.weight": [None] * 4,
        "scale": [None] * 4,
    }
    assert division.checked([3, 1, 3]) == (1, 3)


@pytest.mark.parametrize(
    ("tp_plan", "world_size", "words"),
    [
        ({"*.q.wieght": 0}, 2, r"'\*\.q\.wieght' matches no tensor"),
        ({"layers.0.q.wieght": 0}, 2, r"Is it 'layers.0.q.weight'\?"),
        ({"norm.weight": 1}, 2, r"'norm.weight' cannot be split: axis=1 is no axis"),
        ({"scale": 0}, 2, "'scale' cannot be split"),
        ({"*.q.weight": {"dim": 0}}, 2, "has 'dim', and may have axis, parts, split"),
        ({"*.q.weight": "colwise"}, 2, "axis='colwise' is not a whole number"),
        ({"*.q.weight": {"parts": 3}}, 2, "parts=3 does not divide the 8 of axis 0"),
        ({"*.q.weight": {"split": "even"}}, 2, 'neither "chunk" nor "array_split"'),
        ({3: 0}, 2, "3 is no glob"),
        ([], 2, "maps globs of names to axes, and is no list"),
        ({"*.q.weight": 0}, 0, "there must be one at least"),
    ],
)
def test_what_no_plan_says(tp_plan: Any, world_size: int, words: str) -> None:
    """A glob that matches nothing would leave a rank with more than its part, silently."""
    with pytest.raises(SourceError, match=words) as error:
        Division.of(tp_plan, world_size, SHAPES)
    assert isinstance(error.value, SelectionError) == ("matches no tensor" in str(error.value))


def test_no_such_rank() -> None:
    for ranks in ([4], [-1], ["a"], [True]):
        with pytest.raises(SourceError, match="rank="):
            Division.of({}, 4, SHAPES).checked(ranks)
