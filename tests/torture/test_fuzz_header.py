"""Safetensors files from a grammar: asyncfetch and the safetensors library read the same, or both refuse."""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, deserialize, safe_open

from asyncfetch.errors import InvalidHeaderError
from asyncfetch.format import dtypes, header, hostile
from asyncfetch.format.arrays import tensor_view
from asyncfetch.format.header import header_of

from .fuzzing import TIMER, case_rng, first_failure, mutant, survey
from .header_grammar import header_case

Read = Callable[..., Any]
QUICK, WHOLE = 10_000, 600_000
FILE = "fuzzed.safetensors"
ON_DISK = 0.01  # the part of the cases that is also compared through a file


def entries_of(content: bytes) -> dict[str, Any]:
    """The entries as the json module of the standard library reads them, of a file that the library takes."""
    length = int.from_bytes(content[:8], "little")
    tree = json.loads(content[8 : 8 + length])
    tree.pop("__metadata__", None)
    return tree


def spelled_as_object(content: bytes, error: InvalidHeaderError) -> bool:
    """A dtype written `{"F32":null}`, as the decoder of enums in the crate happens to take it."""
    dtypes = [e["dtype"] if isinstance(e, dict) else e[0] for e in every_entry(content)]
    return "a dtype that is not a string" in error.reason and any(
        isinstance(dtype, dict) and list(dtype.values()) == [None] for dtype in dtypes
    )


def every_entry(content: bytes) -> list[Any]:
    """As `entries_of`, with those that a later one of the same name replaces."""
    length = int.from_bytes(content[:8], "little")
    every: list[Any] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        every.extend(value for name, value in pairs if name != "__metadata__" and is_entry(value))
        return dict(pairs)

    json.loads(content[8 : 8 + length], object_pairs_hook=keep)
    return every


def is_entry(value: Any) -> bool:
    return (isinstance(value, dict) and "dtype" in value) or (isinstance(value, list) and len(value) == 3)


# Where asyncfetch is stricter than the library, why, and how that is seen without it. Nothing else may differ.
STRICTER = {"the dtype is an object": spelled_as_object}
TOO_LARGE_FOR_NUMPY = "an array that numpy cannot hold"


def compare(rng: random.Random, read: Read = header_of) -> str:
    """One case. What came of it; AssertionError where the two disagree."""
    content, faults = header_case(rng)
    try:
        theirs = dict(deserialize(content))
    except SafetensorError:
        theirs = None
    with TIMER():
        try:
            header, error = read(memoryview(content), file=FILE), None
        except InvalidHeaderError as refusal:
            header, error = None, refusal
    told = f"{faults} {content[:2000]!r}"
    if rng.random() < ON_DISK:
        compare_on_disk(content, header, accepted=theirs is not None)
    if error is not None:
        assert len(str(error)) < 1000, told
        if theirs is None:
            return "refused"
        reasons = [reason for reason, applies in STRICTER.items() if applies(content, error)]
        assert reasons, f"only we refuse: {error} {told}"
        return f"stricter: {reasons[0]}"
    assert theirs is not None, f"only we accept: {told}"
    return compare_tensors(content, header, theirs, told)


def compare_tensors(content: bytes, header: Any, theirs: dict[str, Any], told: str) -> str:
    """Both accept: the names, dtypes, shapes, offsets and bytes are the same, and the arrays hold them."""
    assert {name: (info.dtype, list(info.shape)) for name, info in header.tensors.items()} == {
        name: (tensor["dtype"], tensor["shape"]) for name, tensor in theirs.items()
    }, told
    written = entries_of(content)
    outcome = "accepted"
    for name, info in header.tensors.items():
        plain = written[name]
        offsets = plain["data_offsets"] if isinstance(plain, dict) else plain[2]
        assert [info.begin, info.end] == offsets, told
        data = bytes(theirs[name]["data"])
        assert content[header.data_start + info.begin : header.data_start + info.end] == data, told
        try:
            with TIMER():
                array = tensor_view(content, info, header.data_start, file=FILE, tensor=name)
        except InvalidHeaderError:
            assert len(info.shape) > 64 or math.prod(filter(None, info.shape)) * 8 >= 1 << 63, told
            outcome = f"stricter: {TOO_LARGE_FOR_NUMPY}"
        else:
            assert array.tobytes() == data, told
            assert array.shape == (info.shape if not hasattr(array, "logical_shape") else (len(data),)), told
    return outcome


def compare_on_disk(content: bytes, header: Any, *, accepted: bool) -> None:
    """The library's other reader, of files: it takes the same ones, and finds the same metadata and order."""
    with tempfile.NamedTemporaryFile(suffix=".safetensors", dir=FOLDER) as file:
        file.write(content)
        file.flush()
        try:
            with safe_open(file.name, "np") as opened:
                metadata, names = opened.metadata() or {}, opened.offset_keys()
        except (SafetensorError, OSError):  # an empty file cannot be mapped
            assert not accepted, content[:2000]
            return
    assert accepted
    if header is not None:
        assert header.metadata == metadata
        filled = [name for name, info in header.tensors.items() if info.nbytes]
        assert [name for name in names if name in filled] == filled


FOLDER = "/dev/shm" if os.path.isdir("/dev/shm") else None


def test_agrees_with_the_library(seed: int, scale: Callable[[int, int], int], figure: Callable[[str], None]) -> None:
    """Both accept or both refuse, but for the listed reasons, each of which occurs; in little time and memory."""
    tally = survey(compare, seed, scale(QUICK, WHOLE))
    figure(str(tally))
    expected = {"accepted", "refused", *(f"stricter: {reason}" for reason in [*STRICTER, TOO_LARGE_FOR_NUMPY])}
    assert set(tally.outcomes) == expected
    assert min(tally.outcomes["accepted"], tally.outcomes["refused"]) > tally.cases / 10
    assert tally.slowest < 1
    assert tally.peak < 512


