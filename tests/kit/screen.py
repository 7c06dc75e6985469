"""A real terminal, and what a person sees on it in the end: as much of one as a table that redraws itself needs."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

__all__ = ["Terminal", "seen"]

ROOT = Path(__file__).parents[2]
_PIECE = re.compile(r"\x1b\[([0-9;?]*)([a-zA-Z])|[^\x1b]")


def seen(written: str, columns: int = 80) -> list[str]:
    """The lines that a terminal shows of `written`, with those that have left it at its top."""
    lines, row, column = [list[str]()], 0, 0
    for piece in _PIECE.finditer(written):
        number, letter = piece[1], piece[2]
        if letter == "A":
            row = max(row - int(number or 1), 0)
        elif letter == "K":
            assert number == "2"
            lines[row] = []
        elif letter is not None:
            assert letter in "mhl", piece[0]
        elif piece[0] == "\r":
            column = 0
        elif piece[0] == "\n" or column == columns:
            row, column = row + 1, 0 if piece[0] != "\n" else column
            lines += [[] for _ in range(row + 1 - len(lines))]
        if letter is None and piece[0] not in "\r\n":
            lines[row] += [" "] * (column + 1 - len(lines[row]))
            lines[row][column] = piece[0]
            column += 1
    return ["".join(line).rstrip() for line in lines]


class Terminal:
    """A terminal, of which a thread takes all that is written."""

    def __init__(self, columns: int = 80, height: int = 24) -> None:
        self._leader, self._follower = pty.openpty()
        fcntl.ioctl(self._follower, termios.TIOCSWINSZ, struct.pack("HHHH", height, columns, 0, 0))
        self._columns, self._height, self._taken = columns, height, b""
        self._files: list[TextIO] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.written()

    def stream(self) -> TextIO:
        """One that leads there, as Python makes those of a process."""
        file = open(os.dup(self._follower), "w", buffering=1, encoding="utf-8")  # noqa: SIM115
        self._files.append(file)
        return file

    def run(self, arguments: Sequence[str], **environment: str) -> int:
        """What a process returns whose streams lead there."""
        size = {"TERM": "xterm-256color", "COLUMNS": str(self._columns), "LINES": str(self._height)}
        process = subprocess.Popen(
            arguments, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=self._follower, stderr=self._follower,
            env={**os.environ, **size, **environment},
        )  # fmt: skip
        return process.wait(30)

    def written(self) -> str:
        """All that was written, when all who wrote have closed it."""
        for file in self._files:
            file.close()
        if self._follower >= 0:
            os.close(self._follower)
            self._follower = -1
            self._reader.join(10)
            os.close(self._leader)
        return self._taken.decode()

    def lines(self) -> list[str]:
        """What is seen in the end."""
        return seen(self.written(), self._columns)

    def _read(self) -> None:
        try:
            while taken := os.read(self._leader, 65536):
                self._taken += taken
        except OSError:  # EIO: the other side closed
            pass
