"""The keywords of the functions for clusters: who asks and what, as everywhere, and which nodes get it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from ..api.options import LocalAccess, Planned

__all__ = ["ClusterOptions", "Keep", "Nodes"]

Keep = Literal["memory", "disk", "both"]
Nodes = Literal["all"] | int | Mapping[str, str] | Sequence[str]


class ClusterOptions(Planned, LocalAccess, total=False):
    """What the functions take beside the nodes, as `asyncfetch.load_async` has it. `client=` stays on one machine."""

    token: str | bool | None
    offline: bool | None
