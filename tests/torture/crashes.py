"""A small model, the states of a cache before a run, and what must hold after a run that was killed or failed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..kit.fault_server import LOOK, FaultServer, Repository, Truncate
from ..kit.files import sharded_bytes
from .child import digest_of
from .runs import ONE_LANE, Forks, Run

__all__ = ["PREFIX", "STATES", "Model", "violations"]

OLD, NEW = "1" * 40, "2" * 40
INDEX = "model.safetensors.index.json"
SHARDS = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
PREFIX = 64 * 1024  # read together with a shard's metadata, whatever is on disk
STATES = ["nothing", "interrupted", "older commit"]


class Model:
    """A repository of three shards on a played Hub, of so many bytes each, and the commit before it."""

    def __init__(self, server: FaultServer, sizes: Sequence[int] = (150_000, 150_000, 150_000)) -> None:
        self.server = server
        random = np.random.default_rng(sizes[0])
        tensors = {
            f"layer.{number}.weight": random.integers(0, 256, size, dtype=np.uint8) for number, size in enumerate(sizes)
        }
        before = {**tensors, "layer.1.weight": tensors["layer.1.weight"][::-1].copy()}
        self.digest = digest_of(tensors)
        self.commits = {OLD: sharded_bytes(before), NEW: sharded_bytes(tensors)}
        self.files = self.commits[NEW]
        self.hashes = {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}
        self.publish(NEW)

    def publish(self, commit: str) -> Repository:
        """Let the branch `main` be at `commit`."""
        self.repository = self.server.hub("org/model", self.commits[commit], commit=commit)
        return self.repository

    def run(self, cache: Path, *, links: bool = True, **settings: Any) -> Run:
        environ = {} if links else {"HF_HUB_DISABLE_SYMLINKS": "1"}
        return Run(self.server.url, str(cache), environ=environ, **settings)

    def prepare(self, forks: Forks, cache: Path, state: str, links: bool) -> None:
        """Leave `cache` as one of STATES: a run that broke in the second shard, or a whole older commit."""
        shutil.rmtree(cache, ignore_errors=True)
        if state == "interrupted":
            path = self.repository.storage[SHARDS[1]]
            self.server.fault(path, LOOK, Truncate(40_000))
            outcome = forks.run(self.run(cache, links=links, policy={**ONE_LANE, "attempts": 1}))
            assert outcome.error == "NetworkError", outcome
            assert self.missing(cache)[SHARDS[1]] == len(self.files[SHARDS[1]]) - PREFIX - 40_000
        elif state == "older commit":
            self.publish(OLD)
            assert forks.run(self.run(cache, links=links)).digest
            self.publish(NEW)
        self.server.seen.clear()

    def missing(self, cache: Path) -> dict[str, int]:
        """For each shard that is not whole, how many bytes are not in the journal of its partial either."""
        folder = cache / "models--org--model"
        left = {}
        for name in SHARDS:
            blob = folder / "blobs" / self.hashes[name]
            if not blob.exists() and not (folder / "snapshots" / NEW / name).exists():
                left[name] = len(self.files[name]) - _journaled(blob)
        return left

    def landed(self, cache: Path) -> dict[str, int]:
        """For each shard that is not whole, the bytes in its partial. The model's are random: no page of them is 0."""
        counts = {}
        for name in self.missing(cache):
            partial = cache / "models--org--model" / "blobs" / f"{self.hashes[name]}.asyncfetch.incomplete"
            data = np.fromfile(partial, np.uint8) if partial.exists() else np.empty(0, np.uint8)
            counts[name] = 4096 * int(data[: len(data) // 4096 * 4096].reshape(-1, 4096).any(axis=1).sum())
        return counts

    def refetched(self, missing: Mapping[str, int]) -> dict[str, int]:
        """For each shard, the bytes that came although they were not `missing`, nor read with the metadata."""
        extra = {}
        for name in SHARDS:
            allowed = min(missing[name] + PREFIX, len(self.files[name])) if name in missing else 0
            extra[name] = max(self.server.sent(self.repository.storage[name]) - allowed, 0)
        return extra


def _journaled(blob: Path) -> int:
    """The bytes that the journal beside an unfinished `blob` lists."""
    partial = blob.with_name(f"{blob.name}.asyncfetch.incomplete")
    path = blob.with_name(f"{blob.name}.asyncfetch.map.incomplete")
    if not path.exists():
        path = path.with_name(f"{path.name}.tmp.incomplete")  # complete before the journal goes for it
    try:
        journal = json.loads(path.read_text())
        same = (journal["inode"], journal["size"]) == (partial.stat().st_ino, partial.stat().st_size)
    except (FileNotFoundError, ValueError):
        return 0
    return sum(stop - start for start, stop in journal["spans"]) if same else 0


def violations(cache: Path, commits: Mapping[str, Mapping[str, bytes]]) -> list[str]:
    """What is wrong in a cache that holds `commits`, or parts of them: names that promise what is not there."""
    folder = cache / "models--org--model"
    wrong = []
    for path in folder.glob("blobs/*"):
        if path.name.endswith(".incomplete"):
            continue
        data = path.read_bytes()
        algorithm = hashlib.sha256(data) if len(path.name) == 64 else hashlib.sha1(b"blob %d\0" % len(data) + data)
        if algorithm.hexdigest() != path.name:
            wrong.append(f"the hash of {path} is not its name")
    for path in folder.glob("snapshots/*/**/*"):
        served = commits.get(path.relative_to(folder).parts[1], {}).get(path.name)
        if not path.exists():
            wrong.append(f"{path} leads nowhere")
        elif path.is_file() and path.read_bytes() != served:
            wrong.append(f"{path} has other bytes than the source")
    for path in folder.glob("refs/**/*"):
        commit = path.read_text()
        if path.name != "main" or not re.fullmatch("[0-9a-f]{40}", commit):
            wrong.append(f"{path} is no ref")
        elif not all((folder / "snapshots" / commit / name).exists() for name in commits[commit]):
            wrong.append(f"{path} names a commit of which files are missing")
    wrong += [f"{path} exists" for path in folder.glob(".no_exist/*/*") if path.name in commits[path.parent.name]]
    return wrong
