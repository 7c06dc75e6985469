"""A folder of one's own and another Hub, as one.

A repository that lies in the folder is answered from there, whatever the Hub says of that name: nothing is asked there
about it, but for revisions that the folder does not have, such as those of a download into it that is under way. All
others are the Hub's. A listing has those of the folder first.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..storage.cache import is_commit
from ..tasks import off_loop
from .folders.layout import KINDS
from .protocol.access_log import raw_path
from .protocol.answers import failure
from .protocol.wire import parse_resource
from .served.documents import PAGE, list_page, listed_document

if TYPE_CHECKING:
    from typing import Self

    from .operation.health import Check
    from .protocol.wire import Resource
    from .pull_through import PullThrough
    from .served.hub import Hub

__all__ = ["Beside"]

# Cursors of a listing: how those of the folder's part begin, and that of the first page that is the Hub's alone.
_OWN, _REST = "own.", "hub"


class Beside:
    """The endpoints over both. To be entered before it is asked."""

    def __init__(self, own: Hub, passing: PullThrough) -> None:
        self.own, self.passing = own, passing
        passing.beside = self._names

    def _names(self) -> dict[str, list[str]]:
        """What is in the folder, by kind. Blocks."""
        return {kind: self.own.catalog.layout.names(kind) for kind in KINDS}

    async def __aenter__(self) -> Self:
        await self.own.catalog.__aenter__()
        try:
            await self.passing.__aenter__()
        except BaseException:
            await self.own.catalog.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.passing.__aexit__()
        finally:
            await self.own.catalog.__aexit__()

    async def checks(self) -> dict[str, Check]:
        return {**await self.own.checks(), **await self.passing.checks()}

    async def respond(self, request: Request) -> Response:
        """The answer to any request."""
        target = parse_resource(raw_path(request.scope))
        if target is None:
            return await self.passing.respond(request)
        if target.name:
            place = await off_loop(lambda: self.own.catalog.locate(target.kind, target.name))
            if place is None:
                return await self.passing.respond(request)
            answer = await self.own.respond(request)
            if not _may_be_elsewhere(answer, target.revision):
                return answer
            theirs = await self.passing.respond(request)
            return theirs if _tells_more(theirs) else answer
        if target.action == "list" and request.method in ("GET", "HEAD"):
            return self.own.gate.refusal(request) or await self._listing(request, target)
        return await self.passing.respond(request)

    async def _listing(self, request: Request, target: Resource) -> Response:
        pairs = request.query_params.multi_items()
        cursor = request.query_params.get("cursor", "")
        query = [pair for pair in pairs if pair[0] != "cursor"]
        names = (await off_loop(self._names))[target.kind]
        if cursor and not cursor.startswith(_OWN):
            asked = query if cursor == _REST else pairs
            return _merged([], await self.passing.respond(_asking(request, asked)), names)
        try:
            page, following = list_page(names, [*query, ("cursor", cursor.removeprefix(_OWN))])
        except ValueError:
            return failure(400, "BadRequest", "The cursor or the limit is not valid.")
        listed = [listed_document(name, self.own.told(target.kind, name)) for name in page]
        room = min(max(int(dict(query).get("limit", PAGE)), 1), PAGE) - len(page)
        if following is not None or not room:
            after = _REST if following is None else _OWN + dict(parse_qsl(following))["cursor"]
            return JSONResponse(listed, headers=self.own.links(request, urlencode([*query, ("cursor", after)])))
        rest = [pair for pair in query if pair[0] != "limit"] + ([("limit", str(room))] if page else [])
        return _merged(listed, await self.passing.respond(_asking(request, rest if page else query)), names)


def _may_be_elsewhere(answer: Response, revision: str) -> bool:
    """Whether the folder does not have a revision, or cannot tell yet: its commits are made of hashes."""
    code = answer.headers.get("x-error-code")
    return code == "RevisionNotFound" or (code in ("Hashing", "Changed") and is_commit(revision))


def _tells_more(theirs: Response) -> bool:
    """Whether the Hub has the revision, whatever it says of the file; or may have it, and could not be asked."""
    if theirs.status_code in (401, 404):
        return theirs.headers.get("x-error-code") == "EntryNotFound"
    return True


def _asking(request: Request, query: list[tuple[str, str]]) -> Request:
    """The same request with another query."""
    return Request({**request.scope, "query_string": urlencode(query).encode()}, request.receive)


def _merged(listed: list[dict[str, Any]], answer: Response, names: list[str]) -> Response:
    """A page of the Hub's listing after what is `listed`, without the `names` that are the folder's. Refusals stay."""
    if answer.status_code != 200 or not names:
        return answer
    own = frozenset(names)
    try:
        told = [one for one in json.loads(bytes(answer.body)) if one.get("id") not in own]
    except (ValueError, AttributeError):
        return answer
    link = {"Link": answer.headers["link"]} if "link" in answer.headers else {}
    return JSONResponse([*listed, *told], headers=link)
