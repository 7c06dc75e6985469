"""Reading a span of a remote file, and every check on the answer.

A span is accepted only with the exact start and the known size. A server that knows no ranges
answers with the whole file, which is read from its beginning.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ..errors import (
    AccessError,
    ChangedError,
    EntryNotFoundError,
    LinkExpiredError,
    NetworkError,
    ProtocolError,
    redact_url,
)
from ..spans import Span
from .body import Body
from .retry import Budget, retrying
from .transport import Transport
from .urls import no_downgrade, origin_of, redirected

__all__ = ["Target", "open_span", "read_span", "strong", "strong_etag", "version_of"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where the bytes of a file are served.

    `headers` may hold a token and is not shown. `neutral`: another origin than the source's, so
    nothing that identifies the caller goes there. `signed`: a link that expires. `validator` is
    the strong ETag that the bytes had when the file was first seen, None where there is none. `version` is
    what is left then to tell a changed file: its weak ETag and its Last-Modified, each empty if not known.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    neutral: bool = False
    signed: bool = False
    validator: str | None = None
    version: tuple[str, str] = ("", "")


@asynccontextmanager
async def open_span(
    transport: Transport, target: Target, span: Span, *, file: str, size: int
) -> AsyncIterator[tuple[Body, int]]:
    """One request for `span`: its body, and the offset in the file at which the body begins.

    The offset is `span.start`, or 0 where the server sends the whole file. Raises ChangedError
    when size or validator are not those of `file` any more, LinkExpiredError, NetworkError kinds.
    """
    headers = {**target.headers, "range": f"bytes={span.start}-{span.stop - 1}"}
    async with _open_followed(transport, target, headers, file) as body:
        _check_status(body, target, file)
        if body.encoded:
            raise ProtocolError("the body is compressed although that was declined", url=body.url)
        etag = body.headers.get("etag", "")
        if target.validator and etag and body.url == target.url and _opaque(etag) != _opaque(target.validator):
            raise ChangedError(file, "its ETag is another one")
        if body.url == target.url:
            now = version_of(body.headers)
            if any(was and is_ and was != is_ for was, is_ in zip(target.version, now, strict=True)):
                raise ChangedError(file, "its ETag or its Last-Modified is another one")
        yield body, _start_of(body, span, file=file, size=size)


@asynccontextmanager
async def _open_followed(
    transport: Transport, target: Target, headers: Mapping[str, str], file: str
) -> AsyncIterator[Body]:
    """The answer behind redirects. What identifies the caller, and the validator, stay at the first origin."""
    url = target.url
    for _ in range(transport.policy.max_redirects + 1):
        own = dict(headers)
        if target.validator is not None and url == target.url:
            own["if-range"] = target.validator
        neutral = target.neutral or origin_of(url) != origin_of(target.url)
        async with transport.open(url, headers=own, neutral=neutral, file=file) as body:
            location = body.headers.get("location")
            if body.status not in (301, 302, 303, 307, 308) or not location:
                yield body
                return
        here, url = url, redirected(url, location)
        if not no_downgrade(here, url):
            raise ProtocolError("it redirects to an address that is less safe", url=here)
    raise ProtocolError(f"more than {transport.policy.max_redirects} redirects", url=target.url)


def _opaque(etag: str) -> str:
    """An ETag without its marks: proxies that may compress weaken it, some servers forget the quotes."""
    return etag.strip().removeprefix("W/").strip('"')


def version_of(headers: Mapping[str, str]) -> tuple[str, str]:
    """What a resource without a strong ETag tells of its version. Unfit for If-Range, but a change in it is one."""
    return _opaque(headers.get("etag", "")), headers.get("last-modified", "")


def _check_status(body: Body, target: Target, file: str) -> None:
    status = body.status
    if status in (200, 206):
        return
    if status == 416:
        raise ChangedError(file, "it is shorter than before")
    if target.signed and status in (400, 401, 403, 404, 410):
        raise LinkExpiredError(status, url=target.url)
    if status in (401, 403):
        raise AccessError(f"{redact_url(target.url)}: the server answered {status}.")
    if status in (404, 410):
        raise EntryNotFoundError(file, redact_url(target.url))
    raise ProtocolError(f"unexpected status {status}", url=target.url)


def _start_of(body: Body, span: Span, *, file: str, size: int) -> int:
    if body.status == 200:
        if body.length not in (None, size):
            raise ChangedError(file, f"it has {body.length:,} bytes instead of {size:,}")
        return 0
    text = body.headers.get("content-range", "")
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", text, re.ASCII)
    if match is None:
        raise ProtocolError(f"a partial answer with the range {text[:80]!r}", url=body.url, transient=True)
    start, last = int(match[1]), int(match[2])
    if match[3] != "*" and int(match[3]) != size:
        raise ChangedError(file, f"it has {int(match[3]):,} bytes instead of {size:,}")
    if start != span.start or last >= size or body.length not in (None, last + 1 - start):
        raise ProtocolError(
            f"bytes {span.start}-{span.stop - 1} were asked for and {start}-{last} answered",
            url=body.url,
            transient=True,
        )
    return start


def strong_etag(body: Body, target: Target) -> str | None:
    """The ETag of an answer that came from `target` itself, if it is fit for If-Range (RFC 9110, section 13.1.5)."""
    return strong(body.headers) if body.url == target.url else None


def strong(headers: Mapping[str, str]) -> str | None:
    """The ETag among `headers`, if it is a strong one."""
    etag = headers.get("etag", "")
    return etag if re.fullmatch(r'"[^"]*"', etag) else None


async def read_span(
    transport: Transport,
    target: Target,
    span: Span,
    *,
    file: str,
    size: int,
    on_answer: Callable[[Body, Target], None] = lambda _body, _target: None,
    renew: Callable[[], Awaitable[Target]] | None = None,
) -> bytes:
    """The bytes of a small span, in memory. Transient failures are retried, from where they struck.

    `on_answer` is told each answer, and which target gave it. `renew` asks for the target anew when its
    link has expired.
    """
    data = bytearray()
    budget = Budget(transport.policy)
    expired = False
    async for attempt in retrying(budget, transport.notify):
        with attempt:
            if expired and renew is not None:
                target = await renew()
            expired = False
            rest = Span(span.start + len(data), span.stop)
            try:
                async with open_span(transport, target, rest, file=file, size=size) as (body, at):
                    on_answer(body, target)
                    await skip(body, rest.start - at)
                    while len(data) < span.nbytes:
                        got = await body.pull(span.nbytes - len(data), _scratch, data.extend)
                        if not got:
                            raise NetworkError("the body ended early", url=target.url)
                        budget.progress(got)
            except LinkExpiredError:
                expired = True
                raise
    return bytes(data)


async def skip(body: Body, nbytes: int) -> None:
    """Read `nbytes` and drop them: what a server without ranges sends before the wanted part."""
    while nbytes:
        got = await body.pull(min(nbytes, 1 << 20), _scratch, lambda _view: None)
        if not got:
            raise NetworkError("the body ended early", url=body.url)
        nbytes -= got


def _scratch(nbytes: int) -> memoryview:
    return memoryview(bytearray(nbytes))
