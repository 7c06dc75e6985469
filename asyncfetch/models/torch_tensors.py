"""A numpy array as a torch tensor on the same memory. torch is imported when the first one is asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ..errors import SourceError
from ..format.arrays import PackedArray
from ..format.header import TensorInfo
from ..tasks import forks_wait
from .fit import Array

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["hollow_tensor", "import_torch", "to_torch", "to_torch_or_bytes", "writing"]


def import_torch() -> Any:
    """The package torch. Raises SourceError where it is not installed."""
    try:
        with nullcontext() if "torch" in sys.modules else forks_wait():
            import torch
    except ImportError as error:
        raise SourceError("torch is not installed.", hint="pip install 'asyncfetch[torch]'.") from error
    return torch


@overload
def to_torch(array: Array) -> Tensor: ...
@overload
def to_torch(array: Mapping[str, Array]) -> dict[str, Tensor]: ...
def to_torch(array: Array | Mapping[str, Array]) -> Tensor | dict[str, Tensor]:
    """`array` as a torch tensor on the same memory, of the same shape; or a state dict of arrays as one of tensors.

    All dtypes of safetensors that torch has: integers, bool, complex64, floats, BF16, the F8 kinds.
    F4 becomes `float4_e2m1fn_x2`, two values an element, with the last dimension halved. An array
    that is read-only, misaligned, byte-swapped or of negative strides is copied: torch ignores the
    first (a write would crash the process) and cannot express the rest. One array under two names is
    one tensor.

    Raises SourceError if torch is not installed or has no such dtype (F6; F4 before torch 2.8).
    """
    if not isinstance(array, Mapping):
        return _tensor(import_torch(), array)
    torch, found = import_torch(), dict[str, Any]()
    made: dict[int, tuple[Array, Any]] = {}  # with the array: a mapping may make it anew, and another one at its place
    for name, one in array.items():
        try:
            if id(one) not in made:
                made[id(one)] = one, _tensor(torch, one)
        except SourceError as error:
            raise SourceError(f"{name}: {error.message}", hint=error.hint) from error
        found[name] = made[id(one)][1]
    return found


def to_torch_or_bytes(array: Array) -> Tensor:
    """As `to_torch`; packed elements for which torch has no dtype come as their bytes, uint8 of one dimension."""
    torch = import_torch()
    if isinstance(array, PackedArray) and _lacks(torch, array):
        array = array.view(np.ndarray)
    return _tensor(torch, array)


def _lacks(torch: Any, array: PackedArray) -> bool:
    shape = array.logical_shape or ()
    return array.safetensors_dtype != "F4" or not shape or shape[-1] % 2 != 0 or not hasattr(torch, _F4)


def _tensor(torch: Any, array: Array) -> Tensor:
    shape = array.shape
    name, raw = array.dtype.name, _RAW.get(array.dtype.name)
    if isinstance(array, PackedArray) and array.safetensors_dtype is not None:
        name, raw, shape = _packed_form(array)
    dtype: Any = getattr(torch, name, None) if raw is not None else None
    if raw is not None and dtype is None:
        raise SourceError(f"torch {torch.__version__} has no dtype {name}.", hint="A newer torch may have it.")
    array = _torch_ready(np.asarray(array))
    try:
        tensor: Tensor = torch.from_numpy(array if raw is None else array.view(raw).reshape(shape))
    except TypeError:
        raise SourceError(f"torch has no dtype for numpy's {name}.", hint="Cast the array first.") from None
    return tensor if raw is None else tensor.view(dtype)


_F4 = "float4_e2m1fn_x2"

# torch.from_numpy refuses the dtypes of ml_dtypes: they travel as integers of the same size.
_RAW = {
    "bfloat16": np.uint16,
    "float8_e4m3fn": np.uint8,
    "float8_e4m3fnuz": np.uint8,
    "float8_e5m2": np.uint8,
    "float8_e5m2fnuz": np.uint8,
    "float8_e8m0fnu": np.uint8,
}


def _packed_form(array: PackedArray) -> tuple[str, type[np.uint8], tuple[int, ...]]:
    """The torch dtype's name and the shape of an array whose elements are smaller than a byte."""
    shape = array.logical_shape or ()
    if array.safetensors_dtype != "F4":
        raise SourceError(
            f"torch has no dtype for {array.safetensors_dtype}.",
            hint="array.unpack() gives its values; array.view(numpy.ndarray) its bytes.",
        )
    if not shape or shape[-1] % 2:
        raise SourceError(
            f"torch holds two F4 values in an element, so the last dimension of {shape} must be even.",
            hint="array.unpack() gives its values; array.view(numpy.ndarray) its bytes.",
        )
    return _F4, np.uint8, (*shape[:-1], shape[-1] // 2)


def _torch_ready(array: Array) -> Array:
    if not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    odd = any(stride < 0 or stride % array.itemsize for stride in array.strides)
    return array.copy() if odd or not array.flags.writeable or not array.flags.aligned else array


def hollow_tensor(torch: Any, array: Array) -> Any:
    """What `to_torch` will make of an array like this one, on the memory of one element."""
    if isinstance(array, PackedArray) and array.safetensors_dtype is not None:
        _, _, shape = _packed_form(array)
        one: Array = PackedArray.of(np.zeros(1, np.uint8), TensorInfo(array.safetensors_dtype, (2,), 0, 1))
    else:
        shape, one = array.shape, np.zeros(1, array.dtype)
    return torch.empty((), dtype=to_torch(one).dtype).expand(shape)


def writing(torch: Any, tensors: Iterable[Any]) -> Any:
    """A block in which values may be copied into `tensors`. Those of inference mode can be written to there alone."""
    return torch.inference_mode() if any(one.is_inference() for one in tensors) else torch.no_grad()
