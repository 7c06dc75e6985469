"""Whether a state dict fits a model of any kind: which array fills which slot, and what is wrong.

Pure decisions: nothing here knows torch, and nothing changes a model. A slot is a place in the
model that holds one array; tied names have slots of equal identity.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from ..errors import ModelMismatchError
from ..format.dtypes import Array

__all__ = [
    "Array",
    "Filler",
    "LoadReport",
    "StateDict",
    "Verdict",
    "choose_among_ties",
    "find_supply",
    "kind_of",
    "same_bytes",
    "tied_names",
    "unshare",
]

StateDict = Mapping[str, Array]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of each name, in the model's order.

    `loaded` has its own values from the state dict; `tied` maps a name without such values to the
    name whose values it got, being tied to it or an alias of it. `missing` kept what it held.
    `unexpected` are names of the state dict that nothing used. `on_meta` are the parameters and
    buffers of a torch module that have no memory yet: after a strict load, non-persistent buffers
    at most.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    tied: Mapping[str, str]
    on_meta: tuple[str, ...] = ()

    def __repr__(self) -> str:
        parts = [f"{len(self.loaded):,} loaded", f"{len(self.tied):,} tied"]
        for word in ("missing", "unexpected", "on_meta"):
            names = getattr(self, word)
            some = f": {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" if names else ""
            parts.append(f"{len(names):,} {word}{some}")
        return f"LoadReport({'; '.join(parts)})"


class Filler(Protocol):
    """Copies the tensors of a state dict that fits into a model, one by one as they come."""

    def put(self, name: str, array: Array) -> None: ...

    def report(self) -> LoadReport: ...


def find_supply(slots: Mapping[str, Hashable], present: Collection[str], aliases: Mapping[str, str]) -> dict[str, str]:
    """For each name of the model that can be filled: the name in the state dict that fills it."""
    found: dict[str, str] = {}
    for name in slots:
        source, seen = name, set[str]()
        while source not in present and source in aliases and source not in seen:
            seen.add(source)
            source = aliases[source]
        if source in present:
            found[name] = source
    of_slot: dict[Hashable, str] = {}
    for name, source in found.items():
        of_slot.setdefault(slots[name], source)
    return {name: found.get(name, of_slot[slots[name]]) for name in slots if slots[name] in of_slot}


def same_bytes(a: Array, b: Array) -> bool:
    """Whether two arrays are equal bit by bit, dtype and shape included."""
    if a is b:
        return True
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    left, right = (np.asarray(array).reshape(-1).view(np.uint8) for array in (a, b))
    step = 1 << 24  # a comparison allocates as many bytes as it compares
    return all(np.array_equal(left[at : at + step], right[at : at + step]) for at in range(0, left.size, step))


def choose_among_ties(
    slots: Mapping[str, Hashable],
    supply: dict[str, str],
    state_dict: StateDict,
    same: Callable[[Array, Array], bool] = same_bytes,
) -> dict[str, str]:
    """Let each group of tied names be filled from one source. Returns {loser: winner} where they are not the same."""
    winners: dict[Hashable, str] = {}
    losers: dict[str, str] = {}
    for name, source in supply.items():
        winner = winners.setdefault(slots[name], source)
        if winner != source and not same(state_dict[winner], state_dict[source]):
            losers[source] = winner
        supply[name] = winner
    return losers


def tied_names(supply: Mapping[str, str], present: Collection[str], losers: Collection[str]) -> dict[str, str]:
    """The names of the model that are filled from another name of the state dict, and from which."""
    return {name: source for name, source in supply.items() if name not in present or name in losers}


def unshare(
    values: dict[str, T], slots: Mapping[str, Hashable], address: Callable[[T], int], copy: Callable[[T], T]
) -> None:
    """Give untied slots that would get the same memory a copy: a training step would write to both."""
    users: dict[int, Hashable] = {}
    copies: dict[tuple[int, Hashable], T] = {}
    for name, slot in slots.items():
        if name in values and (at := address(values[name])) and users.setdefault(at, slot) != slot:
            if (at, slot) not in copies:
                copies[at, slot] = copy(values[name])
            values[name] = copies[at, slot]


@dataclass(slots=True)
class Verdict:
    """What does not fit. `reasons` are sentences about what is neither a name nor a shape.

    `filled` is what would get a value, in order.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    filled: dict[str, None] = field(default_factory=dict)

    def enforce(self, losers: Mapping[str, str], *, strict: bool) -> None:
        """Raise ModelMismatchError if the load must not happen."""
        conflicts = [
            f"{winner} and {loser} are one tensor in the model and differ in the checkpoint"
            for loser, winner in losers.items()
        ]
        reasons = [*self.reasons, *(conflicts if strict else ())]
        names = (self.missing, self.unexpected) if strict else ((), ())
        if not (any(names) or self.shapes or reasons):
            self.unexpected.extend(losers)
            return
        error = ModelMismatchError(missing=names[0], unexpected=names[1], shapes=self.shapes)
        if reasons:
            known = error.message.removesuffix(".")
            shown = "; ".join(reasons[:5]) + ("; …" if len(reasons) > 5 else "")
            error.args = (f"{known}{'; ' if any(names) or self.shapes else ''}{shown}.",)
            error.hint = "" if self.reasons or self.shapes else error.hint
        raise error


def kind_of(value: object) -> str:
    """The full name of the type of `value`, for a message."""
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
