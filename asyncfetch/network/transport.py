"""Requests, redirects, statuses; bodies are in body.py. `pool` is the one file that knows httpx.

Nothing here follows a redirect by itself: the headers that matter ride on the redirect, and a
token must not follow it. No URL leaves this file in an error or a log line with its query.
"""

from __future__ import annotations

import copy
import platform
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import isawaitable
from types import TracebackType
from typing import Any, TypeVar

import anyio

from ..errors import NetworkError, ProtocolError, RateLimitedError, ServerError, SourceError, redact_url
from ..events import Notifier, Waiting
from ..policy import Policy, __version__
from .body import Body
from .limits import Hold, Limits, Meter
from .pool import LazyClient
from .reach import Reach
from .retry import BRIEF, Budget, Hurry, may_pass, retrying
from .sockets import Stream
from .urls import may_identify, origin_of, redirected
from .wall import our_request, pool_is_full, proxy_answered, raise_translated, redact_logs, retry_after, words_of

__all__ = ["Reply", "Transport"]

USER_AGENT = f"asyncfetch/{__version__}; python/{platform.python_version()}"
# What may travel to another origin than the one that was asked first: nothing that identifies.
_NEUTRAL_HEADERS = frozenset(
    {"accept", "accept-encoding", "connection", "content-length", "host", "if-range", "range", "user-agent"}
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete small answer. `truncated`: the body went on beyond the limit that was read.

    `passed`: the headers of the redirects that led there, in their order.
    """

    url: str = field(repr=False)
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes
    truncated: bool
    passed: tuple[Mapping[str, str], ...] = field(default=(), repr=False)


class Transport:
    """Sends requests. An `async with` block bounds its connections. Several calls share one by `for_call`.

    `notify` is told each wait. `client` is the caller's: it is never changed and never closed, and its
    bodies take the generic path. Without it, one of our own is made by the first request. `meter` counts; `reach` says
    where our own client may lead; `spare` are connections beyond those of the policy, for calls that have none.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        client: Any = None,
        notify: Notifier | None = None,
        meter: Meter | None = None,
        reach: Reach | None = None,
        spare: int = 0,
    ) -> None:
        self.policy = policy
        self.notify = notify or Notifier(None)
        self.limits = Limits(policy, meter, spare)
        self.requests = 0
        self._client = LazyClient(client, reach)
        self._gates: dict[tuple[str, str, int], float] = {}
        self._answered: dict[tuple[str, str, int], float] = {}
        self._met: set[tuple[str, str, int]] = set()  # origins that gave a good answer
        self._hurry = Hurry(over=True)

    def for_call(self, notify: Notifier, meter: Meter | None = None) -> Transport:
        """This transport for one call: connections, limits and gates shared, its waits told to `notify`."""
        one = copy.copy(self)
        one.notify, one.limits, one.requests = notify, self.limits.for_call(meter), 0
        return one

    def aside(self) -> Transport:
        """The same for one request that may help and need not: nobody waits for it or hears of it.

        That it is refused holds up no other, and that it is answered gives no other more time.
        """
        one = self.for_call(Notifier(None))
        one._gates, one._met, one._hurry = dict(self._gates), set(self._met), Hurry(brief=0.0)
        return one

    @property
    def injected(self) -> bool:
        """Whether requests go through the caller's client. One that is cancelled there may leave a socket open."""
        return self._client.injected

    @contextmanager
    def hurry(self, brief: float = BRIEF) -> Iterator[Hurry]:
        """In the block, and until a server gives a good answer, nobody is waited for who does not answer well.

        `brief`: but for so many seconds where a server says that it is busy.
        One call at a time may be in such a block, which may be in another one.
        """
        around, hurry = self._hurry, Hurry(brief=brief)
        self._hurry = hurry
        try:
            yield hurry
        finally:
            around.over |= hurry.over
            self._hurry = around

    def budget(self) -> Budget:
        """The budget of one piece of work."""
        return Budget(self.policy, met=lambda url: origin_of(url) in self._met, hurry=self._hurry)

    async def __aenter__(self) -> Transport:
        redact_logs()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def open(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        neutral: bool = False,
        file: str | None = None,
    ) -> AsyncIterator[Body]:
        """One request, one attempt: the head has been read, the body has not.

        `neutral` strips everything that identifies the caller, for origins other than the first.
        `file` is the one that the request is for, in events. The block holds one of the connections.
        Statuses that ask to come again raise RateLimitedError or ServerError; others are the
        caller's to judge.
        """
        await self._pass_gate(url, file)
        async with self.limits.connections.hold(self) as hold:
            response = await self._send(hold, url, method, headers or {}, neutral)
            body = Body(response, url, self.policy, self.limits, head=method == "HEAD")
            try:
                self._raise_transient(body)
                self._met.add(origin_of(url))
                self._hurry.over = True
                yield body
            finally:
                await body.aclose()

    async def fetch(
        self,
        url: str,
        *,
        limit: int,
        headers: Mapping[str, str] | None = None,
        may_follow: Callable[[Reply, str], bool] | None = None,
        file: str | None = None,
    ) -> Reply:
        """A small answer whole: up to `limit` bytes of its body. Transient failures are retried.

        `may_follow(redirect, to)` decides on each redirect; one that it declines is the answer.
        `file` is the one whose download this serves, for events.
        """
        async for attempt in retrying(self.budget(), self.notify, file=file):
            with attempt:
                return await self._fetch_once(url, limit, headers, may_follow, file)
        raise AssertionError("unreachable: the last attempt raises")

    async def _fetch_once(
        self,
        url: str,
        limit: int,
        headers: Mapping[str, str] | None,
        may_follow: Callable[[Reply, str], bool] | None,
        file: str | None,
    ) -> Reply:
        here, passed = url, list[Mapping[str, str]]()
        for _ in range(self.policy.max_redirects + 1):
            async with self.open(here, headers=headers, neutral=not may_identify(url, here), file=file) as body:
                target = body.headers.get("location")
                if body.status not in (301, 302, 303, 307, 308) or not target:
                    if body.encoded and body.status in (200, 206):
                        raise ProtocolError("the body is compressed although that was declined", url=here)
                    if body.status == 206 and "range" not in (headers or {}):
                        raise ProtocolError("a part is answered although the whole was asked for", url=here)
                    return replace(await _read_whole(body, limit), passed=tuple(passed))
                target = redirected(here, target)
                reply = await _read_whole(body, 1 << 16)  # read to its end, so that the connection serves again
                if may_follow is None or not may_follow(reply, target):
                    return replace(reply, passed=tuple(passed))
                passed.append(reply.headers)
                here = target
        raise ProtocolError(f"more than {self.policy.max_redirects} redirects, the last to {redact_url(here)}", url=url)

    def distance(self, url: str) -> float:
        """Seconds to the fastest answer so far of the origin that serves `url`; 0 if it gave none yet."""
        return self._answered.get(origin_of(url), 0.0)

    def farthest(self) -> float:
        """The same of the origin that is farthest away of those that gave an answer."""
        return max(self._answered.values(), default=0.0)

    async def _pass_gate(self, url: str, file: str | None) -> None:
        """Wait while this origin limits the rate; then spread out, so that not all go at once."""
        # Another answer may have moved the gate while we slept: look again.
        while (delay := self._gates.get(origin_of(url), 0.0) - time.monotonic()) > 0:
            if not self._hurry.over and delay > self._hurry.brief:
                raise RateLimitedError(url, delay)
            self.notify(Waiting(file, "the server limits the request rate", delay))
            await anyio.sleep(delay + random.random())

    async def _send(self, hold: Hold, url: str, method: str, headers: Mapping[str, str], neutral: bool) -> Any:
        """The answer. Where a caller's client has fewer connections than we, those that we use are waited for."""
        policy, connections = self.policy, self.limits.connections
        own = {"user-agent": USER_AGENT, "accept-encoding": "identity", "accept": "*/*", **headers}
        timeout = (policy.connect_timeout, policy.read_timeout, policy.read_timeout, policy.connect_timeout)
        self.requests += 1
        if self.limits.meter is not None:
            self.limits.meter.asked()
        while True:
            began = time.monotonic()
            try:
                response = await self._send_once(url, method, own, timeout, neutral, partial(connections.use, hold))
                connections.use(hold)
                break
            except Exception as error:
                if not (pool_is_full(error) and connections.others_used(hold)):
                    raise_translated(error, url)
            await connections.exchange(hold)
        stream, origin = response.extensions.get("network_stream"), origin_of(url)
        took = time.monotonic() - began
        if isinstance(stream, Stream) and stream.waited is not None:
            took = stream.waited  # a connection that had to be made first says nothing of how far away it is
        self._answered[origin] = min(took, self._answered.get(origin, took))
        return response

    async def _send_once(
        self,
        url: str,
        method: str,
        headers: Mapping[str, str],
        timeout: tuple[float, float, float, float],
        neutral: bool,
        connected: Callable[[], None],
    ) -> Any:
        """The answer. `connected` is called as soon as a caller's client that tells so has a connection for it."""
        client, options, told = self._client.get(), {}, list[Coroutine[Any, Any, None]]()
        if self.injected:

            async def note() -> None:
                connected()  # the first event is one of the connection: waiting for the pool has none

            def trace(_event: str, _details: Mapping[str, Any]) -> Coroutine[Any, Any, None]:
                told[:] = [note()]
                return told[0]

            options = {"extensions": {"trace": trace}}
        request = client.build_request(method, url, headers=headers, timeout=timeout, **options)
        with our_request():
            if not neutral:
                return await _awaited(partial(client.send, request, stream=True, follow_redirects=False), told)
            for name in [name for name in request.headers if name.lower() not in _NEUTRAL_HEADERS]:
                del request.headers[name]
            return await _awaited(partial(client.send, request, stream=True, follow_redirects=False, auth=None), told)

    def _raise_transient(self, body: Body) -> None:
        if body.status == 407:  # only ever a proxy's: RFC 9110, section 15.5.8
            raise proxy_answered(407, body.url, self._client.proxy_of(body.url))
        if not may_pass(body.status):
            return
        after = retry_after(body.headers)
        if body.status == 429:
            wait = 1.0 if after is None else after
            if wait <= self.policy.max_wait:
                self._gates[origin_of(body.url)] = time.monotonic() + wait
            raise RateLimitedError(body.url, after, words_of(body.headers))
        raise ServerError(body.status, url=body.url, retry_after=after, said=words_of(body.headers))


def _awaited(send: Callable[[], Any], told: list[Coroutine[Any, Any, None]]) -> Awaitable[Any]:
    try:
        answer = send()
    except TypeError as error:  # as a blocking one of httpx says of `trace`, which it awaits as little
        for one in told:
            one.close()
        raise SourceError(
            "The caller's client is no httpx.AsyncClient: it sends at once, and not in a task."
        ) from error
    if not isawaitable(answer):
        kind = type(answer).__name__
        raise SourceError(f"The caller's client is no httpx.AsyncClient: {kind} came at once, and cannot be awaited.")
    return answer


async def _read_whole(body: Body, limit: int) -> Reply:
    data = bytearray()

    def accept(view: memoryview) -> None:
        data.extend(view)

    truncated = False
    while not truncated:
        wanted = min(limit + 1 - len(data), 1 << 20)
        try:
            if not await body.pull(wanted, lambda n: memoryview(bytearray(n)), accept, in_memory=True):
                break
        except NetworkError:
            if len(data) < limit:
                raise
            truncated = True  # more is announced, and all that was wanted is here
        truncated = truncated or len(data) > limit
    return Reply(body.url, body.status, _lower(body.headers), bytes(data[:limit]), truncated)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
