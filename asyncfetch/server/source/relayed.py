"""What of the source's documents is handed on to clients. Pure, without I/O."""

from __future__ import annotations

import json
import re
from typing import Any

from ...storage.cache import is_commit

__all__ = ["without_xet"]

_XET = frozenset({"xetHash", "xetEnabled"})
_OUTSIDE = frozenset({"", ".", ".."})  # no part of a path in a repository


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
