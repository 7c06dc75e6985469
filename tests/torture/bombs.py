"""Small texts that would take much memory, time or stack; tried apart from the tests.

    python -m tests.torture.bombs "header of empty lists" 30000000

prints as JSON what came of it, the seconds of processor time and the MiB that it took, beside the text itself;
a line for each pair of a name and a size.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from asyncfetch.errors import CorruptError
from asyncfetch.format.header import parse_header
from asyncfetch.format.index import parse_index
from asyncfetch.policy import Policy

from .fuzzing import peak_mebibytes

GIB = 1 << 30
INDEX_CAP = Policy().max_index_bytes


@dataclass(frozen=True)
class Bomb:
    """`text(n)` has about n bytes; `outcome` is a part of the error, or "read". `data`: bytes beside the header."""

    text: Callable[[int], str]
    outcome: str = "read"
    data: Callable[[int], int] = lambda n: 0

    def go_off(self, kind: str, n: int) -> tuple[str, float, float]:
        raw = self.text(n).encode()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
        before, began = peak_mebibytes(), time.process_time()
        try:
            if kind == "header":
                parse_header(memoryview(raw), file="bomb", file_size=8 + len(raw) + self.data(n))
            else:
                parse_index(raw, file="bomb", max_bytes=INDEX_CAP)
            outcome = "read"
        except CorruptError as error:
            outcome = str(error)[:300]
        return outcome, time.process_time() - began, peak_mebibytes() - before


def filled(unit: str, n: int) -> str:
    """A list of `unit` of n bytes."""
    return f"[{','.join([unit] * (n // (len(unit.encode()) + 1)))}]"


def header(ignored: str, name: str = "a", shape: str = "[0]") -> str:
    """A header of one empty tensor, with a field that readers ignore."""
    return f'{{"{name}":{{"dtype":"U8","shape":{shape},"data_offsets":[0,0],"x":{ignored}}}}}'


def index(ignored: str) -> str:
    return f'{{"x":{ignored},"weight_map":{{"a":"x.safetensors"}}}}'


def tensors(n: int) -> str:
    """An honest header of tensors with one byte each."""
    entries = (f'"{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(n // 70))
    return f"{{{','.join(entries)}}}"


def entries(n: int, shards: int) -> str:
    """An honest index."""
    pairs = (f'"t{i}":"m-{i % shards}.safetensors"' for i in range(n // 34))
    return f'{{"weight_map":{{{",".join(pairs)}}}}}'


def metadata(n: int) -> str:
    return f'{{"__metadata__":{{{",".join(f"""{chr(34)}{i}{chr(34)}:{chr(34)}{chr(34)}""" for i in range(n // 12))}}}}}'


HEADERS = {
    "of empty objects": Bomb(lambda n: header(filled("{}", n)), "brackets in"),
    "of empty lists": Bomb(lambda n: header(filled("[]", n)), "brackets in"),
    "of nested lists": Bomb(lambda n: header(filled("[[[[]]]]", n)), "brackets in"),
    "of lists of lists at the top": Bomb(lambda n: filled("[[]]", n), "brackets in"),
    "of short lists": Bomb(lambda n: header(filled("[1],1234567", n))),
    "of small objects": Bomb(lambda n: header(filled('{"":1234}', n))),
    "of numbers": Bomb(lambda n: header(filled("1234", n))),
    "of floats": Bomb(lambda n: header(filled("1e9", n))),
    "of strings": Bomb(lambda n: header(filled('"ab"', n))),
    "of numbers and one wide letter": Bomb(lambda n: header('["\U0001f600",' + filled("12", n)[1:])),
    "of a long name": Bomb(lambda n: header("1", name="n" * n)),
    "of a long dtype": Bomb(lambda n: header("1").replace("U8", "U" * n), "unknown dtype"),
    "of metadata": Bomb(metadata),
    "of spaces": Bomb(lambda n: header("1") + " " * n),
    "of escapes": Bomb(lambda n: header('"' + "\\u0041" * (n // 6) + '"')),
    "of tensors": Bomb(tensors, data=lambda n: n // 70),
    "of a deep list": Bomb(lambda n: "[" * n, "brackets in"),
    "of a list 90,000 deep": Bomb(lambda n: '{"a":' + "[" * 90_000, "nested too deeply"),
    "of one integer": Bomb(lambda n: header("9" * n), "thousands of digits"),
    "of an integer of 5,000 digits": Bomb(lambda n: header("9" * 5000), "thousands of digits"),
    "of a shape of ones": Bomb(lambda n: header("1", shape="[0" + ",1" * (n // 2) + "]")),
    "of a shape of twos": Bomb(lambda n: header("1", shape="[2" + ",2" * (n // 2) + "]"), "too large to count"),
}
INDEXES = {
    "of empty objects": Bomb(lambda n: index(filled("{}", n)), "brackets in"),
    "of nested lists": Bomb(lambda n: index(filled("[[]]", n)), "brackets in"),
    "of short lists": Bomb(lambda n: index(filled("[1],1234567", n))),
    "of small objects": Bomb(lambda n: index(filled('{"":1234}', n))),
    "of strings": Bomb(lambda n: index(filled('"ab"', n))),
    "of numbers and one wide letter": Bomb(lambda n: index('["\U0001f600",' + filled("12", n)[1:])),
    "of small metadata": Bomb(lambda n: index("1").replace('"x":1', f'"metadata":{{"y":{filled("[1],1234567", n)}}}')),
    "of entries": Bomb(lambda n: entries(n, 999)),
    "of shards": Bomb(lambda n: entries(n, n), "more than 10,000 shards"),
    "of 1,500,000 entries": Bomb(lambda n: entries(51_000_000, 999), "max_index_bytes"),
    "of spaces beyond the cap": Bomb(lambda n: index("1") + " " * INDEX_CAP, "max_index_bytes"),
    "of an object 90,000 deep": Bomb(lambda n: '{"a":' * 90_000, "nested too deeply"),
    "of an integer of 5,000 digits": Bomb(lambda n: index("9" * 5000), "thousands of digits"),
}
BOMBS = {
    **{f"header {name}": bomb for name, bomb in HEADERS.items()},
    **{f"index {name}": bomb for name, bomb in INDEXES.items()},
}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (4 * GIB, 4 * GIB))  # a belt for the machine; the test's limit is lower
    for chosen, size in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        print(json.dumps(BOMBS[chosen].go_off(chosen.split()[0], int(size))))
