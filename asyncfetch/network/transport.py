"""Requests and bodies. With `pool`, the only file that knows httpx.

Nothing here follows a redirect by itself: the headers that matter ride on the redirect, and a
token must not follow it. No URL leaves this file in an error or a log line with its query.
"""

from __future__ import annotations

import os
import platform
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar
from urllib.request import getproxies

import anyio
import httpx
from anyio import to_thread

from ..errors import NetworkError, ProtocolError, RateLimitedError, ServerError, StalledError
from ..policy import Budget, Policy, __version__, retrying
from .pool import PoolTransport
from .sockets import Backend, Stream
from .urls import origin_of, redirected
from .wall import our_request, raise_translated, redact_logs, retry_after

__all__ = ["Body", "Reply", "Transport"]

USER_AGENT = f"asyncfetch/{__version__}; python/{platform.python_version()}"
_TRANSIENT_STATUS = frozenset({408, 425, 500, 502, 503, 504})
# What may travel to another origin than the one that was asked first: nothing that identifies.
_NEUTRAL_HEADERS = frozenset(
    {"accept", "accept-encoding", "connection", "content-length", "host", "if-range", "range", "user-agent"}
)
_BURST_SECONDS = 0.012  # how long a worker thread receives before it looks back at the event loop
# Between two pieces of a burst, or an event loop that was woken waits until the thread's time slice has run out.
_give_way = getattr(os, "sched_yield", lambda: None)
_FLUSH_AFTER = 0.5  # seconds that slow bytes may wait for company before they are written

