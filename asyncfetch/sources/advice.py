"""What a source holds instead, where no checkpoint was found, and how to name it. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from ..errors import CheckpointNotFoundError, redact_url
from ..words import counted
from .candidates import candidates, is_index_name
from .located import path_in
from .request import HubSource, LocalSource, Request, Source

__all__ = ["look_again"]

_SHOWN = 5  # names in a message
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def look_again(error: CheckpointNotFoundError, names: Sequence[str], request: Request) -> CheckpointNotFoundError:
    """`error`, which says now what there is among the files `names` of the source, and how to name it."""
    source, variant = request.source, request.variant
    folder = source.subfolder if isinstance(source, HubSource) else ""
    inside = [name.removeprefix(f"{folder}/") for name in names if not folder or name.startswith(f"{folder}/")]
    at_hand = [name for name in inside if "/" not in name]
    hints = [
        *_variants(at_hand, variant),
        *_subfolders(inside, folder, request),
        *_single_files(at_hand, folder, request),
        *_pickles(inside),
        *_readings(source),
    ]
    here = f"{error.source} has no safetensors checkpoint{f' in {folder!r}' if folder else ''}"
    there = f"it has {_listed(inside)}" if inside else "it is empty" if not folder else "there is no such folder"
    error.args = (f"{here}{f' of the variant {variant!r}' if variant else ''}; {there}.",)
    if hints:
        error.hint = " ".join(hints)
    return error


def _listed(names: Sequence[str]) -> str:
    weights = [name for name in names if name.endswith((".safetensors", *_PICKLED)) or is_index_name(name)]
    ranked = [*weights, *(name for name in names if name not in set(weights))]
    return counted(ranked[:_SHOWN], len(ranked))


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def _other_variants(here: Collection[str], asked: str | None) -> list[str]:
    """The variants that there are among the files of a folder."""
    parts = {match[1] for name in here for match in re.finditer(r"\.([\w\-]{1,64}?)(?=\.|-\d{5}-of-)", name, re.ASCII)}
    return sorted(one for one in parts if one != asked and not set(here).isdisjoint(candidates(one)))


def _variants(here: Sequence[str], asked: str | None) -> list[str]:
    known = [f"variant={one!r}" for one in _other_variants(here, asked)]
    hints = [f"Pass {' or '.join(known)}."] if known else []
    if asked is not None and not set(here).isdisjoint(candidates(None)):
        hints.append("Without variant= there is one.")
    return hints


def _subfolders(inside: Sequence[str], folder: str, request: Request) -> list[str]:
    """The folders below that hold a checkpoint."""
    wanted = set(candidates(request.variant))
    found = sorted({_folder_of(name) for name in inside if "/" in name and name.rpartition("/")[2] in wanted})
    if isinstance(request.source, HubSource):
        shown = [f"subfolder={path_in(folder, one)!r}" for one in found[:_SHOWN]]
        return [f"Pass {' or '.join(shown)}."] if shown else []
    return [f"Give the folder itself: {_address(request, folder, one)}." for one in found[:_SHOWN]]


def _single_files(here: Sequence[str], folder: str, request: Request) -> list[str]:
    """Files that have names of their own, and so must be named."""
    variants = [None, request.variant, *_other_variants(here, request.variant)]
    known = {name for variant in variants for name in candidates(variant)}
    found = [name for name in here if name not in known]
    indexes = [name for name in found if is_index_name(name) and "safetensors" in name]
    shards = [name for name in found if re.search(r"-\d+-of-\d+\.safetensors$", name)]
    single = [name for name in found if name.endswith(".safetensors") and name not in shards]
    hints = [f"Give the file itself: {_address(request, folder, name)}." for name in (indexes or single)]
    if shards and not indexes:
        hints.append(f"There are shards and no index that names them ({shards[0]}): the upload is incomplete.")
    return hints[:_SHOWN]


def _address(request: Request, folder: str, name: str) -> str:
    source = request.source
    if isinstance(source, HubSource):
        endpoint = redact_url(request.settings.endpoint)
        return f"{endpoint}/{source.name}/blob/{source.revision}/{path_in(folder, name)}"
    return f"{str(source).rstrip('/')}/{name}"


def _readings(source: Source) -> list[str]:
    """How to say which is meant, a folder or the repository of its name."""
    if isinstance(source, LocalSource) and source.shadows:
        return [f"That is a folder here. {source.both_readings()}"]
    return []


def _pickles(inside: Sequence[str]) -> list[str]:
    """Weights that are not read."""
    if any(name.endswith(".safetensors") for name in inside):
        return []
    found = [name for name in inside if name.endswith(_PICKLED)]
    if not found:
        return []
    return [f"Its weights are pickled ({found[0]}), which are not read: they can run code. Convert them first."]
