"""Questions to the source, another Hub, and what of its answers is for clients.

Each question is asked once for all who ask it with the same token at the same time. Nobody waits for longer than
PATIENCE. Where the source does not answer, what it answered before does.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

import anyio

from ...errors import (
    AsyncfetchError,
    NetworkError,
    ProtocolError,
    RateLimitedError,
    RepositoryNotFoundError,
    SourceError,
)
from ...network.transport import Reply, Transport
from ...network.urls import may_identify
from ...sources.hub import Hub
from ...sources.settings import Settings
from ...spans import MiB
from ...storage.cache import is_commit, path_inside
from ...tasks import off_loop
from ..folders.layout import qualified
from ..protocol.wire import parse_resource
from .freshness import PATIENCE, Answer, Health, is_fresh
from .relayed import without_xet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..background import Background
    from ..counts import Counts
    from ..protocol.wire import Resource
    from .grants import Grants
    from .store import Store

__all__ = ["Upstream", "Who"]

LOG = logging.getLogger("asyncfetch.server")
_LIMIT = 32 * MiB  # bytes of an answer
# What clients are told beside the body. A Link is made anew for each: it leads to where they asked.
_TOLD = ("link", "x-repo-commit", "x-error-code", "x-error-message", "x-total-count")
# "api";r=489;t=268 (https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/)
_RATE_LIMIT = re.compile(r";\s*r=([0-9]{1,9})\s*;\s*t=([0-9]{1,9})\b", re.ASCII)
_NOT_FOUND, _GATED = "RepoNotFound", "GatedRepo"
_ABSENT = frozenset({"EntryNotFound", "RevisionNotFound"})  # said of a repository that one may see


class RateLimit(NamedTuple):
    """How many requests the source still answers until `until`, on a monotonic clock."""

    remaining: int
    until: float


class Who(NamedTuple):
    """A client: its token, None for none. Never shown; its hash stands for it in memory."""

    token: str | None

    def __repr__(self) -> str:
        return f"Who(token={'set' if self.token else None})"

    @property
    def key(self) -> str:
        return hashlib.sha256(self.token.encode()).hexdigest() if self.token else ""


@dataclass(eq=False)
class _Flight:
    """A question that is on its way."""

    done: anyio.Event
    outcome: Answer | AsyncfetchError | None = None


class Upstream:
    """One Hub, asked on behalf of many. `tasks` is where questions are asked: they outlast who asks them.

    `admit` says of a kind and a name whether that repository may be asked for: the source may send on to another one.
    `now` tells the seconds since 1970.
    """

    def __init__(
        self,
        endpoint: str,
        transport: Transport,
        store: Store,
        tasks: Background,
        grants: Grants,
        counts: Counts,
        *,
        admit: Callable[[str, str], bool] = lambda _kind, _name: True,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.settings = Settings.from_env({}, endpoint=endpoint, token=False)
        self._transport, self._store, self._tasks, self._counts = transport, store, tasks, counts
        self._grants, self._access, self._health = grants, grants.access, Health()
        self._saving = anyio.Lock()  # changes are written in the order in which they came
        self._admit, self._now = admit, now
        self._flights: dict[tuple[str, str], _Flight] = {}
        self.trouble: AsyncfetchError | None = None  # why the last question had no answer
        self.rate_limit: RateLimit | None = None  # what the source last said of it

    def is_open(self, repository: str) -> bool:
        """Whether the source said, not long ago, that everybody may see a repository (see `qualified`)."""
        return self._access.could("", repository, "told", self._now())

    def hub(self, target: Resource, who: Who, transport: Transport | None = None) -> Hub:
        """The repository in question, as `who` sees it."""
        settings = replace(self.settings, token=who.token)
        name = qualified(target.kind, target.name)
        return Hub(transport or self._transport, settings, name, passes=self._passes)

    async def document(self, target: Resource, query: str, who: Who) -> Answer:
        """What the API says of a repository, or a file as git holds it. Raises as `_ask` does."""
        path, scope = _api_path(target), "files" if target.action == "raw" else "told"
        question = f"{path}?{query}"
        fixed = is_commit(target.revision) and target.action not in ("refs", "auth-check")

        async def ask() -> Answer:
            return await self._relay(f"{path}?{query}" if query else path, who, fixed=fixed)

        return await self._ask(question, target, scope, who, ask, keep=target.action != "auth-check")

    async def listing(self, path: str, query: str, who: Who) -> Answer:
        """What the API says of no repository in particular. It is not kept: it may hold what only `who` may see."""
        with anyio.move_on_after(PATIENCE):
            return await self._relay(f"{path}?{query}" if query else path, who, fixed=False)
        raise self.silent()

    async def reached(self, patience: float) -> bool:
        """Whether the source answers, by what it did lately, or by a question. Waits for `patience` seconds at most."""
        now = self._now()
        if self._health.away(now) or self._health.reached(now):
            return not self._health.away(now)
        with anyio.move_on_after(patience):
            try:
                await self._once(("reached", ""), lambda: self._relay("/api/whoami-v2", Who(None), fixed=False))
            except AsyncfetchError as error:
                return not _is_away(error)
        return self._health.reached(self._now())

    def has_answers(self) -> bool:
        """Whether anything is kept that can be answered without the source. Blocks."""
        return self._store.holds_any()

    async def file(self, target: Resource, who: Who) -> Answer:
        """What the source says of a file: a body-less 200 with its commit, etag and size; or its refusal.

        Raises as `_ask` does.
        """
        path_inside(target.revision)
        path_inside(target.path)

        async def ask() -> Answer:
            found = await self.hub(target, who).look(target.path, target.revision)
            if isinstance(found, Reply):
                refused = self._answer(found, who, fixed=is_commit(target.revision))
                message = refused.headers.get("x-error-message", "The source refuses this file.")
                return refused._replace(body=json.dumps({"error": message}).encode())
            if found.size is None:
                raise ProtocolError("the answer tells no size", url=self.settings.endpoint)
            told = {"x-repo-commit": found.commit, "etag": found.etag, "size": str(found.size)}
            answer = Answer(200, told, b"", self._now(), is_commit(target.revision), who.token is None)
            if not answer.fixed:  # clients ask for the branch and then for its commit
                at_commit = _file_question(target._replace(revision=found.commit))
                await off_loop(lambda: self._keep(at_commit, answer._replace(fixed=True)))
            return answer

        return await self._ask(_file_question(target), target, "files", who, ask)

    async def forget(self, target: Resource, commit: str) -> None:
        """Do not go on with what was told of a file: it did not come that way."""
        questions = [_file_question(target._replace(revision=revision)) for revision in (target.revision, commit)]
        await off_loop(lambda: self._store.drop(questions))

    async def _ask(
        self,
        question: str,
        target: Resource,
        scope: str,
        who: Who,
        work: Callable[[], Awaitable[Answer]],
        *,
        keep: bool = True,
    ) -> Answer:
        """The answer that is kept, or that of the source. Raises NetworkError, RateLimitedError: there is neither."""
        repository = qualified(target.kind, target.name)
        kept = self._store.recent(question) or (await off_loop(lambda: self._store.get(question)) if keep else None)
        asked_at = self._now()
        may = self._access.may(who.key, repository, scope, asked_at)
        if kept is not None and may and is_fresh(kept, asked_at):
            self._counts.add("answers_kept")
            return kept
        if self._health.away(asked_at) and (fallback := await self._fallback(kept, who, repository, scope)):
            return fallback

        async def ask() -> Answer:
            answer = await work()
            await self._judge(answer, who, repository, scope)
            if keep and _is_for_all(answer):
                await off_loop(lambda: self._keep(question, answer))
            return answer

        try:
            return await self._once((question, who.key), ask)
        except (NetworkError, RateLimitedError):
            if fallback := await self._fallback(kept, who, repository, scope):
                return fallback
            raise

    async def _fallback(self, kept: Answer | None, who: Who, repository: str, scope: str) -> Answer | None:
        """What was kept, for who may have it by the last word of the source, also to another server of the cache."""
        if kept is None:
            return None
        self._access.take_back(await off_loop(self._grants.refused))
        could = self._access.could(who.key, repository, scope, self._now())
        if not (could or (kept.open and self._access.is_open(repository, scope))):
            return None
        self._counts.add("answers_kept")
        return kept

    def _keep(self, question: str, answer: Answer) -> None:
        """Keep an answer. That of who has a token says nothing about who has none. Blocks."""
        before = self._store.get(question)
        was_open = before is not None and before.open
        self._store.put(question, answer._replace(open=answer.open or was_open))

    async def _judge(self, answer: Answer, who: Who, repository: str, scope: str) -> None:
        """Remember what an answer says about who may see what; a refusal before it is told."""
        if _is_for_all(answer):
            self._access.grant(who.key, repository, scope, self._now())
            if self._access.changed:
                self._tasks.start_soon(self._save_grants)
            return
        code = answer.headers.get("x-error-code")
        if answer.status in (401, 403) or code == _NOT_FOUND:
            # A gated repository shows its listing; one that is not found has nothing to show, to who has no token too.
            self._access.revoke(who.key, repository, scope if code == _GATED else "told")
            if code in (_NOT_FOUND, _GATED):
                self._access.revoke("", repository, "files" if code == _GATED else "told")
            await self._save_grants()

    async def _save_grants(self) -> None:
        async with self._saving:
            if changes := self._access.take_changes():
                await off_loop(lambda: self._grants.save(changes))

    async def _once(self, key: tuple[str, str], work: Callable[[], Awaitable[Answer]]) -> Answer:
        """What `work` returns, or raises, for all who want it while it runs."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(anyio.Event())
            self._tasks.start_soon(self._fly, key, flight, work)
        await flight.done.wait()
        if isinstance(flight.outcome, Answer):
            return flight.outcome
        raise flight.outcome or self.silent()

    async def _fly(self, key: tuple[str, str], flight: _Flight, work: Callable[[], Awaitable[Answer]]) -> None:
        try:
            with anyio.move_on_after(PATIENCE) as scope:
                flight.outcome = await work()
            if scope.cancelled_caught:
                flight.outcome = self.silent()
            else:
                self._health.answered(self._now())
                self.trouble = None
        except AsyncfetchError as error:
            flight.outcome = error
        except Exception:
            LOG.exception("A question to the source failed")
        finally:
            if _is_away(flight.outcome):
                self._counts.add("upstream_failures")
                self.trouble = flight.outcome if isinstance(flight.outcome, AsyncfetchError) else None
                self._health.failed(self._now())
            del self._flights[key]
            flight.done.set()

    def _may_follow(self, here: str, to: str) -> bool:
        """Whether a redirect is followed: within the source. Raises RepositoryNotFoundError."""
        if not may_identify(here, to):
            return False
        self._passes(to)
        return True

    def _passes(self, to: str) -> None:
        """See that a redirect leads to no repository that may not be asked for, as that of a renamed one may do.

        Raises RepositoryNotFoundError.
        """
        path = urlsplit(to).path.removeprefix(urlsplit(self.settings.endpoint).path)
        target = parse_resource(path)
        if target is not None and target.action != "page" and target.name and not self._admit(target.kind, target.name):
            raise RepositoryNotFoundError(target.name, authenticated=False)

    def silent(self) -> NetworkError:
        """What it is that it did not answer in time."""
        return NetworkError(f"no answer within {PATIENCE:g} s", url=self.settings.endpoint)

    async def _relay(self, path: str, who: Who, *, fixed: bool) -> Answer:
        url = f"{self.settings.endpoint}{path}"
        headers = {"authorization": f"Bearer {who.token}"} if who.token else {}
        reply = await self._transport.fetch(
            url, limit=_LIMIT, headers=headers, may_follow=lambda redirect, to: self._may_follow(redirect.url, to)
        )
        self.rate_limit = _rate_limit_of(reply) or self.rate_limit
        if reply.truncated:
            raise ProtocolError(f"the answer has more than {_LIMIT:,} bytes", url=url)
        if 300 <= reply.status < 400:
            raise ProtocolError("it redirects to another site", url=url)
        answer = self._answer(reply, who, fixed=fixed)
        if answer.status != 200 or not path.startswith("/api/"):
            return answer
        try:
            return answer._replace(body=await off_loop(lambda: without_xet(reply.body), slow=True))
        except (ValueError, RecursionError):
            raise ProtocolError("the answer is no JSON of the Hub's", url=url) from None

    def _answer(self, reply: Reply, who: Who, *, fixed: bool) -> Answer:
        told = {name: reply.headers[name] for name in _TOLD if name in reply.headers}
        lasting = fixed and told.get("x-error-code") != "RevisionNotFound"  # it may be pushed tomorrow
        return Answer(reply.status, told, reply.body, self._now(), lasting, who.token is None)


