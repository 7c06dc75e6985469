"""Sockets of our own beneath httpcore, so that bodies can be received in bursts.

`Backend` implements httpcore's public `AsyncNetworkBackend`. Its streams own a non-blocking
socket and hand httpcore the response head alone: what follows the head is left for whoever reads
the body. `Stream.burst` receives a body in a worker thread without ever blocking: recv until the
buffer is full or the socket would block. A stream whose body was read to its exact end goes back
to the backend and serves the next connection to the same place, TLS session and all, unless it was idle for long.
"""

from __future__ import annotations

import fcntl
import math
import select
import socket
import ssl
import sys
import termios
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import anyio
import httpcore

from .dialing import connect, describe
from .heads import HeadSplitter
from .reach import Reach

__all__ = ["KEPT_IDLE", "Backend", "Stream", "served_before"]

# Seconds for which an idle connection is kept. What stands in between forgets idle ones, and says so to nobody: often
# after minutes, whatever RFC 5382, section 5, asks for.
KEPT_IDLE = 30.0
# A clock that goes on while the machine sleeps; on Linux another one than the monotonic clock is it.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_MAX_PARKED = 64
_GATHER_SECONDS = 0.03  # how long a body's bytes may gather in the socket before they are received
_TLS_RECORD = 32 * 1024  # more than the TLS library may have taken from the socket and not handed out
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError)

# Whether the connection that the request which runs was given has served another one before.
served_before: ContextVar[bool] = ContextVar("asyncfetch_served_before", default=False)


class Stream(httpcore.AsyncNetworkStream):
    """One TCP or TLS connection. One task uses it at a time."""

    def __init__(self, sock: socket.socket, backend: Backend, key: tuple[str, int]) -> None:
        self._sock = sock
        self._backend = backend
        self._key = key
        self._surplus = b""  # received, and not handed out yet
        self._heads = HeadSplitter()
        self._low_water = 1  # bytes that make the socket readable
        self._asked_at = 0.0  # when the last of a request was sent; 0 once something came after it
        self.waited: float | None = None  # seconds from there to the first byte of the answer
        self.reusable = False  # set by who has read a body to its exact end
        self.idle_since = 0.0  # by the clock of the backend, while it is parked there
        self.tls_host: str | None = None

    # -- what httpcore calls -----------------------------------------------------------------

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._surplus:
            data, self._surplus = self._surplus[:max_bytes], self._surplus[max_bytes:]
        else:
            data = await self._receive(max_bytes, timeout)
            if self._asked_at:
                self.waited, self._asked_at = time.monotonic() - self._asked_at, 0.0
        given, left = self._heads.split(data)
        if left:
            self._surplus = left + self._surplus
        return given

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._heads, self.reusable = HeadSplitter(), False
        view = memoryview(buffer)
        while view:
            try:
                view = view[self._sock.send(view) :]
            except (*_WOULD_BLOCK, ssl.SSLWantWriteError) as error:
                await self._wait(error, timeout, httpcore.WriteTimeout)
            except OSError as error:
                raise httpcore.WriteError(describe(error)) from error
        self._asked_at = time.monotonic()

    async def aclose(self) -> None:
        if self.reusable and not self._surplus:
            self.reusable = False
            self._set_low_water(1)
            self._backend.park(self)
        else:
            self.close()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        if self.tls_host is not None:  # parked by an earlier request to the same host
            return self
        try:
            self._sock = ssl_context.wrap_socket(
                self._sock, server_hostname=server_hostname, do_handshake_on_connect=False
            )
            while True:
                try:
                    self._sock.do_handshake()
                    break
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                    await self._wait(error, timeout, httpcore.ConnectTimeout)
        except (OSError, ValueError) as error:
            self.close()
            raise httpcore.ConnectError(describe(error)) from error
        except BaseException:
            self.close()
            raise
        self.tls_host = server_hostname
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "socket":
            return self._sock
        if info == "ssl_object":
            return self._sock if self.tls_host is not None else None
        if info == "is_readable":
            return bool(self._surplus) or _readable(self._sock)
        try:
            if info == "client_addr":
                return self._sock.getsockname()
            if info == "server_addr":
                return self._sock.getpeername()
        except OSError:
            return None
        return None

    # -- what reads bodies -------------------------------------------------------------------

    @property
    def at_body(self) -> bool:
        """Whether httpcore has the head and nothing beyond it, so that all of the body is still to come from here."""
        return self._heads.at_body

    def burst(self, into: memoryview) -> tuple[int, bool]:
        """Receive into `into` without blocking: (bytes received, whether the peer has closed).

        Fewer bytes than `into` holds, and not closed: the socket has no more for now. Runs in a
        worker thread; recv, TLS included, releases the GIL. Raises OSError.
        """
        filled = min(len(self._surplus), len(into))
        if filled:
            into[:filled] = self._surplus[:filled]
            self._surplus = self._surplus[filled:]
        # With TLS a call brings a record, 16 KiB at the most: the layer of Python that recv_into() puts before
        # read() cost 7 percent of the rate.
        read: Any = self._sock.read if isinstance(self._sock, ssl.SSLSocket) else None
        while filled < len(into):
            rest = into[filled:]
            try:
                received = read(len(rest), rest) if read else self._sock.recv_into(rest)
            except _WOULD_BLOCK:
                break
            except ssl.SSLEOFError:
                received = 0
            except OSError:  # a reset: what came before it is good
                if not filled:
                    raise
                received = 0
            if not received:
                return filled, True
            filled += received
        return filled, False

    @property
    def unread(self) -> int:
        """How many bytes are here and were not received; of TLS those that are still encrypted, which are few more."""
        waiting = bytearray(4)
        try:
            fcntl.ioctl(self._sock, termios.FIONREAD, waiting)
            pending = self._sock.pending() if isinstance(self._sock, ssl.SSLSocket) else 0
        except (OSError, ValueError):  # it is closed
            return len(self._surplus)
        return len(self._surplus) + int.from_bytes(waiting, sys.byteorder) + pending

    async def readable(self, timeout: float, wanted: int = 1) -> bool:
        """Wait until a burst may receive something. False after `timeout` seconds.

        At best `wanted` bytes, of which all are still to come: for a moment a trickle is left to gather
        in the socket, because a wake-up and a hop to a thread cost as much as to receive many packets.
        """
        if self._surplus:
            return True
        with anyio.move_on_after(timeout):
            self._set_low_water(wanted - _TLS_RECORD)
            if self._low_water > 1:
                with anyio.move_on_after(_GATHER_SECONDS):
                    await anyio.wait_readable(self._sock)
                    return True
                self._set_low_water(1)
            await anyio.wait_readable(self._sock)
            return True
        return self._has_come()

    def _has_come(self) -> bool:
        """Whether something is here although its time is over: the loop came late, or the machine slept."""
        self._set_low_water(1)
        return _readable(self._sock)

    def _set_low_water(self, nbytes: int) -> None:
        if max(nbytes, 1) != self._low_water:
            self._low_water = max(nbytes, 1)
            with suppress(OSError):  # a system that has it not, or a connection that has just failed
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self._low_water)

    def close(self) -> None:
        if self._sock.fileno() != -1:
            anyio.notify_closing(self._sock)
            self._sock.close()

    def parked_alive(self) -> bool:
        """An idle connection with something to read was closed by its peer, or is out of step."""
        return self._sock.fileno() != -1 and not _readable(self._sock)

    # -- parts -------------------------------------------------------------------------------

    async def _receive(self, max_bytes: int, timeout: float | None) -> bytes:
        while True:
            try:
                return self._sock.recv(max_bytes)
            except (*_WOULD_BLOCK, ssl.SSLWantWriteError) as error:
                await self._wait(error, timeout, httpcore.ReadTimeout)
            except ssl.SSLEOFError:
                return b""
            except OSError as error:
                raise httpcore.ReadError(describe(error)) from error

    async def _wait(self, error: Exception, timeout: float | None, timed_out: type[Exception]) -> None:
        sending = isinstance(error, ssl.SSLWantWriteError) or (
            timed_out is httpcore.WriteTimeout and not isinstance(error, ssl.SSLWantReadError)
        )
        with anyio.move_on_after(math.inf if timeout is None else timeout) as scope:
            await (anyio.wait_writable if sending else anyio.wait_readable)(self._sock)
        if scope.cancelled_caught:
            raise timed_out(f"nothing for {timeout} s")


