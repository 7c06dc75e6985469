"""What a process holds: descriptors, sockets, threads, tasks, memory; and whether a cache is consistent."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import threading
import time
from collections import Counter
from pathlib import Path

import anyio

__all__ = ["Held", "check_cache", "journalled", "published", "resident", "settle", "unfinished"]

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Held:
    """What this process holds now. Two of them are compared with `beyond`."""

    def __init__(self) -> None:
        self.descriptors = Counter(_kinds())
        self.threads = Counter(_thread_names())
        self.tasks = len(anyio.get_running_tasks()) if _in_a_loop() else 0

    def beyond(self, before: Held) -> dict[str, int]:
        """What is held now and was not held `before`; empty if nothing is."""
        more = (self.descriptors - before.descriptors) + (self.threads - before.threads)
        if self.tasks > before.tasks:
            more["tasks"] = self.tasks - before.tasks
        return dict(more)


def _kinds() -> list[str]:
    """Each open descriptor: "socket", "pipe", or the path of the file."""
    kinds = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue  # that of the listing itself
        kinds.append(target.partition(":[")[0])
    return kinds


def _thread_names() -> list[str]:
    """By kind; trio keeps its threads for ten seconds, for whatever loop comes next."""
    names = [thread.name for thread in threading.enumerate()]
    return [name.rstrip("0123456789-_ ()") for name in names if not name.startswith("Trio thread")]


def _in_a_loop() -> bool:
    try:
        anyio.get_current_task()
    except Exception:
        return False
    return True


def resident() -> int:
    """Bytes of memory in use, after what is free was given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def journalled(cache: Path) -> dict[str, int]:
    """Bytes that each journal claims, by the hash of its file."""
    found = {}
    for path in cache.glob("models--*/blobs/*.map.incomplete"):
        spans = json.loads(path.read_text())["spans"]
        found[path.name.partition(".")[0]] = sum(stop - start for start, stop in spans)
    return found


def published(cache: Path) -> int:
    """Bytes of the whole shards."""
    return sum(path.stat().st_size for path in cache.glob("models--*/blobs/*") if len(path.name) == 64)


def unfinished(cache: Path) -> list[Path]:
    """Partials, journals and temporary files."""
    return list(cache.glob("models--*/blobs/*incomplete"))


def check_cache(cache: Path) -> None:
    """A blob is whole, a link leads to one, a ref to a snapshot that is whole, a journal to its partial."""
    for blob in cache.glob("models--*/blobs/*"):
        if "incomplete" not in blob.name and len(blob.name) == 64:
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
        assert not blob.name.endswith(".tmp.incomplete"), blob.name
    for link in cache.glob("models--*/snapshots/*/*"):
        assert link.is_file(), f"{link} leads nowhere"
    for ref in cache.glob("models--*/refs/*"):
        snapshot = ref.parents[1] / "snapshots" / ref.read_text()
        index = json.loads((snapshot / "model.safetensors.index.json").read_text())
        assert all((snapshot / shard).is_file() for shard in index["weight_map"].values())
    for journal in cache.glob("models--*/blobs/*.map.incomplete"):
        partial = journal.with_name(journal.name.replace(".map.", "."))
        assert partial.stat().st_ino == json.loads(journal.read_text())["inode"]


def settle(seconds: float = 2.0) -> None:
    """Wait for threads that have been told to end and have not come to it yet."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(
        "worker thread" in thread.name or "portal" in thread.name for thread in threading.enumerate()
    ):
        time.sleep(0.01)
