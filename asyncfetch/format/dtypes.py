"""The dtypes of safetensors, and those of numpy and ml_dtypes that stand for them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import SourceError

__all__ = ["DTYPES", "Array", "DType", "cast", "dtype_of", "dtype_or_none", "is_floating"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class DType:
    """One dtype of the format: `bits` an element in the file, `numpy` the dtype of its array.

    The kinds below 8 bits are packed in the file; `numpy` is then the one-byte dtype of ml_dtypes
    into which `PackedArray.unpack` spreads them.
    """

    name: str
    bits: int
    numpy: np.dtype[Any]

    @property
    def packed(self) -> bool:
        """Whether several elements share a byte in the file."""
        return self.bits < 8


DTYPES: Mapping[str, DType] = MappingProxyType(
    {
        name: DType(name, bits, np.dtype(scalar))
        for name, bits, scalar in (
            ("BOOL", 8, "?"),
            ("U8", 8, "u1"),
            ("I8", 8, "i1"),
            ("U16", 16, "<u2"),
            ("I16", 16, "<i2"),
            ("F16", 16, "<f2"),
            ("U32", 32, "<u4"),
            ("I32", 32, "<i4"),
            ("F32", 32, "<f4"),
            ("U64", 64, "<u8"),
            ("I64", 64, "<i8"),
            ("F64", 64, "<f8"),
            ("C64", 64, "<c8"),
            ("BF16", 16, ml_dtypes.bfloat16),
            ("F8_E4M3", 8, ml_dtypes.float8_e4m3fn),  # not float8_e4m3, whose maximum is 240
            ("F8_E5M2", 8, ml_dtypes.float8_e5m2),
            ("F8_E4M3FNUZ", 8, ml_dtypes.float8_e4m3fnuz),
            ("F8_E5M2FNUZ", 8, ml_dtypes.float8_e5m2fnuz),
            ("F8_E8M0", 8, ml_dtypes.float8_e8m0fnu),
            ("F6_E2M3", 6, ml_dtypes.float6_e2m3fn),
            ("F6_E3M2", 6, ml_dtypes.float6_e3m2fn),
            ("F4", 4, ml_dtypes.float4_e2m1fn),
        )
    }
)


_SHORT_NAMES = {
    "fp64": "float64",
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is a real float: numpy's, or bfloat16 and the float8 kinds of ml_dtypes."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.name.startswith(("bfloat", "float")))


def dtype_of(dtype: object) -> np.dtype[Any]:
    """A numpy dtype from a dtype of numpy, ml_dtypes or torch, or from one of its names.

    Names are those of these three, with or without "torch.", of safetensors ("BF16"), and the usual short
    ones ("fp16"). Raises SourceError if it is none of these, or not a floating-point type.
    """
    name = dtype if isinstance(dtype, str) else ""
    if type(dtype).__module__.partition(".")[0] == "torch":
        name = str(dtype)
    name = name.removeprefix("torch.")
    name = _SHORT_NAMES.get(name.lower(), name)
    if name.upper() in DTYPES and not DTYPES[name.upper()].packed:
        found = DTYPES[name.upper()].numpy
    else:
        named: np.dtype[Any] | None = None
        with suppress(TypeError, ValueError):  # whose words repeat what was given, which may be a URL
            named = np.dtype(name or dtype)  # type: ignore[call-overload]
        if named is None:
            hint = 'Give numpy.float32, torch.float16 or "bfloat16".'
            raise SourceError(f"dtype={dtype!r} is not a dtype.", hint=hint)
        found = named
    if not is_floating(found):
        raise SourceError(f"dtype={dtype!r} is not a floating-point type.")
    return found


def dtype_or_none(dtype: object) -> np.dtype[Any] | None:
    """`dtype_of` an argument that may be left out."""
    return None if dtype is None else dtype_of(dtype)


def cast(array: Array, dtype: np.dtype[Any]) -> Array:
    """A floating array in `dtype`; integers, complex numbers and packed tensors as they are."""
    if not is_floating(array.dtype) or array.dtype == dtype:
        return array
    try:
        return array.astype(dtype)
    except TypeError:  # ml_dtypes has no direct way from each of its kinds to each other
        return array.astype(np.float32).astype(dtype)
