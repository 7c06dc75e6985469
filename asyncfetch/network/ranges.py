"""Receiving a span of a remote file: the one loop for it, and every check on the answers.

A span is accepted only with the exact start and the known size. A server that knows no ranges
answers with the whole file, which is read from its beginning.

What holds a file fixed between two answers is its ETag, its date, its size. Those are signs, and weaker than
a hash: the nodes of a mirror may differ in all of them and serve the same bytes. So where the bytes are held
against a hash in the end (`Target.hashed`), only their place counts, and no sign refuses them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import anyio

from ..errors import (
    AccessError,
    AsyncfetchError,
    ChangedError,
    EntryNotFoundError,
    LinkExpiredError,
    NetworkError,
    ProtocolError,
    redact_url,
)
from ..spans import MiB, Span
from ..words import quoted
from .body import Body
from .retry import Budget, is_away, retrying
from .transport import Transport
from .urls import may_identify, no_downgrade, redirected
from .wall import words_of

__all__ = [
    "Intake",
    "Target",
    "Whereabouts",
    "check_status",
    "differ",
    "opaque",
    "open_followed",
    "open_span",
    "receive",
    "scratch",
    "strong",
    "strong_etag",
    "version_of",
]

# Bytes of a part that is shorter than was asked for and still worth a request. In smaller ones a file would take more
# requests than anybody should send: each counts as a failure, of which only so many are allowed.
_GOOD_PART = 16 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """Where the bytes of a file are served.

    `headers` may hold a token and is not shown. `neutral`: another origin than the source's, so
    nothing that identifies the caller goes there. `signed`: a link that expires. `validator` is
    the strong ETag that the bytes had when the file was first seen, None where there is none. `version` is
    what is left then to tell a changed file: its weak ETag and its Last-Modified, each empty if not known.
    `hashed`: who reads holds the whole file against a hash, so these and the lengths of answers decide nothing.
    `until` is when the link ends, by `time.monotonic`, None if that is not known. `asked` is how often the source had
    been asked anew when it told this, where somebody counts.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    neutral: bool = False
    signed: bool = False
    validator: str | None = None
    version: tuple[str, str] = ("", "")
    hashed: bool = False
    until: float | None = None
    asked: int | None = field(default=None, compare=False)


@asynccontextmanager
async def open_span(
    transport: Transport, target: Target, span: Span, *, file: str, size: int
) -> AsyncIterator[tuple[Body, int]]:
    """One request for `span`: its body, and the offset in the file at which the body begins.

    The offset is `span.start`, or 0 where the server sends the whole file. Raises ChangedError
    when size or validator are not those of `file` any more, LinkExpiredError, NetworkError kinds.
    """
    headers = {**target.headers, "range": f"bytes={span.start}-{span.stop - 1}"}
    async with open_followed(transport, target, headers, file) as body:
        check_status(body, target, file)
        if body.encoded:
            raise ProtocolError("the body is compressed although that was declined", url=body.url)
        if target.hashed:
            yield body, _start_of_hashed(body, span, file=file, size=size)
        else:
            if body.url == target.url:
                _check_version(body, target, file)
            yield body, _start_of(body, span, file=file, size=size)


@asynccontextmanager
async def open_followed(
    transport: Transport, target: Target, headers: Mapping[str, str], file: str
) -> AsyncIterator[Body]:
    """The answer behind redirects. What identifies the caller, and the validator, stay at the first origin."""
    url = target.url
    for _ in range(transport.policy.max_redirects + 1):
        own = dict(headers)
        if target.validator is not None and url == target.url and not target.hashed:
            own["if-range"] = target.validator
        neutral = target.neutral or not may_identify(target.url, url)
        async with transport.open(url, headers=own, neutral=neutral, file=file) as body:
            location = body.headers.get("location")
            if body.status not in (301, 302, 303, 307, 308) or not location:
                yield body
                return
        here, url = url, redirected(url, location)
        if not no_downgrade(here, url):
            raise ProtocolError("it redirects to an address that is less safe", url=here)
    raise ProtocolError(f"more than {transport.policy.max_redirects} redirects", url=target.url)


