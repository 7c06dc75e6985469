"""How much memory a stream of tensors takes, and when its first tensor is in hand.

A checkpoint of zeros, which takes no room on disk, is served by this process with the Hub's protocol.
Each row is a process of its own that streams it, looks at every page of each tensor and drops it.
The peak is the process's VmHWM over what it was before, so Linux only. With storage="disk" most of
it is the map of the cached file, which the system takes back when it needs the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from benchmark.checkpoints import write_sparse
from rich.console import Console
from rich.table import Table

import asyncfetch
from asyncfetch.server import Server

REPOSITORY = "demo/zeros"
MiB = 1 << 20
ROWS = {
    "load, memory": {"storage": "memory"},
    "stream, memory": {"storage": "memory", "early": False},
    "stream, memory, early": {"storage": "memory", "early": True},
    "stream, disk": {"storage": "disk", "early": False},
    "stream, disk, early": {"storage": "disk", "early": True},
}


def write_checkpoint(folder: Path, mib: int, shards: int, tensors: int) -> None:
    """`mib` MiB of zeros in `shards` files with `tensors` tensors of equal size each."""
    folder.mkdir(parents=True)
    weight_map = {}
    for number in range(1, shards + 1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        names = [f"shard{number}.tensor{i}" for i in range(tensors)]
        write_sparse(folder / file, dict.fromkeys(names, mib * MiB // shards // tensors))
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)


class Consumer:
    """Looks at arrays, and at the clock when the first one comes."""

    def __init__(self) -> None:
        self.began, self.first, self.count = time.perf_counter(), 0.0, 0

    def take(self, array: np.ndarray) -> None:
        """Read a byte of every page, as a copy to a device would read all."""
        self.first = self.first or time.perf_counter() - self.began
        self.count += 1
        if array.reshape(-1)[::4096].any():
            raise SystemExit("a tensor of zeros holds something else")


def measure(options: dict[str, Any], loop: str) -> dict[str, float]:
    """Stream or load once in this process: peak in bytes, seconds to the first tensor and to the last."""
    asyncfetch.inspect(REPOSITORY)  # what is imported and connected on first use is not counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, consumer = status("VmRSS"), Consumer()
    if loop == "blocking":
        consume(options, consumer)
    else:
        anyio.run(consume_async, options, consumer, backend=loop)
    seconds = time.perf_counter() - consumer.began
    return {
        "peak": status("VmHWM") - before,
        "first": consumer.first,
        "seconds": seconds,
        "tensors": consumer.count,
    }


def consume(options: dict[str, Any], consumer: Consumer) -> None:
    if "early" in options:
        with asyncfetch.stream(REPOSITORY, **options) as tensors:
            for _, array in tensors:
                consumer.take(array)
    else:
        for array in asyncfetch.load(REPOSITORY, **options).values():
            consumer.take(array)


async def consume_async(options: dict[str, Any], consumer: Consumer) -> None:
    if "early" in options:
        async with asyncfetch.stream_async(REPOSITORY, **options) as tensors:
            async for _, array in tensors:
                consumer.take(array)
    else:
        for array in (await asyncfetch.load_async(REPOSITORY, **options)).values():
            consumer.take(array)


@contextmanager
def served(mib: int, shards: int, tensors: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / REPOSITORY, mib, shards, tensors)
        with Server(folder) as server:
            yield server.url


def in_a_process(url: str, options: dict[str, Any], loop: str) -> dict[str, float]:
    """`measure` in a fresh process with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_CACHE": cache, "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, __file__, "--measure", json.dumps(options), "--loop", loop]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=600)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2048, help="size of the checkpoint (default %(default)s)")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--tensors", type=int, default=8, help="in each shard (default %(default)s)")
    parser.add_argument("--memory-limit", type=int, metavar="MIB", help="instead of the default of a stream")
    parser.add_argument("--loop", choices=["blocking", "asyncio", "trio"], default="blocking", help="of the consumer")
    parser.add_argument("--no-disk", action="store_true", help="leave out the rows that fill a cache")
    parser.add_argument("--json", action="store_true", help="one JSON object a row on stdout")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(json.loads(args.measure), args.loop)))
        return
    shard, tensor = args.mib / args.shards, args.mib / args.shards / args.tensors
    table = Table(
        title=f"{args.mib} MiB in {args.shards} shards of {shard:g} MiB, tensors of {tensor:g} MiB; {args.loop}"
    )
    for column in ("", "peak MiB", "in shards", "in tensors", "seconds", "first tensor after"):
        table.add_column(column, justify="right" if column else "left")
    with served(args.mib, args.shards, args.tensors) as url:
        asyncfetch.inspect(REPOSITORY, endpoint=url)  # the server hashes its files once
        for label, options in ROWS.items():
            if args.no_disk and options["storage"] == "disk":
                continue
            limited = {"memory_limit": args.memory_limit * MiB} if args.memory_limit and "early" in options else {}
            row = in_a_process(url, options | limited, args.loop)
            peak = row["peak"] / MiB
            if args.json:
                print(json.dumps({"row": label, **row}), flush=True)
            share = f"{row['first']:.2f} s = {row['first'] / row['seconds']:.0%}"
            table.add_row(
                label, f"{peak:.0f}", f"{peak / shard:.1f}", f"{peak / tensor:.1f}", f"{row['seconds']:.1f}", share
            )
    if not args.json:
        Console().print(table)


if __name__ == "__main__":
    main()
