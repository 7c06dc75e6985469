"""One download for many nodes of a Ray cluster: each byte comes over the network once, from there from node to node.

async with asyncfetch.cluster.load_async("org/model", nodes="all", keep="memory") as held:
    state_dict = await held.local_async()  # in any task or actor that `held` was given to

It needs Ray: `pip install 'asyncfetch[ray]'`, on each node.
"""

from __future__ import annotations

from .functions import download, download_async, load, load_async
from .held import HeldCheckpoint
from .results import ClusterSnapshot, NodeSnapshot

__all__ = ["ClusterSnapshot", "HeldCheckpoint", "NodeSnapshot", "download", "download_async", "load", "load_async"]
