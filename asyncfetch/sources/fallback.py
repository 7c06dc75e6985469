"""The cache instead of a source that cannot be asked, where it has all that is asked for.

At once where nobody is reached, at the first time-out, and where a 429 or a 5xx would cost more than a few
seconds. Only what the revision last resolved to, or the very commit that was named, and never once
the source has given an answer: a refusal, an absence or another commit is a fact.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime

from ..errors import AsyncfetchError, EntryNotFoundError, NetworkError, OfflineError, RateLimitedError, StorageError
from ..format.index import select_tensors
from ..network.retry import is_away
from ..network.transport import Transport
from ..tasks import off_loop
from .finder import Place, first_candidate, parsed
from .located import FoundIndex, Located, path_in
from .request import Request, names_in

__all__ = ["find_or_recall", "offline"]


def offline(request: Request) -> Request:
    """What is asked for, of the cache alone."""
    return replace(request, settings=replace(request.settings, offline=True, token=None))


async def find_or_recall(
    place: Place,
    kept: Place,
    request: Request,
    transport: Transport,
    find: Callable[[Place, Request], Awaitable[Located]],
) -> Located:
    """What `find` finds at `place`; or at `kept`, which asks nobody, where nobody can be asked.

    Raises what `find` raises; the network's errors say what of it is cached.
    """
    if not await _may_have_some(kept):
        return await find(place, request)
    with transport.hurry() as hurry:
        try:
            return await find(place, request)
        except (NetworkError, RateLimitedError) as error:
            if hurry.over or not (is_away(error) or isinstance(error, RateLimitedError)):
                raise
            why = error.message.rstrip(".")  # and not the error, which holds this frame
    try:
        located = await find(kept, offline(request))
    except AsyncfetchError:  # not all of it is there
        try:
            return await find(place, request)
        except (NetworkError, RateLimitedError) as error:
            error.hint = f"{error.hint} {await _what_is_kept(kept, offline(request))}".strip()
            raise
    located.warnings.append(await _stale(place, located, why))
    return located


async def _may_have_some(kept: Place) -> bool:
    try:
        return bool(await kept.commits())
    except (OfflineError, StorageError):
        return False


async def _stale(place: Place, located: Located, why: str) -> str:
    """What is used, and since when it is known to be what was asked for."""
    cache, ref = place.cache, place.ref
    then = await off_loop(lambda: cache.resolved_at(ref)) if cache is not None and ref is not None else None
    since = "" if then is None else f", last looked up on {datetime.fromtimestamp(then, UTC):%Y-%m-%d at %H:%M} UTC"
    return f"{located.source} could not be looked up ({why}). What is cached is used: commit {located.commit}{since}."


async def _what_is_kept(kept: Place, request: Request) -> str:
    """How much of a checkpoint is cached, of which not all is."""
    try:
        for commit in await kept.commits():
            found, _ = await first_candidate(kept, request, names_in(request.source, request.variant), commit)
            if isinstance(found, FoundIndex):
                index = await parsed(found, request)
                shards = select_tensors(index, request.select).shards
                folder = found.name.rpartition("/")[0]
                here = [shard for shard in shards if await _is_kept(kept, path_in(folder, shard), commit)]
                return f"Of commit {commit}, {len(here)} of {len(shards)} files are cached."
    except AsyncfetchError:
        pass  # nothing can be said of it
    return ""


async def _is_kept(kept: Place, name: str, commit: str | None) -> bool:
    try:
        await kept.look(name, commit)
    except (OfflineError, EntryNotFoundError):
        return False
    return True
