"""Indexes as hostile input, the names of shards, and the selection of tensors."""

from __future__ import annotations

import json
import pickle
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import quote, urljoin, urlsplit

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asyncfetch.errors import InvalidIndexError, SelectionError, SourceError
from asyncfetch.format.header import header_of
from asyncfetch.format.index import Index, check_shard_name, parse_index, select_tensors, selector

from ..kit.files import index_bytes, sharded_bytes

FILE = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def parse(raw: bytes, *, max_bytes: int = 1 << 24, max_shards: int = 10_000) -> Index:
    """The index of `raw`."""
    return parse_index(raw, file=FILE, max_bytes=max_bytes, max_shards=max_shards)


def test_reads_what_a_writer_writes() -> None:
    """Tensors, shards in the order of their first tensor, metadata, and the size that is claimed."""
    tensors = {f"layers.{i}.weight": np.full((2, 2), i, "<f4") for i in range(7)}
    files = sharded_bytes(tensors, 3)
    index = parse(files[FILE])
    assert index.file == FILE
    assert list(index.weight_map) == list(tensors)
    assert index.shards == tuple(name for name in files if name != FILE)
    assert index.total_size == 7 * 16
    assert index.metadata == {"total_size": 112}
    for shard in index.shards:
        assert index.tensors_of(shard) == list(header_of(memoryview(files[shard]), file=shard).tensors)
    assert index.tensors_of("other.safetensors") == []
    assert pickle.loads(pickle.dumps(index)) == index


def test_shards_are_in_the_order_of_appearance() -> None:
    """Not sorted, and each once."""
    index = parse(index_bytes({"a": TWO, "b": ONE, "c": TWO}))
    assert index.shards == (TWO, ONE)
    assert index.tensors_of(TWO) == ["a", "c"]


