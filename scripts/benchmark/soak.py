"""scripts/bench service --soak MINUTES: whether memory and descriptors of a service stay flat.

All kinds of clients come and go: cold and cached readers, ranges, refusals, those who leave, thousands of idle ones.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from . import service as bench
from .origin import Origin

_IDLE = 10_000  # connections, where the system permits so many
_CYCLE = 2.0  # seconds at the least: memory is watched, not speed
_GROWTH = 1.1  # of the most memory, from the second third of the time to the last one


def main(options: argparse.Namespace, data: Path) -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    samples: list[tuple[int, int]] = []
    with Origin(data, options.work / "nginx") as origin, bench.served(origin, options.work) as service:
        cycle(service.url, options.work, random.Random(0))  # what is made once
        before = descriptors(service.pid)
        with ExitStack() as stack:
            idle = min(_IDLE, hard - 1000)
            began, number = time.monotonic(), 0
            while time.monotonic() - began < options.soak * 60:
                number += 1
                if number % 20 == 1:  # the server closes them after a minute
                    stack.pop_all().close()
                    for _ in range(idle):
                        stack.enter_context(dial(service.url))
                started = time.monotonic()
                cycle(service.url, options.work, random.Random(number))
                samples.append((memory(service.pid), descriptors(service.pid)))
                if number % 10 == 1:
                    shown = f"{samples[-1][0] / 1e6:.0f} MB, {samples[-1][1]} descriptors"
                    print(f"{time.monotonic() - began:4.0f} s: {shown}", file=sys.stderr)
                time.sleep(max(started + _CYCLE - time.monotonic(), 0))
        after = settled(service.pid, before)
    third = len(samples) // 3
    middle, last = (max(one[0] for one in part) for part in (samples[third : 2 * third], samples[2 * third :]))
    print(f"{number} cycles beside {idle} idle connections")
    print(f"most memory: {middle / 1e6:.0f} MB in the second third, {last / 1e6:.0f} MB in the last")
    print(f"descriptors: {before} before, {max(one[1] for one in samples)} at most, {after} after")
    return int(last > middle * _GROWTH or after > before + 8)


def cycle(url: str, work: Path, draw: random.Random) -> None:
    """What many clients do at the same time, after one file has gone from the cache."""
    shutil.rmtree(work / "service-cache" / "models--bench--other", ignore_errors=True)
    other, cached = (f"{url}/bench/{name}/resolve/main/model.safetensors" for name in ("other", "cached"))
    ranges = [draw.randrange(200 << 20) for _ in range(16)]
    with ThreadPoolExecutor(32) as pool:
        for start in ranges:
            pool.submit(ask, cached, start, start + (1 << 20))
            pool.submit(ask, other, start, start + (1 << 20))
        for _ in range(4):
            pool.submit(leave, other)
            pool.submit(leave, cached)
            pool.submit(ask, other, 0, None)
        for number in range(20):
            pool.submit(ask, cached.replace("model.s", f"none{number}.s"), 0, 1)
            pool.submit(ask, f"{url}/api/models/bench/cached/tree/main", 0, None)


def ask(url: str, start: int, stop: int | None) -> None:
    """Read a range, or to the end; a refusal is an answer too."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-{'' if stop is None else stop - 1}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            while answer.read(1 << 20):
                pass
    except urllib.error.HTTPError as refused:
        refused.close()


def leave(url: str) -> None:
    """Begin to read, and go."""
    with dial(url) as sock:
        sock.sendall(f"GET {urlsplit(url).path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        sock.recv(1000)
        time.sleep(0.1)


def dial(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 80), 60)


def memory(pid: int) -> int:
    """Bytes of a process that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def settled(pid: int, wanted: int) -> int:
    """How many descriptors are open once those of the clients are gone, or after a while."""
    until = time.monotonic() + 30
    while (found := descriptors(pid)) > wanted and time.monotonic() < until:
        time.sleep(0.2)
    return found
