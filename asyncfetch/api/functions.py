"""The public functions: a client for one call each, and their blocking twins.

The twins run the same coroutine in an event loop of their own, in a thread: they work without a
loop, inside a running one (a notebook), under trio, and Ctrl-C cancels them. They block the
calling thread: in async code use the `_async` functions.
"""

from __future__ import annotations

import inspect as signatures
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Unpack, overload

from ..errors import SourceError
from ..tasks import off_loop
from .blocking import blocking, blocking_block
from .blocks import Opening, Streaming
from .client import Client
from .options import (
    AsNumpy,
    AsTorch,
    DeviceLike,
    DownloadOptions,
    DTypeLike,
    Framework,
    InspectOptions,
    LoadOptions,
    OpenOptions,
    PlanOptions,
    ReadOptions,
    Source,
    Storage,
    StreamOptions,
    VerifyOptions,
    spelled_out,
    split,
)
from .public import imported, public, refuse_misfits

if TYPE_CHECKING:
    from ..events import Resolved
    from ..format.dtypes import Array
    from ..models.into import Rename, Skip, Strict
    from .call import LoadReport
    from .opened import Checkpoint
    from .options import Tensor
    from .results import Inspection, Snapshot, StateDict, VerifiedFile
    from .streaming import Tensors

__all__ = [
    "download", "download_async", "dry_run", "dry_run_async", "inspect", "inspect_async", "load", "load_async",
    "load_inspected", "load_inspected_async", "load_into", "load_into_async", "open", "open_async", "stream",
    "stream_async", "verify", "verify_async",
]  # fmt: skip


@overload
async def load_async(source: Source, *, framework: AsNumpy = ..., **options: Unpack[LoadOptions]) -> StateDict: ...
@overload
async def load_async(source: Source, *, framework: AsTorch, **options: Unpack[LoadOptions]) -> StateDict[Tensor]: ...
@public(ReadOptions)
async def load_async(
    source: Source,
    *,
    dtype: DTypeLike | None = None,
    framework: Framework = "numpy",
    device: DeviceLike | None = None,
    rename: Rename = None,
    storage: Storage = "disk",
    **options: Unpack[ReadOptions],
) -> StateDict[Any]:
    """Download a checkpoint and return its state dict: tensor names to numpy arrays.

    The index (`model.safetensors.index.json`) is read first; the distinct shards that it names are
    fetched at once, each with retry, resume and its hash checked; then all are merged. A source
    without an index gives its single file. The index decides: exactly the tensors that it lists,
    each from the shard that it names.

    Args:
        source: `"owner/name"` or `"owner/name@revision"` on the Hub; an http(s) URL of a folder, an
            index or a .safetensors file; the same three in a bucket (s3://, gs://, az://); or a local path of them.
        dtype: cast floating tensors to this floating dtype, one at a time: a dtype of numpy, ml_dtypes or
            torch, or its name, such as `"bfloat16"` or `"fp16"`.
        framework: `"torch"` gives each array as a tensor of torch on the same memory (`asyncfetch.to_torch`).
        device: with `"torch"`, where the tensors are to be: `"cuda"`, a torch.device; None and `"cpu"`: that memory.
        rename: {name: new name}, a pair of prefixes such as `("module.", "")`, several, or a function of a
            name. A new name of None leaves the tensor out.
        storage: `"disk"` keeps shards in the Hugging Face cache and returns views on a private map
            of them; `"memory"` receives into one buffer per shard and writes nothing.
        **options

    Returns:
        Arrays in the shapes of the checkpoint, writable, in the order of the index. BF16 and F8 come
        in the dtypes of ml_dtypes; F4 and F6 as `PackedArray`, raw bytes with their logical shape. Of torch
        they are in its own dtypes; F6, which it lacks, as raw bytes.

    Raises:
        AsyncfetchError: one of its kinds, see `asyncfetch.errors`. Never an ExceptionGroup.
    """
    form: dict[str, Any] = {"dtype": dtype, "framework": framework, "device": device, "rename": rename}
    access, wanted = split(options)
    async with Client(**access) as client:
        loaded: StateDict[Any] = await client.load(source, **form, storage=storage, **wanted)
        return loaded


@public(ReadOptions)
async def load_inspected_async(
    source: Source, *, dtype: DTypeLike | None = None, storage: Storage = "disk", **options: Unpack[ReadOptions]
) -> tuple[StateDict, Inspection]:
    """What `load_async` and `inspect_async` return, of one checkpoint that was located once.

    Not public: the command line lists what it loads.
    """
    access, wanted = split(options)
    async with Client(**access) as client, client._call("load", source, wanted, storage) as call:
        return await call.load_inspected(dtype)


@public(DownloadOptions)
async def download_async(source: Source, **options: Unpack[DownloadOptions]) -> Snapshot:
    """Download a checkpoint and all beside it that holds no weights, and return where the files are.

    So what `transformers` and the like need is there: config, tokenizer, templates, code. Each file is held
    against its hash. Weights of other formats (.bin, .onnx, .gguf and so on) and copies of the same weights
    are left out. `files=` and `include=` bring other files, whether there is a checkpoint or not. A plain web
    server lists nothing: from there only the checkpoint comes, or what `files=` names.

    Args:
        source: as in `load_async`.
        **options

    Raises the errors of `load_async`.
    """
    access, wanted = split(options)
    async with Client(**access) as client:
        return await client.download(source, **wanted)


