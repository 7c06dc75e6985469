"""Where the cache of all repositories is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import SourceError

__all__ = ["cache_root", "expanded"]


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
