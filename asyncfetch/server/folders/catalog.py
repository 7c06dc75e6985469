"""The repositories of a directory as they are now: found, hashed, and looked at again when they change.

To answer a request costs one stat for each folder of a repository, or for a burst of requests one for all. What was
written to in place, which shows in no folder, is noticed when the file is asked for, and by listings within LOOK_AGAIN,
or later where a walk takes long.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import anyio

from ...errors import ChangedError
from ...tasks import off_loop
from .hashes import Hashes, state_file
from .hashing import Hashing, Unready
from .layout import KINDS, Layout, Place, Watched, unchanged
from .repository import Repository
from .revisions import commit_of, refs_of, snapshot_of
from .walk import is_as_listed, open_listed, walk

if TYPE_CHECKING:
    from typing import Self

    from .repository import File, Listed

__all__ = ["Catalog"]

LOG = logging.getLogger("asyncfetch.server")
BURST = 0.01  # seconds; to look at the disk takes another thread, and that most of the time of a short answer
LOOK_AGAIN = 1.0  # seconds
REST = 20  # times as long as a walk takes, until the next one: a folder of 100,000 files is not walked all the time
PATIENCE = 7.0  # seconds; huggingface_hub waits 10 for a HEAD
ATTEMPTS = 3  # how often a folder that changes while it is hashed is looked at again
MOST_KEPT = 1000  # repositories


class _Look(NamedTuple):
    """What a walk found of one commit of a place. `commit` is None where it follows from the files.

    It is believed until `good_until`, by the monotonic clock, if its folders do not change.
    """

    place: Place
    commit: str | None
    listing: tuple[Listed, ...]
    watched: Watched
    good_until: float


@dataclass(frozen=True)
class _Known:
    """A repository, and how long and for which state of its folders it is believed to be so."""

    repository: Repository
    watched: Watched
    good_until: float


class Catalog:
    """The repositories of one directory. Raises SourceError when `root` is not a directory.

    To be entered before it is asked: its files are hashed by tasks of its own. `state_dir` is the folder that keeps
    hashes over restarts; without one they are taken again. `follow_links`: also serve what links lead to, anywhere.
    `ahead`: hash all files from the beginning, and not only those of what is asked for.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        state_dir: str | os.PathLike[str] | None = None,
        follow_links: bool = False,
        ahead: bool = False,
    ) -> None:
        self.layout = Layout(root, follow_links=follow_links)
        self.hashes = Hashes(None if state_dir is None else state_file(Path(state_dir), self.layout.root))
        self.hashing = Hashing(self.hashes)
        self._ahead = ahead
        self._tasks = AsyncExitStack()
        self._places: OrderedDict[tuple[str, str], tuple[Place, Watched, float]] = OrderedDict()
        self._seen: OrderedDict[tuple[str, str, str], tuple[Place, Repository, float]] = OrderedDict()
        self._walks: dict[Place, anyio.Lock] = {}
        self._known: OrderedDict[tuple[Place, str | None], _Known] = OrderedDict()

    async def __aenter__(self) -> Self:
        self.hashing.begin()
        tasks = await self._tasks.enter_async_context(anyio.create_task_group())
        self._tasks.callback(tasks.cancel_scope.cancel)
        tasks.start_soon(self.hashing.run)
        if self._ahead:
            tasks.start_soon(self._hash_all)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self._tasks.aclose()

    def close(self) -> None:
        """End all hashing soon, from any thread; who waits for it gets a ChangedError."""
        self.hashing.stop()

    def locate(self, kind: str, name: str) -> Place | None:
        """Where the repository `name` lies; None when there is none. Blocks."""
        key, now = (kind, name), time.monotonic()
        if (found := self._places.get(key)) and now - found[2] < LOOK_AGAIN and unchanged(found[1]):
            return found[0]
        place, watched = self.layout.locate(kind, name)
        if place is None:
            self._places.pop(key, None)
        else:
            _keep(self._places, key, (place, watched, now))
        return place

    def just_seen(self, kind: str, name: str, revision: str) -> tuple[Place, Repository] | None:
        """A repository that was looked at a moment ago. Does not block, and does not look at the disk."""
        place, repository, until = self._seen.get((kind, name, revision)) or (None, None, 0.0)
        return (place, repository) if place and repository and time.monotonic() < until else None

    def remember(self, place: Place, name: str, revision: str, repository: Repository, looked_at: float) -> None:
        """Let `just_seen` tell what was found at `looked_at`, by the monotonic clock."""
        _keep(self._seen, (place.kind, name, revision), (place, repository, looked_at + BURST))

    def peek(self, place: Place, revision: str, path: str | None = None) -> Repository | None:
        """The repository if nothing is to be hashed for it; None if it is not that simple. Blocks.

        `path` is the file in question, which is looked at in any case.
        """
        commit = commit_of(place, revision)
        known = self._known.get((place, commit))
        if known is None or time.monotonic() >= known.good_until or not unchanged(known.watched):
            return None
        file = known.repository.files.get(path or "")
        if file is not None and not is_as_listed(file.listed):
            return None
        return known.repository if _is_revision(place, revision, known.repository) else None

    async def repository(self, place: Place, revision: str, path: str | None = None) -> Repository | Unready | None:
        """The repository at a revision as it is now; None if it has no such revision. `path` is that of `peek`.

        Unready when its files take longer to be hashed than a client would wait: it goes on meanwhile.
        Raises ChangedError when it does not hold still.
        """
        look: _Look | None = None
        with anyio.move_on_after(PATIENCE):
            for attempt in range(ATTEMPTS):
                found = await self._look_once(place, revision, path)
                if not isinstance(found, _Look):
                    return found
                look = found
                try:
                    await self.hashing.settle(_unpromised(look.listing))
                except ChangedError:
                    if attempt == ATTEMPTS - 1 or self.hashing.stopped:
                        raise
                    continue
                repository = await off_loop(lambda look=look: self._build(look))  # type: ignore[misc]
                self.hashing.want(listed for listed in look.listing if listed.promised)
                return repository if _is_revision(place, revision, repository) else None
        return self.hashing.unready(_unpromised(look.listing) if look else ())

    async def _look_once(self, place: Place, revision: str, path: str | None) -> Repository | _Look | None:
        """What a walk finds; or the repository, if another who asked at the same time has walked meanwhile."""
        lock = self._walks.setdefault(place, anyio.Lock())
        try:
            async with lock:
                return await off_loop(
                    lambda: self.peek(place, revision, path) or self._look(place, revision), abandon=True
                )
        finally:
            if not lock.statistics().tasks_waiting:
                self._walks.pop(place, None)

    async def open(self, file: File) -> int:
        """A descriptor for reading `file`, to be closed by the caller. Raises ChangedError."""
        return await off_loop(lambda: open_listed(file.listed))

    def is_damaged(self, file: File) -> bool:
        """Whether the bytes of a file are known not to have the hash that its name promises."""
        return file.listed.promised is not None and self.hashes.lookup(file.listed) not in (None, file.listed.promised)

    def _look(self, place: Place, revision: str) -> _Look | None:
        commit, began = commit_of(place, revision), time.monotonic()
        if not place.cached:
            found, watched = walk(self.layout, place.folder)
        elif commit is not None:
            found, watched = walk(self.layout, snapshot_of(place, commit), blobs=place.folder / "blobs")
        else:
            return None
        ended = time.monotonic()
        return _Look(place, commit, found, watched, ended + max(LOOK_AGAIN, REST * (ended - began)))

    def _build(self, look: _Look) -> Repository:
        key = (look.place, look.commit)
        if (known := self._known.get(key)) is not None and known.repository.listing == look.listing:
            _keep(self._known, key, replace(known, watched=look.watched, good_until=look.good_until))
            return known.repository
        etags = {listed: listed.promised or self.hashes.lookup(listed) or "" for listed in look.listing}
        if changed := next((listed for listed, etag in etags.items() if not etag), None):
            raise ChangedError(changed.path, "it was written to")
        repository = Repository(look.place.name, look.listing, etags, commit=look.commit)
        _keep(self._known, key, _Known(repository, look.watched, look.good_until))
        return repository

    async def _hash_all(self) -> None:
        try:
            self.hashing.want(await off_loop(self._all_files, slow=True))
        except OSError as error:  # who asks for it will hear of it
            LOG.warning("Not all files could be looked at: %s.", error)

    def _all_files(self) -> list[Listed]:
        places = [self.locate(kind, name) for kind in KINDS for name in self.layout.names(kind)]
        looks = [
            self._look(place, revision)
            for place in places
            if place
            for revision in (set(refs_of(place).values()) if place.cached else ("main",))
        ]
        return [listed for look in looks if look for listed in look.listing]


def _unpromised(listing: tuple[Listed, ...]) -> list[Listed]:
    return [listed for listed in listing if listed.promised is None]


def _is_revision(place: Place, revision: str, repository: Repository) -> bool:
    return place.cached or revision in ("main", "HEAD", repository.commit)


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def _keep(kept: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    """Keep a value, and forget the oldest where there are too many."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > MOST_KEPT:
        kept.popitem(last=False)