@public(PlanOptions)
async def dry_run_async(source: Source, **options: Unpack[PlanOptions]) -> Resolved:
    """What `download` would do: every file with its size and the bytes that are here already.

    Nothing is written.

    Args:
        source: as in `load_async`.
        **options

    Raises the errors of `load_async`.
    """
    access, wanted = split(options)
    async with Client(**access) as client:
        return await client.dry_run(source, **wanted)


@public(InspectOptions)
async def inspect_async(source: Source, **options: Unpack[InspectOptions]) -> Inspection:
    """What a checkpoint holds, from its index and the headers of its shards, read by range.

    No shard is downloaded and nothing is written. The result tells its tensors, how many parameters they
    have, how weights are quantised, and the memory that each way of loading takes.

    Args:
        source: as in `load_async`.
        **options

    Raises the errors of `load_async`.
    """
    access, wanted = split(options)
    async with Client(**access) as client:
        return await client.inspect(source, **wanted)


@public(VerifyOptions)
async def verify_async(source: Source, **options: Unpack[VerifyOptions]) -> tuple[VerifiedFile, ...]:
    """Hash the cached files of a checkpoint again and hold them against what they should be.

    No request is sent. A file whose hash is wrong is in the result, not an error.

    Args:
        source: as in `load_async`.
        **options

    Raises OfflineError if the checkpoint is not in the cache.
    """
    access, wanted = split(options)
    async with Client(**access, offline=True, token=False) as client:
        return await client.verify(source, **wanted)


@public(ReadOptions)
async def load_into_async(
    model: object,
    source: Source | Mapping[str, Array],
    *,
    strict: Strict = True,
    assign: bool = True,
    dtype: DTypeLike | None = None,
    rename: Rename = None,
    skip: Skip = (),
    device: DeviceLike | None = None,
    storage: Storage = "disk",
    memory_limit: int | None = None,
    **options: Unpack[ReadOptions],
) -> LoadReport:
    """Load a checkpoint, or a state dict that is here already, into a model.

    `model` is a `torch.nn.Module`, or nested dicts and lists of numpy arrays with the same names
    joined by dots. `asyncfetch.models` has `parameters_on_meta`, for a model that takes no memory until
    it is loaded, and `load_state_dict_into`, which tells all that is judged.

    Names, shapes and dtypes are known from the headers: what does not fit, or would have no values
    afterwards, is refused before the first shard is downloaded. The tensors are then streamed in, so
    that what is downloaded never exists twice. With `assign=True` the model takes over the arrays in the
    end, all or none. With `assign=False` each is copied, in a worker thread, when its shard is verified:
    a download that fails half-way leaves a model of which a part has its new values. Where only the
    values can tell whether all fits (a module with load hooks of its own, several names of what is one
    tensor in the model), the state dict is collected and judged as a whole.

    Args:
        model: what is filled.
        source: as in `load_async`, or a state dict, which takes only the six options that follow.
        strict: a missing or an unexpected name is an error; `"missing"`: a missing one alone.
        assign: whether the model takes over the arrays, or their values are copied.
        dtype: as in `load_async`, or `"auto"` for the dtypes of the checkpoint; None keeps those of the model.
        rename: {name: new name}, a pair of prefixes such as `("module.", "")`, several, or a function.
        skip: tensors of the model that keep what they hold: a glob, several, or a predicate over names.
        device: where a torch module that is on meta comes to be, such as `"cuda"`; its buffers follow.
        storage: as in `load_async`.
        memory_limit: as in `stream_async`.
        **options

    Raises ModelMismatchError, SourceError, and the errors of `load_async`.
    """
    wishes: dict[str, Any] = {"strict": strict, "assign": assign, "dtype": dtype, "rename": rename, "skip": skip}
    wishes["device"] = device
    if isinstance(source, Mapping):
        given = {"memory_limit": memory_limit, **options}
        if extra := [name for name, value in given.items() if value is not None]:
            raise SourceError(f"A state dict takes no options such as {extra[0]}=.")
        return await _put(model, source, **wishes)
    access, wanted = split(options)
    async with Client(**access) as client:
        return await client.load_into(model, source, **wishes, storage=storage, memory_limit=memory_limit, **wanted)


async def _put(model: object, tensors: Mapping[str, Array], **wishes: Any) -> LoadReport:
    models = await imported("models.into")
    report: LoadReport = await off_loop(lambda: models.load_state_dict_into(model, tensors, **wishes), slow=True)
    return report


