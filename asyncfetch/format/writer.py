"""A state dict written as one safetensors file.

The bytes go from the arrays to the disk without a copy of the model, in steps small enough to be
interrupted. The `safetensors` package opens the result before it takes the place of an older one,
so what is published is what the reference implementation accepts. Its own serializer is not used:
it refuses the F6 dtypes, cannot be interrupted, and reports a full disk as text only.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import DiskFullError, SourceError, StorageError, storage_errors
from .arrays import PackedArray
from .dtypes import DTYPES
from .header import MAX_HEADER_BYTES, PREFIX_BYTES

__all__ = ["check_output", "format_dtype", "logical_shape", "write_safetensors"]

STEP = 16 << 20  # bytes for each write: the longest that Ctrl-C waits

_CODES = {entry.numpy: code for code, entry in DTYPES.items() if not entry.packed}


def check_output(path: str | os.PathLike[str]) -> Path:
    """`path` as a place to write a file to, checked before anything is downloaded for it.

    A symbolic link is replaced, not followed: in a Hugging Face cache it leads to a shared blob.
    Raises SourceError for a folder, a device or a missing parent, StorageError where the disk
    refuses.
    """
    target = Path(os.path.expanduser(path))  # which leaves alone what it does not know
    with storage_errors(target):
        if target.is_dir():
            raise SourceError(f"{target} is a folder.", hint="Name the file to write in it.")
        if not target.parent.is_dir():
            raise SourceError(f"The folder {target.parent} does not exist.", hint="Create it first.")
        if target.exists() and not target.is_file():
            raise SourceError(f"{target} is not a regular file.", hint="Name a file that may be replaced.")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise StorageError(str(target.parent), "it is not writable")
    return target


def format_dtype(array: np.ndarray[Any, Any]) -> str:
    """The name of the array's dtype in the safetensors format, such as "BF16".

    Raises SourceError for a dtype that the format does not have.
    """
    if isinstance(array, PackedArray) and array.safetensors_dtype is not None:
        return array.safetensors_dtype
    code = _CODES.get(array.dtype)
    if code is None:
        raise SourceError(f"The safetensors format has no dtype for {array.dtype.name!r}.")
    return code


def logical_shape(array: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """The shape in elements; for packed dtypes it is not the shape of the array."""
    packed = array.logical_shape if isinstance(array, PackedArray) else None
    return array.shape if packed is None else packed


def write_safetensors(
    tensors: Mapping[str, np.ndarray[Any, Any]],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write `tensors` to `path` as one safetensors file; return its size in bytes.

    The file is complete, synced and checked before it replaces an existing one, which stays as it
    is on any failure. Tensors lie in the order of their alignment, widest first, then by name, as
    the reference implementation writes them. Raises SourceError for what cannot be written,
    StorageError and DiskFullError.
    """
    target = check_output(path)
    placed = _place(tensors)
    head = _header(placed, metadata or {})
    size = len(head) + sum(tensor.nbytes for tensor in placed)
    with storage_errors(target, needed=size):
        free = shutil.disk_usage(target.parent).free
        if free < size:
            raise DiskFullError(str(target), needed=size, free=free)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", suffix=".asyncfetch", dir=target.parent))
        try:
            draft = folder / "draft.safetensors"
            with draft.open("xb", buffering=0) as file:
                _write_all(file, memoryview(head))
                for tensor in placed:
                    _write_all(file, _bytes(tensors[tensor.name]))
                if target.is_file() and not target.is_symlink():
                    os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
                os.fsync(file.fileno())
            _check(draft, placed)
            draft.replace(target)
            _sync_folder(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return size


@dataclass(frozen=True, slots=True)
class _Placed:
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def _place(tensors: Mapping[str, np.ndarray[Any, Any]]) -> list[_Placed]:
    placed = []
    for name, array in tensors.items():
        placed.append(_Placed(name, format_dtype(array), logical_shape(array), array.nbytes))
    return sorted(placed, key=lambda tensor: (-DTYPES[tensor.dtype].bits, tensor.name))


def _header(placed: list[_Placed], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with spaces so that the data begins at a multiple of 8."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for tensor in placed:
        end = begin + tensor.nbytes
        table[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(PREFIX_BYTES + len(text)) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise SourceError(f"The header would take {len(text):,} bytes, and the format allows {MAX_HEADER_BYTES:,}.")
    return len(text).to_bytes(PREFIX_BYTES, "little") + text


def _bytes(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of `array` in C order; copied only where the array is not contiguous."""
    flat = np.ascontiguousarray(array.view(np.ndarray)).reshape(-1)
    return flat.view(np.uint8).data


def _steps(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), STEP):
        yield data[start : start + STEP]


def _write_all(file: BinaryIO, data: memoryview) -> None:
    for step in _steps(data):
        while step:
            step = step[file.write(step) :]


def _check(path: Path, placed: list[_Placed]) -> None:
    """Let the reference implementation read what was written, before anyone else does."""
    try:
        with safe_open(path, framework="np") as opened:
            names = set(opened.keys())
    except SafetensorError as error:
        raise SourceError(f"The state dict cannot be written as safetensors: {error}.") from error
    if names != {tensor.name for tensor in placed}:
        raise StorageError(str(path), "what was read back is not what was written")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
