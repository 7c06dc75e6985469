"""Answers that hold a file, or a range of it."""

from __future__ import annotations

import mimetypes
import os
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar, TypeVarTuple, Unpack
from urllib.parse import quote

import anyio
from anyio import to_thread
from anyio.lowlevel import RunVar
from starlette.responses import Response, StreamingResponse

from ...spans import MiB
from ...tasks import off_loop
from ..counts import ORIGIN
from ..folders.walk import read_listed
from .answers import failure
from .wire import parse_range, precondition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from ..counts import Origin
    from ..folders.catalog import Catalog
    from ..folders.repository import File

__all__ = [
    "FILE_PARTS",
    "BrokenOffError",
    "FileBody",
    "FilePart",
    "Part",
    "chunk_size",
    "content_type",
    "file_response",
    "in_reader",
    "sending",
    "text_response",
    "without_bytes",
]

Given = TypeVarTuple("Given")
T = TypeVar("T")
FILE_PARTS = "asyncfetch.file_parts"  # in the scope of a request: a body may be a FilePart
PART = 64 * MiB  # of a file that is sent in place: each costs some changes of threads
CHUNK = MiB  # of a body; starlette's own 64 KiB cost five sixths of the throughput
LEAST_CHUNK = 64 * 1024
ALL_CHUNKS = 64 * MiB  # of all bodies together: each waits in memory for its client
SMALL = 64 * 1024  # bytes that are read at once, with one change of threads
_READERS = 32  # threads; anyio's own may all be taken by the application
_bodies = 0  # that are being sent, in all threads of this process
_readers: RunVar[anyio.CapacityLimiter] = RunVar("asyncfetch_readers")

_TEXT = frozenset(
    {".bib", ".c", ".cfg", ".cpp", ".css", ".csv", ".gitattributes", ".gitignore", ".h", ".htm", ".html", ".ini",
     ".ipynb", ".jinja", ".js", ".jsonl", ".log", ".lua", ".md", ".mjs", ".py", ".rs", ".rst", ".sh", ".svg", ".tex",
     ".toml", ".ts", ".tsv", ".txt", ".vocab", ".xhtml", ".xml", ".yaml", ".yml"}
)  # fmt: skip
_TEXT_NAMES = frozenset({"license", "licence", "notice", "readme", "merges", "dockerfile", "makefile"})


def content_type(path: str) -> str:
    """The media type of a file by its name.

    What a browser would run, such as HTML, is text, as on the Hub: files of others share an origin with this server.
    """
    name = path.rpartition("/")[2].lower()
    stem, suffix = os.path.splitext(name)
    if suffix == ".json":
        return "application/json"
    if suffix in _TEXT or name in _TEXT or (not suffix and stem in _TEXT_NAMES):
        return "text/plain; charset=utf-8"
    guessed, encoding = mimetypes.guess_type(name)
    safe = guessed is not None and encoding is None and guessed.startswith(("image/", "audio/", "video/"))
    return guessed if safe and guessed else "application/octet-stream"


@lru_cache(10_000)
def _headers_by_name(path: str) -> Mapping[str, str]:
    """What a browser is told of a file, by its name alone."""
    name = quote(path.rpartition("/")[2], safe="")
    return {"Content-Type": content_type(path), "Content-Disposition": f"inline; filename*=UTF-8''{name}"}


class Part(NamedTuple):
    """What a request asks for of `size` bytes (RFC 9110, 13 and 14). `status` is 200, 206, 304, 412 or 416."""

    status: int
    span: range
    size: int

    @classmethod
    def asked(cls, request: Request, size: int, etag: str) -> Part:
        if_match, if_none_match = (", ".join(request.headers.getlist(name)) for name in ("if-match", "if-none-match"))
        if status := precondition(if_match, if_none_match, etag):
            return cls(status, range(0), size)
        span: range | None = None
        if request.method == "GET" and request.headers.get("if-range", etag) == etag:
            span = parse_range(request.headers.get("range"), size)
        if span is None:
            return cls(200, range(size), size)
        return cls(206 if span else 416, span, size)

    def headers(self, path: str, etag: str) -> dict[str, str]:
        told = {"ETag": etag, "Accept-Ranges": "bytes"}
        if self.status in (304, 412):
            return told
        if self.status == 416:
            return {**told, "Content-Range": f"bytes */{self.size}"}
        if self.status == 206:
            told["Content-Range"] = f"bytes {self.span.start}-{self.span.stop - 1}/{self.size}"
        return {
            **told,
            "Content-Length": str(len(self.span)),
            "X-Content-Type-Options": "nosniff",
            **_headers_by_name(path),
        }


