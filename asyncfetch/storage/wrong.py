"""Cached files that turned out to be wrong: not used any more, and replaced.

A wrong file stays where it is until its replacement takes its name, in one step. So a download that fails
costs nothing that was there, nobody sees a hole, who has it mapped keeps what he has, and no copy of it is
left behind. Only where there is no room for both does it go first (`RepoCache.drop_wrong`).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["WrongFiles"]


class WrongFiles:
    """Those that one call has found. They are known by what they are: another run may have put a good one there."""

    def __init__(self) -> None:
        self._paths: dict[tuple[int, ...], Path] = {}

    def add(self, path: Path) -> None:
        """The file at `path`, as it is now, is not to be used. Raises OSError, but not if it is gone meanwhile."""
        with suppress(FileNotFoundError):
            self._paths[_state(path)] = path

    def __contains__(self, path: Path) -> bool:
        """Whether the file at `path` is one of them. False if nothing is there."""
        if not self._paths:
            return False
        try:
            return _state(path) in self._paths
        except OSError:
            return False

    @property
    def paths(self) -> list[Path]:
        """Where they are, as far as they are still there."""
        return [path for path in self._paths.values() if path in self]


def _state(path: Path) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
