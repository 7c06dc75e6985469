"""The table that is drawn on a terminal: `frame` lays a state out for a given size, and is pure. Needs rich."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ..events import Reporter
from .drawing import REDRAW, Drawing, PlainLines, drawn
from .foot import Foot
from .lines import (
    fold_line,
    hold_reasons,
    look_up_line,
    row_status,
    total_status,
)
from .state import ProgressState, RowState
from .text import amount, fit_names, printable, ratio, wrapped

__all__ = ["Table", "frame", "terminal_reporter"]


def frame(state: ProgressState, now: float, *, width: int, height: int, ascii_only: bool = False) -> list[Text]:
    """The display as lines of at most `width` cells, at most `height` of them.

    One line for each shard and one for the total. Shards that do not fit are folded into one line,
    and then only those are shown to which something is happening. What holds shards up is said once
    below them where their own lines have no room for it.
    """
    dots = "..." if ascii_only else "…"
    if not state.rows:
        line = Text(look_up_line(state, now, dots=dots))
        line.truncate(width)
        return [line][:height]
    rows, folded = list(state.rows.values()), False
    if len(rows) + 1 > height:
        rows, folded = [row for row in rows if row.state.active][: max(height - 2, 0)], True
    wanted = [cell_len(printable(row.file)) for row in state.rows.values()]
    columns = _columns(width, max(wanted), min(max(wanted), 20))
    names = fit_names([printable(row.file) for row in rows], columns.name, dots=dots)
    lines = [
        _line(columns, name, row.received, row.size, row_status(row, now), _style(row.state), ascii_only)
        for name, row in zip(names, rows, strict=True)
    ]
    if folded:
        lines.append(Text(fold_line(state), style="dim"))
    if any(row.hold and cell_len(row_status(row, now)[0]) > columns.status for row in rows):
        room = max(height - len(lines) - 1, 0)
        lines += [Text(reason, style="yellow") for reason in hold_reasons(rows)[:room]]
    lines.append(_line(columns, "total", state.received, state.size, total_status(state, now), "bold", ascii_only))
    for line in lines:
        line.truncate(width)
    return lines[:height] if height >= 1 else []


def _style(state: RowState) -> str:
    if state.done:
        return "green"
    if state.held:
        return "yellow"
    return "cyan" if state.active else "dim"


@dataclass(frozen=True, slots=True)
class _Columns:
    """Cells for each column; a column of 0 cells is left out."""

    name: int
    bar: int
    amount: int
    status: int


def _columns(width: int, name: int, short_name: int) -> _Columns:
    """Divide `width`: the status first, then the amounts, names that can be told apart, the bar, whole names."""
    percent, room = 5, 13
    status = 23 if width >= 80 else 17 if width >= 40 else 0
    sizes = room if width >= percent + status + 1 + room + short_name else 0
    left = width - percent - sizes - (status + 2 if status else 0)
    bar = max(min(left - short_name - 1, 30), 0)
    bar = bar if bar >= 8 else 0
    spare = left - (bar + 1 if bar else 0)
    names = max(min(name, spare), 1)
    return _Columns(names, bar, sizes, status + max(spare - names, 0) if status else 0)


def _line(
    columns: _Columns, name: str, part: int, whole: int, statuses: Sequence[str], style: str, ascii_only: bool
) -> Text:
    share = ratio(part, whole)
    line = Text(name + " " * max(columns.name - cell_len(name), 0))
    if columns.bar:
        full, empty = ("#", "-") if ascii_only else ("━", "─")
        done = int(columns.bar * share)
        line.append(" ").append(full * done, style=style).append(empty * (columns.bar - done), style="dim")
    line.append(f"{share:5.0%}")
    if columns.amount:
        line.append(f" {amount(part, whole):>{columns.amount - 1}}")
    if columns.status:
        fitting = [status for status in statuses if cell_len(status) <= columns.status]
        line.append("  ").append(fitting[0] if fitting else statuses[-1], style=style)
    return line


@contextmanager
def terminal_reporter(console: Console, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Reporter]:
    """A reporter that shows a load on `console` for as long as the block runs.

    On an interactive console: a table that redraws itself, at most ten times a second. Elsewhere: plain lines.
    """
    drawing = Table(console, clock) if console.is_interactive else PlainLines(console.file, clock)
    with drawn(drawing) as report:
        yield report


class Table(Drawing):
    """A table that redraws itself, and what it does not say as lines: above it, and when all is done below.

    What the program writes meanwhile appears above it too.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console
        console.file = console.file  # as it is now: who replaces stderr meanwhile wants no table there

    def run(self) -> None:
        with Foot(self._console.file) as foot:
            ended, below = False, list[Text]()
            while not ended:
                ended = self.ended.wait(REDRAW)
                messages, finished = self.messages()
                below += [Text(wrapped(message, self._console.width)) for message in messages]
                above = list[Text]()
                if not finished:  # or something else has begun: what closed what was before goes above its table
                    above, below = below, above
                foot.draw(self._rendered(self._frame()), self._rendered(above))
            with self._lock:
                found = bool(self.state.rows)
            if not found:  # that it looks for the source is over too
                foot.forget()
        for line in below:
            self._console.print(line, soft_wrap=True)

    def _frame(self) -> list[Text]:
        ascii_only = not self._console.encoding.lower().startswith("utf")
        width, height = self._console.size
        with self._lock:
            return frame(self.state, self.clock(), width=width, height=height - 1, ascii_only=ascii_only)

    def _rendered(self, lines: Sequence[Text]) -> str:
        """What makes the terminal show these lines."""
        with self._console.capture() as rendered:
            for line in lines:
                self._console.print(line, soft_wrap=True)
        return rendered.get()
