"""The arrays that a safetensors header describes, as views on the bytes of its file."""

from __future__ import annotations

import sys
from mmap import mmap
from typing import Any

import numpy as np

from ..errors import InvalidHeaderError, SourceError
from .dtypes import DTYPES, is_floating
from .header import TensorInfo
from .hostile import short_repr

__all__ = ["Buffer", "PackedArray", "hollow_array", "tensor_view"]

Buffer = bytes | bytearray | memoryview | mmap | np.ndarray[Any, Any]


class PackedArray(np.ndarray[Any, np.dtype[np.uint8]]):
    """The bytes of an F4 or F6 tensor as they are in the file: uint8, one dimension.

    numpy has no element smaller than a byte, and the format does not say how they are packed, so
    the bytes are the honest answer. `safetensors_dtype` and `logical_shape` (in elements) say what
    they mean; both are None on whatever numpy derives from the array, such as a slice.
    """

    safetensors_dtype: str | None
    logical_shape: tuple[int, ...] | None

    def __array_finalize__(self, source: object) -> None:
        self.safetensors_dtype = self.logical_shape = None

    @classmethod
    def of(cls, data: np.ndarray[Any, np.dtype[np.uint8]], info: TensorInfo) -> PackedArray:
        """A view on `data`, the `info.nbytes` bytes of the tensor."""
        packed = data.view(cls)
        packed.safetensors_dtype, packed.logical_shape = info.dtype, info.shape
        return packed

    def copy(self, order: Any = "C") -> PackedArray:
        """A copy of the bytes that still knows what they mean."""
        other = super().copy(order)
        other.safetensors_dtype, other.logical_shape = self.safetensors_dtype, self.logical_shape
        return other

    def __copy__(self) -> PackedArray:
        return self.copy()

    def __deepcopy__(self, memo: object) -> PackedArray:
        return self.copy()

    def __reduce__(self) -> Any:
        reduced: Any = super().__reduce__()
        return *reduced[:2], (reduced[2], self.safetensors_dtype, self.logical_shape)

    def __setstate__(self, state: Any) -> None:
        array, self.safetensors_dtype, self.logical_shape = state
        super().__setstate__(array)

    def unpack(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The elements, one byte each, in the logical shape, as float4 or float6 of ml_dtypes.

        Element i is bits [i*bits, (i+1)*bits) of the bytes read as one little-endian number: for F4
        the low nibble comes first. Raises SourceError on a slice, which has no logical shape.
        """
        if self.safetensors_dtype is None or self.logical_shape is None:
            raise SourceError("A part of a packed tensor cannot be unpacked.", hint="Unpack the tensor, then slice it.")
        dtype = DTYPES[self.safetensors_dtype]
        data = np.ascontiguousarray(self).view(np.ndarray)
        if dtype.bits == 4:
            codes = np.empty(2 * data.size, np.uint8)
            np.bitwise_and(data, 0x0F, out=codes[0::2])
            np.right_shift(data, 4, out=codes[1::2])
        else:
            a, b, c = data[0::3], data[1::3], data[2::3]
            codes = np.empty(data.size // 3 * 4, np.uint8)
            codes[0::4] = a & 0x3F
            codes[1::4] = a >> 6 | (b & 0x0F) << 2
            codes[2::4] = b >> 4 | (c & 0x03) << 4
            codes[3::4] = c >> 2
        try:
            return codes.view(dtype.numpy).reshape(self.logical_shape)
        except ValueError as error:
            shape = short_repr(self.logical_shape)
            raise SourceError(f"The shape {shape} does not fit into a numpy array: {error}.") from None


_BIG_ENDIAN = sys.byteorder == "big"


def _on_item_boundary(array: np.ndarray[Any, Any]) -> bool:
    if array.dtype.alignment == array.itemsize:
        return array.flags.aligned
    address: int = array.__array_interface__["data"][0]  # slow, and needed for C64 alone on 64-bit hosts
    return address % array.itemsize == 0


def tensor_view(
    buffer: Buffer, info: TensorInfo, data_offset: int, *, file: str = "<buffer>", tensor: str | None = None
) -> np.ndarray[Any, np.dtype[Any]]:
    """The array of `info`, on `buffer` itself, whose data section begins at `data_offset` (bytes).

    It is writable if `buffer` is. It is a copy only where its address is no multiple of its item
    size, or where a big-endian host must swap BF16. F4 and F6 come as a
    PackedArray. Raises InvalidHeaderError, with `file` and `tensor`, on a shape that is legal in
    the format and that numpy cannot hold: more than 64 dimensions, or an empty one with dimensions
    whose product is beyond its address range.
    """
    dtype = DTYPES[info.dtype]
    try:
        if dtype.packed:
            return PackedArray.of(np.frombuffer(buffer, np.uint8, info.nbytes, data_offset + info.begin), info)
        itemsize = dtype.numpy.itemsize
        array: np.ndarray[Any, Any]
        array = np.frombuffer(buffer, dtype.numpy, info.nbytes // itemsize, data_offset + info.begin)
        if itemsize > 1:
            if not _on_item_boundary(array):
                array = array.copy()
            if _BIG_ENDIAN and info.dtype == "BF16":  # ml_dtypes knows only the order of the host
                array = array.byteswap()
        return array.reshape(info.shape)
    except ValueError as error:
        name = "a tensor" if tensor is None else f"tensor {short_repr(tensor)}"
        reason = f"{name} of shape {short_repr(info.shape)} does not fit into a numpy array: {error}"
        raise InvalidHeaderError(file, reason, tensor=tensor) from None


def hollow_array(
    info: TensorInfo, *, file: str, tensor: str, cast_to: np.dtype[Any] | None = None
) -> np.ndarray[Any, np.dtype[Any]]:
    """What `tensor_view` will give, without its bytes: the dtype and the shape, zeros on no memory, read-only.

    `cast_to` is the dtype that a floating tensor will be cast to.
    """
    dtype = DTYPES[info.dtype]
    try:
        if dtype.packed:
            return PackedArray.of(np.broadcast_to(np.zeros((), np.uint8), (info.nbytes,)), info)
        own = dtype.numpy if cast_to is None or not is_floating(dtype.numpy) else cast_to
        return np.broadcast_to(np.zeros((), own), info.shape)
    except ValueError as error:
        reason = (
            f"tensor {short_repr(tensor)} of shape {short_repr(info.shape)} does not fit into a numpy array: {error}"
        )
        raise InvalidHeaderError(file, reason, tensor=tensor) from None
