"""Scaled weights: recognised by names, dtypes and shapes; their numbers are those of the writers' own arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from asyncfetch.errors import SourceError
from asyncfetch.format.arrays import PackedArray
from asyncfetch.format.dequantize import dequantized
from asyncfetch.format.header import TensorInfo
from asyncfetch.format.scaled import ScaledWeight, block_sizes, refuse_foreign, renamed, scaled_weight

from ..kit.files import NAMES

RNG = np.random.default_rng(4)
E4M3, E5M2, E8M0, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu, ml_dtypes.bfloat16
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
Tensors = dict[str, np.ndarray]


def f8(*shape: int, dtype: Any = E4M3) -> np.ndarray:
    """Numbers of 8 bits."""
    return RNG.standard_normal(shape, np.float32).astype(dtype)


def scales(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Scales as they come: small and positive."""
    return np.asarray(RNG.random(shape, np.float32) / 50 + 1e-4, dtype)


def bits(*shape: int) -> np.ndarray:
    """Bytes of two numbers each."""
    return RNG.integers(0, 256, shape, np.uint8)


# -- the arithmetic of the writers, number by number ------------------------------------------------


def deepseek(weight: np.ndarray, scale: np.ndarray, block: int = 128) -> np.ndarray:
    """weight_dequant of DeepSeek-V3's inference/kernel.py: y = x.to(float32) * s, block by block."""
    numbers = np.zeros(weight.shape, np.float32)
    for row in range(scale.shape[0]):
        for column in range(scale.shape[1]):
            place = np.s_[row * block : (row + 1) * block, column * block : (column + 1) * block]
            numbers[place] = weight[place].astype(np.float32) * np.float32(scale[row, column])
    return numbers


def nibbles(packed: np.ndarray) -> np.ndarray:
    """The numbers of bytes, the low half first."""
    flat = [E2M1[half] for byte in packed.reshape(-1).tolist() for half in (byte & 15, byte >> 4)]
    return np.array(flat, np.float32).reshape(*packed.shape[:-1], -1)


