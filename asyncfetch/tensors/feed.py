"""Tensors on their way from a transfer to one reader, within a memory limit.

In memory, a segment of a file is received only while what is being received and what the reader has
not finished with stay within the limit. On disk nothing waits for the reader, and the limit is that
of what is received at once: so the first shards are whole long before the last.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from anyio.lowlevel import checkpoint

from ..errors import CorruptError, SourceError, storage_errors
from ..format.arrays import tensor_view
from ..format.dtypes import Array, cast
from ..format.header import TensorInfo
from ..format.index import check_tensors
from ..policy import Policy
from ..sources.located import Landed, Located, SourceFile
from ..spans import MiB
from ..storage.buffers import aligned_buffer
from ..storage.partial import FilePartial, Partial
from ..tasks import off_loop, run_as_task
from .ahead import read_wanted_ahead
from .allowance import Allowance, limit_in_memory, limit_on_disk
from .descriptors import MOST_OPEN, Descriptor
from .merge import open_landed
from .reader import stream_closed
from .segments import Filled, Segment, TensorPartial, segments_of

__all__ = ["Feed"]


@dataclass(eq=False, slots=True)
class _Entry:
    """A tensor that can be handed out. `credit` bytes are free when the reader comes for the next one.

    `make` may be called again where a wait for what it gives was cancelled.
    """

    name: str
    make: Callable[[], Array]
    heavy: bool
    credit: int = 0
    stored: _Stored | None = None  # what `make` reads from


@dataclass(eq=False, slots=True)
class _Stored:
    """A file on its way to disk, some of whose tensors can be read already. `waiting` is in the file's order."""

    waiting: deque[tuple[str, TensorInfo]]
    descriptor: Descriptor
    path: Path | None = None  # once it has landed: from then on the descriptor may be closed
    unread: int = field(init=False)

    def __post_init__(self) -> None:
        self.unread = len(self.waiting)

    def handed_out(self) -> None:
        """One of the tensors was: after the last one nothing reads here any more."""
        self.unread -= 1
        if not self.unread:
            self.descriptor.close()

    @contextmanager
    def reading(self) -> Iterator[int]:
        """A descriptor to read from."""
        with ExitStack() as held:
            try:
                number = held.enter_context(self.descriptor)
            except SourceError:
                if self.path is None:
                    raise
                number = held.enter_context(open(self.path, "rb")).fileno()
            yield number


# Tensors that came together, or how to open the shard that they are in.
_Lot = list[_Entry] | Callable[[], list[_Entry]]


