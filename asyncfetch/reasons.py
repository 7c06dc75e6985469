"""What it means that the system refuses something with a file: the reason in words, and what to do about it."""

from __future__ import annotations

import errno
import os
import resource
from typing import Literal

__all__ = ["NO_PERMISSION", "NO_ROOM", "Writing", "blamed", "elsewhere", "hint_of", "larger", "reason_of"]

NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
NO_ROOM = {errno.ENOSPC: "room", errno.EDQUOT: "quota"}  # and what is used up

# What is done with a file that is not only read: "folder" is that of local_dir=, "output" what a call writes elsewhere.
Writing = Literal["cache", "folder", "output", "removal"]
_BY: dict[Writing, str] = {"cache": " with cache_dir= or HF_HUB_CACHE", "folder": " with local_dir="}
_INSTEAD: dict[Writing, str] = {
    "cache": f'Choose another folder{_BY["cache"]}, or pass storage="memory", which writes nothing.',
    "folder": f"Choose another folder{_BY['folder']}.",
    "output": "Choose another folder.",
    "removal": "Remove it as its owner, where the file system is not read-only.",
}


def blamed(error: OSError, path: object) -> str:
    """The path that refused: the one that the system names, else `path`. Where a file may not be made, its folder.

    Of two paths the system does not tell which one it means.
    """
    named = error.filename if error.filename2 is None else None
    if not isinstance(named, str | bytes | os.PathLike) or not named:
        return str(path)
    where = os.fsdecode(named)
    while error.errno in NO_PERMISSION and not os.path.lexists(where) and os.path.dirname(where) not in ("", where):
        where = os.path.dirname(where)
    return where


def reason_of(error: OSError) -> str:
    """What happened, without a full stop."""
    match error.errno:
        case errno.EFBIG:
            return "a file of this size is more than its file system, or the limit of this process, allows"
        case errno.EMFILE:
            return f"{error.strerror or error}, this process may have {_limit(resource.RLIMIT_NOFILE)} (ulimit -n)"
        case errno.EROFS:
            return "the file system may only be read"
        case errno.ENOENT if _counts_from_nowhere(error):
            return "the working directory was removed"
        case _:
            return error.strerror or str(error)


def hint_of(error: OSError, *, writing: Writing | None) -> str | None:
    """What to do. None: nothing that is better than what is always said."""
    instead = _INSTEAD[writing or "cache"]
    match error.errno:
        case errno.EFBIG:
            limit = _limit(resource.RLIMIT_FSIZE)
            lift = "" if limit == "unlimited" else f"Raise the limit of {limit} bytes (ulimit -f), or: "
            return lift + instead
        case errno.EMFILE:
            return "Raise that limit, or use fewer connections (ASYNCFETCH_CONNECTIONS)."
        case code if code in NO_PERMISSION and writing:
            return instead
        case errno.ENAMETOOLONG:
            return f"Choose a folder with a shorter path{_BY.get(writing or 'cache', '')}."
        case errno.ENOENT if _counts_from_nowhere(error):
            return "Give an absolute path, or change into a folder that exists."
        case _:
            return None


def elsewhere(writing: Writing) -> str:
    """What to do where a folder cannot be made."""
    return f"Choose another folder{_BY.get(writing, '')}."


def larger(writing: Writing | None) -> str:
    """What to do where there is no room."""
    match writing:
        case "folder":
            return "Free some space, or choose a folder on a larger disk with local_dir=."
        case "output":
            return "Free some space, or choose a folder on a larger disk."
        case _:
            return "Free some space, or point HF_HUB_CACHE or cache_dir= to a larger disk."


def _counts_from_nowhere(error: OSError) -> bool:
    """Whether a path is relative to a working directory that is gone."""
    named = error.filename
    if not isinstance(named, str | bytes | os.PathLike) or os.path.isabs(named):
        return False
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _limit(kind: int) -> str:
    soft = resource.getrlimit(kind)[0]
    return "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
