"""How a load is going: what its events add up to.

Nothing here draws, speaks or reads a clock: every method is given the time (seconds, monotonic).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from ..events import (
    Event,
    FileProgress,
    FileStarted,
    FileState,
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

__all__ = ["FileRow", "Hold", "ProgressState", "Rate", "RowState"]


class RowState(Enum):
    """Where a file is on its way. The value is the word for it."""

    NOT_STARTED = "not started"
    DOWNLOADING = "downloading"
    BACKOFF = "retry"  # something failed; it is tried again in a moment
    WAITING = "waiting"  # nothing failed, and nothing moves
    VERIFYING = "verifying"
    VERIFIED = "verified"
    UNCHECKED = "done, no checksum"
    CACHED = "cached"
    WRITING = "writing"
    WRITTEN = "written"

    @property
    def done(self) -> bool:
        """Whether nothing more will happen to the file."""
        return self in (RowState.VERIFIED, RowState.UNCHECKED, RowState.CACHED, RowState.WRITTEN)

    @property
    def active(self) -> bool:
        """Whether the file is on its way now, be it held up."""
        return not self.done and self is not RowState.NOT_STARTED

    @property
    def held(self) -> bool:
        """Whether the file is held up."""
        return self in (RowState.BACKOFF, RowState.WAITING)


class Rate:
    """Bytes a second over the last `window` seconds; falls to 0 when nothing arrives."""

    def __init__(self, now: float, value: int = 0, *, window: float = 5.0) -> None:
        self.window = window
        self._samples: deque[tuple[float, int]] = deque([(now, value)])

    def update(self, now: float, value: int) -> None:
        """`value` bytes are here at `now`. Updates less than 0.1 s apart are merged."""
        if len(self._samples) > 1 and now - self._samples[-1][0] < 0.1:
            self._samples[-1] = (self._samples[-1][0], value)
        else:
            self._samples.append((now, value))

    def per_second(self, now: float) -> float | None:
        """The rate, or None while there is too little to tell (half a second)."""
        while len(self._samples) > 1 and self._samples[1][0] <= now - self.window:
            self._samples.popleft()
        start, before = self._samples[0]
        elapsed = now - start
        return (self._samples[-1][1] - before) / elapsed if elapsed >= 0.5 else None


@dataclass(frozen=True, slots=True)
class Hold:
    """What holds a file up, or the look-up of the source, and until when; None if nobody can tell."""

    event: Retrying | Waiting
    until: float | None

    @classmethod
    def of(cls, event: Retrying | Waiting, now: float) -> Hold:
        return cls(event, None if event.delay is None else now + event.delay)

    def seconds_left(self, now: float) -> float | None:
        """How long it still lasts, 0 if it is over, None if nobody can tell."""
        return None if self.until is None else max(self.until - now, 0.0)


@dataclass(slots=True)
class FileRow:
    """One file: `received` of `size` bytes are here, those of earlier runs included. `hold` is why it is held up."""

    file: str
    size: int
    received: int
    state: RowState = RowState.NOT_STARTED
    rate: Rate | None = None
    hold: Hold | None = None

    def enter(self, state: RowState, hold: Hold | None = None) -> None:
        """Be in `state` from now on. What held it up is over, whatever it was."""
        self.state, self.hold = state, hold


@dataclass(slots=True)
class ProgressState:
    """What all events so far add up to. `apply` is the only way in.

    `transferred` counts the bytes that arrived while watching: bytes of an earlier run are present
    from the start, and are in no rate. A file that starts over gives its bytes back to `received`
    and not to `transferred`. `hold` is what holds up the look-up of the source.
    """

    finished: bool = False
    writing: bool = False
    hold: Hold | None = None
    rows: dict[str, FileRow] = field(default_factory=dict)
    transferred: int = 0
    last_byte: float | None = None
    rate: Rate | None = None

    def apply(self, event: Event, now: float) -> None:
        """Take `event`, which happened at `now`."""
        match event:
            case Resolved():
                self.hold = None
                self._begin(event.files, RowState.CACHED)
            case Writing():
                self._write(event, now)
            case FileWritten():
                row = self._row(event.file, event.size)
                self._count(row, event.size, now)
                row.enter(RowState.WRITTEN)
                row.size, row.received = event.size, event.size
            case FileStarted():
                self._started(event, now)
            case FileProgress():
                self._progress(event, now)
            case Retrying() | Waiting():
                self._held(event, now)
            case FileVerified():
                self._verified(event, now)
            case Finished():
                self.finished = True
            case Warned() | NodeProgress():
                pass
            case _:
                assert_never(event)

    def _row(self, file: str, size: int = 0) -> FileRow:
        return self.rows.setdefault(file, FileRow(file, size, 0))

    def _begin(self, files: Iterable[FileState], there: RowState) -> None:
        self.rows = {file.file: FileRow(file.file, file.size, min(file.present, file.size)) for file in files}
        for row in self.rows.values():
            if row.received >= row.size:
                row.enter(there)

    def _write(self, event: Writing, now: float) -> None:
        """All is here by now, and something else begins."""
        self._begin(event.files, RowState.WRITTEN)
        self.finished, self.writing = False, True
        self.hold, self.transferred = None, 0
        self.last_byte, self.rate = now, Rate(now)

    def _started(self, event: FileStarted, now: float) -> None:
        row = self._row(event.file, event.size)
        row.enter(RowState.DOWNLOADING)
        row.size, row.received, row.rate = event.size, event.present, Rate(now, event.present)
        self.hold = None
        self.rate = self.rate or Rate(now)
        self.last_byte = now if self.last_byte is None else self.last_byte

    def _progress(self, event: FileProgress, now: float) -> None:
        row = self._row(event.file, event.size)
        if event.received < row.received:  # it starts over
            row.rate = Rate(now, event.received)
        self._count(row, event.received, now)
        if self.writing:
            row.enter(RowState.WRITING)
        else:
            row.enter(RowState.VERIFYING if event.received >= event.size else RowState.DOWNLOADING)
        row.size, row.received = event.size, event.received

    def _held(self, event: Retrying | Waiting, now: float) -> None:
        hold = Hold.of(event, now)
        if event.file is None:
            self.hold = hold
        else:
            self._row(event.file).enter(RowState.BACKOFF if isinstance(event, Retrying) else RowState.WAITING, hold)

    def _verified(self, event: FileVerified, now: float) -> None:
        row = self._row(event.file, event.size)
        if row.rate is not None:  # else it never started here: another process brought it, or it was cached
            self._count(row, event.size, now)
        row.enter(RowState.UNCHECKED if event.checksum is None else RowState.VERIFIED)
        row.size, row.received = event.size, event.size

    def _count(self, row: FileRow, received: int, now: float) -> None:
        if received <= row.received:
            return
        self.transferred += received - row.received
        self.last_byte = now
        self.rate = self.rate or Rate(now)
        self.rate.update(now, self.transferred)
        row.rate = row.rate or Rate(now, row.received)
        row.rate.update(now, received)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(row.size for row in self.rows.values())

    @property
    def received(self) -> int:
        """Bytes that are here, of all files together."""
        return sum(row.received for row in self.rows.values())

    def count(self, state: RowState) -> int:
        """How many files are in `state`."""
        return sum(row.state is state for row in self.rows.values())

    @property
    def done(self) -> int:
        """How many files are complete."""
        return sum(row.state.done for row in self.rows.values())

    @property
    def complete(self) -> bool:
        """Whether nothing more will happen."""
        return self.finished or (bool(self.rows) and self.done == len(self.rows))

    @property
    def idle(self) -> bool:
        """Whether all files that are on their way wait: nothing moves, and nothing failed."""
        active = [row.state for row in self.rows.values() if row.state.active]
        return bool(active) and all(state is RowState.WAITING for state in active)

    def per_second(self, now: float) -> float | None:
        """The total rate in bytes a second, or None when nothing can be said yet."""
        return self.rate.per_second(now) if self.rate else None

    def eta(self, now: float) -> float | None:
        """Seconds until the last byte at the present rate; None when that cannot be told."""
        speed = self.per_second(now)
        return (self.size - self.received) / speed if speed else None

    def silence(self, now: float) -> float:
        """Seconds since the last byte, or 0 when bytes are not being waited for."""
        waiting = self.last_byte is not None and not self.finished and self.received < self.size
        return now - self.last_byte if waiting and self.last_byte is not None else 0.0
