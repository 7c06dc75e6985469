"""What the command line writes: tables or JSON lines on stdout, errors on stderr, an exit code.

JSON: one object a line. `{"schema_version": 1, "type": "event", "event": ..., ...}` for each event,
and at the end one object of type "result" or "error". Numbers are numbers, sizes are bytes.

| exit code | meaning |
|---|---|
| 0 | all is well |
| 1 | an error that is none of these |
| 2 | usage: the source or an option makes no sense |
| 3 | not found: repository, revision, file or checkpoint |
| 4 | access denied, or a gated repository |
| 5 | corrupt: a checksum, a header or an index is wrong |
| 6 | the network or the server, after all retries |
| 7 | the disk is full or refuses; a dry run: it is too small |
| 8 | rate-limited |
| 9 | offline, and not in the cache |
| 130 | interrupted |
"""

from __future__ import annotations

import json
import os
import queue
import select
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from ..errors import (
    AccessError,
    AsyncfetchError,
    CorruptError,
    NetworkError,
    NotFoundError,
    OfflineError,
    RateLimitedError,
    SourceError,
    StorageError,
    TimedOutError,
)
from ..events import Event, Reporter, event_object
from ..progress.text import fit_names, printable, wrapped
from ..words import without_secrets
from .wording import in_flags

__all__ = [
    "EXIT_CODES",
    "INTERRUPTED",
    "NO_ROOM",
    "error_object",
    "exit_code",
    "fill_closed_streams",
    "flush_stdout",
    "for_people",
    "json_reporter",
    "print_error",
    "print_json",
    "print_table",
    "silence_stdout",
    "stdout_errors",
    "stdout_is_stuck",
]

SCHEMA_VERSION = 1
_LEAST = 12  # characters of a name that was shortened
_FAREWELL = 0.5  # seconds for who reads stdout, once it is interrupted
INTERRUPTED, NO_ROOM = 130, 7
EXIT_CODES: Mapping[type[AsyncfetchError], int] = {
    SourceError: 2,
    NotFoundError: 3,
    AccessError: 4,
    CorruptError: 5,
    NetworkError: 6,
    TimedOutError: 6,
    StorageError: NO_ROOM,
    RateLimitedError: 8,
    OfflineError: 9,
}


def exit_code(error: BaseException) -> int:
    """The code of the branch of the error tree that `error` is on."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return next((code for branch, code in EXIT_CODES.items() if isinstance(error, branch)), 1)


def error_object(error: BaseException) -> dict[str, Any]:
    """`error` as a JSON object, with the data that it carries."""
    if isinstance(error, KeyboardInterrupt):
        code, message, hint, transient = "interrupted", "Interrupted.", "Run the same command again to resume.", True
    elif isinstance(error, AsyncfetchError):
        code, transient = error.code, error.transient
        message, hint = in_flags(error.message), in_flags(error.hint)
    else:
        code, message = "unexpected", without_secrets(f"{type(error).__name__}: {error}")
        hint, transient = "Please report this.", False
    data = {name: value for name, value in vars(error).items() if not name.startswith("_")}
    notes = {"notes": error.__notes__} if getattr(error, "__notes__", None) else {}
    known = {"type": "error", "code": code, "message": message, "hint": hint, "transient": transient}
    return {**data, **notes, **known, "exit_code": exit_code(error)}


def print_json(value: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """One line of JSON, in ASCII so that every locale can carry it."""
    with stdout_errors():
        print(_json_line(value), file=stream or sys.stdout)


def _json_line(value: Mapping[str, Any]) -> str:
    return json.dumps({"schema_version": SCHEMA_VERSION, **value}, default=str)


@contextmanager
def stdout_errors() -> Iterator[None]:
    """Turn an OSError in the block into StorageError about stdout; a closed pipe stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        silence_stdout()  # else the interpreter tries again when it exits
        hint = "What was asked for is done; only what it was to print is lost."
        raise StorageError("stdout", error.strerror or str(error), hint=hint) from error


