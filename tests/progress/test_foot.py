"""What a program prints while a table is drawn: none of it is lost, and there is one table. On a real terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

import pytest
from rich.console import Console
from rich.live import Live

from asyncfetch.progress import foot as foots
from asyncfetch.progress.foot import Foot

from ..kit.screen import Terminal

PICTURE = "shard 1\nshard 2\ntotal\n"
TABLE = ["shard 1", "shard 2", "total"]


@contextlib.contextmanager
def on_a_terminal() -> Iterator[Terminal]:
    """One that the streams of the program lead to."""
    with (
        Terminal() as terminal,
        contextlib.redirect_stdout(terminal.stream()),
        contextlib.redirect_stderr(terminal.stream()),
    ):
        yield terminal


def own(stream: TextIO) -> set[str]:
    return {"write", "flush"} & set(vars(stream))


def without_end(lines: list[str]) -> list[str]:
    assert lines[-1] == ""  # the cursor is at the begin of a line
    return lines[:-1]


def test_lines_appear_above() -> None:
    """Of print, of a handler of the log that had its stream before, and what is said beside the table; in order."""
    with on_a_terminal() as terminal:
        logger, handler = logging.Logger("elsewhere"), logging.StreamHandler(sys.stderr)
        logger.addHandler(handler)
        with Foot(sys.stderr) as foot:
            foot.draw("looking\n")
            for number in range(30):  # more than the terminal has lines
                print("printed", number)
                logger.warning("logged %d", number)
                foot.draw(PICTURE, above=f"said {number}\n")
            sys.stdout.writelines(["two\n", "lines\n"])
    told = [f"{how} {number}" for number in range(30) for how in ("printed", "logged", "said")]
    assert without_end(terminal.lines()) == [*told, "two", "lines", *TABLE]


def test_a_line_that_is_not_ended() -> None:
    """It has the terminal for itself, as one that counts up in its place does; what is not flushed is not begun."""
    with on_a_terminal() as terminal, Foot(sys.stderr) as foot:
        foot.draw(PICTURE)
        print("begun,", end=" ", flush=True)
        foot.draw(PICTURE, above="said\n")
        print("and on", end="")
        foot.draw(PICTURE)
        print(" to the end")
        for count in range(5):
            sys.stderr.write(f"\rcounted {count}")
            foot.draw(PICTURE)
        sys.stderr.write("\x1b[0m\n\x1b[0m")
        foot.draw(PICTURE)
        print("kept for later", end="")
    assert terminal.lines() == ["begun, and on to the end", "said", "counted 4", *TABLE, "kept for later"]


def test_a_line_that_nobody_ends() -> None:
    """The last picture stands below it."""
    with on_a_terminal() as terminal, Foot(sys.stderr) as foot:
        foot.draw(PICTURE)
        print("done?", end="", flush=True)
    assert without_end(terminal.lines()) == ["done?", *TABLE]


def test_lines_that_come_fast() -> None:
    """The table is not drawn for each of them, nor taken away where it is not."""
    with on_a_terminal() as terminal, Foot(sys.stderr) as foot:
        foot.draw(PICTURE)
        for number in range(2000):
            print(number)
        foot.draw(PICTURE)
    assert without_end(terminal.lines()) == [*map(str, range(2000)), *TABLE]
    assert terminal.written().count("total") < 1000


def test_the_display_of_the_caller() -> None:
    """One that redraws itself too has the terminal while it is there, and both are whole in the end."""
    with on_a_terminal() as terminal, Foot(sys.stderr) as foot:
        foot.draw(PICTURE)
        console = Console(file=sys.stdout, force_terminal=True, width=80, height=24)
        with Live("theirs", console=console, auto_refresh=False) as live:
            for number in range(3):
                live.update(f"first of theirs\nnumber {number}", refresh=True)
                foot.draw(PICTURE)
                print("printed")  # by way of the stream that rich has put in its place
    lines = terminal.lines()
    assert [line for line in lines if line] == ["printed"] * 3 + ["first of theirs", "number 2", *TABLE]


def test_streams_that_lead_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another terminal, and what a caller has put in the place of stdout, get what is printed and nothing else."""
    with on_a_terminal() as terminal, Terminal() as another:
        caught = io.StringIO()
        with Foot(sys.stderr) as foot:
            foot.draw(PICTURE)
            with contextlib.redirect_stdout(caught):
                print("caught")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", another.stream())
            with Foot(sys.stderr) as foot:
                foot.draw(PICTURE)
                assert own(sys.stdout) == set()
                print("elsewhere")
        assert caught.getvalue() == "caught\n"
        assert another.written() == "elsewhere\r\n"
    assert without_end(terminal.lines()) == TABLE * 2


