"""What the keeper has at each node: an actor that knows its disk, and keeps what the node is to have in memory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import numpy as np

from ..engine.bookkeeping import file_states, prepare_cache, record, room_needed
from ..errors import NetworkError, StorageError, storage_errors
from ..format.dtypes import Array
from ..policy import __version__
from ..storage.checksums import Checksum
from ..tasks import off_loop
from .fetching import Arriving, Teller, fetched
from .nodes import NodeState
from .plan import Plan
from .shares import Unit

__all__ = ["Agent"]


class Agent:
    """An actor of Ray, placed at its node. All methods are called by the keeper."""

    def __init__(self, plan: Plan, node: str, keeper: Any) -> None:
        self._plan, self._node, self._keeper = plan, node, keeper
        self._cache = plan.cache()
        self._arriving: dict[str, Arriving] = {}
        self._held: dict[Unit, tuple[Any, ...]] = {}
        self._running: dict[anyio.CancelScope, anyio.Event] = {}

    async def probe(self) -> NodeState:
        """What is here."""

        def look() -> NodeState:
            located = self._plan.here(self._cache)
            present = {state.file: state.present for state in file_states(located, "disk")}
            free, room = self._cache.free_bytes(), room_needed(located)
            return NodeState(__version__, str(self._cache.root), free, present, room)

        return await off_loop(look, slow=True)

    async def fetch(self, name: str) -> str | None:
        """Bring a file from its source into the cache of this node. Returns its sha256, as far as the cache tells."""
        async with self._until_stopped(), Teller(self._keeper, self._node) as tell:
            file = await off_loop(lambda: self._plan.find(self._cache, name))
            await fetched(self._plan, file, self._cache, self._keeper, tell, disk=True)
            path = (await off_loop(lambda: self._plan.find(self._cache, name))).path
            known = None if path is None else await off_loop(lambda: self._cache.checksum_of(path))
            return known.hex if known is not None and known.algorithm == "sha256" else None

    async def read(self, name: str, start: int, stop: int) -> tuple[None, Array]:
        """Some bytes of a file that is here. That they are comes first, and by itself."""
        return None, await off_loop(lambda: self._read(name, start, stop))

    def _read(self, name: str, start: int, stop: int) -> Array:
        path = self._plan.find(self._cache, name).path or self._cache.folder / name
        piece = np.empty(stop - start, np.uint8)
        with storage_errors(path), open(path, "rb") as stream:
            at = 0
            while at < len(piece):
                got = os.preadv(stream.fileno(), [piece.data[at:]], start + at)
                if not got:
                    raise StorageError(str(path), f"it ends at byte {start + at:,}")
                at += got
        return piece

    async def write(self, name: str, start: int, piece: Array) -> int:
        """Take some bytes of a file, in order. Returns how many are here. A small file may come whole, and is empty."""
        arriving = await self._arrive(name)
        return await off_loop(partial(arriving.accept, start, piece.data))

    async def finish(self, name: str, sha256: str | None) -> None:
        """All bytes of a file are here: hold it against its hash, and give it its name.

        Where the source tells none, `sha256` is that of the file which another node brought from there.
        """
        arriving = await self._arrive(name)
        del self._arriving[name]
        if arriving.file.checksum is None and sha256 is not None:
            arriving.file.checksum = Checksum("sha256", sha256)
        await off_loop(arriving.finish, slow=True)

    async def _arrive(self, name: str) -> Arriving:
        if name not in self._arriving:
            file = replace(self._plan.files[name])
            self._arriving[name] = await off_loop(lambda: Arriving(self._cache, self._plan.commit or "", file))
        return self._arriving[name]

    async def distrust(self, name: str) -> None:
        """What is here of a file is wrong: it is fetched again, and replaced."""

        def look() -> None:
            if (path := self._plan.find(self._cache, name).path) is not None:
                self._cache.wrong.add(path)

        await off_loop(look)

    async def complete(self) -> str:
        """All files are here: link what other commits brought, publish index, listing and ref. Returns the folder."""

        def publish() -> str:
            located = self._plan.here(self._cache)
            prepare_cache(located, named=True)
            for file in located.files:
                if file.in_blobs:
                    self._cache.link(file.blob, located.commit or "", file.name)
            record(located)
            return str(self._cache.snapshot(located.commit or ""))

        return await off_loop(publish, slow=True)

    async def hold(self, unit: Unit, *objects: Any) -> None:
        """Keep the objects of a unit in the store of this node: what somebody maps stays."""
        self._held[unit] = objects

    async def stop(self) -> None:
        """End what is under way, so that a later run can go on."""
        for scope in list(self._running):
            scope.cancel()
        for ended in list(self._running.values()):
            await ended.wait()
        arriving, self._arriving = list(self._arriving.values()), {}

        def suspend() -> None:
            for one in arriving:
                one.suspend()

        await off_loop(suspend)
        self._held.clear()

    @asynccontextmanager
    async def _until_stopped(self) -> AsyncIterator[None]:
        with anyio.CancelScope() as scope:
            self._running[scope] = ended = anyio.Event()
            try:
                yield
            finally:
                del self._running[scope]
                ended.set()
        if scope.cancelled_caught:
            raise NetworkError("the download was stopped", url=self._plan.located.source)
