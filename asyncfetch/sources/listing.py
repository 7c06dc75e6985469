"""Which files of a source are wanted: beside a checkpoint those that hold no weights, or those that are named. Pure.

The weights of other frameworks, and copies of the same weights, are many times as large as all that a loader needs
beside the checkpoint, and are of no use to who has it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import EntryNotFoundError, SelectionError, SourceError
from ..format.hostile import short_repr
from ..format.near import near_name
from ..storage.cache import path_inside
from ..words import counted, fit_to_show

__all__ = [
    "Chosen", "chosen_of", "companions_of", "holds_weights", "is_hidden", "is_odd", "nothing_called", "without_odd",
    "words_of_odd",
]  # fmt: skip

_SHOWN = 8  # names in an error
_ODD = 3  # that are named

# Endings of files with weights, by what writes them: PyTorch and pickles, TensorFlow, Flax, Rust, ONNX, TensorRT,
# llama.cpp, mobile runtimes, Core ML, NeMo, numpy; and archives, of which nothing tells what is in them.
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".hdf5", ".keras", ".pb",
    ".msgpack", ".ot", ".onnx", ".onnx_data", ".engine", ".plan", ".trt", ".gguf", ".ggml", ".llamafile", ".tflite",
    ".task", ".litertlm", ".mlmodel", ".mlpackage", ".nemo", ".mar", ".pte", ".npz", ".npy",
    ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar",
)  # fmt: skip
_INSIDE = (".mlpackage/", ".mlmodelc/", ".keras/", "saved_model/variables/")
_INDEX = re.compile(r"\.(safetensors|bin|h5|msgpack)[\w\-.]*\.json$")
_PART = re.compile(r"\.(onnx_data|onnx\.data|gguf|bin|pt)([_\-.]?(part)?\d+)?$")
# What sentence-transformers puts behind the encoder, each in a numbered folder with weights of its own
# (https://sbert.net/docs/package_reference/sentence_transformer/models.html).
_MODULE = re.compile(r"(\d+_[A-Za-z]\w*)/(model\.safetensors|pytorch_model\.bin)")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which files a download brings. `exact`: only what `names` and `include` say, whether it belongs to a checkpoint
    or not; otherwise a checkpoint and its companions. `kept`: only of what is in the cache, and no more is wanted.
    """

    exact: bool = False
    names: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kept: bool = False


def holds_weights(path: str) -> bool:
    """Whether a file holds weights, or is an index of files that do."""
    lower = path.lower()
    return (
        lower.endswith(_WEIGHTS)
        or _INDEX.search(lower) is not None
        or _PART.search(lower) is not None
        or any(inside in lower for inside in _INSIDE)
    )


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder that it is in, has a name that begins with a dot: what tools keep for themselves."""
    return any(part.startswith(".") for part in path.split("/"))


def companions_of(paths: Collection[str], folder: str, exclude: Sequence[str] = ()) -> list[str]:
    """The files in `folder` ("": all of the repository) that hold no weights, but those of a model's own modules."""
    prefix = f"{folder}/" if folder else ""
    return [
        path
        for path in paths
        if path.startswith(prefix)
        and (not holds_weights(path) or _is_module(path[len(prefix) :], prefix, paths))
        and not _matches(path, exclude)
    ]


def _is_module(path: str, prefix: str, paths: Collection[str]) -> bool:
    """Whether it is the weights of a numbered module, and no pickle of what is there as safetensors."""
    match = _MODULE.fullmatch(path)
    if match is None:
        return False
    return match[2] == "model.safetensors" or f"{prefix}{match[1]}/model.safetensors" not in paths


def chosen_of(paths: Collection[str], chosen: Chosen, source: str) -> list[str]:
    """The files that are named or that a glob of `include` matches, without those that one of `exclude` matches.

    Globs are those of huggingface_hub: `*` matches slashes too, and a folder with a slash at its end means all
    that is in it. Without names and globs all files are meant. Raises EntryNotFoundError for a name that is not
    there, for a glob that matches nothing and for an empty source, SelectionError if nothing is left.
    """
    for name in chosen.names:
        if name not in paths:
            raise nothing_called(name, paths, source)
    for glob in chosen.include:
        if not any(_matches(path, [glob]) for path in paths):
            raise nothing_called(glob, paths, source)
    if not paths:
        raise nothing_called("*", paths, source)
    everything = not (chosen.names or chosen.include)
    picked = [path for path in paths if everything or path in chosen.names or _matches(path, chosen.include)]
    left = [path for path in picked if not _matches(path, chosen.exclude)]
    if not left:
        raise SelectionError(f"exclude= leaves no file of {source}.", hint="Exclude less.")
    return left


def _matches(path: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(path, f"{glob}*" if glob.endswith("/") else glob) for glob in globs)


def nothing_called(name: str, paths: Collection[str], source: str) -> EntryNotFoundError:
    """That no file of the source is called so, and what there is instead: first what is called nearly so."""
    near = near_name(name, paths)
    first = sorted(paths, key=lambda path: (path != near, path.count("/"), path))
    shown = [fit_to_show(path) for path in first[:_SHOWN]]
    error = EntryNotFoundError(name, source)
    error.hint = f"It has {counted(shown, len(paths))}." if shown else "It is empty."
    return error


def is_odd(path: str) -> bool:
    """Whether a file has a name that is no path on every system: with a backslash, a drive or a control character.

    One that leads out of the repository is not odd but hostile: who lists that is not believed.
    """
    try:
        path_inside(path)
    except SourceError:
        return not {"", ".", ".."} & {*path.split("/")}
    return False


def without_odd(paths: Sequence[str], named: Collection[str], source: str) -> tuple[list[str], list[str]]:
    """Chosen files without the odd ones; and these. Raises SourceError for one that is `named`, and for all."""
    odd = {path: None for path in paths if is_odd(path)}
    refused = [path for path in odd if path in named] or ([*odd] if len(odd) == len(paths) else [])
    if refused:
        shown = counted([short_repr(path) for path in refused[:_ODD]], len(refused))
        hint = "Leave out such names with exclude=, or have them changed in the repository."
        raise SourceError(f"{source}: what is no path on every system cannot be downloaded: {shown}.", hint=hint)
    return [path for path in paths if path not in odd], [*odd]


def words_of_odd(source: str, odd: Sequence[str]) -> str:
    """The warning of files that are left out for their names."""
    shown = counted([short_repr(path) for path in odd[:_ODD]], len(odd))
    return f"{source} has files whose names are no paths on every system, which are left out: {shown}"