# What the validator would be without one of its rules, or with one too many.
MODULES = [hostile, dtypes, header]
MUTANTS = {
    "holes and overlaps": ("        if begin != covered:", "        if False:"),
    "holes": ("        if begin != covered:", "        if begin < covered:"),
    "overlaps": ("        if begin != covered:", "        if begin > covered:"),
    "the end, short": ("    if covered > room:", "    if False:"),
    "the end, long": ("    if covered < room:", "    if False:"),
    "the size of a shape": ("        if count * bits // 8 != end - begin:", "        if False:"),
    "smaller than the offsets": ("if count * bits // 8 != end - begin:", "if count * bits // 8 > end - begin:"),
    "parts of a byte": ("        if count * bits % 8:", "        if False:"),
    "overflow before zero": ("            if count > _MAX_U64:\n                break", "            pass"),
    "a dtype of the wrong size": ('("F8_E8M0", 8,', '("F8_E8M0", 16,'),
    "a dtype below a byte of the wrong size": ('("F6_E3M2", 6,', '("F6_E3M2", 4,'),
    "a dtype that is missing": ('            ("C64", 64, "<c8"),\n', ""),
    "unknown dtypes": ("    if dtype not in DTYPES:", "    if False:"),
    "dtypes that are no strings": ("    if type(dtype) is not str:", "    if False:"),
    "sizes that are bools": ("if type(size) is not int or", "if not isinstance(size, int) or"),
    "negative sizes": ("not 0 <= size <= _MAX_U64", "not size <= _MAX_U64"),
    "sizes beyond 64 bits": ("not 0 <= size <= _MAX_U64", "not 0 <= size"),
    "floats as offsets": ("type(begin) is not int or type(end) is not int or ", ""),
    "arrays of four": ("        if len(entry) != 3:", "        if len(entry) < 3:"),
    "63 bits": ("_MAX_U64 = (1 << 64) - 1", "_MAX_U64 = (1 << 63) - 1"),
    "fields twice": ("        elif key in fields:", "        elif False:"),
    "fields that are missing": ("        if key not in fields:", "        if key not in fields and key != 'dtype':"),
    "metadata twice": ("        elif metadata is not None:", "        elif False:"),
    "metadata that is no string": ("        if type(value) is not str:", "        if False:"),
    "metadata as an entry": ('if type(entry) is TensorInfo and name != "__metadata__"', "if type(entry) is TensorInfo"),
    "the first of two counts": ("            tensors[name] = entry\n", "            tensors.setdefault(name, entry)\n"),
    "the one that does not count": ("raise FlawError(flaw.reason, name) from None", "continue"),
    "order by begin alone": ("key=lambda item: item[1][2:]", "key=lambda item: item[1][2]"),
    "the order of the JSON": ("if info.begin != covered:\n            return", "if False:\n            return"),
    "lone surrogates": ('"\\\\u" not in text or not any(', "True or not any("),
    "surrogate pairs": ("return tree\n        reason =", "pass\n        reason ="),
    "NaN": ("            parse_constant=_refuse_constant,\n", ""),
    "minus zero": ('parse_int=_parse_int if "-0" in text else None', "parse_int=None"),
    "byte-order marks": ('text = str(raw, "utf-8")', 'text = str(raw, "utf-8-sig")'),
    "broken UTF-8": ('text = str(raw, "utf-8")', 'text = str(raw, "utf-8", "replace")'),
    "control characters": ("            text,\n", "            text,\n            strict=False,\n"),
    "nesting": ("_MAX_NESTING = 127", "_MAX_NESTING = 131"),
    "too little nesting": ("_MAX_NESTING = 127", "_MAX_NESTING = 126"),
    "numbers beyond a double": ("abs(value) > sys.float_info.max", "False"),
    "the stack": ("    except RecursionError:", "    except MemoryError:"),
    "NUL at the end": ("            text,\n", '            text.rstrip("\\0"),\n'),
    "the prefix": ("if min(len(prefix), file_size) < PREFIX_BYTES:", "if False:"),
    "the length of the header": ("min(room, MAX_HEADER_BYTES)", "MAX_HEADER_BYTES"),
}  # fmt: skip


def mutated_fuzz(twin: Any) -> Callable[[random.Random], str]:
    """`compare`, of a mutant."""
    return partial(compare, read=twin.header_of)


@pytest.mark.parametrize("name", MUTANTS)
def test_catches(name: str, seed: int) -> None:
    """Without one of its rules, the validator fails within the cases of the quick form."""
    twin = mutant(MODULES, *MUTANTS[name])
    assert first_failure(mutated_fuzz(twin), seed, QUICK) is not None


def test_cases_can_be_repeated(seed: int) -> None:
    """A case is made from its seed and number alone."""
    assert header_case(case_rng(seed, 7)) == header_case(case_rng(seed, 7)) != header_case(case_rng(seed, 8))


def test_source_is_no_mutant() -> None:
    """What the mutants are compared with passes: the same module, made in the same way, unchanged."""
    twin = mutant(MODULES, "_MAX_NESTING = 127", "_MAX_NESTING  = 127")
    assert first_failure(mutated_fuzz(twin), 1, 500) is None
    assert Path(str(header.__file__)).read_text().count("_MAX_NESTING = 127") == 1
