"""What is asked for beside the index where nothing is cached, instead of after it: each answer takes a round trip.

That is the single file that a checkpoint without an index has, and the listing that tells of its shards. An answer of
these is used if it is good and of the commit that the index is of; else what it was to tell is asked for as ever.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

from ..errors import AsyncfetchError, EntryNotFoundError
from ..storage.listings import Records
from ..tasks import off_loop, plain_errors
from .candidates import is_index_name
from .hub_finder import HubPlace
from .located import FoundIndex, Listing, SourceFile
from .request import Request, names_in

__all__ = ["Ahead", "asking_ahead"]

T = TypeVar("T")


class _Answer(Generic[T]):
    """One that is on its way. `get` waits for it: None if no good one came."""

    def __init__(self) -> None:
        self._value: T | None = None
        self._here = anyio.Event()

    async def fetch(self, ask: Callable[[], Awaitable[T | None]], seconds: float) -> None:
        """Ask, for so many seconds."""
        try:
            with anyio.move_on_after(seconds):
                self._value = await ask()
        except AsyncfetchError:  # who needs it asks again, and hears it then
            pass
        finally:
            self._here.set()

    async def get(self) -> T | None:
        await self._here.wait()
        return self._value


class Ahead:
    """What was asked for ahead, and what of it may be believed at `place`."""

    def __init__(self, place: HubPlace) -> None:
        self._place = place
        self._files: dict[str, _Answer[SourceFile | EntryNotFoundError]] = {}
        self._listed: _Answer[Records] | None = None

    def look(self, aside: HubPlace, name: str, seconds: float, group: TaskGroup) -> None:
        """Ask what the Hub says of a file, in a task of `group`, for so many seconds."""

        async def ask() -> SourceFile | EntryNotFoundError:
            try:
                return await aside.asked(name, None)
            except EntryNotFoundError as error:
                return error

        self._files[name] = _Answer()
        group.start_soon(self._files[name].fetch, ask, seconds)

    def list(self, aside: HubPlace, seconds: float, group: TaskGroup) -> None:
        """Ask what the revision lists, in a task of `group`, for so many seconds."""
        self._listed = _Answer()
        group.start_soon(self._listed.fetch, aside.records, seconds)

    async def file(self, name: str, commit: str | None) -> SourceFile | None:
        found = await self._told(name, commit)
        return None if found is None else await self._place.recognised(found)

    async def has(self, name: str, commit: str | None) -> bool | None:
        try:
            return True if await self._told(name, commit) is not None else None
        except EntryNotFoundError:
            return False

    async def _told(self, name: str, commit: str | None) -> SourceFile | None:
        answer = self._files.get(name)
        found = None if answer is None else await answer.get()
        if found is None or (commit is not None and found.commit != commit):
            return None
        if isinstance(found, EntryNotFoundError):
            raise found
        return found

    async def listing(self, index: FoundIndex) -> Listing | None:
        """What is listed, if it has just this index. None if nothing is, or another one.

        A branch may have moved meanwhile: what the Hub says of a shard when its bytes are asked for counts for more.
        """
        if self._listed is None or index.commit is None:
            return None
        place, commit, records = self._place, index.commit, await self._listed.get()
        if records is None:
            return None
        listing = await off_loop(lambda: place.listing_of(records, commit, sure=place.ref is None))
        file = await off_loop(lambda: listing.files.get(index.name))
        return listing if file is not None and file.blob == index.etag else None


@asynccontextmanager
async def asking_ahead(
    place: HubPlace, make_aside: Callable[[], HubPlace], request: Request
) -> AsyncIterator[Ahead | None]:
    """In the block, what is probably needed is on its way. Nothing where the cache has some of it: one request may do.

    `make_aside` makes a place like `place` for one request that may fail.
    """
    names = names_in(request.source, request.variant)
    single = next((name for name in names if not is_index_name(name)), None)
    if len(names) < 2 or single is None or not await place.knows_nothing():
        yield None
        return
    ahead = Ahead(place)
    with plain_errors():
        async with anyio.create_task_group() as group:
            ahead.look(make_aside(), single, request.policy.connect_timeout, group)
            if request.late and request.believed and request.chosen is None:
                ahead.list(make_aside(), request.policy.connect_timeout, group)
            yield ahead
            group.cancel_scope.cancel()
