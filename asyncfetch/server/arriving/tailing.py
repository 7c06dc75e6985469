"""Answers that hold a file, or a range of it, while it arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse

from ...errors import AsyncfetchError
from ..counts import ORIGIN
from ..protocol.body import chunk_size, in_reader, sending

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from ...network.transport import Transport
    from .fills import Fill

__all__ = ["FillBody"]


class FillBody(StreamingResponse):
    """Bytes `span` of what a fill brings. Takes over a hold on the fill, and releases it.

    It ends before its length where the fill fails or what came of it proves wrong: that closes the connection.
    """

    def __init__(self, fill: Fill, transport: Transport, span: range, status: int, headers: Mapping[str, str]) -> None:
        super().__init__((), status, headers)
        self.fill, self.transport, self.span = fill, transport, span
        self.generation = fill.generation  # of what a client that asks for the rest was told it may go on with
        self._sought = False  # the fill brings the rest of it before what comes in order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        try:
            with sending():
                await super().__call__(scope, receive, send)
        finally:
            self.fill.release()

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        position, end = self.span.start, self.span.stop
        while position < end:
            chunk = await self._next(position, end)
            # The bytes under a read may have been forgotten meanwhile, and others have come in their place.
            if not chunk or self._is_cut_off():
                return
            position += len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": position < end})

    async def _next(self, position: int, end: int) -> bytes:
        """Some bytes from `position` on, once there are any; none where there will be none."""
        fill = self.fill
        if not position:  # nothing was handed out: whatever comes is the beginning
            self.generation = fill.generation
        while not self._is_cut_off():
            if count := min(chunk_size(), fill.ready(position), end - position):
                self.scope[ORIGIN] = "fill"
                return await in_reader(fill.read, position, count)
            if not self._sought and fill.is_far(position):
                self._sought = fill.seek(position, end)
                if not self._sought:
                    return await self._passed_on(position, end)
            await fill.changed.wait()
        return b""

    async def _passed_on(self, position: int, end: int) -> bytes:
        """Some bytes from `position` on that are not kept; none where the source gives none."""
        self.scope[ORIGIN] = "passed"
        try:
            return await self.fill.read_far(position, end, self.transport)
        except AsyncfetchError:
            return b""

    def _is_cut_off(self) -> bool:
        return self.fill.over or self.fill.generation != self.generation
