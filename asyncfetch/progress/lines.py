"""The words for a load on its way: a line for an event, the state of a file, of the whole.

A new event gets its words here and its effect on what is drawn in state.py; nothing else in this
wing tells one event from another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from enum import Enum
from math import ceil, inf
from typing import assert_never

from ..events import (
    Event,
    FileProgress,
    FileStarted,
    FileVerified,
    FileWritten,
    Finished,
    NodeProgress,
    Resolved,
    Retrying,
    Waiting,
    Warned,
    Writing,
)
from ..words import kind_of
from .state import FileRow, Hold, ProgressState, RowState
from .text import amount, clock_text, files, printable, rate_text, ratio, seconds_text, size_text

__all__ = [
    "Audience",
    "Repeats",
    "announcement",
    "fold_line",
    "hold_reasons",
    "look_up_line",
    "row_status",
    "summary_line",
    "total_status",
]

SILENCE = 5.0  # seconds without a byte after which the display says so


class Audience(Enum):
    """Who reads the lines about events, and so which events deserve one."""

    QUIET = "warnings alone"
    LOOK_UP = "warnings, and what holds it up"
    TABLE = "what the table beside it does not show"
    LOG = "every step"


_EVERYONE = frozenset(Audience)
_NO_TABLE = frozenset({Audience.LOOK_UP, Audience.LOG})
_DOWNLOADS = frozenset({Audience.TABLE, Audience.LOG})
_LOG = frozenset({Audience.LOG})


def announcement(event: Event, audience: Audience) -> str | None:
    """The line that `event` deserves for itself, or None."""
    audiences, line = _line(event)
    return line if audience in audiences else None


class Repeats:
    """Which warnings say what another has said of another file: a thousand shards may all lack a checksum."""

    def __init__(self) -> None:
        self._said: dict[str, list[str]] = {}

    def __call__(self, event: Event) -> bool:
        """Whether `event` is a warning that was given before, but for the names and numbers in it."""
        if not isinstance(event, Warned):
            return False
        alike = self._said.setdefault(kind_of(event.message), [])
        alike.append(event.message)
        return len(alike) > 1

    def rest(self) -> list[str]:
        """A line for each kind of those that were left out."""
        return [
            f"warning: and {len(alike) - 1:,} more like this: {printable(alike[0])}"
            for alike in self._said.values()
            if len(alike) > 1
        ]


def _line(event: Event) -> tuple[Set[Audience], str]:
    """What to say of `event`, and to whom."""
    match event:
        case Resolved():
            return _DOWNLOADS, _resolved_line(event)
        case Warned():
            return _EVERYONE, f"warning: {printable(event.message)}"
        case FileStarted():
            kept = f", continues at {size_text(event.present)}" if event.present else ""
            return _LOG, f"{printable(event.file)}: started, {size_text(event.size)}{kept}"
        case FileProgress():
            return frozenset(), ""
        case Retrying() | Waiting():
            return _NO_TABLE, f"{printable(event.file or 'source')}: {_hold_status(Hold.of(event, 0.0), 0.0)[0]}"
        case FileVerified():
            word = "complete, the source gives no checksum" if event.checksum is None else "verified"
            return _LOG, f"{printable(event.file)}: {word}"
        case Writing():
            size, there = sum(file.size for file in event.files), sum(file.present for file in event.files)
            kept = f", {size_text(there)} already there" if there else ""
            return _DOWNLOADS, f"writing {printable(event.folder)}: {files(len(event.files))}, {size_text(size)}{kept}"
        case FileWritten():
            return _LOG, f"{printable(event.file)}: written"
        case NodeProgress():
            line = f"{printable(event.file)}: on node {printable(event.address)}" if event.present == event.size else ""
            return (_LOG if line else frozenset()), line
        case Finished():
            return _DOWNLOADS, _finished_line(event)
        case _:
            assert_never(event)


def _resolved_line(event: Resolved) -> str:
    at = f" at {event.commit[:12]}" if event.commit else ""
    size, here = sum(file.size for file in event.files), sum(file.present for file in event.files)
    kept = f", {size_text(here)} already here" if here else ""
    return f"{printable(event.source)}{at}: {files(len(event.files))}, {size_text(size)}{kept}"


def _finished_line(event: Finished) -> str:
    what = f"{files(event.files)}, {size_text(event.nbytes)}"
    if not event.downloaded:
        return f"{what}: nothing to download"
    speed = f" ({rate_text(event.downloaded / event.seconds)})" if event.seconds > 0 else ""
    return f"{what}: {size_text(event.downloaded)} downloaded in {seconds_text(event.seconds)}{speed}"


def _brief(reason: str) -> str:
    """A reason for where there is little room: of a URL that it begins with, the host alone."""
    return re.sub(r"^https?://([^/\s]+)[^\s]*: ", r"\1: ", reason)


def _hold_status(hold: Hold, now: float) -> list[str]:
    """Why nothing moves for now, the longest wording first."""
    left = hold.seconds_left(now)
    match hold.event:
        case Retrying():
            short = "retry" if hold.event.patience else f"retry {hold.event.attempt}/{hold.event.attempts}"
            text = f"{short} in {left:.0f} s" if left is not None and left >= 0.5 else f"{short} now"
        case Waiting():
            short = "waiting"
            text = f"{short} {left:.0f} s" if left is not None and left >= 0.5 else short
    return [f"{text}{_patience(hold)}: {printable(hold.event.reason)}", text, short]


def _patience(hold: Hold) -> str:
    """For how long it goes on, where that is not told by a number of attempts."""
    left = hold.event.patience if isinstance(hold.event, Retrying) else None
    if not left or left == inf:
        return ""
    return f" (for {ceil(left / 60)} min at most)" if left >= 60 else f" (for {left:.0f} s at most)"


def hold_reasons(rows: Iterable[FileRow]) -> list[str]:
    """Why `rows` are held up, each reason once."""
    held = [(row.state.value, row.hold, _brief(row.hold.event.reason)) for row in rows if row.hold]
    return list(dict.fromkeys(f"{state}{_patience(hold)}: {printable(why)}" for state, hold, why in held))


def look_up_line(state: ProgressState, now: float, *, dots: str) -> str:
    """The state while no file is known yet."""
    return f"looking up the source{dots}" if state.hold is None else f"source: {_hold_status(state.hold, now)[0]}"


def row_status(row: FileRow, now: float) -> list[str]:
    """What to say about `row`, the longest wording first."""
    if row.hold is not None:
        return _hold_status(row.hold, now)
    if row.state in (RowState.DOWNLOADING, RowState.WRITING):
        speed = row.rate.per_second(now) if row.rate else None
        return [row.state.value] if speed is None else [f"{row.state.value}, {rate_text(speed)}", rate_text(speed)]
    if row.state is RowState.UNCHECKED:
        return [row.state.value, "done"]
    return [row.state.value]


def total_status(state: ProgressState, now: float) -> list[str]:
    """What to say about the whole, the longest wording first."""
    if state.complete:
        return ["done"]
    if state.hold is not None:
        return _hold_status(state.hold, now)
    if state.idle:
        return ["waiting"]
    silent = state.silence(now)
    if silent >= SILENCE:
        return [f"no data for {silent:.0f} s"]
    speed, eta = state.per_second(now), state.eta(now)
    if speed is None or eta is None:
        return [""]
    return [
        f"{rate_text(speed)}, {clock_text(eta)} left",
        f"{rate_text(speed)}, {clock_text(eta)}",
        rate_text(speed),
    ]


def fold_line(state: ProgressState) -> str:
    """All files in one line, for when they are more than fit."""
    counted = RowState.WRITTEN if state.writing else RowState.VERIFIED
    parts = [
        (state.count(counted), counted.value),
        (state.count(RowState.CACHED), "cached"),
        (state.count(RowState.UNCHECKED), "done without a checksum"),
        (sum(row.state.active for row in state.rows.values()), "active"),
        (state.count(RowState.NOT_STARTED), "not started"),
    ]
    return f"{files(len(state.rows))}: " + ", ".join(f"{count:,} {word}" for count, word in parts if count)


def summary_line(state: ProgressState, now: float) -> str:
    """The state in one line, for output that has no table."""
    done = f"{state.done:,} of {files(len(state.rows))} done"
    parts = [f"{ratio(state.received, state.size):4.0%}", amount(state.received, state.size), done]
    return "  ".join([*parts, *filter(None, total_status(state, now)[:1])])
