"""What the public functions do, once a session stands. Imported when the first call begins, in a thread."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import from_thread, to_thread

from ..engine.bookkeeping import file_states
from ..errors import ChecksumMismatchError, StorageError, storage_errors
from ..events import Resolved
from ..format.dtypes import dtype_or_none
from ..format.header import TensorInfo
from ..models.into import LoadReport, load_state_dict_into
from ..network.transport import Transport
from ..sources.located import Landed, Located
from ..storage.checksums import Checksum, verify_file
from ..tensors.gather import Gatherer
from ..tensors.merge import state_dict
from .loading import Wishes, load_into
from .opened import Checkpoint
from .options import DTypeLike
from .results import Inspection, ShardInspection, Snapshot, StateDict, VerifiedFile
from .session import Environment, Session, begin
from .streaming import Tensors, feeding

__all__ = ["Call", "Environment", "LoadReport", "Transport", "begin", "load_state_dict_into"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its session, and what it gives."""

    session: Session

    async def load(self, dtype: DTypeLike | None) -> StateDict:
        """Download what is missing, and merge it."""
        return (await self._loaded(dtype))[1]

    async def load_inspected(self, dtype: DTypeLike | None) -> tuple[StateDict, Inspection]:
        """The same, and what was loaded."""
        located, tensors = await self._loaded(dtype)
        return tensors, await to_thread.run_sync(_inspection, located)

    async def _loaded(self, dtype: DTypeLike | None) -> tuple[Located, StateDict]:
        target = dtype_or_none(dtype)
        located, landed = await self.session.fetch()
        return located, StateDict(await to_thread.run_sync(lambda: state_dict(located, landed, dtype=target)))

    async def download(self) -> Snapshot:
        """Download what is missing."""
        return _snapshot(*await self.session.fetch())

    async def dry_run(self) -> Resolved:
        """What a download would do."""
        located = await self.session.locate()
        files = await to_thread.run_sync(file_states, located, "disk")
        return Resolved(located.source, located.commit, located.index.file if located.index else None, files)

    async def inspect(self) -> Inspection:
        """What the headers say."""
        located = await self.session.locate()
        return await to_thread.run_sync(_inspection, located)

    async def verify(self) -> tuple[VerifiedFile, ...]:
        """Each cached file, hashed again."""
        located = await self.session.locate(headers=False)
        paths = [(file.name, file.path, file.checksum) for file in located.files if file.path is not None]
        if located.index is not None and located.index_path is not None and located.cache is not None:
            known = await to_thread.run_sync(located.cache.checksum_of, located.index_path)
            paths.insert(0, (located.index.file, located.index_path, known))
        return tuple([await to_thread.run_sync(_verify_one, *entry) for entry in paths])

    async def open(self, dtype: DTypeLike | None, timeout: float | None) -> Checkpoint:
        """The checkpoint, its headers read."""
        target = dtype_or_none(dtype)
        located = await self.session.locate_verified()
        gatherer = Gatherer(located, self.session.transport, self.session.request.policy)
        return Checkpoint(located, gatherer, target, timeout)

    async def locate(self, dtype: DTypeLike | None) -> Located:
        """The checkpoint that is about to be streamed in `dtype`, which makes sense."""
        dtype_or_none(dtype)
        return await self.session.locate_verified()

    def stream(
        self, located: Located, *, dtype: DTypeLike | None, early: bool, memory_limit: int | None, timeout: float | None
    ) -> AbstractAsyncContextManager[Tensors]:
        """The download of what was located beside a block, which reads its tensors."""
        return feeding(
            self.session,
            located,
            dtype=dtype_or_none(dtype),
            early=early,
            memory_limit=memory_limit,
            timeout=timeout,
        )

    async def load_into(self, model: object, *, memory_limit: int | None, **wishes: Any) -> LoadReport:
        """Stream the checkpoint into a model. `wishes` are those of `Wishes`."""
        return await load_into(model, self.session, Wishes(**wishes), memory_limit=memory_limit)


def _snapshot(located: Located, landed: Mapping[str, Landed]) -> Snapshot:
    files = {name: where.path for name, where in landed.items() if where.path is not None}
    if located.index is not None and located.index_path is not None:
        files = {located.index.file: located.index_path, **files}
    if located.cache is not None and located.commit is not None:
        return Snapshot(located.cache.snapshot(located.commit), located.commit, files)
    return Snapshot(next(iter(files.values())).parent, None, files)


def _inspection(located: Located) -> Inspection:
    states = {state.file: state for state in file_states(located, "disk")}
    shards = [
        ShardInspection(file.name, file.size, states[file.name].present, file.known_header) for file in located.files
    ]
    by_name = {shard.file: shard for shard in shards}
    tensors: dict[str, tuple[str, TensorInfo]] = {}
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
