"""Tensors that differ in the number of their layer alone, as one line: what a person reads of a large checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Layers", "Part", "folded_layers", "parts_of", "stem_of"]

_NUMBER = re.compile(r"(?<![^.])\d{1,9}(?![^.])")  # a whole part of a name
_MOST = 4  # numbers that are listed each


@dataclass(slots=True)
class Layers:
    """Tensors of one dtype and one shape whose names differ in numbers alone; or one tensor.

    `shape` counts elements, `nbytes` are all their bytes together.
    """

    first: str
    dtype: str
    shape: tuple[int, ...]
    count: int = 0
    nbytes: int = 0
    numbers: list[set[int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of one, with the numbers of all in braces: "layers.{0-31}.weight"."""
        shown = iter(self.numbers)
        return self.first if self.count == 1 else _NUMBER.sub(lambda found: _shown(found[0], next(shown)), self.first)


def folded_layers(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> list[Layers]:
    """Those of `tensors` (name, dtype, shape, bytes) that belong together, in the order of the first of them."""
    found: dict[tuple[str, str, tuple[int, ...]], Layers] = {}
    for name, dtype, shape, nbytes in tensors:
        numbers = _NUMBER.findall(name)
        alike = _NUMBER.sub("#", name) if numbers else name
        layers = found.setdefault((alike, dtype, shape), Layers(name, dtype, shape, numbers=[set() for _ in numbers]))
        layers.count += 1
        layers.nbytes += nbytes
        for seen, number in zip(layers.numbers, numbers, strict=True):
            seen.add(int(number))
    return list(found.values())


def _shown(own: str, numbers: set[int]) -> str:
    if len(numbers) == 1:
        return own
    ordered = sorted(numbers)
    if ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{{{ordered[0]}-{ordered[-1]}}}"
    listed = ",".join(map(str, ordered[:_MOST]))
    return f"{{{listed}{',…' if len(ordered) > _MOST else ''}}}"


@dataclass(slots=True)
class Part:
    """A part of a model: its layers, its embedding. `nbytes` are those of all its tensors.

    `layers`: of a stack the bytes of each, by number. `stem`: what the names of its tensors begin with.
    """

    name: str
    count: int
    parameters: int
    nbytes: int
    layers: dict[int, int] = field(default_factory=dict)
    stem: str = ""

    def layer_of(self, tensor: str) -> tuple[int, str] | None:
        """Of a tensor of this stack the number of its layer, and its name within that."""
        stem, number = stem_of(tensor)
        if stem != self.stem or number is None:
            return None
        return int(number[0]), tensor[number.end() + 1 :]


def stem_of(tensor: str) -> tuple[str, re.Match[str] | None]:
    """What names the part to which a tensor belongs, and the number of its layer in it."""
    number = _NUMBER.search(tensor)
    return tensor[: number.start()] if number else tensor.rpartition(".")[0] or tensor, number


def parts_of(tensors: Iterable[tuple[str, tuple[int, ...], int]]) -> list[Part]:
    """The parts to which `tensors` (name, shape, bytes) belong, those with most bytes first.

    A stack of layers is one part: "model.layers.{0-31}". What is in none belongs to the module that holds it.
    """
    found: dict[str, Part] = {}
    own: dict[str, str] = {}  # a number of each stack as it is written
    for name, shape, nbytes in tensors:
        stem, number = stem_of(name)
        part = found.setdefault(stem, Part(stem, 0, 0, 0, stem=stem))
        if number:
            own[stem] = number[0]
            part.layers[int(number[0])] = part.layers.get(int(number[0]), 0) + nbytes
        part.count += 1
        part.parameters += math.prod(shape)
        part.nbytes += nbytes
    for stem, number_text in own.items():
        found[stem].name = stem + _shown(number_text, set(found[stem].layers))
    return sorted(found.values(), key=lambda part: -part.nbytes)
