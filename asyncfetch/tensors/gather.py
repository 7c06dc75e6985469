"""Parts of files into memory: ranges over the network, reads from disk, what came with the metadata.

A whole-file hash cannot be checked on a part of it. What holds a file fixed between two reads is its
size and its strong ETag (RFC 9110, section 13.1.5: If-Range), on disk its size and time of change.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import numpy as np

from ..errors import ChangedError, ProtocolError, StorageError, storage_errors
from ..format.slices import REQUEST_COST, STAGE_BYTES, Piece, coalesce
from ..network.body import Body
from ..network.ranges import Intake, Target, receive, strong_etag
from ..network.transport import Transport
from ..policy import Policy
from ..sources.links import Links
from ..sources.located import Located, SourceFile
from ..spans import Span
from .descriptors import MOST_OPEN, Descriptor

__all__ = ["Gatherer", "Sink", "Want", "missing", "put"]

_PARTS = 4  # requests for each connection in a large read, so that all end at about the same time


@dataclass(frozen=True, slots=True)
class Want:
    """Pieces of `file`, in its order, and the memory that their places count in."""

    file: SourceFile
    pieces: Sequence[Piece]
    memory: memoryview


@dataclass(eq=False, slots=True)
class _Step:
    """A stretch of the file that is received at once: into its final place, or staged."""

    stop: int
    pieces: list[tuple[Piece, memoryview]]
    direct: bool = False


class Sink:
    """Takes the bytes of a stretch of a file in order, and puts the wanted ones into place.

    A long piece without holes is received where it belongs. Short ones, those with holes, and what
    nobody wants go through a buffer of STAGE_BYTES. `position` survives a broken connection.
    """

    def __init__(self, pieces: Sequence[tuple[Piece, memoryview]]) -> None:
        self.position = pieces[0][0].start
        self.stop = pieces[-1][0].stop
        self._steps = _steps(pieces)
        self._current = 0
        self._begin = self.position  # of the current step
        staged = any(not step.direct for step in self._steps)
        self._stage = memoryview(bytearray(min(STAGE_BYTES, self.stop - self.position) if staged else 0))

    @property
    def room(self) -> int:
        """How many bytes can be placed at once: 0 when all are here."""
        return self._steps[self._current].stop - self.position if self.position < self.stop else 0

    def place(self, nbytes: int) -> memoryview:
        """Where the next `nbytes` go, which are at most `room`."""
        step, at = self._steps[self._current], self.position - self._begin
        if step.direct:
            piece, memory = step.pieces[0]
            return memory[piece.dest + at : piece.dest + at + nbytes]
        return self._stage[at : at + nbytes]

    def accept(self, view: memoryview) -> None:
        """The next `len(view)` bytes are where `place` said."""
        self.position += len(view)
        step = self._steps[self._current]
        if self.position < step.stop:
            return
        if not step.direct:
            for piece, memory in step.pieces:
                put(piece, self._stage[piece.start - self._begin :], memory)
        self._begin = step.stop
        self._current += 1


def _steps(pieces: Sequence[tuple[Piece, memoryview]]) -> list[_Step]:
    """The pieces and the gaps between them, without a hole, none of the staged beyond STAGE_BYTES."""
    steps: list[_Step] = []
    at = begin = pieces[0][0].start
    for piece, memory in pieces:
        direct = not piece.counts and piece.stop - piece.start > STAGE_BYTES // 2
        extends = steps and not steps[-1].direct
        if direct or not extends or piece.stop - begin > STAGE_BYTES:
            while at < piece.start:  # nobody wants these bytes
                begin, at = at, min(at + STAGE_BYTES, piece.start)
                steps.append(_Step(at, []))
            begin = piece.start
            steps.append(_Step(piece.stop, [(piece, memory)], direct))
        else:
            steps[-1].stop = piece.stop
            steps[-1].pieces.append((piece, memory))
        at = piece.stop
    return steps


def put(piece: Piece, source: memoryview, memory: memoryview) -> None:
    """The wanted bytes of a staged piece, which begins `source`, into their place."""
    if not piece.counts:
        memory[piece.dest : piece.dest + piece.nbytes] = source[: piece.nbytes]
        return
    dtype = np.dtype(f"u{piece.itemsize}")
    wanted: np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]]
    wanted = np.ndarray(piece.counts, dtype, source, strides=piece.strides)
    np.ndarray(piece.counts, dtype, memory, piece.dest)[...] = wanted


class Gatherer:
    """Reads parts of the files of one opened checkpoint, at most `policy.connections` at a time in all calls."""

    def __init__(self, located: Located, transport: Transport, policy: Policy) -> None:
        self._transport = transport
        self._policy = policy
        self._limiter = anyio.CapacityLimiter(policy.connections)
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        # The source vouches that behind a new link is the same file; another store may name it otherwise.
        self._links = Links(located.origin, lambda file: self._etags.pop(file.name, None))
        self._etags = {file.name: file.etag for file in located.files if file.etag is not None}
        self._whole_only: set[str] = set()  # files whose server knows no ranges
        self._descriptors: dict[str, tuple[Descriptor, os.stat_result]] = {}
        self._closed = False
        self.received = 0  # bytes that were asked of the network

    async def read(self, wants: Sequence[Want]) -> None:
        """Fill the memory of all `wants`. The first failure ends all; then the memory is of no use.

        Raises ChangedError, EntryNotFoundError, the NetworkError kinds after retries, StorageError.
        """
        total = sum(piece.stop - piece.start for want in wants for piece in want.pieces)
        longest = max(self._policy.min_split, -(-total // (_PARTS * self._policy.connections)))
        async with anyio.create_task_group() as group:
            for file, pieces in missing(wants):
                whole = file.name in self._whole_only
                for part in coalesce(pieces, float("inf") if whole else REQUEST_COST, None if whole else longest):
                    group.start_soon(self._run, file, part)

    async def aclose(self) -> None:
        """Close what is open on disk, or leave that to who reads it now. Nothing is opened any more."""
        self._closed = True
        for descriptor, _ in self._descriptors.values():
            descriptor.close()
        self._descriptors.clear()

    async def _run(self, file: SourceFile, pieces: Sequence[tuple[Piece, memoryview]]) -> None:
        async with self._limiter:
            sink = Sink(pieces)
            if file.path is not None:
                with await self._open(file) as number:
                    while sink.room:
                        await self._transport.limits.in_thread(
                            lambda: _read_some(number, sink, self._policy.burst, file)
                        )
            else:
                self.received += sink.stop - sink.position
                intake = _Stretch(self, file, sink)
                await receive(self._transport, intake, file=file.name, size=file.size, told=file.name)

    # -- the disk --------------------------------------------------------------------------------

    async def _open(self, file: SourceFile) -> Descriptor:
        """A descriptor that is not closed before the caller waits for something else."""
        try:
            async with self._locks[file.name]:
                descriptor = await self._transport.limits.in_thread(lambda: self._descriptor(file))
                self._close_all_but_few()
                return descriptor
        finally:
            if self._closed:  # meanwhile
                await self.aclose()

    def _close_all_but_few(self) -> None:
        """What was opened first is closed, as long as too many are open. On the event loop, between two waits."""
        unlocked = [name for name in list(self._descriptors) if not self._locks[name].locked()]
        for name in unlocked[: max(len(self._descriptors) - MOST_OPEN, 0)]:
            self._descriptors.pop(name)[0].close()

    def _descriptor(self, file: SourceFile) -> Descriptor:
        """The open file, which must be the one whose header was read, and still as it was."""
        path = file.path
        if path is None:
            raise ProtocolError("the file is not on disk", url=file.name)
        with storage_errors(path):
            if file.name not in self._descriptors:
                self._descriptors[file.name] = _open_same(path, file)
            descriptor, before = self._descriptors[file.name]
            with descriptor as number:
                now = os.fstat(number)
        if (now.st_size, now.st_mtime_ns) != (file.size, before.st_mtime_ns):
            raise ChangedError(file.name, "its size or its time of change is another one")
        return descriptor


class _Stretch(Intake):
    """A stretch of a file on its way from the network into a sink."""

    def __init__(self, gatherer: Gatherer, file: SourceFile, sink: Sink) -> None:
        self._gatherer = gatherer
        self._file = file
        self._sink = sink

    @property
    def span(self) -> Span:
        return Span(self._sink.position, self._sink.stop)

    async def target(self, refused: Target | None) -> Target:
        target = await self._gatherer._links.target(self._file, refused)
        etag = self._gatherer._etags.get(self._file.name)
        return replace(target, validator=etag) if target.validator is None else target

    def place(self, nbytes: int) -> memoryview:
        return self._sink.place(min(nbytes, self._sink.room, self._gatherer._policy.burst))

    def accept(self, view: memoryview) -> None:
        self._sink.accept(view)

    def answered(self, body: Body, target: Target, at: int) -> None:  # noqa: ARG002
        """Remember the first strong ETag of a file whose source gave none, and hold later answers to it."""
        name, etags = self._file.name, self._gatherer._etags
        etag = strong_etag(body, target)
        if etag is not None and target.validator is None and etags.setdefault(name, etag) != etag:
            raise ChangedError(name, "its ETag is another one")
        if body.status == 200:
            self._gatherer._whole_only.add(name)


def missing(wants: Sequence[Want]) -> Iterator[tuple[SourceFile, list[tuple[Piece, memoryview]]]]:
    """What is wanted of each file, in its order. Of a file that is not on disk, what came with its header is put in."""
    by_file: defaultdict[str, list[tuple[Piece, memoryview]]] = defaultdict(list)
    files = {want.file.name: want.file for want in wants}
    for want in wants:
        by_file[want.file.name] += [(piece, want.memory) for piece in want.pieces]
    for name, pieces in by_file.items():
        pieces.sort(key=lambda entry: entry[0].start)
        yield files[name], pieces if files[name].path is not None else _take_prefix(files[name], pieces)


def _take_prefix(file: SourceFile, pieces: list[tuple[Piece, memoryview]]) -> list[tuple[Piece, memoryview]]:
    """What is left of `pieces` once the bytes that came with the metadata are in place."""
    prefix = memoryview(file.prefix)
    here: list[tuple[Piece, memoryview]] = []
    left: list[tuple[Piece, memoryview]] = []
    for piece, memory in pieces:
        head, tail = piece.split(len(prefix))
        here += [(part, memory) for part in head]
        left += [(part, memory) for part in tail]
    for piece, memory in here:
        put(piece, prefix[piece.start :], memory)
    return left


def _open_same(path: Path, file: SourceFile) -> tuple[Descriptor, os.stat_result]:
    """An open descriptor of the file that has the header that was read."""
    descriptor = Descriptor(os.open(path, os.O_RDONLY), "checkpoint")
    try:
        with descriptor as number:
            if os.pread(number, len(file.raw_header), 0) != file.raw_header:
                raise ChangedError(file.name, "its header is another one")
            return descriptor, os.fstat(number)
    except BaseException:
        descriptor.close()
        raise


def _read_some(number: int, sink: Sink, burst: int, file: SourceFile) -> None:
    """The next bytes from disk: up to `burst`, or one step of the sink."""
    with storage_errors(file.path or file.name):
        got = os.preadv(number, [view := sink.place(min(sink.room, burst))], sink.position)
    if not got:
        raise StorageError(str(file.path), f"it ends at byte {sink.position:,}")
    sink.accept(view[:got])