def fill_closed_streams() -> None:
    """Put something in the place of standard streams that are closed, so that no file or socket gets their numbers.

    What cannot be written to stdout is an error, as in coreutils; what cannot be told on stderr is not.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest number that is free, which is this one
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # writing to it fails
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def flush_stdout() -> None:
    """Write out what stdout holds, while a failure can still be reported."""
    with stdout_errors():
        sys.stdout.flush()


@contextmanager
def json_reporter(stream: TextIO | None = None) -> Iterator[Reporter]:
    """A reporter that writes each event as a line of JSON; all are written when the block ends.

    A thread does the writing, so that a slow reader of the pipe never holds up a load. When the
    reader is gone the load goes on, and whoever writes next to stdout learns of it.
    """
    events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def write() -> None:
        open_ = True
        while (event := events.get()) is not None:
            try:
                if open_:
                    print(_json_line(event_object(event)), file=stream or sys.stdout)
                    if events.empty():
                        (stream or sys.stdout).flush()
            except OSError:
                open_ = False

    thread = threading.Thread(target=write, name="asyncfetch-json", daemon=True)
    thread.start()
    patience = None
    try:
        yield events.put
    except KeyboardInterrupt:
        patience = _FAREWELL
        raise
    finally:
        events.put(None)
        thread.join(patience)


def stdout_is_stuck() -> bool:
    """Whether its reader takes nothing for now, so that a write would wait for as long as that likes."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return not poll.poll(_FAREWELL * 1000)
    except (OSError, ValueError, AttributeError):  # no descriptor, or no poll
        return False


def print_error(error: BaseException) -> None:
    """What went wrong, and what to do about it, on stderr; never a traceback."""
    shown = error_object(error)
    for word, code, text in (("asyncfetch:", "1;31", shown["message"]), ("hint:", "1;36", shown["hint"])):
        if text:
            line = for_people(f"{word} {printable(text)}", sys.stderr)
            print(_coloured(word, code) + line.removeprefix(word), file=sys.stderr)


def for_people(line: str, stream: TextIO, *, indent: str = "") -> str:
    """`line` as it is to be written to `stream`: on a terminal cut at spaces into lines that fit."""
    return wrapped(line, shutil.get_terminal_size().columns, indent=indent) if stream.isatty() else line


def _coloured(word: str, code: str) -> str:
    """`word` in a colour, where stderr is a terminal that has some and nobody asked for none: https://no-color.org."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb" or not sys.stderr.isatty()
    return word if plain else f"\x1b[{code}m{word}\x1b[0m"


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Sequence[str] = (),
    shortened: str = "",
    optional: Sequence[str] = (),
) -> None:
    """A table on stdout: aligned on a terminal, otherwise tab-separated lines under a header line.

    Columns named in `right` are numbers: aligned to the right on a terminal, with thousands
    separated there and only there. There the column `shortened` gives up what the width lacks, and where that is not
    enough, or there is none, the columns `optional` are left out, the first of them first.
    """
    aligned = sys.stdout.isatty()
    numeric = [name in right for name in columns]
    cells = [
        [
            f"{value:,}"
            if aligned and isinstance(value, int) and not isinstance(value, bool)
            else printable(str(value))
            for value in row
        ]
        for row in rows
    ]
    if not aligned:
        with stdout_errors():
            sys.stdout.writelines("\t".join(row) + "\n" for row in [list(columns), *cells])
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    room = shutil.get_terminal_size().columns
    least = [min(width, _LEAST) if name == shortened else width for name, width in zip(columns, widths, strict=True)]
    kept = _that_fit(columns, least, optional, room)
    columns, cells = [columns[n] for n in kept], [[row[n] for n in kept] for row in cells]
    widths, numeric = [widths[n] for n in kept], [numeric[n] for n in kept]
    excess = sum(widths) + 2 * (len(widths) - 1) - room
    if shortened and excess > 0:
        place = columns.index(shortened)
        widths[place] = max(widths[place] - excess, _LEAST)
        names = fit_names([row[place] for row in cells], widths[place])
        widths[place] = max(map(len, [columns[place], *names]))
        cells = [[*row[:place], name, *row[place + 1 :]] for row, name in zip(cells, names, strict=True)]
    for row in [list(columns), *cells]:
        padded = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=True)
        )
        print("  ".join(padded).rstrip())


def _that_fit(columns: Sequence[str], widths: Sequence[int], optional: Sequence[str], room: int) -> list[int]:
    """Which columns of a table are kept, for as many `optional` ones to be left out as there is no room for."""
    kept = list(range(len(columns)))
    for name in optional:
        if sum(widths[n] + 2 for n in kept) - 2 > room:
            kept.remove(columns.index(name))
    return kept


def silence_stdout() -> None:
    """Send what is still buffered for a closed pipe nowhere, so that the interpreter exits quietly."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
