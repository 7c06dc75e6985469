"""What answers say of repositories, in the words of the Hub's API. Pure, without I/O.

Nothing here names Xet: a client that is told of it asks for a service that is not here.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from ..folders.repository import lfs_pointer
from ..protocol.wire import truthy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ..folders.repository import File, Repository

__all__ = [
    "PAGE",
    "Told",
    "commit_documents",
    "list_page",
    "listed_document",
    "path_document",
    "refs_document",
    "repository_document",
    "tree_page",
]

PAGE = 1000  # entries of a page, as on the Hub
TITLE = "Served from disk"
# What the Hub can be asked for and nothing on disk says.
UNKNOWN = frozenset(
    {"filter", "apps", "inference", "inference_provider", "pipeline_tag", "num_parameters", "trained_dataset"}
)

Query = Sequence[tuple[str, str]]


class Told(NamedTuple):
    """What is said of a repository beside its files."""

    kind: str
    private: bool
    gated: bool


def listed_document(name: str, told: Told) -> dict[str, Any]:
    """A repository as a listing words it: what is known without a look at its files."""
    ids = {"_id": hashlib.sha256(name.encode()).hexdigest()[:24], "id": name}
    return {
        **ids,
        **({"modelId": name} if told.kind == "models" else {}),
        "author": name.rpartition("/")[0] or None,
        "private": told.private,
        "gated": "manual" if told.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
    }


def repository_document(repository: Repository, told: Told, *, blobs: bool = False) -> dict[str, Any]:
    """A repository with its files; with `blobs` the size and the hash of each file too."""
    return {
        **listed_document(repository.name, told),
        "sha": repository.commit,
        "lastModified": _date(repository),
        "usedStorage": sum(file.size for file in repository.files.values()),
        "siblings": [_sibling(file, blobs) for file in repository.files.values()],
    }


def selected(document: Mapping[str, Any], expand: Collection[str]) -> dict[str, Any]:
    """What `expand` names of a document, and the id. What is not known of a repository is left out."""
    return {name: value for name, value in document.items() if name in expand or name in ("_id", "id")}


def _sibling(file: File, blobs: bool) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": file.path}
    if blobs:
        sibling |= {"size": file.size, "blobId": file.oid}
        if file.lfs:
            pointer = lfs_pointer(file.etag, file.size)
            sibling["lfs"] = {"sha256": file.etag, "size": file.size, "pointerSize": len(pointer)}
    return sibling


def path_document(repository: Repository, path: str, *, expand: bool) -> dict[str, Any]:
    """A file or a folder as the tree and paths-info endpoints word it."""
    file: File | None = repository.files.get(path)
    if file is None:
        document = {"type": "directory", "oid": repository.folders[path], "size": 0, "path": path}
    else:
        document = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
        if file.lfs:
            pointer = lfs_pointer(file.etag, file.size)
            document["lfs"] = {"oid": file.etag, "size": file.size, "pointerSize": len(pointer)}
    if expand:
        document["lastCommit"] = {"id": repository.commit, "title": TITLE, "date": _date(repository)}
    return document


def tree_page(repository: Repository, folder: str, query: Query) -> tuple[list[str], str | None]:
    """The paths of one page under `folder` ("" for all), and the query of the next page if there is one.

    Raises ValueError when the cursor or the limit is malformed.
    """
    prefix = f"{folder}/" if folder else ""
    recursive = truthy(dict(query), "recursive")
    paths = sorted(
        path
        for path in (*repository.files, *repository.folders)
        if path.startswith(prefix) and (recursive or "/" not in path[len(prefix) :])
    )
    return _page(paths, query)


def list_page(names: Iterable[str], query: Query) -> tuple[list[str], str | None]:
    """The ids of one page that `search` and `author` let through, and the query of the next page if there is one.

    What is asked for by tags, tasks and the like is known of no repository here. Raises ValueError.
    """
    asked = dict(query)
    if not UNKNOWN.isdisjoint(asked):
        names = ()
    search, author = asked.get("search", "").lower(), asked.get("author")
    found = [name for name in names if search in name.lower() and author in (None, name.rpartition("/")[0])]
    return _page(sorted(found), query)


def _page(names: list[str], query: Query) -> tuple[list[str], str | None]:
    """The names of one page, of all that are sorted, and the query of the next one. Raises ValueError."""
    asked = dict(query)
    after = base64.urlsafe_b64decode(asked.get("cursor", "")).decode()
    limit = min(max(int(asked.get("limit", PAGE)), 1), PAGE)
    names = [name for name in names if name > after] if after else names
    if len(names) <= limit:
        return names, None
    cursor = base64.urlsafe_b64encode(names[limit - 1].encode()).decode()
    return names[:limit], urlencode([*(pair for pair in query if pair[0] != "cursor"), ("cursor", cursor)])


def refs_document(refs: Mapping[str, str], *, pull_requests: bool) -> dict[str, Any]:
    """Branches, and pull requests where they are asked for. Whether a name is a tag, nothing on disk says."""
    branches = [name for name in refs if not name.startswith("refs/")]
    document: dict[str, Any] = {
        "tags": [],
        "branches": [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": refs[name]} for name in branches],
        "converts": [],
    }
    if pull_requests:
        document["pullRequests"] = [
            {"name": name.removeprefix("refs/"), "ref": name, "targetCommit": commit}
            for name, commit in refs.items()
            if name.startswith("refs/pr/")
        ]
    return document


def commit_documents(repository: Repository) -> list[dict[str, Any]]:
    """The history of a repository on disk: the one commit that is here."""
    return [{"id": repository.commit, "title": TITLE, "message": "", "authors": [], "date": _date(repository)}]


def _date(repository: Repository) -> str:
    return datetime.fromtimestamp(repository.modified, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
