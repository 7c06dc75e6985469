"""The Hub's endpoints over another Hub: what is asked for is fetched once, verified, kept, and served from then on.

The files lie in the layout of huggingface_hub's cache under `root`. Beside them, where tools of the Hub pass by:

    root/.locks/asyncfetch/<digest of the source's URL>/answers/    what the source said (store.py)
    root/.locks/asyncfetch/<digest of the source's URL>/distrust.json

A client's token goes to the source, which says what it may see; here it is not kept. There is no Xet.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

import anyio
from starlette.responses import JSONResponse, Response

from ..errors import (
    AsyncfetchError,
    ProtocolError,
    RepositoryNotFoundError,
    SourceError,
)
from ..events import Event, Notifier, Retrying
from ..network.reach import Reach
from ..network.transport import Transport
from ..policy import Policy
from ..sources.hub import following_page
from ..sources.settings import Settings
from ..storage.files import make_folder
from ..tasks import off_loop
from .access import Admin, Door
from .arriving.distrust import Distrust
from .arriving.files import FileAnswers
from .arriving.fills import Fills, most_at_once
from .background import Background
from .counts import Counts
from .folders.layout import is_id
from .jobs.job_files import JobFiles
from .jobs.jobs import Jobs
from .jobs.prefetch import Worker
from .keeping.kept import Kept
from .keeping.room import Limits
from .operation.health import Check, checks_of
from .people.control import BASE, Control
from .people.live import Live
from .people.state import Parts, State
from .protocol.access_log import raw_path
from .protocol.answers import failure, not_allowed, repository_not_found, source_failure
from .protocol.forms import paths_of
from .protocol.wire import parse_resource
from .source.freshness import PATIENCE
from .source.grants import Grants
from .source.relayed import next_query, told_headers
from .source.store import Store
from .source.upstream import Upstream, Who

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from starlette.requests import Request

    from .protocol.wire import Resource
    from .source.freshness import Answer

__all__ = ["PullThrough"]

_PRIVATE = ("whoami", "list")
SAVE = 2.0  # seconds between two times that counters are written
_MOST_FOLDERS = 8  # that are listed for one request


class PullThrough:
    """The endpoints over the Hub at `upstream`. To be entered before it is asked. Raises SourceError, StorageError.

    `state_dir`: where its own bookkeeping goes, instead of beside the files. `public_url`: where clients find it.
    `door`: who may have what; `admin`: who may change something. `limits` bound the room of the cache, `bandwidth` what
    comes from the source, in bytes a second. `strict`: no byte of a file before its hash is right. `now` tells the
    seconds since 1970.
    """

    def __init__(
        self,
        upstream: str,
        root: Path,
        *,
        state_dir: Path | None = None,
        public_url: str | None = None,
        door: Door | None = None,
        admin: Admin | None = None,
        limits: Limits | None = None,
        bandwidth: float | None = None,
        strict: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.endpoint = Settings.from_env({}, endpoint=upstream, token=False).endpoint
        if "@" in self.endpoint:
            raise SourceError("The URL of the source holds a name or a password: clients send their own tokens.")
        self.root, self.public_url = root, public_url
        self.door, self.admin, self.strict = door or Door(), admin or Admin(), strict
        self.kept = Kept(root, limits or Limits(), now=now)
        self._bandwidth, self._now = bandwidth, now
        make_folder(root, writing="output")
        named = hashlib.sha256(self.endpoint.encode()).hexdigest()[:16]
        self._state = (root / ".locks" / "asyncfetch" if state_dir is None else state_dir) / named
        self.policy = Policy.from_env()
        self.counts = Counts(self._state / "counts")
        self.live: Live | None = None
        self.beside: Callable[[], Mapping[str, list[str]]] = dict  # what else is served here, by kind
        self._tasks = AsyncExitStack()

    async def __aenter__(self) -> Self:
        policy, counts = self.policy, self.counts
        await off_loop(counts.begin)
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
        many = replace(policy, connections=4 * policy.connections, bandwidth_limit=self._bandwidth)
        told, reach = Notifier(self._hear), Reach(urlsplit(self.endpoint).hostname or "")
        questions, fills = counts.meter("questions"), counts.meter("fills")
        asking = await self._tasks.enter_async_context(Transport(brief, notify=told, meter=questions, reach=reach))
        # And each file that arrives has one of its own, as has each reader who is passed on.
        fetching = await self._tasks.enter_async_context(
            Transport(many, notify=told, meter=fills, reach=reach, spare=4 * most_at_once())
        )
        now, store = self._now, Store(self._state / "answers", self._now)
        self.distrust = await off_loop(lambda: Distrust(self._state / "distrust.json", now))
        grants = await off_loop(lambda: Grants(self._state, now))
        self._tasks.push_async_callback(grants.end)
        jobs = JobFiles(self._state / "jobs")
        self._tasks.callback(jobs.close)  # once none of them runs
        group = await self._tasks.enter_async_context(anyio.create_task_group())
        self._tasks.callback(group.cancel_scope.cancel)
        tasks = Background(group)
        self.upstream = Upstream(
            self.endpoint, asking, store, tasks, grants, counts, admit=self.door.rules.admit, now=now
        )
        filling = replace(policy, bandwidth_limit=self._bandwidth)
        self.fills = Fills(fetching, filling, self.distrust, tasks, counts, self.kept, strict=self.strict)
        self.files = FileAnswers(
            self.root, self.upstream, self.fills, self.distrust, self.kept, counts, strict=self.strict
        )
        tasks.start_soon(self._save_counts)
        tasks.start_soon(self.kept.tend_for_ever)
        tasks.start_soon(store.prune_for_ever)
        await self._begin_jobs(jobs, tasks)
        return self

    async def _begin_jobs(self, files: JobFiles, tasks: Background) -> None:
        """Go on with what an earlier process was to do, and answer who asks for it."""
        admit, patience = self.door.rules.admit, self.policy.patience
        worker = Worker(self.upstream, self.fills, self.distrust, self.root, patience, admit)
        jobs = Jobs(files, worker, tasks)
        self.state = State(Parts(self.upstream, self.fills, jobs, self.kept, self.counts))
        self.live = live = Live(self.state)
        self.control = Control(jobs, self.kept, self.state, live, self.admin, self.door, self.public_url)
        await jobs.resume(Who(self.door.upstream_token))

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._tasks.aclose()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await off_loop(self.counts.end, abandon=True)

    async def _save_counts(self) -> None:
        while True:
            await anyio.sleep(SAVE)
            await off_loop(self.counts.save)

    def _hear(self, event: Event) -> None:
        self.counts.add("retries", isinstance(event, Retrying))

    async def checks(self) -> dict[str, Check]:
        """Whether clients can be served, and what speaks against it."""
        return await checks_of(self._state, self.upstream)

    async def respond(self, request: Request) -> Response:
        """The answer to any request."""
        path = raw_path(request.scope)
        if path.startswith(BASE):
            return await self.control.respond(request, path.removeprefix(BASE))
        target = parse_resource(path)
        allowed = "POST" if target and target.action == "paths-info" else "GET, HEAD"
        if request.method not in allowed:
            return not_allowed(request.method, allowed)
        if target is None or target.action in ("cdn", "page"):
            return failure(404, "NotFound", "There is nothing here.")
        if target.action == "home":
            own = {} if self.door.refusal(request) else await off_loop(self.beside)
            return await self.control.page(request, self._origin(request), own)
        who = self.door.who(request)
        if isinstance(who, Response):
            return who
        if target.action not in _PRIVATE and (
            not is_id(target.name) or not self.door.rules.admit(target.kind, target.name)
        ):
            return repository_not_found()
        if target.action == "whoami" and (told := self.door.whoami(request)):
            return told
        try:
            if target.action == "resolve":
                return await self._file(request, target, who)
            if target.action == "paths-info":
                with anyio.move_on_after(PATIENCE):  # several questions may be needed
                    return await self._paths_info(request, target, who)
                raise self.upstream.silent()
            return self._relayed(request, await self._document(request, target, who))
        except RepositoryNotFoundError:
            return repository_not_found()
        except SourceError:
            return failure(404, "EntryNotFound", "There is no such file.")
        except AsyncfetchError as error:
            return source_failure(error)

    def leave(self) -> None:
        """Let those go who watch how it goes, which has no end. In the event loop."""
        if self.live is not None:
            self.live.end()

    async def _document(self, request: Request, target: Resource, who: Who) -> Answer:
        query = request.url.query
        if target.action in _PRIVATE:
            path = "/api/whoami-v2" if target.action == "whoami" else f"/api/{target.kind}"
            answer = await self.upstream.listing(path, query, who)
            return answer if target.action == "whoami" else self.door.listed(target.kind, answer)
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

    async def _file(self, request: Request, target: Resource, who: Who) -> Response:
        deadline = anyio.current_time() + PATIENCE
        told = await self.upstream.file(target, who)
        if told.status != 200:
            return self._relayed(request, told)
        return await self.files.answer(request, target, who, told, deadline)

    def _origin(self, request: Request) -> str:
        return self.public_url or f"{request.url.scheme}://{request.url.netloc}"

    def _relayed(self, request: Request, answer: Answer) -> Response:
        headers = told_headers(answer.headers)
        # What a browser would run is text: it shares an origin with this server.
        is_json = answer.body[:1] in (b"{", b"[")
        headers["Content-Type"] = "application/json" if is_json else "text/plain; charset=utf-8"
        headers["X-Content-Type-Options"] = "nosniff"
        if following := next_query(answer.headers.get("link", ""), self.endpoint):
            headers["Link"] = f'<{self._origin(request)}{raw_path(request.scope)}?{following}>; rel="next"'
        return Response(answer.body, answer.status, headers)


def _entries(body: bytes, url: str) -> list[tuple[str, object]]:
    """The files and folders on a page of a listing, by their paths. Raises ProtocolError."""
    try:
        return [(str(entry["path"]), entry) for entry in json.loads(body)]
    except (ValueError, TypeError, KeyError):
        raise ProtocolError("the listing is none of the Hub's", url=url) from None
