"""How a load is going: what its events add up to.

Nothing here draws or reads a clock: every method is given the time (seconds, monotonic).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from ..events import Event, FileProgress, FileStarted, FileVerified, Finished, Resolved, Retrying, Warned
from .wording import amount, clock_text, printable, rate_text, ratio, shards

__all__ = ["FileRow", "ProgressState", "Rate", "Stage", "summary_line"]

SILENCE = 5.0  # seconds without a byte after which the display says so


class Stage(Enum):
    """Where a file is on its way. The value is the word that is shown."""

    WAITING = "waiting"
    DOWNLOADING = "downloading"
    RETRYING = "retry"
    VERIFYING = "verifying"
    VERIFIED = "verified"
    UNCHECKED = "done, no checksum"
    CACHED = "cached"

    @property
    def done(self) -> bool:
        """Whether nothing more will happen to the file."""
        return self in (Stage.VERIFIED, Stage.UNCHECKED, Stage.CACHED)

    @property
    def active(self) -> bool:
        """Whether something is happening to the file now."""
        return self in (Stage.DOWNLOADING, Stage.RETRYING, Stage.VERIFYING)


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


@dataclass(slots=True)
class FileRow:
    """One file: `received` of `size` bytes are here, those of earlier runs included."""

    file: str
    size: int
    received: int
    stage: Stage
    rate: Rate | None = None
    attempt: int = 0
    attempts: int = 0
    retry_at: float = 0.0
    reason: str = ""


@dataclass(slots=True)
class ProgressState:
    """What all events so far add up to. `apply` is the only way in.

    `transferred` counts the bytes that arrived while watching: bytes of an earlier run are present
    from the start, and are in no rate. A file that starts over gives its bytes back to `received`
    and not to `transferred`.
    """

    resolved: Resolved | None = None
    finished: Finished | None = None
    retrying: Retrying | None = None  # while the source is being resolved
    rows: dict[str, FileRow] = field(default_factory=dict)
    transferred: int = 0
    last_byte: float | None = None
    rate: Rate | None = None

    def apply(self, event: Event, now: float) -> None:
        """Take `event`, which happened at `now`."""
        match event:
            case Resolved():
                self.resolved, self.retrying = event, None
                self.rows = {
                    state.file: FileRow(
                        state.file,
                        state.size,
                        min(state.present, state.size),
                        Stage.CACHED if state.present >= state.size else Stage.WAITING,
                    )
                    for state in event.files
                }
            case FileStarted():
                row = self._row(event.file, event.size)
                row.size, row.received, row.stage = event.size, event.present, Stage.DOWNLOADING
                row.rate = Rate(now, event.present)
                self.rate = self.rate or Rate(now)
                self.last_byte = now if self.last_byte is None else self.last_byte
            case FileProgress():
                self._progress(event, now)
            case Retrying(file=None):
                self.retrying = event
            case Retrying(file=str(file)):
                row = self._row(file, 0)
                row.stage, row.reason, row.retry_at = Stage.RETRYING, event.reason, now + event.delay
                row.attempt, row.attempts = event.attempt, event.attempts
            case FileVerified():
                row = self._row(event.file, event.size)
                self._count(row, event.size, now)
                row.size, row.received = event.size, event.size
                row.stage = Stage.UNCHECKED if event.checksum is None else Stage.VERIFIED
            case Finished():
                self.finished = event
            case Warned():
                pass

    def _row(self, file: str, size: int) -> FileRow:
        return self.rows.setdefault(file, FileRow(file, size, 0, Stage.WAITING))

    def _progress(self, event: FileProgress, now: float) -> None:
        row = self._row(event.file, event.size)
        if event.received < row.received:  # it starts over
            row.rate = Rate(now, event.received)
        self._count(row, event.received, now)
        row.size, row.received = event.size, event.received
        row.stage = Stage.VERIFYING if event.received >= event.size else Stage.DOWNLOADING

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

    def count(self, *stages: Stage) -> int:
        """How many files are in one of `stages`."""
        return sum(row.stage in stages for row in self.rows.values())

    @property
    def done(self) -> int:
        """How many files are complete."""
        return sum(row.stage.done for row in self.rows.values())

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

    def row_status(self, row: FileRow, now: float) -> list[str]:
        """What to say about `row`, the longest wording first."""
        if row.stage is Stage.RETRYING:
            wait = row.retry_at - now
            when = f" in {wait:.0f} s" if wait >= 0.5 else " now"
            text = f"retry {row.attempt}/{row.attempts}{when}"
            return [f"{text}: {printable(row.reason)}", text, f"retry {row.attempt}/{row.attempts}"]
        if row.stage is Stage.DOWNLOADING:
            speed = row.rate.per_second(now) if row.rate else None
            return [row.stage.value] if speed is None else [f"downloading, {rate_text(speed)}", rate_text(speed)]
        if row.stage is Stage.UNCHECKED:
            return [row.stage.value, "done"]
        return [row.stage.value]

    def total_status(self, now: float) -> list[str]:
        """What to say about the whole, the longest wording first."""
        if self.finished or (self.rows and self.done == len(self.rows)):
            return ["done"]
        silent = self.silence(now)
        if silent >= SILENCE:
            return [f"no data for {silent:.0f} s"]
        speed, eta = self.per_second(now), self.eta(now)
        if speed is None or eta is None:
            return [""]
        return [
            f"{rate_text(speed)}, {clock_text(eta)} left",
            f"{rate_text(speed)}, {clock_text(eta)}",
            rate_text(speed),
        ]

    def fold_line(self) -> str:
        """All files in one line, for when they are more than fit."""
        parts = [
            (self.count(Stage.CACHED), "cached"),
            (self.count(Stage.UNCHECKED), "done without a checksum"),
            (sum(row.stage.active for row in self.rows.values()), "active"),
            (self.count(Stage.WAITING), "waiting"),
        ]
        verified = f"{self.count(Stage.VERIFIED)} of {shards(len(self.rows))} verified"
        return ", ".join([verified, *(f"{count} {word}" for count, word in parts if count)])


def summary_line(state: ProgressState, now: float) -> str:
    """The state in one line, for output that has no table."""
    done = f"{state.done} of {shards(len(state.rows))} done"
    parts = [f"{ratio(state.received, state.size):4.0%}", amount(state.received, state.size), done]
    return "  ".join([*parts, *filter(None, state.total_status(now)[:1])])
