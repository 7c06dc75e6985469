"""What the caller should know where no reporter listens: by `warnings`, at the caller's line, and by `logging`."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

from ..events import AsyncfetchWarning, Event, Reporter, Warned
from ..words import folded

__all__ = ["hearing", "listener"]

_log = logging.getLogger("asyncfetch")
# Of the call that the user has made: other calls that it makes leave it to this one to speak.
_hearing: ContextVar[_Hearing | None] = ContextVar("asyncfetch_hearing", default=None)


class _Hearing:
    """Hears what a call says, until it has been told."""

    def __init__(self) -> None:
        self._messages: list[str] = []
        self._lock = Lock()
        self._over = False

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Warned):
            return
        with self._lock:
            over = self._over
            if not over:
                self._messages.append(event.message)
        if over:  # while a stream is read
            _log.warning("%s", event.message)

    def end(self) -> list[str]:
        """What was said, in few lines, which are in the log by then."""
        with self._lock:
            self._over, messages = True, folded(self._messages)
        for message in messages:
            _log.warning("%s", message)
        return messages


@contextmanager
def hearing() -> Iterator[None]:
    """Hear what is said in this block, and tell it when it has ended well: where a warning is an error, all is done.

    A block within another is no more than a part of it. What ends with an error is told by that, and in the log.
    """
    if _hearing.get() is not None:
        yield
        return
    heard = _Hearing()
    token = _hearing.set(heard)
    try:
        yield
    except BaseException:
        heard.end()
        raise
    finally:
        _hearing.reset(token)
    for message in heard.end():
        warnings.warn(message, AsyncfetchWarning, stacklevel=_callers_level())


def listener(report: Reporter | None) -> Reporter | None:
    """`report`; without one, who hears what this call says."""
    return report if report is not None else _hearing.get()


# Whose frames stand between a call and the line in which it was made.
_OURS = frozenset({"asyncfetch", "anyio", "asyncio", "concurrent", "contextlib", "threading", "trio", "uvloop"})


def _callers_level() -> int:
    """The `stacklevel` of the first frame that is the caller's, for a warning of the function that asks."""
    frame, level = sys._getframe(1), 1
    while frame.f_globals.get("__name__", "").partition(".")[0] in _OURS and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    return level
