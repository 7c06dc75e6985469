"""The Hub's endpoints over a directory of models, as an ASGI application.

    HEAD, GET  /{id}/resolve/{revision}/{path}                 a file, whole or one range of it
    HEAD, GET  /api/models/{id}[/revision/{revision}]          commit and files (?blobs=true: sizes and hashes)
    HEAD, GET  /api/models/{id}/tree/{revision}[/{folder}]     a listing, in pages (?recursive=true, ?expand=true)
    POST       /api/models/{id}/paths-info/{revision}          the same for given paths (form or JSON)
    HEAD, GET  /api/whoami-v2                                  whether a token is right
    HEAD, GET  /cdn/{sha256}?...                               the bytes behind a redirect, by a signed URL

The revisions are `main` and the commit, which follows from the files. There is no Xet and no
Content-Encoding. Where the models lie in the directory is told in catalog.py.
"""

from __future__ import annotations

import os
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hmac import compare_digest
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import quote

from anyio import to_thread

from ..errors import ChangedError, SourceError
from ..spans import MiB
from .catalog import Catalog
from .wire import (
    Refused,
    Signer,
    model_document,
    parse_paths,
    parse_range,
    parse_resource,
    path_document,
    tree_page,
    truthy,
)

try:
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
except ImportError as missing:
    raise SourceError(
        f"Serving needs starlette and uvicorn: {missing}.",
        hint="Run: pip install 'asyncfetch[serve]'",
    ) from missing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from .catalog import File, Repository
    from .wire import Resource

__all__ = ["ServerOptions", "create_app", "raw_path"]

CHUNK = MiB  # of a body; starlette's own 64 KiB cost five sixths of the throughput
MAX_FORM = 8 * MiB


class ServerOptions(TypedDict, total=False):
    """What `create_app`, `Server` and `serve` take beside the directory; told at `create_app`."""

    redirect: str | bool | None
    token: str | None
    gated: frozenset[str]
    secret: bytes | None
    lifetime: float


def _printable(text: str) -> str:
    """`text` as it may stand in a header."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)


def _failure(status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None) -> Response:
    message = _printable(message)
    known = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
    return JSONResponse({"error": message}, status, known)


def _entry_not_found(path: str, repository: Repository) -> Response:
    message = f"{path!r} is not in {repository.name} at {repository.commit}."
    return _failure(404, "EntryNotFound", message, {"X-Repo-Commit": repository.commit})


def _invalid_credentials() -> Response:
    return _failure(401, None, "Invalid credentials in Authorization header")  # the Hub's words: clients compare them


def _storage_failure(refused: Refused) -> Response:
    """An error as S3 words it: XML, and none of the Hub's headers."""
    error = f"<Error><Code>{refused.code}</Code><Message>{refused.message}</Message></Error>"
    return Response(f'<?xml version="1.0" encoding="UTF-8"?>\n{error}', refused.status, media_type="application/xml")


def _origin(request: Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc}"


def raw_path(scope: Scope) -> str:
    """The path of a request, still percent-encoded and without the query."""
    raw: bytes | None = scope.get("raw_path")  # optional in ASGI
    return raw.decode("latin-1") if raw else quote(scope["path"])


class FileBody(StreamingResponse):
    """Bytes `span` of an open file, in chunks that a worker thread reads. Closes the descriptor."""

    def __init__(self, descriptor: int, span: range, status: int, headers: Mapping[str, str]) -> None:
        super().__init__((), status, headers, "application/octet-stream")
        self.descriptor = descriptor
        self.span = span

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            os.close(self.descriptor)

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        position, end = self.span.start, self.span.stop
        while position < end:
            chunk = await to_thread.run_sync(os.pread, self.descriptor, min(CHUNK, end - position), position)
            if not chunk:  # it was cut short meanwhile: an unfinished response closes the connection
                return
            position += len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": position < end})


