"""What a checkpoint becomes: which tensors, under which names, in which files. Decided by the headers alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SourceError
from ..format.header import TensorInfo
from ..format.hostile import short_repr
from ..format.scaled import ScaledWeight, scaled_weight
from ..format.sharding import Layout, laid_out
from ..format.unknown_scales import NamedScales, unknown_scale
from ..format.writer import Outgoing
from ..models.names import Rename, renamed, renaming
from ..sources.headers import header_on_disk
from ..sources.listing import is_hidden
from ..sources.located import Landed, Located, SourceFile, aliases_of
from ..tensors.scaled import scaled_in
from ..tensors.scaling import Scaling
from .folder import Draft
from .metadata import merged_metadata
from .state_dict import FORMAT
from .stored import Overflows, StoredFile, as_stored, cast_to, made_numbers

__all__ = ["Conversion", "Wishes", "planned"]

_VERSION = 1  # of how files are written: those of another version are not gone on with


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is asked for. `limit` is the most bytes of a shard, None for one file; `said` is metadata to be added."""

    dtype: np.dtype[Any] | None
    rename: Rename
    limit: int | None
    said: Mapping[str, str]
    pattern: str


@dataclass(frozen=True, slots=True)
class Conversion:
    """What becomes of a located checkpoint: `names` maps each new name, in order, to the name that is stored.

    `metadata` is what the files say of themselves, and the index of tied tensors. `overflows` fills while tensors are
    written.
    """

    located: Located
    scaling: Scaling | None
    wishes: Wishes
    names: dict[str, str]
    metadata: dict[str, str]
    layout: Layout
    overflows: Overflows = field(default_factory=Overflows)

    def draft(self, landed: Mapping[str, Landed]) -> Draft:
        """The files to be written, of shards that are on disk. Raises CorruptError, StorageError. Blocks."""
        files: dict[str, tuple[StoredFile, Mapping[str, TensorInfo]]] = {}
        for file in self.shards:
            path = landed[file.name].path
            if path is None:
                raise SourceError(f"{file.name} is not on disk.")
            header = header_on_disk(path, file.name)[2]
            files[file.name] = StoredFile.at(file.name, path, header.data_start), header.tensors
        tensors = outgoing(self.located, self.scaling, self.names, self.wishes.dtype, files, self.overflows)
        return self._draft(tensors)

    def _draft(self, tensors: Mapping[str, Outgoing]) -> Draft:
        form = {"format": self.metadata.get("format", FORMAT["format"])}
        rest = {key: value for key, value in self.metadata.items() if key != "format"} | dict(self.wishes.said)
        return Draft(self.layout, tensors, form if self.layout.index else {**form, **rest}, rest)

    @property
    def shards(self) -> list[SourceFile]:
        """The files with tensors."""
        return [file for file in self.located.files if file.header is not None]

    @property
    def companions(self) -> dict[str, SourceFile]:
        """The files beside them, by their paths in the folder of the checkpoint. What is hidden there is not of it."""
        folder = f"{self.located.folder}/" if self.located.folder else ""
        beside = {file.name.removeprefix(folder): file for file in self.located.files if file.header is None}
        return {name: file for name, file in beside.items() if not is_hidden(name)}

    def fingerprint(self, draft: Draft, landed: Mapping[str, Landed]) -> str:
        """What tells whether files of an earlier run are those that this one would write."""
        states = []
        for file in self.shards:
            path = landed[file.name].path
            assert path is not None  # noqa: S101
            state = StoredFile.at(file.name, path, 0).state
            states.append([file.name, *state])
        tensors = [(new, self.names[new], one.dtype, one.shape) for new, one in draft.tensors.items()]
        said = [_VERSION, states, tensors, self.layout.shards, dict(draft.shard_metadata), self.scaling is not None]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def planned(located: Located, scaling: Scaling | None, wishes: Wishes) -> Conversion:
    """What becomes of a checkpoint whose headers were read. Raises SourceError for what would be wrong."""
    results = scaling.names if scaling is not None else {name: name for name in located.wanted.weight_map}
    new_of = renamed(results, wishes.rename)
    if not new_of:
        raise SourceError("rename= leaves out every tensor.")
    if "__metadata__" in new_of.values():
        raise SourceError("'__metadata__' cannot be the name of a tensor.")
    names = {new: results[name] for name, new in new_of.items()}
    if scaling is None:
        _refuse_parted(located, names)
    infos = {file.name: (_unread(file), file.known_header.tensors) for file in located.files if file.header is not None}
    sizes = outgoing(located, scaling, names, wishes.dtype, infos, Overflows())
    layout = laid_out({name: tensor.nbytes for name, tensor in sizes.items()}, wishes.limit, wishes.pattern)
    return Conversion(located, scaling, wishes, names, _metadata(located, new_of, wishes.rename), layout)