def test_callers_cannot_change_the_index_through_a_list() -> None:
    """`tensors_of` gives a list of its own each time."""
    index = parse(index_bytes({"a": ONE}))
    index.tensors_of(ONE).clear()
    assert index.tensors_of(ONE) == ["a"]


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbf" + index_bytes({"a": ONE}),
        index_bytes({"a": ONE}).replace(b"\n", b"\r\n"),
        b'\n\t{"weight_map":{"a":"' + ONE.encode() + b'"}}\n\n',
        f'{{"_note":[{{}}],"weight_map":{{"a":"{ONE}"}},"metadata":{{}}}}'.encode(),
        f'{{"weight_map":{{"a":"{ONE}","a":"{ONE}"}}}}'.encode(),
        f'{{"metadata":NULL,"weight_map":{{"a":"{ONE}"}}}}'.replace("NULL", "null").encode(),
    ],
    ids=["byte-order mark", "CRLF", "whitespace", "unknown key", "tensor twice, same shard", "metadata null"],
)
def test_accepts(raw: bytes) -> None:
    """What is unusual and does no harm."""
    index = parse(raw)
    assert index.weight_map == {"a": ONE}
    assert index.metadata == {}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (bytes(64), "begins with zeros"),
        (b"\xef\xbb\xbf\xef\xbb\xbf" + index_bytes({"a": ONE}), "not JSON"),
        (index_bytes({"a": ONE}).decode().encode("utf-16"), "not UTF-8"),
        (b'{"weight_map":{"\xe9":"x.safetensors"}}', "not UTF-8 at byte 16"),
        (index_bytes({"a": ONE})[:-9], "not JSON"),
        (index_bytes({"a": ONE}) * 2, "Extra data"),
        (b"// a comment\n" + index_bytes({"a": ONE}), "not JSON"),
        (b"<<<<<<< HEAD\n" + index_bytes({"a": ONE}), "merge conflict"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "LFS pointer"),
        (b"<!DOCTYPE html>\n<html>", "HTML"),
        (b"Entry not found", "plain text"),
        (index_bytes({"a": ONE}, {"total_size": float("nan")}), "no NaN"),
        (index_bytes({"a": ONE}, {"total_size": float("-inf")}), "no -Infinity"),
        (b'{"x":' + b"9" * 5000 + b"}", "thousands of digits"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"x":' + b'{"x":' * 100_000, "nested too deeply"),
        (b'{"weight_map":{"\\ud800":"x.safetensors"}}', "surrogate"),
        (b"[]", "not a JSON object"),
        (b'"weight_map"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "no weight_map"),
        (b'{"metadata":{"weight_map":{}}}', "no weight_map"),
        (b'{"weight_map":{"a":"x.safetensors"},"weight_map":{"a":"x.safetensors"}}', "more than one weight_map"),
        (index_bytes(None), "weight_map is not an object"),
        (index_bytes([["a", ONE]]), "weight_map is not an object"),
        (index_bytes({}), "names no tensors"),
        (index_bytes({"__metadata__": ONE}), "lists __metadata__ as a tensor"),
        (f'{{"weight_map":{{"a":"{ONE}","a":"{TWO}"}}}}'.encode(), "'a' in two shards"),
        (index_bytes({"a": "x/Model.safetensors", "b": "x/model.safetensors"}), "case does not count"),
        (index_bytes({"a": "Straße.safetensors", "b": "STRASSE.safetensors"}), "case does not count"),
        (index_bytes({"a": "\u00fc.safetensors", "b": "u\u0308.safetensors"}), "case does not count"),
        (index_bytes({"a": "x.safetensors", "b": "x.safetensors/y/z.safetensors"}), "also the folder"),
        (index_bytes({"a": "X.safetensors/y.safetensors", "b": "x.safetensors"}), "also the folder"),
    ],
)
def test_rejects(raw: bytes, reason: str) -> None:
    """Each is an InvalidIndexError that says what is wrong, and keeps no text alive."""
    with pytest.raises(InvalidIndexError, match=reason) as caught:
        parse(raw)
    assert caught.value.file == FILE
    assert caught.value.__context__ is None
    assert len(str(caught.value)) < 400


def test_limits_on_bytes_and_shards() -> None:
    """Exactly the limit passes, one more does not."""
    raw = index_bytes({str(i): f"{i}.safetensors" for i in range(20)})
    assert len(parse(raw, max_bytes=len(raw), max_shards=20).shards) == 20
    with pytest.raises(InvalidIndexError, match=r"Policy\.max_index_bytes"):
        parse(raw, max_bytes=len(raw) - 1)
    with pytest.raises(InvalidIndexError, match="more than 19 shards"):
        parse(raw, max_shards=19)


@pytest.mark.parametrize(
    ("claim", "total_size"),
    [
        ("55562855904", 55562855904),
        ("55562855904.0", 55562855904),
        ("3.2e1", 32),
        ("0", 0),
        ("1" + "0" * 400, 10**400),
        ("1e400", None),
        ("-1", None),
        ("-0.5", 0),
        ("null", None),
        ("true", None),
        ('"32"', None),
        ("[32]", None),
        ("{}", None),
    ],
)
def test_total_size_is_a_hint(claim: str, total_size: int | None) -> None:
    """Whatever it is, the index is read."""
    index = parse(f'{{"metadata":{{"total_size":{claim}}},"weight_map":{{"a":"{ONE}"}}}}'.encode())
    assert index.total_size == total_size


@pytest.mark.parametrize("metadata", [[], [{"total_size": 1}], "text", 7, True])
def test_metadata_of_another_kind_is_ignored(metadata: object) -> None:
    """Nothing in it is needed."""
    index = parse(index_bytes({"a": ONE}, metadata))
    assert index.metadata == {}
    assert index.total_size is None


def test_metadata_comes_through() -> None:
    """Nested objects are dicts, lists are lists."""
    metadata = {"total_size": 8, "head.weight": "emb.weight", "more": [{"x": [1, {}]}, None, 1.5, True]}
    assert parse(index_bytes({"a": ONE}, metadata)).metadata == metadata


@pytest.mark.parametrize("nesting", [100, 400, 700, 900, 950, 980])
def test_nested_metadata_is_no_recursion_error(nesting: int) -> None:
    """It is kept, or dropped where the stack ends, or the index is refused; nothing else gets out."""
    raw = f'{{"metadata":{{"x":{"[" * nesting}{"]" * nesting}}},"weight_map":{{"a":"{ONE}"}}}}'.encode()
    try:
        outcome = str(parse(raw).weight_map)
    except InvalidIndexError as error:
        outcome = error.reason
    assert outcome in ([str({"a": ONE}), "it is nested too deeply"][: 1 + (nesting > 800)])


GOOD_NAMES = [
    "model.safetensors",
    "0.safetensors",
    "model-00001-of-000034.safetensors",
    "model.fp16-00001-of-00002.safetensors",
    "sub/x.safetensors",
    "a/b/c/x.safetensors",
    "q?x=1#f.safetensors",
    "pct%20.safetensors",
    "%2e%2e/x.safetensors",
    "space name.safetensors",
    "ünï.safetensors",
    "重み.safetensors",
    "..x.safetensors",
    ".hidden.safetensors",
    "console.safetensors",
    "com10.safetensors",
    "con-fig/x.safetensors",
    "x.bin.safetensors",
    "@[]!$&'()*+,;=~.safetensors",
    "n" * 243 + ".safetensors",
]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_good_shard_names(name: str) -> None:
    """Whatever percent-encoding can carry and every file system can hold."""
    assert check_shard_name(name, file=FILE, tensor="a") == name
    assert parse(index_bytes({"a": name})).shards == (name,)


BAD_NAMES = [
    (None, "not a string"),
    (1, "not a string"),
    (True, "not a string"),
    (["x.safetensors"], "not a string"),
    ({"x": "x.safetensors"}, "not a string"),
    ("", "is empty"),
    ("/etc/passwd", "absolute"),
    ("/x.safetensors", "absolute"),
    ("//host/x.safetensors", "absolute"),
    ("C:\\x.safetensors", "backslash or a colon"),
    ("C:/x.safetensors", "backslash or a colon"),
    ("c:x.safetensors", "backslash or a colon"),
    ("\\\\host\\share\\x.safetensors", "backslash or a colon"),
    ("..\\x.safetensors", "backslash or a colon"),
    ("https://host/x.safetensors", "backslash or a colon"),
    ("file:x.safetensors", "backslash or a colon"),
    ("x.txt:y.safetensors", "backslash or a colon"),
    (".", "segment '.'"),
    ("..", "segment '..'"),
    ("../x.safetensors", "segment '..'"),
    ("../../x.safetensors", "segment '..'"),
    ("a/../x.safetensors", "segment '..'"),
    ("./x.safetensors", "segment '.'"),
    ("a//x.safetensors", "segment ''"),
    ("x.safetensors/", "segment ''"),
    ("x\0.safetensors", "control"),
    ("x\n.safetensors", "control"),
    ("x\r\nHost: evil.safetensors", "control"),
    ("x\x7f.safetensors", "control"),
    ("x\x85.safetensors", "control"),
    ("x\u2028.safetensors", "control"),
    ("x\u202e.safetensors", "format"),
    ("x\ud800.safetensors", "surrogate"),
    ("n" * 244 + ".safetensors", "255 bytes"),
    ("ü" * 122 + ".safetensors", "255 bytes"),
    ("n" * 256 + "/x.safetensors", "255 bytes"),
    ("/".join(["n" * 250] * 5) + ".safetensors", "1,024 bytes"),
    ("x.safetensors.", "ends in a dot"),
    ("x.safetensors ", "ends in a dot or a space"),
    ("a./x.safetensors", "ends in a dot"),
    ("a /x.safetensors", "ends in a dot or a space"),
    ("...", "ends in a dot"),
    ("CON.safetensors", "device"),
    ("nul.safetensors", "device"),
    ("aux/x.safetensors", "device"),
    ("Com1.x.safetensors", "device"),
    ("LPT³.safetensors", "device"),
    ("CON .safetensors", "device"),
    ("conin$.safetensors", "device"),
    ("pytorch_model-00001-of-00002.bin", "a pickle"),
    ("model.pt", "a pickle"),
    ("model.PTH", "a pickle"),
    ("model.ckpt", "a pickle"),
    ("model.pkl", "a pickle"),
    ("model.gguf", "does not end in .safetensors"),
    ("model.SAFETENSORS", "does not end in .safetensors"),
    ("model_safetensors", "does not end in .safetensors"),
    ("model", "does not end in .safetensors"),
]


@pytest.mark.parametrize(("name", "reason"), BAD_NAMES)
def test_bad_shard_names(name: object, reason: str) -> None:
    """Each is refused with its tensor, before it becomes a path or a URL."""
    with pytest.raises(InvalidIndexError, match=reason) as caught:
        check_shard_name(name, file=FILE, tensor="the tensor")
    assert caught.value.tensor == "the tensor"
    assert "the tensor" in str(caught.value)
    assert len(str(caught.value)) < 400
    with pytest.raises(InvalidIndexError):
        parse(index_bytes({"a": ONE, "b": name, "c": TWO}))


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", "..", ".", "/", "\\", ":", "%2e", "?", "#", "C", "con", "ü", " ", "\n", "//"]) | st.text()
    )
    .map("".join)
    .map(lambda stem: stem + ".safetensors")
)
@example("//host/x.safetensors")
def test_accepted_names_stay_in_their_folder(name: str) -> None:
    """As a POSIX path, as a Windows path and as a URL."""
    try:
        check_shard_name(name, file=FILE, tensor="a")
    except InvalidIndexError:
        return
    base = "https://host/org/model/resolve/main/"
    url = urlsplit(urljoin(base, quote(name)))
    assert url.netloc == "host"
    assert not url.query
    assert not url.fragment
    assert url.path == "/org/model/resolve/main/" + quote(name)
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        assert not path.anchor
        assert ".." not in path.parts
        assert str(path).replace("\\", "/") == name


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_index_is_read_or_refused(data: st.DataObject) -> None:
    """No other exception, whatever single byte is changed or wherever it ends."""
    raw = bytearray(index_bytes({"a": ONE, "b\u00e9": TWO, "\U0001f600": ONE}, {"total_size": 12, "x": [1.5, None]}))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] = data.draw(st.integers(0, 255))
    try:
        index = parse(bytes(raw[: data.draw(st.sampled_from([len(raw), position]))]))
    except InvalidIndexError:
        return
    assert sum(len(index.tensors_of(shard)) for shard in index.shards) == len(index.weight_map) <= 3


