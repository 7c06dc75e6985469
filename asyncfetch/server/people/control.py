"""The server's own endpoints, below /api/asyncfetch/: jobs, what is kept, and how it goes. All in JSON.

    GET          state                 what arrives, jobs, what is kept, traffic, the source
    GET          events                the same, again and again, as server-sent events
    GET, POST    jobs                  all jobs; begin one
    GET, DELETE  jobs/{id}             one job with its files; cancel it, or forget one that is over
    POST         jobs/{id}/retry       begin it once more
    GET          kept                  repositories that are kept, with their files
    POST         kept/pin, kept/unpin, kept/evict, kept/verify
    GET          openapi.json          all of this for machines (openapi.py)

Who may change something is for access.py to say; here a browser that another site leads here is refused: by its
Origin, by Sec-Fetch-Site (https://www.w3.org/TR/fetch-metadata/), and because a form cannot send JSON. Who may change
something sees all names, others those that the source shows to everybody.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from starlette.responses import HTMLResponse, JSONResponse, Response

from ...errors import AsyncfetchError, SourceError, StorageError
from ...sources.request import HubSource, parse_source
from ...tasks import off_loop
from ..folders.layout import KINDS, is_id, kind_and_name, qualified
from ..jobs.jobs import Wanted
from ..protocol.answers import failure, invalid_credentials, not_allowed
from ..source.upstream import Who
from .live import Live, View
from .openapi import openapi_document
from .service_page import HEADERS, service_page
from .state import job_document, kept_document

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request

    from ..access import Admin, Door
    from ..jobs.jobs import Job, Jobs
    from ..keeping.kept import Kept
    from .state import State

__all__ = ["BASE", "HUB_TOKEN", "ROUTES", "Control"]

BASE = "/api/asyncfetch/"
HUB_TOKEN = "x-hub-token"  # noqa: S105  # the header with the token for the source, where Authorization has another
_MAX_BODY = 64 * 1024  # bytes
_MOST_GLOBS = 100
_MOST_OPEN = 1000  # jobs that are not over
_ID = re.compile(r"[0-9a-f]{12}", re.ASCII)
_TOKEN = re.compile(r"[!-~]{1,1000}", re.ASCII)
_NOT_ADMIN = (
    "Without an admin token (--admin-token-env) only the user who runs the server may do this: from its machine, and"
    " not through a proxy, as HTTP/1.0, Connection: close and headers such as Via show. There it takes the token."
)
_KEPT = ("pin", "unpin", "evict", "verify")
# What there is: methods by the path below BASE, with its parameter. openapi.py describes each.
ROUTES = {
    "state": ("GET",),
    "events": ("GET",),
    "jobs": ("GET", "POST"),
    "jobs/{id}": ("GET", "DELETE"),
    "jobs/{id}/retry": ("POST",),
    "kept": ("GET",),
    **{f"kept/{action}": ("POST",) for action in _KEPT},
    "openapi.json": ("GET",),
}


class BadRequestError(Exception):
    """What a client sent is not usable; the sentence says why."""


class Control:
    """The endpoints. `public_url` is where clients find them, None for where they ask."""

    def __init__(
        self, jobs: Jobs, kept: Kept, state: State, live: Live, admin: Admin, door: Door, public_url: str | None
    ) -> None:
        self._jobs, self._kept, self._state, self._live = jobs, kept, state, live
        self._admin, self._door, self._public_url = admin, door, public_url

    async def may_change(self, request: Request) -> bool:
        """Whether a request comes from who may change something."""
        return await self._admin.admits(request)

    async def page(self, request: Request, origin: str, own: Mapping[str, Sequence[str]]) -> Response:
        """The page for people, as it is now. `origin` is where they find this server, `own` what else it serves.

        With `?kept=all` it has every repository, else the largest.
        """
        every = request.query_params.get("kept") == "all"
        may = "yes" if await self.may_change(request) else "no" if self._admin.token is None else "token"
        try:
            document = await self._state.document(full=may == "yes", every=every)
        except StorageError as error:
            return failure(507, "Storage", error.message)
        base = f"{self._public_url or ''}{BASE}"
        page = service_page(document, origin=origin, base=base, admin=may, own=own, every=every)
        return HTMLResponse(page, headers=HEADERS)

    async def respond(self, request: Request, path: str) -> Response:
        """The answer to a request; `path` is what follows BASE."""
        route, job_id = _route_of(path)
        allowed = ROUTES.get(route)
        if allowed is None:
            return failure(404, "NotFound", "There is nothing here.")
        method = "GET" if request.method == "HEAD" else request.method
        if method not in allowed:
            return not_allowed(request.method, ", ".join(["HEAD", *allowed] if "GET" in allowed else allowed))
        if method != "GET" and (refusal := await self._refusal(request)) is not None:
            return refusal
        try:
            if method == "GET":
                return await self._told(request, route, job_id)
            return await self._changed(request, method, route, job_id)
        except (BadRequestError, SourceError) as error:
            return failure(400, "BadRequest", str(error))
        except StorageError as error:
            return failure(507, "Storage", error.message)
        except AsyncfetchError as error:
            return failure(500, "Failed", error.message)

    async def _refusal(self, request: Request) -> Response | None:
        """The answer to who may not change something, or was led here by another site."""
        if not self._is_same_site(request):
            return failure(403, "CrossSite", "A page of another site may not do this.")
        if not await self.may_change(request):
            if self._admin.token is not None:
                return failure(401, "Unauthorized", "This takes the admin token, as Authorization: Bearer.")
            return failure(403, "NotAdmin", _NOT_ADMIN)
        return None

    def _is_same_site(self, request: Request) -> bool:
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return False
        origin = request.headers.get("origin")
        if origin is None:
            return True
        ours = {f"{request.url.scheme}://{request.url.netloc}".lower()}
        if self._public_url is not None:
            parts = urlsplit(self._public_url)
            ours.add(f"{parts.scheme}://{parts.netloc}".lower())
        return origin.lower() in ours

    # -- what is told ------------------------------------------------------------------------------

    async def _told(self, request: Request, route: str, job_id: str) -> Response:
        full = await self.may_change(request)
        if route == "openapi.json":
            return JSONResponse(openapi_document())
        if route == "events":
            page = request.query_params.get("view") == "page"
            return self._live.response(View(full=full, page=page), head=request.method == "HEAD")
        sees = self._state.sees(full=full)
        match route:
            case "state":
                document: Any = await self._state.document(full=full)
            case "jobs":
                await self._jobs.look()
                document = [job_document(job) for job in self._jobs.all() if sees(_name_of(job))]
            case "kept":
                found = [one for one in await self._state.kept() if sees(qualified(one.kind, one.name))]
                document = [kept_document(one, files=True) for one in found]
            case _:
                await self._jobs.look()
                job = self._jobs.get(job_id)
                if job is None or not sees(_name_of(job)):
                    return _no_job()
                document = job_document(job, files=True)
        return JSONResponse(document, headers={"Cache-Control": "no-store"})

    # -- what changes ------------------------------------------------------------------------------

    async def _changed(self, request: Request, method: str, route: str, job_id: str) -> Response:
        if route == "jobs":
            return await self._start(request, prefetch_of(await _body_of(request), self._state.endpoint))
        if route.startswith("kept/"):
            return await self._change_kept(request, route.removeprefix("kept/"))
        await self._jobs.look()
        job = self._jobs.get(job_id)
        if job is None:
            return _no_job()
        if method == "DELETE":
            if job.state.is_over:
                await self._jobs.forget(job)
                return Response(status_code=204)
            await self._jobs.cancel(job)
            return _told_job(job)
        await _body_of(request)
        who = self._who(request)
        if isinstance(who, Response):
            return who
        if job.elsewhere or await self._jobs.retry(job, who):
            return _told_job(job, 202)
        return failure(409, "JobElsewhere", "Another server that shares this cache has it.", {"Retry-After": "3"})

    async def _start(self, request: Request, wanted: Wanted) -> Response:
        if not self._door.rules.admit(wanted.kind, wanted.name):
            return failure(403, "NotAllowed", f"This server does not serve {qualified(wanted.kind, wanted.name)}.")
        if sum(not job.state.is_over for job in self._jobs.all()) >= _MOST_OPEN:
            return failure(429, "TooManyJobs", f"{_MOST_OPEN:,} jobs wait already.", {"Retry-After": "60"})
        who = self._who(request)
        if isinstance(who, Response):
            return who
        await self._jobs.look()
        job, new = await self._jobs.start(wanted, who)
        return _told_job(job, 202 if new else 200, {"Location": f"{BASE}jobs/{job.id}"})

    def _who(self, request: Request) -> Who | Response:
        """As who the source is asked for a job. The admin's token never goes there."""
        if self._door.shared:
            return Who(self._door.upstream_token)
        token = request.headers.get(HUB_TOKEN)
        if token is not None:
            return Who(token) if _TOKEN.fullmatch(token) else invalid_credentials()
        return Who(None) if self._admin.token is not None else self._door.who(request)

    async def _change_kept(self, request: Request, action: str) -> Response:
        body = await _body_of(request)
        kind, name = kind_and_name(_text(body, "repository"))
        if set(body) - {"repository"} or not is_id(name):
            raise BadRequestError('The body is {"repository": "org/name"}, and no more.')
        repository = qualified(kind, name)
        if action == "verify":
            return await self._start(request, Wanted("verify", kind, name))
        freed = 0
        if action == "pin":
            await off_loop(lambda: self._kept.pin(kind, name))
        elif action == "unpin":
            await off_loop(lambda: self._kept.unpin(kind, name))
        elif any((one.kind, one.name) == (kind, name) for one in await self._state.kept()):
            freed = await off_loop(lambda: self._kept.evict(kind, name), slow=True)
        else:
            return failure(404, "NotKept", f"Nothing of {repository} is kept here.")
        self._state.changed()
        return JSONResponse({"repository": repository, "freed": freed})


