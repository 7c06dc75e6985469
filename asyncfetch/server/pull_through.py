"""The Hub's endpoints over another Hub: what is asked for is fetched once, verified, kept, and served from then on.

The files lie in the layout of huggingface_hub's cache under `root`. Beside them, where tools of the Hub pass by:

    root/.locks/asyncfetch/<digest of the source's URL>/answers/    what the source said (store.py)
    root/.locks/asyncfetch/<digest of the source's URL>/distrust.json

A client's token goes to the source, which says what it may see; here it is not kept. There is no Xet.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode, urlsplit

import anyio
from starlette.responses import HTMLResponse, JSONResponse, Response

from ..errors import (
    AsyncfetchError,
    ChecksumMismatchError,
    NetworkError,
    ProtocolError,
    RateLimitedError,
    SourceError,
    StorageError,
    storage_errors,
)
from ..network.reach import Reach
from ..network.transport import Transport
from ..policy import Policy
from ..sources.hub import following_page
from ..sources.located import SourceFile
from ..sources.settings import Settings
from ..storage.cache import RepoCache, is_commit
from ..storage.checksums import checksum_of_etag
from ..tasks import off_loop
from .access_log import raw_path
from .answers import failure, invalid_credentials, not_allowed, repository_not_found
from .body import FileBody, Part, no_range
from .distrust import Distrust
from .fills import Fills
from .forms import paths_of
from .layout import is_id
from .page import SAFETY, home_page
from .store import Store
from .tailing import FillBody
from .upstream import Upstream, Who
from .wire import parse_resource

if TYPE_CHECKING:
    from typing import Self

    from starlette.requests import Request

    from .fills import Fill
    from .freshness import Answer
    from .wire import Resource

__all__ = ["PullThrough"]

_RELAYED = ("x-repo-commit", "x-error-code", "x-error-message", "x-total-count")
_PRIVATE = ("whoami", "list")
_MOST_FOLDERS = 8  # that are listed for one request


class _File(NamedTuple):
    """A file of a repository as the source tells it: its path there, a commit that has it, its hash, its bytes."""

    path: str
    commit: str
    etag: str
    size: int

    def to_fetch(self) -> SourceFile:
        checksum, etag = checksum_of_etag(self.etag), self.etag
        return SourceFile(self.path, self.size, checksum, commit=self.commit, key=etag, blob=etag, identity=etag)


class PullThrough:
    """The endpoints over the Hub at `upstream`. To be entered before it is asked. Raises SourceError, StorageError.

    `state_dir`: where its own bookkeeping goes, instead of beside the files. `public_url`: where clients find it.
    """

    def __init__(
        self, upstream: str, root: Path, *, state_dir: Path | None = None, public_url: str | None = None
    ) -> None:
        self.endpoint = Settings.from_env({}, endpoint=upstream, token=False).endpoint
        if "@" in self.endpoint:
            raise SourceError("The URL of the source holds a name or a password: clients send their own tokens.")
        self.root, self.public_url = root, public_url
        with storage_errors(root, writing=True):
            root.mkdir(parents=True, exist_ok=True)
        named = hashlib.sha256(self.endpoint.encode()).hexdigest()[:16]
        self._state = (root / ".locks" / "asyncfetch" if state_dir is None else state_dir) / named
        self.policy = Policy.from_env()
        self._tasks = AsyncExitStack()

    async def __aenter__(self) -> Self:
        policy = self.policy
        brief = replace(
            policy,
            patience=0,
            attempts=2,
            backoff=min(policy.backoff, 0.2),
            max_wait=2.0,
            connect_timeout=min(policy.connect_timeout, 4.0),
            read_timeout=min(policy.read_timeout, 7.0),
        )
        # Questions have connections of their own: they never wait for bytes.
        reach = Reach(urlsplit(self.endpoint).hostname or "")
        asking = await self._tasks.enter_async_context(Transport(brief, reach=reach))
        many = replace(policy, connections=4 * policy.connections)
        fetching = await self._tasks.enter_async_context(Transport(many, reach=reach))
        tasks = await self._tasks.enter_async_context(anyio.create_task_group())
        self._tasks.callback(tasks.cancel_scope.cancel)
        self.distrust = await off_loop(lambda: Distrust(self._state / "distrust.json"))
        self.upstream = Upstream(self.endpoint, asking, Store(self._state / "answers"), tasks)
        self.fills = Fills(fetching, policy, self.distrust, tasks)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.aclose()

    async def respond(self, request: Request) -> Response:
        """The answer to any request."""
        target = parse_resource(raw_path(request.scope))
        allowed = "POST" if target and target.action == "paths-info" else "GET, HEAD"
        if request.method not in allowed:
            return not_allowed(request.method, allowed)
        if target is None or target.action in ("cdn", "page"):
            return failure(404, "NotFound", "There is nothing here.")
        if target.action == "home":
            return HTMLResponse(home_page(self._origin(request), {}), headers=SAFETY)
        if target.action not in _PRIVATE and not is_id(target.name):
            return repository_not_found()
        who = _who(request)
        if who is None:
            return invalid_credentials()
        try:
            if target.action == "resolve":
                return await self._file(request, target, who)
            if target.action == "paths-info":
                return await self._paths_info(request, target, who)
            return self._relayed(request, await self._document(request, target, who))
        except SourceError:
            return failure(404, "EntryNotFound", "There is no such file.")
        except AsyncfetchError as error:
            return _failed(error)

    async def _document(self, request: Request, target: Resource, who: Who) -> Answer:
        query = request.url.query
        if target.action in _PRIVATE:
            path = "/api/whoami-v2" if target.action == "whoami" else f"/api/{target.kind}"
            return await self.upstream.listing(path, query, who)
        return await self.upstream.document(target, query, who)

    async def _paths_info(self, request: Request, target: Resource, who: Who) -> Response:
        """What the listings of the folders around the paths say of them: these can be kept."""
        asked = await paths_of(request)
        if isinstance(asked, Response):
            return asked
        paths, expand = dict.fromkeys(path.strip("/") for path in asked[0]), asked[1]
        found: dict[str, object] = {}
        folders = dict.fromkeys(path.rpartition("/")[0] for path in paths if path)
        query = urlencode({"expand": "true"} if expand else {})
        if len(folders) > _MOST_FOLDERS:  # one listing of all costs the source less
            folders, query = {"": None}, urlencode({"expand": str(expand).lower(), "recursive": "true"})
        for folder in folders:
            following: str | None = query
            passed = set[str]()
            while following is not None and following not in passed:
                passed.add(following)
                page = await self.upstream.document(target._replace(action="tree", path=folder), following, who)
                if page.status == 404 and page.headers.get("x-error-code") == "EntryNotFound":
                    break
                if page.status != 200:
                    return self._relayed(request, page)
                found |= {path: entry for path, entry in _entries(page.body, self.endpoint) if path in paths}
                following = following_page(page.headers.get("link", ""))
        return JSONResponse([found[path] for path in paths if path in found])

    # -- files -----------------------------------------------------------------------------------

    async def _file(self, request: Request, target: Resource, who: Who) -> Response:
        told = await self.upstream.file(target, who)
        if told.status != 200:
            return self._relayed(request, told)
        file = _File(target.path, told.headers["x-repo-commit"], told.headers["etag"], int(told.headers["size"]))
        part, headers = self._part(request, file)
        if part.status == 416:
            return no_range(file.path, part, headers)
        if request.method == "HEAD" or not part.span:
            return Response(status_code=part.status, headers=headers)
        cache = RepoCache(self.root, target.name, repo_type=target.kind.removesuffix("s"))
        descriptor = await off_loop(lambda: _open_cached(cache, file))
        if descriptor is not None:
            return FileBody(descriptor, part.span, part.status, headers)
        if rest := self.distrust.rest_of(file.etag):
            return _wrong(file.path, rest)
        ref = None if is_commit(target.revision) else target.revision
        hub = self.upstream.hub(target, who, self.fills.transport)
        fill = self.fills.of(file.to_fetch(), hub, cache, ref, lambda: self.upstream.forget(target, file.commit))
        fill.hold()
        try:
            await fill.begun(part.span.start)
            if not fill.over:
                part, headers = self._part(request, file)  # what came may have proved wrong meanwhile
                return FillBody(fill, self.fills.transport, part.span, part.status, headers)
        except BaseException:
            fill.release()
            raise
        fill.release()
        return self._fill_failed(fill)

    def _part(self, request: Request, file: _File) -> tuple[Part, dict[str, str]]:
        """What of the file is sent, and the head of the answer."""
        etag = f'"{file.etag}"'
        part = Part.asked(request, file.size, etag)
        if part.status == 206 and part.span.start and not self.distrust.may_resume(file.etag):
            part = Part(200, range(file.size), file.size)
        told = {"X-Repo-Commit": file.commit, "X-Linked-Etag": etag, "X-Linked-Size": str(file.size)}
        return part, {**part.headers(file.path, etag), **told}

    def _fill_failed(self, fill: Fill) -> Response:
        if isinstance(fill.error, ChecksumMismatchError):
            return _wrong(fill.file.name, self.distrust.rest_of(fill.file.key))
        if fill.misled:
            return _failed(ProtocolError("it tells another size of the file by now", url=self.endpoint))
        if fill.error is None:
            return failure(503, "Stopped", "The server could not go on with this file.", {"Retry-After": "5"})
        return _failed(fill.error)

    # -- what answers have in common -------------------------------------------------------------

    def _origin(self, request: Request) -> str:
        return self.public_url or f"{request.url.scheme}://{request.url.netloc}"

    def _relayed(self, request: Request, answer: Answer) -> Response:
        headers = {name: answer.headers[name] for name in _RELAYED if name in answer.headers}
        # What a browser would run is text: it shares an origin with this server.
        is_json = answer.body[:1] in (b"{", b"[")
        headers["Content-Type"] = "application/json" if is_json else "text/plain; charset=utf-8"
        headers["X-Content-Type-Options"] = "nosniff"
        if following := following_page(answer.headers.get("link", "")):
            headers["Link"] = f'<{self._origin(request)}{raw_path(request.scope)}?{following}>; rel="next"'
        return Response(answer.body, answer.status, headers)


def _entries(body: bytes, url: str) -> list[tuple[str, object]]:
    """The files and folders on a page of a listing, by their paths. Raises ProtocolError."""
    try:
        return [(str(entry["path"]), entry) for entry in json.loads(body)]
    except (ValueError, TypeError, KeyError):
        raise ProtocolError("the listing is none of the Hub's", url=url) from None


def _who(request: Request) -> Who | None:
    """Who asks; None for who says so in another way than with a token."""
    sent = request.headers.get("authorization")
    if sent is None:
        return Who(None)
    scheme, _, token = sent.partition(" ")
    usable = token and token.isascii() and token.isprintable() and " " not in token
    return Who(token) if scheme.lower() == "bearer" and usable else None


def _open_cached(cache: RepoCache, file: _File) -> int | None:
    """A descriptor of a file that is in the cache, whole and with this etag; None where it is not."""
    found = cache.find(file.commit, file.path)
    if found is None:
        return None
    named = cache.checksum_of(found)
    if named is not None and named.hex != file.etag:
        return None
    try:
        descriptor = os.open(found, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    if os.fstat(descriptor).st_size == file.size:
        return descriptor
    os.close(descriptor)
    return None


def _failed(error: AsyncfetchError) -> Response:
    """Why there is no answer, without what the source's addresses are."""
    if isinstance(error, RateLimitedError):
        after = str(int(error.retry_after or 30) + 1)
        return failure(429, "RateLimited", "The source limits the rate of requests.", {"Retry-After": after})
    if isinstance(error, StorageError):
        return failure(507, "Storage", "The server has no room for this file, or cannot write it.")
    what = "does not answer" if isinstance(error, NetworkError) else "gives no usable answer"
    return failure(502, "Source", f"The source {what} ({error.code}).", {"Retry-After": "5"})


def _wrong(path: str, seconds: float) -> Response:
    message = f"The source sends wrong bytes for {path!r}: their hash is not the one that it names."
    return failure(502, "WrongBytes", message, {"Retry-After": str(int(seconds) + 1)})