class Backend(httpcore.AsyncNetworkBackend):
    """Opens connections, and keeps those that can serve again."""

    def __init__(
        self, reach: Reach | None = None, *, clock: Callable[[], float] = lambda: time.clock_gettime(_CLOCK)
    ) -> None:
        self._parked: dict[tuple[str, int], list[Stream]] = {}  # of each place, who was idle longest first
        self._reach, self._clock = reach, clock
        self._closed = False
        self.opened = 0

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        parked = self._parked.get((host, port), [])
        while parked:
            stream = parked.pop()
            if stream.parked_alive() and self._clock() - stream.idle_since <= KEPT_IDLE:
                served_before.set(True)
                return stream
            stream.close()
        try:
            with anyio.fail_after(timeout):
                sock = await self.dial(host, port, local_address)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"no connection within {timeout} s") from error
        except OSError as error:
            raise httpcore.ConnectError(describe(error)) from error
        for option in socket_options or ():
            sock.setsockopt(*option)
        self.opened += 1
        return Stream(sock, self, (host, port))

    async def dial(self, host: str, port: int, local_address: str | None) -> socket.socket:
        """A connected socket. Raises OSError; ProtocolError where it may not be connected to."""
        return await connect(host, port, local_address, self._reach)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("sockets in the file system are not supported")

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    def park(self, stream: Stream) -> None:
        parked = self._parked.setdefault(stream._key, [])
        if len(parked) < _MAX_PARKED and not self._closed:
            stream.idle_since = self._clock()
            parked.append(stream)
        else:
            stream.close()

    def forget(self, host: str, port: int) -> None:
        """Close the idle connections to a place: one of them turned out to be dead, and the others are older."""
        for stream in self._parked.pop((host, port), []):
            stream.close()

    def close(self) -> None:
        """Close all idle connections, and from now on each that is done."""
        self._closed = True
        for parked in self._parked.values():
            for stream in parked:
                stream.close()
        self._parked.clear()


def _readable(sock: socket.socket) -> bool:
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])
