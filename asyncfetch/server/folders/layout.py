"""Which repositories lie in a directory, and where. Blocking calls: run them in a thread.

    DIR/org/name/...                    the model "org/name", when there is a file in or below it
    DIR/name/...                        the model "name", when the folder itself holds a file
    DIR/datasets/org/name/...           the dataset "org/name", and likewise "name"
    DIR/models--org--name/snapshots/... the model "org/name" of a hub cache, and likewise datasets--...
    DIR/...                             when DIR itself holds a checkpoint or a config: one model, called "name"
                                        and "local/name" after the folder, and nothing else

DIR may also be one repository of a hub cache, or one snapshot of it, which is what `asyncfetch download`
prints: then it is that repository alone, under its own name.

A request never becomes a path: names are compared with what a folder holds, so that their case counts on
every file system. What lies elsewhere is served only where links may be followed.
"""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...errors import SourceError
from ...storage.cache import is_commit

__all__ = [
    "CLOCK_TICK", "KINDS", "Layout", "Place", "Watched", "entries_of", "is_folder", "is_id", "kind_and_name",
    "qualified", "unchanged", "watch",
]  # fmt: skip

CLOCK_TICK = 0.05  # seconds; file systems stamp changes with a clock no coarser than this
KINDS = ("models", "datasets")
LOG = logging.getLogger("asyncfetch.server")

_NAME = re.compile(r"(?!.*\.\.)(?!.*--)[A-Za-z0-9_\-][A-Za-z0-9_\-.]{0,95}")
_MODEL_MARKS = ("config.json", ".safetensors", ".safetensors.index.json")
_RESERVED = frozenset({"api", "cdn", "datasets", "spaces"})  # how other addresses of the Hub begin
_MOST_SAID = 1000  # links that are told to be left out

Watched = dict[str, tuple[int, ...] | None]  # folders, each with its state; None where that cannot be relied on


def is_id(name: str) -> bool:
    """Whether `name` may be the id of a repository: one part or two, and no way out of a folder or of a URL."""
    parts = name.split("/")
    return len(parts) in (1, 2) and parts[0] not in _RESERVED and all(map(_NAME.fullmatch, parts))


class Place(NamedTuple):
    """Where a repository lies. `kind` is one of KINDS.

    `folder` is resolved. Of a `cached` one it holds refs and snapshots, and `only` is the one commit that is
    served of it, or None. `boundary` is the folder in which links must end, None where they may lead anywhere.
    """

    kind: str
    name: str
    folder: Path
    cached: bool
    boundary: Path | None
    only: str | None = None


def qualified(kind: str, name: str) -> str:
    """How a repository is named among those of all kinds, as in addresses: "org/name", "datasets/org/name"."""
    return name if kind == "models" else f"{kind}/{name}"


def kind_and_name(text: str) -> tuple[str, str]:
    """What `qualified` was made of."""
    first, _, rest = text.partition("/")
    return (first, rest) if first in KINDS[1:] else ("models", text)


def watch(folder: Path, watched: Watched) -> None:
    """Note the state of a folder, before it is read."""
    state = _state(os.fspath(folder))
    age = time.time() - state[3] / 1e9 if state else 0.0
    watched[os.fspath(folder)] = state if age > CLOCK_TICK else None  # a change in the same tick would not show


def unchanged(watched: Watched) -> bool:
    """Whether nothing was added to, removed from or renamed in these folders. Costs a stat for each."""
    return all(state is not None and _state(folder) == state for folder, state in watched.items())


