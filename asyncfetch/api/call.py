"""What the public functions do, once a session stands. Imported when the first call begins, in a thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from anyio import from_thread

from ..engine.bookkeeping import file_states
from ..errors import AsyncfetchError, CorruptError, OfflineError, StorageError, storage_errors
from ..events import Resolved, Warned
from ..models.into import LoadReport, load_state_dict_into
from ..network.transport import Transport
from ..sources.headers import header_on_disk
from ..sources.located import Landed, Located
from ..sources.request import LocalSource
from ..storage.checksums import Checksum, verify_file
from ..storage.folders import LocalFolder
from ..tasks import off_loop
from ..tensors.gather import Gatherer
from ..tensors.merge import state_dict
from ..tensors.scaling import Scaling
from .beside import Beside, beside
from .converting import converted
from .form import Form
from .inspecting import inspection
from .loading import Wishes, load_into
from .opened import Checkpoint
from .options import DTypeLike, Source
from .results import Inspection, Snapshot, StateDict, VerifiedFile
from .session import Environment, Session, begin
from .streaming import Tensors, feeding

__all__ = ["Call", "Environment", "LoadReport", "Transport", "begin", "load_state_dict_into"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its session, and what it gives."""

    session: Session

    async def load(self, **form: Any) -> StateDict[Any]:
        """Download what is missing, and merge it. `form` are the fields of `Form`."""
        return (await self._loaded(Form(**form)))[2]

    async def load_inspected(self, dtype: DTypeLike | None) -> tuple[StateDict[Any], Inspection]:
        """The same, and what was loaded."""
        located, scaling, tensors = await self._loaded(Form(dtype=dtype))
        return tensors, await off_loop(lambda: inspection(located, scaling), slow=True)

    async def _loaded(self, form: Form) -> tuple[Located, Scaling | None, StateDict[Any]]:
        target, maker = form.target(), await form.maker()
        session = self.session
        if target is None and session.storage == "disk" and not session.request.dequantize:
            session = session.late(nameless=form.rename is None)

        names: dict[str, str] | None = None

        async def judged(located: Located, scaling: Scaling | None) -> Located:
            nonlocal names
            if form.rename is not None:
                names = await off_loop(lambda: form.names(located, scaling), slow=True)
            return located

        try:
            located, scaling, landed = await session.fetch(target, before=judged)

            def merged() -> dict[str, Any]:
                tensors = state_dict(located, landed, dtype=target, scaling=scaling)
                return maker.state_dict(tensors, names)

            return located, scaling, StateDict(await off_loop(merged, slow=True))
        finally:
            await maker.aclose()

    async def download(self) -> Snapshot:
        """Download what is missing, and put it into the folder that is to be filled."""
        session = self.session.late()
        placing = session.placing
        try:
            located, _, landed = await session.fetch(named=True)
        except StorageError as error:
            request = session.request
            if placing is None or not placing.cannot_use(error, request.cache_root):
                raise
            own = placing.folder.own_cache
            session.notify(Warned(f"{error.message} This download has a cache of its own: {own}"))
            session = replace(session, request=replace(request, cache_root=own))
            located, _, landed = await session.fetch(named=True)
        if placing is None:
            return _snapshot(located, landed)
        return Snapshot(placing.folder.path, located.commit, await placing.fill(located, landed))

    async def fetch_model(self, judge: Callable[[Beside], Awaitable[None]]) -> tuple[Beside, dict[str, Landed]]:
        """Download a checkpoint and what is beside it, of which `judge` gets to see the latter before the shards come.

        Returns what it saw, and where each shard is.
        """
        seen: list[Beside] = []

        async def before(located: Located, _scaling: Scaling | None) -> Located:
            seen.append(await beside(self.session, located))
            await judge(seen[-1])
            return seen[-1].located

        _, _, landed = await self.session.fetch(named=True, before=before)
        return seen[-1], landed

    async def convert(self, folder: Source, **wishes: Any) -> Snapshot:
        """Download what is missing, and write it as another checkpoint. `wishes` are those of `converted`."""
        return await converted(self.session, folder, **wishes)

    def merged(self, located: Located, landed: Mapping[str, Landed]) -> StateDict[Any]:
        """The state dict of shards that have landed. Blocks."""
        return StateDict(state_dict(located, landed))

    async def dry_run(self) -> Resolved:
        """What a download would do."""
        located = await self.session.late().locate()
        files = await off_loop(lambda: file_states(located, "disk"))
        return Resolved(located.source, located.commit, located.index.file if located.index else None, files)

    async def inspect(self) -> Inspection:
        """What the headers say."""
        located = await self.session.locate()
        return await off_loop(lambda: inspection(located), slow=True)

    async def verify(self) -> tuple[VerifiedFile, ...]:
        """Each cached file, hashed again."""
        session, chosen = self.session, self.session.request.chosen
        if chosen is not None:
            session = replace(session, request=replace(session.request, chosen=replace(chosen, kept=True)))
        try:
            located = await session.locate(headers=False)
        except (OfflineError, CorruptError) as error:  # it asks nobody, so what they advise is not for it
            if not isinstance(self.session.request.source, LocalSource):
                error.hint = "verify() sends nothing: fetch it with download(source, offline=False)."
            raise
        paths = [(file.name, file.path, file.checksum or file.vouched) for file in located.files if file.path]
        index, path = located.index, located.index_path
        if index is not None and path is not None:
            promised = await off_loop(lambda: _promised(located, index.file, path))
            paths.insert(0, (index.file, path, promised))
        return tuple([await off_loop(partial(_verify_one, *entry), slow=True) for entry in paths])

    async def open(self, timeout: float | None, **form: Any) -> Checkpoint[Any]:
        """The checkpoint, its headers read. `form` are the fields of `Form`."""
        wanted = Form(**form)
        target, maker = wanted.target(), await wanted.maker()
        located, scaling = await self.session.locate_values(target)
        gatherer = Gatherer(located, self.session.transport, self.session.request.policy)
        return Checkpoint(located, gatherer, target, timeout, scaling, maker)

    async def stream(
        self,
        *,
        early: bool,
        memory_limit: int | None,
        timeout: float | None,
        judge: Callable[[Located], object] = lambda _located: None,
        **form: Any,
    ) -> AbstractAsyncContextManager[Tensors[Any]]:
        """The download of a checkpoint, which is located, beside a block that reads its tensors.

        `judge` sees what was located, and may refuse it.
        """
        wanted = Form(**form)
        target, maker = wanted.target(), await wanted.maker()
        located, scaling = await self.session.locate_values(target)
        judge(located)
        return feeding(
            self.session,
            located,
            scaling,
            dtype=target,
            names=await off_loop(lambda: wanted.names(located, scaling), slow=True),
            maker=maker,
            early=early,
            memory_limit=memory_limit,
            timeout=timeout,
        )

    async def load_into(self, model: object, *, memory_limit: int | None, **wishes: Any) -> LoadReport:
        """Stream the checkpoint into a model. `wishes` are those of `Wishes`."""
        return await load_into(model, self.session, Wishes(**wishes), memory_limit=memory_limit)


