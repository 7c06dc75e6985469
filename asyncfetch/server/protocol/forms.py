"""What a request carries in its body."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from ...spans import MiB
from ...tasks import off_loop
from .answers import failure
from .wire import parse_paths

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["MAX_FORM", "MOST_PATHS", "paths_of"]

MAX_FORM = 8 * MiB
MOST_PATHS = 10_000
PATIENCE = 60.0  # seconds for the body to come


_CLOSE = {"Connection": "close"}  # the rest of the body is not waited for


async def paths_of(request: Request) -> tuple[list[str], bool] | Response:
    """The paths that a form or a JSON object names, and whether to expand what is said of them; or a refusal."""
    body = bytearray()
    with anyio.move_on_after(PATIENCE) as waiting:
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_FORM:
                return failure(413, "PayloadTooLarge", f"More than {MAX_FORM} bytes of paths.", _CLOSE)
    if waiting.cancelled_caught:
        return failure(408, "RequestTimeout", f"The body did not come within {PATIENCE:g} s.", _CLOSE)
    content_type = request.headers.get("content-type", "")
    try:
        paths, expand = await off_loop(lambda: parse_paths(bytes(body), content_type, MOST_PATHS), slow=True)
    except ValueError:
        return failure(
            400, "BadRequest", f"The body must be a form, or a JSON object, with up to {MOST_PATHS:,} paths."
        )
    return paths, expand