def _rate_limit_of(reply: Reply) -> RateLimit | None:
    found = _RATE_LIMIT.search(reply.headers.get("ratelimit", "")[:1000])
    return RateLimit(int(found[1]), time.monotonic() + int(found[2])) if found else None


def _is_away(outcome: Answer | AsyncfetchError | None) -> bool:
    """Whether the source is to be left alone for a while. A wrong answer is about one question."""
    failed = isinstance(outcome, NetworkError) and not isinstance(outcome, ProtocolError)
    return failed or isinstance(outcome, RateLimitedError)


def _is_for_all(answer: Answer) -> bool:
    """Whether it is the same for all who may see the repository."""
    return answer.status == 200 or (answer.status == 404 and answer.headers.get("x-error-code") in _ABSENT)


def _file_question(target: Resource) -> str:
    return f"file {target.kind}/{target.name}@{target.revision}/{target.path}"


def _api_path(target: Resource) -> str:
    """The path of a question about a repository, made of its parts: nothing of it leads elsewhere.

    Raises SourceError for a revision or a path that would.
    """
    path_inside(target.revision)
    if target.path:
        path_inside(target.path)
    revision, inside = quote(target.revision, safe=""), quote(target.path)
    if target.action == "raw":
        if not inside:
            raise SourceError("A file has a name.")
        return f"/{qualified(target.kind, target.name)}/raw/{revision}/{inside}"
    base = f"/api/{target.kind}/{target.name}"
    match target.action:
        case "info":
            return f"{base}/revision/{revision}"
        case "tree":
            return f"{base}/tree/{revision}/{inside}".rstrip("/")
        case "commits":
            return f"{base}/commits/{revision}"
        case action:
            return f"{base}/{action}"
