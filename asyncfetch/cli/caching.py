"""`asyncfetch cache`: what is cached, whether it is right, and what may go."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from ..errors import AsyncfetchError, SourceError
from ..format.near import near_name
from ..progress.text import files, printable, size_text
from ..storage.checksums import Checksum, checksum_of_etag, verify_file
from ..storage.inventory import CachedRepository, cached_repositories
from ..storage.removal import (
    Removal,
    commits_of,
    drop_if_empty,
    entries_of,
    plan_removal,
    remove,
    remove_partial,
)
from ..storage.roots import cache_root
from .options import FLAG
from .output import flush_stdout, print_json, print_table

__all__ = ["cache_app"]

cache_app = App(name="cache", help="List, verify and remove what is cached, beside running downloads.")

CacheDir = Annotated[Path | None, Parameter(help="Cache to use instead of HF_HUB_CACHE.")]
Json = Annotated[bool, FLAG, Parameter(help="One JSON object on stdout.")]
DryRun = Annotated[bool, FLAG, Parameter(help="Remove nothing; tell what would be removed.")]
Targets = Annotated[str, Parameter(help="org/model, datasets/org/data, org/model@revision, or a commit.")]

_COMMIT = re.compile(r"[0-9a-f]{7,40}")


@cache_app.command(name=["list", "ls"])
def list_cache(
    *,
    commits: Annotated[bool, FLAG, Parameter(help="A line for each commit.")] = False,
    cache_dir: CacheDir = None,
    json: Json = False,
) -> None:
    """List the repositories of the cache: sizes, last use, refs, and downloads that are not complete."""
    root = cache_root(os.environ, cache_dir)
    found = cached_repositories(root)
    if json:
        return print_json(
            {"type": "result", "command": "cache list", "cache_dir": str(root), "repositories": _told(found)}
        )
    if commits:
        rows = [
            (one.name, each.commit, each.files, each.nbytes, _refs(each.refs)) for one in found for each in one.commits
        ]
        print_table(["repository", "commit", "files", "bytes", "refs"], rows, right=["files", "bytes"])
    else:
        now = time.time()
        lines = [(one.name, one.nbytes, _ago(now - one.accessed) if one.accessed else "never", len(one.commits),
                  _refs(ref for each in one.commits for ref in each.refs), _partial(one)) for one in found]  # fmt: skip
        columns = ["repository", "bytes", "used", "commits", "refs", "incomplete"]
        print_table(columns, lines, right=["bytes", "commits"])
    total = sum(one.nbytes for one in found)
    _aside(f"{_count(len(found), 'repository', 'repositories')}, {size_text(total)} in {printable(str(root))}")
    _advise(found)
    return None


def _told(found: list[CachedRepository]) -> list[dict[str, object]]:
    return [
        {
            "name": one.name,
            "nbytes": one.nbytes,
            "accessed": one.accessed or None,
            "modified": one.modified or None,
            "commits": [
                {"commit": each.commit, "refs": each.refs, "files": each.files, "nbytes": each.nbytes}
                for each in one.commits
            ],
            "partials": [{"path": str(p.path), "nbytes": p.nbytes, "busy": p.busy} for p in one.partials],
            "unnamed": {str(path): size for path, size in one.unnamed.items()},
            "dangling": [str(entry.path) for entry in one.dangling],
        }
        for one in found
    ]


def _refs(refs: Iterable[str]) -> str:
    return ",".join(sorted(refs)) or "none"


def _partial(one: CachedRepository) -> str:
    if not one.partials:
        return "no"
    held = size_text(sum(partial.nbytes for partial in one.partials))
    return f"{held}, being downloaded" if any(partial.busy for partial in one.partials) else held


def _ago(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count:
            return f"{_count(count, unit)} ago"
    return "now"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def _advise(found: list[CachedRepository]) -> None:
    idle = [partial for one in found for partial in one.partials if not partial.busy]
    unnamed = [size for one in found for size in one.unnamed.values()]
    detached = sum(len(one.detached) for one in found)
    parts = [f"{_count(detached, 'commit')} that no ref names"] if detached else []
    parts += [f"{files(len(idle))} not complete ({size_text(sum(one.nbytes for one in idle))})"] if idle else []
    parts += [f"{files(len(unnamed))} that no commit has ({size_text(sum(unnamed))})"] if unnamed else []
    if parts:
        _aside(f"hint: asyncfetch cache prune removes {', '.join(parts)}")


@cache_app.command
def verify(*targets: Targets, cache_dir: CacheDir = None, json: Json = False) -> int:
    """Hash all that is cached, or some of it, and hold it against its names; exit with 5 if something is wrong."""
    root = cache_root(os.environ, cache_dir)
    found = cached_repositories(root)
    chosen = _chosen(found, targets) if targets else {id(one): _Chosen(one, set()) for one in found}
    wrong: list[dict[str, str]] = []
    checked = 0
    for choice in chosen.values():
        name = choice.repository.name
        for path, (file, checksum) in _to_check(choice).items():
            checked += checksum is not None
            try:
                if checksum is not None:
                    verify_file(path, checksum, file=file)
            except AsyncfetchError as error:
                wrong.append({"repository": name, "file": file, "path": str(path), "error": error.message})
        for entry in choice.repository.dangling:
            if not choice.commits or entry.commit in choice.commits:
                gone = f"{entry.name}: its blob is not there."
                wrong.append({"repository": name, "file": entry.name, "path": str(entry.path), "error": gone})
    code = 5 if wrong else 0
    if json:
        print_json(
            {
                "type": "result",
                "command": "cache verify",
                "ok": not wrong,
                "exit_code": code,
                "checked": checked,
                "wrong": wrong,
            }
        )
        return code
    for one in wrong:
        print(f"{printable(one['repository'])}: {printable(one['error'])}")
    _aside(f"{files(checked)} checked, {len(wrong):,} wrong")
    for name in dict.fromkeys(one["repository"] for one in wrong):
        _aside(f"hint: asyncfetch download --verify-cache {printable(name)}")
    return code


@dataclass(slots=True)
class _Chosen:
    """A repository, and the commits of it that are meant; none: all."""

    repository: CachedRepository
    commits: set[str] = field(default_factory=set)


def _to_check(choice: _Chosen) -> dict[Path, tuple[str, Checksum | None]]:
    """Each file once: what it is called, and the hash that its name, or the listing of its commit, promises."""
    cache, found = choice.repository.cache, dict[Path, tuple[str, Checksum | None]]()
    for entry in entries_of(cache):
        if choice.commits and entry.commit not in choice.commits:
            continue
        if entry.blob is not None and entry.blob.exists():
            found.setdefault(entry.blob, (entry.name, checksum_of_etag(entry.blob.name)))
        elif entry.blob is None and entry.path.is_file():
            listed = (cache.tree(entry.commit) or {}).get(entry.name)
            found[entry.path] = entry.name, cache.checksum_of(entry.path) or (listed.checksum if listed else None)
    if not choice.commits:
        found |= {path: (path.name, checksum_of_etag(path.name)) for path in choice.repository.unnamed}
    return found


def _chosen(found: list[CachedRepository], targets: Iterable[str]) -> dict[int, _Chosen]:
    """What is meant by names, of what is here. Raises SourceError for what is not."""
    chosen: dict[int, _Chosen] = {}
    for target in targets:
        name, _, revision = target.partition("@")
        named = name.removeprefix("models/").removeprefix("model/")
        named = re.sub(r"^(dataset|space)/", r"\1s/", named)
        matches = [(one, _commits(one, revision)) for one in found if one.name == named]
        if not matches and not revision and _COMMIT.fullmatch(target):
            matches = [(one, {each.commit}) for one in found for each in one.commits if each.commit.startswith(target)]
        if not matches:
            near = near_name(named, [one.name for one in found])
            hint = "`asyncfetch cache list` tells what is." if near is None else f"Is it {near!r}?"
            raise SourceError(f"{target!r} is not in the cache.", hint=hint)
        for one, commits in matches:
            before = chosen.get(id(one))
            merged = commits | before.commits if before and commits and before.commits else set()
            chosen[id(one)] = _Chosen(one, merged if before else commits)
    return chosen


def _commits(one: CachedRepository, revision: str) -> set[str]:
    if not revision:
        return set()
    short = _COMMIT.fullmatch(revision) is not None
    named = {
        each.commit for each in one.commits if revision in each.refs or (short and each.commit.startswith(revision))
    }
    if not named:
        raise SourceError(
            f"{one.name}@{revision} is not in the cache.", hint="`asyncfetch cache list --commits` tells what is."
        )
    return named


@cache_app.command
def rm(*targets: Targets, dry_run: DryRun = False, cache_dir: CacheDir = None, json: Json = False) -> None:
    """Remove repositories or commits, but for what a download needs at the moment."""
    if not targets:
        raise SourceError("Name what is to be removed.", hint="`asyncfetch cache list` tells what there is.")
    found = cached_repositories(cache_root(os.environ, cache_dir))
    gone = _Gone("cache rm", dry_run)
    for choice in _chosen(found, targets).values():
        one, whole = choice.repository, not choice.commits
        unnamed = [path.name for path in one.unnamed] if whole else []
        commits = choice.commits or commits_of(one.cache)
        gone.carry_out(one, plan_removal(one.cache, commits=commits, blobs=unnamed), partials=whole)
    gone.tell(as_json=json)


@cache_app.command
def prune(*, dry_run: DryRun = False, cache_dir: CacheDir = None, json: Json = False) -> None:
    """Remove commits that no ref names, downloads that nobody goes on with, and files that no commit has."""
    gone = _Gone("cache prune", dry_run)
    for one in cached_repositories(cache_root(os.environ, cache_dir)):
        if one.detached or one.partials or one.unnamed:
            plan = plan_removal(one.cache, commits=one.detached, blobs=[path.name for path in one.unnamed])
            gone.carry_out(one, plan, partials=True)
    gone.tell(as_json=json)


@dataclass(slots=True)
class _Gone:
    """What was removed, or would be."""

    command: str
    dry_run: bool
    lines: list[tuple[str, str, int]] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    nbytes: int = 0

    def carry_out(self, one: CachedRepository, plan: Removal, *, partials: bool) -> None:
        """Remove what is planned of a repository, and what is left of downloads of it."""
        self.lines += [(one.name, f"commit {commit}", 0) for commit in plan.commits]
        self.lines += [(one.name, f"blob {path.name}", size) for path, size in plan.blobs.items()]
        idle = [partial for partial in one.partials if not partial.busy] if partials else []
        self.busy += [str(partial.path) for partial in one.partials if partials and partial.busy]
        self.lines += [(one.name, f"incomplete {partial.path.name}", partial.nbytes) for partial in idle]
        if self.dry_run:
            self.nbytes += plan.nbytes + sum(partial.nbytes for partial in idle)
            return
        removed = remove(plan)
        self.nbytes += removed.nbytes
        self.busy += map(str, removed.busy)
        for partial in idle:
            freed = remove_partial(one.cache, partial.path)
            self.nbytes += freed or 0
            if freed is None:
                self.busy.append(str(partial.path))
        drop_if_empty(one.cache)

    def tell(self, *, as_json: bool) -> None:
        """Say so."""
        if as_json:
            removed = [{"repository": name, "what": what, "nbytes": size} for name, what, size in self.lines]
            told = {"dry_run": self.dry_run, "removed": removed, "busy": self.busy, "nbytes": self.nbytes}
            print_json({"type": "result", "command": self.command, **told})
            return
        if self.lines:
            print_table(["repository", "removed", "bytes"], self.lines, right=["bytes"])
        word = "would be freed" if self.dry_run else "freed"
        _aside(f"{size_text(self.nbytes)} {word}" if self.lines else "nothing to remove")
        for path in self.busy:
            _aside(f"kept: {printable(path)} is being downloaded, or in use by now")


def _aside(line: str) -> None:
    flush_stdout()
    print(line, file=sys.stderr)
