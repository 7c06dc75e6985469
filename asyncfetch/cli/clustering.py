"""What `asyncfetch cluster-download` takes, and how it tells what each node has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import SourceError
from .options import FLAG, CommonFlags, reporting
from .output import print_json, print_table

if TYPE_CHECKING:
    from ..cluster import ClusterSnapshot
    from ..cluster.options import Nodes

__all__ = ["ClusterFlags", "download_for_cluster"]


@Parameter(name="*")
@dataclass(frozen=True)
class ClusterFlags:
    """Which cluster, and which nodes of it."""

    address: str = "auto"
    """The cluster of Ray, as HOST:PORT. Default: that of RAY_ADDRESS, or of this machine."""
    nodes: Annotated[tuple[str, ...], FLAG] = ()
    """How many, or ids or addresses of nodes, or LABEL=VALUE, repeatable. Default: all."""
    weights_only: Annotated[bool, FLAG] = False
    """The checkpoint alone, without config, tokenizer and the like."""

    def wanted(self) -> Nodes:
        """The nodes as the API takes them. Raises SourceError."""
        if not self.nodes:
            return "all"
        if len(self.nodes) == 1 and self.nodes[0].isdecimal():
            return int(self.nodes[0])
        labels = [text.partition("=")[::2] for text in self.nodes if "=" in text]
        if labels and len(labels) < len(self.nodes):
            raise SourceError("--nodes takes labels, or ids of nodes, not both.")
        return dict(labels) or list(self.nodes)


def download_for_cluster(source: str, arguments: Mapping[str, Any], which: ClusterFlags, flags: CommonFlags) -> None:
    """Download into the cache of each node, and list the nodes. Raises the errors of `asyncfetch.cluster.download`."""
    from ..cluster import download
    from ..cluster.ray_calls import connect

    connect(which.address)
    with reporting(flags) as report:
        companions = not which.weights_only
        found = download(source, nodes=which.wanted(), companions=companions, report=report, **arguments)
    if flags.json:
        nodes = [asdict(node) for node in found.nodes]
        print_json({"type": "result", "command": "cluster-download", "commit": found.commit, "nodes": nodes})
    else:
        _list_nodes(found)


def _list_nodes(found: ClusterSnapshot) -> None:
    """A line for each node: what it brought from the source, what others gave it, and where it has it."""
    rows = [
        (node.address, node.node[:12], node.downloaded, node.received, node.path)
        for node in sorted(found.nodes, key=lambda node: node.address)
    ]
    print_table(
        ["address", "node", "downloaded", "received", "folder"],
        rows,
        right=["downloaded", "received"],
        shortened="folder",
    )
