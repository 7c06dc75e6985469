"""Bytes of safetensors files and of indexes, valid or not, made without the library that the tests compare with."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAMES = {
    np.dtype(scalar): name
    for name, scalar in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "F16": np.float16,
        "U32": np.uint32,
        "I32": np.int32,
        "F32": np.float32,
        "U64": np.uint64,
        "I64": np.int64,
        "F64": np.float64,
        "C64": np.complex64,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    }.items()
}

Tensor = np.ndarray | tuple[str, tuple[int, ...], bytes]


def raw_file(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file around `header` as it is; `length` lies about its size."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, pad: int = 8) -> bytes:
    """A file of `tensors`, in their order: arrays, or (dtype, shape, bytes) for what numpy has no dtype for.

    The header is filled with spaces to a multiple of `pad` bytes; 1 leaves the data where it falls.
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = bytearray()
    for name, tensor in tensors.items():
        if isinstance(tensor, np.ndarray):
            dtype, shape, raw = NAMES[tensor.dtype], tensor.shape, np.ascontiguousarray(tensor).tobytes()
        else:
            dtype, shape, raw = tensor
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return raw_file(text + b" " * (-len(text) % pad), bytes(data))


def index_bytes(weight_map: object, metadata: object = None) -> bytes:
    """An index of `weight_map`, whatever it is; without `metadata` if that is None."""
    top = {} if metadata is None else {"metadata": metadata}
    return json.dumps(top | {"weight_map": weight_map}, indent=2).encode()


def sharded_bytes(
    tensors: Mapping[str, Tensor], shards: int = 3, *, stem: str = "model", metadata: Mapping[str, str] | None = None
) -> dict[str, bytes]:
    """`tensors` dealt to `shards` files in turn, and the index that names them: {file name: content}."""
    names = [f"{stem}-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    dealt: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for position, (name, tensor) in enumerate(tensors.items()):
        dealt[names[position % shards]][name] = tensor
    total = sum(len(tensor[2]) if isinstance(tensor, tuple) else tensor.nbytes for tensor in tensors.values())
    weight_map = {name: names[position % shards] for position, name in enumerate(tensors)}
    files = {name: safetensors_bytes(held, metadata) for name, held in dealt.items()}
    return files | {f"{stem}.safetensors.index.json": index_bytes(weight_map, {"total_size": total})}


def sharded(
    folder: Path, tensors: Mapping[str, Tensor], shards: int = 3, *, stem: str = "model", **options: Mapping[str, str]
) -> dict[str, bytes]:
    """`sharded_bytes`, written into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    files = sharded_bytes(tensors, shards, stem=stem, **options)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files