async def file_response(
    request: Request, catalog: Catalog, file: File, etag: str, extra: Mapping[str, str]
) -> Response:
    """The file, or the range of it that the request asks for. Raises ChangedError."""
    part = Part.asked(request, file.size, etag)
    headers = {**part.headers(file.path, etag), **extra}
    if (answer := without_bytes(file.path, part, headers)) is not None:
        return answer
    if request.method == "HEAD" or not part.span:
        return Response(status_code=part.status, headers=headers)
    if len(part.span) <= SMALL:
        request.scope[ORIGIN] = "own"
        return Response(await off_loop(lambda: read_listed(file.listed, part.span)), part.status, headers)
    return FileBody(await catalog.open(file), part.span, part.status, headers)


@contextmanager
def sending() -> Iterator[None]:
    """Around a body that is being sent, so that it counts for `chunk_size`."""
    global _bodies
    _bodies += 1
    try:
        yield
    finally:
        _bodies -= 1


def chunk_size() -> int:
    """How many bytes of a body are read at once: fewer, the more bodies there are."""
    return max(min(CHUNK, ALL_CHUNKS // max(_bodies, 1)), LEAST_CHUNK)


async def in_reader(read: Callable[[Unpack[Given]], T], *given: *Given) -> T:
    """What `read` returns, in one of a few threads for bodies."""
    if (limiter := _readers.get(None)) is None:
        limiter = anyio.CapacityLimiter(_READERS)
        _readers.set(limiter)
    return await to_thread.run_sync(read, *given, limiter=limiter)


def text_response(request: Request, data: bytes, path: str, etag: str, extra: Mapping[str, str]) -> Response:
    """Likewise what is in memory: a text that stands for the file `path`."""
    part = Part.asked(request, len(data), etag)
    headers = {**part.headers(path, etag), **extra}
    if (answer := without_bytes(path, part, headers)) is not None:
        return answer
    body = b"" if request.method == "HEAD" else data[part.span.start : part.span.stop]
    return Response(body, part.status, headers | {"Content-Type": "text/plain; charset=utf-8"})


def without_bytes(path: str, part: Part, headers: Mapping[str, str]) -> Response | None:
    """The answer to a request that gets nothing of the file, for its condition or its range; None for any other."""
    match part.status:
        case 304:
            return Response(status_code=304, headers=headers)
        case 412:
            return failure(412, "PreconditionFailed", f"{path!r} has another ETag than If-Match names.", headers)
        case 416:
            message = f"{path!r} has {part.size} bytes, none of them in that range."
            return failure(416, "RangeNotSatisfiable", message, headers)
    return None


class BrokenOffError(Exception):
    """The rest of a part cannot be sent: the file has become shorter, or the client is `gone`. `nbytes` of it were."""

    def __init__(self, nbytes: int = 0, *, gone: bool = True) -> None:
        super().__init__(nbytes)
        self.nbytes, self.gone = nbytes, gone


class FilePart:
    """A piece of a body that is in a file: for servers that can send it from there, who say so by FILE_PARTS."""

    def __init__(self, descriptor: int, start: int, nbytes: int) -> None:
        self.descriptor, self.start, self._nbytes = descriptor, start, nbytes

    def __len__(self) -> int:
        return self._nbytes


class FileBody(StreamingResponse):
    """Bytes `span` of an open file, in chunks that worker threads read, or send. Closes the descriptor.

    `origin` is what they are counted as.
    """

    def __init__(
        self, descriptor: int, span: range, status: int, headers: Mapping[str, str], origin: Origin = "own"
    ) -> None:
        super().__init__((), status, headers)
        self.origin = origin
        self.descriptor = descriptor
        self.span = span

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ORIGIN] = self.origin
        try:
            with sending():
                self._in_place = scope.get(FILE_PARTS, False)
                await super().__call__(scope, receive, send)
        finally:
            os.close(self.descriptor)

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        position, end = self.span.start, self.span.stop
        while position < end:
            chunk: bytes | FilePart
            if self._in_place:
                chunk = FilePart(self.descriptor, position, min(PART, end - position))
            else:
                chunk = await in_reader(os.pread, self.descriptor, min(chunk_size(), end - position), position)
            if not chunk:  # it was cut short meanwhile: an unfinished response closes the connection
                return
            position += len(chunk)
            try:
                await send({"type": "http.response.body", "body": chunk, "more_body": position < end})
            except BrokenOffError:  # likewise
                return
