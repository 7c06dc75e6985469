"""What those ask who operate the server: /healthz, /readyz (health.py) and /metrics (metrics.py).

They come before repositories of these names, of which only the page for people is hidden so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from starlette.routing import Route

from ...tasks import off_loop
from .health import Check, alive, readiness
from .metrics import Metrics

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from ..counts import Counts

__all__ = ["Checks", "Operation"]

Checks = Callable[[], Awaitable[Mapping[str, Check]]]


class Operation:
    """The endpoints. `checks` looks whether clients can be served, `refusal` says who may not see the metrics."""

    def __init__(
        self,
        counts: Counts,
        checks: Checks,
        refusal: Callable[[Request], Response | None] = lambda _: None,
    ) -> None:
        self.counts, self._checks, self._refusal = counts, checks, refusal
        self._metrics = Metrics(counts)

    def routes(self) -> list[Route]:
        return [
            Route("/healthz", self._alive),
            Route("/readyz", self._ready),
            Route("/metrics", self._measured),
        ]

    async def _alive(self, _: Request) -> Response:
        return alive()

    async def _ready(self, _: Request) -> Response:
        return readiness(await self._checks())

    async def _measured(self, request: Request) -> Response:
        if refused := self._refusal(request):
            return refused
        accept = request.headers.get("accept", "")
        return await off_loop(lambda: self._metrics.response(accept))
