"""Clients of a service, as cheap as they can be, in a process of their own: `python -m scripts.benchmark.readers JOB`.

A job is JSON, {"what": ..., "url": ...}, and so is the answer. What is received is dropped in the kernel.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

_PIECE = 1 << 20


def _dial(url: str) -> tuple[socket.socket, str, str]:
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname or "", parts.port or 80), 60)
    return sock, parts.path, f"Host: {parts.netloc}\r\n"


def _head_of(sock: socket.socket) -> tuple[int, int, int]:
    """The status, the length of the body, and how much of it came along with the head."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(1 << 16)
        if not piece:
            raise SystemExit("a connection ended in the head of an answer")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?im)^content-length: *(\d+)", head)
    return int(head.split()[1]), int(length[1]) if length else 0, len(rest)


def _get(url: str) -> tuple[int, float, float]:
    """Bytes, seconds to the first of them, seconds to the last one."""
    began = time.perf_counter()
    sock, path, host = _dial(url)
    with sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\n{host}\r\n".encode())
        status, length, received = _head_of(sock)
        while not received:
            received += len(sock.recv(_PIECE))
        first = time.perf_counter() - began
        while received < length:
            count = sock.recv_into(_buffer, _PIECE, socket.MSG_TRUNC)
            if not count:
                break
            received += count
    if status != 200 or received != length:
        raise SystemExit(f"{url}: status {status}, {received} of {length} bytes")
    return length, first, time.perf_counter() - began


_buffer = bytearray(_PIECE)


def get(url: str, clients: int, rounds: int = 1) -> dict[str, Any]:
    """Many who read the whole file at once, `rounds` times each."""
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        runs = list(pool.map(_get, [url] * (clients * rounds)))
    seconds = time.perf_counter() - began
    return {
        "first": max(run[1] for run in runs),
        "whole": max(run[2] for run in runs),
        "rate": sum(run[0] for run in runs) / seconds,
    }


async def _heads(url: str, clients: int, seconds: float, pause: float) -> list[float]:
    parts = urlsplit(url)
    request = f"HEAD {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    until, latencies = time.perf_counter() + seconds, list[float]()

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        await asyncio.sleep(pause * number / clients)
        while (began := time.perf_counter()) < until:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in answer[:20]:
                raise SystemExit(f"{url}: {answer[:20]!r}")
            latencies.append(time.perf_counter() - began)
            await asyncio.sleep(pause)
        writer.close()

    await asyncio.gather(*map(one, range(clients)))
    return latencies


def heads(url: str, clients: int, seconds: float, pause: float) -> dict[str, Any]:
    """Many who ask again and again, each `pause` seconds after its last answer."""
    latencies = sorted(asyncio.run(_heads(url, clients, seconds, pause)))
    return {
        "asked": len(latencies),
        "p50": latencies[len(latencies) // 2],
        "p99": latencies[len(latencies) * 99 // 100],
    }


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps({"get": get, "heads": heads}[job.pop("what")](**job)))
