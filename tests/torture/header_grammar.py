"""Safetensors files from a grammar: sound ones, and ones with a few faults in a known place.

`header_case(rng)` writes a file the way a writer would, from names, dtypes, shapes and offsets that fit, and
then damages it at the level where readers differ: a field, an entry, the layout, the text, the frame.
Not all that is called a fault here is one; the reference implementation decides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

from .header_files import BITS, DTYPES, METADATA, NAMES, Entry, File, Rng, entry, sound, written

NUMBERS = [
    "0", "1", "2", "3", "4", "8", "16", "-0", "-1", "-2", "2.0", "2e0", "0.5", "-0.0", "1E2", "1e400", "-1e400",
    "1e-999", "0e999", "true", "false", "null", "NaN", '"2"', "01", "+1", "0x1", ".5", "1.", "1e", "[2]", "{}", "[]",
    *(str((1 << bits) + plus) for bits in (31, 32, 53, 62, 63, 64) for plus in (-1, 0, 1)), str(-(1 << 63)),
    "9" * 308, "9" * 4301, "1" + "0" * 308 + "e-300",
]  # fmt: skip
BAD_NAMES = [
    '"__metadata__"', '"\\u005f_metadata__"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83dx"', '"\\x61"', '"\\u12"',
    '"\x01"', '"\t"', "a", "'a'", "1", "null", '"a', '"\\ud83d\\ud83d\\ude00"', '"\\\\ud800"',
]  # fmt: skip
DTYPE_WORDS = [
    '"u8"', '"C128"', '"F8"', '"F32 "', '""', '"U\\u0038"', "8", "null", "true", "[]", '["U8"]', "{}",
    '{"U8":{}}', '{"U8":null,"I8":null}', '{"XX":null}', '"I4"', '"F6"', '"BF16\\u0000"',
]  # fmt: skip
BEFORE = ["\ufeff", " ", "\n", " \t\r\n", "\ufeff", "\0", "\x0b", "\xa0", "//\n", ","]
AFTER = ["\0", " ", "\n\n", "\t", "       ", "\0", "\0\0\0", "x", "{}", "}", ",", "\ufeff", "\x0c"]
TOKENS = [*'{}[],:"\\0-e. \n\0', "null", "\\u", "\\ud800", '"a":1,']
BAD_BYTES = [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x28", b"\x80", b"\xef\xbb\xbf"]
LENGTHS = [0, 1, 7, 8, 9, 99_999_999, 100_000_000, 100_000_001, 1 << 31, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1]


def header_case(rng: Rng) -> tuple[bytes, tuple[str, ...]]:
    """The bytes of a file, and the names of what was done to it."""
    file = sound(rng)
    # Mostly one fault: with more, the first hides the others.
    names = rng.choices(_NAMES, _WEIGHTS, k=rng.choice((0, 1, 1, 1, 1, 1, 1, 1, 2, 3)))
    for name in names:
        FAULTS[name](rng, file)
    return written(rng, file), tuple(names)


def one(rng: Rng, file: File) -> Entry:
    """Any entry; one is made where there is none."""
    if not file.entries:
        file.entries.append(entry('"only"', '"U8"', "[2]", f"[{file.size},{file.size + 2}]"))
        file.size += 2
    return rng.choice(file.entries)


def numbers_of(text: str) -> list[int]:
    """The integers of a list in JSON; [] where it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [n for n in value if type(n) is int] if type(value) is list else []


def replace_number(rng: Rng, file: File, key: str) -> None:
    chosen = one(rng, file)
    numbers = [str(n) for n in numbers_of(chosen.get(key))]
    if numbers:
        place = rng.randrange(len(numbers))
        near = str(int(numbers[place]) + rng.choice((-4, -2, -1, 1, 1, 2, 8)))
        numbers[place] = rng.choice((near, rng.choice(NUMBERS)))
        if rng.random() < 0.1:
            numbers.append(rng.choice(NUMBERS))
        chosen.put(key, f"[{','.join(numbers)}]")


