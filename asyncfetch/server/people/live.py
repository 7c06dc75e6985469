"""The state for who watches, as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

A viewer is sent the state as it is, when it is another than the one that was sent before. Nothing is queued: who reads
slowly gets fewer of them. It is worded once for all who see the same, and only while somebody watches.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, NamedTuple

import anyio
from starlette.responses import Response, StreamingResponse

from ...errors import AsyncfetchError
from ..protocol.answers import failure
from .service_page import page_parts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from .state import State

__all__ = ["Live", "View"]

TICK = 0.5  # seconds between two looks
ALIVE = 15.0  # seconds after which a viewer hears something, so that nobody in between takes the line for dead
MOST = 500  # viewers
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}


class View(NamedTuple):
    """What a viewer sees: all names (`full`) or those that everybody may see, as the page words it or as JSON."""

    full: bool
    page: bool


class _Frame(NamedTuple):
    """An event as it is sent, and when it was made. `number` tells it from the one before."""

    number: int
    event: bytes
    at: float


class Live:
    """Sends the state. `viewers` counts who watches."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._frames: dict[View, _Frame] = {}
        self._turn = anyio.Lock()
        self.viewers = 0
        self._ended = anyio.Event()

    def end(self) -> None:
        """Let all viewers go. They come back, to this server or to the next one."""
        self._ended.set()

    def response(self, view: View, *, head: bool = False) -> Response:
        """The answer to a viewer."""
        if self.viewers >= MOST:
            return failure(503, "TooManyViewers", f"{MOST} watch already.", {"Retry-After": "30"})
        if head:
            return Response(headers=_HEADERS, media_type="text/event-stream")
        return _Viewing(self, view)

    async def events(self, view: View) -> AsyncIterator[bytes]:
        """What a viewer is sent, until `end`."""
        seen, spoken = -1, time.monotonic()
        yield b"retry: 3000\n\n"
        while not self._ended.is_set():
            frame = await self._frame(view)
            if frame.number != seen:
                seen, spoken = frame.number, time.monotonic()
                yield frame.event
            elif time.monotonic() - spoken >= ALIVE:
                spoken = time.monotonic()
                yield b":\n\n"
            with anyio.move_on_after(TICK):
                await self._ended.wait()

    async def _frame(self, view: View) -> _Frame:
        """The present state, made anew if it is older than a tick."""
        async with self._turn:
            before = self._frames.get(view, _Frame(0, b"", 0.0))
            if before.event and time.monotonic() - before.at < TICK / 2:
                return before
            event = await self._event(view)
            number = before.number + (event != before.event)
            frame = self._frames[view] = _Frame(number, event, time.monotonic())
            return frame

    async def _event(self, view: View) -> bytes:
        try:
            document = await self._state.document(full=view.full)
        except AsyncfetchError as error:
            return _worded("failure", {"error": error.message})
        if view.page:
            return _worded("page", page_parts(document, full=view.full))
        return _worded("state", document)


class _Viewing(StreamingResponse):
    """The answer to one viewer."""

    def __init__(self, live: Live, view: View) -> None:
        super().__init__(live.events(view), media_type="text/event-stream", headers=_HEADERS)
        self._live = live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._live.viewers += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._live.viewers -= 1


def _worded(name: str, document: object) -> bytes:
    """JSON has no line feed of its own, so it is one line of data."""
    return f"event: {name}\ndata: {json.dumps(document, separators=(',', ':'))}\n\n".encode()
