"""Tensors of a torch module that lie in one memory and are not one tensor: a transposed tie, parts of a flat buffer.

Arrays in their place would each be memory of its own: what was tied would silently come apart, and who holds the flat
buffer (DeepSpeed, Megatron, cuDNN's weights of an LSTM) would keep the old values. So they are filled where they are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..format.arrays import PackedArray
from ..words import some_of
from .fit import Array, StateDict, Verdict
from .places import Place, has_address, is_expanded, memory_of

__all__ = ["Memory", "filled_twice", "judge_memories", "judge_values", "memories_of", "overlaid"]

_SHOWN = 4  # names in an error


@dataclass(frozen=True, slots=True)
class _Part:
    """One tensor in a memory, under all of its names. `start` and `strides` count elements of its dtype."""

    names: tuple[str, ...]
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any

    @property
    def stop(self) -> int:
        return self.start + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True)) + 1

    def of(self, elements: Array) -> Array:
        """What it is of an array with an element for each of the memory."""
        strides = [step * elements.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(elements[self.start :], self.shape, strides)


@dataclass(frozen=True, slots=True)
class Memory:
    """Two tensors or more in one memory. `is_meta`: it is none yet. `overlap`: some elements are of several."""

    parts: tuple[_Part, ...]
    is_meta: bool
    overlap: bool

    @property
    def names(self) -> list[str]:
        return [name for part in self.parts for name in part.names]


def memories_of(torch: Any, places: Mapping[str, Place], slots: Mapping[str, Hashable]) -> list[Memory]:
    """Each memory in which a module has two tensors or more."""
    names: dict[Hashable, list[str]] = {}
    for name, slot in slots.items():
        names.setdefault(slot, []).append(name)
    found: dict[Hashable, list[_Part]] = {}
    for alike in names.values():
        tensor = places[alike[0]].tensor
        if has_address(torch, tensor):
            shape, strides = tuple(tensor.shape), tuple(tensor.stride())
            part = _Part(tuple(alike), tensor.storage_offset(), shape, strides, tensor.dtype)
            found.setdefault(memory_of(tensor), []).append(part)
    return [
        Memory(tuple(parts), places[parts[0].names[0]].tensor.is_meta, _overlap(parts))
        for parts in found.values()
        if len(parts) > 1
    ]


def _overlap(parts: list[_Part]) -> bool:
    """Whether an element is of two parts. Columns of a matrix lie among each other, and have none in common."""
    ends = sorted((part.start * part.dtype.itemsize, part.stop * part.dtype.itemsize) for part in parts)
    if all(before[1] <= after[0] for before, after in pairwise(ends)):
        return False
    if len({part.dtype for part in parts}) > 1:
        return True
    taken = np.zeros(max(part.stop for part in parts), np.bool_)
    for part in parts:
        if part.of(taken).any():
            return True
        part.of(taken)[...] = True
    return False


def overlaid(memories: Collection[Memory], supply: dict[str, str]) -> dict[str, str]:
    """{name: the name that fills it too} of all whose elements are those of others that are filled.

    They need no values, so what an alias would give them is taken out of `supply`.
    """
    found: dict[str, str] = {}
    for memory in memories:
        filling = [part for part in memory.parts if _has_own(part, memory, supply)]
        if not memory.overlap or not filling or len({part.dtype for part in memory.parts}) > 1:
            continue
        taken = np.zeros(max(part.stop for part in memory.parts), np.bool_)
        for part in filling:
            part.of(taken)[...] = True
        for part in memory.parts:
            if part not in filling and part.of(taken).all():
                found.update(dict.fromkeys(part.names, supply[filling[0].names[0]]))
    for name in found:
        supply.pop(name, None)
    return found


def _has_own(part: _Part, memory: Memory, supply: Mapping[str, str]) -> bool:
    """Whether it is filled, and not by what fills another part of the memory."""
    others = {name for one in memory.parts if one is not part for name in one.names}
    return any(name in supply and supply[name] not in others for name in part.names)


def filled_twice(memories: Collection[Memory], supply: Mapping[str, str]) -> bool:
    """Whether elements get values from two names, which must agree."""
    return any(memory.overlap and len(_filling(memory, supply)) > 1 for memory in memories)


def _filling(memory: Memory, supply: Mapping[str, str]) -> list[_Part]:
    return [part for part in memory.parts if part.names[0] in supply]


def judge_memories(
    memories: Collection[Memory], places: Mapping[str, Place], device: Any, verdict: Verdict
) -> list[str]:
    """The names of tensors that are to be filled where they are, in order. For `assign` alone.

    What does not overlap may get memory of its own on meta, or on the `device` that buffers follow to.
    """
    found = []
    for memory in memories:
        filled = [name for name in memory.names if name in verdict.filled]
        anew = bool(filled) and (memory.is_meta or (device is not None and places[filled[0]].tensor.device != device))
        if anew and memory.overlap:
            verdict.reasons.append(f"{some_of(memory.names, _SHOWN)} share memory, and would come apart in another one")
            verdict.hints.append("Make the model where it is to be, with memory.")
        elif not anew:
            found += filled
            flaw = next((said for name in filled if (said := _flaw(name, places[name].tensor, verdict))), None)
            if flaw is not None:
                others = some_of([name for name in memory.names if name != flaw[0]], _SHOWN)
                verdict.reasons.append(f"{flaw[0]} is in one memory with {others}, so it {flaw[1]}")
                verdict.hints.append(_KEPT)
    return found


_KEPT = "assign=False copies into what is there; model.to(...) gives each memory of its own, and ends what they share."


def _flaw(name: str, own: Any, verdict: Verdict) -> tuple[str, str] | None:
    """Why a tensor cannot be filled where it is, if so."""
    if (given := verdict.filled[name]) not in (None, own.dtype):
        return name, f"stays {own.dtype} and cannot become {given}"
    return (name, "cannot be filled, being expanded") if is_expanded(own) else None


def judge_values(memories: Collection[Memory], supply: Mapping[str, str], given: StateDict, verdict: Verdict) -> None:
    """Whether the values of tensors that overlap are the same where they do."""
    for memory in memories:
        filling = _filling(memory, supply)
        if not memory.overlap or len(filling) < 2 or any(name in verdict.shapes for name in memory.names):
            continue
        if not _agree(filling, [given[supply[part.names[0]]] for part in filling]):
            names = [part.names[0] for part in filling]
            verdict.reasons.append(f"{some_of(names, _SHOWN)} share memory in the model and differ in the checkpoint")
            verdict.hints.append(f'skip="{names[-1]}" leaves that one out.')


def _agree(parts: list[_Part], arrays: list[Array]) -> bool:
    alike = {(part.dtype, array.dtype) for part, array in zip(parts, arrays, strict=True)}
    sizes = all(array.size == math.prod(part.shape) for part, array in zip(parts, arrays, strict=True))
    if len(alike) > 1 or not sizes or any(isinstance(array, PackedArray) for array in arrays):
        return False
    kind = np.dtype(f"V{arrays[0].itemsize}")  # bits are compared: a NaN is itself
    pairs = [(part, np.ascontiguousarray(array).view(kind)) for part, array in zip(parts, arrays, strict=True)]
    elements = np.zeros(max(part.stop for part in parts), kind)
    for part, bits in pairs:
        part.of(elements)[...] = bits.reshape(part.shape)
    return all(np.array_equal(part.of(elements), bits.reshape(part.shape)) for part, bits in pairs)
