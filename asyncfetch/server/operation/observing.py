"""Counts each answer of an application, and tells an audit log of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from ..counts import ORIGIN
from ..protocol.body import BrokenOffError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ..counts import Counter, Counts, Origin
    from .audit import Audit

__all__ = ["Observing"]


class Observing:
    """`app`, whose answers are counted, by where their bytes were, and written to `audit` where there is one."""

    def __init__(self, app: ASGIApp, counts: Counts, audit: Audit | None = None) -> None:
        self.app, self.counts, self.audit = app, counts, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(scope, self.counts)

        async def watch(message: Message) -> None:
            try:
                await send(message)
            except BrokenOffError as broken:
                answer.add(broken.nbytes)
                raise
            answer.sent(message)

        try:
            with self.counts.running("requests"):
                await self.app(scope, receive, watch)
        except Exception:
            if not answer.status:
                answer.status = 500  # as starlette answers, around this
            raise
        finally:
            answer.end()
            if self.audit is not None:
                self.audit.note(scope, answer.status, answer.bytes, whole=answer.whole, began=answer.began)


class _Answer:
    """What of one answer was handed to the network so far. `bytes` are those of its body, by where they were."""

    def __init__(self, scope: Scope, counts: Counts) -> None:
        self._scope, self._counts = scope, counts
        self._reads = False
        self.began = time.time()
        self.status = 0
        self.bytes: dict[Origin, int] = {}
        self.whole = False

    def sent(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.whole = not message.get("more_body", False)
            self.add(len(message.get("body", b"")) if self._scope["method"] != "HEAD" else 0)

    def add(self, nbytes: int) -> None:
        """So many bytes of its body went."""
        origin: Origin = self._scope.get(ORIGIN, "answer")
        self.bytes[origin] = self.bytes.get(origin, 0) + nbytes
        self._counts.add(cast("Counter", f"served_bytes_{origin}"), nbytes)
        if origin != "answer" and not self._reads:
            self._reads = True
            self._counts.change("readers", 1)

    def end(self) -> None:
        if self._reads:
            self._counts.change("readers", -1)
        if "passed" in self.bytes:
            self._counts.add("passed")
        if self.status:
            self._counts.add(cast("Counter", f"answers_{self.status // 100}xx"))
