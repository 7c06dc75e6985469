"""Programs that are forked instead of started are processes like others: what they get, say, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .kit.zygote import zygote

ENDS = 'import signal, sys; sys.stdout.write("going\\n"); sys.stdout.flush(); signal.pause()'


@pytest.fixture(scope="module")
def python() -> Iterator[list[str]]:
    with zygote("decimal") as begin:
        yield begin


def test_what_it_is_given(python: list[str], tmp_path: Path) -> None:
    """Arguments, environment, folder and streams are its own; what was asked for is imported, and nothing else."""
    code = (
        "import sys; there = {'decimal', 'fractions', 'pytest', 'asyncfetch'} & set(sys.modules)\n"
        "import os; print(sys.argv, os.getcwd(), dict(os.environ), there, sys.stdin.read(), end=' ')\n"
        "print(os.listdir('/proc/self/fd')); print('é…', file=sys.stderr)"
    )
    command = [*python, "-c", code, "a b", ""]
    run = subprocess.run(command, cwd=tmp_path, env={"LC_ALL": "C.UTF-8"}, input="said", capture_output=True, text=True)
    descriptors = ["0", "1", "2", "3"]  # the last is of the listing itself
    assert run.stdout == f"['-c', 'a b', ''] {tmp_path} {{'LC_ALL': 'C.UTF-8'}} {{'decimal'}} said {descriptors}\n"
    assert (run.returncode, run.stderr) == (0, "é…\n")


def test_a_module(python: list[str], tmp_path: Path) -> None:
    """-m runs a module of the folder as the main one."""
    (tmp_path / "said.py").write_text("import sys\nif __name__ == '__main__':\n    print(sys.argv[1:], __file__)\n")
    run = subprocess.run([*python, "-m", "said", "-x"], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout == f"['-x'] {tmp_path / 'said.py'}\n", run.stderr


@pytest.mark.parametrize(
    ("code", "status"),
    [("", 0), ("raise SystemExit(7)", 7), ("1 / 0", 1), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)],
)
def test_how_it_ends(python: list[str], code: str, status: int) -> None:
    """Its exit code, or the signal that ended it; what it wrote before is there."""
    run = subprocess.run([*python, "-c", f"print('x', flush=True)\n{code}"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (status, "x\n")
    assert ("ZeroDivisionError" in run.stderr) == (status == 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_it(python: list[str], number: signal.Signals) -> None:
    """A signal for the small program ends the fork too; its streams are closed then."""
    with subprocess.Popen([*python, "-c", ENDS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "going\n"
        process.send_signal(number)
        assert process.stdout.read() == ""  # so the fork is gone
        assert process.wait(10) == -number


def test_an_interrupt(python: list[str]) -> None:
    """Ctrl-C is a KeyboardInterrupt in the fork."""
    code = f"try:\n    {ENDS}\nexcept KeyboardInterrupt:\n    raise SystemExit(130)"
    with subprocess.Popen([*python, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "going\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_many_at_once(python: list[str]) -> None:
    """They do not wait for each other."""
    reading, writing = os.pipe()
    first = subprocess.Popen([*python, "-c", "input()"], stdin=reading)
    others = [subprocess.Popen([*python, "-c", f"raise SystemExit({n})"]) for n in range(5)]
    assert [other.wait(20) for other in others] == [0, 1, 2, 3, 4]
    assert first.poll() is None
    os.write(writing, b"\n")
    assert first.wait(20) == 0
    os.close(reading)
    os.close(writing)
