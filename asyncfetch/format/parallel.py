"""Which part of each tensor each rank of a tensor parallel group holds, by a plan over their names. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ..errors import SelectionError, SourceError
from .hostile import short_repr
from .index import selector
from .near import near_name
from .ranks import Cut, cut_of_rank

__all__ = ["Division", "TpPlan"]

TpPlan = Mapping[str, int | Mapping[str, Any]]
_WORDS = frozenset({"axis", "parts", "split"})


@dataclass(frozen=True, slots=True)
class Division:
    """How tensors are divided among `world_size` ranks: the arguments of `cut_of_rank` for each that is.

    Who is not among `splits` is held by each rank as a whole.
    """

    world_size: int
    splits: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, tp_plan: TpPlan, world_size: int, shapes: Mapping[str, Sequence[int]]) -> Self:
        """What `tp_plan` says of the tensors of `shapes`: of patterns that match the same name the first one counts.

        Raises SelectionError for a pattern that is of no use, since a part that is not split is a wrong model;
        SourceError for a split that cannot be.
        """
        if not isinstance(tp_plan, Mapping):
            raise SourceError(f"tp_plan= maps globs of names to axes, and is no {type(tp_plan).__name__}.")
        cls(world_size, {}).checked([0])
        splits = dict[str, Mapping[str, Any]]()
        for pattern, given in tp_plan.items():
            how, matches = _arguments(pattern, given), selector(pattern)
            found = [name for name in shapes if matches(name)]
            if not found:
                raise SelectionError(f"tp_plan: {short_repr(pattern)} matches no tensor.", hint=_hint(pattern, shapes))
            splits |= {name: how for name in found if name not in splits}
        division = cls(world_size, splits)
        for name in splits:
            division.cut(name, shapes[name], 0)
        return division

    def cut(self, name: str, shape: Sequence[int], rank: int) -> Cut | None:
        """What `rank` holds of a tensor; None: all of it. Raises SourceError, which names the tensor."""
        how = self.splits.get(name)
        if how is None:
            return None
        try:
            return cut_of_rank(shape, rank=rank, world_size=self.world_size, **how)
        except SourceError as error:
            raise SourceError(f"{short_repr(name)} cannot be split: {error.message}", hint=error.hint) from error

    def checked(self, ranks: Iterable[int]) -> tuple[int, ...]:
        """`ranks`, each once, in their order. Raises SourceError for one that there is not."""
        found = list(ranks)
        for rank in found:
            cut_of_rank((1,), axis=0, rank=rank, world_size=self.world_size)
        return tuple(sorted({int(rank) for rank in found}))


def _arguments(pattern: object, given: object) -> Mapping[str, Any]:
    if not isinstance(pattern, str):
        raise SourceError(f"tp_plan= maps globs to axes, and {short_repr(pattern)} is no glob.")
    if not isinstance(given, Mapping):
        return {"axis": given}
    if unknown := sorted(map(str, given.keys() - _WORDS)):
        known = ", ".join(sorted(_WORDS))
        raise SourceError(f"tp_plan: {short_repr(pattern)} has {short_repr(unknown[0])}, and may have {known}.")
    return {"axis": 0, **given}


def _hint(pattern: str, names: Collection[str]) -> str:
    close = near_name(pattern, names)
    return "" if close is None else f"Is it {short_repr(close)}?"
