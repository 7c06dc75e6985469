"""The body of one answer, received piece by piece in worker threads."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol, TypeVar

import anyio

from ..errors import NetworkError, StalledError
from ..policy import Policy
from .limits import Limits
from .sockets import Stream
from .wall import raise_translated

__all__ = ["Body"]

T = TypeVar("T")

_BURST_SECONDS = 0.012  # how long a worker thread receives before it looks back at the event loop
# Between two pieces of a burst, or an event loop that was woken waits until the thread's time slice has run out.
_give_way = getattr(os, "sched_yield", lambda: None)
_SMALL = 64 * 1024  # bytes that cost less to receive than a hop to a thread and back
_NO_BODY = (204, 304)  # whatever a length says: RFC 9110, section 6.4.1
# RFC 9110, section 8.4.1, RFC 7932, RFC 8878. Any other word leaves the bytes as they are: `aws-chunked` above all,
# which stores keep of how a file was uploaded, and send along (https://github.com/versity/versitygw/issues/2398).
_COMPRESSIONS = frozenset({"gzip", "x-gzip", "compress", "x-compress", "deflate", "br", "zstd"})
_FLUSH_AFTER = 0.5  # seconds that slow bytes may wait for company before they are written


class Body:
    """The body of one answer, received piece by piece in worker threads.

    `length` is what the answer announces, None if it does not. `head`: the request was a HEAD.
    """

    def __init__(self, response: Any, url: str, policy: Policy, limits: Limits, *, head: bool = False) -> None:
        self.url = url
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        length = self.headers.get("content-length", "")
        chunked = "transfer-encoding" in self.headers
        self.length = int(length) if re.fullmatch(r"[0-9]{1,18}", length) and not chunked else None
        if self.status in _NO_BODY or head:
            self.length = 0
        codings = re.split(r"[\s,]+", self.headers.get("content-encoding", "").lower())
        self.encoded = not _COMPRESSIONS.isdisjoint(codings)
        self._response = response
        self._policy = policy
        self._limits = limits
        self._left = self.length
        self._drained = False  # the socket had nothing more when it was last read
        self._iterator: AsyncIterator[bytes] | None = None
        self._rest = memoryview(b"")
        self._failure: Exception | None = None
        self._window = (0.0, 0)  # seconds that were waited, bytes that came in them
        stream = response.extensions.get("network_stream")
        fast = isinstance(stream, Stream) and stream.at_body and self.length is not None
        self._stream: Stream | None = stream if fast else None

    async def pull(
        self,
        limit: int,
        target: Callable[[int], memoryview],
        accept: Callable[[memoryview], None],
        *,
        in_memory: bool = False,
    ) -> int:
        """Receive up to `limit` bytes: 0 only at the end of the body.

        `target(n)` gives the place for n bytes or fewer, `accept(view)` takes what was received there;
        both run in the worker thread that receives, which goes on for some milliseconds while the
        socket has more, calling both for each piece: fewer hops between threads. With `in_memory`, where both
        touch memory alone, a small body is received at once. Raises
        NetworkError, and StalledError when fewer than `stall_bytes` came in `stall_window` seconds.
        """
        if self._left == 0:
            return 0
        self._check_floor()  # of what came before: who has all the bytes that were wanted does not come back
        limit = self._limits.piece(limit if self._left is None else min(limit, self._left))
        run = _at_once if in_memory and limit <= _SMALL else self._limits.in_thread
        began = time.monotonic()
        try:
            if self._stream is not None:
                received = await self._pull_burst(self._stream, limit, target, accept, run)
            else:
                received = await self._pull_chunks(min(limit, self._policy.burst), target, accept, run)
        except Exception as error:
            raise_translated(error, self.url)
        if self._left is not None:
            self._left -= received
            if self._left and not received:
                raise NetworkError(f"the connection closed {self._left:,} bytes before the end", url=self.url)
        seconds_before, count = self._window
        self._window = seconds_before + time.monotonic() - began, count + received
        await self._limits.spend(received)
        return received

    async def _pull_burst(
        self,
        stream: Stream,
        limit: int,
        target: Callable[[int], memoryview],
        accept: Callable[[memoryview], None],
        run: _Runner,
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
                    self._count(received)
                    accept(view[:received])
                    total += received
                    if run is not _at_once:
                        _give_way()
                self._drained = received < len(view)
                if closed or self._drained or not received or total == limit or time.monotonic() >= deadline:
                    return total, closed

        wanted = min(limit, self._policy.burst)
        while self._failure is None:
            if self._drained and not await stream.readable(self._policy.read_timeout, wanted):
                raise StalledError(f"nothing came for {self._policy.read_timeout:g} s", url=self.url)
            received, closed = await run(work)
            if received or closed:
                return received
        raise self._failure

    async def _pull_chunks(
        self, limit: int, target: Callable[[int], memoryview], accept: Callable[[memoryview], None], run: _Runner
    ) -> int:
        if self._iterator is None:
            answer = self._response  # a mock's is often read already
            self._iterator = answer.aiter_bytes() if answer.is_stream_consumed else answer.aiter_raw()
        pieces, filled, began = deque([self._rest]), len(self._rest), time.monotonic()
        while filled < limit and self._failure is None and time.monotonic() - began < _FLUSH_AFTER:
            try:
                piece = await anext(self._iterator)
            except StopAsyncIteration:
                break
            except Exception as error:  # what came before it is good: that counts first
                self._failure = error
                break
            self._count(len(piece))
            pieces.append(memoryview(piece))
            filled += len(piece)
        last = pieces.pop()
        end = len(last) - max(filled - limit, 0)
        pieces.append(last[:end])
        self._rest, filled = last[end:], min(filled, limit)
        if self._failure is not None and not filled:
            raise self._failure

        def work() -> int:
            stored = 0
            while stored < filled and (view := target(filled - stored)):
                _fill(view, pieces)
                accept(view)
                stored += len(view)
            return stored

        return await run(work) if filled else 0

    def _count(self, nbytes: int) -> None:
        if nbytes and self._limits.meter is not None:
            self._limits.meter.received(nbytes)

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
        elif self._stream is not None and self._left:  # the source has sent this too
            self._count(min(self._stream.unread, self._left))
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


class _Runner(Protocol):
    """Runs what receives: in a thread, or at once."""

    async def __call__(self, work: Callable[[], T], /) -> T: ...


def _fill(view: memoryview, pieces: deque[memoryview]) -> None:
    """Move the first bytes of `pieces`, of which there are enough, into `view`."""
    while view:
        piece = pieces.popleft()
        nbytes = min(len(piece), len(view))
        view[:nbytes] = piece[:nbytes]
        view = view[nbytes:]
        if nbytes < len(piece):
            pieces.appendleft(piece[nbytes:])


async def _at_once(work: Callable[[], T]) -> T:
    return work()


async def _run_out(iterator: AsyncIterator[bytes]) -> None:
    try:
        async for _ in iterator:
            pass
    except Exception:  # noqa: S110
        pass
