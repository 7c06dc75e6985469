"""What the commands share: their options, and who is told how a load is going."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from ..errors import SourceError
from ..events import Event, Reporter
from ..policy import Policy
from .output import json_reporter
from .terminal import terminal_reporter
from .wording import Audience, announcement

__all__ = ["FLAG", "Options", "Selection", "noticing", "reporting"]

FLAG = Parameter(negative="", show_default=False)


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What all commands on a source share."""

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
    quiet: Annotated[bool, FLAG] = False
    """No progress; only warnings and errors."""
    json: Annotated[bool, FLAG] = False
    """One JSON object a line on stdout: events, then a result or an error."""

    def arguments(self) -> dict[str, Any]:
        """These options as the API takes them."""
        names = ("revision", "subfolder", "variant", "cache_dir", "endpoint", "offline")
        return {name: getattr(self, name) for name in names}


@Parameter(name="*")
@dataclass(frozen=True)
class Selection:
    """Which tensors, and how to fetch them."""

    select: Annotated[tuple[str, ...], FLAG] = ()
    """Glob over tensor names, repeatable. Only shards that hold such tensors are fetched."""
    checksum: Annotated[tuple[str, ...], FLAG] = ()
    """FILE=sha256:HEX for a file whose source gives no checksum, repeatable."""
    connections: int | None = None
    """Connections at a time. Default: ASYNCFETCH_CONNECTIONS, or 16."""

    def arguments(self) -> dict[str, Any]:
        """These options as the API takes them."""
        policy = Policy.from_env()
        if self.connections is not None:
            policy = replace(policy, connections=self.connections)
        return {
            "select": list(self.select) or None,
            "checksums": dict(map(_parse_checksum, self.checksum)) or None,
            "policy": policy,
        }


def _parse_checksum(text: str) -> tuple[str, str]:
    file, equals, checksum = text.rpartition("=")
    if not (file and equals and checksum.startswith("sha256:")):
        raise SourceError(f"--checksum {text!r} is not FILE=sha256:HEX.")
    return file, checksum


@contextmanager
def reporting(options: Options) -> Iterator[Reporter]:
    """Who is told about a download: JSON lines, nobody but for warnings, or the terminal."""
    if options.json or options.quiet:
        with noticing(options) as report:
            yield report
        return
    # Only a real terminal gets a table, even where FORCE_COLOR asks for colours in a log.
    interactive = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    with terminal_reporter(Console(stderr=True, force_interactive=interactive, highlight=False)) as report:
        yield report


@contextmanager
def noticing(options: Options) -> Iterator[Reporter]:
    """Who is told about a look-up: JSON lines, or stderr about warnings and (unless quiet) what holds it up."""
    if options.json:
        with json_reporter() as report:
            yield report
        return

    audience = Audience.QUIET if options.quiet else Audience.LOOK_UP

    def notice(event: Event) -> None:
        line = announcement(event, audience)
        if line is not None:
            print(line, file=sys.stderr)

    yield notice
