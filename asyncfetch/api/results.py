"""What the public functions return."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..format.header import Header, TensorInfo

__all__ = ["Inspection", "ShardInspection", "Snapshot", "VerifiedFile"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint on disk. `path` is its folder, `files` maps names in the source to paths.

    `commit` is the Hub's commit, None for a local folder; for a plain URL it names the state that
    the server's validators describe.
    """

    path: Path
    commit: str | None
    files: dict[str, Path]


@dataclass(frozen=True, slots=True)
class ShardInspection:
    """One shard: `size` and `present` are bytes; `present` of them need no download."""

    file: str
    size: int
    present: int
    header: Header


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a checkpoint holds. `tensors` maps each selected name to (shard, dtype and shape)."""

    source: str
    commit: str | None
    index: str | None
    shards: tuple[ShardInspection, ...]
    tensors: dict[str, tuple[str, TensorInfo]]
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """A cached file after its hash was taken again. `ok` is None where no hash is known for it."""

    file: str
    path: Path
    size: int
    checksum: str | None
    ok: bool | None
    error: str | None
