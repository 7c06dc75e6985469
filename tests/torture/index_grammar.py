"""Indexes from a grammar, each with its verdict: what must be read from it, or that it must be refused.

A sound index gets quirks, which change nothing, and faults, each of which must be seen. Blind damage comes
without a verdict.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .index_rules import DEVICES, MAX_BYTES, MAX_SHARDS

Rng = random.Random

# Whatever percent-encoding can carry and every file system can hold, in any place of a segment but its end.
HARMLESS = [
    "a", "Z", "0", "-", "_", ".", " ", "%", "%2e", "%2F", "?", "#", "&", "=", "@", "!", "$", "'", "(", "+", ",", ";",
    "[", "]", "~", "é", "u\u0308", "ß", "Ж", "重", "\u0627", "😀", "\u00a0", "\u3000", "½", "..", "con", "\u037e", "*",
    '"', "|",
]  # fmt: skip
FORBIDDEN = [  # by kind, each as often
    ["\0", "\n", "\r", "\t", "\x1b", "\x7f", "\x85"],
    ["\u200b", "\u202e", "\u2066", "\ufeff", "\xad", "\U000e0001"],
    ["\u2028", "\u2029"],
    ["\ud800", "\udfff"],
    ["\\", "..\\"],
    [":", "C:"],
]
PICKLES = [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"]
TENSORS = ["w", "w.0.weight", "", "é", "😀", "a/b", "../x", "\\", '"', "\n", "weight_map", "__metadata__ ", "x" * 300]
CLAIMS = ["0", "12", "55562855904.0", "1e400", "-1", "null", "true", '"12"', "[]", "{}", "9" * 400, "-0", "1.5"]
METADATA = ["null", "[]", "7", '"text"', "true", "{}", '{"a":{"b":[1,{}]}}', '{"k":1,"k":2}', '[{"total_size":1}]']
WORDS = [*CLAIMS, *METADATA]
NOT_STRINGS = ["null", "1", "true", '["x.safetensors"]', '{"x.safetensors":1}', "1.5", "[]"]
NOT_JSON = ["NaN", "Infinity", "-Infinity", "01", "+1", "0x1", "'x'", ".5", "1.", "x", "", "nul", "9" * 5000]
BAD_STRINGS = ['"\\ud800"', '"\\udc00\\ud800"', '"\x01"', '"\t"', '"\\x"', '"\\u12"', '"\n"']
BAD_BYTES = [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x80"]


@dataclass
class Case:
    """An index being made. `expected` is its weight_map as it must be read; None: it must be refused."""

    pairs: list[tuple[str, str]]  # of the weight_map, in JSON
    expected: dict[str, str] | None
    members: list[str] = field(default_factory=list)  # of the whole, beside weight_map
    metadata: dict[str, Any] = field(default_factory=dict)
    key: str = '"weight_map"'
    weight_map: str | None = None  # in JSON, instead of `pairs`
    change: Callable[[bytes], bytes] = bytes
    known: bool = True  # else the verdict is left to `judge`
    deep: bool = False  # nested about as deep as this interpreter's stack goes: read or refused

    def refuse(self, *pairs: tuple[str, str]) -> None:
        """From now on the index must be refused; with `pairs` more."""
        self.expected = None
        self.pairs += pairs


def index_case(rng: Rng) -> tuple[bytes, Case, tuple[str, ...]]:
    """The bytes of an index, what must come of it, and the names of what was done to it."""
    case = sound(rng)
    names = sorted(rng.sample(list(QUIRKS), rng.choice((0, 0, 1, 2))), key=list(QUIRKS).index)
    if rng.random() < 0.6:
        names += rng.choices(list(FAULTS), _WEIGHTS, k=rng.choice((1, 1, 1, 2)))
    for name in names:
        (QUIRKS.get(name) or FAULTS[name])(rng, case)
    raw = case.change(written(rng, case))
    if rng.random() < 0.1:
        raw, case.known = damaged(rng, raw), False
    return raw, case, tuple(names)


def sound(rng: Rng) -> Case:
    """One to six tensors in up to four shards."""
    shards = [good_name(rng, number) for number in range(rng.randint(1, 4))]
    names = rng.sample(TENSORS, rng.randint(1, 6))
    expected = {name: rng.choice(shards) for name in names}
    return Case([(quoted(rng, name), quoted(rng, shard)) for name, shard in expected.items()], expected)


def quoted(rng: Rng, text: str) -> str:
    """A JSON string, in one of its spellings."""
    spelled = json.dumps(text, ensure_ascii=rng.random() < 0.5)
    return spelled.replace("/", "\\/") if rng.random() < 0.2 else spelled


def good_name(rng: Rng, number: int) -> str:
    """A shard's name that is fine anywhere; `number` keeps it apart from others whatever a file system folds."""
    if rng.random() < 0.5:
        return f"{rng.choice(('model', 'model', 'console', 'com10', 'null'))}-{number:05}-of-00004.safetensors"
    folders = [f"{middle(rng)}-{number}" for _ in range(rng.choice((0, 0, 1, 3)))]
    stem = f"{middle(rng)}{number}"
    name = "/".join([*folders, f"{stem}.safetensors"])
    room = 255 - len(f"{stem}.safetensors".encode())
    return f"{'n' * room}{name}" if not folders and rng.random() < 0.1 else name


