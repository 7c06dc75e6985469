"""The public functions, and their blocking twins.

The twins run the same coroutine in an event loop of their own, in a thread: they work without a
loop, inside a running one (a notebook), under trio, and Ctrl-C cancels them. They block the
calling thread: in async code use the `_async` functions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from anyio import from_thread, to_thread

from ..engine.bookkeeping import file_states
from ..engine.transfer import Landed
from ..errors import ChecksumMismatchError, StorageError, storage_errors
from ..events import Reporter, Resolved
from ..format.dtypes import Array, dtype_or_none
from ..format.header import TensorInfo
from ..format.index import Selector
from ..policy import Policy
from ..sources.located import Located
from ..storage.checksums import Checksum, verify_file
from ..tasks import in_own_task
from ..tensors.merge import state_dict
from .blocking import blocking
from .results import Inspection, ShardInspection, Snapshot, VerifiedFile
from .session import Session, open_session

__all__ = [
    "download",
    "download_async",
    "dry_run",
    "dry_run_async",
    "inspect",
    "inspect_async",
    "load",
    "load_async",
    "load_inspected",
    "load_inspected_async",
    "verify",
    "verify_async",
]

P = ParamSpec("P")
T = TypeVar("T")
StrPath = str | os.PathLike[str]


@in_own_task
async def load_async(
    source: StrPath,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    select: Selector = None,
    dtype: object = None,
    storage: str = "disk",
    cache_dir: StrPath | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    offline: bool | None = None,
    checksums: Mapping[str, str] | None = None,
    verify: str = "download",
    policy: Policy | None = None,
    client: Any = None,
    report: Reporter | None = None,
) -> dict[str, Array]:
    """Download a checkpoint and return its state dict: tensor names to numpy arrays.

    The index (`model.safetensors.index.json`) is read first; the distinct shards that it names are
    fetched at once, each with retry, resume and its hash checked; then all are merged. A source
    without an index gives its single file. The index decides: exactly the tensors that it lists,
    each from the shard that it names.

    Args:
        source: `"owner/name"` or `"owner/name@revision"` on the Hub; an http(s) URL of a folder, an
            index or a .safetensors file; or a local path of the same three.
        revision: a branch, tag or commit. A full commit hash with all files cached needs no request.
        subfolder: the folder within the source that holds the checkpoint.
        variant: such as `"fp16"`, for file names that carry it.
        select: a glob, a list of globs or a predicate over tensor names. Only the shards that hold
            selected tensors are downloaded.
        dtype: cast floating tensors to this floating dtype, one at a time; `"bfloat16"` is known.
        storage: `"disk"` keeps shards in the Hugging Face cache and returns views on a private map
            of them; `"memory"` receives into one buffer per shard and writes nothing.
        cache_dir: the cache, instead of HF_HUB_CACHE or HF_HOME/hub.
        token: for the Hub only; None finds one as huggingface_hub does, False sends none.
        endpoint: the Hub's address, instead of HF_ENDPOINT.
        offline: send nothing, use the cache; None reads HF_HUB_OFFLINE.
        checksums: `{file: "sha256:<64 hex>"}`, for sources that give no hash.
        verify: `"download"` hashes what is downloaded, `"always"` also what was cached.
        policy: connections, time-outs, retries; None is `Policy.from_env()`.
        client: an `httpx.AsyncClient` to send with. It is neither changed nor closed.
        report: called with each event (see `asyncfetch.events`), on the event loop.

    Returns:
        Arrays in the shapes of the checkpoint, writable, in the order of the index. BF16 and F8 come
        in the dtypes of ml_dtypes; F4 and F6 as `PackedArray`, raw bytes with their logical shape.

    Raises:
        AsyncfetchError: one of its kinds, see `asyncfetch.errors`. Never an ExceptionGroup.
    """
    target = dtype_or_none(dtype)
    async with open_session(
        source, revision=revision, subfolder=subfolder, variant=variant, select=select, storage=storage,
        cache_dir=cache_dir, token=token, endpoint=endpoint, offline=offline, checksums=checksums, verify=verify,
        policy=policy, client=client, report=report,
    ) as session:  # fmt: skip
        located, landed = await session.fetch()
        return await to_thread.run_sync(lambda: state_dict(located, landed, dtype=target))


@in_own_task
async def download_async(
    source: StrPath,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    select: Selector = None,
    cache_dir: StrPath | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    offline: bool | None = None,
    checksums: Mapping[str, str] | None = None,
    verify: str = "download",
    policy: Policy | None = None,
    client: Any = None,
    report: Reporter | None = None,
) -> Snapshot:
    """Download the files of a checkpoint, index included, and return where they are.

    Takes the arguments of `load_async` that concern files, and raises the same errors.
    """
    async with open_session(
        source, revision=revision, subfolder=subfolder, variant=variant, select=select, cache_dir=cache_dir,
        token=token, endpoint=endpoint, offline=offline, checksums=checksums, verify=verify, policy=policy,
        client=client, report=report,
    ) as session:  # fmt: skip
        located, landed = await session.fetch()
        return _snapshot(located, landed)


def _snapshot(located: Located, landed: Mapping[str, Landed]) -> Snapshot:
    files = {name: where.path for name, where in landed.items() if where.path is not None}
    if located.index is not None and located.index_path is not None:
        files = {located.index.file: located.index_path, **files}
    if located.cache is not None and located.commit is not None:
        return Snapshot(located.cache.snapshot(located.commit), located.commit, files)
    return Snapshot(next(iter(files.values())).parent, None, files)


@in_own_task
async def dry_run_async(
    source: StrPath,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    select: Selector = None,
    cache_dir: StrPath | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    offline: bool | None = None,
    checksums: Mapping[str, str] | None = None,
    policy: Policy | None = None,
    client: Any = None,
    report: Reporter | None = None,
) -> Resolved:
    """What a download would do: every file with its size and the bytes that are here already.

    Nothing is written. Takes the arguments of `load_async` and raises the same errors.
    """
    async with open_session(
        source, revision=revision, subfolder=subfolder, variant=variant, select=select, cache_dir=cache_dir,
        token=token, endpoint=endpoint, offline=offline, checksums=checksums, policy=policy, client=client,
        report=report,
    ) as session:  # fmt: skip
        located = await session.locate()
        files = await to_thread.run_sync(file_states, located, "disk")
        return Resolved(located.source, located.commit, located.index.file if located.index else None, files)


@in_own_task
async def inspect_async(
    source: StrPath,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    select: Selector = None,
    cache_dir: StrPath | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    offline: bool | None = None,
    policy: Policy | None = None,
    client: Any = None,
    report: Reporter | None = None,
) -> Inspection:
    """What a checkpoint holds, from its index and the headers of its shards, read by range.

    No shard is downloaded and nothing is written. Raises the errors of `load_async`.
    """
    async with open_session(
        source, revision=revision, subfolder=subfolder, variant=variant, select=select, cache_dir=cache_dir,
        token=token, endpoint=endpoint, offline=offline, policy=policy, client=client, report=report,
    ) as session:  # fmt: skip
        located = await session.locate()
        return await to_thread.run_sync(_inspection, located)


@in_own_task
async def load_inspected_async(
    source: StrPath, *, dtype: object = None, **options: Any
) -> tuple[dict[str, Array], Inspection]:
    """What `load_async` and `inspect_async` return, of one checkpoint that was located once.

    `options` are those of `load_async`. Not public: the command line lists what it loads.
    """
    target = dtype_or_none(dtype)
    async with open_session(source, **options) as session:
        located, landed = await session.fetch()
        return await to_thread.run_sync(lambda: (state_dict(located, landed, dtype=target), _inspection(located)))


def _inspection(located: Located) -> Inspection:
    states = {state.file: state for state in file_states(located, "disk")}
    tensors: dict[str, tuple[str, TensorInfo]] = {}
    shards = []
    for file in located.files:
        shards.append(ShardInspection(file.name, file.size, states[file.name].present, file.known_header))
    by_name = {shard.file: shard for shard in shards}
    metadata: dict[str, Any] = {}
    for shard in shards:
        metadata |= shard.header.metadata
    if located.selected is not None:
        for name, shard_name in located.selected.weight_map.items():
            path = located.path_of(shard_name)
            tensors[name] = (path, by_name[path].header.tensors[name])
        metadata |= located.selected.metadata
    index = located.index.file if located.index else None
    return Inspection(located.source, located.commit, index, tuple(shards), tensors, metadata)


@in_own_task
async def verify_async(
    source: StrPath,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    select: Selector = None,
    cache_dir: StrPath | None = None,
    endpoint: str | None = None,
    checksums: Mapping[str, str] | None = None,
    policy: Policy | None = None,
    report: Reporter | None = None,
) -> tuple[VerifiedFile, ...]:
    """Hash the cached files of a checkpoint again and hold them against what they should be.

    No request is sent. Raises OfflineError if the checkpoint is not in the cache; a file whose hash
    is wrong is in the result, not an error.
    """
    async with open_session(
        source, revision=revision, subfolder=subfolder, variant=variant, select=select, cache_dir=cache_dir,
        token=False, endpoint=endpoint, offline=True, checksums=checksums, policy=policy, report=report,
    ) as session:  # fmt: skip
        return await _verify(session)


async def _verify(session: Session) -> tuple[VerifiedFile, ...]:
    located = await session.locate(headers=False)
    paths = [(file.name, file.path, file.checksum) for file in located.files if file.path is not None]
    if located.index is not None and located.index_path is not None and located.cache is not None:
        known = await to_thread.run_sync(located.cache.checksum_of, located.index_path)
        paths.insert(0, (located.index.file, located.index_path, known))
    return tuple([await to_thread.run_sync(_verify_one, *entry) for entry in paths])


def _verify_one(name: str, path: Path, checksum: Checksum | None) -> VerifiedFile:
    with storage_errors(path):
        size = path.stat().st_size
    if checksum is None:
        return VerifiedFile(name, path, size, None, None, None)
    error = None
    try:
        verify_file(path, checksum, file=name, check=from_thread.check_cancelled)
    except (ChecksumMismatchError, StorageError) as wrong:
        error = wrong.message
    return VerifiedFile(name, path, size, str(checksum), error is None, error)


load = blocking(load_async)
load_inspected = blocking(load_inspected_async)
download = blocking(download_async)
dry_run = blocking(dry_run_async)
inspect = blocking(inspect_async)
verify = blocking(verify_async)
