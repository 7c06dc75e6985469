"""Safetensors files as a writer makes them: names, dtypes, shapes and offsets that fit, in any legal spelling."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64,
    "F64": 64, "C64": 64, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
DTYPES = [*BITS, "F4", "F6_E2M3", "F6_E3M2"]  # those below a byte have rules of their own: twice as often
NAMES = [
    '"a"', '"b"', '"w.0"', '""', '"é"', '"\\u00e9"', '"\\u0061"', '"a\\/b"', '"a/b"', '"../x"', '"\\ud83d\\ude00"',
    '"😀"', '"dtype"', '"shape"', '"data_offsets"', '"__metadata__ "', '"\\u0000"', '"\x7f"', '"\u2028"',
    '"\\n\\t\\"\\\\"',
]  # fmt: skip
METADATA = [
    "{}", "null", '{"format":"pt"}', '{"k":"1","k":"2"}', '{"é":"\\n\\u00e9","":""}', '{"a":"b","c":"d"}',
    '"pt"', "[]", "1", "true", '{"k":1}', '{"k":null}', '{"k":{}}', '{"k":["v"]}', '{"k":"\\ud800"}', '{"\\udfff":"v"}',
    *['{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'] * 2, '{k:"v"}', '{"k":"v",}',
]  # fmt: skip
Rng = random.Random


@dataclass
class Entry:
    """One tensor as JSON text: its name in quotes, its fields. `array`: written as `[dtype, shape, offsets]`."""

    name: str
    fields: list[tuple[str, str]]
    array: bool = False
    word: str | None = None  # written instead of all fields

    def text(self, colon: str, comma: str) -> str:
        if self.word is not None:
            return f"{self.name}{colon}{self.word}"
        if self.array:
            return f"{self.name}{colon}[{comma.join(value for _, value in self.fields)}]"
        return f"{self.name}{colon}{{{comma.join(f'{key}{colon}{value}' for key, value in self.fields)}}}"

    def put(self, key: str, value: str) -> None:
        """Set the first field of that name, if there is one."""
        for place, (name, _) in enumerate(self.fields):
            if name == f'"{key}"':
                self.fields[place] = name, value
                return

    def get(self, key: str) -> str:
        return next((value for name, value in self.fields if name == f'"{key}"'), "null")


@dataclass
class File:
    """A file before it is written: `size` is the bytes of its data.

    `length` is what it claims of its header, or `lie` by how much the claim is wrong.
    """

    entries: list[Entry]
    size: int
    metadata: list[str] = field(default_factory=list)
    before: str = ""
    after: str = ""
    raw: Callable[[bytes], bytes] | None = None  # a change to the bytes of the header
    length: int | None = None
    lie: int = 0
    cut: int | None = None
    tail: bytes = b""


def sound(rng: Rng) -> File:
    """Up to five tensors that cover their data, in any order, in any legal spelling."""
    entries, end = [], 0
    for name in rng.sample(NAMES, rng.choice((0, 1, 1, 2, 2, 3, 5))):
        dtype, shape = (
            rng.choice(DTYPES),
            [rng.choice((0, 1, 1, 2, 3, 4)) for _ in range(rng.choice((0, 1, 1, 2, 2, 3)))],
        )
        if BITS[dtype] < 8:
            shape.append(4)
        begin, end = end, end + math.prod(shape) * BITS[dtype] // 8
        entries.append(entry(name, f'"{dtype}"', json.dumps(shape), f"[{begin},{end}]", rng))
    if rng.random() < 0.3:
        rng.shuffle(entries)
    file = File(entries, end)
    if rng.random() < 0.3:
        file.metadata.append(rng.choice(METADATA[:6]))
    if rng.random() < 0.2:
        file.after = " " * rng.randrange(8)
    return file


def entry(name: str, dtype: str, shape: str, offsets: str, rng: Rng | None = None) -> Entry:
    """An entry with its three fields; with `rng` in one of its legal forms."""
    fields = [('"dtype"', dtype), ('"shape"', shape), ('"data_offsets"', offsets)]
    form = rng.randrange(10) if rng is not None else 9
    if form == 0:
        return Entry(name, fields, array=True)
    if form == 1 and rng is not None:
        rng.shuffle(fields)
    return Entry(name, fields)


def written(rng: Rng, file: File) -> bytes:
    """The file in bytes; no two places of its data look alike, so that a wrong offset shows."""
    colon, comma = rng.choice(((":", ","), (":", ","), (": ", ", "), (" :\n", "\t,\r\n")))
    members = [f'"__metadata__"{colon}{text}' for text in file.metadata]
    members[len(members) // 2 : len(members) // 2] = [each.text(colon, comma) for each in file.entries]
    header = f"{file.before}{{{comma.join(members)}}}{file.after}".encode("utf-8", "surrogatepass")
    if file.raw is not None:
        header = file.raw(header)
    length = (len(header) if file.length is None else file.length) + file.lie
    content = struct.pack("<Q", length % (1 << 64)) + header + rng.randbytes(max(0, file.size)) + file.tail
    return content if file.cut is None else content[: file.cut % (len(content) + 1)]
