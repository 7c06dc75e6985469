"""Who watches a call beside its reporter: the log, and people who asked for `progress=True`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio

from ..errors import AsyncfetchError
from ..events import Reporter
from ..progress.log import LoadLog
from ..progress.shown import shown
from ..tasks import off_loop
from .options import Sought, Source

__all__ = ["watching"]


@asynccontextmanager
async def watching(source: Source, wanted: Sought) -> AsyncIterator[Sequence[Reporter]]:
    """Those who hear of a load of `source` while the block runs."""
    log = LoadLog(os.fspath(source) if isinstance(source, str | os.PathLike) else "")
    try:
        if not _is_shown(wanted):
            yield [log]
            return
        display = shown()
        show = await off_loop(display.__enter__, slow=True)  # which may import rich
        try:
            yield [log, show]
        finally:
            with anyio.CancelScope(shield=True):
                await off_loop(lambda: display.__exit__(None, None, None), slow=True)
    except AsyncfetchError as error:
        log.failed(error)
        raise


def _is_shown(wanted: Sought) -> bool:
    asked = wanted.get("progress")
    if asked is None:
        return wanted.get("report") is None and os.environ.get("ASYNCFETCH_PROGRESS", "") not in ("", "0")
    return asked
