"""Headers as hostile input, compared with the safetensors library; arrays as views."""

from __future__ import annotations

import copy
import json
import math
import mmap
import pickle
import struct
import sys
import time
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open

from asyncfetch.errors import InvalidHeaderError, SourceError
from asyncfetch.format import arrays as arrays_module
from asyncfetch.format.arrays import PackedArray, tensor_view
from asyncfetch.format.dtypes import DTYPES
from asyncfetch.format.header import MAX_HEADER_BYTES, TensorInfo, header_length, header_of, parse_header

from ..kit.files import NAMES, raw_file, safetensors_bytes

if TYPE_CHECKING:
    from pathlib import Path

U8 = b'{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'


def entry(dtype: str = '"U8"', shape: str = "[2]", offsets: str = "[0,2]", extra: str = "") -> bytes:
    """A header of one tensor `a`, each field as its JSON."""
    return f'{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{extra}}}}}'.encode()


def extra(value: str) -> bytes:
    """A header whose tensor has a further field, which readers ignore."""
    return entry(extra=f',"x":{value}')


def library_accepts(content: bytes) -> bool:
    """Whether the reference implementation takes the file."""
    try:
        deserialize(content)
    except SafetensorError:
        return False
    return True


def refused(content: bytes) -> InvalidHeaderError:
    """The error that reading `content` ends in."""
    with pytest.raises(InvalidHeaderError) as caught:
        header_of(memoryview(content), file="w.safetensors")
    return caught.value


ACCEPTED = {
    "plain": entry(),
    "whitespace around": b" \t\r\n" + entry() + b"\n\r\t ",
    "fields in another order": b'{"a":{"data_offsets":[0,2],"dtype":"U8","shape":[2]}}',
    "array form": b'{"a":["U8",[2],[0,2]]}',
    "metadata null": b'{"__metadata__":null,"a":' + U8 + b"}",
    "metadata empty": b'{"__metadata__":{},"a":' + U8 + b"}",
    "metadata key twice": b'{"__metadata__":{"k":"1","k":"2"},"a":' + U8 + b"}",
    "metadata name escaped": b'{"\\u005f_metadata__":{"k":"v"},"a":' + U8 + b"}",
    "field name escaped": b'{"a":{"d\\u0074ype":"U8","shape":[2],"data_offsets":[0,2]}}',
    "dtype escaped": entry(dtype='"U\\u0038"'),
    "empty name": b'{"":' + U8 + b"}",
    "surrogate pair": b'{"\\ud83d\\ude00":' + U8 + b"}",
    "backslash, then ud800": b'{"\\\\ud800":' + U8 + b"}",
    "tensor twice, the same": b'{"a":' + U8 + b',"a":' + U8 + b"}",
    "tensor twice, the last right": b'{"a":' + entry(shape="[9]", offsets="[7,3]")[5:-1] + b',"a":' + U8 + b"}",
    "unknown field": extra('{"y":[1,{"z":null}],"y":-1.5e3}'),
    "unknown field twice": entry(extra=',"x":1,"x":2'),
    "unknown field, minus zero": extra("-0"),
    "unknown field, large": extra("9" * 300),
    "unknown field that looks like an entry": extra(U8.decode()),
    "nesting of 127": extra("[" * 125 + "]" * 125),
    "nesting of 127 with an entry": extra("[" * 123 + U8.decode() + "]" * 123),
    "tensors named like fields": b'{"dtype":["U8",[2],[0,2]],"shape":["U8",[0],[2,2]],"data_offsets":["U8",[0],[2,2]]}',
    "one element in many dimensions": entry(shape="[" + "1," * 64 + "2]"),
}


@pytest.mark.parametrize("header", ACCEPTED.values(), ids=ACCEPTED)
def test_accepts_what_the_library_accepts(header: bytes) -> None:
    """Each unusual but legal header is read, with the tensors that the library sees in it."""
    content = raw_file(header, b"\x01\x02")
    ours = {
        name: (info.dtype, list(info.shape))
        for name, info in header_of(memoryview(content), file="w.safetensors").tensors.items()
    }
    assert ours == {name: (tensor["dtype"], tensor["shape"]) for name, tensor in deserialize(content)}


