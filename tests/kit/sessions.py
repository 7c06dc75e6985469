"""One call's session, opened as a client opens it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asyncfetch.api.options import Access
from asyncfetch.api.session import Environment, Session, begin
from asyncfetch.network.transport import Transport
from asyncfetch.tasks import plain_errors


@asynccontextmanager
async def open_session(source: str, **options: Any) -> AsyncIterator[Session]:
    """A session with these options, of a client or of a call. Errors in the block come out plain."""
    storage = options.pop("storage", "disk")
    access = {name: options.pop(name) for name in list(options) if name in Access.__annotations__}
    environment = Environment.read(access)  # type: ignore[arg-type]
    with plain_errors():
        async with Transport(environment.policy, client=access.get("client")) as transport:
            yield await begin(environment, transport, source, options, storage)  # type: ignore[arg-type]