@overload
def open_async(source: Source, *, framework: AsNumpy = ..., **options: Unpack[OpenOptions]) -> Opening[Checkpoint]: ...
@overload
def open_async(
    source: Source, *, framework: AsTorch, **options: Unpack[OpenOptions]
) -> Opening[Checkpoint[Tensor]]: ...
@spelled_out(ReadOptions)
def open_async(
    source: Source,
    *,
    dtype: DTypeLike | None = None,
    framework: Framework = "numpy",
    device: DeviceLike | None = None,
    **options: Unpack[ReadOptions],
) -> Opening[Checkpoint[Any]]:
    """Open a checkpoint: its index and headers are read, its tensors are fetched when they are asked for.

        async with asyncfetch.open_async("org/model") as checkpoint:
            rows = await checkpoint.tensor("embed.weight", np.s_[:1000])
            mine = await checkpoint.shard_of("lm_head.weight", rank=2, world_size=4)

    Without a block, `checkpoint = await asyncfetch.open_async("org/model")` is open until
    `await checkpoint.aclose()`. A checkpoint that could not be loaded cannot be opened. `verify` and
    `checksums` concern the files that are on disk already; of a range only its place, the size and
    the ETag of the file can be checked (see `Checkpoint`). Nothing is written. Connections live as
    long as it is open, and what is raised in the block passes through unchanged.

    Args:
        source: as in `load_async`.
        dtype: the default of all calls, as in `load_async`.
        framework, device: as in `load_async`.
        **options

    Raises the errors of `load_async`.
    """
    form = {"dtype": dtype, "framework": framework, "device": device}
    refuse_misfits("open_async", _OPEN, (source,), {**form, **options})
    access, wanted = split(options)

    async def make() -> Checkpoint[Any]:
        async with AsyncExitStack() as holds:
            client = await holds.enter_async_context(Client(**access))
            return await client._opened(source, wanted, holds, **form)

    return Opening(make)


@overload
def stream_async(source: Source, *, framework: AsNumpy = ..., **options: Unpack[StreamOptions]) -> Streaming: ...
@overload
def stream_async(source: Source, *, framework: AsTorch, **options: Unpack[StreamOptions]) -> Streaming[Tensor]: ...
@spelled_out(ReadOptions)
def stream_async(
    source: Source,
    *,
    dtype: DTypeLike | None = None,
    framework: Framework = "numpy",
    device: DeviceLike | None = None,
    rename: Rename = None,
    storage: Storage = "disk",
    early: bool = False,
    memory_limit: int | None = None,
    **options: Unpack[ReadOptions],
) -> Streaming[Any]:
    """The tensors of a checkpoint as pairs of name and array, while the rest is still downloaded.

        async with asyncfetch.stream_async("org/model", storage="memory") as tensors:
            async for name, array in tensors:
                ...

    It gives the same tensors as `load_async`: those of one shard together, the shards in the order in which they come.
    A shard is handed over when its hash was checked.

    `early=True` hands a tensor over as soon as its own bytes are here, before the hash of its shard is known. If
    that turns out wrong, the iteration ends with ChecksumMismatchError instead of another download, since tensors
    that were handed over may be wrong: use none of them before the iteration has ended without an error. In memory
    each shard is then received over one connection.

    `storage="memory"` writes nothing, and each array has 64-byte aligned memory of its own, free once the array is
    dropped (what is on disk already is mapped instead). `memory_limit` bounds it, in bytes: a tensor is received
    only while those that are being received or not yet consumed stay within the limit, so a slow reader slows the
    download down. A tensor counts as consumed when the next one is asked for. One shard (with `early`, one tensor)
    always has its memory, however large. The default is 1.25 times the largest shard (with `early`, twice the
    largest tensor), and at least 64 MiB. `dtype` casts one tensor at a time.

    `storage="disk"` fills the cache as `load_async` does, without waiting for the reader, and `memory_limit` has no
    effect. Arrays are views on a private map of the shard; with `early`, copies read from the file that is being
    downloaded.

    On a CUDA `device` a tensor may be on its way when it is given; the stream that is then current waits for it.

    Leaving the block cancels what is not finished: what came stays in the cache, and the next load goes on from
    there. Enter, iterate and leave in one task.

    Args:
        source, dtype, framework, device, rename: as in `load_async`.
        storage, early, memory_limit: as told above; the limit is in bytes.
        **options

    Raises what `load_async` raises, on entering or, once the download has begun, where the next tensor is asked for
    and after all that landed. Never an ExceptionGroup. SourceError if the iterator is used after the block.
    """
    form: dict[str, Any] = {"dtype": dtype, "framework": framework, "device": device, "rename": rename}
    form |= {"early": early, "memory_limit": memory_limit}
    refuse_misfits("stream_async", _STREAM, (source,), {**form, "storage": storage, **options})
    access, wanted = split(options)

    async def enter(holds: AsyncExitStack) -> Tensors[Any]:
        client = await holds.enter_async_context(Client(**access))
        return await client._streamed(source, wanted, storage, holds, **form)

    return Streaming(enter)


_OPEN = signatures.signature(open_async)
_STREAM = signatures.signature(stream_async)

load = blocking(load_async)
load_inspected = blocking(load_inspected_async)
download = blocking(download_async)
dry_run = blocking(dry_run_async)
inspect = blocking(inspect_async)
verify = blocking(verify_async)
load_into = blocking(load_into_async)
open = blocking_block(open_async)  # noqa: A001
stream = blocking_block(stream_async)