def middle(rng: Rng) -> str:
    return "s" + "".join(rng.choices(HARMLESS, k=rng.choice((0, 1, 3, 6))))


def written(rng: Rng, case: Case) -> bytes:
    colon, comma = rng.choice(((":", ","), (": ", ", "), (":\t", ",\n    "), (" :\r\n", " ,")))
    pairs = comma.join(name + colon + shard for name, shard in case.pairs)
    weight_map = case.weight_map if case.weight_map is not None else f"{{{pairs}}}"
    members = [*case.members]
    members.insert(rng.randint(0, len(members)), f"{case.key}{colon}{weight_map}")
    return f"{{{comma.join(members)}}}".encode("utf-8", "surrogatepass")


def damaged(rng: Rng, raw: bytes) -> bytes:
    """One place changed, whatever it means."""
    at = rng.randrange(len(raw) + 1)
    piece = rng.choice(
        (rng.randbytes(1), rng.choice(HARMLESS).encode(), b'"', b",", b"\\", b"/", b"..", b"{}", b"\xff")
    )
    return rng.choice(
        (raw[:at] + piece + raw[at + 1 :], raw[:at] + piece + raw[at:], raw[:at] + raw[at + 1 :], raw[:at])
    )


# -- quirks: the index means the same ---------------------------------------------------------------


def twice_in_one_shard(rng: Rng, case: Case) -> None:
    case.pairs.insert(rng.randint(0, len(case.pairs)), rng.choice(case.pairs))
    if case.expected is not None:
        order = [json.loads(name) for name, _ in case.pairs]
        case.expected = dict(sorted(case.expected.items(), key=lambda item: order.index(item[0])))


def total_size(rng: Rng, case: Case) -> None:
    claim = rng.choice(CLAIMS)
    case.members.append(f'"metadata":{{"total_size":{claim}}}')
    case.metadata = {"total_size": json.loads(claim) if claim != "-0" else -0.0}


def any_metadata(rng: Rng, case: Case) -> None:
    """Once or twice, of any kind: the last counts, if it is an object."""
    for word in rng.choices(METADATA, k=rng.choice((1, 2))):
        case.members.append(f'"metadata":{word}')
        value = json.loads(word)
        case.metadata = value if isinstance(value, dict) else {}


def unknown_members(rng: Rng, case: Case) -> None:
    case.members[:0] = [f"{quoted(rng, rng.choice(('x', '', 'weight_maps')))}:{rng.choice(WORDS)}" for _ in range(2)]


def as_large_as_allowed(rng: Rng, case: Case) -> None:
    before = case.change
    case.change = lambda raw: before(raw).rjust(MAX_BYTES)


def nested(rng: Rng, case: Case) -> None:
    depth = rng.choice((3, 50, 150))
    case.members.append(f'"y":{"[" * depth}{"]" * depth}')


def as_many_shards_as_allowed(rng: Rng, case: Case) -> None:
    if case.expected is not None:
        for number in range(MAX_SHARDS - len(set(case.expected.values()))):
            case.pairs.append((f'"more{number}"', f'"more-{number}.safetensors"'))
            case.expected[f"more{number}"] = f"more-{number}.safetensors"


def around(before: bytes, after: bytes = b"") -> Callable[[Rng, Case], None]:
    """A quirk or a fault that puts bytes around all others."""

    def wrap(rng: Rng, case: Case) -> None:
        inner = case.change
        case.change = lambda raw: before + inner(raw) + after

    return wrap


