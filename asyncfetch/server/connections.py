"""Connections to clients. One that asks for nothing, or takes nothing, is cut off after a while.

uvicorn waits for ever for the head of a request, and for whoever reads a response: each would hold a descriptor, and
a reader a piece of the file in memory too. A client that was cut off asks for the rest by a range.
"""

from __future__ import annotations

import asyncio
import socket
import struct

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Connection", "raise_descriptor_limit"]

HEAD = 60.0  # seconds for the head of a request to come, from the first moment on
STALL = 300.0  # seconds in which a client takes what is on its way to it: some MiB


class Connection(H11Protocol):
    """A connection of uvicorn's whose two waits end."""

    _head: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head = self._later(HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._head, self._stall = _cancelled(self._head), _cancelled(self._stall)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head = _cancelled(self._head)
        elif self._head is None:  # the beginning of the next request, or what nobody asked for
            self._head = self._later(HEAD)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self._later(STALL)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stall = _cancelled(self._stall)

    def _later(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self._cut)

    def _cut(self) -> None:
        """Close it without waiting for the client, in the kernel too: what is on its way is dropped, a RST tells."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def raise_descriptor_limit() -> None:
    """Let this process have as many open files as the system permits it: many systems begin with 1,024."""
    try:
        import resource
    except ImportError:  # not a POSIX system, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS refuses its own "no limit"
            pass
