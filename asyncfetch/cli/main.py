"""The console script: run a command, and turn whatever happens into an exit code.

The exit codes are listed in output.py. A traceback is shown only with ASYNCFETCH_DEBUG=1.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FrameType

from ..errors import StorageError
from ..policy import __version__
from .output import (
    INTERRUPTED,
    error_object,
    exit_code,
    fill_closed_streams,
    flush_stdout,
    print_error,
    print_json,
    silence_stdout,
    stdout_errors,
    stdout_is_stuck,
)

__all__ = ["main"]

BROKEN_PIPE = 128 + signal.SIGPIPE  # what a shell reports for a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv` (default: the arguments of the process); return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    fill_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a character shows its escape
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # whoever started it with nohup wants it to go on
                signal.signal(number, _terminate)
    try:
        if arguments in (["--version"], ["-V"]):
            with stdout_errors():
                print(__version__)
            code = 0
        elif (run := _commands()) is not None:
            code = run(arguments)
        else:
            print(
                "asyncfetch: the command line needs two more packages: pip install 'asyncfetch[cli]'", file=sys.stderr
            )
            return 2
        flush_stdout()
    except BrokenPipeError:
        silence_stdout()
        return BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        return _fail(error, as_json="--json" in arguments)
    return code


def _commands() -> Callable[[Sequence[str]], int] | None:
    """What runs a command, or None where a package that it needs is missing. NumPy and the like take half a second."""
    try:
        found: Callable[[Sequence[str]], int] = import_module("asyncfetch.cli.commands").run
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in {"cyclopts", "rich"}:
            raise
        return None
    return found


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    """What ends it is cleaned up after like Ctrl-C: the cursor comes back, the partial files keep what came."""
    raise KeyboardInterrupt


def _fail(error: BaseException, *, as_json: bool) -> int:
    """Report `error` on stderr, and as the last JSON line if asked for; return its exit code."""
    if os.environ.get("ASYNCFETCH_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt) and stdout_is_stuck():
        print_error(error)
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # the interpreter would wait for who reads stdout
    try:
        if as_json and not (isinstance(error, StorageError) and error.path == "stdout"):
            print_json(error_object(error))
        else:
            print_error(error)
        sys.stdout.flush()
    except (OSError, StorageError):
        silence_stdout()
    return exit_code(error)
