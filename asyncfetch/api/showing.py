"""Who watches a call beside its reporter: the log, OpenTelemetry, and people who asked for `progress=True`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio

from ..errors import AsyncfetchError
from ..events import Reporter
from ..progress.log import LoadLog
from ..progress.shown import shown
from ..progress.telemetry import begin_telemetry, is_used
from ..tasks import off_loop
from .options import Sought, Source

__all__ = ["watching"]


@asynccontextmanager
async def watching(operation: str, source: Source, wanted: Sought) -> AsyncIterator[Sequence[Reporter]]:
    """Those who hear of a load of `source` while the block runs. `operation`: the name of the call."""
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    log, telemetry = LoadLog(name), None
    if is_used():
        telemetry = await off_loop(lambda: begin_telemetry(operation, name), slow=True)
    watchers: list[Reporter] = [log] if telemetry is None else [log, telemetry]
    try:
        async with _display(wanted) as display:
            yield [*watchers, *display]
    except BaseException as error:
        if isinstance(error, AsyncfetchError):
            log.failed(error)
        if telemetry is not None:
            telemetry.end(error)
        raise
    if telemetry is not None:
        telemetry.end()


@asynccontextmanager
async def _display(wanted: Sought) -> AsyncIterator[Sequence[Reporter]]:
    """The table or the lines that people look at, if they asked for it."""
    if not _is_shown(wanted):
        yield []
        return
    display = shown()
    show = await off_loop(display.__enter__, slow=True)  # which may import rich
    try:
        yield [show]
    finally:
        with anyio.CancelScope(shield=True):
            await off_loop(lambda: display.__exit__(None, None, None), slow=True)


def _is_shown(wanted: Sought) -> bool:
    asked = wanted.get("progress")
    if asked is None:
        return wanted.get("report") is None and os.environ.get("ASYNCFETCH_PROGRESS", "") not in ("", "0")
    return asked
