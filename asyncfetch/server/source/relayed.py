"""What of the source's documents, and of the headers beside them, is handed on to clients. Pure, without I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ...errors import ProtocolError
from ...sources.hub import following_page
from ...storage.cache import is_commit
from ..text import header_text

__all__ = ["next_query", "told_headers", "without_xet"]

_XET = frozenset({"xetHash", "xetEnabled"})
_OUTSIDE = frozenset({"", ".", ".."})  # no part of a path in a repository


# Headers that are handed on, each with what it may be: clients make names of files out of some.
_TOLD = {
    "x-repo-commit": re.compile(r"[0-9a-f]{40}", re.ASCII),
    "x-error-code": re.compile(r"\w{1,100}", re.ASCII),
    "x-error-message": re.compile(r".*", re.DOTALL),
    "x-total-count": re.compile(r"[0-9]{1,18}", re.ASCII),
}
_MOST_TEXT = 1000  # characters of a message
_MOST_QUERY = 8000  # characters; a longer line of a head is refused by many clients and proxies
_IN_QUERIES = "!$%&'()*+,-./:;=?@[]_~"  # what stays as it is


def told_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Those of a source's headers that clients are told, as they may stand in a head: its own may hold any text."""
    there = {name: headers[name] for name in _TOLD if name in headers}
    return {name: header_text(text[:_MOST_TEXT]) for name, text in there.items() if _TOLD[name].fullmatch(text)}


def next_query(link: str, url: str) -> str | None:
    """The query of the next page that the Link header of `url` names, None for none. Raises ProtocolError."""
    query = quote(following_page(link) or "", safe=_IN_QUERIES)
    if len(query) > _MOST_QUERY:
        raise ProtocolError("the address of its next page is too long", url=url)
    return query or None


def without_xet(body: bytes) -> bytes:
    """A JSON body without what sends clients to a Xet service, which is not here. Raises ValueError, RecursionError.

    ValueError too where clients would write to another place than their cache, if they believed it.
    """
    document = json.loads(body)
    _refuse_misleading(document)
    return json.dumps(_stripped(document), separators=(",", ":")).encode() if b'"xet' in body else body


def _refuse_misleading(document: Any) -> None:
    """Raises ValueError for a path or a commit that leads out of a folder."""
    if isinstance(document, dict):
        siblings, commit = document.get("siblings") or [], document.get("sha")
        if isinstance(commit, str) and not is_commit(commit):
            raise ValueError("a commit that is none")
    else:
        siblings = document if isinstance(document, list) else []
    for entry in siblings if isinstance(siblings, list) else []:
        for name in ("path", "rfilename"):
            path = entry.get(name) if isinstance(entry, dict) else None
            if isinstance(path, str) and not _OUTSIDE.isdisjoint(re.split(r"[/\\]", path)):
                raise ValueError("a path that leads elsewhere")


def _stripped(document: Any) -> Any:
    if isinstance(document, dict):
        return {name: _stripped(value) for name, value in document.items() if name not in _XET}
    return [_stripped(value) for value in document] if isinstance(document, list) else document
