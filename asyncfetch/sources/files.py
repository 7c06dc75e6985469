"""The files of a source that are no shards: the companions of a checkpoint, and what is named."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..errors import AccessError, OfflineError, SourceError
from ..tasks import each, off_loop, plain_errors
from ..words import counted
from .finder import Place
from .listing import (
    Chosen,
    chosen_of,
    companions_of,
    is_hidden,
    is_odd,
    nothing_called,
    without_odd,
    words_of_odd,
)
from .located import FoundIndex, Listing, Located, SourceFile
from .request import BucketSource, HubSource, LocalSource, Request, UrlSource

__all__ = ["add_companions", "find_files"]

_SHOWN = 3  # names in a warning


async def add_companions(place: Place, request: Request, chosen: Chosen, located: Located) -> None:
    """Add to a checkpoint the files beside it that hold no weights, by the listing of its commit.

    What cannot be had is said in a warning: a server that lists nothing, and offline what is not in the cache.
    """
    listed, why = (located.listing, "") if located.listing else await _listing(place, request, located.commit)
    if listed is None:
        if not isinstance(request.source, UrlSource):
            missed = f"{located.source} lists no files: only weights and index were downloaded"
            located.warnings.append(f"{missed} ({why})" if why else missed)
        return
    known = {file.name for file in located.files} | ({located.index.file} if located.index else set())
    located.records = listed.records
    files = listed.files
    companions = await off_loop(lambda: companions_of(files, located.folder, chosen.exclude), slow=True)
    if isinstance(request.source, LocalSource):  # a folder of the user's has secrets in .git and .env
        companions = [path for path in companions if not is_hidden(path)]
    odd = await off_loop(lambda: [path for path in companions if is_odd(path)], slow=True)
    if odd:
        located.warnings.append(words_of_odd(located.source, odd))
    left_out = known | {*odd}
    paths = [path for path in companions if path not in left_out]
    taken = await _taken(place, request, listed, paths)
    located.listing = listed
    offline = request.settings.offline
    missing = [path for path in paths if offline and taken[path].path is None]
    if missing:
        shown = counted(missing[:_SHOWN], len(missing))
        located.warnings.append(f"{located.source} has files that are not in the cache: {shown}")
    located.files += [file for file in taken.values() if file.path is not None or not offline]
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
    by_listing = chosen.include or chosen.exclude or not chosen.names
    listed = await place.listing(commit) if by_listing else (await _listing(place, request, commit))[0]
    if listed is not None:
        picked = await off_loop(lambda: chosen_of(_below(listed.files, request), chosen, source), slow=True)
        paths, odd = await off_loop(lambda: without_odd(picked, (*chosen.names, *chosen.include), source), slow=True)
        files = [*(await _taken(place, request, listed, paths)).values()]
        here = [file for file in files if file.path is not None or not request.settings.offline]
        if len(here) < len(files) and not (chosen.kept and here):
            raise OfflineError(source, next(file.name for file in files if file.path is None))
        files = here
    elif by_listing:
        raise SourceError(f"{source} lists no files.", hint="Give the names of those that you want.")
    else:
        paths, odd = without_odd(chosen.names, chosen.names, source)
        files = [*(await _looked_at(place, request, paths, commit)).values()]
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
        listing=listed,
        warnings=[words_of_odd(source, odd)] if odd else [],
    )


async def _taken(place: Place, request: Request, listed: Listing, paths: Sequence[str]) -> dict[str, SourceFile]:
    """Files of a listing. The source is asked for each of which it tells no hash, or for all if it is not believed.

    A gated repository shows stars for the hash of a large file, and what a mirror shows may be that of a pointer.
    """
    found = await off_loop(lambda: {path: listed.files[path] for path in paths}, slow=True)
    if not isinstance(request.source, HubSource) or request.settings.offline:
        return found
    unsure = [path for path in paths if found[path].path is None and not (request.believed and found[path].checksum)]
    if unsure:
        found |= await _looked_at(place, request, unsure, found[unsure[0]].commit)
    return found


def _below(files: Collection[str], request: Request) -> Collection[str]:
    """The names of files in the folder that the user named. Raises EntryNotFoundError if there is none."""
    folder = request.source.subfolder if isinstance(request.source, HubSource) else ""
    if not folder:
        return files
    found = dict.fromkeys(path for path in files if path.startswith(f"{folder}/"))
    if not found:
        raise nothing_called(folder, files, str(request.source))
    return found


async def _looked_at(place: Place, request: Request, names: Sequence[str], commit: str | None) -> dict[str, SourceFile]:
    found: dict[str, SourceFile] = {}

    async def look(name: str) -> None:
        found[name] = await place.look(name, commit)

    with plain_errors():
        await each(names, look, request.policy.connections)
    return {name: found[name] for name in names}