REJECTED = {
    "empty text": (b" ", "not JSON"),
    "open brace": (b"{", "not JSON"),
    "list": (b"[]", "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "an entry at the top": (U8, "not a JSON object of tensors"),
    "trailing comma": (b'{"a":' + U8 + b",}", "not JSON"),
    "text after": (b"{} x", "not JSON"),
    "NUL after": (b"{}\0", "holds zeros"),
    "vertical tab": (b"\x0b{}", "not JSON"),
    "byte-order mark": (b"\xef\xbb\xbf{}", "not JSON"),
    "UTF-16": ("{}".encode("utf-16"), "not UTF-8 at byte 0"),
    "Latin-1": (b'{"\xe9":' + U8 + b"}", "not UTF-8 at byte 2"),
    "surrogate in UTF-8": (b'{"\xed\xa0\x80":' + U8 + b"}", "not UTF-8"),
    "lone surrogate": (b'{"\\ud800":' + U8 + b"}", "half of a surrogate pair"),
    "surrogates in the wrong order": (b'{"\\uDC00\\uD800":' + U8 + b"}", "half of a surrogate pair"),
    "lone surrogate in metadata": (b'{"__metadata__":{"a":"\\ud800"}}', "half of a surrogate pair"),
    "lone surrogate in an ignored field": (extra('"\\udfff"'), "half of a surrogate pair"),
    "control character": (b'{"a\x01":' + U8 + b"}", "Invalid control character"),
    "NaN in an ignored field": (extra("NaN"), "no NaN"),
    "Infinity": (entry(offsets="[0,Infinity]"), "no Infinity"),
    "-Infinity in an ignored field": (extra("-Infinity"), "no -Infinity"),
    "float too large": (extra("1e400"), "range of a double"),
    "integer too large": (extra("9" * 400), "range of a double"),
    "integer of 5,000 digits": (extra("9" * 5000), "thousands of digits"),
    "nesting of 128": (extra("[" * 126 + "]" * 126), "more than 127"),
    "nesting of 128 with objects": (extra('{"k":' * 126 + "1" + "}" * 126), "more than 127"),
    "nesting of 128 with an entry": (extra("[" * 124 + U8.decode() + "]" * 124), "more than 127"),
    "nesting of 100,000": (extra("[" * 100_000 + "]" * 100_000), "too deep"),
    "nested shape": (entry(shape="[" * 900 + "]" * 900), "a shape with"),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', "two fields __metadata__"),
    "metadata null, then again": (b'{"__metadata__":null,"__metadata__":{}}', "two fields __metadata__"),
    "metadata a string": (b'{"__metadata__":"pt"}', "not an object of strings"),
    "metadata a list": (b'{"__metadata__":[]}', "not an object of strings"),
    "metadata an entry": (b'{"__metadata__":' + U8 + b"}", "not an object of strings"),
    "metadata with a number": (b'{"__metadata__":{"k":1}}', "maps 'k' to 1"),
    "metadata with null": (b'{"__metadata__":{"k":null}}', "maps 'k' to None"),
    "entry null": (b'{"a":null}', "is not an object"),
    "entry a number": (b'{"a":1}', "is not an object"),
    "array of two": (b'{"a":["U8",[2]]}', "array of 2"),
    "array of four": (b'{"a":["U8",[2],[0,2],1]}', "array of 4"),
    "no dtype": (b'{"a":{"shape":[2],"data_offsets":[0,2]}}', "has no dtype"),
    "no shape": (b'{"a":{"dtype":"U8","data_offsets":[0,2]}}', "has no shape"),
    "no offsets": (b'{"a":{"dtype":"U8","shape":[2]}}', "has no data_offsets"),
    "field twice": (entry(extra=',"dtype":"U8"'), "two fields dtype"),
    "shadowed entry malformed": (b'{"a":' + entry(dtype='"XX"')[5:-1] + b',"a":' + U8 + b"}", "unknown dtype"),
    "dtype in lower case": (entry(dtype='"u8"'), "unknown dtype"),
    "dtype C128": (entry(dtype='"C128"'), "unknown dtype"),
    "dtype a number": (entry(dtype="8"), "dtype that is not a string"),
    "dtype null": (entry(dtype="null"), "dtype that is not a string"),
    "shape a number": (entry(shape="2"), "shape that is not a list"),
    "shape with a negative": (entry(shape="[-2]"), "shape with -2"),
    "shape with a float": (entry(shape="[2.0]"), "shape with 2.0"),
    "shape with an exponent": (entry(shape="[2e0]"), "shape with 2.0"),
    "shape with a bool": (entry(shape="[2,true]"), "shape with True"),
    "shape with a string": (entry(shape='["2"]'), "shape with '2'"),
    "shape with minus zero": (entry(shape="[-0]", offsets="[0,0]"), "shape with -0.0"),
    "shape with 2^64": (entry(shape="[0,18446744073709551616]", offsets="[0,0]"), "shape with 18446744073709551616"),
    "offsets null": (entry(offsets="null"), "not a pair"),
    "offsets three": (entry(offsets="[0,2,2]"), "not a pair"),
    "offsets one": (entry(offsets="[0]"), "not a pair"),
    "offsets floats": (entry(offsets="[0.0,2.0]"), "not unsigned"),
    "offsets bools": (entry(shape="[1]", offsets="[false,true]"), "not unsigned"),
    "offsets negative": (entry(offsets="[-1,1]"), "not unsigned"),
    "offsets beyond 2^64": (entry(offsets="[0,18446744073709551616]"), "not unsigned"),
    "offsets reversed": (entry(offsets="[2,0]"), r"data_offsets \[2, 0\]"),
    "offsets reversed after another": (b'{"a":["U8",[2],[0,2]],"b":["U8",[1],[2,0]]}', "offsets hold -2"),
    "hole at the start": (entry(shape="[1]", offsets="[1,2]"), r"data_offsets \[1, 2\]"),
    "hole between": (b'{"a":["U8",[0],[0,0]],"b":["U8",[1],[1,2]]}', "'b' has data_offsets"),
    "overlap": (b'{"a":["U8",[2],[0,2]],"b":["U8",[1],[1,2]]}', "'b' has data_offsets"),
    "the same range": (b'{"a":["U8",[2],[0,2]],"b":["U8",[2],[0,2]]}', "'b' has data_offsets"),
    "empty inside another": (b'{"a":["U8",[2],[0,2]],"b":["U8",[0],[1,1]]}', "'b' has data_offsets"),
    "empty beyond": (b'{"a":["U8",[2],[0,2]],"b":["U8",[0],[3,3]]}', "'b' has data_offsets"),
    "product overflows": (entry(shape="[4294967296,4294967296]"), "too large to count"),
    "product overflows before zero": (entry(shape="[1099511627776,1099511627776,0]", offsets="[0,0]"), "too large"),
    "bits overflow": (entry(dtype='"F64"', shape="[1152921504606846976]"), "too large to count"),
    "bytes of another shape": (entry(shape="[3]"), "3 bytes, and its data_offsets hold 2"),
    "F4 of odd count": (entry(dtype='"F4"', shape="[3]"), "no whole number of bytes"),
    "F6 of three": (entry(dtype='"F6_E2M3"', shape="[3]"), "no whole number of bytes"),
    "F4 counted as bytes": (entry(dtype='"F4"', shape="[1,2]"), "1 bytes, and its data_offsets hold 2"),
    "data cut short": (entry(shape="[3]", offsets="[0,3]"), "cut short"),
    "data left over": (entry(shape="[1]", offsets="[0,1]"), "1 more follow"),
    "no tensors and data": (b"{}", "2 more follow"),
    "a tebibyte": (entry(dtype='"F32"', shape="[1099511627776]", offsets="[0,4398046511104]"), "2 follow the header"),
}


@pytest.mark.parametrize(("header", "reason"), REJECTED.values(), ids=REJECTED)
def test_rejects_what_the_library_rejects(header: bytes, reason: str) -> None:
    """Each broken rule is an InvalidHeaderError that says which, and the library refuses the file too."""
    content = raw_file(header, b"\x01\x02")
    error = refused(content)
    assert error.__context__ is None  # it would keep the whole text alive
    assert len(str(error)) < 400
    assert not library_accepts(content)
    with pytest.raises(InvalidHeaderError, match=reason):
        header_of(memoryview(content), file="w.safetensors")


def test_refuses_a_dtype_written_as_an_object() -> None:
    """The one case in which the library is laxer."""
    content = raw_file(entry(dtype='{"U8":null}'), b"\x01\x02")
    assert library_accepts(content)
    assert refused(content).tensor == "a"


def test_error_names_the_tensor_and_survives_a_long_name() -> None:
    """`tensor` is the whole name, the message has only its ends; pickling keeps both."""
    name = "n" * 50_000
    error = refused(raw_file(json.dumps({name: {"dtype": "U9", "shape": [], "data_offsets": [0, 0]}}).encode()))
    assert error.tensor == name
    assert "unknown dtype 'U9'" in str(error)
    assert len(str(error)) < 300
    twin = pickle.loads(pickle.dumps(error))
    assert (twin.file, twin.tensor, str(twin)) == (error.file, error.tensor, str(error))


@pytest.mark.parametrize("nesting", [300, 600, 900, 950, 980, 1500])
def test_no_nesting_escapes_as_a_recursion_error(nesting: int) -> None:
    """Where the stack of the parser ends, our error begins, in every field."""
    deep = "[" * nesting + "]" * nesting
    for header in (entry(shape=deep), entry(offsets=deep), entry(dtype=deep), extra(deep), deep.encode()):
        refused(raw_file(header, b"\x01\x02"))


@pytest.mark.parametrize("bracket", ["[]", "{}"])
def test_megabytes_of_brackets_are_refused(bracket: str) -> None:
    """More than 250,000, and more than one in six characters: the library takes them."""
    few, many = (raw_file(extra(f"[{','.join([bracket] * count)}]"), b"\x01\x02") for count in (249_990, 250_000))
    assert header_of(memoryview(few), file="w.safetensors").tensors
    assert library_accepts(many)
    assert "more than 250,000 brackets" in refused(many).reason
    spaced = raw_file(extra(f"[{(',' + ' ' * 4).join([bracket] * 300_000)}]"), b"\x01\x02")
    assert header_of(memoryview(spaced), file="w.safetensors").tensors


def test_shortest_entries_are_no_bomb() -> None:
    """A writer of many tensors in the tersest form stays below the limit on brackets."""
    count = 200_000
    text = "{" + ",".join(f'"{n}":["U8",[],[{n},{n + 1}]]' for n in range(count)) + "}"
    raw = text.encode()
    assert len(parse_header(raw, file="w", file_size=8 + len(raw) + count).tensors) == count


JSON_WORDS = [
    "0",
    "1",
    "2",
    "3",
    "4",
    "8",
    "-0",
    "-1",
    "2.0",
    "1e400",
    "true",
    "null",
    "NaN",
    '"2"',
    '"U8"',
    '{"U8":0}',
]
JSON_WORDS += ["18446744073709551615", "18446744073709551616", "9" * 320, r'"\ud800"', r'"\u00e9"', "[]", "{}", "[0,2]"]
JSON_WORDS += ["[" * 125 + "]" * 125, "[" * 126 + "]" * 126]
NAME_WORDS = ['"a"', '"b"', '""', r'"\ud83d\ude00"', r'"\u0061"', r'"\udc00"', '"__metadata__"', '"é"', r'"a\/"']
FIELDS = ["dtype", "shape", "data_offsets"]

Entries = list[tuple[str, list[tuple[str, str]]]]


@st.composite
def sound_entries(draw: st.DrawFn) -> tuple[Entries, int]:
    """Up to four tensors as (name, fields), all in JSON, and the bytes of their data."""
    entries: Entries = []
    end = 0
    for name in NAME_WORDS[: draw(st.integers(0, 4))]:
        dtype, shape = draw(st.sampled_from(list(DTYPES))), draw(st.lists(st.integers(0, 4), max_size=3))
        shape += [4] * DTYPES[dtype].packed
        begin, end = end, end + math.prod(shape) * DTYPES[dtype].bits // 8
        values = f'"{dtype}"', json.dumps(shape), f"[{begin},{end}]"
        entries.append((name, list(zip(FIELDS, values, strict=True))))
    return entries, end


def damage(draw: st.DrawFn, entries: Entries) -> None:
    """One change to one entry; not all of them are faults."""
    place = draw(st.integers(0, len(entries) - 1))
    name, fields = entries[place]
    word = st.sampled_from(JSON_WORDS)
    spot = draw(st.integers(0, max(0, len(fields) - 1)))
    match draw(st.sampled_from(["value", "pair", "extra", "drop", "twice", "name", "again", "reverse"])):
        case "value" if fields:
            fields[spot] = fields[spot][0], draw(word)
        case "pair" if fields:
            fields[spot] = fields[spot][0], f"[{draw(word)},{draw(word)}]"
        case "extra":
            fields.insert(spot, (draw(st.sampled_from("xy")), draw(word)))
        case "drop" if fields:
            del fields[spot]
        case "twice" if fields:
            fields.append(fields[spot])
        case "name":
            entries[place] = draw(st.sampled_from(NAME_WORDS)), fields
        case "again":
            entries.insert(draw(st.integers(0, len(entries))), (name, list(fields)))
        case "reverse":
            fields.reverse()


@st.composite
def hostile_files(draw: st.DrawFn) -> bytes:
    """A file that is right in most places: real tensors, and a few faults in entries, order, text or size."""
    entries, size = draw(sound_entries())
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2])) if entries else 0):
        damage(draw, entries)
    members = []
    for name, fields in draw(st.permutations(entries)):
        if draw(st.integers(0, 9)) == 9:
            members.append(f"{name}:[{','.join(value for _, value in fields)}]")
        else:
            members.append(f"{name}:{{" + ",".join(f'"{key}":{value}' for key, value in fields) + "}")
    if draw(st.booleans()):
        members.insert(0, '"__metadata__":' + draw(st.sampled_from(['{"k":"v"}', "{}", "null", "null", '{"k":1}'])))
    before, after = (
        draw(st.sampled_from(["", "", "", "", " ", "\n", "\x0b"])),
        draw(st.sampled_from(["", "", "", "", "", "  ", "\0", "x"])),
    )
    size = max(0, size + draw(st.sampled_from([0] * 18 + [-1, 1])))
    text = f"{before}{{{','.join(members)}}}{after}"
    return raw_file(text.encode(), bytes(position % 251 for position in range(size)))


