"""Which tensors of a located checkpoint count only times a scale."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from functools import cached_property

from ..format.dtypes import DTYPES, is_floating
from ..format.header import TensorInfo
from ..format.hostile import short_repr
from ..format.scaled import SMALL, ScaledWeight, scaled_weight
from ..format.unknown_scales import NamedScales, unknown_scale
from ..sources.located import Located

__all__ = ["ScaledIn", "doubts_in", "scaled_in"]


def scaled_in(located: Located, names: Iterable[str]) -> Iterator[ScaledWeight]:
    """Those of the selected tensors `names` that something scales."""
    return ScaledIn(located).of(names)


def doubts_in(located: Located, scaled: Container[str]) -> list[str]:
    """What to tell of selected tensors that look as if they were `scaled`, and are not: one sentence, if any."""
    look = ScaledIn(located)
    found = [name for name in located.wanted.weight_map if name not in scaled and look.doubtful(name)]
    if not found:
        return []
    more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
    return [
        f"{short_repr(found[0])}{more}: a scale of the inputs lies beside, and none of the weight that is known here. "
        "Its numbers are taken as they are stored"
    ]


class ScaledIn:
    """Says of the tensors of a checkpoint what scales them. What it has to look for it looks for once."""

    def __init__(self, located: Located) -> None:
        self._located = located
        self._files = {file.name: file for file in located.files}
        self._listed = located.wanted.weight_map if located.index is None else located.index.weight_map
        self._unlisted: dict[str, NamedScales] = {}

    def of(self, names: Iterable[str]) -> Iterator[ScaledWeight]:
        """Those of the selected tensors `names` that something scales."""
        for name in names:
            beside = self._header_with(
                name
            )  # a scale that no index lists, or that is not selected, is one all the same
            info = beside.get(name)
            if info is None or info.dtype not in SMALL:
                continue
            every = _Either(self._listed, beside)
            found = scaled_weight(name, info, every, self._entry)
            found = found or unknown_scale(name, info, self._scales_beside(name), every, self._entry)
            if found is not None:
                yield found

    def doubtful(self, name: str) -> bool:
        """Whether a selected tensor that nothing is known to scale is one of small floats whose inputs are scaled."""
        info = self._entry(name)
        if info is None or info.dtype not in SMALL or not is_floating(DTYPES[info.dtype].numpy):
            return False
        return any(one.of_inputs(name) for one in self._scales_beside(name))

    @cached_property
    def _of_index(self) -> NamedScales:
        return NamedScales(self._listed)

    def _scales_beside(self, name: str) -> list[NamedScales]:
        """Those that the index lists, and those that only the header of its file does."""
        file = self._located.path_of(self._listed[name])
        if file not in self._unlisted:
            self._unlisted[file] = NamedScales(one for one in self._header_with(name) if one not in self._listed)
        return [self._of_index, self._unlisted[file]]

    def _header_with(self, name: str) -> Mapping[str, TensorInfo]:
        file = self._files.get(self._located.path_of(self._listed[name])) if name in self._listed else None
        return {} if file is None else file.known_header.tensors

    def _entry(self, name: str) -> TensorInfo | None:
        return self._header_with(name).get(name)


class _Either(Container[str]):
    """What is in one or the other."""

    def __init__(self, one: Container[str], other: Container[str]) -> None:
        self._one, self._other = one, other

    def __contains__(self, name: object) -> bool:
        return name in self._one or name in self._other
