"""Where the cache of all repositories is, and how the part is called that is of a plain URL."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import SourceError, redact_url

__all__ = ["cache_root", "expanded", "url_repo_id"]


def cache_root(environ: Mapping[str, str], explicit: str | os.PathLike[str] | None = None) -> Path:
    """The folder of all cached repositories, by the same variables as huggingface_hub. Raises SourceError."""
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    path = expanded(named) if explicit is None else expanded(os.fspath(explicit), variables=False)
    if path is None:
        raise SourceError(
            f"There is no place for the cache: {os.fspath(explicit or named)!r} is in a home folder that is not known.",
            hint="Set HF_HOME to a folder, or pass cache_dir=.",
        )
    return path


def expanded(text: str, *, variables: bool = True) -> Path | None:
    """A path with `~` and variables replaced; None if it begins in a home folder that is not known.

    That is so where HOME is not set and the system does not know the user, as in a container with a uid of its own.
    """
    path = os.path.expanduser(os.path.expandvars(text) if variables else text)
    return None if path.startswith("~") else Path(path)


def url_repo_id(url: str, query: str = "") -> str:
    """The cache name for files of a plain URL: a repository of the reserved owner `url`.

    Kept in the same layout, so that the Hub's tools list and delete them like any other. Nothing of
    a user name or a password in the URL is in it. `query` is what of its query says which files they are.
    """
    shown = redact_url(url)
    netloc = re.match(r"[^:/]*://([^/?#]*)", shown)
    host = re.sub(r"[^A-Za-z0-9]+", "-", netloc[1] if netloc else "")[:60].strip("-") or "host"
    named = f"{shown}?{query}" if query else shown
    return f"url/{host}-{hashlib.sha256(named.encode()).hexdigest()[:16]}"