class Feed:
    """The consumer of a transfer, and what its reader asks for the next tensor.

    `early` hands tensors out before the hash of their shard is known. `memory_limit` is bytes; None
    is 1.25 times the largest shard, or with `early` twice the largest tensor, and at least 64 MiB.
    """

    def __init__(
        self,
        located: Located,
        *,
        storage: str,
        policy: Policy,
        early: bool,
        memory_limit: int | None,
        dtype: np.dtype[Any] | None,
    ) -> None:
        selected, memory = located.wanted, storage == "memory"
        self.early = early
        self.wake: Callable[[], None] = lambda: None
        self._index_file = selected.file
        self._memory = memory
        self._dtype = dtype
        self._names = {located.path_of(shard): selected.tensors_of(shard) for shard in selected.shards}
        self._segments: dict[str, list[Segment]] = {
            file.name: segments_of(file.header, self._names.get(file.name, ()))
            for file in located.files
            if memory and file.path is None and file.header is not None
        }
        sizes = [file.size for file in located.files]
        stops = {name: [segment.stop for segment in parts] for name, parts in self._segments.items()}
        limit = limit_in_memory(memory_limit, sizes, stops, early=early) if memory else limit_on_disk(sizes, policy)
        self._allowance = Allowance(limit, stops, early=early, freed=lambda: self.wake())
        self._stored: dict[str, _Stored] = {}
        # No stream of anyio's: what is in the hands of a reader whose task is cancelled would be lost.
        self._lots: deque[_Lot] = deque()
        self._ready: deque[_Entry] = deque()
        self._news: anyio.Event | None = None  # for a reader that waits
        self._owed = 0
        self._finished = False
        self.closed = False
        self._failure: Exception | None = None

    # -- the transfer's side ----------------------------------------------------------------------

    @property
    def reads_partials(self) -> bool:
        return False  # with `early` some, but a small file is whole as soon as anything of it is here

    def admits(self, file: SourceFile) -> bool:
        return self._allowance.admits(file.name, file.size, len(file.prefix))

    def partial(self, file: SourceFile) -> Partial:
        return TensorPartial(file.size, file.algorithm, self._segments[file.name], in_order=self.early)

    def room(self, file: SourceFile, offset: int) -> int:
        return self._allowance.room(file.name, file.size, offset)

    def advanced(self, file: SourceFile, partial: Partial) -> None:
        if isinstance(partial, TensorPartial):
            taken = partial.take(unwanted=not self.early)
            if self.early:
                self._offer_filled(file, taken)
                self._allowance.give_back(sum(filled.segment.nbytes for filled in taken if not filled.segment.tensors))
        elif self.early and isinstance(partial, FilePartial):
            self._offer_stored(file, partial)

    def verified(self, file: SourceFile) -> None:
        """Nothing to do: tensors are handed out when the file has landed."""

    async def restarting(self, file: SourceFile) -> None:
        """Nothing to do: what was handed out early is never fetched again."""

    def landed(self, file: SourceFile, landed: Landed, partial: Partial | None) -> None:
        if isinstance(partial, TensorPartial) and self.early:
            self.advanced(file, partial)
        reserved = self._allowance.landed(file.name)
        if isinstance(partial, TensorPartial) and not self.early and landed.buffer is None:
            filled = partial.take_all()
            self._offer_filled(file, filled)
            self._allowance.give_back(reserved - sum(one.segment.nbytes for one in filled))
        elif not (isinstance(partial, TensorPartial) and self.early):
            credit = reserved if self._memory else 0
            if self.early and isinstance(partial, FilePartial):
                self._close_all_but_few(file, landed)
            else:
                self._offer(lambda: self._open(file, landed, credit))
            self._allowance.give_back(reserved - credit)

    def finish(self, failure: Exception | None) -> None:
        """Nothing more comes; the reader gets `failure` after all that is here."""
        self._failure = failure
        self._finished = True
        self._tell()

    # -- what is handed over ----------------------------------------------------------------------

    def _offer(self, lot: _Lot) -> None:
        self._lots.append(lot)
        self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()

    def _offer_filled(self, file: SourceFile, taken: Iterable[Filled]) -> None:
        entries: list[_Entry] = []
        for filled in taken:
            for name, info in filled.segment.tensors:
                entries.append(self._entry(name, _maker(filled, name, info, file.name)))
            if filled.segment.tensors:
                entries[-1].credit = filled.segment.nbytes
        if entries:
            self._offer(entries)

    def _offer_stored(self, file: SourceFile, partial: FilePartial) -> None:
        """What is on disk from the first byte on: read when it is asked for, by a descriptor of our own."""
        header = file.known_header
        stored = self._stored.get(file.name)
        if stored is None:
            wanted = set(self._names.get(file.name, ()))
            if not wanted:
                return
            waiting = deque((name, info) for name, info in header.tensors.items() if name in wanted)
            stored = self._stored[file.name] = _Stored(waiting, Descriptor(partial.duplicate(), "stream"))
        reached = partial.frontier - header.data_start
        entries = []
        while stored.waiting and stored.waiting[0][1].end <= reached:
            name, info = stored.waiting.popleft()
            entry = self._entry(name, _reader(stored, file, name, info), heavy=True)
            entry.stored = stored
            entries.append(entry)
        if entries:
            self._offer(entries)

    def _close_all_but_few(self, file: SourceFile, landed: Landed) -> None:
        """A reader that is slow keeps few descriptors: what it has not read of other files it reads by their names."""
        if file.name in self._stored:
            self._stored[file.name].path = landed.path
        unread = [one for one in self._stored.values() if one.path is not None and one.unread]
        for one in unread[MOST_OPEN:]:
            one.descriptor.close()

    def _open(self, file: SourceFile, landed: Landed, credit: int) -> list[_Entry]:
        header, buffer = open_landed(file, landed)
        names = self._names.get(file.name, ())
        check_tensors(names, header, shard=file.name, index_file=self._index_file)
        read_wanted_ahead(landed, buffer, header, names)
        entries = [
            self._entry(name, _viewer(buffer, header.tensors[name], header.data_start, file.name, name))
            for name in names
        ]
        if entries:
            entries[-1].credit = credit
        return entries

    def _entry(self, name: str, make: Callable[[], Array], *, heavy: bool = False) -> _Entry:
        dtype = self._dtype
        return _Entry(name, make, heavy) if dtype is None else _Entry(name, lambda: cast(make(), dtype), heavy=True)

    # -- the reader's side ------------------------------------------------------------------------

    async def next(self) -> tuple[str, Array] | None:
        """The next tensor; None at the end. Raises what the transfer failed with, after all that landed."""
        self._check_open()
        self._allowance.give_back(self._owed)
        self._owed = 0
        await checkpoint()  # the download and the rest of the program have their turn, however many tensors wait
        while not self._ready:
            if not await self._next_lot():
                if self._failure is not None:
                    raise self._failure from self._failure.__cause__
                return None
        entry = self._ready[0]
        array = await run_as_task(lambda: off_loop(entry.make)) if entry.heavy else entry.make()
        return self._hand_out(array)

    def next_at_hand(self) -> tuple[str, Array] | None:
        """The next tensor if it is here and frees no memory: for a reader outside of the event loop's thread."""
        if self.closed or self._owed or not self._ready:
            return None
        return self._hand_out(self._ready[0].make())

    async def _next_lot(self) -> bool:
        """Wait for more tensors, and make them ready. False when none come. A wait that is cancelled loses none."""
        while not self._lots:
            if self._finished:
                return False
            self._news = anyio.Event()
            await self._news.wait()
            self._check_open()
        lot = self._lots[0]
        entries = lot if isinstance(lot, list) else await run_as_task(functools.partial(off_loop, lot))
        self._check_open()
        self._ready.extend(entries)
        self._lots.popleft()
        return True

    def _hand_out(self, array: Array) -> tuple[str, Array]:
        """What the first of `_ready` has made, now that nothing can come between it and the reader."""
        self._check_open()
        entry = self._ready.popleft()
        self._owed = entry.credit
        if entry.stored is not None:
            entry.stored.handed_out()
        return entry.name, array

    def _check_open(self) -> None:
        if self.closed:
            raise stream_closed()

    def close(self) -> None:
        """Drop what was not read."""
        self.closed = self._finished = True
        self._ready.clear()
        self._lots.clear()
        self._tell()
        for stored in self._stored.values():
            stored.descriptor.close()


def _maker(filled: Filled, name: str, info: TensorInfo, file: str) -> Callable[[], Array]:
    return lambda: filled.array(name, info, file=file)


def _viewer(buffer: Any, info: TensorInfo, data_start: int, file: str, name: str) -> Callable[[], Array]:
    return lambda: tensor_view(buffer, info, data_start, file=file, tensor=name)


def _reader(stored: _Stored, file: SourceFile, name: str, info: TensorInfo) -> Callable[[], Array]:
    offset = file.known_header.data_start + info.begin

    def read() -> Array:
        buffer, at = aligned_buffer(info.nbytes, 0), 0
        with storage_errors(file.name), stored.reading() as number:
            while at < info.nbytes:
                got = os.preadv(number, [buffer[at : at + 16 * MiB]], offset + at)
                if not got:
                    raise CorruptError(f"{file.name} ends at byte {offset + at:,}.", file=file.name)
                at += got
        return tensor_view(buffer, TensorInfo(info.dtype, info.shape, 0, info.nbytes), 0, file=file.name, tensor=name)

    return read
