"""What is to be brought, as it travels to nodes: a located checkpoint without what only the driver may know."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..errors import ChangedError, OfflineError
from ..format.header import TensorInfo
from ..format.index import check_tensors
from ..policy import Policy
from ..sources.located import Landed, Located, SourceFile
from ..storage.cache import RepoCache
from ..storage.roots import cache_root
from .layout import Group, groups_of
from .nodes import connections_a_file
from .options import Keep, Nodes
from .shares import Shares, Unit

__all__ = ["Errand", "Plan", "hold_against_plan", "stripped"]


@dataclass(eq=False)
class Plan:
    """A checkpoint that was found, fit for any node: it has no token, no link, and no path of the driver's machine.

    `repository` is the folder's name in a cache of the Hub, `cache_dir` the cache that the caller named for all nodes.
    `most` are the bytes of one object in Ray's store. With `shares`, ranks hold their parts there.
    """

    located: Located
    repository: str
    cache_dir: str | None
    policy: Policy
    most: int
    shares: Shares | None = None
    _held: dict[Unit, dict[str, TensorInfo]] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": {}}  # which each process knows of those units that it needs

    @property
    def commit(self) -> str | None:
        return self.located.commit

    @cached_property
    def files(self) -> dict[str, SourceFile]:
        """All files by their names, companions too."""
        return {file.name: file for file in self.located.files}

    @property
    def shards(self) -> list[str]:
        """The names of those files that hold tensors."""
        return [file.name for file in self.located.files if file.header is not None]

    @cached_property
    def connections(self) -> int:
        """How many fetch one file."""
        sizes = [file.size for file in self.located.files]
        return connections_a_file(self.policy.connections, sizes)

    def units(self, name: str) -> list[Unit]:
        """What is held of a shard: all as one, or what ranks hold, as far as it has anything for them."""
        if self.shares is None:
            return [Unit(name)]
        return self.shares.units(name, self.wanted(name))

    def held(self, unit: Unit) -> dict[str, TensorInfo]:
        """The tensors of a unit, or the parts of them."""
        if self.shares is None:
            return self.files[unit.shard].known_header.tensors
        if unit not in self._held:
            file = self.files[unit.shard]
            self._held[unit] = self.shares.held(file, self.wanted(unit.shard), unit.rank)
        return self._held[unit]

    def wanted(self, name: str) -> list[str]:
        """The selected tensors of a shard, in the order of its data. Raises MissingTensorError."""
        located, header = self.located, self.files[name].known_header
        shard = next(shard for shard in located.wanted.shards if located.path_of(shard) == name)
        wanted = {*located.wanted.tensors_of(shard)}
        check_tensors(wanted, header, shard=shard, index_file=located.wanted.file)
        return [tensor for tensor in header.tensors if tensor in wanted]

    def groups(self, unit: Unit) -> list[Group]:
        """The objects that hold the data of a unit."""
        return groups_of(self.held(unit), self.most)

    def held_bytes(self, name: str, ranks: Collection[int]) -> int:
        """Bytes of a shard in the store of a node that has those ranks; without shares, of all of it."""
        return sum(
            group.size
            for unit in self.units(name)
            if unit.rank is None or unit.rank in ranks
            for group in self.groups(unit)
        )

    @property
    def all_ranks(self) -> tuple[int, ...]:
        """The ranks that are held; none where whole tensors are."""
        return () if self.shares is None else self.shares.ranks

    def verified(self, name: str) -> bool:
        """Whether a file is brought as a whole, and so held against its hash."""
        file = self.files[name]
        if self.shares is None or file.header is None:
            return True
        whole = self.shares.fetched(file, self.wanted(name))
        return all(whole.values()) and len(whole) == len(file.header.tensors)

    def cache(self) -> RepoCache:
        """The repository in the cache of this machine. Raises SourceError."""
        kind, _, name = self.repository.partition("s--")
        return RepoCache(cache_root(os.environ, self.cache_dir), name.replace("--", "/"), repo_type=kind)

    def find(self, cache: RepoCache, name: str) -> SourceFile:
        """A file with where `cache` has it: by its name in the snapshot, or as a blob. Looks at the disk."""
        file = self.files[name]
        path, blob = cache.find(self.commit or "", name), None
        if path is not None and file.checksum is not None and cache.checksum_of(path) not in (None, file.checksum):
            path = None
        if path is None and file.blob:
            blob = cache.whole_blob(file.blob, file.size)
        return replace(file, path=path or blob, in_blobs=blob is not None)

    def here(self, cache: RepoCache) -> Located:
        """The checkpoint with what `cache` has of it. Looks at the disk."""
        return replace(self.located, files=[self.find(cache, name) for name in self.files], cache=cache)

    def landed(self) -> tuple[Located, dict[str, Landed]]:
        """The shards in the cache of this machine. Raises OfflineError for one that is not there."""
        located = self.here(self.cache())
        for file in located.files:
            if file.path is None and file.header is not None:
                raise OfflineError(located.source, file.name)
        return located, {file.name: Landed(path=file.path) for file in located.files}


@dataclass(frozen=True, slots=True)
class Errand:
    """What the keeper is told, beside the plan. `asked` is a digest that tells calls apart; at `offer` it takes a
    pickled Request."""

    asked: str
    offer: str
    nodes: Nodes
    keep: Keep


def stripped(located: Located, index: tuple[str, bytes, str] | None) -> Located:
    """`located` as all nodes may know it; `index` is the index as it is to be published there."""
    files = [
        replace(
            file,
            key=file.key or (file.checksum.hex if file.checksum else ""),
            blob=file.blob or (file.checksum.hex if file.checksum else ""),
            identity=file.identity or (file.checksum.hex if file.checksum else ""),
            target=None,
            path=None,
            in_blobs=False,
            vouched=None,
            late=False,
        )
        for file in located.files
    ]
    return replace(
        located, files=files, cache=None, origin=None, listing=None, index_file=index, index_path=None, warnings=[]
    )


def hold_against_plan(raw: memoryview, file: SourceFile) -> None:
    """See that the header which came with the bytes of a shard is the one by which its groups were planned.

    Raises ChangedError: without a hash, nothing else holds the file fixed.
    """
    if bytes(raw[: len(file.raw_header)]) != file.raw_header:
        raise ChangedError(file.name, "its header is another one")
