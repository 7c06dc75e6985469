"""Who takes notes of a load, and a thread that shows them, so that what is slow to show never holds up the load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from ..events import Event, Reporter
from .lines import Audience, Repeats, announcement, summary_line
from .state import ProgressState

__all__ = ["Drawing", "PlainLines", "drawn"]

REDRAW = 0.125  # seconds between two looks at the notes
PLAIN_INTERVAL = 5.0  # seconds between two status lines where there is no table


class Drawing:
    """The notes that a reporter takes. A subclass shows them, in `run`, until `ended` is set."""

    audience = Audience.TABLE

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.state = ProgressState()
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._messages: list[str] = []
        self._repeats = Repeats()

    def report(self, event: Event) -> None:
        message = announcement(event, self.audience)
        with self._lock:
            self.state.apply(event, self.clock())
            if message is not None and not self._repeats(event):
                self._messages.append(message)

    def end(self) -> None:
        """Say what was left out, and let `run` show the last of it and return."""
        with self._lock:
            self._messages += self._repeats.rest()
        self.ended.set()

    def messages(self) -> tuple[list[str], bool]:
        """What is to be said now, each line once, and whether all was done by then."""
        with self._lock:
            told, self._messages = self._messages, []
            return told, self.state.finished

    def run(self) -> None:
        raise NotImplementedError


class PlainLines(Drawing):
    """Lines without control sequences, and one status line every five seconds."""

    audience = Audience.LOG

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._stream = stream

    def run(self) -> None:
        spoken = self.clock()
        ended = False
        while not ended:
            ended = self.ended.wait(REDRAW)
            lines, _ = self.messages()
            now = self.clock()
            if now - spoken >= PLAIN_INTERVAL and self.state.rows and not ended:
                spoken = now
                with self._lock:
                    lines.append(summary_line(self.state, now))
            if lines:
                self._stream.write("".join(line + "\n" for line in lines))
                self._stream.flush()


@contextmanager
def drawn(drawing: Drawing, patience: float | None = None) -> Iterator[Reporter]:
    """The reporter of `drawing`, which shows a load for as long as the block runs.

    The reporter only takes notes and never blocks; what went away while it was drawn on is left alone.
    `patience`: seconds after the end of the block for what shows the last of it; None for as long as that takes.
    """

    def run() -> None:
        with suppress(OSError, ValueError):  # the terminal is gone, or its file is closed
            drawing.run()

    thread = threading.Thread(target=run, name="asyncfetch-progress", daemon=True)
    thread.start()
    try:
        yield drawing.report
    finally:
        drawing.end()
        thread.join(patience)