def replace_list(rng: Rng, file: File, key: str) -> None:
    word = rng.choice(
        (rng.choice(NUMBERS), f"[{rng.choice(NUMBERS)},{rng.choice(NUMBERS)}]", deep(rng), "[0,0,0]", "[0]")
    )
    one(rng, file).put(key, word)


def move(rng: Rng, file: File, shift: int) -> None:
    """Everything from some tensor on is `shift` bytes later, so a hole or an overlap; the file ends with it."""
    chosen = one(rng, file)
    start = (numbers_of(chosen.get("data_offsets")) or [0])[0]
    for each in file.entries:
        pair = numbers_of(each.get("data_offsets"))
        if len(pair) == 2 and pair[0] >= start:
            each.put("data_offsets", f"[{pair[0] + shift},{pair[1] + shift}]")
    file.size = max(0, file.size + shift)


def swap_offsets(rng: Rng, file: File) -> None:
    """Reversed, or exchanged between two tensors, or the same range for both."""
    first, second = one(rng, file), one(rng, file)
    a, b = first.get("data_offsets"), second.get("data_offsets")
    if rng.random() < 0.3:
        pair = numbers_of(a)[::-1]
        first.put("data_offsets", str(pair))
    else:
        first.put("data_offsets", b)
        if rng.random() < 0.5:
            second.put("data_offsets", a)


