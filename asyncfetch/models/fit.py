"""Whether a state dict fits a model of any kind: which array fills which slot, and what is wrong.

Pure decisions: nothing here knows torch, and nothing changes a model. A slot is a place in the
model that holds one array; tied names have slots of equal identity.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from ..errors import ModelMismatchError
from ..format.dtypes import Array
from ..format.index import Selector

__all__ = [
    "Array",
    "Filler",
    "LoadReport",
    "Skip",
    "StateDict",
    "Strict",
    "Terms",
    "Verdict",
    "choose_among_ties",
    "find_supply",
    "kind_of",
    "same_bytes",
    "tied_names",
    "unshare",
]

StateDict = Mapping[str, Array]
Strict = bool | Literal["missing"]
Skip = Selector
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a load may do to the model.

    `strict`: True makes a missing or an unexpected name an error, "missing" a missing one alone, False none.
    `assign`: the arrays are taken over, not copied. `dtypes`: where the arrays are taken over, the model's
    dtypes are `"kept"`, may be `"cast"` where both are floats because the caller named one, or are those
    that are `"stored"`. `skip`: tensors of the model, by name, that keep what they hold. `aliases`: names
    that were dropped from the state dict, and the names that they were equal to. `device`: a torch.device on which
    what is on meta comes to be, and what is to be beside it.
    """

    strict: Strict = True
    assign: bool = True
    dtypes: Literal["kept", "cast", "stored"] = "kept"
    skip: Callable[[str], bool] = lambda _: False
    aliases: Mapping[str, str] = field(default_factory=dict)
    device: Any = None

    def allow(self, own_is_float: bool, given_is_float: bool) -> bool:
        """Whether a tensor may get another dtype than it has."""
        return self.dtypes == "stored" or (self.dtypes == "cast" and own_is_float and given_is_float)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of each name, in the model's order.

    `loaded` has its own values from the state dict; `tied` maps a name without such values to the
    name whose values it got, being tied to it or an alias of it. `missing` kept what it held, as did
    `skipped`, because of `skip`. `unexpected` are names of the state dict that nothing used. `on_meta`
    are the parameters and buffers of a torch module that have no memory after all: none, unless the
    module's own loading code did something else than it said.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    tied: Mapping[str, str]
    on_meta: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __repr__(self) -> str:
        parts = [f"{len(self.loaded):,} loaded", f"{len(self.tied):,} tied"]
        for word in ("missing", "unexpected", "skipped", "on_meta"):
            names = getattr(self, word)
            some = f": {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" if names else ""
            parts.append(f"{len(names):,} {word}{some}")
        return f"LoadReport({'; '.join(parts)})"


class Filler(Protocol):
    """Copies the tensors of a state dict that fits into a model, one by one as they come."""

    def put(self, name: str, array: Array) -> None: ...

    def report(self) -> LoadReport: ...

    def close(self) -> None: ...


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
    """What does not fit. `reasons` are sentences about what is neither a name nor a shape nor a dtype.

    `filled` is what would get a value, in order, with the dtype of that value where the model's may
    change; `bare` is what would have no memory afterwards.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    dtypes: dict[str, tuple[str, str]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    filled: dict[str, Any] = field(default_factory=dict)
    bare: list[str] = field(default_factory=list)
    bare_parameters: bool = False
    fits_nothing: bool = False

    def enforce(self, losers: Mapping[str, str], strict: Strict) -> None:
        """Raise ModelMismatchError if the load must not happen."""
        conflicts = [
            f"{winner} and {loser} are one tensor in the model and differ in the checkpoint"
            for loser, winner in (losers.items() if strict else ())
        ]
        missing = self.missing if strict or self.fits_nothing else []
        unexpected = self.unexpected if strict is True or self.fits_nothing else []
        told = set(missing)
        bare = [name for name in self.bare if name not in told]
        reasons = [*self.reasons, *conflicts]
        if self.fits_nothing:
            reasons.append("no name is in both")
        if bare:
            some = f"{', '.join(bare[:5])}{', …' if len(bare) > 5 else ''}"
            reasons.append(f"{len(bare):,} would have no values, being on the meta device ({some})")
        if not (missing or unexpected or self.shapes or self.dtypes or reasons):
            self.unexpected.extend(losers)
            return
        hints = [*self.hints]
        if bare:
            hints.append(_PARAMETERS_OFF_META if self.bare_parameters else _BUFFERS_OFF_META)
        if self.dtypes:
            hints.append(self._about_dtypes())
        if self.shapes and len(self.shapes) * 4 <= len(self.filled):
            hints.append(f"skip={_listed(self.shapes)} leaves those of other shapes as they are, to be trained anew.")
        if conflicts and not (missing or unexpected or self.shapes or self.reasons):
            hints.append("strict=False takes the first of those that differ.")
        if not hints and not (self.shapes or self.reasons or self.fits_nothing):
            hints.append(_about_names(missing, unexpected, self.filled))
        raise ModelMismatchError(
            missing=missing,
            unexpected=unexpected,
            shapes=self.shapes,
            dtypes=self.dtypes,
            reasons=reasons,
            hint=" ".join(hints),
        )

    def _about_dtypes(self) -> str:
        auto = 'dtype="auto" takes the dtypes of the checkpoint'
        own, its = ({pair[side] for pair in self.dtypes.values()} for side in (0, 1))
        if not own | its <= _FLOATS:  # F8 may be worth nothing without a scale, and integers are not cast
            return f"{auto}."
        cast = f'dtype="{next(iter(own))}" casts, ' if len(own) == 1 else ""
        return f"{cast}{auto}, assign=False copies the values into what the model has."


_FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})

_PARAMETERS_OFF_META = "Parameters that no checkpoint fills have to be made on a real device."
_BUFFERS_OFF_META = (
    "Make the model under `with asyncfetch.models.parameters_on_meta():`, "
    "or on a real device: buffers then have the values that they are computed with."
)


def _listed(names: Collection[str]) -> str:
    """Names as a Python list, of which a reader sees the beginning."""
    some = ", ".join(f'"{name}"' for name in list(names)[:4])
    return f"[{some}, …]" if len(names) > 4 else f"[{some}]"


def _about_names(missing: Collection[str], unexpected: Collection[str], filled: Collection[str]) -> str:
    """What to do about names. Never to go on with parameters that nobody filled, unless each is named."""
    if missing:
        return (
            "What is missing would keep what it holds, random numbers in a new model: is it the class and the config "
            "that were saved? What is to be trained anew is named by skip=."
        )
    owners = {name.rpartition(".")[0] for name in filled}
    beside = [name for name in unexpected if name.rpartition(".")[0] in owners]
    if beside:  # a bias, a scale, a zero point
        return f"Without {beside[0]} the tensor beside it may mean something else: is it a model of the same kind?"
    return 'strict="missing" leaves out what the model has no place for.' if unexpected else ""


def kind_of(value: object) -> str:
    """The full name of the type of `value`, for a message."""
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