def opaque(etag: str) -> str:
    """An ETag without its marks: proxies that may compress weaken it, some servers forget the quotes."""
    return etag.strip().removeprefix("W/").strip('"')


def version_of(headers: Mapping[str, str]) -> tuple[str, str]:
    """What a resource without a strong ETag tells of its version. Unfit for If-Range, but a change in it is one."""
    return opaque(headers.get("etag", "")), headers.get("last-modified", "")


def differ(was: tuple[str, str], now: tuple[str, str]) -> bool:
    """Whether two answers tell different versions: what only one of them tells says nothing."""
    return any(before and after and before != after for before, after in zip(was, now, strict=True))


def check_status(body: Body, target: Target, file: str) -> None:
    status = body.status
    if status in (200, 206):
        return
    if status == 416:
        raise ChangedError(file, "it is shorter than before")
    if target.signed and status in (400, 401, 403, 404, 410):
        raise LinkExpiredError(status, url=target.url)
    if status in (401, 403):
        raise AccessError(f"{redact_url(target.url)}: the server answered {status}.{quoted(words_of(body.headers))}")
    if status in (404, 410):
        raise EntryNotFoundError(file, redact_url(target.url))
    raise ProtocolError(f"unexpected status {status}", url=target.url)


def _check_version(body: Body, target: Target, file: str) -> None:
    etag = body.headers.get("etag", "")
    if target.validator and etag and opaque(etag) != opaque(target.validator):
        raise ChangedError(file, "its ETag is another one")
    if differ(target.version, version_of(body.headers)):
        raise ChangedError(file, "its ETag or its Last-Modified is another one")


def _start_of_hashed(body: Body, span: Span, *, file: str, size: int) -> int:
    """The offset at which the body begins, where a hash tells in the end whether these are the bytes.

    A part that does not say which one it is, is the one that was asked for, or has the length of the whole.
    """
    if body.status == 200:
        if body.length is not None and body.length < size:
            raise ChangedError(file, f"it has {body.length:,} bytes instead of {size:,}")
        return 0
    if body.headers.get("content-type", "").lower().startswith("multipart/"):
        raise ProtocolError("a partial answer in several parts", url=body.url, transient=True)
    match = re.match(r"bytes (\d{1,18})-", body.headers.get("content-range", ""), re.ASCII)
    if match is None:
        return 0 if body.length == size else span.start
    if int(match[1]) != span.start:
        raise ProtocolError(
            f"bytes from {span.start} on were asked for and from {match[1]} on answered", url=body.url, transient=True
        )
    return span.start


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


class Intake:
    """What `receive` fills: where a span is served, where its bytes go, and when there is room for them.

    `in_memory`: they go into memory, so that few of them need no worker thread.
    """

    in_memory = False

    @property
    def span(self) -> Span:
        """What is still missing. It gets shorter as bytes come, and another connection may take over its end."""
        raise NotImplementedError

    async def target(self, refused: Target | None) -> Target:
        """Where the file is served; asked for anew if that is still `refused`, which has expired or is away."""
        raise NotImplementedError

    def place(self, nbytes: int) -> memoryview:
        """Where the next `nbytes` go, or fewer. In a worker thread."""
        raise NotImplementedError

    def accept(self, view: memoryview) -> None:
        """The next `len(view)` bytes are where `place` said. In a worker thread."""
        raise NotImplementedError

    def answered(self, body: Body, target: Target, at: int) -> None:
        """An answer came from `target`; its body begins at byte `at` of the file. After it, less may be missing."""

    async def room(self) -> int:
        """How many bytes may be received now, while a connection waits; 0 to give it back and come again."""
        return self.span.nbytes

    async def ready(self) -> None:
        """Return once there is room. No connection is held meanwhile."""

    def pulled(self, nbytes: int) -> None:
        """So many bytes came and were accepted."""

    def interrupted(self) -> None:
        """A request failed; it may be made again."""


