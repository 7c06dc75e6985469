"""How the data of a shard lie in Ray's object store: groups of whole tensors, each tensor on 64 bytes. Pure.

An object of Ray begins on 64 bytes in shared memory, if it is large enough to be there at all. A file of safetensors
aligns its tensors no better than its writer did, so a tensor behind an odd one is moved on to the next boundary. All
travel as bytes: dtypes that numpy does not know itself, such as BF16, would be copied by each `ray.get`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..format.dtypes import Array
from ..format.header import Header, TensorInfo
from ..spans import MiB
from ..storage.buffers import ALIGNMENT, aligned_buffer

__all__ = ["GROUP_BYTES", "Group", "groups_of", "packed", "views"]

GROUP_BYTES = 4096 * MiB  # of one object: a larger shard is cut between tensors
_LEAST = MiB // 8  # smaller objects travel inside of messages, where nothing is aligned or shared


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring tensors of a shard, which are one object of `size` bytes: each name with its offset there."""

    offsets: dict[str, int]
    size: int


def groups_of(tensors: Mapping[str, TensorInfo], most: int = GROUP_BYTES) -> list[Group]:
    """The groups of what is held, each of at most `most` bytes unless a tensor is larger. At least one, maybe empty."""
    groups, offsets, end = [], dict[str, int](), 0
    for name, info in tensors.items():
        start = -(-end // ALIGNMENT) * ALIGNMENT
        if offsets and start + info.nbytes > most:
            groups.append(Group(offsets, max(end, _LEAST)))
            offsets, start = {}, 0
        offsets[name], end = start, start + info.nbytes
    return [*groups, Group(offsets, max(end, _LEAST))]


def packed(file: memoryview, header: Header, groups: list[Group]) -> Iterator[Array]:
    """The bytes of each group, of a whole shard in memory: a view on it where no tensor has to move."""
    for group in groups:
        infos = [(header.tensors[name], offset) for name, offset in group.offsets.items()]
        base = header.data_start + (infos[0][0].begin if infos else 0)
        fits = base + group.size <= len(file)
        if fits and all(header.data_start + info.begin - base == offset for info, offset in infos):
            yield np.frombuffer(file, np.uint8, group.size, base)
            continue
        place = aligned_buffer(group.size, 0)
        for info, offset in infos:
            begin = header.data_start + info.begin
            place[offset : offset + info.nbytes] = file[begin : begin + info.nbytes]
        yield np.frombuffer(place, np.uint8)


def views(group: Group, tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, TensorInfo]]:
    """Each tensor of a group: its name, and where it lies in the object."""
    for name, offset in group.offsets.items():
        info = tensors[name]
        yield name, TensorInfo(info.dtype, info.shape, offset, offset + info.nbytes)
