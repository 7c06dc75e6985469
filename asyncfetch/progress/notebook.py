"""The table of a load in a notebook: HTML that replaces itself, and stays in the notebook as it ended. Needs IPython.

It is no widget: a notebook that is opened elsewhere still shows it, without a kernel and without an extension.
"""

from __future__ import annotations

import sys
from html import escape
from typing import Any

from .drawing import REDRAW, Drawing
from .lines import fold_line, look_up_line, row_status, summary_line, total_status
from .state import FileRow, ProgressState
from .text import amount, printable, ratio

__all__ = ["Panel", "in_notebook", "panel"]

MOST = 20  # rows; of more files those are shown to which something is happening
REST = 2 * REDRAW  # seconds between two pictures: each is a message to the browser


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def panel(state: ProgressState, now: float, messages: list[str]) -> str:
    """`state` as HTML: a line for each file, one for the whole, and what was said."""
    if not state.rows:
        return f"<div>{escape(look_up_line(state, now, dots='…'))}</div>"
    rows, folded = list(state.rows.values()), ""
    if len(rows) > MOST:
        rows = [row for row in rows if row.state.active][:MOST]
        folded = f'<tr><td colspan="4">{escape(fold_line(state))}</td></tr>'
    lines = [_row(row, now) for row in rows]
    whole = _line("total", state.received, state.size, total_status(state, now)[0], strong=True)
    said = "".join(f"<div>{escape(message)}</div>" for message in messages)
    return f"{said}<table><tbody>{''.join(lines)}{folded}{whole}</tbody></table>"


def _row(row: FileRow, now: float) -> str:
    return _line(printable(row.file), row.received, row.size, row_status(row, now)[0])


def _line(name: str, part: int, whole: int, status: str, *, strong: bool = False) -> str:
    share = ratio(part, whole)
    bar = f'<progress max="100" value="{share * 100:.0f}" aria-label="{escape(name)}">{share:.0%}</progress>'
    shown = f"<b>{escape(name)}</b>" if strong else escape(name)
    cells = (shown, bar, f"{share:.0%} of {amount(whole, whole).partition('/')[2]}", escape(status))
    return "<tr>" + "".join(f'<td style="text-align: left">{cell}</td>' for cell in cells) + "</tr>"


class Panel(Drawing):
    """A picture in the output of the cell, made anew as the load goes on."""

    def run(self) -> None:
        from IPython import display as shows

        display: Any = shows.display
        said: list[str] = []
        handle, shown = None, ""
        ended = False
        while not ended:
            ended = self.ended.wait(REST if handle else REDRAW)
            said = (said + self.messages()[0])[-MOST:]
            with self._lock:
                now = self.clock()
                html, text = panel(self.state, now, said), summary_line(self.state, now)
            if html == shown:
                continue
            shown, picture = html, {"text/html": html, "text/plain": "\n".join([*said, text])}
            if handle is None:
                handle = display(picture, raw=True, display_id=True)
            else:
                handle.update(picture, raw=True)