def gpt_oss(blocks: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """convert_moe_packed_tensors of transformers' integrations/mxfp4.py, in float32."""
    experts, rows, groups, half = blocks.shape
    numbers = nibbles(blocks.reshape(-1, half))
    numbers = np.ldexp(numbers, exponents.reshape(-1, 1).astype(np.int32) - 127)
    return numbers.reshape(experts, rows, groups * half * 2).transpose(0, 2, 1)


def grouped(numbers: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Each number of a row times the scale of its group."""
    size = numbers.shape[-1] // scale.shape[-1]
    out = np.empty_like(numbers)
    for at in range(numbers.shape[-1]):
        out[..., at] = numbers[..., at] * scale[..., at // size]
    return out


def forms() -> dict[str, tuple[Tensors, str, np.ndarray]]:
    """{what it is: (what is stored, the name of the result, its numbers)}; the first stored one is the weight."""
    found: dict[str, tuple[Tensors, str, np.ndarray]] = {}
    for rows, columns in ((256, 384), (300, 200), (576, 130), (5, 7)):
        w, s = f8(rows, columns), scales(-(-rows // 128), -(-columns // 128))
        found[f"DeepSeek {rows} x {columns}"] = ({"w": w, "w_scale_inv": s}, "w", deepseek(w, s))
    w, s = f8(260, 140, dtype=E5M2), scales(3, 2, dtype=BF16)
    found["blocks, E5M2, BF16 scales"] = ({"a.weight": w, "a.weight_scale_inv": s}, "a.weight", deepseek(w, s))
    w, s = f8(256, 256), RNG.integers(110, 135, (2, 2), np.uint8).view(E8M0)
    found["DeepSeek-V3.2, E8M0"] = ({"a.weight": w, "a.scale": s}, "a.weight", deepseek(w, s))
    w, s = f8(128, 96), scales(4, 3)
    found["blocks of 32"] = ({"a.weight": w, "a.weight_scale": s}, "a.weight", deepseek(w, s, 32))
    for shape in ((), (1,), (1, 1)):
        w, s = f8(40, 30), scales(*shape)
        found[f"one scale {shape}"] = ({"a.weight": w, "a.weight_scale": s}, "a.weight", w.astype("f4") * s.reshape(()))
    for shape in ((40,), (40, 1)):
        w, s = f8(40, 40), scales(*shape, dtype=np.float16)
        numbers = w.astype("f4") * s.astype("f4").reshape(40, 1)
        found[f"rows {shape}"] = ({"a.weight": w, "a.weight_scale": s}, "a.weight", numbers)
    w, s = RNG.integers(-128, 127, (6, 50), np.int8), scales(6, 1)
    found["int8 rows"] = ({"a.weight": w, "a.weight_scale": s}, "a.weight", w.astype("f4") * s)
    w, s = f8(33, 20), scales(1)
    found["ComfyUI"] = ({"b.weight": w, "b.scale_weight": s}, "b.weight", w.astype("f4") * s)
    w, s = f8(3, 20, 30), scales(3, 1, 30)
    found["experts, columns"] = ({"up": w, "up_scale": s}, "up", w.astype("f4") * s)
    w, s = f8(3, 256, 130), scales(3, 2, 2)
    numbers = np.stack([deepseek(w[at], s[at]) for at in range(3)])
    found["experts, blocks"] = ({"up": w, "up_scale_inv": s}, "up", numbers)
    w, s = f8(1200, 2100), scales(1200, 1)  # more than is multiplied at a time
    found["many rows"] = ({"a.weight": w, "a.weight_scale": s}, "a.weight", w.astype("f4") * s)
    blocks, exponents = bits(3, 20, 6, 16), RNG.integers(100, 140, (3, 20, 6), np.uint8)
    stored = {"e.gate_up_proj_blocks": blocks, "e.gate_up_proj_scales": exponents}
    found["gpt-oss"] = (stored, "e.gate_up_proj", gpt_oss(blocks, exponents))
    stored = {"mlp1_weight.blocks": blocks, "mlp1_weight.scales": exponents}
    found["gpt-oss, original"] = (stored, "mlp1_weight", gpt_oss(blocks, exponents).transpose(0, 2, 1))
    w, s = bits(10, 48), RNG.integers(100, 140, (10, 3), np.uint8)
    numbers = grouped(nibbles(w), np.ldexp(np.float32(1), s.astype(np.int32) - 127))
    found["MXFP4"] = ({"a.weight_packed": w, "a.weight_scale": s}, "a.weight", numbers)
    found["Quark"] = ({"a.weight": w, "a.weight_scale": s.view(E8M0)}, "a.weight", numbers)
    w, s = f8(10, 96), RNG.integers(100, 140, (10, 3), np.uint8)
    numbers = grouped(w.astype("f4"), np.ldexp(np.float32(1), s.astype(np.int32) - 127))
    found["MXFP8"] = ({"a.weight": w, "a.weight_scale": s}, "a.weight", numbers)
    for shape in ((), (1,)):
        w, s, second = bits(10, 40), np.abs(f8(10, 5)), scales(*shape)
        numbers = grouped(nibbles(w), s.astype("f4") * second.reshape(()))
        stored = {"a.weight": w, "a.weight_scale": s, "a.weight_scale_2": second}
        found[f"NVFP4, ModelOpt {shape}"] = (stored, "a.weight", numbers)
        numbers = grouped(nibbles(w), s.astype("f4") / second.reshape(()))
        stored = {"a.weight_packed": w, "a.weight_scale": s, "a.weight_global_scale": second}
        found[f"NVFP4, compressed-tensors {shape}"] = (stored, "a.weight", numbers)
    w, s, second = bits(4, 10, 16), np.abs(f8(4, 10, 2)), scales(4)
    numbers = np.stack([grouped(nibbles(w[at]), s[at].astype("f4") * second[at]) for at in range(4)])
    stored = {"up": w, "up_scale": s, "up_scale_2": second}
    found["NVFP4, a second scale for each expert"] = (stored, "up", numbers)
    return found


FORMS = forms()


def info_of(array: np.ndarray) -> TensorInfo:
    """Its entry in a header."""
    return TensorInfo(NAMES[array.dtype], array.shape, 0, array.nbytes)


def recognised(stored: Mapping[str, np.ndarray], weight: str) -> ScaledWeight | None:
    """What is said of one of the tensors."""
    infos = {name: info_of(array) for name, array in stored.items()}
    return scaled_weight(weight, infos[weight], infos, infos.get)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", BF16, "float16", "float64", None])
def test_numbers(form: str, dtype: Any) -> None:
    """They are those of the writer's own arithmetic, rounded once."""
    stored, name, numbers = FORMS[form]
    weight, *others = stored
    found = recognised(stored, weight)
    assert found is not None
    assert (found.name, found.flaw, found.scales, found.result) == (name, "", tuple(others), numbers.shape)
    assert all(recognised(stored, other) is None for other in others)
    second = None if found.second is None else stored[found.second]
    given = dequantized(found, stored[weight], stored[found.scale], second, None if dtype is None else np.dtype(dtype))
    target = np.dtype(np.float32 if dtype is None else dtype)
    assert (given.dtype, given.shape) == (target, numbers.shape)
    if target == np.float64:
        np.testing.assert_allclose(given, numbers, rtol=1e-6)
    else:
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(given, numbers.astype(target))
    assert (name in renamed(stored)) == (name != weight)


def test_packed_dtypes_of_the_format() -> None:
    """F4 and F6 beside their scales, as PackedArray holds them."""
    for dtype, columns, block in (("F4", 64, 16), ("F4", 64, 32), ("F6_E3M2", 64, 32), ("F6_E2M3", 96, 32)):
        nbytes = 10 * columns * int(dtype[1]) // 8
        info = TensorInfo(dtype, (10, columns), 0, nbytes)
        packed = PackedArray.of(RNG.integers(0, 256, nbytes, np.uint8), info)
        scale, second = RNG.integers(120, 130, (10, columns // block), np.uint8).view(E8M0), scales(1)
        if block == 16:
            scale = np.abs(f8(10, columns // block))
        infos = {"w": info, "w_scale": info_of(scale)} | ({"w_scale_2": info_of(second)} if block == 16 else {})
        found = scaled_weight("w", info, infos, infos.get)
        assert found is not None
        assert found.flaw == ""
        factor = scale.astype("f4") * (second if block == 16 else 1)
        numbers = dequantized(found, packed, scale, second if block == 16 else None, None)
        np.testing.assert_array_equal(numbers, grouped(packed.unpack().astype("f4"), factor))


def test_transformers_agrees() -> None:
    """Its own conversion of gpt-oss gives the same numbers, in the same layout."""
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    stored, _, numbers = FORMS["gpt-oss"]
    blocks, exponents = (torch.from_numpy(array) for array in stored.values())
    theirs = mxfp4.convert_moe_packed_tensors(blocks, exponents, dtype=torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(numbers.astype(BF16).astype("f4"), theirs)


@pytest.mark.parametrize(
    "stored",
    [
        {"a.weight": f8(4, 4)},
        {"a.weight": f8(4, 4), "a.input_scale": scales(1)},
        {"a.weight": f8(4, 4), "a.k_scale": scales(1), "b.weight_scale": scales(1)},
        {"a.weight": scales(4, 4, dtype=BF16), "a.weight_scale": scales(1)},
        {"a.weight": scales(4, 4), "a.scale": scales(4)},
        {"a.weight": np.zeros((4, 4), np.int32), "a.weight_scale": scales(1)},
        {"a.mask": np.zeros((4, 4), np.bool_), "a.mask_scale": scales(1)},
        {"a_blocks": bits(3, 4)},
    ],
)
def test_what_is_not_scaled(stored: Tensors) -> None:
    """Without a scale of its own, or of more than 8 bits, a tensor is one as others are."""
    assert all(recognised(stored, name) is None for name in stored)


@pytest.mark.parametrize(
    ("stored", "flaw"),
    [
        (
            {"w": f8(300, 300), "w_scale": scales(4, 3)},
            "'w_scale' is F32 (4, 3), which does not fit F8_E4M3 (300, 300)",
        ),
        ({"w": f8(30, 20), "w_scale": scales(20)}, "does not fit"),
        ({"w": f8(30, 20), "w_scale": scales(2, 2, 2)}, "does not fit"),
        ({"w": f8(64, 64), "w_scale": bits(64, 1)}, "no exponents of groups of 32"),
        ({"w": f8(64, 64), "w_scale": np.ones(1, np.int32)}, "no dtype of scales"),
        ({"w": bits(64, 64), "w_scale": scales(1)}, "no scale of packed numbers"),
        ({"w": bits(64, 64), "w_scale": np.abs(f8(64, 8))}, "the scale of that is missing"),
        ({"w": bits(64, 64), "w_scale": f8(64, 8), "w_scale_2": scales(2)}, "'w_scale_2' does not fit"),
        ({"a.weight": f8(4, 4), "a.weight_scale": scales(1), "a.weight_zero_point": bits(1)}, "shifts it"),
        (
            {"a.weight_packed": bits(9, 16), "a.weight": f8(9), "a.weight_scale": bits(9, 1)},
            "there is a tensor 'a.weight'",
        ),
        ({"a.weight": f8(4, 4), "a.scales": scales(4)}, "how 'a.scales' scales it is not known"),
        ({"a.weight": np.zeros((4, 4), np.int8), "a.SCB": scales(4)}, "how 'a.SCB' scales it is not known"),
        ({"a.weight": bits(8, 1), "a.weight.absmax": scales(4)}, "is not known"),
    ],
)
def test_scaled_and_not_understood(stored: Tensors, flaw: str) -> None:
    """What has a scale that does not fit is known as scaled, and why its numbers are not known."""
    found = recognised(stored, next(iter(stored)))
    assert found is not None
    assert flaw in found.flaw


@pytest.mark.parametrize(
    ("shape", "scale", "blocks"),
    [
        ((576, 7168), (5, 56), (128, 128)),
        ((7168, 18432), (56, 144), (128, 128)),
        ((200, 300), (200, 3), (1, 128)),
        ((96, 96), (2, 3), (64, 32)),
        ((90, 30), (3, 1), (32, 30)),
        ((96, 60), (2, 1), (64, 60)),
        ((240, 60), (5, 1), (48, 60)),
        ((6, 4), (6,), (1, 4)),
        ((3, 6, 4), (3, 6), (1, 1, 4)),
        ((0, 4), (0, 1), (1, 4)),
        ((5,), (1,), (5,)),
        ((), (), ()),
        ((60, 60), (7, 1), None),
        ((60, 60), (0, 1), None),
        ((60, 60), (20, 1), None),
        ((60,), (60, 1), None),
    ],
)
def test_blocks(shape: tuple[int, ...], scale: tuple[int, ...], blocks: tuple[int, ...] | None) -> None:
    """How many numbers share a scale is told by the shapes."""
    assert block_sizes(shape, scale) == blocks


@pytest.mark.parametrize(
    "names",
    [
        ["a.qweight", "a.scales", "a.qzeros"],
        ["a.weight", "a.weight.absmax"],
        ["a.weight", "a.SCB"],
        ["a.weight_packed", "a.weight_scale"],
        ["a.weight", "a.scales", "a.biases"],
    ],
)
def test_foreign_forms_are_refused(names: list[str]) -> None:
    """What GPTQ, bitsandbytes or MLX quantised, or integers of 4 bits, are never passed on as if they were numbers."""
    with pytest.raises(SourceError, match="does not know how 'a"):
        refuse_foreign(names, {})
    refuse_foreign(["a.weight", "a.bias", "a.weight_scale", "norm.scale"], {})
