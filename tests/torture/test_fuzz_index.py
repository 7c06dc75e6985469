"""Indexes from a grammar: what must be read is read as it stands, what must be refused is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from asyncfetch.errors import InvalidIndexError
from asyncfetch.format import hostile, index
from asyncfetch.format.index import parse_index

from .fuzzing import TIMER, first_failure, mutant, survey
from .index_grammar import index_case
from .index_rules import MAX_BYTES, MAX_SHARDS, judge

QUICK, WHOLE = 10_000, 400_000
FILE = "model.safetensors.index.json"


def compare(rng: random.Random, parse: Callable[..., Any] = parse_index) -> str:
    """One case. What came of it; AssertionError where it is not what had to come."""
    raw, case, faults = index_case(rng)
    told = f"{faults} {raw[:2000]!r}"
    verdict = judge(raw) if not case.deep else None
    if case.known and not case.deep:  # the grammar is right about its own work, and so is the judge
        assert verdict == case.expected, f"the judge is wrong: {told}"
    with TIMER():
        try:
            index, error = parse(raw, file=FILE, max_bytes=MAX_BYTES, max_shards=MAX_SHARDS), None
        except InvalidIndexError as refusal:
            index, error = None, refusal
    if case.deep:
        return "nested deeply"
    kind = "" if case.known else ", damaged blindly"
    if error is not None:
        assert verdict is None, f"refused: {error} {told}"
        assert len(str(error)) < 1000, told
        return f"refused{kind}"
    assert verdict is not None, f"accepted: {told}"
    assert list(index.weight_map.items()) == list(verdict.items()), told
    assert index.shards == tuple(dict.fromkeys(verdict.values())), told
    assert [(t, s) for s in index.shards for t in index.tensors_of(s)] == sorted(
        verdict.items(), key=lambda item: index.shards.index(item[1])
    ), told
    if case.known:
        assert index.metadata == case.metadata, told
    assert index.total_size is None or index.total_size >= 0, told
    return f"accepted{kind}"


def test_verdicts(seed: int, scale: Callable[[int, int], int], figure: Callable[[str], None]) -> None:
    """Each index is read or refused as its verdict says, in little time and memory."""
    tally = survey(compare, seed, scale(QUICK, WHOLE))
    figure(str(tally))
    expected = {kind + how for kind in ("accepted", "refused") for how in ("", ", damaged blindly")}
    assert set(tally.outcomes) == expected | {"nested deeply"}
    assert min(tally.outcomes["accepted"], tally.outcomes["refused"]) > tally.cases / 10
    assert tally.slowest < 1
    assert tally.peak < 512


# What the validator would be without one of its rules, or with one too many.
MODULES = [hostile, index]
MUTANTS = {
    "its bytes": ("    if len(raw) > max_bytes:", "    if False:"),
    "one byte too strict": ("    if len(raw) > max_bytes:", "    if len(raw) >= max_bytes:"),
    "two weight_maps": ("    if len(maps) != 1:", "    if not maps:"),
    "no weight_map": ("    if len(maps) != 1:", "    if len(maps) > 1:"),
    "a weight_map of another kind": ("    if type(maps[0]) is not tuple:", "    if False:"),
    "an empty weight_map": ("    if not weight_map:\n        fail(", "    if False:\n        fail("),
    "collisions": ("    _check_collisions(weight_map, file)\n", ""),
    "collisions of composed letters": ('unicodedata.normalize("NFD", shard).casefold()', "shard.casefold()"),
    "collisions of letters that fold": (".casefold())", ".lower())"),
    "collisions with a folder": ('        while "/" in folded:', "        while False:"),
    "the last metadata": ("_metadata(metadata[-1])", "_metadata(metadata[0])"),
    "metadata of another kind": ("    if type(value) is not tuple:\n        return {}\n", ""),
    "byte-order marks": ('text = raw.removeprefix(b"\\xef\\xbb\\xbf")', 'text = raw.lstrip(b"\\xef\\xbb\\xbf")'),
    "no byte-order mark": ('text = raw.removeprefix(b"\\xef\\xbb\\xbf")', "text = raw"),
    "a lenient parser": ("parse_json(text, tuple)", '__import__("json").loads(text, object_pairs_hook=tuple)'),
    "the last of two members": ("parse_json(text, tuple)", "parse_json(text, lambda p: tuple(dict(p).items()))"),
    "the number of shards": ("            if len(checked) > max_shards:", "            if False:"),
    "one shard too few": ("            if len(checked) > max_shards:", "            if len(checked) >= max_shards:"),
    "two shards of a tensor": ("if weight_map.setdefault(tensor, shard) != shard:", "if False:"),
    "a tensor twice": ("if weight_map.setdefault(", "if tensor in weight_map or weight_map.setdefault("),
    "names checked once": ("if type(shard) is not str or shard not in checked:", "if not checked:"),
    "__metadata__": ('    if "__metadata__" in weight_map:', "    if False:"),
    "names that are no strings": ("if type(name) is not str else", "if name is None else"),
    "control characters": ('frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))', 'frozenset(("Cf", "Cs", "Zl", "Zp"))'),
    "format characters": ('frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))', 'frozenset(("Cc", "Cs", "Zl", "Zp"))'),
    "line separators": ('frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))', 'frozenset(("Cc", "Cf", "Cs"))'),
    "backslashes": ('    if "\\\\" in name or ":" in name:', '    if ":" in name:'),
    "colons": ('    if "\\\\" in name or ":" in name:', '    if "\\\\" in name:'),
    "long paths": ("_MAX_PATH_BYTES = 1024", "_MAX_PATH_BYTES = 4096"),
    "long segments": ("_MAX_SEGMENT_BYTES = 255", "_MAX_SEGMENT_BYTES = 256"),
    "segments too strict": ("_MAX_SEGMENT_BYTES = 255", "_MAX_SEGMENT_BYTES = 254"),
    "segments in letters": ("if len(segment.encode()) >", "if len(segment) >"),
    "empty segments": ('if segment in ("", ".", ".."):', 'if segment in (".", ".."):'),
    "dots at the end": ('segment.endswith((".", " "))', 'segment.endswith(" ")'),
    "spaces at the end": ('segment.endswith((".", " "))', 'segment.endswith(".")'),
    "devices": ("if _RESERVED.fullmatch(segment):", "if False:"),
    "devices with an ending": ("*(\\..*)?", "*"),
    "devices in small letters": ("re.IGNORECASE | re.DOTALL", "re.DOTALL"),
    "devices too strict": ('r"(CON|', 'r"(CON.*|'),
    "the ending": ("    if not name.endswith(SUFFIX):", "    if False:"),
    "the ending in large letters": ("    if not name.endswith(SUFFIX):", "    if not name.lower().endswith(SUFFIX):"),
    "shards in order": ("        return tuple(self._by_shard)", "        return tuple(sorted(self._by_shard))"),
    "total_size": ("type(claim) is int and claim >= 0", "claim"),
}  # fmt: skip


def mutated_fuzz(twin: Any) -> Callable[[random.Random], str]:
    """`compare`, of a mutant."""
    return partial(compare, parse=twin.parse_index)


@pytest.mark.parametrize("name", MUTANTS)
def test_catches(name: str, seed: int) -> None:
    """Without one of its rules, the validator fails within the cases of the quick form."""
    twin = mutant(MODULES, *MUTANTS[name])
    assert first_failure(mutated_fuzz(twin), seed, QUICK) is not None


def test_source_is_no_mutant() -> None:
    """What the mutants are compared with passes: the same module, made in the same way, unchanged."""
    twin = mutant(MODULES, "_MAX_PATH_BYTES = 1024", "_MAX_PATH_BYTES  = 1024")
    assert first_failure(mutated_fuzz(twin), 1, 500) is None
