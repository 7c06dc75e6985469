"""The keywords of the functions for clusters: who asks and what, as everywhere, and which nodes get it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..api.options import LocalAccess, Planned
from ..format.parallel import TpPlan

__all__ = ["ClusterOptions", "Keep", "Nodes", "TensorParallel"]

Keep = Literal["memory", "disk", "both"]
Nodes = Literal["all"] | int | Mapping[str, str] | Sequence[str]


class ClusterOptions(Planned, LocalAccess, total=False):
    """What the functions take beside the nodes, as `asyncfetch.load_async` has it. `client=` stays on one machine."""

    token: str | bool | None
    offline: bool | None


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """Of a tensor parallel group: which ranks hold their parts. Without a word of it whole tensors are held."""

    world_size: int | None = None
    tp_plan: TpPlan | None = None
    ranks: Sequence[int] | None = None