@settings(max_examples=300, deadline=None)
@given(hostile_files())
def test_agrees_with_the_library(content: bytes) -> None:
    """The same files are accepted, with the same names, dtypes, shapes and bytes."""
    try:
        theirs = {name: (t["dtype"], t["shape"], bytes(t["data"])) for name, t in deserialize(content)}
    except SafetensorError:
        refused(content)
        return
    header = header_of(memoryview(content), file="w.safetensors")
    assert {
        name: (info.dtype, list(info.shape), content[header.data_start + info.begin : header.data_start + info.end])
        for name, info in header.tensors.items()
    } == theirs
    for name, info in header.tensors.items():
        if max(info.shape, default=0) < 1 << 40:
            assert tensor_view(content, info, header.data_start).tobytes() == theirs[name][2]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_agrees_with_the_library_on_damaged_files(data: st.DataObject) -> None:
    """One byte changed, or the end cut off, anywhere: both accept or both refuse."""
    content = bytearray(safetensors_bytes({"x": np.arange(3, dtype="<i2"), "é": np.array(2, "<f4")}, {"k": "v"}))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    damaged = bytes(content[: data.draw(st.sampled_from([len(content), position]))])
    try:
        header_of(memoryview(damaged), file="w.safetensors")
        ours = True
    except InvalidHeaderError:
        ours = False
    assert ours == library_accepts(damaged)


