"""Small spans and small files, into memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..errors import AsyncfetchError, ProtocolError
from ..spans import MiB, Span
from .body import Body
from .ranges import Intake, Target, Whereabouts, check_status, open_followed, receive, scratch
from .retry import Budget, retrying
from .transport import Transport

__all__ = ["read_all", "read_span"]


async def read_span(
    transport: Transport,
    target: Target,
    span: Span,
    *,
    file: str,
    size: int,
    on_answer: Callable[[Body, Target], None] = lambda _body, _target: None,
    renew: Callable[[], Awaitable[Target]] | None = None,
) -> bytes:
    """The bytes of a small span, in memory. Transient failures are retried, from where they struck.

    `on_answer` is told each answer, and which target gave it. `renew` asks for the target anew when its
    link has expired.
    """
    intake = _InMemory(target, span, on_answer, renew)
    await receive(transport, intake, file=file, size=size)
    return bytes(intake.data)


async def read_all(
    transport: Transport,
    target: Target,
    *,
    limit: int,
    file: str,
    renew: Callable[[], Awaitable[Target]] | None = None,
) -> bytes:
    """A small file from its first byte to the end of the body, whatever it is told to have: for who checks its hash.

    No more than `limit` bytes and one, which says that there are more. Transient failures are retried.
    """
    last = target

    async def ask(refused: Target | None) -> Target:
        nonlocal last
        if refused is not None and renew is not None:
            last = await renew()
        return last

    budget, whereabouts = Budget(transport.policy), Whereabouts(ask, transport.policy.read_timeout)
    async for attempt in retrying(budget, transport.notify):
        with attempt:
            target = await whereabouts.target()
            try:
                return await _read_once(transport, target, limit, file)
            except AsyncfetchError as error:
                whereabouts.failed(target, error, budget)
                raise
    raise AssertionError("unreachable: the last attempt raises")


async def _read_once(transport: Transport, target: Target, limit: int, file: str) -> bytes:
    data = bytearray()
    async with open_followed(transport, target, target.headers, file) as body:
        check_status(body, target, file)
        if body.encoded:
            raise ProtocolError("the body is compressed although that was declined", url=body.url)
        while len(data) <= limit and await body.pull(
            min(limit + 1 - len(data), MiB), scratch, data.extend, in_memory=True
        ):
            pass
    return bytes(data)


class _InMemory(Intake):
    in_memory = True

    def __init__(
        self,
        target: Target,
        span: Span,
        on_answer: Callable[[Body, Target], None],
        renew: Callable[[], Awaitable[Target]] | None,
    ) -> None:
        self.data = bytearray()
        self._target = target
        self._whole = span
        self._on_answer = on_answer
        self._renew = renew

    @property
    def span(self) -> Span:
        return Span(self._whole.start + len(self.data), self._whole.stop)

    async def target(self, refused: Target | None) -> Target:
        if refused is not None and self._renew is not None:
            self._target = await self._renew()
        return self._target

    def place(self, nbytes: int) -> memoryview:
        return scratch(min(nbytes, MiB))

    def accept(self, view: memoryview) -> None:
        self.data += view

    def answered(self, body: Body, target: Target, at: int) -> None:  # noqa: ARG002
        self._on_answer(body, target)