QUIRKS: dict[str, Callable[[Rng, Case], None]] = {
    "as many shards as allowed": as_many_shards_as_allowed,
    "twice in one shard": twice_in_one_shard,
    "total_size": total_size,
    "any metadata": any_metadata,
    "unknown members": unknown_members,
    "nested": nested,
    "whitespace": lambda rng, case: case.members.append('"s":\t\r\n []'),
    "as large as allowed": as_large_as_allowed,
    "byte-order mark": lambda rng, case: setattr(case, "change", lambda raw: b"\xef\xbb\xbf" + raw),
}

# -- faults: the index must be refused --------------------------------------------------------------


def forbidden_letter(rng: Rng) -> str:
    """A good name with one more letter."""
    good = good_name(rng, 9)
    at = rng.randrange(len(good))
    return good[:at] + rng.choice(rng.choice(FORBIDDEN)) + good[at:]


def bad_segment(rng: Rng) -> str:
    """A folder that is none, on some system."""
    folder = rng.choice(("..", ".", "", "", "...", "a.", "b ", "b ", "n" * 256, "ü" * 128, "ü" * 128))
    return rng.choice(("a/", "a/", "")) + folder + rng.choice(("/", "/", "/../")) + good_name(rng, 9)


def device(rng: Rng) -> str:
    """What names a device on Windows, as a folder or as the file."""
    name = rng.choice(DEVICES)
    return rng.choice(
        (f"{name}/x.safetensors", f"a/{name}.safetensors", f"{name}.x.safetensors", f"a/{name}.b/c.safetensors")
    )


def bad_beginning(rng: Rng) -> str:
    """Not relative, or too long."""
    before = rng.choice(("/", "//", "//host/", "https://host/", "file:/", "C:/", "/etc/", "d" * 202 + "/", "n" * 244))
    return before * (5 if before[0] == "d" else 1) + "x.safetensors"[-12 if before[0] == "n" else 0 :]


def bad_ending(rng: Rng) -> str:
    """No safetensors file, or not the one that it seems."""
    stem = good_name(rng, 9).removesuffix(".safetensors")
    ending = rng.choice(
        (".SAFETENSORS", ".SAFETENSORS", ".safetensors.", ".safetensors ", ".safetensors/", "", ".json")
    )
    other = rng.choice((stem + rng.choice(PICKLES), "", ".", "..", "/", " ", "~"))
    return stem + ending if rng.random() < 0.8 else other


def in_weight_map(shard: Callable[[Rng], str]) -> Callable[[Rng, Case], None]:
    """A fault: one more tensor, whose shard is that."""
    return lambda rng, case: place_of_fault(rng, case, json.dumps(shard(rng)))


def place_of_fault(rng: Rng, case: Case, shard: str) -> None:
    case.refuse()
    case.pairs.insert(rng.randint(0, len(case.pairs)), ('"bad"', shard))


def two_shards(rng: Rng, case: Case) -> None:
    case.refuse()
    name, _ = rng.choice(case.pairs)
    case.pairs.insert(rng.randint(0, len(case.pairs)), (name, '"another.safetensors"'))


def one_file_twice(rng: Rng, case: Case) -> None:
    """Two shards that a file system takes for one, or of which one is the other's folder."""
    first, second = rng.choice(
        (
            ("Q.safetensors", "q.safetensors"), ("d/x.safetensors", "D/x.safetensors"),
            ("ß.safetensors", "SS.safetensors"),
            ("\u00fc.safetensors", "u\u0308.safetensors"), ("\u1e9e.safetensors", "\u00df.safetensors"),
            ("\uac00.safetensors", "\u1100\u1161.safetensors"), ("\u03a3.safetensors", "\u03c2.safetensors"),
            ("\u03b1\u0345\u0301.safetensors", "\u03b1\u0301\u0345.safetensors"),
            ("q.safetensors", "q.safetensors/x.safetensors"), ("q.safetensors", "Q.safetensors/y/z.safetensors"),
        )
    )  # fmt: skip
    pair = [('"c1"', json.dumps(first)), ('"c2"', json.dumps(second))]
    rng.shuffle(pair)
    case.refuse(*pair)


def too_many_shards(rng: Rng, case: Case) -> None:
    case.refuse(*((f'"t{number}"', f'"t-{number}.safetensors"') for number in range(MAX_SHARDS + 1)))


