"""A safetensors header, read as hostile input.

A file is `u64 little-endian n | n bytes of JSON | data`. The rules are those that the reference
implementation enforces (https://github.com/huggingface/safetensors, safetensors/src/tensor.rs,
0.8.0), down to the strictness of its JSON parser, so that both accept the same files. Two things are
stricter here: a dtype written as an object, `{"F32": null}`, is refused; the crate takes it only
because its enum decoder happens to. And so is a header of megabytes of brackets, which no tensors
need and which would grow thirtyfold in memory.

Nothing here reads a file. The caller caps how many header bytes it is willing to hold.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from mmap import mmap
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InvalidHeaderError
from .dtypes import DTYPES
from .hostile import FlawError, parse_json, recognize, short_repr

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_HEADER_BYTES", "PREFIX_BYTES", "Header", "TensorInfo", "header_length", "header_of", "parse_header"]

PREFIX_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
_MAX_U64 = (1 << 64) - 1
_MAX_NESTING = 127  # serde_json refuses the 128th level


class TensorInfo(NamedTuple):
    """One tensor: `shape` counts elements, `begin` and `end` are bytes from the start of the data.

    A named tuple since large headers hold 100,000 of them, and it takes a third of the time to make.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Header:
    """A header that obeys every rule: the tensors cover the data without a hole or an overlap.

    `tensors` is in the order of the data, whatever the order of the JSON; empty tensors at the
    same place keep the order of the JSON. `data_start` and `file_size` are bytes.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    file_size: int


_CUT_SHORT = "It seems to be cut short: fetch it again."


def header_length(prefix: bytes, *, file: str, file_size: int) -> int:
    """n, the bytes of JSON, from the first 8 bytes of a file of `file_size` bytes.

    More than 8 bytes of `prefix` only help to recognize what the file is instead. Raises
    InvalidHeaderError, its hint naming the likely cause, if n breaks a rule.
    """
    if min(len(prefix), file_size) < PREFIX_BYTES:
        what = "it is empty" if file_size == 0 else f"it has {min(len(prefix), file_size)} bytes"
        raise InvalidHeaderError(file, f"{what}, and the length of its header takes {PREFIX_BYTES}")
    (length,) = struct.unpack_from("<Q", prefix)
    room = file_size - PREFIX_BYTES
    if 0 < length <= min(room, MAX_HEADER_BYTES):
        return int(length)
    if length == 0:
        reason = "its header is empty"
    elif length > MAX_HEADER_BYTES:
        reason = f"it claims a header of {length:,} bytes, and the format allows {MAX_HEADER_BYTES:,}"
    else:
        reason = f"it claims a header of {length:,} bytes, and {room:,} follow"
    hint = recognize(prefix) or (_CUT_SHORT if room < length <= MAX_HEADER_BYTES else "")
    raise InvalidHeaderError(file, reason, hint=hint)


def _entry_or_pairs(pairs: list[tuple[str, Any]]) -> TensorInfo | tuple[tuple[str, Any], ...]:
    """The TensorInfo of an object in the usual form, at once; the pairs of any other object.

    Nothing is lost by it, duplicate keys least of all, and a header of 100,000 tensors does not
    become a million containers for the garbage collector to visit.
    """
    if len(pairs) == 3:
        (first, dtype), (second, shape), (third, offsets) = pairs
        if first == "dtype" and second == "shape" and third == "data_offsets":
            try:
                return _tensor_info(dtype, shape, offsets)
            except FlawError:
                pass  # whether it matters depends on where the object stands
    return tuple(pairs)


def _tensor_info(dtype: object, shape: object, offsets: object) -> TensorInfo:
    if type(dtype) is not str:
        raise FlawError("has a dtype that is not a string")
    if dtype not in DTYPES:
        raise FlawError(f"has the unknown dtype {short_repr(dtype)}")
    if type(shape) is not list:
        raise FlawError(f"has a shape that is not a list: {short_repr(shape)}")
    for size in shape:
        if type(size) is not int or not 0 <= size <= _MAX_U64:
            raise FlawError(f"has a shape with {short_repr(size)}, which is not an unsigned 64-bit integer")
    if type(offsets) is not list or len(offsets) != 2:
        raise FlawError(f"has data_offsets that are not a pair: {short_repr(offsets)}")
    begin, end = offsets
    if type(begin) is not int or type(end) is not int or not (0 <= begin <= _MAX_U64 and 0 <= end <= _MAX_U64):
        raise FlawError(f"has data_offsets that are not unsigned 64-bit integers: {short_repr(offsets)}")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _unusual_entry(entry: object) -> TensorInfo:
    """An entry with its fields in another order, with further fields, or as an array; or the reason why it is none."""
    if type(entry) is list:
        if len(entry) != 3:
            raise FlawError(f"is an array of {len(entry)} values, not of dtype, shape and data_offsets")
        return _tensor_info(*entry)
    if type(entry) is not tuple:
        raise FlawError(f"is not an object: {short_repr(entry)}")
    fields: dict[str, object] = {}
    for key, value in entry:
        if key not in ("dtype", "shape", "data_offsets"):
            _check_ignored(value)
        elif key in fields:
            raise FlawError(f"has two fields {key}")
        else:
            fields[key] = value
    for key in ("dtype", "shape", "data_offsets"):
        if key not in fields:
            raise FlawError(f"has no {key}")
    return _tensor_info(fields["dtype"], fields["shape"], fields["data_offsets"])


def _check_ignored(value: object) -> None:
    """Refuse what serde_json refuses even in a field that is then ignored: deep nesting, numbers beyond a double."""
    opened: list[Iterator[Any]] = [iter((value,))]  # not their values: millions may be in one list
    while opened:
        for value in opened[-1]:
            if isinstance(value, (int, float)) and abs(value) > sys.float_info.max:
                raise FlawError("has a number beyond the range of a double")
            if not isinstance(value, (tuple, list)):
                continue
            entry = isinstance(value, TensorInfo)  # an object that looks like one: its lists are one level down
            if 2 + len(opened) + entry > _MAX_NESTING:  # below the header and the entry
                raise FlawError(f"is nested more than {_MAX_NESTING} levels deep")
            if value and not entry:
                opened.append(iter(value) if isinstance(value, list) else (inner for _, inner in value))
                break
        else:
            opened.pop()


def parse_header(raw: bytes | memoryview, *, file: str, file_size: int | None) -> Header:
    """The header whose JSON is `raw`: exactly the n bytes after the prefix of a file of `file_size` bytes.

    Where the size is not known, it is the one that the last tensor implies.
    A tensor name that occurs twice counts with its last entry, as in the crate, if that leaves no
    hole. Raises InvalidHeaderError, with the tensor where one is at fault, and nothing else.
    """
    data_start = PREFIX_BYTES + len(raw)
    try:
        tree = parse_json(raw, _entry_or_pairs)
        tensors, metadata = _contents(tree)
        ordered = _in_data_order(tensors)
        if file_size is None:
            file_size = data_start + max((info.end for info in ordered.values()), default=0)
        _check_layout(ordered, file_size - data_start)
    except FlawError as flaw:
        reason, tensor, hint = str(flaw), flaw.tensor, flaw.hint
    except ValueError as error:
        reason, tensor = f"its header {error}", None
        hint = "It holds zeros: a copy or a download was not finished." if b"\0" in bytes(raw[-1:]) else ""
    else:
        return Header(ordered, metadata, data_start, file_size)
    raise InvalidHeaderError(file, reason, tensor=tensor, hint=hint)


def _contents(tree: object) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The entries, each well-formed in itself, and the metadata."""
    if type(tree) is not tuple:
        raise FlawError("its header is not a JSON object of tensors")
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] | None = None
    for name, entry in tree:
        if type(entry) is TensorInfo and name != "__metadata__":
            tensors[name] = entry
        elif name != "__metadata__":
            try:
                tensors[name] = _unusual_entry(entry)
            except FlawError as flaw:
                raise FlawError(flaw.reason, name) from None
        elif metadata is not None:
            raise FlawError("its header has two fields __metadata__")
        else:
            metadata = _metadata(entry)
    return tensors, metadata or {}


