"""What a request to the server means: pure, without I/O.

Rules: https://huggingface.co/docs/hub/api, the client huggingface_hub, and RFC 9110, sections 13 and 14.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, unquote

from ..folders.layout import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Resource", "parse_paths", "parse_range", "parse_resource", "precondition", "truthy"]

_RANGE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.IGNORECASE)
_ETAG = re.compile(r'(W/)?("[^"]*")')
_DIGITS = 18  # of a number that is larger than every file


class Resource(NamedTuple):
    """What a request is about.

    `action` is resolve, raw, page (of a repository), info, tree, paths-info, refs, commits or auth-check, each of the
    repository `name`; list, home, whoami or cdn of none. `kind` is "models" or "datasets".
    """

    action: str
    name: str = ""
    revision: str = "main"
    path: str = ""
    kind: str = "models"


def parse_resource(raw_path: str) -> Resource | None:
    """Read a path that is still percent-encoded, so that an encoded slash stays inside its part.

    An id has one part or two. Returns None for a path that the protocol does not know.
    """
    parts = [unquote(part) for part in raw_path.removeprefix("/").split("/")]
    match parts:
        case [""]:
            return Resource("home")
        case ["api", "whoami-v2"]:
            return Resource("whoami")
        case ["cdn", digest]:
            return Resource("cdn", path=digest)
        case ["api", kind] if kind in KINDS:
            return Resource("list", kind=kind)
        case ["api", kind, *rest]:
            return _parse_api_resource(kind, rest) if kind in KINDS else None
    kind = "models"
    if len(parts) > 1 and parts[0] in KINDS:
        kind, *parts = parts
    for width in (1, 2):
        if len(parts) > width + 2 and parts[width] in ("resolve", "raw"):
            name, action, revision = "/".join(parts[:width]), parts[width], parts[width + 1]
            return Resource(action, name, revision, "/".join(parts[width + 2 :]), kind)
    return Resource("page", "/".join(parts), kind=kind) if len(parts) < 3 and all(parts) else None


def _parse_api_resource(kind: str, parts: list[str]) -> Resource | None:
    for width in (1, 2):
        name = "/".join(parts[:width])
        match parts[width:]:
            case ["revision", revision]:
                return Resource("info", name, revision, kind=kind)
            case ["tree", revision, *path]:
                return Resource("tree", name, revision, "/".join(path).strip("/"), kind)
            case ["paths-info" | "commits" as action, revision]:
                return Resource(action, name, revision, kind=kind)
            case ["refs" | "auth-check" as action]:
                return Resource(action, name, kind=kind)
    return Resource("info", "/".join(parts), kind=kind) if 1 <= len(parts) <= 2 else None


def parse_range(header: str | None, size: int) -> range | None:
    """The bytes that a Range header asks for, of `size`; None to send all of them.

    A header that is not understood, or that names several ranges, is ignored (RFC 9110, 14.2).
    An empty range means that it cannot be satisfied: 416.
    """
    found = _RANGE.fullmatch(header or "")
    if found is None:
        return None
    first, last = (digits if len(digits) <= _DIGITS else "9" * _DIGITS for digits in found.groups())
    if not first:
        return range(max(size - int(last), 0), size) if last else None
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)


def precondition(if_match: str, if_none_match: str, etag: str) -> int | None:
    """The status of a GET or a HEAD that is answered without the file, whose strong ETag is `etag`: 412, 304, or None.

    The headers are the lines of each, joined by commas (RFC 9110, 13.2.2). Dates are ignored: no file has one here.
    """
    if if_match.strip() not in ("", "*") and ("", etag) not in _ETAG.findall(if_match):
        return 412
    if if_none_match.strip() == "*" or etag in [found for _, found in _ETAG.findall(if_none_match)]:
        return 304
    return None


def truthy(query: Mapping[str, str], name: str) -> bool:
    """Whether a flag of a query is set, in JavaScript's spelling or in Python's."""
    return query.get(name, "").lower() in ("1", "true")


def parse_paths(body: bytes, content_type: str, most: int) -> tuple[list[str], bool]:
    """The paths, `most` of them, and whether to expand, of a form or a JSON object. Raises ValueError."""
    if "json" not in content_type:
        fields = parse_qs(body.decode(), max_num_fields=most + 1)
        return fields.get("paths", []), truthy({"expand": fields.get("expand", [""])[0]}, "expand")
    try:
        document = json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    paths = document.get("paths") if isinstance(document, dict) else None
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError("paths must be a list of strings")
    if len(paths) > most:
        raise ValueError("too many paths")
    return paths, document.get("expand") is True
