"""What is held of a shard as one: all of it, or of a tensor parallel group what its ranks share, and the part of each.

A shard is brought once for all ranks. Of it comes what they need together, each tensor in the way that takes the
fewest bytes: as a whole, from which the parts are cut, or each part by range. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from ..errors import SourceError
from ..format.dtypes import DTYPES
from ..format.header import TensorInfo
from ..format.parallel import Division, TpPlan
from ..format.slices import REQUEST_COST
from ..sources.located import Located, SourceFile
from ..tensors.portions import cut_info, plan_cut

__all__ = ["Shares", "Unit", "dealt"]


class Unit(NamedTuple):
    """Of a shard all, or what all ranks hold alike (`rank` is None); or what one rank holds for itself."""

    shard: str
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Shares:
    """Which `ranks` of a group are held, and how tensors are divided among all of its ranks."""

    division: Division
    ranks: tuple[int, ...]

    @classmethod
    def of(
        cls, located: Located, world_size: int | None, tp_plan: TpPlan | None, ranks: Iterable[int] | None
    ) -> Self | None:
        """What was asked for; None: whole tensors. Raises as `Division.of`, and SourceError where something lacks."""
        if world_size is None and tp_plan is None and ranks is None:
            return None
        if world_size is None or tp_plan is None:
            raise SourceError("Parts are those of ranks of world_size=, by a tp_plan=: both are needed.")
        files, wanted = {file.name: file for file in located.files}, located.wanted
        headers = {shard: files[located.path_of(shard)].known_header for shard in wanted.shards}
        infos = {name: headers[shard].tensors[name] for name, shard in wanted.weight_map.items()}
        division = Division.of(tp_plan, world_size, {name: info.shape for name, info in infos.items()})
        shares = cls(division, division.checked(range(world_size) if ranks is None else ranks))
        for name in division.splits:
            if DTYPES[infos[name].dtype].packed:  # of which a part may begin within a byte
                for rank in shares.ranks:
                    shares._part(name, infos[name], rank)
        return shares

    def _part(self, name: str, info: TensorInfo, rank: int) -> TensorInfo:
        cut = self.division.cut(name, info.shape, rank)
        return info if cut is None else cut_info(name, info, cut)

    def held(self, file: SourceFile, tensors: Iterable[str], rank: int | None) -> dict[str, TensorInfo]:
        """What of `tensors` is held for `rank`, or for all alike, each as if it lay by itself from byte 0 on."""
        found, alike = dict[str, TensorInfo](), dict[object, TensorInfo]()
        for name in tensors:
            info, how = file.known_header.tensors[name], self.division.splits.get(name)
            if (how is None) != (rank is None):
                continue
            key = (info.dtype, info.shape, id(how))  # as the many tensors of a mixture of experts have it
            if rank is not None and key not in alike:
                alike[key] = self._part(name, info, rank)
            found[name] = info if rank is None else alike[key]
        return found

    def units(self, shard: str, tensors: Iterable[str]) -> list[Unit]:
        """What is held of a shard, as far as there is something to hold."""
        split = [name in self.division.splits for name in tensors]
        common = [] if all(split) else [Unit(shard)]
        return [*common, *(Unit(shard, rank) for rank in self.ranks if any(split))]

    def fetched(self, file: SourceFile, tensors: Iterable[str]) -> dict[str, bool]:
        """Whether each of `tensors` is fetched once as a whole: also where parts save less than a request costs."""
        found, alike = dict[str, bool](), dict[object, bool]()
        for name in tensors:
            info, how = file.known_header.tensors[name], self.division.splits.get(name)
            key = (info.dtype, info.shape, id(how))
            if key in alike:
                found[name] = alike[key]
                continue
            cuts = [self.division.cut(name, info.shape, rank) for rank in self.ranks]
            parts = sum(plan_cut(name, file, info, cut).transferred for cut in cuts if cut is not None)
            found[name] = alike[key] = None in cuts or info.nbytes - parts < REQUEST_COST
        return found


def dealt(
    ranks: Sequence[int], nodes: Sequence[str], so_far: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """The ranks of each node: neighbours on the same node. Later a rank stays where it is.

    What a node had that is gone goes to those that have least.
    """
    found = {node: list(so_far.get(node, ())) for node in nodes}
    if not nodes:
        return {}
    if not any(found.values()):
        least, more = divmod(len(ranks), len(nodes))
        sizes = [least + (at < more) for at in range(len(nodes))]
        bounds = [sum(sizes[:at]) for at in range(len(nodes) + 1)]
        return {node: tuple(ranks[bounds[at] : bounds[at + 1]]) for at, node in enumerate(nodes)}
    for rank in sorted(set(ranks).difference(*found.values())):
        min(found.values(), key=len).append(rank)
    return {node: tuple(sorted(held)) for node, held in found.items()}