def test_all_is_as_before() -> None:
    """After an error, and where the terminal is gone, too; who has wrapped a stream meanwhile keeps that."""
    with on_a_terminal() as terminal:
        with contextlib.suppress(ZeroDivisionError), Foot(sys.stderr) as foot:
            foot.draw(PICTURE)
            assert own(sys.stdout) == own(sys.stderr) == {"write", "flush"}
            raise ZeroDivisionError
        assert own(sys.stdout) == own(sys.stderr) == set()
        theirs, heard = sys.stdout.write, list[str]()

        def wrapped(text: str, write: Any = None) -> int:
            heard.append(text)
            return (write or theirs)(text)

        vars(sys.stdout)["write"] = wrapped
        with Foot(sys.stderr) as foot:
            foot.draw(PICTURE)
            print("through both")
            ours = sys.stdout.write
            vars(sys.stdout)["write"] = lambda text: ours(text)
        assert own(sys.stdout) == {"write"}
        print("after", flush=True)
        assert "".join(heard) == "through both\nafter\n"
        with contextlib.suppress(ValueError), Foot(sys.stderr) as foot:
            foot.draw(PICTURE)
            sys.stderr.close()  # and with it what draws
            print("still there")
        assert own(sys.stdout) == {"write"}
    assert terminal.lines()[-1] == ""
    assert [line for line in terminal.lines() if line not in TABLE][:3] == ["through both", "after", "still there"]


def test_what_cannot_be_written() -> None:
    """An error of the stream is the caller's, and costs that line alone."""
    with on_a_terminal() as terminal, Foot(sys.stderr) as foot:
        foot.draw(PICTURE)
        with pytest.raises(UnicodeEncodeError):
            print("a half \ud800")
        with pytest.raises(TypeError):
            sys.stdout.write(b"bytes")  # type: ignore[arg-type]
        print("a line")
    assert without_end(terminal.lines()) == ["a line", *TABLE]


def test_who_draws_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed waits for it, but not for ever: where the interpreter ends, a daemon stands still."""
    with on_a_terminal() as terminal:
        monkeypatch.setattr(foots, "_PATIENCE", 0.01)
        inside, leave, left = threading.Event(), threading.Event(), list[bool]()
        with Foot(sys.stderr) as foot:

            def stick() -> None:
                with foot.turn():
                    inside.set()
                    left.append(leave.wait(10))

            thread = threading.Thread(target=stick)
            thread.start()
            assert inside.wait(10)
            print("printed", flush=True)
            leave.set()
            thread.join()
            foot.draw(PICTURE)
    assert left == [True]
    assert without_end(terminal.lines()) == ["printed", *TABLE]


FORK = """
import os, sys, threading
from asyncfetch.progress.foot import Foot

def fork():
    child = os.fork()
    if child == 0:
        print("of a child", flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

with Foot(sys.stderr) as foot:
    foot.draw("total\\n")
    fork()
    inside, leave = threading.Event(), threading.Event()
    def draw():
        with foot.turn():
            inside.set()
            leave.wait(20)
    thread = threading.Thread(target=draw)
    thread.start()
    inside.wait()
    fork()
    leave.set()
    thread.join()
"""


def test_a_fork() -> None:
    """A child draws no table, and does not wait for who draws it in its parent."""
    with Terminal() as terminal:
        assert terminal.run([sys.executable, "-W", "ignore", "-c", FORK]) == 0
    assert "total\r\nof a child\r\nof a child\r\n" in terminal.written()
