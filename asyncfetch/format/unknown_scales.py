"""Scales in layouts that nobody knows here, such as those of torchao, quanto and TensorRT-LLM: told by their names.

A weight of 8 bits or fewer that has a scale beside it is no plain number, whatever its library calls the two. A name
that has words of its own (`input_scale`, `k_scale`, `logit_scale`, `layer_scale_1`) is about something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator

from .dtypes import DTYPES, is_floating
from .header import TensorInfo
from .hostile import short_repr
from .scaled import SMALL, ScaledWeight

__all__ = ["NamedScales", "unknown_scale"]

_SCALE = re.compile(r"scal(?:ing|ers?|es?)(?!d)")  # `scaled_fp8` says of a file that it has scales, and is none
_WORD = re.compile(r"[a-z][a-z0-9]*")
_OF_SCALES = frozenset(  # what says how it scales, and not what
    [
        "block",
        "blockwise",
        "channel",
        "channelwise",
        "dequant",
        "factor",
        "fp4",
        "fp8",
        "global",
        "group",
        "groupwise",
        "int4",
        "int8",
        "inv",
        "inverse",
        "mxfp4",
        "nvfp4",
        "per",
        "quant",
        "quantization",
        "quantizer",
        "row",
        "rowwise",
        "tensor",
        "tensorwise",
    ]
)
_OF_STORAGE = frozenset({"code", "data", "packed", "qdata", "quantized"})
_OF_INPUTS = frozenset({"act", "activation", "input"})
_WEIGHT = frozenset({"weight"})
_ALIASES = {"w": "weight", "qweight": "weight"}


class NamedScales:
    """Those of `names` that are called scales, by where they lie."""

    def __init__(self, names: Iterable[str]) -> None:
        self._in: dict[str, list[tuple[str, frozenset[str]]]] = {}
        for name in names:
            module, leaf = _parted(name)
            if (bare := _SCALE.sub(" ", leaf.lower())) != leaf.lower():
                self._in.setdefault(module, []).append((name, _words(bare) - _OF_SCALES))

    def beside(self, weight: str) -> Iterator[tuple[str, frozenset[str]]]:
        """Those in its module, and in what is called as it is, with what their names say besides."""
        yield from self._in.get(weight, ())
        yield from self._in.get(_parted(weight)[0], ())

    def of_inputs(self, weight: str) -> bool:
        """Whether one is there of what is multiplied by a weight. It is none that is a scale itself."""
        near = list(self.beside(weight))
        return weight not in dict(near) and any(words and words <= _OF_INPUTS for _, words in near)


def unknown_scale(
    weight: str,
    info: TensorInfo,
    scales: Iterable[NamedScales],
    names: Container[str],
    find: Callable[[str], TensorInfo | None],
) -> ScaledWeight | None:
    """`weight`, of which `scaled_weight` knows nothing, if by all appearances it has a scale; None if it has not.

    `names` and `find` are those of `scaled_weight`, and `scales` all that may be beside it.
    """
    near = [one for group in scales for one in group.beside(weight)]
    module, leaf = _parted(weight)
    if not near or info.dtype not in SMALL or "scal" in leaf.lower():
        return None
    own = _words(leaf.lower())
    # What is named after the weight of the module is that of another tensor, if there is such a weight. Integers are
    # often none: masks, tokens and indexes lie beside scales too.
    its_weight = f"{weight[: len(module) + 1] if module else ''}weight"
    unnamed = own & _OF_STORAGE or is_floating(DTYPES[info.dtype].numpy)
    meant = own | _WEIGHT if unnamed and its_weight not in names else own
    for scale, words in near:
        inside = _parted(scale)[0] == weight
        if (words or (frozenset() if inside else _WEIGHT)) <= meant and _may_scale(find(scale)):
            return ScaledWeight(
                weight, weight, info.dtype, scale, flaw=f"how {short_repr(scale)} scales it is not known"
            )
    return None


def _parted(name: str) -> tuple[str, str]:
    """Where a tensor lies, and how it is called there."""
    at = max(name.rfind("."), name.rfind(":"))
    return name[: max(at, 0)], name[at + 1 :]


def _words(text: str) -> frozenset[str]:
    """Its words, those of one meaning alike."""
    return frozenset(_ALIASES.get(word, word.removesuffix("s")) for word in _WORD.findall(text))


def _may_scale(info: TensorInfo | None) -> bool:
    return info is None or info.dtype == "U8" or is_floating(DTYPES[info.dtype].numpy)