def test_metadata_is_what_the_library_reads(tmp_path: Path) -> None:
    """Keys and values come through, the last of two equal keys among them."""
    content = raw_file('{"__metadata__":{"format":"pt","ü":"é\\n","k":"1","k":"2"}}'.encode())
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with safe_open(path, "np") as file:
        assert header_of(memoryview(content), file="w").metadata == file.metadata()
    assert header_of(memoryview(raw_file(b"{}")), file="w").metadata == {}


def test_tensors_are_in_the_order_of_the_data() -> None:
    """Whatever the order of the JSON; of tensors at one place the empty one is first."""
    header = b'{"z":["U8",[1],[1,2]],"m":["U8",[0],[2,2]],"e":["U8",[0],[1,1]],"a":["U8",[1],[0,1]]}'
    content = raw_file(header, b"\x01\x02")
    parsed = header_of(memoryview(content), file="w.safetensors")
    assert list(parsed.tensors) == ["a", "e", "z", "m"]
    assert parsed.tensors["z"] == TensorInfo("U8", (1,), 1, 2)
    assert parsed.tensors["z"].nbytes == 1
    assert (parsed.data_start, parsed.file_size) == (8 + len(header), len(content))


def test_file_with_less_than_its_header_is_refused() -> None:
    """A header longer than the file it is said to come from cannot have data."""
    with pytest.raises(InvalidHeaderError, match="2 bytes, and 0 follow"):
        parse_header(entry(), file="w.safetensors", file_size=20)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\x02\0\0\0\0\0\0", "it has 7 bytes"),
        (bytes(8), "header is empty"),
        (raw_file(b"{}", length=3), "header of 3 bytes, and 2 follow.*cut short"),
        (raw_file(b"{}", length=MAX_HEADER_BYTES + 1), "100,000,001 bytes, and the format allows 100,000,000"),
        (raw_file(b"{}", length=1 << 63), "9,223,372,036,854,775,808"),
        (raw_file(b"{}", length=(1 << 64) - 1), "18,446,744,073,709,551,615"),
    ],
)
def test_length_of_the_header(content: bytes, reason: str) -> None:
    """Every length that the file cannot hold is refused before anything is read."""
    with pytest.raises(InvalidHeaderError, match=reason):
        header_length(content, file="w.safetensors", file_size=len(content))
    assert not library_accepts(content)


