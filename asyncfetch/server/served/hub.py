"""What each endpoint answers. Which there are is told in endpoints.py."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, TypeVar

from starlette.responses import HTMLResponse, JSONResponse, Response

from ...errors import ChangedError
from ...tasks import off_loop
from ..folders.hashing import Unready
from ..folders.layout import KINDS, kind_and_name, qualified
from ..folders.repository import Repository, lfs_pointer
from ..folders.revisions import has_file, refs_of
from ..folders.weights import parameters_of
from ..operation.health import readable
from ..protocol.access_log import raw_path
from ..protocol.answers import (
    entry_not_found,
    failure,
    invalid_credentials,
    not_allowed,
    repository_not_found,
    revision_not_found,
    storage_failure,
    unready,
)
from ..protocol.body import file_response, text_response
from ..protocol.forms import paths_of
from ..protocol.signing import Refused
from ..protocol.wire import parse_resource, truthy
from .documents import (
    Told,
    commit_documents,
    list_page,
    listed_document,
    path_document,
    refs_document,
    repository_document,
    selected,
    tree_page,
)
from .page import SAFETY, home_page, repository_page

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from ..folders.catalog import Catalog
    from ..folders.layout import Place
    from ..operation.health import Check
    from ..protocol.signing import Signer
    from ..protocol.wire import Resource
    from .gate import Gate

__all__ = ["METHODS", "Hub"]

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # the last four are refused in JSON
MOST_TEXTS = 32  # answers about one repository that are kept as they were sent


class Hub:
    """The endpoints over one directory. `public_url` is where clients find them, None for where they ask."""

    def __init__(
        self, catalog: Catalog, gate: Gate, signer: Signer, redirect: str | bool | None, public_url: str | None
    ) -> None:
        self.catalog = catalog
        self.gate = gate
        self.signer = signer
        self.redirect = redirect
        self.public_url = public_url

    async def respond(self, request: Request) -> Response:
        """The answer to any request."""
        target = parse_resource(raw_path(request.scope))
        allowed = "POST" if target and target.action == "paths-info" else "GET, HEAD"
        if request.method not in ("GET", "HEAD", "POST") or (target and request.method not in allowed):
            return not_allowed(request.method, allowed)
        if target is None:
            return failure(404, "NotFound", "There is nothing here.")
        try:
            match target.action:
                case "whoami":
                    return self._whoami(request)
                case "cdn":
                    return await self._cdn(request, target.path)
                case "home" | "list":
                    return await self._listing(request, target)
                case _:
                    return await self._about_repository(request, target)
        except ChangedError as error:
            return failure(503, "Changed", error.message, {"Retry-After": "1"})

    async def checks(self) -> dict[str, Check]:
        """Whether clients can be served, and what speaks against it."""
        return {"folder": await readable(self.catalog.layout.root)}

    # -- of no repository --------------------------------------------------------------------

    def _whoami(self, request: Request) -> Response:
        if "authorization" not in request.headers or (self.gate.token and not self.gate.holds_token(request)):
            return invalid_credentials()
        return JSONResponse({"type": "user", "id": "local", "name": "local", "fullname": "local", "orgs": []})

    async def _listing(self, request: Request, target: Resource) -> Response:
        if refusal := self.gate.refusal(request):
            return refusal
        layout = self.catalog.layout
        if target.action == "home":
            names = await off_loop(lambda: {kind: layout.names(kind) for kind in KINDS})
            return HTMLResponse(home_page(self._origin(request), names), headers=SAFETY)
        found = await off_loop(lambda: layout.names(target.kind))
        try:
            page, following = list_page(found, request.query_params.multi_items())
        except ValueError:
            return failure(400, "BadRequest", "The cursor or the limit is not valid.")
        listed = [listed_document(name, self.told(target.kind, name)) for name in page]
        return JSONResponse(listed, headers=self.links(request, following))

    async def _cdn(self, request: Request, digest: str) -> Response:
        if "authorization" in request.headers:
            return storage_failure(Refused(400, "InvalidArgument", "Only one auth mechanism allowed"))
        if refused := self.signer.refusal(digest, request.query_params):
            return storage_failure(refused)
        named, _, commit = request.query_params["repository"].partition("@")
        (kind, name), path = kind_and_name(named), request.query_params["file"]
        place = await off_loop(lambda: self.catalog.locate(kind, name))
        repository = await self.catalog.repository(place, commit or "main", path) if place else None
        if isinstance(repository, Unready):
            return unready(repository)
        file = repository.files.get(path) if repository else None
        if file is None or file.etag != digest:
            return storage_failure(Refused(404, "NoSuchKey", "The specified key does not exist."))
        etag = f'"{digest[:32]}"'  # as in S3, another one than the Hub's
        return await file_response(request, self.catalog, file, etag, {})

    # -- of one ------------------------------------------------------------------------------

    async def _about_repository(self, request: Request, target: Resource) -> Response:
        if seen := self._seen(request, target):
            try:
                return await self._answer(request, target, *seen)
            except ChangedError:
                pass  # since it was looked at: look again
        looked_at = time.monotonic()
        found = await off_loop(lambda: self._find(request, target))
        if isinstance(found, Response):
            return found
        place, known = found
        if target.action == "auth-check":
            return JSONResponse({})
        if target.action == "refs" and place.cached:
            refs = await off_loop(lambda: refs_of(place))
            return JSONResponse(refs_document(refs, pull_requests=truthy(request.query_params, "include_prs")))
        repository = known or await self.catalog.repository(place, target.revision, target.path)
        if isinstance(repository, Unready):
            return unready(repository)
        if repository is None:
            return revision_not_found(target.revision)
        self.catalog.remember(place, target.name, target.revision, repository, looked_at)
        return await self._answer(request, target, place, repository)

    def _seen(self, request: Request, target: Resource) -> tuple[Place, Repository] | None:
        """A repository that was looked at a moment ago, if that tells all that is asked for."""
        seen = self.catalog.just_seen(target.kind, target.name, target.revision)
        if seen is None or self.gate.gated or self.gate.refusal(request, target.name):
            return None
        path, repository = target.path, seen[1]
        match target.action:
            case "resolve" | "raw":
                told = path in repository.files
            case "tree":
                told = not path or path in repository.folders
            case action:
                told = action == "info"
        return seen if told else None

    async def _answer(self, request: Request, target: Resource, place: Place, repository: Repository) -> Response:
        match target.action:
            case "resolve" | "raw":
                return await self._file(request, place, repository, target)
            case "tree":
                return await self._tree(request, place, repository, target.path)
            case "paths-info":
                return await self._paths_info(request, repository)
            case "info":
                return await self._info(request, target.kind, repository)
            case "page":
                return HTMLResponse(repository_page(self._origin(request), target.kind, repository), headers=SAFETY)
            case "refs":
                prs = truthy(request.query_params, "include_prs")
                return JSONResponse(refs_document({"main": repository.commit}, pull_requests=prs))
        commits = commit_documents(repository) if request.query_params.get("p", "0") == "0" else []
        return JSONResponse(commits, headers={"X-Total-Count": "1"})

    def _find(self, request: Request, target: Resource) -> Response | tuple[Place, Repository | None]:
        """Where the repository is, and it itself if there is nothing to do for it; or a refusal. Blocks."""
        place = self.catalog.locate(target.kind, target.name)
        if refusal := self.gate.refusal(request, qualified(target.kind, target.name), place):
            return refusal
        if place is None:
            return (
                failure(404, "NotFound", "There is nothing here.")
                if target.action == "page"
                else repository_not_found()
            )
        return place, self.catalog.peek(place, target.revision, target.path)

    async def _file(self, request: Request, place: Place, repository: Repository, target: Resource) -> Response:
        file = repository.files.get(target.path)
        if file is None:
            return await self._absent(place, repository, target.path)
        if self.catalog.is_damaged(file):
            return failure(500, "Damaged", f"{file.path!r} is damaged on the disk of this server: it has another hash.")
        etag, headers = f'"{file.etag}"', {"X-Repo-Commit": repository.commit}
        if target.action == "raw" and file.lfs:
            pointer = lfs_pointer(file.etag, file.size)
            return text_response(request, pointer, file.path, f'"{file.oid}"', headers)
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(file.size)}
        if not file.lfs or not self.redirect:
            return await file_response(request, self.catalog, file, etag, headers)
        base = self._origin(request) if self.redirect is True else self.redirect.rstrip("/")
        named = qualified(place.kind, repository.name) + (f"@{repository.commit}" if place.cached else "")
        query = self.signer.query(file.etag, named, file.path)
        headers |= {"Accept-Ranges": "bytes", "Location": f"{base}/cdn/{file.etag}?{query}"}
        return Response("Found. The bytes are elsewhere.", 302, headers, "text/plain")

    async def _absent(self, place: Place, repository: Repository, path: str) -> Response:
        there = await off_loop(lambda: has_file(place, repository.commit, path)) if place.cached else False
        if there:
            return failure(
                404, "NotDownloaded", f"{path!r} is in {repository.name}, but not in the cache that is served."
            )
        return entry_not_found(path, repository.name, repository.commit, known=there is False)

    async def _tree(self, request: Request, place: Place, repository: Repository, folder: str) -> Response:
        if folder and folder not in repository.folders:
            return await self._absent(place, repository, folder)
        expand, query = truthy(request.query_params, "expand"), request.query_params.multi_items()

        def listing() -> tuple[bytes, str | None]:
            paths, following = tree_page(repository, folder, query)
            return _text([path_document(repository, path, expand=expand) for path in paths]), following

        try:
            text, following = _once(repository, ("tree", folder, *query), listing)
        except ValueError:
            return failure(400, "BadRequest", "The cursor or the limit is not valid.")
        headers = {"X-Repo-Commit": repository.commit, **self.links(request, following)}
        return Response(text, headers=headers, media_type="application/json")

    async def _paths_info(self, request: Request, repository: Repository) -> Response:
        given = await paths_of(request)
        if isinstance(given, Response):
            return given
        asked, expand = given
        paths = dict.fromkeys(path.strip("/") for path in asked)
        found = [path for path in paths if path in repository.files or path in repository.folders]
        return JSONResponse([path_document(repository, path, expand=expand) for path in found])

    async def _info(self, request: Request, kind: str, repository: Repository) -> Response:
        told = self.told(kind, repository.name)
        expand = frozenset(request.query_params.getlist("expand"))
        if not expand:
            blobs = truthy(request.query_params, "blobs")
            text = _once(repository, ("info", blobs), lambda: _text(repository_document(repository, told, blobs=blobs)))
            return Response(text, media_type="application/json")
        document = repository_document(repository, told)
        if "safetensors" in expand and (counted := await off_loop(lambda: parameters_of(repository), slow=True)):
            document["safetensors"] = counted
        return JSONResponse(selected(document, expand))

    # -- what answers have in common ---------------------------------------------------------

    def told(self, kind: str, name: str) -> Told:
        """What is said of a repository beside its files."""
        return Told(kind, self.gate.token is not None, qualified(kind, name) in self.gate.gated)

    def _origin(self, request: Request) -> str:
        return self.public_url or f"{request.url.scheme}://{request.url.netloc}"

    def links(self, request: Request, following: str | None) -> dict[str, str]:
        """The header that leads to the next page."""
        if following is None:
            return {}
        return {"Link": f'<{self._origin(request)}{raw_path(request.scope)}?{following}>; rel="next"'}


def _text(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


T = TypeVar("T")


def _once(repository: Repository, key: object, make: Callable[[], T]) -> T:
    """What is the same for as long as the repository is. The listing of a thousand files takes a while to word."""
    if key not in repository.kept:
        made = make()
        if len(repository.kept) >= MOST_TEXTS:
            repository.kept.clear()
        repository.kept[key] = made
    found: T = repository.kept[key]
    return found
