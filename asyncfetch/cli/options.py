"""What the commands share: their options, and who is told how a load is going."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from ..api.options import RepoType
from ..errors import SourceError
from ..events import Event, Reporter
from ..policy import Policy
from ..progress.lines import Audience, Repeats, announcement
from ..progress.terminal import terminal_reporter
from ..words import size_of
from .output import for_people, json_reporter

__all__ = [
    "FLAG",
    "CommonFlags",
    "FetchFlags",
    "FileFlags",
    "LineFlags",
    "TensorFlags",
    "noticing",
    "reporting",
]

FLAG = Parameter(negative="", show_default=False)
Connections = Annotated[
    int | None,
    Parameter(validator=Number(gte=1), help="Connections at a time. Default: ASYNCFETCH_CONNECTIONS, or 16."),
]

Attempts = Annotated[
    int | None,
    Parameter(
        validator=Number(gte=1),
        help="Failures in a row that end it, where --patience does not hold. Default: ASYNCFETCH_ATTEMPTS, or 5.",
    ),
]
Bandwidth = Annotated[
    str | None, Parameter(help="Bytes a second at most, for all connections together, as 500k, 20M or 1G.")
]
Patience = Annotated[
    str | None,
    Parameter(
        help="How long to go on while the network is away, as 90s, 5m or 2h; 0 for a few attempts. "
        "Default: ASYNCFETCH_PATIENCE (seconds), or 5m."
    ),
]
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


@Parameter(name="*")
@dataclass(frozen=True)
class CommonFlags:
    """Where a checkpoint is, and who is told: for all commands on a source."""

    revision: str | None = None
    """Branch, tag or commit. Default: main."""
    subfolder: str | None = None
    """Folder within the source that holds the checkpoint."""
    variant: str | None = None
    """Variant in the file names, such as fp16."""
    cache_dir: Path | None = None
    """Cache to use instead of HF_HUB_CACHE."""
    endpoint: str | None = None
    """Hub to ask instead of HF_ENDPOINT."""
    offline: bool | None = None
    """Use only what is cached. Default: HF_HUB_OFFLINE."""
    quiet: Annotated[bool, FLAG, Parameter(alias="-q")] = False
    """No progress; only warnings and errors."""
    json: Annotated[bool, FLAG] = False
    """One JSON object a line on stdout: events, then a result or an error."""

    def arguments(self) -> dict[str, Any]:
        """These flags as the API takes them."""
        names = ("revision", "subfolder", "variant", "cache_dir", "endpoint", "offline")
        return {name: getattr(self, name) for name in names}


@Parameter(name="*")
@dataclass(frozen=True)
class TensorFlags:
    """Which tensors of it."""

    select: Annotated[tuple[str, ...], FLAG] = ()
    """Glob over tensor names, repeatable. Only shards that hold such tensors are fetched."""

    def arguments(self) -> dict[str, Any]:
        """These flags as the API takes them."""
        return {"select": list(self.select) or None}


@Parameter(name="*")
@dataclass(frozen=True)
class LineFlags:
    """How hard it is tried, and how fast."""

    connections: Connections = None
    attempts: Attempts = None
    patience: Patience = None
    bandwidth: Bandwidth = None

    def policy(self) -> Policy:
        """The policy that the environment asks for, with what these flags ask for instead."""
        given: dict[str, Any] = {"connections": self.connections, "attempts": self.attempts}
        if self.patience is not None:
            given["patience"] = _parse_duration("--patience", self.patience)
        if self.bandwidth is not None:
            given["bandwidth_limit"] = _parse_rate("--bandwidth", self.bandwidth)
        return replace(Policy.from_env(), **{name: value for name, value in given.items() if value is not None})


@Parameter(name="*")
@dataclass(frozen=True)
class FetchFlags:
    """How whole files are fetched."""

    checksum: Annotated[tuple[str, ...], FLAG] = ()
    """FILE=sha256:HEX for a file whose source gives no checksum, repeatable."""
    line: LineFlags = LineFlags()

    def arguments(self) -> dict[str, Any]:
        """These flags as the API takes them."""
        checksums = dict(map(_parse_checksum, self.checksum))
        return {"checksums": checksums or None, "policy": self.line.policy()}


@Parameter(name="*")
@dataclass(frozen=True)
class FileFlags:
    """Which files of a source."""

    repo_type: RepoType | None = None
    """dataset: a repository of data, of which all files come. Also: datasets/ORG/NAME."""
    weights_only: Annotated[bool, FLAG] = False
    """The checkpoint alone, without config, tokenizer and the like."""
    all: Annotated[bool, FLAG] = False
    """Every file."""
    include: Annotated[tuple[str, ...], FLAG] = ()
    """Glob over all files, repeatable: only what matches."""
    exclude: Annotated[tuple[str, ...], FLAG] = ()
    """Glob over files to leave out, repeatable."""
    local_dir: Path | None = None
    """Put the files into this folder too. What was changed there is not replaced."""
    overwrite: Annotated[bool, FLAG] = False
    """Replace what was changed in the folder of --local-dir."""

    def arguments(self, files: tuple[str, ...]) -> dict[str, Any]:
        """These flags, and the names of files, as the API takes them."""
        if self.all and (files or self.include):
            raise SourceError("--all is every file: it goes with no names and no --include.")
        include = ["*"] if self.all else list(self.include)
        return {
            "repo_type": self.repo_type,
            "weights_only": self.weights_only,
            "files": list(files) or None,
            "include": include or None,
            "exclude": list(self.exclude) or None,
            "local_dir": self.local_dir,
            "overwrite": self.overwrite,
        }


def _parse_duration(flag: str, text: str) -> float:
    """Seconds, of a number with or without its unit."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smh]?)", text.strip(), re.ASCII)
    if match is None:
        raise SourceError(f"{flag} {text!r} is not a time such as 90s, 5m or 2h.")
    return float(match[1]) * _SECONDS[match[2]]


def _parse_rate(flag: str, text: str) -> float:
    """Bytes a second. Raises SourceError."""
    rate = size_of(text.removesuffix("/s"))
    if not rate:
        raise SourceError(f"{flag} {text!r:.80} is not a rate such as 500k, 20M or 1G (bytes a second).")
    return rate


def _parse_checksum(text: str) -> tuple[str, str]:
    file, equals, checksum = text.rpartition("=")
    if not (file and equals and checksum.startswith("sha256:")):
        raise SourceError(f"--checksum {text!r} is not FILE=sha256:HEX.")
    return file, checksum


@contextmanager
def reporting(flags: CommonFlags) -> Iterator[Reporter]:
    """Who is told about a download: JSON lines, nobody but for warnings, or the terminal."""
    if flags.json or flags.quiet:
        with noticing(flags) as report:
            yield report
        return
    # Only a real terminal gets a table, even where FORCE_COLOR asks for colours in a log.
    interactive = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    with terminal_reporter(Console(stderr=True, force_interactive=interactive, highlight=False)) as report:
        yield report


@contextmanager
def noticing(flags: CommonFlags) -> Iterator[Reporter]:
    """Who is told about a look-up: JSON lines, or stderr about warnings and (unless quiet) what holds it up."""
    if flags.json:
        with json_reporter() as report:
            yield report
        return

    audience, repeats = Audience.QUIET if flags.quiet else Audience.LOOK_UP, Repeats()

    def notice(event: Event) -> None:
        line = announcement(event, audience)
        if line is not None and not repeats(event):
            print(for_people(line, sys.stderr), file=sys.stderr)

    try:
        yield notice
    finally:
        for line in repeats.rest():
            print(for_people(line, sys.stderr), file=sys.stderr)