def test_longest_legal_header() -> None:
    """100,000,000 bytes exactly are legal, of a file that holds them."""
    prefix = struct.pack("<Q", MAX_HEADER_BYTES)
    assert header_length(prefix, file="w", file_size=8 + MAX_HEADER_BYTES) == MAX_HEADER_BYTES
    with pytest.raises(InvalidHeaderError):
        header_length(prefix, file="w", file_size=7 + MAX_HEADER_BYTES)
    with pytest.raises(InvalidHeaderError):
        header_length(struct.pack("<Q", MAX_HEADER_BYTES + 1), file="w", file_size=1 << 40)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "LFS pointer"),
        (b"version ", "LFS pointer"),
        (b"<!DOCTYPE html><title>Sign in</title>", "HTML"),
        (b"\n\n <html><body>", "HTML"),
        (b'<?xml version="1.0"?><Error>AccessDenied', "XML"),
        (b'{"error":"Repository not found"}', "JSON"),
        (b'{\n  "weight_map": {', "JSON"),
        (b"<<<<<<< HEAD\n", "merge conflict"),
        (b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0", "zip archive"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
        (b"\x80\x04\x95\x1b\0\0\x01\0\0\0\0}", "pickle"),
        (b"GGUF\x03\0\0\0\x01\x02", "GGUF"),
        (b"\x93NUMPY\x01\0v\0{'descr'", "npy"),
        (b"\x89HDF\r\n\x1a\n\0\0", "HDF5"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip"),
        (b"\x28\xb5\x2f\xfd\x04\x58\x11\x02\x03", "zstd"),
        (b"Internal Server Error", "plain text"),
        (bytes(4096), "zeros"),
    ],
)
def test_hint_names_what_the_file_is_instead(content: bytes, cause: str) -> None:
    """A file of another kind under the name of a shard is recognized from its first bytes."""
    with pytest.raises(InvalidHeaderError) as caught:
        header_length(content, file="w.safetensors", file_size=len(content))
    assert cause in caught.value.hint


