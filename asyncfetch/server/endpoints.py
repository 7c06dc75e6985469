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
from typing import TYPE_CHECKING, Any, Protocol, TypedDict
from urllib.parse import urlsplit

import anyio

from ..errors import SourceError
from ..tasks import off_loop
from .folders.catalog import Catalog
from .protocol.signing import Signer

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

from .access import Admin, Door, Rules, holds, is_for_others
from .beside import Beside
from .counts import Counts
from .keeping.room import Limits
from .operation.audit import Audit
from .operation.observing import Observing
from .operation.operation import Operation
from .protocol.answers import failure, not_allowed
from .pull_through import PullThrough
from .served.gate import Gate
from .served.hub import METHODS, Hub

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Unpack

    from starlette.requests import Request
    from starlette.responses import Response

    from .operation.operation import Checks

__all__ = ["ServerOptions", "create_app"]


class FolderOptions(TypedDict, total=False):
    """What goes with a folder alone; told at `create_app`."""

    redirect: str | bool | None
    gated: frozenset[str]
    secret: bytes | None
    lifetime: float


class UpstreamOptions(TypedDict, total=False):
    """What goes with another Hub alone; told at `create_app`."""

    upstream: str | None
    own: str | os.PathLike[str] | None
    allow: Sequence[str]
    deny: Sequence[str]
    upstream_token: str | None
    admin_token: str | None
    max_size: int | None
    min_free: int | None
    upstream_bandwidth: float | None
    strict: bool


class ServerOptions(FolderOptions, UpstreamOptions, total=False):
    """What `create_app`, `Server` and `serve` take beside the directory; told at `create_app`."""

    token: str | None
    state_dir: str | os.PathLike[str] | None
    follow_links: bool
    ahead: bool
    public_url: str | None
    audit: str | None


def create_app(root: str | os.PathLike[str], *, local: bool = False, **options: Unpack[ServerOptions]) -> Starlette:
    """The ASGI application that serves the repositories under `root`.

    Its lifespan has to be run: it hashes files, or fetches them, in the background. `app.state.stop` may be called
    from any thread when nobody is answered any more, and before that `app.state.leave` in the event loop.

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
    sent there, which decides what it may see. Of the options above `state_dir`, `public_url` and `token` go with it: a
    token that clients are asked for is not sent there, and then, or with `upstream_token`, which is sent there for all
    of them, they are one for that Hub. An `upstream_token` needs `allow`.
    `own`: a folder of repositories beside that Hub, which are served instead of those of the same names there;
    `follow_links` and `ahead` are about it. `audit`: a file that gets a line of JSON for each request, "-" for stdout.

    And with `upstream` alone:
    `allow`, `deny`: patterns of repositories that may be asked for, and that may not (`org/*`, `datasets/org/name`);
    what is in both may not. `admin_token`: who sends it may change what the server does; without one nobody, or where
    the server listens on loopback alone (`local`), and `public_url` names no other machine, who asks from there as the
    same user and through no proxy. `max_size`: bytes of the cache, beyond which goes what was not read for the longest
    time; `min_free`: bytes of the disk that stay free, by default a hundredth of it and 1 GiB at the most. Where
    neither is given nothing goes. What has no room is handed on without being kept. `upstream_bandwidth`: bytes a
    second from that Hub. `strict`: send no byte of a file before its hash is right.

    Raises SourceError when `root` is not a directory that can be read, `secret` is empty, `public_url` or `upstream`
    is no URL, or options do not go together; StorageError when the cache cannot be made.
    """
    given: dict[str, Any] = dict(options)
    upstream, own = given.pop("upstream", None), given.pop("own", None)
    alone, other = ("a folder", FolderOptions) if upstream is not None else ("upstream=", UpstreamOptions)
    if upstream is None and own is not None:
        raise SourceError("own= is a folder beside another Hub: it goes with upstream=.")
    of_own = {name: given.pop(name) for name in ("follow_links", "ahead") if upstream is not None and name in given}
    if own is None and any(of_own.values()):
        raise SourceError("follow_links= and ahead= are about a folder, and there is none: see own=.")
    if wrong := [f"{name}=" for name in other.__annotations__ if given.get(name)]:
        raise SourceError(f"{', '.join(wrong)}: such options go with {alone} alone.")
    ours = {name: value for name, value in given.items() if name not in other.__annotations__}
    audit = ours.pop("audit", None)
    if upstream is None:
        hub = _folder_hub(root, **ours)
        operation = _operation(Counts(), hub.checks, hub.gate.token)
        return _application(hub, hub.catalog, hub.catalog.close, operation, audit)
    passing, token = _pull_through(Path(root), upstream, local, **ours), ours.get("token")
    if own is None:
        operation = _operation(passing.counts, passing.checks, token)
        return _application(passing, passing, lambda: None, operation, audit, passing.leave)
    kept_in = ours.get("state_dir") or Path(root) / ".locks" / "asyncfetch"
    hub = _folder_hub(own, token=token, state_dir=kept_in, public_url=ours.get("public_url"), **of_own)
    both = Beside(hub, passing)
    operation = _operation(passing.counts, both.checks, token)
    return _application(both, both, hub.catalog.close, operation, audit, passing.leave)


def _folder_hub(
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
) -> Hub:
    catalog = Catalog(root, state_dir=state_dir, follow_links=follow_links, ahead=ahead)
    signer = Signer(secrets.token_bytes(32) if secret is None else secret, lifetime)
    return Hub(catalog, Gate(token, gated, catalog), signer, redirect, _checked(public_url))


def _pull_through(
    root: Path,
    upstream: str,
    local: bool,
    *,
    token: str | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    public_url: str | None = None,
    allow: Sequence[str] = (),
    deny: Sequence[str] = (),
    upstream_token: str | None = None,
    admin_token: str | None = None,
    max_size: int | None = None,
    min_free: int | None = None,
    upstream_bandwidth: float | None = None,
    strict: bool = False,
) -> PullThrough:
    public_url = _checked(public_url)
    return PullThrough(
        upstream,
        root,
        state_dir=None if state_dir is None else Path(state_dir),
        public_url=public_url,
        door=Door(Rules.checked(allow, deny), token, upstream_token),
        admin=Admin(admin_token, local and not is_for_others(public_url)),
        limits=Limits.checked(max_size, min_free),
        bandwidth=upstream_bandwidth,
        strict=strict,
    )


def _operation(counts: Counts, checks: Checks, token: str | None) -> Operation:
    """What operators ask. Where clients are asked for a token, who reads the metrics is too."""

    def refusal(request: Request) -> Response | None:
        if token is None or holds(request, token):
            return None
        return failure(401, "Unauthorized", "This server asks for a token.")

    return Operation(counts, checks, refusal)


class _Endpoints(Protocol):
    async def respond(self, request: Request) -> Response: ...


def _application(
    endpoints: _Endpoints,
    running: AbstractAsyncContextManager[object],
    stop: Callable[[], None],
    operation: Operation,
    audit: str | None,
    leave: Callable[[], None] = lambda: None,
) -> Starlette:
    """An application that answers while `running` is entered. `leave` lets those go who would stay for ever."""
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
    app.state.stop, app.state.leave, app.state.counts = stop, leave, operation.counts
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
