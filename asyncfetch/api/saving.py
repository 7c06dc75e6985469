"""What writes checkpoints: a state dict into a folder, and one checkpoint as another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ..events import Notifier
from ..tasks import off_loop
from .blocking import blocking
from .client import Client
from .hearing import listener
from .options import DTypeLike, ReadOptions, Source, Told, split
from .public import imported, public
from .results import Snapshot
from .telling import Telling

if TYPE_CHECKING:
    from ..models.names import Rename

__all__ = ["convert", "convert_async", "save", "save_async"]

_NAMES = "model{suffix}.safetensors"


@public(Told)
async def save_async(
    state_dict: Mapping[str, Any],
    folder: Source,
    *,
    max_shard_size: int | str | None = "5GB",
    metadata: Mapping[str, str] | None = None,
    filename_pattern: str = _NAMES,
    **options: Unpack[Told],
) -> Snapshot:
    """Write a state dict into a folder, as one safetensors file or as shards with their index.

    Shards, their names, the index and the metadata are those of huggingface_hub's `save_torch_state_dict`, so
    transformers, safetensors and asyncfetch load it. An older checkpoint of the same names in the folder is replaced
    as a whole: it is there until all of the new one is written, synced and read back, also if the process is killed
    or the power fails. What was left of it is removed last. Other files in the folder stay. No more than some
    megabytes are copied at a time, so nothing of the state dict is in memory twice.

    One tensor of torch under several names is written once, under the first of them in the alphabet, and the
    metadata says of the others whose they are, as `load_into`, `open` and safetensors' `load_model` understand. Other
    tensors of torch that share memory are refused. Arrays of numpy are written each under its name.

    Args:
        state_dict: names to arrays of numpy or JAX, or tensors of torch, on any device, of any strides.
        folder: where to; it is made if there is none.
        max_shard_size: a size such as `"5GB"` (10**9 bytes each) or `"512MiB"`, or a number of bytes, which no shard
            exceeds but that of a single larger tensor; None: one file, whatever its size.
        metadata: said in the index, or in the file if it is one.
        filename_pattern: how files are called: `{suffix}` becomes `-00001-of-00002` or nothing.
        **options

    Returns:
        A `Snapshot`, whose `files` are what was written.

    Raises:
        SourceError: for what the format does not have, and a folder that is a snapshot of the cache.
        StorageError: where the disk refuses, and where another process is saving there. DiskFullError: no room.
    """
    code = await imported("saving.state_dict")
    target: Path = code.named_folder(folder)
    notify = Notifier(listener(options.get("report")))

    def work() -> dict[str, Path]:
        draft, names = code.drafted(state_dict, max_shard_size, metadata, filename_pattern)
        files: dict[str, Path] = code.saved(draft, target, names, lambda sizes: Telling(notify, str(target), sizes))
        return files

    return Snapshot(target, None, await off_loop(work, slow=True))


@public(ReadOptions)
async def convert_async(
    source: Source,
    folder: Source,
    *,
    dtype: DTypeLike | None = None,
    rename: Rename = None,
    max_shard_size: int | str | None = "5GB",
    metadata: Mapping[str, str] | None = None,
    filename_pattern: str = _NAMES,
    weights_only: bool = False,
    **options: Unpack[ReadOptions],
) -> Snapshot:
    """Write a checkpoint into a new folder as another one: merged, in other shards, cast, renamed, dequantised.

    What is not here yet is downloaded into the cache first, and verified, as `download_async` does it. Then the
    tensors go from file to file, a few megabytes at a time, however large they are. Files, index and metadata are
    those of `save_async`, in the order of the source's index. Config, tokenizer and what else lies beside the shards
    is copied, but nothing hidden, such as `.git`; the dtype that a config.json tells is that of the new weights, and
    where they are dequantised it says nothing of that any more.

    The folder must be empty, or not exist. Its index, or its one file, appears when all is there. A run that was
    interrupted or killed goes on where it was, by the same call, with the shards that were whole.

    Args:
        source: as in `load_async`.
        folder: where to.
        dtype: cast floating tensors to this one, as in `load_async`. What is too large for it is told in a warning.
        rename: as in `load_async`.
        max_shard_size, metadata, filename_pattern: as in `save_async`; `max_shard_size=None` merges all into one file.
        weights_only: bring nothing of what lies beside the shards. A source that is one file has nothing beside it.
        **options

    Returns:
        A `Snapshot`, whose `files` are all that was written.

    Raises SourceError for what would be wrong: two tensors under one name, a scaled weight that is cast or renamed
    without its scale, a folder that is not empty, or the source itself, or in it (of one file, that in which it lies);
    and the errors of `load_async`.
    """
    form: dict[str, Any] = {"dtype": dtype, "rename": rename, "max_shard_size": max_shard_size, "metadata": metadata}
    access, wanted = split(options)
    async with Client(**access) as client:
        return await client.convert(
            source, folder, **form, filename_pattern=filename_pattern, weights_only=weights_only, **wanted
        )


save = blocking(save_async)
convert = blocking(convert_async)
