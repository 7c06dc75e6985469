"""The log "asyncfetch": at INFO what a load did, in a handful of lines however many files; at DEBUG the rest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ..events import Event, FileProgress, Finished, Resolved, Retrying, Waiting, Warned, Writing
from ..words import fit_to_show
from .lines import Audience, announcement
from .text import printable

__all__ = ["LoadLog"]

LOG = logging.getLogger("asyncfetch")
APART = 10.0  # seconds between two lines at INFO with the same reason: a thousand files may wait for one thing


class LoadLog:
    """A reporter that logs. Lines name the source, since a program may load several at a time.

    `source` is what the caller named, with what of it may be shown.
    """

    def __init__(self, source: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._source, self._clock = printable(fit_to_show(source)), clock
        self._told: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, FileProgress | Warned) or not LOG.isEnabledFor(logging.INFO):
            return
        level = self._level(event)
        if LOG.isEnabledFor(level) and (line := announcement(event, Audience.LOG)) is not None:
            LOG.log(level, "%s", line if isinstance(event, Resolved) else f"{self._source}: {line}")

    def failed(self, error: BaseException) -> None:
        """The last line of a load that ended with `error`, whose message has no secrets."""
        LOG.info("%s: ended by %s: %s", self._source, type(error).__name__, printable(str(error)))

    def _level(self, event: Event) -> int:
        if isinstance(event, Resolved | Writing | Finished):
            return logging.INFO
        if not isinstance(event, Retrying | Waiting):
            return logging.DEBUG
        now = self._clock()
        if now - self._told.get(event.reason, -APART) < APART:
            return logging.DEBUG
        self._told[event.reason] = now
        return logging.INFO
