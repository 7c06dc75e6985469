"""What a download for a cluster returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ClusterSnapshot", "NodeSnapshot"]


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """A checkpoint on the disk of one node: its folder there, or None if it is in memory alone.

    `downloaded` are the bytes that this node brought from the source, `received` those that other nodes gave it.
    `ranks` are those of a tensor parallel group whose parts it holds, where that was asked for.
    """

    node: str
    address: str
    path: Path | None
    downloaded: int
    received: int
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """A checkpoint in the cache of several nodes. `commit` is that of `Snapshot`."""

    commit: str | None
    nodes: tuple[NodeSnapshot, ...]

    @property
    def downloaded(self) -> int:
        """How many bytes came from the source, for all nodes together."""
        return sum(node.downloaded for node in self.nodes)
