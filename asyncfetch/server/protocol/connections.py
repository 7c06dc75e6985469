"""Connections to clients, on top of uvicorn's.

One that asks for nothing, or takes nothing, is cut off after a while. uvicorn waits for ever for the head of a
request, and for whoever reads a response: each would hold a descriptor, and a reader a piece of the file in memory
too. A client that was cut off asks for the rest by a range.

And a body may be a part of a file, a `FilePart`, which goes from the page cache to the socket in the kernel, in worker
threads: copied twice in one thread, it took as long as the whole of what nginx does.
"""

from __future__ import annotations

import asyncio
import os
import resource
import select
import socket
import struct
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import is_ssl

from .body import FILE_PARTS, BrokenOffError, FilePart, in_reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Connection", "raise_descriptor_limit"]

HEAD = 60.0  # seconds for the head of a request to come, from the first moment on
_MOMENT = 3  # milliseconds: to come back to a worker thread costs a tenth of one, and more on a busy machine
TURN = 0.05  # seconds of a worker thread for one client, however quick it is: there are few of these threads
STALL = 300.0  # seconds in which a client takes what is on its way to it: some MiB


class Connection(H11Protocol):
    """A connection of uvicorn's whose two waits end, and that sends parts of files."""

    _head: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.app = _taking_files(self.app, self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not is_ssl(transport):
            transport.set_write_buffer_limits(high=0)  # so that `drain` waits until nothing is left before a file
        self._head = self._later(HEAD)

    async def send_file(self, part: FilePart) -> None:
        """Send a part of a file as a piece of the body. Raises BrokenOffError, and the OSError of a broken disk."""
        await self.flow.drain()
        if self.cycle.disconnected:
            raise BrokenOffError
        self.conn.send_with_data_passthrough(h11.Data(data=part))  # type: ignore[arg-type]  # h11 counts its length
        # Of its own: the loop lets nobody else wait for the descriptor of a transport.
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as sock:
            try:
                with _whole_segments(sock):
                    await _send_from(part, sock)
            except BrokenOffError as broken:
                if broken.gone:
                    self._cut()
                    await anyio.sleep(0.01)  # until uvicorn has noticed
                raise

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._head, self._stall):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            if self._head is not None:
                self._head.cancel()
            self._head = None
        elif self._head is None:  # the beginning of the next request, or what nobody asked for
            self._head = self._later(HEAD)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self._later(STALL)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    def _later(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self._cut)

    def _cut(self) -> None:
        """Close it without waiting for the client, in the kernel too: what is on its way is dropped, a RST tells."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:  # else the client has closed it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


@contextmanager
def _whole_segments(sock: socket.socket) -> Iterator[None]:
    """Let the kernel send nothing but full segments until the end, where it can (tcp(7), TCP_CORK).

    One quick client got half as much, at twice the price, where each page of a file went as soon as it could.
    """
    option = getattr(socket, "TCP_CORK", None)
    if option is not None:
        sock.setsockopt(socket.IPPROTO_TCP, option, 1)
    try:
        yield
    finally:
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, 0)


async def _send_from(part: FilePart, sock: socket.socket) -> None:
    """Send a part of a file as the client takes it. BrokenOffError too where it takes nothing for STALL seconds."""
    position, end = part.start, part.start + len(part)
    try:
        while (position := await in_reader(_push, sock.fileno(), part.descriptor, position, end)) < end:
            with anyio.fail_after(STALL):
                await anyio.wait_writable(sock)
    except BrokenOffError as broken:
        raise BrokenOffError(position - part.start + broken.nbytes, gone=broken.gone) from None
    except TimeoutError:
        raise BrokenOffError(position - part.start) from None


def _push(sink: int, source: int, position: int, end: int) -> int:
    """Send what the socket takes; the position then. Blocks for the disk, and for TURN at most for a quick client.

    Raises BrokenOffError where the client is gone, or the file ends before `end`, and the OSError of a broken disk.
    """
    writable, begun = select.poll(), position
    writable.register(sink, select.POLLOUT)
    until = time.monotonic() + TURN
    while position < end and (position == begun or time.monotonic() < until):
        try:
            moved = os.sendfile(sink, source, position, end - position)
        except BlockingIOError:
            if position > begun and writable.poll(_MOMENT):
                continue
            break
        except (ConnectionError, TimeoutError):
            raise BrokenOffError(position - begun) from None
        if not moved:
            raise BrokenOffError(position - begun, gone=False)
        position += moved
    return position


def _taking_files(app: Any, connection: Connection) -> ASGIApp:
    """`app`, which may send parts of files over `connection`, and is told so by its scope."""

    async def taking(scope: Scope, receive: Receive, send: Send) -> None:
        async def passing(message: Message) -> None:
            if isinstance(message.get("body"), FilePart):
                await connection.send_file(message["body"])
                if message["more_body"]:
                    return
                message = {**message, "body": b""}
            await send(message)

        plain = scope["type"] == "http" and not is_ssl(connection.transport) and hasattr(os, "sendfile")
        await app({**scope, FILE_PARTS: True} if plain else scope, receive, passing)

    return taking


def raise_descriptor_limit() -> None:
    """Let this process have as many open files as the system permits it: many systems begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # macOS refuses its own "no limit"
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