@pytest.mark.parametrize("length", [0x7B, 0x3C, 0x227B, 0x213C, 0x0280, 0x8B1F])
def test_length_that_begins_like_another_format_is_taken_for_a_length(length: int) -> None:
    """A cut file is not called HTML, JSON or a pickle for the lowest byte of its length."""
    with pytest.raises(InvalidHeaderError) as caught:
        header_length(raw_file(b'{"a"', length=length), file="w.safetensors", file_size=12)
    assert "cut short" in caught.value.hint


def test_many_tensors_in_reasonable_time() -> None:
    """100,000 tensors, out of order, are no quadratic work: seconds on any machine."""
    count = 100_000
    entries = (f'"t{i}":{{"dtype":"BF16","shape":[2,2],"data_offsets":[{8 * i},{8 * i + 8}]}}' for i in range(count))
    raw = ("{" + ",".join(reversed(list(entries))) + "}").encode()
    start = time.perf_counter()
    header = parse_header(raw, file="w", file_size=8 + len(raw) + 8 * count)
    assert time.perf_counter() - start < 10
    assert next(iter(header.tensors)) == "t0"


# dtypes and arrays


def test_the_22_dtypes() -> None:
    """Each dtype has the item size of its bits, packed ones a byte, and the library knows the same names."""
    assert len(DTYPES) == 22
    for name, dtype in DTYPES.items():
        assert dtype.name == name
        assert dtype.numpy.itemsize == max(1, dtype.bits // 8)
        assert dtype.packed == (name in ("F4", "F6_E2M3", "F6_E3M2"))
        size = 3 * dtype.bits
        assert library_accepts(safetensors_bytes({"x": (name, (24,), bytes(size))}))
    assert {DTYPES[name].numpy for name in NAMES.values()} == set(NAMES)


@pytest.mark.parametrize(
    ("dtype", "raw", "value"),
    [
        ("BOOL", "01", True),
        ("U16", "0102", 0x0201),
        ("I32", "feffffff", -2),
        ("U64", "ffffffffffffffff", (1 << 64) - 1),
        ("F16", "003c", 1.0),
        ("F32", "0000803f", 1.0),
        ("F64", "000000000000f03f", 1.0),
        ("C64", "0000803f00000040", 1 + 2j),
        ("BF16", "803f", 1.0),
        ("F8_E4M3", "7e", 448.0),
        ("F8_E5M2", "7b", 57344.0),
        ("F8_E4M3FNUZ", "40", 1.0),
        ("F8_E5M2FNUZ", "40", 1.0),
        ("F8_E8M0", "7f", 1.0),
    ],
)
def test_values_of_each_dtype(dtype: str, raw: str, value: object) -> None:
    """The bytes of the format mean the value that its dtype gives them, in a 0-d array."""
    content = safetensors_bytes({"x": (dtype, (), bytes.fromhex(raw))})
    header = header_of(memoryview(content), file="w")
    array = tensor_view(content, header.tensors["x"], header.data_start)
    assert array.shape == ()
    assert array.dtype == DTYPES[dtype].numpy
    assert array == np.array(value).astype(array.dtype)


def test_view_shares_the_buffer() -> None:
    """A write through the array is seen in the buffer; bytes give a read-only array."""
    tensors = {"x": np.arange(6, dtype="<f4").reshape(2, 3), "y": np.arange(4, dtype="<i8")}
    content = bytearray(safetensors_bytes(tensors))
    header = header_of(memoryview(content), file="w")
    for name, expected in tensors.items():
        view = tensor_view(content, header.tensors[name], header.data_start)
        np.testing.assert_array_equal(view, expected)
        assert np.shares_memory(view, np.frombuffer(content, np.uint8))
        view[...] = 7
        assert tensor_view(bytes(content), header.tensors[name], header.data_start).max() == 7
    view = tensor_view(bytes(content), header.tensors["x"], header.data_start)
    assert not view.flags.writeable


def test_view_of_a_map_is_a_plain_array(tmp_path: Path) -> None:
    """A private map gives writable arrays that leave the file alone and keep the map alive."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors_bytes({"x": np.arange(6, dtype="<f4")}))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    header = header_of(mapped, file="w")
    view = tensor_view(mapped, header.tensors["x"], header.data_start)
    del mapped
    view += 1
    assert type(view) is np.ndarray
    np.testing.assert_array_equal(view, np.arange(1, 7))
    assert path.read_bytes() == safetensors_bytes({"x": np.arange(6, dtype="<f4")})


@pytest.mark.parametrize(("dtype", "offset"), [("F32", 2), ("BF16", 1), ("F64", 4), ("C64", 4), ("I16", 3)])
def test_misaligned_tensor_is_copied(dtype: str, offset: int) -> None:
    """By its address, not by its offset in the file: C64 needs 8 though numpy would be content with 4."""
    itemsize = DTYPES[dtype].numpy.itemsize
    raw = bytes(range(1, 2 * itemsize + 1))
    aligned = np.zeros(64, np.uint8)
    assert aligned.ctypes.data % 16 == 0
    aligned[offset : offset + len(raw)] = np.frombuffer(raw, np.uint8)
    array = tensor_view(aligned, TensorInfo(dtype, (2,), 0, len(raw)), offset)
    assert array.tobytes() == raw
    assert array.ctypes.data % itemsize == 0
    assert not np.shares_memory(array, aligned)
    assert array.flags.writeable
    shifted = np.zeros(64, np.uint8)[16 - offset :]  # now the same offset is aligned
    assert np.shares_memory(tensor_view(shifted, TensorInfo(dtype, (2,), 0, len(raw)), offset), shifted)


def test_misaligned_bytes_stay_a_view() -> None:
    """One-byte elements need no alignment."""
    buffer = np.zeros(16, np.uint8)
    for dtype in ("U8", "BOOL", "F8_E4M3"):
        assert np.shares_memory(tensor_view(buffer, TensorInfo(dtype, (3,), 0, 3), 5), buffer)


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (0, 1 << 20, 1 << 20)])
def test_empty_tensors(shape: tuple[int, ...]) -> None:
    """They have their shape and dtype, even at the very end of the buffer and of an empty buffer."""
    for buffer, end in ((b"abc", 3), (b"", 0)):
        array = tensor_view(buffer, TensorInfo("BF16", shape, end, end), 0)
        assert (array.shape, array.dtype) == (shape, ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("shape", "nbytes", "reason"),
    [((1,) * 65, 4, "65"), ((0, 1 << 62), 0, "too big"), ((0, 1 << 63), 0, "dimension"), ((2,), 8, "fit")],
)
def test_shapes_that_numpy_cannot_hold(shape: tuple[int, ...], nbytes: int, reason: str) -> None:
    """Legal in the format, so the header is read; the array is an error that names file and tensor."""
    info = TensorInfo("F32", shape, 0, nbytes)
    with pytest.raises(InvalidHeaderError, match=reason) as caught:
        tensor_view(bytearray(4), info, 0, file="w.safetensors", tensor="x")
    assert (caught.value.file, caught.value.tensor) == ("w.safetensors", "x")
    assert len(str(caught.value)) < 300


def test_big_endian_hosts_swap_bf16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy knows the byte order of its own dtypes; those of ml_dtypes are in the order of the host."""
    monkeypatch.setattr(arrays_module, "_BIG_ENDIAN", True)
    assert tensor_view(b"\x01\x02", TensorInfo("BF16", (1,), 0, 2), 0).tobytes() == b"\x02\x01"
    assert tensor_view(b"\x01\x02", TensorInfo("U16", (1,), 0, 2), 0).tobytes() == b"\x01\x02"
    assert tensor_view(b"\x01\x02", TensorInfo("F8_E4M3", (2,), 0, 2), 0).tobytes() == b"\x01\x02"
    native = {dtype.numpy.str[0] for name, dtype in DTYPES.items() if dtype.bits > 8 and name != "BF16"}
    assert native == {"<"}


def packed(dtype: str, shape: tuple[int, ...], raw: bytes) -> PackedArray:
    """The packed tensor that a file of it gives."""
    content = bytearray(safetensors_bytes({"x": (dtype, shape, raw)}))
    header = header_of(memoryview(content), file="w")
    array = tensor_view(content, header.tensors["x"], header.data_start)
    assert isinstance(array, PackedArray)
    assert np.shares_memory(array, np.frombuffer(content, np.uint8)) or not raw
    return array


def test_packed_tensor_is_its_bytes() -> None:
    """uint8 in one dimension; the dtype and the shape of the elements are at hand."""
    array = packed("F4", (3, 2), b"\x21\x43\x65")
    assert (array.shape, array.dtype, array.tobytes()) == ((3,), np.uint8, b"\x21\x43\x65")
    assert (array.safetensors_dtype, array.logical_shape) == ("F4", (3, 2))


def test_f4_unpacks_the_low_nibble_first() -> None:
    """Codes 0 to 7 of E2M1 are 0, 0.5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign."""
    elements = packed("F4", (2, 4), b"\x10\x32\x54\xf6").unpack()
    assert elements.dtype == ml_dtypes.float4_e2m1fn
    assert elements.astype(np.float32).tolist() == [[0, 0.5, 1, 1.5], [2, 3, 4, -6]]


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_unpacking_is_a_little_endian_bit_stream(dtype: str) -> None:
    """Element i is bits [i*bits, (i+1)*bits) of the bytes as one number, for random bytes."""
    bits = DTYPES[dtype].bits
    raw = np.random.default_rng(7).bytes(3 * bits)
    number = int.from_bytes(raw, "little")
    codes = [(number >> (bits * i)) & ((1 << bits) - 1) for i in range(24)]
    elements = packed(dtype, (4, 6), raw).unpack()
    assert elements.shape == (4, 6)
    assert elements.dtype == DTYPES[dtype].numpy
    assert elements.view(np.uint8).ravel().tolist() == codes


@pytest.mark.parametrize(("dtype", "raw", "value"), [("F6_E2M3", 0b011111, 7.5), ("F6_E3M2", 0b011111, 28.0)])
def test_largest_f6(dtype: str, raw: int, value: float) -> None:
    """The two kinds of F6 are not exchanged."""
    elements = packed(dtype, (4,), raw.to_bytes(3, "little")).unpack()
    assert elements.astype(np.float32).tolist() == [value, 0, 0, 0]


def test_part_of_a_packed_tensor_cannot_be_unpacked() -> None:
    """A slice, a permutation or a sum has lost what its bytes mean, and says so."""
    array = packed("F4", (2, 4), b"\x10\x32\x54\xf6")
    for part in (array[:2], array[::-1], array[[1, 0, 2, 3]], array + 1, array.view(), array.reshape(2, 2)):
        with pytest.raises(SourceError, match="cannot be unpacked"):
            part.unpack()
    assert array.logical_shape == (2, 4)


def test_copies_of_a_packed_tensor_can_be_unpacked() -> None:
    """copy, copy.copy, copy.deepcopy and pickle keep the dtype and the shape."""
    array = packed("F6_E3M2", (2, 2), b"\x10\x32\x54")
    twins = [array.copy(), copy.copy(array), copy.deepcopy(array)]
    twins += [pickle.loads(pickle.dumps(array, protocol)) for protocol in (2, 5)]
    for twin in twins:
        assert not np.shares_memory(twin, array)
        np.testing.assert_array_equal(twin.unpack(), array.unpack())


def test_packed_tensors_without_elements_or_with_too_many_dimensions() -> None:
    """An empty one unpacks to an empty array; what numpy cannot hold stays bytes."""
    assert packed("F4", (0, 3), b"").unpack().shape == (0, 3)
    with pytest.raises(SourceError, match="65"):
        packed("F4", (1,) * 64 + (2,), b"\x21").unpack()


def test_byte_order_of_this_host() -> None:
    """The switch for big-endian hosts follows the interpreter."""
    assert arrays_module._BIG_ENDIAN is (sys.byteorder == "big")