def another_weight_map(rng: Rng, case: Case) -> None:
    case.refuse()
    case.members += ['"weight_map":' + rng.choice(("{}", '{"a":"x.safetensors"}', "null"))] * rng.choice((1, 2))
    case.key = '"weight_map"'


def no_weight_map(rng: Rng, case: Case) -> None:
    case.refuse()
    if rng.random() < 0.5 and not any(member.startswith('"weight_map"') for member in case.members):
        case.key = rng.choice(('"weight_maps"', '"Weight_map"', '"weight_map "', '""'))
    else:
        case.weight_map = rng.choice(("{}", "{}", "{}", "null", "[]", '"x"', "1", '[["a","x.safetensors"]]'))


def bad_value(rng: Rng, case: Case) -> None:
    case.refuse()
    case.members.insert(0, '"z":' + rng.choice((rng.choice(NOT_JSON), rng.choice(BAD_STRINGS))))


def too_deep(rng: Rng, case: Case) -> None:
    case.deep = True
    depth = rng.choice((500, 900, 1000, 2000, 3000))
    case.members.append('"z":' + rng.choice(("[" * depth + "]" * depth, '{"a":' * depth, "[" * depth)))


def bad_bytes(rng: Rng, case: Case) -> None:
    """In the name of a tensor, where any text may be."""
    case.refuse(('"\x00mark"', '"x.safetensors"'))
    bad = rng.choice(BAD_BYTES)
    case.change = lambda raw: raw.replace(b"\x00mark", bad)


def cut(rng: Rng, case: Case) -> None:
    """No beginning of an object is an object."""
    case.refuse()
    part, inner = 0.9 * rng.random(), case.change
    case.change = lambda raw: inner(raw)[: int(part * len(inner(raw).rstrip()))]


def replaced(*contents: bytes) -> Callable[[Rng, Case], None]:
    def replace(rng: Rng, case: Case) -> None:
        case.refuse()
        content = rng.choice(contents)
        case.change = lambda raw: content

    return replace


def refused(fault: Callable[[Rng, Case], None]) -> Callable[[Rng, Case], None]:
    def both(rng: Rng, case: Case) -> None:
        fault(rng, case)
        case.refuse()

    return both


def text_after(rng: Rng, case: Case) -> None:
    refused(around(b"", rng.choice((b"x", b"{}", b"\0", b",", b"}", b"\xef\xbb\xbf"))))(rng, case)


def text_before(rng: Rng, case: Case) -> None:
    refused(around(rng.choice((b"x", b"\0", b"//\n", b"\x0b", b"\xa0", b"[]"))))(rng, case)


def utf_16(rng: Rng, case: Case) -> None:
    case.refuse()
    case.change = lambda raw: raw.decode("utf-8", "replace").encode("utf-16")


FAULTS: dict[str, Callable[[Rng, Case], None]] = {
    "a forbidden letter": in_weight_map(forbidden_letter),
    "a bad segment": in_weight_map(bad_segment),
    "a device": in_weight_map(device),
    "a bad beginning": in_weight_map(bad_beginning),
    "a bad ending": in_weight_map(bad_ending),
    "no string": lambda rng, case: place_of_fault(rng, case, rng.choice(NOT_STRINGS)),
    "two shards": two_shards,
    "one file twice": one_file_twice,
    "too many shards": too_many_shards,
    "another weight_map": another_weight_map,
    "no weight_map": no_weight_map,
    "a reserved name": lambda rng, case: case.refuse(('"__metadata__"', '"x.safetensors"')),
    "a bad value": bad_value,
    "too deep": too_deep,
    "bad bytes": bad_bytes,
    "cut": cut,
    "two byte-order marks": refused(around(b"\xef\xbb\xbf\xef\xbb\xbf")),
    "text after": text_after,
    "text before": text_before,
    "too large": refused(around(b"", b" " * MAX_BYTES)),
    "no comma": lambda rng, case: case.refuse(("", "")),
    "UTF-16": utf_16,
    "another file": replaced(b"", b" \n", b"\xef\xbb\xbf", bytes(64), b"<html>", b"version https://", b"[]", b"null"),
}  # fmt: skip
# What has many ways to be wrong is so more often.
_WEIGHTS = [
    {"a forbidden letter": 5, "a bad segment": 5, "a bad ending": 4, "one file twice": 3, "a bad beginning": 2}.get(
        name, 1
    )
    for name in FAULTS
]