async def _file_response(request: Request, catalog: Catalog, file: File, etag: str, extra: dict[str, str]) -> Response:
    """The file, or the range of it that the request asks for (RFC 9110, 13.1.5 and 14)."""
    headers = {"ETag": etag, "Accept-Ranges": "bytes", **extra}
    span: range | None = None
    if request.method == "GET" and request.headers.get("if-range", etag) == etag:
        span = parse_range(request.headers.get("range"), file.size)
    if span is None:
        status, span = 200, range(file.size)
    elif span:
        status = 206
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{file.size}"
    else:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{file.size}"})
    headers["Content-Length"] = str(len(span))
    if request.method == "HEAD" or not span:
        return Response(status_code=status, headers=headers, media_type="application/octet-stream")
    return FileBody(await catalog.open(file), span, status, headers)


@dataclass(frozen=True)
class _Gate:
    """Who may see what: without the token, gated models are refused, and where there is one, all others too."""

    token: str | None
    gated: frozenset[str]
    catalog: Catalog

    def holds_token(self, request: Request) -> bool:
        sent = request.headers.get("authorization", "").encode("latin-1")
        return self.token is not None and compare_digest(sent, f"Bearer {self.token}".encode())

    def refusal(self, request: Request, name: str, folder: Path | None) -> Response | None:
        """The answer to who may not see `name`, which is at `folder`; None for who may. Blocks."""
        if self.holds_token(request):
            return None
        if self.token is not None and "authorization" in request.headers:
            return _invalid_credentials()
        if self._is_gated(name, folder):
            return _failure(403, "GatedRepo", f"Access to model {name} is restricted. A token with access is needed.")
        return None if self.token is None else _failure(401, "RepoNotFound", "Repository not found")

    def _is_gated(self, name: str, folder: Path | None) -> bool:
        """Whether `name` is gated: as it is, as another name of the same folder, or of one inside or around it."""
        if name in self.gated:
            return True
        gated = [found for found in map(self.catalog.locate, self.gated) if found]
        return folder is not None and any(folder.is_relative_to(at) or at.is_relative_to(folder) for at in gated)