def _metadata(entry: object) -> dict[str, str]:
    if entry is None:
        return {}
    if type(entry) is not tuple:
        raise FlawError(f"its __metadata__ is not an object of strings: {short_repr(entry)}")
    for key, value in entry:
        if type(value) is not str:
            raise FlawError(f"its __metadata__ maps {short_repr(key)} to {short_repr(value)}, which is not a string")
    return dict(entry)


def _in_data_order(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Sorted by the pair (begin, end): by begin alone, an empty tensor may come after its neighbour."""
    covered = 0
    for info in tensors.values():
        if info.begin != covered:
            return dict(sorted(tensors.items(), key=lambda item: item[1][2:]))
        covered = info.end
    return tensors  # as most writers leave them


def _check_layout(tensors: dict[str, TensorInfo], room: int) -> None:
    """Each tensor begins where the one before ends and has the bytes of its shape; the last ends at `room`."""
    covered = 0
    for name, info in tensors.items():
        begin, end = info.begin, info.end
        if begin != covered:
            raise FlawError(f"has data_offsets [{begin}, {end}] where the data before it ends at {covered}", name)
        covered = end
        bits = DTYPES[info.dtype].bits
        count = 1
        for size in info.shape:  # from left to right: a zero does not undo an overflow before it
            count *= size
            if count > _MAX_U64:
                break
        if count * bits > _MAX_U64:
            raise FlawError(f"has a shape too large to count: {short_repr(info.shape)}", name)
        if count * bits % 8:
            raise FlawError(f"has {count} elements of {bits} bits, which is no whole number of bytes", name)
        if count * bits // 8 != end - begin:
            raise FlawError(
                f"is {info.dtype} {short_repr(info.shape)}, {count * bits // 8:,} bytes, "
                f"and its data_offsets hold {end - begin:,}",
                name,
            )
    if covered > room:
        raise FlawError(
            f"its tensors take {covered:,} bytes, and {max(room, 0):,} follow the header",
            hint=_CUT_SHORT,
        )
    if covered < room:
        raise FlawError(f"its tensors take {covered:,} bytes, and {room - covered:,} more follow them")


def header_of(buffer: bytes | memoryview | mmap, *, file: str) -> Header:
    """The header of a whole file that lies in `buffer`. Raises InvalidHeaderError."""
    view = memoryview(buffer).cast("B")
    length = header_length(bytes(view[:512]), file=file, file_size=len(view))
    return parse_header(view[PREFIX_BYTES : PREFIX_BYTES + length], file=file, file_size=len(view))
