"""Each test is searched for canaries: in all that asyncfetch said, and in all that it left on the disk.

What is said is looked at when it is said: log lines of every logger at DEBUG, errors of the tree
with what they hang on, events, notes, warnings, arguments and output of child processes. What was
printed and what is in files is looked at when the test is over. A hit makes the test an error.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from asyncfetch.errors import AsyncfetchError
from asyncfetch.events import Notifier

from .canaries import shown

__all__ = ["hits", "look_at_files", "look_at_report", "note", "watching"]

_LARGE = 4 << 20  # bytes: a file beyond that is tensors, and reading it would take longer than the test

_hits: list[str] = []


def hits() -> list[str]:
    """What was said since the last call and should not have been, each place once."""
    found = list(dict.fromkeys(_hits))
    _hits.clear()
    return found


def note(where: str, said: str | bytes) -> None:
    """Look at something that was said."""
    place = shown(said)
    if place is not None:
        _hits.append(f"{where}: …{place}…")


def look_at_files(folders: Iterable[Path]) -> None:
    """Names and contents of all files below `folders`."""
    for folder in folders:
        for path, _, names in os.walk(folder):
            for name in names:
                file = os.path.join(path, name)
                note("the name of a file", os.path.relpath(file, folder))
                with suppress(OSError):
                    if os.path.isfile(file) and not os.path.islink(file) and os.path.getsize(file) <= _LARGE:
                        note(f"the file {os.path.relpath(file, folder)}", Path(file).read_bytes())


def look_at_report(item: pytest.Item) -> None:
    """What the test printed, and what it logged as pytest has it."""
    for _when, kind, text in item._report_sections:
        note(f"captured {kind}", text)


# -- what is said while a test runs ----------------------------------------------------------------


class _Ear(logging.Handler):
    def handle(self, record: logging.LogRecord) -> bool:  # without a lock, and without keeping the record
        note(f"a log line of {record.name}", record.getMessage())
        if record.exc_info:
            note(f"a traceback logged by {record.name}", "".join(traceback.format_exception(*record.exc_info)))
        return True


def _note_error(error: AsyncfetchError) -> None:
    """A new error, and what was being handled when it came: its context, and most often its cause."""
    name = type(error).__name__
    note(f"the text of a {name}", f"{error}\n{error!r}")
    try:
        note(f"the pickle of a {name}", pickle.dumps(error))
    except Exception:  # that it should be picklable is for another test
        note(f"the data of a {name}", repr(vars(error)))
    behind = sys.exception()
    for _ in range(10):
        if behind is None or behind is error:
            return
        note(f"a {type(behind).__name__} behind a {name}", f"{behind}\n{behind!r}\n{behind.args!r}")
        behind = behind.__cause__ or behind.__context__


def _watched_init(real: Callable[..., None], cls: type[AsyncfetchError]) -> Callable[..., None]:
    @wraps(real)
    def init(self: AsyncfetchError, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        if type(self).__init__ is cls.__init__:  # the outermost: the error is complete
            _note_error(self)

    return init


def _tree(cls: type[AsyncfetchError]) -> Iterator[type[AsyncfetchError]]:
    yield cls
    for below in cls.__subclasses__():
        yield from _tree(below)


@contextmanager
def watching() -> Iterator[None]:
    """Listen to this process, for as long as the block runs."""
    patch, ear = pytest.MonkeyPatch(), _Ear()
    for cls in set(_tree(AsyncfetchError)):
        if "__init__" in vars(cls):
            patch.setattr(cls, "__init__", _watched_init(cls.__init__, cls))
    for owner, name, listener in _listeners():
        patch.setattr(owner, name, listener, raising=name != "add_note")  # which its base class has
    logging.getLogger().addHandler(ear)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(ear)
        patch.undo()


def _listeners() -> Iterator[tuple[type, str, Callable[..., Any]]]:
    """Methods that let us listen before or after they do what they did."""
    real_notify, real_read = Notifier.__call__, pytest.CaptureFixture.readouterr
    real_popen, real_communicate = subprocess.Popen.__init__, subprocess.Popen.communicate

    @wraps(BaseException.add_note)
    def add_note(self: AsyncfetchError, text: str) -> None:
        """As that of BaseException, and looked at."""
        note(f"a note on a {type(self).__name__}", text)
        BaseException.add_note(self, text)

    def notify(self: Notifier, event: Any) -> None:
        note("an event", repr(event))
        real_notify(self, event)

    def popen(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        note("the arguments of a process", repr(args))
        real_popen(self, args, *rest, **options)

    def communicate(self: Any, *args: Any, **options: Any) -> Any:
        result = real_communicate(self, *args, **options)
        for said in result:
            note("the output of a process", said or "")
        return result

    def readouterr(self: Any) -> Any:
        result = real_read(self)
        for said in result:
            note("what was printed", said)
        return result

    yield AsyncfetchError, "add_note", add_note
    yield Notifier, "__call__", notify
    yield subprocess.Popen, "__init__", popen
    yield subprocess.Popen, "communicate", communicate
    yield pytest.CaptureFixture, "readouterr", readouterr