NAMES = ["model.embed.weight", "model.layers.0.mlp.weight", "model.layers.10.mlp.bias", "odd[0].weight", "Model.x", ""]


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (None, NAMES),
        ("*", NAMES),
        ("model.*", NAMES[:3]),
        ("model.layers.?.*", [NAMES[1]]),
        ("*.weight", [NAMES[0], NAMES[1], NAMES[3]]),
        ("model.layers.[0-9].mlp.weight", [NAMES[1]]),
        ("odd[0].weight", [NAMES[3]]),
        ("model.embed.weight", [NAMES[0]]),
        ("model", []),
        ("model.embed.weight\n", []),
        ("", [""]),
        ([], []),
        (["*.bias", "Model.x"], [NAMES[2], NAMES[4]]),
        ({"*.bias", "*embed*"}, [NAMES[0], NAMES[2]]),
        ((pattern for pattern in ["*.bias"]), [NAMES[2]]),
        (lambda name: name.endswith("x"), ["Model.x"]),
    ],
)
def test_selector(select: object, expected: list[str]) -> None:
    """A glob with case and over the whole name, any of several, or a predicate."""
    chosen = selector(select)  # type: ignore[arg-type]
    for _ in range(2):  # an iterator is not used up
        assert [name for name in NAMES if chosen(name)] == expected