def add_empty(rng: Rng, file: File) -> None:
    """A tensor without elements, where one may be and where none may."""
    size = file.size
    place = rng.choice((0, size, size // 2, size + 1, 1, 1 << 40, (1 << 64) - 1))
    shape = rng.choice(("[0]", "[0,2]", "[3,0]", "[0,4611686018427387904]", "[4294967296,0,4294967296]"))
    offsets = rng.choice((f"[{place},{place}]", f"[{place},{place}]", f"[{place + 1},{place}]", f"[{place},{size}]"))
    file.entries.insert(rng.randint(0, len(file.entries)), entry('"empty"', f'"{rng.choice(DTYPES)}"', shape, offsets))


def overflow(rng: Rng, file: File) -> None:
    """A shape whose product goes beyond 64 bits, or nearly; no bytes, or as many as it wraps around to."""
    dtype = rng.choice(DTYPES)
    shape = rng.choice(
        (
            [1 << 32, 1 << 32], [1 << 40, 1 << 40, 0], [0, 1 << 40, 1 << 40], [1 << 63, 2, 0], [(1 << 64) - 1, 0],
            [0, (1 << 63) + 1], [1 << 61], [1 << 60, 1], [(1 << 64) - 1], [1 << 32, 1 << 31, 2, 2], [0, 1 << 64],
            [0, 1 << 64, 1],
        )
    )  # fmt: skip
    nbytes = (math.prod(shape) * BITS[dtype] // 8) % (1 << 64)
    at = file.size
    file.entries.append(entry('"large"', f'"{dtype}"', str(shape), f"[{at},{at + (nbytes if nbytes < 64 else 0)}]"))
    if nbytes < 64:
        file.size += nbytes


def part_of_a_byte(rng: Rng, file: File) -> None:
    """Elements below a byte that end inside one."""
    dtype, count = rng.choice((("F4", 3), ("F4", 1), ("F6_E2M3", 2), ("F6_E3M2", 3), ("F6_E2M3", 5)))
    nbytes = count * BITS[dtype] // 8 + rng.randrange(2)
    file.entries.append(entry('"part"', f'"{dtype}"', f"[{count}]", f"[{file.size},{file.size + nbytes}]"))
    file.size += nbytes


def many_dimensions(rng: Rng, file: File) -> None:
    """More than numpy has, of one element or none; some names and shapes are legal in the format only."""
    rank = rng.choice((32, 64, 65, 100, 300))
    nbytes = rng.choice((0, 1))
    file.entries.append(
        entry('"rank"', '"U8"', str([1] * (rank - 1) + [nbytes]), f"[{file.size},{file.size + nbytes}]")
    )
    file.size += nbytes


def change_dtype(rng: Rng, file: File) -> None:
    """Another one of the same or of another size."""
    one(rng, file).put("dtype", f'"{rng.choice(DTYPES)}"')


def dtype_object(rng: Rng, file: File) -> None:
    """As serde's enums may be written."""
    chosen = one(rng, file)
    chosen.put("dtype", f"{{{chosen.get('dtype')}:null}}")


def deep(rng: Rng) -> str:
    """Nesting around the limit of 128 of serde_json, or far beyond it and the stack of the interpreter."""
    depth = rng.choice((3, *range(122, 131), 1500)) if rng.random() < 0.98 else 20_000
    left, right = rng.choice((("[", "]"), ('{"k":', "}")))
    core = rng.choice(("1" if left != "[" else "", '{"dtype":"U8","shape":[2],"data_offsets":[0,2]}', "[]"))
    return left * depth + (core or "1") + right * depth


def spell(rng: Rng, file: File) -> None:
    """A number as another type or with another sign, of the same value or of the same product."""
    chosen, key = one(rng, file), rng.choice(("shape", "shape", "data_offsets"))
    numbers = numbers_of(chosen.get(key))
    spellings = [str(n) for n in numbers]
    if not numbers:
        return
    if rng.random() < 0.3:
        spellings = [f"-{n}" for n in numbers]
    else:
        place = rng.randrange(len(numbers))
        n = numbers[place]
        same = [f"{n}.0", f"{n}e0", f'"{n}"', *{0: ["false", "-0", "-0", "null"], 1: ["true", "true"]}.get(n, [])]
        spellings[place] = rng.choice(same)
    chosen.put(key, f"[{','.join(spellings)}]")


def extra_field(rng: Rng, file: File) -> None:
    """A field that readers ignore, with a value that some JSON parsers refuse."""
    odd = rng.choice(
        ("NaN", "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 320, "-0", '"\\ud800"', "[1e400]")
    )
    value = rng.choice(
        (odd, odd, odd, rng.choice(NUMBERS), rng.choice(BAD_NAMES), rng.choice(METADATA), deep(rng), deep(rng))
    )
    fields = one(rng, file).fields
    fields.insert(rng.randint(0, len(fields)), (rng.choice(('"x"', '"y"', '"dtypE"', '""')), value))


def drop_field(rng: Rng, file: File) -> None:
    fields = one(rng, file).fields
    if fields:
        del fields[rng.randrange(len(fields))]


def field_twice(rng: Rng, file: File) -> None:
    fields = one(rng, file).fields
    if fields:
        fields.insert(rng.randint(0, len(fields)), rng.choice(fields))


def again(rng: Rng, file: File) -> None:
    """A tensor listed twice: the same, or with other values in the one that does not count, or in the one that does."""
    chosen = one(rng, file)
    twin = Entry(chosen.name, list(chosen.fields), chosen.array)
    file.entries.insert(rng.randint(0, len(file.entries)), twin)
    other = rng.choice((chosen, twin))
    key, value = rng.choice(
        (
            ("shape", "[9]"),
            ("dtype", '"F64"'),
            ("data_offsets", "[7,3]"),
            ("dtype", '"XX"'),
            ("shape", "[-1]"),
            ("", ""),
        )
    )
    other.put(key, value)


def set_metadata(rng: Rng, file: File) -> None:
    file.metadata = rng.choices(METADATA, k=rng.choice((1, 1, 2)))


def set_word(rng: Rng, file: File) -> None:
    one(rng, file).word = rng.choice(
        (rng.choice(NUMBERS), rng.choice(METADATA), "[]", '["U8",[0]]', '["U8",[0],[0,0],1]')
    )


def rename(rng: Rng, file: File) -> None:
    one(rng, file).name = rng.choice((rng.choice(NAMES), rng.choice(BAD_NAMES)))


def damage_bytes(rng: Rng, file: File) -> None:
    """Bytes of the header changed, added, taken away or doubled, without regard to their meaning."""
    kind, spot, piece = rng.randrange(7), rng.random(), rng.randbytes(1)
    token, bad, width = rng.choice(TOKENS).encode(), rng.choice(BAD_BYTES), rng.choice((1, 1, 2, 5, 20))

    def damaged(header: bytes) -> bytes:
        at = int(spot * len(header))
        left, right = header[:at], header[at:]
        return (
            left + piece + right[1:],
            left + bytes([header[at] ^ (1 << piece[0] % 8)]) + right[1:] if right else left,
            left + token + right,
            left + bad + right,
            left + right[width:],
            left + right[:width] + right,
            left,
        )[kind]

    file.raw = damaged


def break_text(rng: Rng, file: File) -> None:
    """Bytes inside a string that are not UTF-8, or that no string may hold as they are."""
    bad, spot = rng.choice((*BAD_BYTES, b"\x01", b"\n", b"\0")), rng.random()

    def broken(header: bytes) -> bytes:
        quotes = [at for at, byte in enumerate(header) if byte == ord('"')]
        at = quotes[int(spot * len(quotes))] + 1 if quotes else 0
        return header[:at] + bad + header[at:]

    one(rng, file)
    file.raw = broken


def lie_about_length(rng: Rng, file: File) -> None:
    if rng.random() < 0.5:
        file.length = rng.choice(LENGTHS)
    else:
        file.lie = rng.choice((-8, -1, 1, 2, 8, 1000))


def set_around(rng: Rng, file: File) -> None:
    if rng.random() < 0.5:
        file.before = rng.choice(BEFORE)
    else:
        file.after = rng.choice(AFTER)


def resize(rng: Rng, file: File) -> None:
    """The data has more or fewer bytes than the tensors."""
    file.size += rng.choice((-8, -1, -1, 1, 1, 7, 4096))


FAULTS: dict[str, Callable[[Rng, File], None]] = {
    "dim": lambda rng, file: replace_number(rng, file, "shape"),
    "offset": lambda rng, file: replace_number(rng, file, "data_offsets"),
    "shape word": lambda rng, file: replace_list(rng, file, "shape"),
    "offsets word": lambda rng, file: replace_list(rng, file, "data_offsets"),
    "spelling": spell,
    "dtype word": lambda rng, file: one(rng, file).put("dtype", rng.choice(DTYPE_WORDS)),
    "dtype": change_dtype,
    "dtype object": dtype_object,
    "hole": lambda rng, file: move(rng, file, rng.choice((1, 1, 2, 8))),
    "overlap": lambda rng, file: move(rng, file, -rng.choice((1, 1, 2, 8))),
    "swapped": swap_offsets,
    "empty": add_empty,
    "overflow": overflow,
    "part of a byte": part_of_a_byte,
    "dimensions": many_dimensions,
    "extra field": extra_field,
    "dropped field": drop_field,
    "field twice": field_twice,
    "tensor twice": again,
    "metadata": set_metadata,
    "entry word": set_word,
    "name": rename,
    "around": set_around,
    "bytes": damage_bytes,
    "text": break_text,
    "length": lie_about_length,
    "resized": resize,
    "cut": lambda rng, file: setattr(file, "cut", rng.choice((rng.randrange(1 << 30), rng.randrange(10)))),
}  # fmt: skip
_NAMES = list(FAULTS)
_WEIGHTS = [
    {
        "extra field": 5,
        "spelling": 4,
        "metadata": 4,
        "around": 3,
        "text": 3,
        "overflow": 2,
        "overlap": 2,
        "length": 2,
    }.get(name, 1)
    for name in _NAMES
]
