"""The values of a state dict on their way into files: arrays of numpy's kind, and tensors of torch.

Tensors of torch that share memory are treated as safetensors, huggingface_hub and transformers treat them
(https://huggingface.co/docs/safetensors/torch_shared_tensors). One tensor under several names is written once, under
the name that comes first in the alphabet, and the metadata says of the others what they are. What shares memory in
another way is refused, since it could not be told from the file. Arrays of numpy are written each under its name, as
safetensors does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..errors import SourceError
from ..format.hostile import short_repr
from ..format.writer import Outgoing, in_pieces, outgoing_array

__all__ = ["outgoing_tensors"]

_MOST_WORK = 100_000  # of numpy, to see whether two tensors of odd strides share an element
_TORCH = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "float4_e2m1fn_x2": "F4",  # two numbers an element
}


def outgoing_tensors(state_dict: Mapping[str, Any]) -> tuple[dict[str, Outgoing], dict[str, str]]:
    """What is written of a state dict, in its order, and {name that is not written: name of the same tensor that is}.

    Raises SourceError for what the format does not have, and for tensors whose memory overlaps.
    """
    torch: Any = sys.modules.get("torch")
    found: dict[str, Outgoing] = {}
    tensors: dict[str, Any] = {}
    for name, value in state_dict.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise SourceError(f"{short_repr(name)} cannot be the name of a tensor.")
        try:
            if torch is not None and isinstance(value, torch.Tensor):
                found[name] = _outgoing_tensor(torch, value)
                tensors[name] = value
            else:
                found[name] = outgoing_array(_array(value))
        except SourceError as error:
            raise SourceError(f"{short_repr(name)}: {error.message}", hint=error.hint) from None
    if not found:
        raise SourceError("The state dict is empty: there is nothing to save.")
    for device in {tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"}:
        torch.cuda.synchronize(device)  # what another stream still computes would be read too early
    aliases = _aliases(tensors)
    return {name: tensor for name, tensor in found.items() if name not in aliases}, aliases


def _array(value: object) -> np.ndarray[Any, Any]:
    """An array of numpy, or what one is made of without a guess, such as an array of JAX."""
    if isinstance(value, np.ma.MaskedArray):
        raise SourceError("the format has no masked arrays.", hint="Save .filled(...) of it.")
    if isinstance(value, np.ndarray | np.generic):
        return np.asanyarray(value)
    if hasattr(value, "__array__") and hasattr(value, "dtype") and hasattr(value, "shape"):
        return np.asarray(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    hint = "Flatten it: names joined by dots." if isinstance(value, Mapping | list | tuple) else None
    raise SourceError(f"it is no array and no tensor, but {kind}.", hint=hint)


def _outgoing_tensor(torch: Any, tensor: Any) -> Outgoing:
    if hasattr(type(tensor), "__tensor_flatten__"):  # DTensor, and the tensors of torchao
        hint = "Save its full_tensor()." if hasattr(tensor, "full_tensor") else "Save the tensors that it is made of."
        raise SourceError(f"it is a {type(tensor).__name__}, whose numbers lie in other tensors.", hint=hint)
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise SourceError(f"the format has dense tensors alone, and it is {tensor.layout}, {tensor.dtype}.")
    if tensor.device.type == "meta":
        raise SourceError("it is on the meta device, and so has no values.")
    code = _TORCH.get(str(tensor.dtype).removeprefix("torch."))
    if code is None:
        raise SourceError(f"The safetensors format has no dtype for {tensor.dtype}.")
    shape = tuple(tensor.shape)
    if code == "F4":
        if not shape:
            raise SourceError("a single element of two numbers has no shape in the format.")
        shape = (*shape[:-1], 2 * shape[-1])
    return Outgoing(code, shape, partial(_pieces, torch, tensor))


def _pieces(torch: Any, tensor: Any) -> Iterator[memoryview]:
    def raw(part: Any) -> memoryview:
        flat = part.resolve_conj().resolve_neg().contiguous().cpu().reshape(-1)
        data = flat.view(torch.uint8).numpy()
        if sys.byteorder == "big" and flat.element_size() > 1:
            data = data.reshape(-1, _width(flat))[:, ::-1].reshape(-1).copy()
        return memoryview(data)

    return in_pieces(tensor.detach(), tensor.numel() * tensor.element_size(), raw)


def _width(flat: Any) -> int:
    """Bytes that are swapped together on a big-endian host."""
    return flat.element_size() // 2 if flat.is_complex() else int(flat.element_size())


def _aliases(tensors: Mapping[str, Any]) -> dict[str, str]:
    """{name: the name that comes first among those of the same tensor}. Raises SourceError where memory overlaps."""
    same: dict[tuple[object, ...], list[str]] = {}
    stored: dict[tuple[object, ...], list[tuple[int, int, str]]] = {}
    for name, tensor in tensors.items():
        if not tensor.numel():
            continue
        begin, end = _extent(tensor)
        view = (
            tensor.device,
            begin,
            tensor.dtype,
            tuple(tensor.shape),
            tensor.stride(),
            tensor.is_conj(),
            tensor.is_neg(),
        )
        names = same.setdefault(view, [])
        names.append(name)
        if len(names) == 1:
            stored.setdefault((tensor.device, tensor.untyped_storage().data_ptr()), []).append((begin, end, name))
    for places in stored.values():
        _refuse_overlaps(sorted(places), tensors)
    return {name: min(names) for names in same.values() for name in names if name != min(names)}


def _extent(tensor: Any) -> tuple[int, int]:
    """From which address to which the elements of a tensor lie."""
    begin = tensor.data_ptr()
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (reach + 1) * tensor.element_size()


def _refuse_overlaps(places: list[tuple[int, int, str]], tensors: Mapping[str, Any]) -> None:
    reaching: list[tuple[int, int, str]] = []  # those before it that end behind its begin
    for place in places:
        begin, _, name = place
        reaching = [one for one in reaching if one[1] > begin]
        for _, _, other in reaching:
            if _share(tensors[other], tensors[name]):
                raise SourceError(
                    f"{short_repr(other)} and {short_repr(name)} are different views of the same memory, which a file "
                    "cannot tell.",
                    hint="Save a clone() of one of them, or leave it out.",
                )
        reaching.append(place)


def _share(one: Any, other: Any) -> bool:
    """Whether two tensors have an element in common; columns of one matrix, which lie among each other, have none."""
    try:
        return bool(np.shares_memory(_addresses(one), _addresses(other), max_work=_MOST_WORK))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _addresses(tensor: Any) -> np.ndarray[Any, Any]:
    """An array with the addresses of a tensor, wherever that is: not to be read."""
    width = tensor.element_size()
    told = {
        "version": 3,
        "typestr": f"|V{width}",
        "shape": tuple(tensor.shape),
        "strides": tuple(stride * width for stride in tensor.stride()),
        "data": (tensor.data_ptr(), True),
    }
    return np.asarray(SimpleNamespace(__array_interface__=told))
