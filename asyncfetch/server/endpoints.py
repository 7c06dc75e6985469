"""The Hub's endpoints over a directory of repositories, as an ASGI application.

Of a model; of a dataset likewise, with `datasets/` before the id and `/api/datasets` for `/api/models`:

    HEAD, GET  /{id}/resolve/{revision}/{path}                 a file, whole or one range of it
    HEAD, GET  /{id}/raw/{revision}/{path}                     the same; of an LFS file its pointer, as git has it
    HEAD, GET  /api/models/{id}[/revision/{revision}]          commit and files (?blobs=true, ?expand=...)
    HEAD, GET  /api/models/{id}/tree/{revision}[/{folder}]     a listing, in pages (?recursive=true, ?expand=true)
    POST       /api/models/{id}/paths-info/{revision}          the same for given paths (form or JSON)
    HEAD, GET  /api/models/{id}/refs                           branches and their commits
    HEAD, GET  /api/models/{id}/commits/{revision}             the one commit that is here
    HEAD, GET  /api/models/{id}/auth-check                     whether the caller may see it
    HEAD, GET  /api/models                                     what is served, in pages (?search=, ?author=, ?limit=)
    HEAD, GET  /{id}                                           its files, for people

Of no repository:

    HEAD, GET  /                                               what is served, for people
    HEAD, GET  /api/whoami-v2                                  whether a token is right
    HEAD, GET  /cdn/{sha256}?...                               the bytes behind a redirect, by a signed URL
    HEAD, GET  /healthz, /readyz                               whether it lives, and can serve (health.py)
    HEAD, GET  /metrics                                        what it has done, for Prometheus (metrics.py)

The revisions are told in revisions.py, and where the repositories lie in the directory in layout.py. There is no Xet
and no Content-Encoding.
"""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict
from urllib.parse import urlsplit

import anyio

from ..errors import SourceError
from ..tasks import off_loop
from .catalog import Catalog
from .signing import Signer

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route
except ImportError as missing:
    raise SourceError(
        f"Serving needs starlette and uvicorn: {missing}.",
        hint="Run: pip install 'asyncfetch[serve]'",
    ) from missing

from .answers import failure, not_allowed
from .audit import Audit
from .beside import Beside
from .counts import Counts
from .gate import Gate
from .hub import METHODS, Hub
from .observing import Observing
from .operation import Operation
from .pull_through import PullThrough

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["ServerOptions", "create_app"]


class ServerOptions(TypedDict, total=False):
    """What `create_app`, `Server` and `serve` take beside the directory; told at `create_app`."""

    redirect: str | bool | None
    token: str | None
    gated: frozenset[str]
    secret: bytes | None
    lifetime: float
    state_dir: str | os.PathLike[str] | None
    follow_links: bool
    ahead: bool
    public_url: str | None
    upstream: str | None
    own: str | os.PathLike[str] | None
    audit: str | None


