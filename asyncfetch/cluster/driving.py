"""What the driver does: it resolves the source, starts the keeper, and passes on what that tells."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import anyio

from ..api.client import Client
from ..api.options import Files, Source, split
from ..errors import SourceError, storage_errors
from ..events import FileState, Finished, Resolved, Warned
from ..network.transport import Transport
from ..sources.located import Located
from ..sources.request import BucketSource, LocalSource, Request
from ..sources.resolve import resolve
from ..storage.checksums import git_blob_id
from ..tasks import off_loop
from .handover import offered
from .held import HeldCheckpoint
from .keeper import Keeper, News
from .layout import GROUP_BYTES
from .options import ClusterOptions, Keep, Nodes, TensorParallel
from .plan import Errand, Plan, stripped
from .ray_calls import connect, placed_at, ray_module, result
from .shares import Shares

__all__ = ["brought"]

NAMESPACE = "asyncfetch"  # of Ray's names, in which holds are found by drivers of any namespace
_STOP = 4.5  # seconds for the keeper to end all, before it is killed


async def brought(
    source: Source,
    options: ClusterOptions,
    *,
    nodes: Nodes,
    keep: Keep,
    companions: bool,
    hold: str | None = None,
    parallel: TensorParallel | None = None,
    most: int = GROUP_BYTES,
) -> HeldCheckpoint:
    """Have a checkpoint brought to nodes. `most` are the bytes of one object. Cancelled, it leaves no task."""
    parallel = TensorParallel() if parallel is None else parallel
    ray = await off_loop(ray_module, slow=True)
    await off_loop(connect, slow=True)
    access, wanted = split(options)
    asked = _asked(source, options, nodes, keep, companions, hold, parallel)
    files: Files | None = None if keep == "memory" else {"weights_only": not companions}
    async with Client(**access) as client, client._call("cluster load", source, wanted, files=files) as call:
        session = call.session
        if (there := await _found(hold, asked)) is not None:
            return await _followed(there, session.notify, hold, began=session.began, found=True)
        plan, request = await _planned(session.request, session.transport, options, most)
        plan.shares = Shares.of(plan.located, parallel.world_size, parallel.tp_plan, parallel.ranks)
        for warning in plan.located.warnings:
            session.notify(Warned(warning))
        plan.located.warnings.clear()
        _tell_files(plan.located, session.notify)
        named = {} if hold is None else {"name": hold, "namespace": NAMESPACE, "lifetime": "detached"}
        # Beside the driver and nowhere else: what it owns is lost with its node.
        here = placed_at(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(Keeper).options(num_cpus=0, max_restarts=0, scheduling_strategy=here, **named)
        try:
            keeper = await off_loop(actor.remote)
        except ValueError as error:  # another driver was faster
            raise SourceError(f"Another driver just began to hold {hold!r}.", hint="Call it again.") from error
        try:
            async with offered(pickle.dumps(request)) as offer:
                await result(keeper.begin.remote(Errand(asked, offer, nodes, keep), plan))
            return await _followed(keeper, session.notify, hold, began=session.began)
        except BaseException:
            await end(keeper)
            raise


async def _planned(request: Request, transport: Transport, options: ClusterOptions, most: int) -> tuple[Plan, Request]:
    """The checkpoint as nodes may know it, and what the keeper needs to ask for its files."""
    if isinstance(request.source, LocalSource | BucketSource):
        raise SourceError(
            f"{request.source} is not downloaded for a cluster: a repository of the Hub or an http(s) URL is.",
            hint="Call asyncfetch.load in each task, or asyncfetch.download on each node.",
        )
    located = await resolve(request, transport)
    if any(not file.key and file.checksum is None for file in located.files):  # cached where links cannot be made
        request = replace(request, cache_root=request.cache_root / ".none")
        located = await resolve(request, transport)
    cache = located.cache
    assert cache is not None  # noqa: S101
    index = await off_loop(lambda: _index_of(located))
    cache_dir = None if options.get("cache_dir") is None else str(request.cache_root.absolute())
    plan = Plan(stripped(located, index), cache.name, cache_dir, request.policy, most)
    plan.located.warnings += located.warnings
    return plan, replace(request, select=None, checksums={}, chosen=None)


def _index_of(located: Located) -> tuple[str, bytes, str] | None:
    """The index as it is to be published: its name, its bytes, and the name of its blob."""
    if located.index is None or located.index_path is None:
        return located.index_file
    with storage_errors(located.index_path):
        data = located.index_path.read_bytes()
    checksum = located.cache.checksum_of(located.index_path) if located.cache else None
    return located.index.file, data, checksum.hex if checksum else git_blob_id(data)


def _tell_files(located: Located, notify: Callable[[Any], None], *, there: bool = False) -> None:
    files = tuple(
        FileState(file.name, file.size, file.size * there, str(file.checksum) if file.checksum else None)
        for file in located.files
    )
    notify(Resolved(located.source, located.commit, located.index.file if located.index else None, files))


async def _followed(
    keeper: Any, notify: Callable[[Any], None], hold: str | None, *, began: float, found: bool = False
) -> HeldCheckpoint:
    """Pass on what the keeper tells, until all nodes have it. Raises what it failed by.

    `found`: it had begun before this call, and what happened until now is told to nobody again.
    """
    news: News = await result(keeper.news.remote(0))
    seen, before = (news.seen, news.downloaded) if found else (0, 0)
    while True:
        news = await result(keeper.news.remote(seen))
        seen = news.seen
        for event in news.events:
            notify(event)
        if news.error is not None:
            raise news.error
        if news.stage == "held":
            break
    plan, refs, there = await result(keeper.held.remote())
    if found:
        _tell_files(plan.located, notify, there=True)
    nbytes, downloaded = sum(file.size for file in plan.located.files), news.downloaded - before
    if plan.shares is not None:
        nbytes = sum(plan.held_bytes(name, plan.all_ranks) for name in plan.shards)
    notify(Finished(len(plan.located.files), nbytes, downloaded, time.monotonic() - began))
    return HeldCheckpoint(plan, refs, there, downloaded, keeper, named=hold is not None)


async def end(keeper: Any) -> None:
    """End a keeper, and with it all that it does and holds. It is not cancelled, and bounded."""
    with anyio.CancelScope(shield=True):
        with suppress(Exception), anyio.move_on_after(_STOP):  # it may have ended by itself
            await result(keeper.stop.remote())
        await off_loop(partial(ray_module().kill, keeper, no_restart=True))


# -- holds -------------------------------------------------------------------------------------


def _asked(
    source: Source,
    options: ClusterOptions,
    nodes: Nodes,
    keep: Keep,
    companions: bool,
    hold: str | None,
    parallel: TensorParallel,
) -> str:
    """What tells one hold from another of the same name: a digest, as addresses may have passwords and signatures."""
    select = options.get("select")
    if hold is not None and callable(select):
        raise SourceError("hold= needs globs: a predicate of select= cannot be compared by another driver.")
    what: tuple[Any, ...] = (os.fspath(source), nodes, keep, companions, select, parallel)
    what += tuple(options.get(name) for name in ("revision", "subfolder", "variant", "endpoint"))
    return hashlib.sha256(json.dumps([str(one) for one in what]).encode()).hexdigest()


async def _found(hold: str | None, asked: str) -> Any | None:
    """The keeper of what is held by a name, None if there is none. Raises SourceError if that is something else."""

    def look() -> Any | None:
        try:
            return ray_module().get_actor(hold, namespace=NAMESPACE)
        except ValueError:
            return None

    keeper = None if hold is None else await off_loop(look)
    if keeper is None:
        return None
    news: News = await result(keeper.news.remote(0))
    if news.stage == "failed":  # and its driver was not there any more to end it
        await end(keeper)
        return None
    if await result(keeper.asked.remote()) != asked:
        raise SourceError(
            f"The cluster holds something else as {hold!r}, or for other nodes.",
            hint="Choose another name, or release what is held.",
        )
    return keeper
