"""Which nodes get a checkpoint, whether it fits there, and who of them fetches what. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import DiskFullError, SourceError
from ..spans import MiB
from ..words import some_of
from .options import Nodes

__all__ = [
    "Node",
    "NodeState",
    "check_room",
    "chosen",
    "connections_a_file",
    "nodes_of",
    "piece_bytes",
    "spread",
    "tasks_at_once",
]

_MOST_TASKS = 4  # shards that one node receives at once
_MANY, _LARGE = 4, MiB  # files that are large
_MOST_PIECE = 32 * MiB  # of a file on its way from a disk to others


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster that is alive. `memory` and `store` are bytes, of the latter those that are free."""

    id: str
    address: str
    memory: int = 0
    store: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeState:
    """What a node says of itself: the version of asyncfetch there, free bytes (None: not told) at the cache `root`,
    and how many bytes of each file are on its disk. `room`: the bytes that a missing one takes more, if not the rest.
    """

    version: str
    root: str
    free: int | None
    present: Mapping[str, int]
    room: Mapping[str, int] = field(default_factory=dict)


def nodes_of(table: Iterable[Mapping[str, object]], free: Mapping[str, Mapping[str, float]]) -> list[Node]:
    """The nodes that are alive, by the table of `ray.nodes()` and what each has free, in the order of their ids."""
    found = []
    for row in table:
        if row["Alive"]:
            node_id, resources, labels = str(row["NodeID"]), row["Resources"], row.get("Labels") or {}
            assert isinstance(resources, Mapping)  # noqa: S101
            assert isinstance(labels, Mapping)  # noqa: S101
            store = free.get(node_id, resources).get("object_store_memory", 0)
            address = str(row["NodeManagerAddress"])
            found.append(Node(node_id, address, int(resources.get("memory", 0)), int(store), labels))
    return sorted(found, key=lambda node: node.id)


def chosen(nodes: Sequence[Node], wanted: Nodes, so_far: Collection[str] = ()) -> list[Node]:
    """Those of `nodes` that are wanted; of a number first those that have it, `so_far`, then those with most room.

    Raises SourceError where there are too few, or one that is named is not there.
    """
    if wanted == "all":
        return list(nodes)
    if isinstance(wanted, int):
        if len(nodes) < wanted:
            raise SourceError(f"{wanted} nodes are wanted, and the cluster has {len(nodes)}.")
        return sorted(nodes, key=lambda node: (node.id not in so_far, -node.store))[:wanted]
    if isinstance(wanted, Mapping):
        found = [node for node in nodes if wanted.items() <= node.labels.items()]
        if not found:
            labels = ", ".join(f"{name}={value}" for name, value in wanted.items())
            raise SourceError(f"No node of the cluster has the labels {labels}.")
        return found
    known = {node.id: node for node in nodes} | {node.address: node for node in nodes}
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    missing = [name for name in names if name not in known]
    if missing and not so_far:
        raise SourceError(f"The cluster has no node {some_of(missing, 3)}.", hint="Give ids as `ray list nodes` does.")
    return list({known[name].id: known[name] for name in names if name in known}.values())


def check_room(
    node: Node, state: NodeState, sizes: Mapping[str, int], *, in_memory: int, on_disk: Collection[str]
) -> None:
    """See that a node has room: in its store for `in_memory` bytes, at its cache for those files `on_disk`.

    Raises DiskFullError, which names the node and the bytes.
    """
    if in_memory > node.store:
        where = f"The object store of node {node.address} ({node.id[:12]})"
        error = DiskFullError(where, needed=in_memory, free=node.store)
        error.hint = 'Start Ray there with a larger --object-store-memory, or use keep="disk".'
        raise error
    needed = sum(state.room.get(name, sizes[name] - state.present.get(name, 0)) for name in on_disk)
    if state.free is not None and needed > state.free:
        raise DiskFullError(f"Node {node.address} ({node.id[:12]}), {state.root}", needed=needed, free=state.free)


def spread(sizes: Mapping[str, int], nodes: Sequence[str], present: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """The node that brings each file: who has most of it, else the largest first to who has least to do."""
    load, places = dict.fromkeys(nodes, 0), dict[str, str]()
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        best = min(nodes, key=lambda node: (-present.get(node, {}).get(name, 0), load[node]))
        places[name] = best
        load[best] += sizes[name] - present.get(best, {}).get(name, 0)
    return places


def tasks_at_once(memory: int, largest: int) -> int:
    """How many shards a node with so much memory receives at once: each needs its size twice, here and in the store."""
    return max(1, min(_MOST_TASKS, memory // 2 // max(2 * largest, 1)))


def connections_a_file(most: int, sizes: Iterable[int]) -> int:
    """How many of `most` connections fetch one file, where those of such sizes are fetched side by side.

    With many files one for each: what another one takes over of its end may have been sent already, and is sent twice.
    """
    files = sum(size > _LARGE for size in sizes)
    return 1 if files >= _MANY else max(most // max(files, 1), 1)


def piece_bytes(nodes: Iterable[Node]) -> int:
    """How much of a file goes through the store in one piece: little, where a store is small or full."""
    least = min((node.store for node in nodes), default=0)
    return max(MiB, min(_MOST_PIECE, least // 16))
