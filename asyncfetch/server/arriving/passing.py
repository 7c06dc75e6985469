"""Files that have no room here: passed on from the source without being kept.

The rules are those of fills (filling.py): the last HELD bytes come when the hash is right, and a source that was wrong
is not believed again. Each reader has a request of its own, which waits while the reader does. What it asks for beyond
the beginning, up to the end, comes with all that is before it, since only the whole has a hash. A range that ends
before the last HELD bytes comes alone, as it does while a file arrives.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

import anyio
from starlette.responses import StreamingResponse

from ...engine.signals import Signal
from ...errors import AsyncfetchError, ChecksumMismatchError
from ...network.ranges import Intake, receive
from ...sources.located import PREFIX_LIMIT
from ...spans import MiB, Span
from ...storage.checksums import new_hash
from ...tasks import off_loop, plain_errors
from ..counts import ORIGIN
from .wanted import HELD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from ...network.ranges import Target
    from ...network.transport import Transport
    from ..counts import Counts
    from .distrust import Distrust
    from .wanted import WantedFile

__all__ = ["PassBody", "Passage", "needs_all"]

LOG = logging.getLogger("asyncfetch.server")
WINDOW = 8 * MiB  # bytes of a file that wait for its reader
_BURST = MiB


def needs_all(span: range, size: int) -> bool:
    """Whether `span` holds bytes that wait for the hash of the whole file."""
    return span.stop > size - HELD


class Passage(Intake):
    """Bytes `part` of a file on their way from the source to one reader, in order."""

    def __init__(
        self, wanted: WantedFile, part: range, transport: Transport, distrust: Distrust, counts: Counts
    ) -> None:
        self._wanted, self._part = wanted, part
        self.file = file = wanted.file
        self._counts = counts
        self.error: AsyncfetchError | None = None
        self._transport, self._distrust = transport, distrust
        self._size = file.size
        self._whole = needs_all(part, file.size)
        self._at, self._stop = (0, file.size) if self._whole else (part.start, part.stop)
        self._hash = new_hash(file.algorithm, file.size)
        self._scratch = memoryview(bytearray(_BURST))
        self._pieces: deque[bytes] = deque()  # of what is wanted
        self._arrived = part.start  # the end of these
        self._out = part.start  # the next byte for the reader
        self._verified, self._ended = not self._whole, False
        self._came, self._taken = Signal(), Signal()

    # -- the reader's side -----------------------------------------------------------------------

    async def take(self) -> bytes:
        """The next bytes; none where there will be none, which `error` explains before the end."""
        while not (ready := self._ready()) and not self._ended:
            await self._came.wait()
        if not ready:
            return b""
        piece = self._pieces.popleft()
        if len(piece) > ready:
            self._pieces.appendleft(piece[ready:])
            piece = piece[:ready]
        self._out += len(piece)
        self._taken.give()
        return piece

    def _ready(self) -> int:
        """How many of the bytes that wait may be handed out now."""
        end = self._arrived if self._verified else min(self._arrived, self._size - HELD)
        return max(end - self._out, 0)

    # -- the source's side -----------------------------------------------------------------------

    async def run(self) -> None:
        """Bring the bytes, and see that they are right. What goes wrong is told by `error`."""
        try:
            with plain_errors():
                self._target = await self._located(limit=1 if self._at else PREFIX_LIMIT)
                await receive(self._transport, self, file=self.file.name, size=self._size)
                if self._whole:
                    await self._verify()
        except AsyncfetchError as error:
            self.error = error
            LOG.warning("%s could not be passed on: %s", self.file.name, error)
            await self._wanted.heed(error)
        finally:
            self._ended = True
            self._came.give()

    async def _located(self, limit: int) -> Target:
        """Where the source serves the file now; of the bytes that it sends along, up to `limit`, none is lost."""
        file = self.file
        found = await self._wanted.hub.ask_again(file.name, file.commit or "main", etag=file.key, limit=limit)
        if limit > 1:
            self.accept(memoryview(found.prefix)[: self._stop - self._at])
        return self._wanted.hub.target_of(file.name, found)

    async def _verify(self) -> None:
        """Hold the whole against its hash. Raises ChecksumMismatchError."""
        checksum, digest = self.file.checksum, self._hash.hexdigest()
        if checksum is not None and digest != checksum.hex:
            self._distrust.wrong(self.file.key)
            self._counts.add("wrong_hashes")
            await off_loop(self._distrust.save)  # before the reader can come back for the rest
            LOG.error("%s came with wrong bytes: who reads it is cut off.", self.file.name)
            raise ChecksumMismatchError(
                self.file.name, algorithm=checksum.algorithm, expected=checksum.hex, actual=digest
            )
        self._verified = True
        self._came.give()
        if self._distrust.right(self.file.key):
            await off_loop(self._distrust.save)

    @property
    def span(self) -> Span:
        return Span(self._at, self._stop)

    async def target(self, refused: Target | None) -> Target:
        if refused is not None:
            self._target = await self._located(limit=1)
        return self._target

    def place(self, nbytes: int) -> memoryview:
        return self._scratch[:nbytes]

    def accept(self, view: memoryview) -> None:
        if self._whole:
            self._hash.update(view)
        kept = view[max(self._part.start - self._at, 0) : max(self._part.stop - self._at, 0)]
        self._at += len(view)
        if kept:
            self._pieces.append(bytes(kept))
            self._arrived += len(kept)  # by one thread at a time

    def pulled(self, nbytes: int) -> None:  # noqa: ARG002
        self._came.give()

    def _room(self) -> int:
        """How many bytes may come now."""
        return max(WINDOW + HELD - (self._arrived - self._out), 0)

    async def room(self) -> int:
        """While the reader is slow the connection waits with it, until somebody else wants one."""
        if room := self._room():
            return min(room, self.span.nbytes)
        async with anyio.create_task_group() as group:
            for wait in (self._transport.limits.connections.wanted, self.ready):
                group.start_soon(_first, wait, group.cancel_scope.cancel)
        return min(self._room(), self.span.nbytes)

    async def ready(self) -> None:
        while not self._room():
            await self._taken.wait()


async def _first(wait: Callable[[], Awaitable[None]], then: Callable[[], None]) -> None:
    await wait()
    then()


class PassBody(StreamingResponse):
    """What a passage brings. Where not even its beginning comes, the answer is what `refusal` makes of the error."""

    def __init__(
        self,
        passage: Passage,
        status: int,
        headers: Mapping[str, str],
        refusal: Callable[[AsyncfetchError], Response],
    ) -> None:
        super().__init__((), status, headers)
        self.passage, self._refusal = passage, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive = scope, receive
        scope[ORIGIN] = "passed"
        await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        with plain_errors():
            async with anyio.create_task_group() as group:
                group.start_soon(self.passage.run)
                await self._send(send)
                group.cancel_scope.cancel()

    async def _send(self, send: Send) -> None:
        chunk = await self.passage.take()
        if not chunk and self.passage.error is not None:
            await self._refusal(self.passage.error)(self._scope, self._receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        left = int(self.headers["content-length"])
        while chunk:
            left -= len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})
            chunk = await self.passage.take() if left else b""