def _snapshot(located: Located, landed: Mapping[str, Landed]) -> Snapshot:
    files = {file.name: path for file in located.files if (path := landed[file.name].path) is not None}
    if located.index is not None and located.index_path is not None:
        files = {located.index.file: located.index_path, **files}
    if located.cache is not None and located.commit is not None:
        return Snapshot(located.cache.snapshot(located.commit), located.commit, files)
    name, path = next(iter(files.items()))
    return Snapshot(path.parents[name.count("/")], None, files)


def _promised(located: Located, name: str, path: Path) -> Checksum | None:
    """The hash of an index, by its place in the cache or by the record of the folder that it is in."""
    if located.cache is not None:
        return located.cache.checksum_of(path)
    record = LocalFolder(path.parents[name.count("/")]).record(name)
    return None if record is None else record.checksum


def _verify_one(name: str, path: Path, checksum: Checksum | None) -> VerifiedFile:
    with storage_errors(path):
        size = path.stat().st_size
    error, checked = None, checksum is not None
    try:
        if checksum is not None:
            verify_file(path, checksum, file=name, check=from_thread.check_cancelled)
        elif name.endswith(".safetensors"):
            header_on_disk(path, name)
    except AsyncfetchError as wrong:
        error, checked = wrong.message, True
    return VerifiedFile(
        name, path, size, str(checksum) if checksum else None, (error is None) if checked else None, error
    )