OnRetry = Callable[[BaseException, float], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete small answer. `truncated`: the body went on beyond the limit that was read."""

    url: str = field(repr=False)
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes
    truncated: bool


class Body:
    """The body of one answer, received piece by piece in worker threads.

    `length` is what the answer announces, None if it does not.
    """

    def __init__(self, response: Any, url: str, transport: Transport) -> None:
        self.url = url
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        length = self.headers.get("content-length", "")
        chunked = "transfer-encoding" in self.headers
        self.length = int(length) if re.fullmatch(r"[0-9]{1,18}", length) and not chunked else None
        self.encoded = self.headers.get("content-encoding", "identity").lower() not in ("identity", "")
        self._response = response
        self._transport = transport
        self._policy = transport.policy
        self._left = self.length
        self._drained = False  # the socket had nothing more when it was last read
        self._iterator: AsyncIterator[bytes] | None = None
        self._rest = b""
        self._failure: Exception | None = None
        self._window = (0.0, 0)  # seconds that were waited, bytes that came in them
        stream = response.extensions.get("network_stream")
        fast = isinstance(stream, Stream) and stream.at_body and self.length is not None
        self._stream: Stream | None = stream if fast else None

    async def pull(self, limit: int, target: Callable[[int], memoryview], land: Callable[[memoryview], None]) -> int:
        """Receive up to `limit` bytes: 0 only at the end of the body.

        `target(n)` gives the place for n bytes or fewer, `land(view)` takes what was received there;
        both run in the worker thread that receives, which goes on for some milliseconds while the
        socket has more, calling both for each piece: fewer hops between threads. Raises
        NetworkError, and StalledError when fewer than `stall_bytes` came in `stall_window` seconds.
        """
        if self._left == 0:
            return 0
        self._check_floor()  # of what came before: who has all the bytes that were wanted does not come back
        limit = self._transport.piece(limit if self._left is None else min(limit, self._left))
        began = time.monotonic()
        try:
            if self._stream is not None:
                received = await self._pull_burst(self._stream, limit, target, land)
            else:
                received = await self._pull_chunks(min(limit, self._policy.burst), target, land)
        except Exception as error:
            raise_translated(error, self.url)
        if self._left is not None:
            self._left -= received
            if self._left and not received:
                raise NetworkError(f"the connection closed {self._left:,} bytes before the end", url=self.url)
        seconds_before, count = self._window
        self._window = seconds_before + time.monotonic() - began, count + received
        await self._transport.spend(received)
        return received

    async def _pull_burst(
        self, stream: Stream, limit: int, target: Callable[[int], memoryview], land: Callable[[memoryview], None]
    ) -> int:
        def work() -> tuple[int, bool]:
            total, deadline = 0, time.monotonic() + _BURST_SECONDS
            while True:
                view = target(limit - total)
                try:
                    received, closed = stream.burst(view)
                except OSError as error:  # what came before it is good: that counts first
                    self._failure = error
                    return total, False
                if received:
                    land(view[:received])
                    total += received
                    _give_way()
                self._drained = received < len(view)
                if closed or self._drained or not received or total == limit or time.monotonic() >= deadline:
                    return total, closed

        wanted = min(limit, self._policy.burst)
        while self._failure is None:
            if self._drained and not await stream.readable(self._policy.read_timeout, wanted):
                raise StalledError(f"nothing came for {self._policy.read_timeout:g} s", url=self.url)
            received, closed = await self._transport.in_thread(work)
            if received or closed:
                return received
        raise self._failure

    async def _pull_chunks(
        self, limit: int, target: Callable[[int], memoryview], land: Callable[[memoryview], None]
    ) -> int:
        if self._iterator is None:
            answer = self._response  # a mock's is often read already
            self._iterator = answer.aiter_bytes() if answer.is_stream_consumed else answer.aiter_raw()
        pieces, filled, began = [self._rest], len(self._rest), time.monotonic()
        while filled < limit and self._failure is None and time.monotonic() - began < _FLUSH_AFTER:
            try:
                piece = await anext(self._iterator)
            except StopAsyncIteration:
                break
            except Exception as error:  # what came before it is good: that counts first
                self._failure = error
                break
            pieces.append(piece)
            filled += len(piece)
        data = b"".join(pieces)
        data, self._rest = data[:limit], data[limit:]
        if self._failure is not None and not data:
            raise self._failure

        def work() -> int:
            rest = memoryview(data)
            while rest and (view := target(len(rest))):
                view[:] = rest[: len(view)]
                land(view)
                rest = rest[len(view) :]
            return len(data) - len(rest)

        return await self._transport.in_thread(work) if data else 0

    def _check_floor(self) -> None:
        seconds, count = self._window
        if seconds < self._policy.stall_window:
            return
        if count < self._policy.stall_bytes:
            raise StalledError(f"only {count:,} bytes came in {seconds:.0f} s", url=self.url)
        self._window = (0.0, 0)

    async def aclose(self) -> None:
        """Close the answer; its connection lives on if the body was read to the end."""
        if self._stream is not None and self._left == 0 and self.headers.get("connection", "").lower() != "close":
            self._stream.reusable = self._response.http_version == "HTTP/1.1"
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            if self._iterator is not None and self._left == 0:
                with anyio.move_on_after(1):  # a connection serves again only after the end of the message
                    await _run_out(self._iterator)
            await self._response.aclose()
            if self._iterator is not None:
                # Trio warns of generators that are dropped half-way, and one of HTTP/2 would wait for frames.
                with anyio.CancelScope() as ended:
                    ended.cancel()
                    await _run_out(self._iterator)


async def _run_out(iterator: AsyncIterator[bytes]) -> None:
    try:
        async for _ in iterator:
            pass
    except Exception:  # noqa: S110
        pass


class Transport:
    """Sends requests. An `async with` block bounds its connections.

    `client` is the caller's: it is never changed and never closed, and its bodies take the
    generic path. Without it, one of our own is made; it uses proxies from the environment, and
    without proxies it receives bodies in bursts.
    """

    def __init__(self, policy: Policy, *, client: Any = None) -> None:
        self.policy = policy
        threads = max(2, os.cpu_count() or 2)
        self.threads = anyio.CapacityLimiter(threads)
        self.hashing = anyio.CapacityLimiter(threads // 2)  # apart, so that hashing never queues behind all bodies
        self.requests = 0
        self.busy = 0.0  # seconds that worker threads spent on bodies, all together
        self._paid_until = 0.0
        self._injected = client
        self._client: Any = client
        self._backend: Backend | None = None
        self._gates: dict[tuple[str, str, int], float] = {}
        self._answered: dict[tuple[str, str, int], float] = {}

    async def __aenter__(self) -> Transport:
        redact_logs()
        if self._client is None:
            if {"http", "https", "all"} & getproxies().keys():
                limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
                self._client = httpx.AsyncClient(limits=limits)
            else:
                self._backend = Backend()
                self._client = httpx.AsyncClient(transport=PoolTransport(self._backend))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._injected is None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await self._client.aclose()
        if self._backend is not None:
            self._backend.close()

    @asynccontextmanager
    async def open(
        self, url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, neutral: bool = False
    ) -> AsyncIterator[Body]:
        """One request, one attempt: the head has been read, the body has not.

        `neutral` strips everything that identifies the caller, for origins other than the first.
        Statuses that ask to come again raise RateLimitedError or ServerError; others are the
        caller's to judge.
        """
        await self._pass_gate(url)
        response = await self._send(url, method, headers or {}, neutral)
        body = Body(response, url, self)
        try:
            self._raise_transient(body)
            yield body
        finally:
            await body.aclose()

    async def fetch(
        self,
        url: str,
        *,
        limit: int,
        headers: Mapping[str, str] | None = None,
        may_follow: Callable[[str, str], bool] | None = None,
        on_retry: OnRetry | None = None,
    ) -> Reply:
        """A small answer whole: up to `limit` bytes of its body. Transient failures are retried.

        `may_follow(from, to)` decides on each redirect; a redirect that it declines is the answer.
        """
        budget = Budget(self.policy)
        async for attempt in retrying(budget, sleep=anyio.sleep, on_retry=on_retry):
            with attempt:
                return await self._fetch_once(url, limit, headers, may_follow)
        raise AssertionError("unreachable: the last attempt raises")

    async def _fetch_once(
        self,
        url: str,
        limit: int,
        headers: Mapping[str, str] | None,
        may_follow: Callable[[str, str], bool] | None,
    ) -> Reply:
        first, here = origin_of(url), url
        for _ in range(self.policy.max_redirects + 1):
            async with self.open(here, headers=headers, neutral=origin_of(here) != first) as body:
                target = body.headers.get("location")
                if body.status not in (301, 302, 303, 307, 308) or not target:
                    if body.encoded and body.status in (200, 206):
                        raise ProtocolError("the body is compressed although that was declined", url=here)
                    if body.status == 206 and "range" not in (headers or {}):
                        raise ProtocolError("a part is answered although the whole was asked for", url=here)
                    return await _read_whole(body, limit)
                target = redirected(here, target)
                reply = await _read_whole(body, 1 << 16)  # read to its end, so that the connection serves again
                if may_follow is None or not may_follow(here, target):
                    return reply
                here = target
        raise ProtocolError(f"more than {self.policy.max_redirects} redirects", url=url)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run `work` in one of the few threads for bytes, and count its time as busy."""

        def timed() -> tuple[T, float]:
            began = time.monotonic()
            return work(), time.monotonic() - began

        result, took = await to_thread.run_sync(timed, limiter=self.threads)
        self.busy += took
        return result

    def distance(self, url: str) -> float:
        """Seconds to the fastest answer so far of the origin that serves `url`; 0 if it gave none yet."""
        return self._answered.get(origin_of(url), 0.0)

    def piece(self, limit: int) -> int:
        """At most `limit` bytes, and no more than a tenth of a second's worth under a bandwidth limit."""
        rate = self.policy.bandwidth_limit
        return limit if rate is None else min(limit, max(int(rate / 10), 1))

    async def spend(self, nbytes: int) -> None:
        """Wait until `nbytes` more are within the bandwidth limit, which all connections share."""
        if self.policy.bandwidth_limit is None:
            return
        now = time.monotonic()
        self._paid_until = max(self._paid_until, now) + nbytes / self.policy.bandwidth_limit
        await anyio.sleep(self._paid_until - now)

    async def _pass_gate(self, url: str) -> None:
        """Wait while this origin limits the rate; then spread out, so that not all go at once."""
        # Another answer may have moved the gate while we slept: look again.
        while (delay := self._gates.get(origin_of(url), 0.0) - time.monotonic()) > 0:  # noqa: ASYNC110
            await anyio.sleep(delay + random.random())

    async def _send(self, url: str, method: str, headers: Mapping[str, str], neutral: bool) -> Any:
        policy = self.policy
        own = {"user-agent": USER_AGENT, "accept-encoding": "identity", "accept": "*/*", **headers}
        timeout = (policy.connect_timeout, policy.read_timeout, policy.read_timeout, policy.connect_timeout)
        self.requests += 1
        began = time.monotonic()
        try:
            request = self._client.build_request(method, url, headers=own, timeout=timeout)
            with our_request():
                if not neutral:
                    response = await self._client.send(request, stream=True, follow_redirects=False)
                else:
                    for name in [name for name in request.headers if name.lower() not in _NEUTRAL_HEADERS]:
                        del request.headers[name]
                    response = await self._client.send(request, stream=True, follow_redirects=False, auth=None)
        except Exception as error:
            raise_translated(error, url)
        took, origin = time.monotonic() - began, origin_of(url)
        self._answered[origin] = min(took, self._answered.get(origin, took))
        return response

    def _raise_transient(self, body: Body) -> None:
        if body.status != 429 and body.status not in _TRANSIENT_STATUS:
            return
        after = retry_after(body.headers)
        if body.status == 429:
            wait = 1.0 if after is None else after
            if wait <= self.policy.max_wait:
                self._gates[origin_of(body.url)] = time.monotonic() + wait
            raise RateLimitedError(body.url, after)
        raise ServerError(body.status, url=body.url, retry_after=after)


async def _read_whole(body: Body, limit: int) -> Reply:
    data = bytearray()

    def land(view: memoryview) -> None:
        data.extend(view)

    while len(data) <= limit:
        wanted = min(limit + 1 - len(data), 1 << 20)
        if not await body.pull(wanted, lambda n: memoryview(bytearray(n)), land):
            break
    whole = bytes(data[:limit])
    return Reply(body.url, body.status, _lower(body.headers), whole, truncated=len(data) > limit)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