class Whereabouts:
    """Where to send the next request for a file, by what became of the last one.

    `ask` tells where it is served, and asks the source anew if that is still at the target which it gets. A link that
    has expired must be renewed. Where a link, or what else a redirect led to, is away at every second failure in a row,
    the source is asked whether somebody else serves the file now: for so many `seconds`, as it may be away as well.
    """

    def __init__(self, ask: Callable[[Target | None], Awaitable[Target]], seconds: float) -> None:
        self._ask, self._seconds = ask, seconds
        self._expired: Target | None = None
        self._away: Target | None = None

    async def target(self) -> Target:
        """Raises what asking for a link in place of an expired one raises."""
        away, self._away = self._away, None
        if away is None:
            target = await self._ask(self._expired)
            self._expired = None
            return target
        with anyio.move_on_after(self._seconds), suppress(AsyncfetchError):
            return await self._ask(away)
        return away  # whatever the source says of it, this one may come back and go on

    def failed(self, target: Target, error: AsyncfetchError, budget: Budget) -> None:
        """A request to `target` failed, which `budget` has not counted yet."""
        if isinstance(error, LinkExpiredError):
            self._expired = target
        elif target.signed and is_away(error) and budget.failures % 2:
            self._away = target


async def receive(transport: Transport, intake: Intake, *, file: str, size: int, told: str | None = None) -> None:
    """Receive all of `intake`, over as many requests as that takes.

    Transient failures are retried, from where they struck, and told as those of the file `told`. A
    connection that is given back for others' sake is no failure. Raises what `open_span` raises.
    """
    budget, whereabouts = transport.budget(), Whereabouts(intake.target, transport.policy.read_timeout)
    while intake.span.nbytes:
        await intake.ready()
        async for attempt in retrying(budget, transport.notify, file=told):
            with attempt:
                target = await whereabouts.target()
                try:
                    await _receive_from(transport, target, intake, budget, file, size)
                except AsyncfetchError as error:
                    intake.interrupted()
                    whereabouts.failed(target, error, budget)
                    raise


async def _receive_from(
    transport: Transport, target: Target, intake: Intake, budget: Budget, file: str, size: int
) -> None:
    """One request, until all is here, or the connection is to be given back, or a good part of it came.

    A server may answer with less than was asked for (RFC 9110, section 15.3.7): that is no failure.
    """
    span = intake.span
    if not span.nbytes:  # somebody else brings it by now
        return
    async with open_span(transport, target, span, file=file, size=size) as (body, at):
        intake.answered(body, target, at)
        if not intake.span.nbytes:
            return
        await _skip(body, span.start - at)
        here = span.start
        while intake.span.nbytes:
            room = await intake.room()
            if not room:
                return
            got = await body.pull(room, intake.place, intake.accept, in_memory=intake.in_memory)
            if not got and here - span.start >= _GOOD_PART and here == _end_of_part(body):
                return
            if not got:
                raise NetworkError("the body ended early", url=target.url)
            here += got
            budget.progress(got)
            intake.pulled(got)
            if intake.span.nbytes and transport.limits.connections.owes(transport):
                return


def _end_of_part(body: Body) -> int | None:
    """Where the part of a file ends that an answer says it is; None if it says nothing of the kind."""
    match = re.match(r"bytes \d{1,18}-(\d{1,18})/", body.headers.get("content-range", ""), re.ASCII)
    return int(match[1]) + 1 if match and body.status == 206 else None


async def _skip(body: Body, nbytes: int) -> None:
    """Read `nbytes` and drop them: what a server without ranges sends before the wanted part."""
    while nbytes:
        got = await body.pull(min(nbytes, MiB), scratch, lambda _view: None)
        if not got:
            raise NetworkError("the body ended early", url=body.url)
        nbytes -= got


def scratch(nbytes: int) -> memoryview:
    return memoryview(bytearray(nbytes))
