"""What a request to a served directory means, and what the answers say: pure, without I/O.

Rules: https://huggingface.co/docs/hub/api, the client huggingface_hub, and RFC 9110 section 14.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlencode

from ..errors import SourceError
from .catalog import File, Repository, lfs_pointer

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "PAGE",
    "Refused",
    "Resource",
    "Signer",
    "model_document",
    "parse_paths",
    "parse_range",
    "parse_resource",
    "path_document",
    "tree_page",
    "truthy",
]

PAGE = 1000  # entries of a tree page, as on the Hub

_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE)


class Resource(NamedTuple):
    """What a request is about. `kind` is one of resolve, info, tree, paths-info, whoami and cdn."""

    kind: str
    name: str = ""
    revision: str = "main"
    path: str = ""


def parse_resource(raw_path: str) -> Resource | None:
    """Read a path that is still percent-encoded, so that an encoded slash stays inside its part.

    An id has one part or two. Returns None for a path that the protocol does not know.
    """
    parts = [unquote(part) for part in raw_path.removeprefix("/").split("/")]
    match parts:
        case ["api", "whoami-v2"]:
            return Resource("whoami")
        case ["cdn", digest]:
            return Resource("cdn", path=digest)
        case ["api", "models", *rest]:
            return _parse_api_resource(rest)
    for width in (1, 2):
        if len(parts) > width + 2 and parts[width] == "resolve":
            return Resource("resolve", "/".join(parts[:width]), parts[width + 1], "/".join(parts[width + 2 :]))
    return None


def _parse_api_resource(parts: list[str]) -> Resource | None:
    if 1 <= len(parts) <= 2:
        return Resource("info", "/".join(parts))
    for width in (1, 2):
        name = "/".join(parts[:width])
        match parts[width:]:
            case ["revision", revision]:
                return Resource("info", name, revision)
            case ["tree", revision, *path]:
                return Resource("tree", name, revision, "/".join(path).strip("/"))
            case ["paths-info", revision]:
                return Resource("paths-info", name, revision)
    return None


def parse_range(header: str | None, size: int) -> range | None:
    """The bytes that a Range header asks for, of `size`; None to send all of them.

    A header that is not understood, or that names several ranges, is ignored (RFC 9110, 14.2).
    An empty range means that it cannot be satisfied: 416.
    """
    found = _RANGE.fullmatch(header or "")
    if found is None:
        return None
    first, last = found.groups()
    if not first:
        return range(max(size - int(last), 0), size) if last else None
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)


def truthy(query: Mapping[str, str], name: str) -> bool:
    """Whether a flag of a query is set, in JavaScript's spelling or in Python's."""
    return query.get(name, "").lower() in ("1", "true")


def parse_paths(body: bytes, content_type: str) -> tuple[list[str], bool]:
    """The paths, and whether to expand, of a form or a JSON object. Raises ValueError."""
    if "json" not in content_type:
        fields = parse_qs(body.decode())
        return fields.get("paths", []), truthy({"expand": fields.get("expand", [""])[0]}, "expand")
    try:
        document = json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    paths = document.get("paths") if isinstance(document, dict) else None
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError("paths must be a list of strings")
    return paths, document.get("expand") is True


def model_document(repository: Repository, *, private: bool, gated: bool, blobs: bool) -> dict[str, Any]:
    """A model as /api/models words it; with `blobs` the size and the hash of each file too."""
    siblings: list[dict[str, Any]] = []
    for file in repository.files.values():
        sibling: dict[str, Any] = {"rfilename": file.path}
        if blobs:
            sibling |= {"size": file.size, "blobId": file.oid}
            if file.lfs:
                pointer = lfs_pointer(file.etag, file.size)
                sibling["lfs"] = {"sha256": file.etag, "size": file.size, "pointerSize": len(pointer)}
        siblings.append(sibling)
    return {
        "id": repository.name,
        "modelId": repository.name,
        "author": repository.name.rpartition("/")[0] or None,
        "sha": repository.commit,
        "lastModified": _date(repository),
        "private": private,
        "gated": "manual" if gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "usedStorage": sum(file.size for file in repository.files.values()),
        "siblings": siblings,
    }


def path_document(repository: Repository, path: str, *, expand: bool) -> dict[str, Any]:
    """A file or a folder as the tree and paths-info endpoints word it. No Xet hash: there is no Xet here."""
    file: File | None = repository.files.get(path)
    if file is None:
        document = {"type": "directory", "oid": repository.folders[path], "size": 0, "path": path}
    else:
        document = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
        if file.lfs:
            pointer = lfs_pointer(file.etag, file.size)
            document["lfs"] = {"oid": file.etag, "size": file.size, "pointerSize": len(pointer)}
    if expand:
        document["lastCommit"] = {"id": repository.commit, "title": "Served from disk", "date": _date(repository)}
    return document


def tree_page(repository: Repository, folder: str, query: Mapping[str, str]) -> tuple[list[str], str | None]:
    """The paths of one page under `folder` ("" for all), and the query of the next page if there is one.

    Raises ValueError when the cursor or the limit is malformed.
    """
    prefix = f"{folder}/" if folder else ""
    recursive = truthy(query, "recursive")
    after = base64.urlsafe_b64decode(query.get("cursor", "")).decode()
    limit = min(max(int(query.get("limit", PAGE)), 1), PAGE)
    paths = sorted(
        path
        for path in (*repository.files, *repository.folders)
        if path > after and path.startswith(prefix) and (recursive or "/" not in path[len(prefix) :])
    )
    if len(paths) <= limit:
        return paths, None
    cursor = base64.urlsafe_b64encode(paths[limit - 1].encode()).decode()
    return paths[:limit], urlencode({**query, "cursor": cursor})


def _date(repository: Repository) -> str:
    return datetime.fromtimestamp(repository.modified, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Refused(NamedTuple):
    """Why a storage service does not give the bytes: a status, and S3's code and message."""

    status: int
    code: str
    message: str


@dataclass(frozen=True)
class Signer:
    """Signs the URLs of the bytes and checks them, as a storage service does. `lifetime` is seconds."""

    secret: bytes
    lifetime: float

    def __post_init__(self) -> None:
        if not self.secret:
            raise SourceError("The secret that signs URLs must not be empty.")

    def query(self, digest: str, name: str, path: str) -> str:
        """The query of a signed URL for the file `path` of the model `name`."""
        fields = {"repository": name, "file": path, "Expires": str(int(time.time() + self.lifetime))}
        return urlencode({**fields, "X-Amz-Signature": self._sign(digest, fields)})

    def refusal(self, digest: str, query: Mapping[str, str]) -> Refused | None:
        """Why a URL is not, or no longer, good; None when it is."""
        fields = {name: query.get(name, "") for name in ("repository", "file", "Expires")}
        signature = query.get("X-Amz-Signature", "").encode()
        if not hmac.compare_digest(signature, self._sign(digest, fields).encode()):
            return Refused(403, "SignatureDoesNotMatch", "The signature does not match.")
        if time.time() >= int(fields["Expires"]):
            return Refused(403, "AccessDenied", "Request has expired")
        return None

    def _sign(self, digest: str, fields: Mapping[str, str]) -> str:
        text = json.dumps([digest, fields["repository"], fields["file"], fields["Expires"]])
        return hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()
