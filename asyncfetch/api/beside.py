"""What lies beside a checkpoint, fetched before its shards: who makes a model of it reads the config first."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import EntryNotFoundError, OfflineError
from ..format.dtypes import Array
from ..sources.listing import Chosen
from ..sources.located import Located, path_in
from ..sources.request import HubSource, LocalSource, Request, UrlSource
from ..tasks import off_loop
from .loading import expected_tensors
from .session import Session

__all__ = ["Beside", "beside"]

# What is asked for by name where nothing is listed, the one that must be there first.
_NAMES = ("config.json", "generation_config.json")


@dataclass(frozen=True, slots=True)
class Beside:
    """A checkpoint that was located, and the folder on disk with what is beside it.

    `located` has the shards alone. `folder` is None where no config was found. `name` is what a model made of it is
    called: the repository, the folder or the URL. `variant` is a part of the names of its files.
    """

    name: str
    folder: Path | None
    located: Located
    variant: str | None

    @property
    def is_here(self) -> bool:
        """Whether no shard must be downloaded."""
        return all(file.path is not None for file in self.located.files)

    @property
    def file(self) -> str:
        """The index, or else the only file."""
        return self.located.index.file if self.located.index else self.located.files[0].name

    def hollow(self) -> dict[str, Array]:
        """The state dict to come: dtypes and shapes without memory."""
        return expected_tensors(self.located, None)


async def beside(session: Session, located: Located) -> Beside:
    """Download what is beside the shards of `located`, to the disk whatever the storage of the session.

    Raises OfflineError where no config is in the cache and nobody may be asked for one.
    """
    source, variant = session.request.source, session.request.variant
    shards = replace(located, files=[file for file in located.files if file.header is not None])
    companions = [file for file in located.files if file.header is None]
    if isinstance(source, LocalSource):
        return Beside(source.folder, await off_loop(Path(source.folder).absolute), shards, variant)
    name = source.repo_id if isinstance(source, HubSource) else str(source)
    folder: Path | None
    if not companions or located.cache is None or located.commit is None:
        folder = await _asked_by_name(session, located)
    else:
        part = replace(located, files=companions, ref=None, absent=[], index_file=None, index_path=None, selected=None)
        await replace(session, storage="disk").download(part, named=True, last=False)
        folder = located.cache.snapshot(located.commit) / located.folder
    if session.request.settings.offline and not await off_loop(lambda: _tells_what_it_is(folder)):
        raise OfflineError(located.source, _NAMES[0])
    return Beside(name, folder, shards, variant)


def _tells_what_it_is(folder: Path | None) -> bool:
    return folder is not None and any(
        (folder / name).is_file() for name in (_NAMES[0], "adapter_config.json", "model_index.json")
    )


async def _asked_by_name(session: Session, located: Located) -> Path | None:
    """The folder with the config of a source that lists no files; None if there is none."""
    request = replace(session.request, select=None, variant=None, checksums=None, dequantize=False)
    match request.source:
        case HubSource() as source:
            request = replace(request, source=replace(source, revision=located.commit or source.revision, file=None))
        case UrlSource() as source:
            request = replace(request, source=replace(source, file=None))
    names = tuple(path_in(located.folder, name) for name in _NAMES)
    for some in (names, names[:1]):  # the second need not be there
        with suppress(EntryNotFoundError, OfflineError):
            return await _folder_of(session, replace(request, chosen=Chosen(exact=True, names=some)))
    return None


async def _folder_of(session: Session, request: Request) -> Path:
    """Download the files that are asked for. Returns the folder of the first."""
    part = replace(session, request=request, storage="disk")
    located = await part.locate()
    landed = await part.download(located, named=True, last=False)
    first = landed[located.files[0].name].path
    assert first is not None  # noqa: S101
    return first.parent