class _Hub:
    """The endpoints over one directory."""

    def __init__(self, catalog: Catalog, gate: _Gate, signer: Signer, redirect: str | bool | None) -> None:
        self.catalog = catalog
        self.gate = gate
        self.signer = signer
        self.redirect = redirect

    async def respond(self, request: Request) -> Response:
        target = parse_resource(raw_path(request.scope))
        if target is None:
            return _failure(404, None, "There is nothing here.")
        if (request.method == "POST") != (target.kind == "paths-info"):
            return _failure(405, None, f"{request.method} is not allowed here.")
        try:
            if target.kind == "whoami":
                return self._whoami(request)
            if target.kind == "cdn":
                return await self._cdn(request, target.path)
            return await self._model(request, target)
        except ChangedError as error:
            return _failure(503, None, error.message, {"Retry-After": "1"})

    async def _model(self, request: Request, target: Resource) -> Response:
        folder = await to_thread.run_sync(self.catalog.locate, target.name)
        if refusal := await to_thread.run_sync(self.gate.refusal, request, target.name, folder):
            return refusal
        if folder is None:
            return _failure(401, "RepoNotFound", "Repository not found")
        repository = await self.catalog.repository(target.name, folder)
        if target.revision not in ("main", repository.commit):
            return _failure(404, "RevisionNotFound", f"Invalid rev id: {target.revision}")
        if target.kind == "resolve":
            return await self._resolve(request, repository, target.path)
        if target.kind == "tree":
            return self._tree(request, repository, target.path)
        if target.kind == "paths-info":
            return await self._paths_info(request, repository)
        blobs, gated = truthy(request.query_params, "blobs"), target.name in self.gate.gated
        return JSONResponse(model_document(repository, private=self.gate.token is not None, gated=gated, blobs=blobs))

    async def _resolve(self, request: Request, repository: Repository, path: str) -> Response:
        file = repository.files.get(path)
        if file is None:
            return _entry_not_found(path, repository)
        etag = f'"{file.etag}"'
        headers = {"X-Repo-Commit": repository.commit}
        if file.lfs:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(file.size)}
        if not file.lfs or not self.redirect:
            return await _file_response(request, self.catalog, file, etag, headers)
        base = _origin(request) if self.redirect is True else self.redirect.rstrip("/")
        query = self.signer.query(file.etag, repository.name, path)
        headers |= {"Accept-Ranges": "bytes", "Location": f"{base}/cdn/{file.etag}?{query}"}
        return Response("Found. The bytes are elsewhere.", 302, headers, "text/plain")

    async def _cdn(self, request: Request, digest: str) -> Response:
        if "authorization" in request.headers:
            return _storage_failure(Refused(400, "InvalidArgument", "Only one auth mechanism allowed"))
        if refused := self.signer.refusal(digest, request.query_params):
            return _storage_failure(refused)
        name, path = request.query_params["repository"], request.query_params["file"]
        folder = await to_thread.run_sync(self.catalog.locate, name)
        repository = await self.catalog.repository(name, folder) if folder else None
        file = repository.files.get(path) if repository else None
        if file is None or file.etag != digest:
            return _storage_failure(Refused(404, "NoSuchKey", "The specified key does not exist."))
        etag = f'"{digest[:32]}"'  # as in S3, another one than the Hub's
        return await _file_response(request, self.catalog, file, etag, {})

    def _tree(self, request: Request, repository: Repository, folder: str) -> Response:
        if folder and folder not in repository.folders:
            return _entry_not_found(folder, repository)
        try:
            paths, following = tree_page(repository, folder, request.query_params)
        except ValueError:
            return _failure(400, None, "The cursor or the limit is not valid.")
        headers = {"X-Repo-Commit": repository.commit}
        if following:
            headers["Link"] = f'<{_origin(request)}{raw_path(request.scope)}?{following}>; rel="next"'
        expand = truthy(request.query_params, "expand")
        return JSONResponse([path_document(repository, path, expand=expand) for path in paths], headers=headers)

    async def _paths_info(self, request: Request, repository: Repository) -> Response:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_FORM:
                return _failure(413, None, f"More than {MAX_FORM} bytes of paths.")
        try:
            asked, expand = parse_paths(bytes(body), request.headers.get("content-type", ""))
        except ValueError:
            return _failure(400, None, "The body must be a form, or a JSON object, with paths.")
        paths = dict.fromkeys(path.strip("/") for path in asked)
        found = [path for path in paths if path in repository.files or path in repository.folders]
        return JSONResponse([path_document(repository, path, expand=expand) for path in found])

    def _whoami(self, request: Request) -> Response:
        if "authorization" not in request.headers or (self.gate.token and not self.gate.holds_token(request)):
            return _invalid_credentials()
        return JSONResponse({"type": "user", "id": "local", "name": "local", "fullname": "local", "orgs": []})


def create_app(
    root: str | os.PathLike[str],
    *,
    redirect: str | bool | None = None,
    token: str | None = None,
    gated: frozenset[str] = frozenset(),
    secret: bytes | None = None,
    lifetime: float = 3600.0,
) -> Starlette:
    """The ASGI application that serves the models under `root`. `app.state.catalog` is its Catalog.

    `redirect`: answer for LFS files with a 302 to a signed URL, on this server (True) or on another
    one (its origin, "http://host:port"), which serves the same directory with the same `secret`. Such
    a URL is good for `lifetime` seconds, needs no token and, as with S3, refuses one. huggingface_hub
    takes a redirect within one origin for a renamed model, so it needs another server, or another port.
    `token`: refuse requests without `Authorization: Bearer <token>`. `gated`: ids that are refused
    without that token as gated, not as missing; without `token=`, to everyone.

    Raises SourceError when `root` is not a directory that can be read, or `secret` is empty.
    """
    catalog = Catalog(root)
    signer = Signer(secrets.token_bytes(32) if secret is None else secret, lifetime)
    hub = _Hub(catalog, _Gate(token, gated, catalog), signer, redirect)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            catalog.close()

    app = Starlette(routes=[Route("/{path:path}", hub.respond, methods=["GET", "POST"])], lifespan=lifespan)
    app.state.catalog = catalog
    return app