def _state(folder: str) -> tuple[int, int, int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """What `folder` holds that may be served; nothing when it is gone or not readable.

    Left out are names that start with a dot (.git, .cache, .DS_Store), `*.incomplete`, and names that are not UTF-8
    or hold control characters.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if _servable(entry.name)]
    except OSError:
        return []


def _servable(name: str) -> bool:
    if name.startswith(".") or name.endswith(".incomplete"):
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return all(ord(character) >= 32 and ord(character) != 127 for character in name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; what cannot be looked at, such as a link to itself, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _folder_names(folder: Path) -> list[str]:
    return [entry.name for entry in entries_of(folder) if is_folder(entry)]


def _cached_name(folder: Path) -> tuple[str, str] | None:
    """Kind and id of a repository in a hub cache, by the name of its folder; None if it is none."""
    kind, *parts = folder.name.split("--")
    if kind not in KINDS or len(parts) not in (1, 2) or not all(map(_NAME.fullmatch, parts)):
        return None
    return (kind, "/".join(parts)) if (folder / "snapshots").is_dir() else None


def _own_name(root: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_\-.]+", "-", root.name).strip("-.")[:96]
    return re.sub(r"--+", "-", re.sub(r"\.{2,}", ".", name)) or "model"


@dataclass(frozen=True)
class _Within:
    """What a directory is, when it is a part of a hub cache."""

    repository: Path
    kind: str
    name: str
    only: str | None
    whole: bool  # a repository or a snapshot, and not a folder in one


def _within(root: Path) -> _Within | None:
    for folder in (root, *root.parents):
        if named := _cached_name(folder):
            below = root.relative_to(folder).parts
            commit = below[1] if len(below) > 1 and is_commit(below[1]) else None
            if below[:1] in ((), ("snapshots",)) and len(below) < 3 and (len(below) < 2 or commit):
                return _Within(folder, *named, commit, True)
            return _Within(folder, *named, commit, False)
    return None


class Layout:
    """The repositories of the directory `root`. Raises SourceError when it is not one that can be read."""

    def __init__(self, root: str | os.PathLike[str], *, follow_links: bool = False) -> None:
        try:
            self.root = Path(root).resolve(strict=True)
        except OSError as error:
            raise SourceError(f"{os.fspath(root)} cannot be served: {error.strerror or error}.") from error
        if not self.root.is_dir():
            raise SourceError(f"{self.root} cannot be served: it is not a directory.")
        self._within = _within(self.root)
        within = self._within.repository if self._within else self.root
        self.boundary = None if follow_links else within
        self._said: set[str] = set()

    def names(self, kind: str) -> list[str]:
        """The ids that are served, sorted. Looks at two levels of folders and hashes nothing."""
        if (alone := self._alone(kind)) is not None:
            return alone[:1]
        found = [named[1] for folder in self._caches() if (named := _cached_name(folder)) and named[0] == kind]
        base = self._base(kind)
        for first in _folder_names(base):
            if self.locate(kind, first)[0]:
                found.append(first)
            else:
                found += [f"{first}/{second}" for second in _folder_names(base / first)]
        return sorted({name for name in found if self.locate(kind, name)[0]})

    def locate(self, kind: str, name: str) -> tuple[Place | None, Watched]:
        """Where the repository `name` lies, or None; and the folders that say so."""
        watched: Watched = {}
        watch(self.root, watched)
        parts = name.split("/")
        if len(parts) > 2 or not all(map(_NAME.fullmatch, parts)) or (kind == "models" and parts[0] in _RESERVED):
            return None, watched
        if (alone := self._alone(kind)) is not None:
            return (self._place(kind, name) if name in alone else None), watched
        if folder := self._find(self._base(kind), parts, watched):
            return Place(kind, name, folder, cached=False, boundary=self.boundary), watched
        for folder in self._caches():
            if folder.name == "--".join((kind, *parts)) and _cached_name(folder):
                return self._cached(kind, name, folder), watched
        return None, watched

    def leads_out(self, real: str, link: str) -> bool:
        """Whether a link ends where nothing may be served. Each is said once."""
        if self.boundary is None or Path(real).is_relative_to(self.boundary):
            return False
        if link not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(link)
            LOG.info(
                "%s is left out: it is a link to %s, outside of %s; see --follow-links.", link, real, self.boundary
            )
        return True

    def _base(self, kind: str) -> Path:
        return self.root if kind == "models" else self.root / kind

    def _alone(self, kind: str) -> list[str] | None:
        """The names of the one repository that the directory is, of this kind; None if it is none."""
        if (within := self._within) is not None and within.whole:
            return [within.name] if within.kind == kind else []
        if within is None and not any(e.name.endswith(_MODEL_MARKS) and _is_file(e) for e in entries_of(self.root)):
            return None
        own = _own_name(self.root)
        return [own, f"local/{own}"] if kind == "models" else []

    def _place(self, kind: str, name: str) -> Place:
        """The one repository that the directory is."""
        if (within := self._within) is None or not within.whole:
            return Place(kind, name, self.root, cached=False, boundary=self.boundary)
        return Place(kind, name, within.repository, cached=True, boundary=self.boundary, only=within.only)

    def _caches(self) -> list[Path]:
        return [self.root / name for name in _folder_names(self.root) if name.startswith(("models--", "datasets--"))]

    def _cached(self, kind: str, name: str, folder: Path) -> Place | None:
        real = folder.resolve()
        if real != folder and self.leads_out(os.fspath(real), os.fspath(folder)):
            return None
        # Links of a snapshot lead to the blobs beside it; where huggingface_hub shares blobs, elsewhere in the cache.
        return Place(kind, name, real, cached=True, boundary=self.boundary)

    def _find(self, base: Path, parts: list[str], watched: Watched) -> Path | None:
        """The folder of a repository that is no cache, by the names of its parts."""
        folder = base
        for part in parts:
            watch(folder, watched)
            if part not in _folder_names(folder):
                return None
            folder = folder / part
        real = folder.resolve()
        if self.root.is_relative_to(real):  # a link to the directory itself, or to what holds it
            return None
        if self.leads_out(os.fspath(real), os.fspath(folder)):
            return None
        watch(real, watched)
        holding = self._holding(real, deep=len(parts) > 1)
        if holding is not None:
            watch(holding, watched)
        return None if holding is None else real

    def _holding(self, top: Path, *, deep: bool) -> Path | None:
        """The first folder with a file that may be served: `top`, or where `deep` one below. It ends at that file."""
        folders, passed = [top], {top}
        for folder in folders:
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in filter(lambda entry: _servable(entry.name), entries):
                    if _is_file(entry) and os.access(entry.path, os.R_OK):
                        real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                        if not self.leads_out(real, entry.path):
                            return folder
                    elif deep and is_folder(entry) and (self.boundary is None or not entry.is_symlink()):
                        below = Path(os.path.realpath(entry.path))
                        folders += [below] if below not in passed else []
                        passed.add(below)
        return None
