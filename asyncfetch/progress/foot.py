"""The foot of a terminal: a picture that is drawn anew in its place, with what the program writes above it.

Whatever writes to the same terminal would write into the picture, and be overwritten by the next one. So as long as
there is one, the streams of the program that lead there take it away before each line, and put it back below. They do
so themselves, and nothing stands in their places: who holds one already, as a handler of the log does, writes as
before. What other processes write, and libraries that do not use these streams, is not seen.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import TracebackType
from typing import IO

__all__ = ["Foot"]

_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"  # the cursor
_CLEAR, _UP = "\r\x1b[2K", "\x1b[1A\x1b[2K"
_REST = 0.05  # seconds between two pictures where lines come fast: then the next one is who draws'
_PATIENCE = 1.0  # seconds for who draws: it may be stuck in the terminal, or frozen where the interpreter ends
_ENDED = re.compile(r"\n(?:\x1b\[[0-9;]*m)*\Z")  # colours do not begin a line


class Foot:
    """The last lines of the terminal that `file` leads to, for as long as the block runs. Another file is drawn on too.

    A line that the program has begun and not ended has the terminal for itself: the picture waits for its end.
    """

    def __init__(self, file: IO[str]) -> None:
        self._write, self._flush = file.write, file.flush
        self._streams = [_Stream(self, stream) for stream in _streams_beside(file)]
        self._lock = threading.RLock()  # a signal's handler may write in the middle of a write
        self._process = os.getpid()
        self._picture = self._above = ""
        self._height = 0  # lines of the picture that are on the terminal
        self._drawn = 0.0
        self._begun = self._hidden = False

    def __enter__(self) -> Foot:
        for stream in self._streams:
            stream.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            try:
                line_end = "\n" if self._begun else ""
                self._say((_SHOW if self._hidden else "") + self._taken_away() + line_end + self._put_back())
            finally:
                for stream in self._streams:
                    stream.give_back()

    def draw(self, picture: str, above: str = "") -> None:
        """Draw `picture`, and what is said above it; both are lines that end, and fit the terminal."""
        with self._lock:
            self._picture, self._above = picture, self._above + above
            if not self._begun:
                self._say(self._taken_away() + self._put_back())

    def forget(self) -> None:
        """Let no picture stay when the block ends."""
        with self._lock:
            self._picture = ""

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether the block has the terminal for itself: not in a forked process, where nobody draws."""
        taken = os.getpid() == self._process and self._lock.acquire(timeout=_PATIENCE)
        try:
            yield taken
        finally:
            if taken:
                self._lock.release()

    def let(self, stream: _Stream, text: str) -> None:
        """Have a stream write above the picture. What it raises comes out; that there is no picture then does not."""
        with suppress(OSError, ValueError):
            self._say(self._taken_away())
        stream.pass_on(text)
        self._begun = not _ENDED.search(text)
        if not self._begun:
            rested = time.monotonic() - self._drawn >= _REST
            with suppress(OSError, ValueError):
                self._say(self._put_back() if rested else self._said())

    def _taken_away(self) -> str:
        height, self._height = self._height, 0
        return _CLEAR + _UP * height if height else ""

    def _said(self) -> str:
        above, self._above = self._above, ""
        return above

    def _put_back(self) -> str:
        hide = _HIDE if self._picture and not self._hidden else ""
        self._hidden = self._hidden or bool(hide)
        self._height, self._drawn = self._picture.count("\n"), time.monotonic()
        return self._said() + hide + self._picture

    def _say(self, text: str) -> None:
        if text:
            self._write(text)
            self._flush()


class _Stream:
    """A stream of the program that leads to the terminal of a foot, and writes above it once it is taken.

    As before, a part of a line waits for its end or for `flush`.
    """

    def __init__(self, foot: Foot, stream: TextIOWrapper) -> None:
        self._foot, self._stream = foot, stream
        self._write, self._flush = stream.write, stream.flush
        self._before = {name: value for name, value in vars(stream).items() if name in ("write", "flush")}
        self._ours = {"write": self.write, "flush": self.flush}
        self._held = ""
        self._over = False

    def take(self) -> None:
        vars(self._stream).update(self._ours)

    def give_back(self) -> None:
        """Be as before. Where others have put theirs before ours meanwhile, ours stays, and does nothing."""
        self._over = True
        own = vars(self._stream)
        for name, ours in self._ours.items():
            if own.get(name) is ours:
                del own[name]
                own.update({name: self._before[name]} if name in self._before else {})
        held, self._held = self._held, ""
        if held:
            with suppress(OSError, ValueError):
                self._write(held)

    def write(self, text: str) -> int:
        with self._foot.turn() as ours:
            if not ours or self._over or not isinstance(text, str):
                return self._write(text)
            whole, self._held = self._held + text, ""
            if "\n" in text or "\r" in text or (whole and self._stream.write_through):
                self._foot.let(self, whole)
            else:
                self._held = whole
            return len(text)

    def flush(self) -> None:
        with self._foot.turn() as ours:
            if not (ours and self._held):
                return self._flush()
            held, self._held = self._held, ""
            return self._foot.let(self, held)

    def pass_on(self, text: str) -> None:
        self._write(text)
        self._flush()


def _streams_beside(file: IO[str]) -> list[TextIOWrapper]:
    """The streams of the program that lead to the terminal that `file` leads to.

    What else stands in their places, as a caller's own display does, writes to them in the end.
    """
    terminal = _terminal_of(file)
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    beside = {id(stream): stream for stream in streams if isinstance(stream, TextIOWrapper)}
    return [stream for stream in beside.values() if terminal is not None and _terminal_of(stream) == terminal]


def _terminal_of(file: IO[str]) -> int | None:
    """The device of the terminal that a file leads to; None where it is another file, or closed."""
    try:
        return os.fstat(file.fileno()).st_rdev if file.isatty() else None
    except (AttributeError, OSError, ValueError):
        return None
