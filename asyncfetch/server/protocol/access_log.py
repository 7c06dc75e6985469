"""One line for each request, by the logger `asyncfetch.server.access`.

    10.0.0.7 GET /org/name/resolve/main/model.safetensors 206 8388608 41.3ms
    10.0.0.7 GET /org/name/resolve/main/model.safetensors 200 1048576 9.8ms broken off

Client, method, path, status, bytes of the body, time from the request to the last byte. No header is shown, and of a
query only what selects: it may hold a signature, or what somebody took for the place of a token.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlencode

from ..text import header_text
from .body import BrokenOffError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["AccessLog", "raw_path", "shown_target"]

LOG = logging.getLogger("asyncfetch.server.access")
_MOST = 1000  # characters of a path
_SHOWN = frozenset(
    {
        "author",
        "blobs",
        "cursor",
        "direction",
        "expand",
        "full",
        "include_prs",
        "limit",
        "p",
        "recursive",
        "search",
        "sort",
    }
)


def raw_path(scope: Scope) -> str:
    """The path of a request, still percent-encoded and without the query."""
    raw: bytes | None = scope.get("raw_path")  # optional in ASGI
    return raw.decode("latin-1") if raw else quote(scope["path"])


def shown_target(path: str, query: str) -> str:
    """A path, and of its query what only selects."""
    pairs = parse_qsl(query, keep_blank_values=True)
    shown = urlencode([pair for pair in pairs if pair[0] in _SHOWN])
    hidden = "&…" if shown else "…"
    more = hidden if any(name not in _SHOWN for name, _ in pairs) else ""
    return header_text(path[:_MOST]) + (f"?{shown[:_MOST]}{more}" if shown or more else "")


class AccessLog:
    """Logs what `app` answers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not LOG.isEnabledFor(logging.INFO):
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        status, sent, whole = 0, 0, False

        async def count(message: Message) -> None:
            nonlocal status, sent, whole
            try:
                await send(message)
            except BrokenOffError as broken:
                sent += broken.nbytes
                raise
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b"")) if scope["method"] != "HEAD" else 0
                whole = not message.get("more_body", False)

        try:
            await self.app(scope, receive, count)
        finally:
            client = (scope.get("client") or ("-",))[0]
            target = shown_target(raw_path(scope), scope.get("query_string", b"").decode("latin-1"))
            took = (time.monotonic() - began) * 1000
            end = "" if whole else " broken off"
            LOG.info("%s %s %s %s %s %.1fms%s", client, scope["method"], target, status or "-", sent, took, end)
