"""The public functions for clusters, and their blocking twins."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

from ..api.blocking import blocking
from ..api.blocks import Opening
from ..api.options import Source, spelled_out
from ..api.public import public, refuse_misfits, shortened, within
from ..errors import AsyncfetchError, SourceError
from ..format.parallel import TpPlan
from ..tasks import run_as_task
from .driving import brought
from .held import HeldCheckpoint
from .options import ClusterOptions, Keep, Nodes, TensorParallel
from .results import ClusterSnapshot

__all__ = ["download", "download_async", "load", "load_async"]


@spelled_out(ClusterOptions)
def load_async(
    source: Source,
    *,
    nodes: Nodes = "all",
    keep: Keep = "memory",
    companions: bool = True,
    hold: str | None = None,
    world_size: int | None = None,
    tp_plan: TpPlan | None = None,
    ranks: Sequence[int] | None = None,
    **options: Unpack[ClusterOptions],
) -> Opening[HeldCheckpoint]:
    """Download a checkpoint once for many nodes of a Ray cluster, and hold it there.

    It is resolved once, to one commit. Each shard is fetched by one node, verified there, and goes from node to node
    through Ray's object store. A node that has a file in its cache gives it to the others. Nodes that join later get
    it too; a node that dies costs at most its own share. `await` it, or enter it as a block, which releases it.

    A `bandwidth_limit` of the policy is that of each file on its way from the source, of which each node has up to
    four, and not one for the whole cluster.

    Args:
        source: as in `asyncfetch.load_async`: a repository of the Hub, or an http(s) URL.
        nodes: `"all"`; how many; labels, such as `{"ray.io/accelerator-type": "H100"}`; or ids of nodes.
        keep: `"memory"`: each node has the tensors in its object store; `"disk"`: each node has the files in its
            Hugging Face cache, where other programs find them offline; `"both"`.
        companions: with `keep="disk"` and `"both"`, also the files beside the shards that hold no weights.
        hold: a name under which the checkpoint stays when this program ends. The next one that asks for the same
            checkpoint under this name gets it without a byte from the source, at the same commit.
            `HeldCheckpoint.release` ends it.
        world_size: how many ranks a tensor parallel group has, with `tp_plan`: each node then holds the parts of its
            ranks alone, dealt in blocks in the order of the nodes (`HeldCheckpoint.nodes` tells), and of what is not
            split all. A shard of which all is needed is verified, and cut by the node that fetched it; of another
            only what ranks need is fetched, by range, which cannot be held against the hash of the whole: as with
            `asyncfetch.open_async`, its place, the file's size and its ETag are checked.
        tp_plan: which tensors are split: a glob over names to the axis, or to the arguments `axis`, `parts` and `split`
            of `Checkpoint.shard_of`. The first glob that matches counts, and one that matches nothing is an error.
        ranks: the ranks whose parts are wanted here; all, if not given.
        **options

    Raises:
        AsyncfetchError: one of its kinds. DiskFullError names the node whose store or disk is too small, before a
            byte moves; SourceError where Ray is not installed, no cluster is found, or a tensor cannot be split so.
    """
    which: dict[str, Any] = {"nodes": nodes, "keep": keep, "companions": companions, "hold": hold}
    which |= {"world_size": world_size, "tp_plan": tp_plan, "ranks": ranks}
    refuse_misfits("load_async", _LOAD, (source,), {**which, **options})
    return Opening(lambda: _load_async(source, **which, **options))


_LOAD = inspect.signature(load_async)


@spelled_out(ClusterOptions)
async def _load_async(
    source: Source,
    *,
    nodes: Nodes = "all",
    keep: Keep = "memory",
    companions: bool = True,
    hold: str | None = None,
    world_size: int | None = None,
    tp_plan: TpPlan | None = None,
    ranks: Sequence[int] | None = None,
    **options: Unpack[ClusterOptions],
) -> HeldCheckpoint:
    timeout, parallel = options.pop("timeout", None), TensorParallel(world_size, tp_plan, ranks)
    if parallel != TensorParallel() and keep == "disk":
        raise SourceError(
            "The disk of a node has whole files, and ranks hold parts.", hint='Use keep="memory" or keep="both".'
        )
    work = partial(
        brought, source, options, nodes=nodes, keep=keep, companions=companions, hold=hold, parallel=parallel
    )
    try:
        return await within(timeout, lambda: run_as_task(work))
    except AsyncfetchError as error:
        raise shortened(error) from error.__cause__


_load_async.__name__, _load_async.__doc__ = load_async.__name__, load_async.__doc__
load = blocking(_load_async)


@public(ClusterOptions)
async def download_async(
    source: Source, *, nodes: Nodes = "all", companions: bool = True, **options: Unpack[ClusterOptions]
) -> ClusterSnapshot:
    """Download a checkpoint once into the Hugging Face cache of many nodes of a Ray cluster.

    As `load_async` with `keep="disk"`, but nothing stays in memory, and nothing is held afterwards: each node has
    the files, as if `asyncfetch.download_async` had been called there.

    Args:
        source: as in `load_async`.
        nodes: as in `load_async`.
        companions: also the files beside the shards that hold no weights.
        **options

    Raises:
        AsyncfetchError: as `load_async`.
    """
    async with await brought(source, options, nodes=nodes, keep="disk", companions=companions) as held:
        return ClusterSnapshot(held.commit, held.nodes)


download = blocking(download_async)