def _metadata(located: Located, new_of: Mapping[str, str], rename: Rename) -> dict[str, str]:
    """What the shards say, and which names are tied to others, as they are called from now on."""
    headers = [file.header for file in located.files if file.header is not None]
    every = {name: None for header in headers for name in header.tensors}
    index = located.index.metadata if located.index is not None else {}
    said, tied = merged_metadata(headers, index, every), aliases_of(located, every)
    return {key: value for key, value in said.items() if key not in tied} | _tied(located, new_of, rename)


def _unread(file: SourceFile) -> StoredFile:
    return StoredFile(file.name, Path(), 0, ())


def _tied(located: Located, new_of: Mapping[str, str], rename: Rename) -> dict[str, str]:
    """The names of tied tensors that are written under another one, as they are called from now on."""
    again, taken = renaming(rename), set(new_of.values())
    found = {}
    for dropped, kept in aliases_of(located, new_of).items():
        new = again(dropped)
        if new is not None and new not in taken:
            found[new] = new_of[kept]
    return found


def _refuse_parted(located: Located, names: Mapping[str, str]) -> None:
    """Raise SourceError for a scaled weight that would lose its scale, or whose scale could not be found any more."""
    files = {file.name: file for file in located.files}
    shard_of = located.wanted.weight_map

    def entry(new: str) -> TensorInfo | None:
        stored = names.get(new)
        if stored is None:
            return None
        return files[located.path_of(shard_of[stored])].known_header.tensors[stored]

    new_of = {stored: new for new, stored in names.items()}
    renamed_scales = [NamedScales(names)]
    for found in scaled_in(located, new_of):
        new, info = new_of[found.weight], entry(new_of[found.weight])
        scales = tuple(new_of.get(scale) for scale in found.scales)
        if None in scales:
            raise SourceError(
                f"{short_repr(found.weight)} ({found.dtype}) counts only times its scale {short_repr(found.scale)}, "
                "which is left out.",
                hint=f"Keep both{_or_numbers(found)}.",
            )
        assert info is not None  # noqa: S101
        again = scaled_weight(new, info, names, entry) or unknown_scale(new, info, renamed_scales, names, entry)
        if again is None or again.scales != scales:
            raise SourceError(
                f"rename= parts {short_repr(found.weight)} ({found.dtype}) from its scale {short_repr(found.scale)}: "
                f"as {short_repr(new)} nobody would find it.",
                hint=f"Rename both alike{_or_numbers(found)}.",
            )


def _or_numbers(found: ScaledWeight) -> str:
    return ", or pass dequantize=True for the numbers" if found.understood else ""


def outgoing(
    located: Located,
    scaling: Scaling | None,
    names: Mapping[str, str],
    target: np.dtype[Any] | None,
    files: Mapping[str, tuple[StoredFile, Mapping[str, TensorInfo]]],
    overflows: Overflows,
) -> dict[str, Outgoing]:
    """Each tensor by its new name, on its way from where it is stored."""
    listed = located.wanted.weight_map

    def place(stored: str) -> tuple[StoredFile, TensorInfo]:
        file, tensors = files[located.path_of(listed[stored])]
        return file, tensors[stored]

    found = {}
    for new, stored in names.items():
        weight = None if scaling is None else scaling.weights.get(stored)
        if weight is not None:
            parts = {name: place(name) for name in (stored, *weight.scales)}
            found[new] = made_numbers(weight, parts, target, overflows)
        elif target is not None:
            found[new] = cast_to(*place(stored), name=stored, target=target, overflows=overflows)
        else:
            found[new] = as_stored(*place(stored))
    return found
