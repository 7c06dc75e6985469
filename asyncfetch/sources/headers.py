"""The header of a file that was found: from disk, from the bytes that came with its metadata, or by one more range.

It also says how long the file is: data follow it to the end, without a hole. Where a hash decides in the end,
that is believed before what servers tell, unless a look at the byte in question shows that they are right.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from ..errors import ChangedError, EntryNotFoundError, InvalidHeaderError, NetworkError, storage_errors
from ..format.header import PREFIX_BYTES, Header, header_length, parse_header
from ..network.body import Body
from ..network.ranges import Target, differ, strong_etag, version_of
from ..network.reading import read_span
from ..network.transport import Transport
from ..spans import Span
from ..tasks import off_loop
from .located import Origin, SourceFile, renewal

__all__ = ["header_on_disk", "read_beginning", "read_early", "read_header", "read_landed"]


async def read_header(file: SourceFile, transport: Transport | None, origin: Origin | None = None) -> None:
    """Set `file.header` and `file.raw_header`, and its size where the header knows better. Raises CorruptError."""
    if file.path is None and transport is not None and file.target is not None:
        await _Served(file, transport, origin, file.target).read_header()
    else:
        path = file.path
        if path is None:
            raise EntryNotFoundError(file.name, "the cache")
        file.size, file.raw_header, file.header = await off_loop(lambda: header_on_disk(path, file.name), slow=True)


async def read_beginning(
    file: SourceFile, target: Target, nbytes: int, transport: Transport, origin: Origin | None
) -> bytes:
    """The first `nbytes` of a file with a hash, all of one state of it. Sets its ETag there.

    Raises ChangedError if there are fewer, or if more than one answer was needed and they differ in ETag or date.
    """
    return await _read(file, target, Span(0, nbytes), transport, origin)


async def _read(
    file: SourceFile,
    target: Target,
    span: Span,
    transport: Transport,
    origin: Origin | None,
    version: tuple[str, str] = ("", ""),
) -> bytes:
    """A span of a file with a hash, from answers that tell no other version than `version`: `open` checks no hash."""

    def learn(body: Body, target: Target) -> None:
        nonlocal version
        now = version_of(body.headers) if body.url == target.url else ("", "")
        if differ(version, now):
            raise ChangedError(file.name, "its ETag or its Last-Modified is another one")
        version = now
        file.etag, file.splittable = strong_etag(body, target), body.status == 206

    return await read_span(
        transport,
        replace(target, hashed=True),
        span,
        file=file.name,
        size=max(file.size, span.stop) if file.sized else span.stop,
        on_answer=learn,
        renew=_hashed(renewal(origin, file)),
    )


def _hashed(renew: Callable[[], Awaitable[Target]] | None) -> Callable[[], Awaitable[Target]] | None:
    """`renew`, for who holds the bytes against a hash."""

    async def anew() -> Target:
        assert renew is not None  # noqa: S101
        return replace(await renew(), hashed=True)

    return None if renew is None else anew


class _Served:
    """A file that a server has."""

    def __init__(self, file: SourceFile, transport: Transport, origin: Origin | None, target: Target) -> None:
        self._file = file
        self._transport = transport
        self._origin = origin
        self._target = target

    async def read_header(self) -> None:
        file = self._file
        stop = PREFIX_BYTES + await self._header_length()
        if stop > len(file.prefix):
            file.prefix = await self._read_up_to(stop)
        file.raw_header = file.prefix[:stop]
        header = await _parsed(file, None if file.checksum is not None else file.size)
        if header.file_size != file.size:
            if file.sized and not await self._is_right(header.file_size):
                header = await _parsed(file, file.size)  # which says what is wrong
            file.size, file.sized = header.file_size, True
            file.prefix = file.prefix[: file.size]
        file.header = header

    async def _header_length(self) -> int:
        """n, the bytes of JSON: those that fit into the size that is told, unless the file goes on behind that."""
        file, told = self._file, self._file.size if self._file.sized else sys.maxsize
        try:
            return header_length(file.prefix, file=file.name, file_size=told)
        except InvalidHeaderError:
            if file.checksum is None or not file.sized or len(file.prefix) < PREFIX_BYTES:
                raise
            length = header_length(file.prefix, file=file.name, file_size=sys.maxsize)
            if not await self._is_right(PREFIX_BYTES + length):
                raise
            file.sized = False
            return length

    async def _read_up_to(self, stop: int) -> bytes:
        """The first `stop` bytes. Where nodes tell other ETags than the first one did, all of them from one answer."""
        file, target, rest = self._file, self._target, Span(len(self._file.prefix), stop)
        if file.checksum is None:
            renew = renewal(self._origin, file)
            return file.prefix + await read_span(
                self._transport, target, rest, file=file.name, size=file.size, renew=renew
            )
        try:
            return file.prefix + await _read(file, target, rest, self._transport, self._origin, file.version)
        except ChangedError:
            prefix = await read_beginning(file, target, stop, self._transport, self._origin)
        self._target = file.target = replace(target, validator=file.etag, version=("", ""))
        return prefix

    async def _is_right(self, size: int) -> bool:
        """Whether a size that is not the told one is right: by the first byte that only one of the two has."""
        file, at = self._file, min(size, self._file.size)
        target, renew = replace(self._target, hashed=True), _hashed(renewal(self._origin, file))
        there = True
        try:
            await read_span(self._transport, target, Span(at, at + 1), file=file.name, size=at + 1, renew=renew)
        except ChangedError:  # 416, or a length
            there = False
        except NetworkError:
            if file.splittable:
                raise
            there = False  # the answer with the whole file ended before it
        return there is (size > file.size)


async def _parsed(file: SourceFile, size: int | None) -> Header:
    raw = memoryview(file.raw_header)[PREFIX_BYTES:]
    return await off_loop(lambda: parse_header(raw, file=file.name, file_size=size), slow=True)


def read_early(file: SourceFile, path: Path, here: int) -> int:
    """Set the header of a late shard of which the first `here` bytes are at `path`, if that is enough of them.

    Returns how many it takes. Raises InvalidHeaderError, StorageError, and ChangedError if its size is another one.
    """
    with storage_errors(path), open(path, "rb") as stream:
        prefix = stream.read(2 * PREFIX_BYTES)
        stop = PREFIX_BYTES + header_length(prefix, file=file.name, file_size=file.size)
        raw = prefix + stream.read(stop - len(prefix)) if stop <= here else b""
    if raw:
        header = parse_header(memoryview(raw)[PREFIX_BYTES:stop], file=file.name, file_size=None)
        if header.file_size != file.size:
            raise ChangedError(file.name, "its header tells another size")
        file.raw_header, file.header = raw[:stop], header
    return stop


def read_landed(file: SourceFile, path: Path, pages: mmap.mmap | None = None) -> None:
    """Set the header of a late shard that is whole, from its map or from the disk. Raises InvalidHeaderError."""
    if pages is None:
        _, file.raw_header, file.header = header_on_disk(path, file.name)
        return
    length = header_length(pages[: 2 * PREFIX_BYTES], file=file.name, file_size=len(pages))
    file.raw_header = pages[: PREFIX_BYTES + length]
    file.header = parse_header(memoryview(file.raw_header)[PREFIX_BYTES:], file=file.name, file_size=len(pages))


def header_on_disk(path: Path, name: str) -> tuple[int, bytes, Header]:
    """The size of a file, and its header as it is and as it is read. Raises InvalidHeaderError, StorageError."""
    with storage_errors(path), open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        prefix = stream.read(4096)
        length = header_length(prefix, file=name, file_size=size)
        raw = (prefix + stream.read(max(PREFIX_BYTES + length - len(prefix), 0)))[: PREFIX_BYTES + length]
    return size, raw, parse_header(memoryview(raw)[PREFIX_BYTES:], file=name, file_size=size)
