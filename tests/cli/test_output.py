"""JSON lines, tables and exit codes."""

from __future__ import annotations

import io
import json
import os
import pty
import threading
import time
from typing import Any

import pytest

from asyncfetch import errors
from asyncfetch.cli.output import error_object, exit_code, json_reporter, print_error, print_json, print_table

from ..kit import canaries
from ..kit.samples import ERRORS, EVENTS

CODES: dict[type[BaseException], int] = {
    errors.AsyncfetchError: 1,
    errors.ModelMismatchError: 1,
    errors.TimedOutError: 6,
    ZeroDivisionError: 1,
    errors.SourceError: 2,
    errors.SelectionError: 2,
    errors.NotFoundError: 3,
    errors.RepositoryNotFoundError: 3,
    errors.RevisionNotFoundError: 3,
    errors.EntryNotFoundError: 3,
    errors.ShardNotFoundError: 3,
    errors.CheckpointNotFoundError: 3,
    errors.AccessError: 4,
    errors.GatedRepositoryError: 4,
    errors.CorruptError: 5,
    errors.InvalidIndexError: 5,
    errors.InvalidHeaderError: 5,
    errors.MissingTensorError: 5,
    errors.ChecksumMismatchError: 5,
    errors.ChangedError: 5,
    errors.NetworkError: 6,
    errors.ServerError: 6,
    errors.ProtocolError: 6,
    errors.ProxyError: 6,
    errors.StalledError: 6,
    errors.LinkExpiredError: 6,
    errors.CertificateError: 6,
    errors.StorageError: 7,
    errors.DiskFullError: 7,
    errors.RateLimitedError: 8,
    errors.OfflineError: 9,
    KeyboardInterrupt: 130,
}
FAILURES = [*ERRORS.values(), ZeroDivisionError("oops"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_exit_code_and_error_object(error: BaseException) -> None:
    """Each error has the exit code of its branch, and an object that is JSON and holds no secret."""
    shown = json.loads(json.dumps(error_object(error)))
    assert exit_code(error) == shown["exit_code"] == CODES[type(error)]
    assert shown["type"] == "error"
    assert shown["code"]
    assert shown["message"]
    assert isinstance(shown["transient"], bool)
    assert not canaries.shown(json.dumps(shown))


def test_an_error_carries_its_data() -> None:
    """The attributes of an error are numbers and lists in its object, notes included."""
    error = errors.DiskFullError("/x", needed=2, free=1)
    error.add_note("Also failed: that")
    shown = error_object(error)
    assert (shown["needed"], shown["free"], shown["path"]) == (2, 1, "/x")
    assert shown["notes"] == ["Also failed: that"]
    assert not [name for name in shown if name.startswith("_")]


def test_events_as_json_lines() -> None:
    """Every event is one line with its kind and its fields, all written when the block ends."""
    stream = io.StringIO()
    with json_reporter(stream) as report:
        for event in EVENTS:
            report(event)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"].replace("_", "") for line in lines] == [type(event).__name__.lower() for event in EVENTS]
    assert {(line["schema_version"], line["type"]) for line in lines} == {(1, "event")}
    assert lines[0]["files"] == [{"file": "m.safetensors", "size": 100, "present": 40, "checksum": "sha256:x"}]
    progress = {"schema_version": 1, "type": "event", "event": "file_progress"}
    assert progress | {"file": "m.safetensors", "received": 100, "size": 100} in lines


def test_json_is_ascii() -> None:
    """Names in any script, and undecodable ones, are escaped: any locale can carry them."""
    stream = io.StringIO()
    print_json({"name": "é\udcff\n"}, stream)
    assert stream.getvalue().isascii()
    assert stream.getvalue().count("\n") == 1
    assert json.loads(stream.getvalue())["name"] == "é\udcff\n"


def test_a_slow_reader_does_not_block_the_load() -> None:
    """Events are taken at once while the pipe is full."""
    gate = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            gate.wait(10)
            return super().write(text)

    with json_reporter(Stuck()) as report:
        started = time.monotonic()
        for _ in range(1000):
            report(EVENTS[0])
        elapsed = time.monotonic() - started
        gate.set()
    assert elapsed < 1


def test_a_reader_that_left_does_not_stop_the_load() -> None:
    """After a broken pipe events go nowhere, and the block ends."""

    class Gone(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            raise BrokenPipeError

    gone = Gone()
    with json_reporter(gone) as report:
        for event in EVENTS:
            report(event)
    assert gone.writes == 1


def test_errors_are_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    """Message and hint on stderr, control characters escaped, nothing on stdout."""
    print_error(errors.EntryNotFoundError("a\x1b[2J", "o/m"))
    print_error(errors.SourceError("bad\nthing", hint="Do that."))
    print_error(ZeroDivisionError("oops"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "asyncfetch: o/m has no file 'a\\x1b[2J'.",
        "asyncfetch: bad\\nthing",
        "hint: Do that.",
        "asyncfetch: ZeroDivisionError: oops",
        "hint: Please report this.",
    ]


ROWS: list[tuple[Any, ...]] = [("weight", 1234567, "a\tb"), ("b", 8, "")]


def test_a_table_in_a_pipe_is_tab_separated(capsys: pytest.CaptureFixture[str]) -> None:
    """Plain numbers, one tab between columns, tabs in names escaped: fit for cut and awk."""
    print_table(["tensor", "bytes", "shard"], ROWS, right=["bytes"])
    assert capsys.readouterr().out == "tensor\tbytes\tshard\nweight\t1234567\ta\\tb\nb\t8\t\n"


@pytest.mark.parametrize(("width", "kept"), [(60, "tbs"), (31, "tbs"), (29, "ts"), (20, "ts")])
def test_a_table_leaves_out_what_has_no_room(
    width: int, kept: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """First a name is shortened, then columns go that matter less; no line is longer than the terminal."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [("model.layers.0.attention.weight", 12_345_678, "F32"), ("b", 8, "BF16")]
    print_table(["tensor", "bytes", "say"], rows, right=["bytes"], shortened="tensor", optional=["bytes"])
    lines = capsys.readouterr().out.splitlines()
    assert "".join(word[0] for word in lines[0].split()) == kept
    assert max(map(len, lines)) <= width


def test_an_error_on_a_terminal_is_cut_at_spaces(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not in the middle of a word; elsewhere it stays one line."""
    error = errors.SourceError(
        "Something is wrong with what was asked for here.", hint="Ask for something else instead."
    )
    monkeypatch.setenv("COLUMNS", "30")
    print_error(error)
    assert len(capsys.readouterr().err.splitlines()) == 2
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    print_error(error)
    assert capsys.readouterr().err.splitlines() == [
        "asyncfetch: Something is wrong",
        "with what was asked for here.",
        "hint: Ask for something else",
        "instead.",
    ]


def test_a_table_on_a_terminal_is_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers to the right with thousands separated, text to the left, no trailing blanks."""
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        print_table(["tensor", "bytes", "shard"], ROWS, right=["bytes"])
        terminal.flush()
        shown = ""
        while shown.count("\n") < 3:
            shown += os.read(leader, 4096).decode()
    os.close(leader)
    assert shown.split("\r\n")[:3] == [
        "tensor      bytes  shard",
        "weight  1,234,567  a\\tb",
        "b               8",
    ]
