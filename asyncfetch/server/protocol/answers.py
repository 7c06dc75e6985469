"""Answers in JSON: what was asked for, and what is refused. Each refusal has a status, a code and a sentence.

The codes of the Hub are RepoNotFound, RevisionNotFound, EntryNotFound and GatedRepo, by which clients know what is
missing; the others are for people and logs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from ...errors import NetworkError, RateLimitedError, StorageError
from ..text import header_text, size_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...errors import AsyncfetchError
    from ..folders.hashing import Unready
    from .signing import Refused

__all__ = [
    "entry_not_found",
    "failure",
    "invalid_credentials",
    "not_allowed",
    "repository_not_found",
    "revision_not_found",
    "source_failure",
    "storage_failure",
    "unready",
    "wrong_bytes",
]


def failure(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """A refusal as the Hub words it."""
    message = header_text(message)
    known = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
    return JSONResponse({"error": message}, status, known)


def repository_not_found() -> Response:
    """Also what who may not see a repository is told, as by the Hub: 401, and nothing about what there is."""
    return failure(401, "RepoNotFound", "Repository not found")


def revision_not_found(revision: str) -> Response:
    return failure(404, "RevisionNotFound", f"Invalid rev id: {revision}")


def entry_not_found(path: str, name: str, commit: str, *, known: bool) -> Response:
    """Clients remember for a commit what it lacks, so it is named only where that is known."""
    message = f"{path!r} is not in {name} at {commit}."
    return failure(404, "EntryNotFound", message, {"X-Repo-Commit": commit} if known else None)


def invalid_credentials() -> Response:
    message = "Invalid credentials in Authorization header"  # the Hub's words: clients compare them
    return failure(401, "InvalidCredentials", message)


def not_allowed(method: str, allowed: str) -> Response:
    message = f"{method[:20]} is not allowed here: nothing can be written to this server."
    return failure(405, "MethodNotAllowed", message, {"Allow": allowed})


def unready(found: Unready) -> Response:
    """The files are still being hashed."""
    seconds = min(max(int(found.seconds + 1), 1), 3600)
    so_far = f"{size_text(found.done)} of {size_text(found.total)}"
    what = f"hashed, which is done once: {so_far}" if found.total else "looked at"
    message = f"The files are being {what}. Ask again in {seconds} s."
    return failure(503, "Hashing", message, {"Retry-After": str(seconds)})


def source_failure(error: AsyncfetchError) -> Response:
    """Why a source gives no answer, without what its addresses are."""
    if isinstance(error, RateLimitedError):
        after = str(int(error.retry_after or 30) + 1)
        return failure(429, "RateLimited", "The source limits the rate of requests.", {"Retry-After": after})
    if isinstance(error, StorageError):
        return failure(507, "Storage", "The server has no room for this file, or cannot write it.")
    what = "does not answer" if isinstance(error, NetworkError) else "gives no usable answer"
    return failure(502, "Source", f"The source {what} ({error.code}).", {"Retry-After": "5"})


def wrong_bytes(path: str, seconds: float) -> Response:
    """A source sends a file with another hash than it names, and is asked again after `seconds`."""
    message = f"The source sends wrong bytes for {path!r}: their hash is not the one that it names."
    return failure(502, "WrongBytes", message, {"Retry-After": str(int(seconds) + 1)})


def storage_failure(refused: Refused) -> Response:
    """An error as S3 words it: XML, and none of the Hub's headers."""
    error = f"<Error><Code>{refused.code}</Code><Message>{refused.message}</Message></Error>"
    return Response(f'<?xml version="1.0" encoding="UTF-8"?>\n{error}', refused.status, media_type="application/xml")
