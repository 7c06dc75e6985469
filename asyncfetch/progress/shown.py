"""Where people look: the notebook, the terminal, or the lines of a log."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..events import Event, Reporter, Warned
from .drawing import Drawing, PlainLines, drawn
from .notebook import Panel, in_notebook

__all__ = ["PATIENCE", "shown"]

PATIENCE = 2.0  # seconds for a terminal to take the last picture


_terminal = threading.Lock()  # it has room for one table


@contextmanager
def shown() -> Iterator[Reporter]:
    """Show a load where people look, for as long as the block runs. What is `Warned` reaches people in another way.

    In a notebook a table in the output of the cell; on a terminal one on stderr, where rich is installed and no other
    one is there; elsewhere lines on stderr.
    """
    is_ours = not in_notebook() and _is_terminal() and _terminal.acquire(blocking=False)
    try:
        drawing = Panel() if in_notebook() else (is_ours and _table()) or PlainLines(sys.stderr)
        with drawn(drawing, PATIENCE) as report:

            def show(event: Event) -> None:
                if not isinstance(event, Warned):
                    report(event)

            yield show
    finally:
        if is_ours:
            _terminal.release()


def _table() -> Drawing | None:
    """The table of a terminal; None where there is no rich."""
    try:
        from rich.console import Console

        from .terminal import Table
    except ImportError:
        return None
    return Table(Console(stderr=True, highlight=False))


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # there is no stderr, or it is closed
        return False
