"""Weights whose stored numbers count only times a scale: which they are, by names, dtypes and shapes.

The forms, as their writers lay them out:

- 8 bits beside `weight_scale_inv`, for blocks of 128 x 128: DeepSeek-V3, which multiplies by it in spite of its name
  (https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/inference/kernel.py), and transformers' fine-grained FP8.
- 8 bits beside `weight_scale`, for the tensor, its rows, groups or blocks: compressed-tensors
  (https://github.com/vllm-project/compressed-tensors), ModelOpt, FBGEMM. Beside `scale`: DeepSeek-V3.2. Beside
  `scale_weight`: ComfyUI.
- MXFP4, two numbers a byte, beside exponents for groups of 32: gpt-oss (`_blocks` and `_scales`; transformers'
  integrations/mxfp4.py), compressed-tensors (`weight_packed`), Quark.
- NVFP4, two numbers a byte, beside F8 scales for groups of 16 and a scale of those: ModelOpt (`weight_scale_2`, a
  factor), compressed-tensors (`weight_global_scale`, a divisor).

`input_scale` and the like belong to activations and are tensors as others are. Of scales in other layouts
`unknown_scales.py` says what they belong to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Container, Iterator
from dataclasses import dataclass

from ..errors import SourceError
from .dtypes import DTYPES, is_floating
from .header import TensorInfo
from .hostile import short_repr

__all__ = [
    "SMALL",
    "ScaledWeight",
    "block_sizes",
    "foreign_weights",
    "possible_scales",
    "refuse_foreign",
    "renamed",
    "scaled_weight",
]

SMALL = frozenset(name for name, dtype in DTYPES.items() if dtype.bits <= 8 and name not in ("BOOL", "F8_E8M0"))
_BLOCKS = tuple(2**power for power in range(3, 13))
_NOT_AT_HAND = "its scale is not at hand"

Find = Callable[[str], TensorInfo | None]


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """A stored `weight` and what it is to be multiplied by, and `name`, that of the result.

    `shape` is that of the numbers. `blocks` says of each of its axes how many numbers share a scale. `second` scales
    the scale: it is a divisor if `divided`. `packed`: two E2M1 numbers a byte, the low half first. `transposed`: the
    result has the last two axes exchanged. `flaw` says why there are no numbers.
    """

    name: str
    weight: str
    dtype: str
    scale: str
    second: str | None = None
    divided: bool = False
    shape: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    packed: bool = False
    transposed: bool = False
    flaw: str = ""

    @property
    def scales(self) -> tuple[str, ...]:
        """What goes into the result and is left out beside it."""
        return (self.scale,) if self.second is None else (self.scale, self.second)

    @property
    def result(self) -> tuple[int, ...]:
        """The shape of the result."""
        return (*self.shape[:-2], self.shape[-1], self.shape[-2]) if self.transposed else self.shape

    @property
    def understood(self) -> bool:
        """Whether `dequantize=True` knows its numbers, once its scales are here."""
        return self.flaw in ("", _NOT_AT_HAND)

    @property
    def shared_by(self) -> str:
        """What has an entry of the scale for itself, as "row" or "block of 128 x 128"; "" if that is not known."""
        if not self.blocks or self.blocks == self.shape:
            return "tensor" if self.blocks else ""
        if math.prod(self.blocks) == self.shape[-1] == self.blocks[-1]:
            return "row"
        sizes = [str(size) for size in self.blocks if size != 1]
        if len(sizes) < 2:
            return f"group of {sizes[0]}" if sizes else "number"
        return f"block of {' x '.join(sizes)}"


@dataclass(frozen=True, slots=True)
class _Form:
    """A way to name a weight and its scale. `second` is a factor, `divisor` another name for it that divides."""

    name: str
    scale: str
    second: str | None = None
    divisor: str | None = None
    grouped: bool = False  # the bytes of a group have an axis of their own
    known: bool = True  # what is to be done with the scale
    transposed: bool = False


def _forms(weight: str) -> Iterator[_Form]:
    """How `weight` may be called together with a scale."""
    for end, grouped in (("_blocks", "_scales"), (".blocks", ".scales")):
        if weight.endswith(end):
            stem = weight.removesuffix(end)
            # gpt-oss, whose modules in transformers hold what is stored by rows by columns
            yield _Form(stem, stem + grouped, grouped=True, transposed=end == "_blocks")
    plain = weight.removesuffix("_packed") if weight.endswith("weight_packed") else weight
    yield _Form(plain, f"{plain}_scale_inv")
    yield _Form(plain, f"{plain}_scale", f"{plain}_scale_2", f"{plain}_global_scale")
    if plain == "weight" or plain.endswith(".weight"):
        stem = plain.removesuffix("weight")
        yield _Form(plain, f"{stem}scale")
        yield _Form(plain, f"{stem}scale_weight")
        # EETQ, bitsandbytes and others, of whose layouts nothing is known here
        for other in ("weight_scales", "scales", "weight_scaler", "SCB", "weight.absmax"):
            yield _Form(plain, f"{stem}{other}", known=False)


def possible_scales(weight: str, names: Container[str]) -> list[str]:
    """Those of `names` that scale `weight`, if it is stored in a dtype that is scaled."""
    found = [scale for form in _forms(weight) for scale in (form.scale, form.second, form.divisor)]
    return [scale for scale in found if scale is not None and scale in names]


def renamed(names: Collection[str]) -> dict[str, str]:
    """Weights whose result has another name, if they are scaled: {name of the result: stored name}."""
    ends = ("_blocks", ".blocks", "weight_packed")
    return {
        form.name: name
        for name in names
        if name.endswith(ends)
        for form in _forms(name)
        if form.name not in names and form.scale in names
    }


def scaled_weight(weight: str, info: TensorInfo, names: Container[str], find: Find) -> ScaledWeight | None:
    """What `weight` is to be multiplied by, or None where nothing scales it.

    `names` are all tensors of the checkpoint; `find` gives the entry of one, None where its header was not read.
    """
    if info.dtype not in SMALL:
        return None
    for form in _forms(weight):
        if form.scale not in names:
            continue
        second = next((one for one in (form.second, form.divisor) if one is not None and one in names), None)
        bare = ScaledWeight(form.name, weight, info.dtype, form.scale, second)
        read = {name: entry for name in bare.scales if (entry := find(name)) is not None}
        flaw = _obstacle(form, weight, names) or ("" if len(read) == len(bare.scales) else _NOT_AT_HAND)
        return _flawed(bare, flaw) if flaw else _laid_out(bare, form, info, read)
    return None


def _obstacle(form: _Form, weight: str, names: Container[str]) -> str:
    """What stands in the way of a weight of this form, whatever its shapes are; "" if nothing does."""
    if not form.known:
        return f"how {short_repr(form.scale)} scales it is not known"
    if f"{form.name}_zero_point" in names:
        return f"{short_repr(form.name + '_zero_point')} shifts it"
    return f"there is a tensor {short_repr(form.name)} too" if form.name != weight and form.name in names else ""


def _laid_out(bare: ScaledWeight, form: _Form, info: TensorInfo, read: dict[str, TensorInfo]) -> ScaledWeight:
    """The weight with its shape, and with that of its blocks, which those of its scales tell."""
    scale, second = read[bare.scale], read.get(bare.second or "")
    shape = info.shape
    if form.grouped and len(shape) > 1:
        shape = (*shape[:-2], shape[-2] * shape[-1])
    if info.dtype == "U8" and shape:
        shape = (*shape[:-1], 2 * shape[-1])
    blocks = block_sizes(shape, scale.shape)
    flaw = _misfit(bare, info, scale, None if blocks is None else blocks[-1:])
    if second is not None and not (is_floating(DTYPES[second.dtype].numpy) and _second_fits(second.shape, shape)):
        flaw = f"{short_repr(bare.second)} does not fit its scale: {short_repr(second.shape)}"
    if flaw or blocks is None:
        return _flawed(bare, flaw)
    return ScaledWeight(
        bare.name,
        bare.weight,
        bare.dtype,
        bare.scale,
        bare.second,
        divided=bare.second is not None and bare.second == form.divisor,
        shape=shape,
        blocks=blocks,
        packed=info.dtype == "U8" or (info.dtype == "F4" and shape[-1] % 2 == 0),
        transposed=form.transposed and len(shape) == 3,
    )


def _misfit(bare: ScaledWeight, info: TensorInfo, scale: TensorInfo, block: tuple[int, ...] | None) -> str:
    """Why `scale` cannot be that of a weight of which so many numbers in a row share an entry of it; "" if it can."""
    said = f"its scale {short_repr(bare.scale)} is {scale.dtype} {short_repr(scale.shape)}"
    four_bits = info.dtype in ("U8", "F4")
    if block is None:
        return f"{said}, which does not fit {info.dtype} {short_repr(info.shape)}"
    if not (is_floating(DTYPES[scale.dtype].numpy) or scale.dtype == "U8"):
        return f"{said}, which is no dtype of scales"
    if scale.dtype == "U8" and block != (32,):
        return f"{said}, which are no exponents of groups of 32"
    if info.dtype == "U8" and (scale.dtype not in ("U8", "F8_E8M0", "F8_E4M3") or block not in ((16,), (32,))):
        return f"{said}, which is no scale of packed numbers"
    if four_bits and scale.dtype == "F8_E4M3" and bare.second is None:
        return f"{said}, and the scale of that is missing"
    if info.dtype == "F4" and info.shape[-1] % 2:
        return f"its rows of {info.shape[-1]:,} numbers are no whole bytes"
    return ""


def _flawed(bare: ScaledWeight, flaw: str) -> ScaledWeight:
    return ScaledWeight(bare.name, bare.weight, bare.dtype, bare.scale, bare.second, flaw=flaw)


def _second_fits(second: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """One for the tensor, or one for each of its first axis, an expert each."""
    sizes = [size for size in second if size != 1]
    return not sizes or (len(shape) > 2 and sizes == [shape[0]] and second[0] == shape[0])


def block_sizes(shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, ...] | None:
    """How many numbers along each axis of `shape` share an entry of a scale of that shape; None if it does not fit.

    A scale with one axis is of rows. Blocks are of a power of two, the last of them cut short where they do not
    divide an axis; or else of a multiple of 16 that does.
    """
    if all(size == 1 for size in scale):
        return tuple(max(size, 1) for size in shape)
    if len(scale) < len(shape) and scale == shape[: len(scale)]:
        scale = (*scale, *(1,) * (len(shape) - len(scale)))
    if len(scale) != len(shape):
        return None
    blocks = [_block_size(size, count) for size, count in zip(shape, scale, strict=True)]
    found = tuple(block for block in blocks if block is not None)
    return found if len(found) == len(blocks) else None


def _block_size(size: int, count: int) -> int | None:
    if count in (size, 1):
        return size if count == 1 and size else 1
    fits = [block for block in _BLOCKS if count and -(-size // block) == count]
    if not fits and count and size % (16 * count) == 0:
        fits = [size // count]
    return fits[0] if fits else None


_FOREIGN = (".qweight", ".weight.absmax", ".SCB", ".weight_packed", "_qdata", ":qdata")


def foreign_weights(names: Collection[str], handled: Container[str]) -> Iterator[str]:
    """What tells of weights that are quantised in another way: by GPTQ, AWQ, bitsandbytes, MLX, torchao, quanto."""
    for name in names:
        mlx = name.endswith(".scales") and f"{name.removesuffix('scales')}weight" in names
        quanto = name.endswith("._data") and f"{name.removesuffix('data')}scale" in names
        if name not in handled and (mlx or quanto or name.endswith(_FOREIGN)):
            yield name


def refuse_foreign(names: Collection[str], handled: Container[str]) -> None:
    """Raise SourceError for a weight that is quantised in another way."""
    for name in foreign_weights(names, handled):
        raise SourceError(
            f"dequantize=True does not know how {short_repr(name)} is quantised.",
            hint="Load it as it is stored, and with the library that wrote it.",
        )
