"""What a download for a cluster returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ClusterSnapshot"]


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """A checkpoint in the cache of several nodes.

    `commit` is that of `Snapshot`. `paths` maps the id of each node to the folder of the snapshot there;
    `downloaded` counts the bytes that came from the source, for all nodes together.
    """

    commit: str | None
    paths: dict[str, Path]
    downloaded: int