class _Route(NamedTuple):
    """A path as ROUTES has it, and the job that it names."""

    route: str
    job_id: str = ""


def _route_of(path: str) -> _Route:
    parts = path.split("/")
    if parts[0] == "jobs" and len(parts) > 1 and _ID.fullmatch(parts[1]):
        return _Route("/".join(["jobs", "{id}", *parts[2:]]), parts[1])
    return _Route(path if "{" not in path else "")


def _name_of(job: Job) -> str:
    return qualified(job.wanted.kind, job.wanted.name)


def _no_job() -> Response:
    return failure(404, "NoSuchJob", "There is no such job here.")


def _told_job(job: Job, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(job_document(job), status, headers)


async def _body_of(request: Request) -> dict[str, Any]:
    """The JSON object that a request carries. Raises BadRequestError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise BadRequestError("Send JSON, with Content-Type: application/json.")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_BODY:
            raise BadRequestError(f"The body has more than {_MAX_BODY:,} bytes.")
    try:
        document = json.loads(bytes(body) or b"{}")
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise BadRequestError("The body is no JSON object.")
    return document


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value.isprintable() or len(value) > 1000:
        raise BadRequestError(f"{name!r} must be a text.")
    return value


def _globs(body: dict[str, Any], name: str) -> tuple[str, ...]:
    value = body.get(name) or []
    if not isinstance(value, list) or not all(isinstance(glob, str) and 0 < len(glob) <= 1000 for glob in value):
        raise BadRequestError(f"{name!r} must be a list of globs.")
    if len(value) > _MOST_GLOBS:
        raise BadRequestError(f"{name!r} has more than {_MOST_GLOBS} globs.")
    return tuple(dict.fromkeys(value))


_FIELDS = ("source", "revision", "repo_type", "include", "exclude")


def prefetch_of(body: dict[str, Any], endpoint: str) -> Wanted:
    """What a request wants to be fetched. Raises BadRequestError, SourceError.

    `source` is an id, with `@revision` or without, or the address of a page of the source at `endpoint`.
    """
    unknown = sorted(set(body) - set(_FIELDS))
    if unknown:
        raise BadRequestError(f"There is no field {unknown[0][:100]!r}; there are {', '.join(_FIELDS)}.")
    given = {name: _text(body, name) for name in ("revision", "repo_type") if body.get(name) not in (None, "")}
    if given.get("repo_type", "model") not in ("model", "dataset"):
        raise BadRequestError("'repo_type' is model or dataset.")
    # Nothing is looked for on the disk of the server: a path of it is none of a client's business.
    text = _text(body, "source").strip()
    found = parse_source(text, endpoint=endpoint, kind_of=lambda _: None, names_in=lambda _: (), **given)
    if not isinstance(found, HubSource):
        raise BadRequestError("'source' must name a repository of the source that is served here.")
    kind = f"{found.repo_type}s"
    if kind not in KINDS or not is_id(found.repo_id):
        raise BadRequestError(f"{found.name!r} cannot be the id of a repository.")
    include = _globs(body, "include")
    if found.file or found.subfolder:
        inside = "/".join(part for part in (found.subfolder, found.file) if part)
        if include:
            raise BadRequestError("An address of a file or a folder goes without 'include'.")
        include = (inside if found.file else f"{inside}/",)
    return Wanted("prefetch", kind, found.repo_id, found.revision, include, _globs(body, "exclude"))
