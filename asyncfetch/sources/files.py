"""The files of a source that are no shards: the companions of a checkpoint, and what is named."""

from __future__ import annotations

from ..errors import AccessError, OfflineError, SourceError
from ..tasks import each, off_loop, plain_errors
from ..words import counted
from .finder import Place
from .listing import Chosen, chosen_of, companions_of
from .located import FoundIndex, Listing, Located, SourceFile
from .request import BucketSource, Request, UrlSource

__all__ = ["add_companions", "find_files"]

_SHOWN = 3  # names in a warning


async def add_companions(place: Place, request: Request, chosen: Chosen, located: Located) -> None:
    """Add to a checkpoint the files beside it that hold no weights, by the listing of its commit.

    What cannot be had is said in a warning: a server that lists nothing, and offline what is not in the cache.
    """
    listed, why = await _listing(place, request, located.commit)
    if listed is None:
        if not isinstance(request.source, UrlSource):
            missed = f"{located.source} lists no files: only weights and index were downloaded"
            located.warnings.append(f"{missed} ({why})" if why else missed)
        return
    known = {file.name for file in located.files} | ({located.index.file} if located.index else set())
    located.records = listed.records
    files = listed.files
    companions = await off_loop(lambda: companions_of(files, located.folder, chosen.exclude), slow=True)
    paths = [path for path in companions if path not in known]
    missing = [path for path in paths if files[path].path is None] if request.settings.offline else []
    if missing:
        shown = counted(missing[:_SHOWN], len(missing))
        located.warnings.append(f"{located.source} has files that are not in the cache: {shown}")
    located.files += [files[path] for path in paths if path not in missing]
    name, data, etag = located.index_file or ("", b"", "")
    state = await place.recall(located.files, FoundIndex(name, data, etag=etag) if name else None, located.commit)
    located.commit, located.identities = state.commit, state.identities


async def _listing(place: Place, request: Request, commit: str | None) -> tuple[Listing | None, str]:
    """The listing, or None and why: a bucket may be listed by others than who may read it. What is named needs none."""
    try:
        return await place.listing(commit), ""
    except (AccessError, SourceError) as error:
        if not isinstance(request.source, BucketSource):
            raise
        return None, error.message.rstrip(".")


async def find_files(place: Place, request: Request, chosen: Chosen) -> Located:
    """The files that are named, whether there is a checkpoint or not.

    Raises EntryNotFoundError for a name or a glob without a file, SourceError for a glob where nothing is listed,
    and the AccessError, NetworkError, OfflineError kinds.
    """
    missing: OfflineError | None = None
    for commit in await place.commits():
        try:
            return await _files_at(place, request, chosen, commit)
        except OfflineError as error:
            missing = missing or error
    raise missing or OfflineError(str(request.source), "such a file")


async def _files_at(place: Place, request: Request, chosen: Chosen, commit: str | None) -> Located:
    source = str(request.source)
    globs = chosen.include or chosen.exclude
    listed = await place.listing(commit) if globs else (await _listing(place, request, commit))[0]
    if listed is not None:
        paths = await off_loop(lambda: chosen_of(listed.files, chosen, source), slow=True)
        files = [listed.files[path] for path in paths]
        for file in files:
            if request.settings.offline and file.path is None:
                raise OfflineError(source, file.name)
    elif globs:
        raise SourceError(f"{source} lists no files.", hint="Give the names of those that you want.")
    else:
        files = await _looked_at(place, request, chosen.names, commit)
    state = await place.recall(files, None, files[0].commit)
    return Located(
        source=source,
        commit=state.commit,
        ref=place.ref,
        folder="",
        index=None,
        selected=None,
        files=files,
        cache=place.cache,
        origin=place,
        identities=state.identities,
        records=listed.records if listed else None,
    )


async def _looked_at(place: Place, request: Request, names: tuple[str, ...], commit: str | None) -> list[SourceFile]:
    found: dict[str, SourceFile] = {}

    async def look(name: str) -> None:
        found[name] = await place.look(name, commit)

    with plain_errors():
        await each(names, look, request.policy.connections)
    return [found[name] for name in names]
