"""What searches all tests for canaries hears them, wherever they are said or left."""

from __future__ import annotations

import base64
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest

from asyncfetch.errors import NetworkError, ShardNotFoundError, SourceError
from asyncfetch.events import Notifier, Warned

from .kit import secrets_watch
from .kit.canaries import PASSWORD, SIGNATURE, TOKEN, shown

ROOT = Path(__file__).parents[1]
SIGNED = f"https://user:{PASSWORD}@host/file?X-Signature={SIGNATURE}"


LOGS = pytest.mark.shows_secrets(reason="pytest keeps log lines until the test is over, and they are looked at again")


def log() -> None:
    logging.getLogger("httpcore.http11").debug("%s", [(b"authorization", TOKEN.encode())])


def log_a_traceback() -> None:
    try:
        raise ValueError(SIGNED)
    except ValueError:
        logging.getLogger("asyncfetch").exception("broken")


def make_an_error() -> None:
    SourceError(f"Nothing for {TOKEN}.")


def make_an_error_with_data() -> None:
    ShardNotFoundError("shard", "source", f"index of {TOKEN}")


def make_an_error_with_a_context() -> None:
    try:
        raise ConnectionError(SIGNED)
    except ConnectionError:
        NetworkError("it broke", url="https://host/")


def note_on_an_error() -> None:
    NetworkError("it broke", url="https://host/").add_note(f"Also failed: {SIGNED}")


def report_an_event() -> None:
    Notifier(None)(Warned(f"{SIGNED} is odd"))


def start_a_process() -> None:
    subprocess.run([sys.executable, "-c", f"len('{TOKEN}')"], check=True)


def print_in_a_process() -> None:
    code = "import sys; print(sys.stdin.read(), file=sys.stderr)"
    subprocess.run([sys.executable, "-c", code], input=TOKEN.encode(), capture_output=True, check=True)


@pytest.mark.parametrize(
    ("say", "where"),
    [
        pytest.param(log, "a log line of httpcore.http11", marks=LOGS),
        pytest.param(log_a_traceback, "a traceback logged by asyncfetch", marks=LOGS),
        (make_an_error, "the text of a SourceError"),
        (make_an_error_with_data, "the pickle of a ShardNotFoundError"),
        (make_an_error_with_a_context, "a ConnectionError behind a NetworkError"),
        (note_on_an_error, "a note on a NetworkError"),
        (report_an_event, "an event"),
        (start_a_process, "the arguments of a process"),
        (print_in_a_process, "the output of a process"),
    ],
)
def test_what_is_said_is_heard(say: Callable[[], None], where: str) -> None:
    """Each way to say a canary is a hit, with the place; and a hit is told once."""
    say()
    assert where in {hit.partition(":")[0] for hit in secrets_watch.hits()}
    assert not secrets_watch.hits()


def test_what_is_printed_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    """Whether the test reads what was printed, or pytest keeps it."""
    print(TOKEN)
    capsys.readouterr()
    assert secrets_watch.hits() == [f"what was printed: …{TOKEN}\n…"]
    item: Any = SimpleNamespace(_report_sections=[("call", "stderr", SIGNATURE)])
    secrets_watch.look_at_report(item)
    assert secrets_watch.hits() == [f"captured stderr: …{SIGNATURE}…"]


def test_what_is_left_is_found(tmp_path: Path) -> None:
    """In a file of any depth, and in its name; a file of many megabytes is not read."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/journal").write_bytes(b"\0" * 1000 + SIGNATURE.encode())
    (tmp_path / "a" / TOKEN).touch()
    (tmp_path / "tensors").write_bytes(bytes(5 << 20) + TOKEN.encode())
    secrets_watch.look_at_files([tmp_path])
    assert sorted(hit.partition(":")[0] for hit in secrets_watch.hits()) == [
        "the file a/b/journal",
        "the name of a file",
    ]
    for path in (tmp_path / "a/b/journal", tmp_path / "a" / TOKEN):
        path.unlink()


def test_a_warning_is_heard() -> None:
    """What pytest records as a warning; here it would be an exception."""
    warning: Any = warnings.WarningMessage(UserWarning(TOKEN), UserWarning, "file", 1)
    secrets_watch.note("a warning", str(warning.message))
    assert secrets_watch.hits()


@pytest.mark.parametrize("secret", [TOKEN, SIGNATURE, PASSWORD], ids=["token", "signature", "password"])
def test_encodings(secret: str) -> None:
    """A canary is known in a URL, in a repr, and in what Basic authentication makes of it."""
    for said in (secret, quote(secret, safe=""), repr(secret.encode()), SIGNED):
        assert shown(said)
        assert shown(said.encode())
    for user in ("", "u", "us", "use"):
        assert shown(base64.b64encode(f"{user}:{secret}".encode()))
    assert not shown("canary")
    assert not shown(b"canary")


_SUITE = """
import pytest
from tests.kit.canaries import TOKEN

def test_that_leaks():
    print(TOKEN)

@pytest.mark.shows_secrets(reason="to see what happens")
def test_that_may():
    print(TOKEN)

@pytest.mark.shows_secrets()
def test_that_does_not_say_why():
    print(TOKEN)

@pytest.mark.parametrize("number", range(4))
def test_that_measures(number, figure, seed):
    figure(f"{number * 7} of {seed}")

@pytest.mark.anyio
@pytest.mark.parametrize("word", ["trio", "duo"])
async def test_that_waits(anyio_backend_name, word):
    assert anyio_backend_name
"""


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("processes", "loops", "passed"), [(0, "all", 11), (2, "one", 9)], ids=["one process", "workers"]
)
@pytest.mark.shows_secrets(reason="its child prints a canary, and pytest shows that")
def test_a_run_of_its_own(tmp_path: Path, processes: int, loops: str, passed: int) -> None:
    """In one process and in several: what leaks, what was measured, one seed for all, and how often an async test runs.

    An error where a test leaks, none where its marker allows it, and the marker needs a reason.
    """
    (tmp_path / "test_suite.py").write_text(_SUITE)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--rootdir", str(ROOT), "-n", str(processes)]
    command += ["--long", "-c", str(ROOT / "pyproject.toml"), str(tmp_path / "test_suite.py")]  # which draws a seed
    command += ["--loops", loops]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert f"{passed} passed, 2 errors" in run.stdout, run.stdout + run.stderr
    assert "secrets were shown:\ncaptured stdout: " in run.stdout
    (seed,) = re.findall(r"^seed: (\d+)$", run.stdout, re.MULTILINE)
    figures = run.stdout.partition(" figures ")[2]
    for number in range(4):
        assert f"test_that_measures[{number}]: {number * 7} of {seed}\n" in figures, run.stdout
