"""How many bytes travel for what is asked of a checkpoint, beside the fewest that could.

all-MiniLM-L6-v2 in BF16, cut into shards by huggingface_hub's own writer, is served on this machine
with the Hub's protocol, and opened anew for each row. The server counts the body bytes that it sends. The
fewest are the bytes of what is asked for, and of the index and the headers, without which nobody
knows where it is. Every array is compared with its source, bit by bit. Exit code 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from make_minilm import make, source_tensors
from rich.console import Console
from rich.table import Table

import asyncfetch
from asyncfetch.errors import AsyncfetchError
from asyncfetch.server import Server

REPOSITORY = "demo/all-MiniLM-L6-v2-bf16"
SHARDS = 6
TENSOR = "embeddings.word_embeddings.weight"  # the largest: 30522 x 384
LAYER = "encoder.layer.3.*"
RANK, WORLD_SIZE = 2, 4

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One row: `ask` fetches, `expected` is what must come of it."""

    label: str
    ask: Callable[[asyncfetch.BlockingCheckpoint], Arrays]
    expected: Arrays
    note: Callable[[asyncfetch.BlockingCheckpoint], str] = lambda _: ""


def cases(source: Arrays) -> list[Case]:
    """What is asked for, in the order of the table."""

    def rank(axis: int) -> Case:
        size = source[TENSOR].shape[axis]
        block = -(-size // WORLD_SIZE)  # as torch.chunk splits
        part = np.split(source[TENSOR], range(block, size, block), axis)[RANK]
        return Case(
            f"rank {RANK} of {WORLD_SIZE} along axis {axis} of {TENSOR}",
            lambda c: {TENSOR: c.shard_of(TENSOR, axis, rank=RANK, world_size=WORLD_SIZE)},
            {TENSOR: part},
            lambda c: c.plan_of(TENSOR, axis=axis, rank=RANK, world_size=WORLD_SIZE).strategy,
        )

    rows = np.s_[5000:5100]
    layer = {name: tensor for name, tensor in source.items() if fnmatchcase(name, LAYER)}
    return [
        Case("index and headers only", lambda _: {}, {}),
        Case("everything", lambda c: c.state_dict(), source),
        Case(f"one tensor: {TENSOR}", lambda c: {TENSOR: c.tensor(TENSOR)}, {TENSOR: source[TENSOR]}),
        Case(f"one layer: {LAYER}", lambda c: c.state_dict(LAYER), layer),
        Case(f"100 rows of {TENSOR}", lambda c: {TENSOR: c.tensor(TENSOR, rows)}, {TENSOR: source[TENSOR][rows]}),
        rank(0),
        rank(1),
    ]  # fmt: skip


def overhead(folder: Path) -> int:
    """Bytes of the index and of all headers."""
    index = folder / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    headers = (8 + int.from_bytes((folder / name).read_bytes()[:8], "little") for name in files)
    return index.stat().st_size + sum(headers)


def wrong(actual: Arrays, expected: Arrays) -> list[str]:
    """The names of tensors that are not what they should be, to the bit."""
    return [
        name
        for name in {**expected, **actual}
        if name not in actual
        or name not in expected
        or actual[name].dtype != expected[name].dtype
        or actual[name].shape != expected[name].shape
        or actual[name].tobytes() != expected[name].tobytes()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(
        arguments
    )
    # The server is on this machine: no proxy of the user's stands in between.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("asked for", overflow="fold")
    for column in ("requests", "bytes moved", "fewest", "ratio"):
        table.add_column(column, justify="right")
    table.add_column("how")
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="asyncfetch-bytes-") as temporary:
        folder = make(Path(temporary) / "hub" / REPOSITORY, "BF16", SHARDS)
        fixed = overhead(folder)
        with Server(Path(temporary) / "hub") as server:
            for case in cases(source_tensors("BF16")):
                bytes_before, requests_before = server.bytes_sent, len(server.requests)
                try:
                    with asyncfetch.open(
                        REPOSITORY, endpoint=server.url, cache_dir=Path(temporary) / "cache", token=False, offline=False
                    ) as checkpoint:
                        found, note = case.ask(checkpoint), case.note(checkpoint)
                except AsyncfetchError as error:
                    print(f"FAILED: {case.label}: {type(error).__name__}: {error}", file=sys.stderr)
                    return 1
                problems += [f"{case.label}: {name} differs from its source" for name in wrong(found, case.expected)]
                time.sleep(0.05)  # the server counts bytes in its own thread, just after it has sent them
                moved, requests = server.bytes_sent - bytes_before, len(server.requests) - requests_before
                fewest = fixed + sum(tensor.nbytes for tensor in case.expected.values())
                table.add_row(case.label, f"{requests}", f"{moved:,}", f"{fewest:,}", f"{moved / fewest:.2f}", note)
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
