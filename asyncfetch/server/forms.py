"""What a request carries in its body."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spans import MiB
from .answers import failure
from .wire import parse_paths

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["MAX_FORM", "paths_of"]

MAX_FORM = 8 * MiB


async def paths_of(request: Request) -> tuple[list[str], bool] | Response:
    """The paths that a form or a JSON object names, and whether to expand what is said of them; or a refusal."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_FORM:
            return failure(413, "PayloadTooLarge", f"More than {MAX_FORM} bytes of paths.")
    try:
        return parse_paths(bytes(body), request.headers.get("content-type", ""))
    except ValueError:
        return failure(400, "BadRequest", "The body must be a form, or a JSON object, with paths.")