@pytest.mark.parametrize("select", [b"model.*", b"", 7, 1.5, True, [b"x"], ["a", None], [["a"]]])
def test_selector_of_a_wrong_type(select: object) -> None:
    """Said at once, not at the first tensor."""
    with pytest.raises(SourceError, match="select must"):
        selector(select)  # type: ignore[arg-type]


def test_select_tensors_narrows_the_index() -> None:
    """Only the shards that hold a selected tensor are left; the rest of the index stays."""
    index = parse(index_bytes({"a.w": ONE, "b.w": TWO, "a.b": TWO}, {"total_size": 9}))
    narrowed = select_tensors(index, "*.w")
    assert narrowed.weight_map == {"a.w": ONE, "b.w": TWO}
    assert narrowed.tensors_of(TWO) == ["b.w"]
    assert select_tensors(index, "a.w").shards == (ONE,)
    assert narrowed.metadata == index.metadata
    assert select_tensors(index, None) is index
    assert len(index.weight_map) == 3


def test_select_tensors_that_matches_nothing() -> None:
    """The error counts the tensors and shows some of them."""
    index = parse(index_bytes({f"t{i}": ONE for i in range(5)}))
    with pytest.raises(SelectionError, match=r"none of the 5 tensors .* 't0', 't1', 't2'"):
        select_tensors(index, "x*")


def test_many_shards_in_linear_time() -> None:
    """Every tensor of every shard of 100,000 and 10,000 is listed once, in seconds."""
    index = parse(json.dumps({"weight_map": {f"t{i}": f"{i % 10_000}.safetensors" for i in range(100_000)}}).encode())
    assert sum(len(index.tensors_of(shard)) for shard in index.shards) == 100_000