def create_app(
    root: str | os.PathLike[str],
    *,
    redirect: str | bool | None = None,
    token: str | None = None,
    gated: frozenset[str] = frozenset(),
    secret: bytes | None = None,
    lifetime: float = 3600.0,
    state_dir: str | os.PathLike[str] | None = None,
    follow_links: bool = False,
    ahead: bool = False,
    public_url: str | None = None,
    upstream: str | None = None,
    own: str | os.PathLike[str] | None = None,
    audit: str | None = None,
) -> Starlette:
    """The ASGI application that serves the repositories under `root`.

    Its lifespan has to be run: it hashes files, or fetches them, in the background. `app.state.stop` may be called
    from any thread when nobody is answered any more.

    `redirect`: answer for LFS files with a 302 to a signed URL, on this server (True) or on another
    one (its origin, "http://host:port"), which serves the same directory with the same `secret`. Such
    a URL is good for `lifetime` seconds, needs no token and, as with S3, refuses one. huggingface_hub
    takes a redirect within one origin for a renamed model, so it needs another server, or another port.
    `token`: refuse requests without `Authorization: Bearer <token>`. `gated`: ids that are refused
    without that token as gated, not as missing; without `token=`, to everyone.
    `state_dir`: a folder that keeps the hashes of files over restarts. `ahead`: hash all files from the beginning, and
    not only those of what is asked for. `follow_links`: serve what links lead to, also outside of `root`.
    `public_url`: where clients find this server, for links in answers, if it is behind a proxy that changes that.
    `upstream`: the URL of another Hub. Then `root` is a hub cache, made if there is none: what clients ask for is
    fetched from there once, verified, kept in it, and handed out while it arrives. The token that a client sends is
    sent there, which decides what it may see. Of the other options `state_dir` and `public_url` go with it.
    `own`: a folder of repositories beside that Hub, which are served instead of those of the same names there;
    `follow_links` and `ahead` are about it. `audit`: a file that gets a line of JSON for each request, "-" for stdout.

    Raises SourceError when `root` is not a directory that can be read, `secret` is empty, `public_url` or `upstream`
    is no URL, or options do not go together; StorageError when the cache cannot be made.
    """
    if upstream is not None:
        if redirect or token is not None or gated or secret is not None or (own is None and (follow_links or ahead)):
            raise SourceError(
                "With upstream=, that Hub says who may see what: only state_dir=, public_url= and own= go with it."
            )
        state = None if state_dir is None else Path(state_dir)
        passing = PullThrough(upstream, Path(root), state_dir=state, public_url=_checked(public_url))
        if own is None:
            return _application(passing, passing, lambda: None, Operation(passing.counts, passing.checks), audit)
    elif own is not None:
        raise SourceError("own= is a folder beside another Hub: it goes with upstream=.")
    if upstream is not None and state_dir is None:
        state_dir = Path(root) / ".locks" / "asyncfetch"
    catalog = Catalog(own or root, state_dir=state_dir, follow_links=follow_links, ahead=ahead)
    signer = Signer(secrets.token_bytes(32) if secret is None else secret, lifetime)
    hub = Hub(catalog, Gate(token, gated, catalog), signer, redirect, _checked(public_url))
    if upstream is not None:
        both = Beside(hub, passing)
        return _application(both, both, catalog.close, Operation(passing.counts, both.checks), audit)
    operation = Operation(Counts(), hub.checks, lambda request: hub.gate.refusal(request))
    return _application(hub, catalog, catalog.close, operation, audit)


class _Endpoints(Protocol):
    async def respond(self, request: Request) -> Response: ...


def _application(
    endpoints: _Endpoints,
    running: AbstractAsyncContextManager[object],
    stop: Callable[[], None],
    operation: Operation,
    audit: str | None,
) -> Starlette:
    """An application that answers while `running` is entered."""
    log = None if audit is None else Audit(audit)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if log is not None:
            log.begin()
        try:
            async with running:
                yield
        finally:
            if log is not None:
                with anyio.CancelScope(shield=True):
                    await off_loop(log.end)

    app = Starlette(
        routes=[*operation.routes(), Route("/{path:path}", endpoints.respond, methods=list(METHODS))],
        middleware=[Middleware(Observing, counts=operation.counts, audit=log)],
        lifespan=lifespan,
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )
    app.state.stop, app.state.counts = stop, operation.counts
    return app


def _checked(public_url: str | None) -> str | None:
    if public_url is None:
        return None
    try:
        parts = urlsplit(public_url)
        usable = parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment)
    except ValueError:
        usable = False
    if not usable or "@" in public_url:
        raise SourceError(
            "The public URL of the server is not usable.",
            hint="Write it as https://models.example.org, with a path or without.",
        )
    return public_url.rstrip("/")


async def _refused(request: Request, error: Exception) -> Response:
    """A method that HTTP does not have, or a path with a line feed: both do not reach an endpoint."""
    if isinstance(error, HTTPException) and error.status_code != 405:
        return failure(error.status_code, "NotFound", "There is nothing here.")
    return not_allowed(request.method, "GET, HEAD, POST")


async def _failed(_: Request, error: Exception) -> Response:
    return failure(500, "InternalError", f"The server failed: {type(error).__name__}.")
