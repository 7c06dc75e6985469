"""Tensors written as a safetensors file.

The bytes go from the arrays to the disk a few megabytes at a time, without a copy of a tensor, in steps small
enough to be interrupted. The `safetensors` package opens the result before it takes the place of an older one,
so what is published is what the reference implementation accepts. Its own serializer is not used:
it refuses the F6 dtypes, cannot be interrupted, and reports a full disk as text only.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import DiskFullError, SourceError, StorageError, storage_errors
from .arrays import PackedArray
from .dtypes import DTYPES
from .header import MAX_HEADER_BYTES, PREFIX_BYTES

__all__ = [
    "STEP", "Outgoing", "Strided", "check_output", "file_bytes", "format_dtype", "in_pieces", "logical_shape",
    "outgoing_array", "write_file", "write_safetensors",
]  # fmt: skip

STEP = 16 << 20  # bytes that are copied or written at once: the longest that Ctrl-C waits

_CODES = {entry.numpy: code for code, entry in DTYPES.items() if not entry.packed}
# How the reference implementation sorts the tensors of a file: by the dtype that comes last here, then by name
# (https://github.com/huggingface/safetensors/blob/main/safetensors/src/tensor.rs, `Dtype`). Each then lies at a
# multiple of its element size.
_ORDER = (
    "BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
    "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64",
)  # fmt: skip
_RANK = {code: -place for place, code in enumerate(_ORDER)}


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A tensor on its way into a file.

    `dtype` is the format's name, `shape` counts elements. `pieces` gives its bytes in C order, from the first each
    time; the memory of a piece may be used again for the next one.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[memoryview]]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype].bits // 8


def check_output(path: str | os.PathLike[str]) -> Path:
    """`path` as a place to write a file to, checked before anything is downloaded for it.

    A symbolic link is replaced, not followed: in a Hugging Face cache it leads to a shared blob.
    Raises SourceError for a folder, a device or a missing parent, StorageError where the disk
    refuses.
    """
    target = Path(os.path.expanduser(path))  # which leaves alone what it does not know
    with storage_errors(target, writing="output"):
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
    code = _CODES.get(array.dtype.newbyteorder("<"))
    if code is None:
        raise SourceError(f"The safetensors format has no dtype for {array.dtype.name!r}.")
    return code


def logical_shape(array: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """The shape in elements; for packed dtypes it is not the shape of the array."""
    packed = array.logical_shape if isinstance(array, PackedArray) else None
    return array.shape if packed is None else packed


def outgoing_array(array: np.ndarray[Any, Any]) -> Outgoing:
    """An array on its way into a file: of any strides, in either byte order. Raises SourceError as `format_dtype`."""
    return Outgoing(
        format_dtype(array), logical_shape(array), partial(in_pieces, array.view(np.ndarray), array.nbytes, _raw)
    )


def _raw(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of an array in C order; copied only where they are not that already."""
    little = array.dtype.newbyteorder("<")
    flat = np.ascontiguousarray(array if array.dtype == little else array.astype(little)).reshape(-1)
    return flat.view(np.uint8).data


class Strided(Protocol):
    """What an array of numpy and a tensor of torch have in common."""

    @property
    def shape(self) -> Any: ...

    def __getitem__(self, index: Any, /) -> Any: ...


def in_pieces(array: Strided, nbytes: int, raw: Callable[[Any], memoryview]) -> Iterator[memoryview]:
    """The bytes of an array in C order. `raw` makes bytes of a part of at most STEP bytes, or of a single element."""
    if nbytes <= STEP or not len(array.shape):
        if nbytes:
            yield raw(array)
        return
    count = int(array.shape[0])
    row = nbytes // count
    if row > STEP:
        for place in range(count):
            yield from in_pieces(array[place], row, raw)
        return
    rows = STEP // row
    for start in range(0, count, rows):
        yield raw(array[start : start + rows])


def write_safetensors(
    tensors: Mapping[str, np.ndarray[Any, Any]],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write `tensors` to `path` as one safetensors file; return its size in bytes.

    The file is complete, synced and checked before it replaces an existing one, which stays as it
    is on any failure. Tensors lie in the order in which the reference implementation writes them. Raises
    SourceError for what cannot be written, StorageError and DiskFullError.
    """
    target = check_output(path)
    outgoing = {name: outgoing_array(array) for name, array in tensors.items()}
    size = file_bytes(outgoing, metadata)
    with storage_errors(target, needed=size, writing="output"):
        free = shutil.disk_usage(target.parent).free
        if free < size:
            raise DiskFullError(str(target), needed=size, free=free, writing="output")
        folder = Path(tempfile.mkdtemp(prefix=".", suffix=".asyncfetch", dir=target.parent))  # of any target's length
        try:
            draft = folder / "draft.safetensors"
            mode = stat.S_IMODE(target.stat().st_mode) if target.is_file() and not target.is_symlink() else None
            write_file(outgoing, draft, metadata=metadata, mode=mode)
            draft.replace(target)
            _sync_folder(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return size


def file_bytes(tensors: Mapping[str, Outgoing], metadata: Mapping[str, str] | None = None) -> int:
    """The size of the file with these tensors. Raises SourceError for what the format does not allow."""
    return len(_header(tensors, metadata or {})) + sum(tensor.nbytes for tensor in tensors.values())


def write_file(
    tensors: Mapping[str, Outgoing],
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    mode: int | None = None,
    step: Callable[[int], None] = lambda _: None,
) -> None:
    """Make the new file `path` of `tensors`; whole, synced and checked when this returns.

    `step` is told how many bytes were written, after each write, and may raise. Raises SourceError for what the
    format does not allow, StorageError and DiskFullError; what was written by then stays, for the caller to remove.
    """
    head = _header(tensors, metadata or {})
    with storage_errors(path, writing="output"), path.open("xb", buffering=0) as file:
        _write_all(file, memoryview(head), step)
        for name in _in_order(tensors):
            left = tensors[name].nbytes
            for piece in tensors[name].pieces():
                left -= len(piece)
                _write_all(file, piece, step)
            if left:  # else what follows would be read from the wrong place
                raise StorageError(str(path), f"{name!r} came with {-left:,} bytes too many")
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    _check(path, tensors)


def _in_order(tensors: Mapping[str, Outgoing]) -> list[str]:
    return sorted(tensors, key=lambda name: (_RANK[tensors[name].dtype], name))


def _header(tensors: Mapping[str, Outgoing], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with spaces so that the data begins at a multiple of 8."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name in _in_order(tensors):
        tensor = tensors[name]
        end = begin + tensor.nbytes
        table[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    try:
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"A name or a value of the metadata is no text of Unicode: {error.object!r:.80}.") from None
    text += b" " * (-(PREFIX_BYTES + len(text)) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise SourceError(f"The header would take {len(text):,} bytes, and the format allows {MAX_HEADER_BYTES:,}.")
    return len(text).to_bytes(PREFIX_BYTES, "little") + text


def _write_all(file: BinaryIO, data: memoryview, step: Callable[[int], None]) -> None:
    for start in range(0, len(data), STEP):
        left = data[start : start + STEP]
        while left:
            written = file.write(left)
            left = left[written:]
            step(written)


def _check(path: Path, tensors: Mapping[str, Outgoing]) -> None:
    """Let the reference implementation read what was written, before anyone else does."""
    try:
        with safe_open(path, framework="np") as opened:
            names = set(opened.keys())
    except SafetensorError as error:
        raise SourceError(f"The state dict cannot be written as safetensors: {error}.") from error
    if names != set(tensors):
        raise StorageError(str(path), "what was read back is not what was written")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
