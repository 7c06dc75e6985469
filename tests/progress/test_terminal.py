"""What is drawn: at several sizes, through a real terminal, and where there is none."""

from __future__ import annotations

import io
import re
import sys
import threading
import time

import pytest
from rich.cells import cell_len
from rich.console import Console

from asyncfetch.events import (
    FileProgress,
    FileStarted,
    FileState,
    FileVerified,
    FileWritten,
    NodeProgress,
    Resolved,
    Retrying,
    Waiting,
    Writing,
)
from asyncfetch.progress.lines import Audience, announcement
from asyncfetch.progress.state import ProgressState
from asyncfetch.progress.terminal import frame, terminal_reporter

from ..kit.samples import EVENTS
from ..kit.screen import Terminal

GB = 10**9
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
LOAD = tuple(event for event in EVENTS if not isinstance(event, Writing | FileWritten | NodeProgress))


def shard(number: int, count: int) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"


def busy(count: int = 12) -> ProgressState:
    """A load in the middle: 1 cached, 1 verified, 2 downloading, 1 in a retry, 1 waiting, the others not started."""
    state = ProgressState()
    names = [shard(i, count) for i in range(1, count + 1)]
    files = tuple(FileState(name, 5 * GB, 5 * GB if i == 0 else 0, "sha256:x") for i, name in enumerate(names))
    state.apply(Resolved("org/m", "a" * 40, "index", files), 0.0)
    for name in names[1:6]:
        state.apply(FileStarted(name, 5 * GB, 0), 0.0)
        state.apply(FileProgress(name, GB, 5 * GB), 1.0)
    state.apply(FileVerified(names[1], 5 * GB, "sha256:x"), 1.0)
    state.apply(Retrying(names[2], "connection reset by peer", 2, 5, 3.0), 1.0)
    state.apply(Waiting(names[5], "the server limits the request rate", 7.0), 1.0)
    return state


def drawn(state: ProgressState, width: int, height: int = 40, *, ascii_only: bool = False) -> list[str]:
    return [line.plain.rstrip() for line in frame(state, 1.0, width=width, height=height, ascii_only=ascii_only)]


@pytest.mark.parametrize("width", [1, 8, 20, 40, 60, 79, 80, 100, 120, 200])
@pytest.mark.parametrize("height", [1, 2, 5, 13, 14, 40])
def test_a_frame_fits_its_terminal(width: int, height: int) -> None:
    """No line is wider and no frame is higher than the terminal."""
    lines = frame(busy(), 1.0, width=width, height=height)
    assert len(lines) <= height
    assert all(cell_len(line.plain) <= width for line in lines)


def test_a_wide_frame_says_everything() -> None:
    """On a wide terminal: whole names, bars, percent, amounts, rates, and the reason for a retry."""
    lines = drawn(busy(), 130)
    assert lines[0].startswith("model-00001-of-00012.safetensors ━━━━━")
    assert lines[0].endswith("100% 5.00/5.00 GB  cached")
    assert lines[1].endswith("100% 5.00/5.00 GB  verified")
    assert lines[2].endswith("retry 2/5 in 3 s: connection reset by peer")
    assert lines[3].endswith(" 20% 1.00/5.00 GB  downloading, 1.00 GB/s")
    assert lines[5].endswith(" 20% 1.00/5.00 GB  waiting 7 s: the server limits the request rate")
    assert lines[6].endswith("0% 0.00/5.00 GB  not started")
    assert lines[-1].startswith("total ")
    assert lines[-1].endswith("23% 14.0/60.0 GB  9.00 GB/s, 0:05 left")


def test_columns_are_aligned() -> None:
    """Every percent sign of a frame stands in the same column."""
    for width in (20, 40, 60, 80, 130):
        lines = [line for line in drawn(busy(), width) if not line.startswith(("retry: ", "waiting: "))]
        assert len({line.index("%") for line in lines}) == 1
        assert len(lines) == 13


def test_a_narrow_frame_keeps_name_and_percent() -> None:
    """At 20 columns there is room for which shard and how far, and for nothing else."""
    assert drawn(busy(), 20)[3] == "model-00004…     20%"


def test_many_shards_are_folded() -> None:
    """413 shards on 24 lines: the active ones, one line for all others, the total."""
    lines = drawn(busy(413), 80, 24)
    assert len(lines) == 8
    assert [line.split()[0] for line in lines[:4]] == [f"model-{i:05}-of-00413" for i in (3, 4, 5, 6)]
    assert lines[4] == "413 files: 1 verified, 1 cached, 4 active, 407 not started"
    assert lines[5:7] == ["retry: connection reset by peer", "waiting: the server limits the request rate"]
    assert lines[7].startswith("total")


def test_reasons_have_lines_where_they_do_not_fit() -> None:
    """Each reason once, below the shards and above the total; none on a wide terminal, none beyond the last line."""
    state = busy()
    state.apply(Waiting(shard(4, 12), "the server limits the request rate", 7.0), 1.0)
    reasons = ["retry: connection reset by peer", "waiting: the server limits the request rate"]
    lines = drawn(state, 80)
    assert lines[12:14] == reasons
    assert lines[14].startswith("total")
    assert lines[3].endswith("  waiting 7 s")
    assert drawn(state, 80, 14)[12:13] == reasons[:1]
    assert drawn(state, 80, 13)[-1].startswith("total")
    assert not set(reasons) & set(drawn(state, 130))


def test_an_ascii_terminal_gets_ascii() -> None:
    """A terminal that is not UTF-8 gets no character that it cannot show."""
    assert all(line.isascii() for line in drawn(busy(), 60, ascii_only=True) + drawn(busy(), 100, ascii_only=True))


def test_hostile_names_do_not_reach_the_terminal() -> None:
    """Control characters in a name come out as escapes, markup as it is."""
    state = ProgressState()
    state.apply(Resolved("s", None, None, (FileState("[red]\x1b[2J\x07", 10, 0, None),)), 0.0)
    assert drawn(state, 80)[0].startswith("[red]\\x1b[2J\\x07")


def test_before_the_source_is_known() -> None:
    """The first frame says what is going on, a failed look-up says why it waits."""
    state = ProgressState()
    assert drawn(state, 80) == ["looking up the source…"]
    state.apply(Retrying(None, "connection refused", 1, 5, 2.0), 0.0)
    assert drawn(state, 80) == ["source: retry 1/5 in 1 s: connection refused"]
    assert drawn(state, 20) == ["source: retry 1/5 in"]
    assert drawn(state, 80, 0) == []


def report_all(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    with terminal_reporter(console) as report:
        for event in LOAD:
            report(event)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [20, 80, 200])
def test_the_last_frame_stays_on_the_screen(width: int) -> None:
    """Even a load shorter than a redraw ends with its final state, then the summary, then a visible cursor."""
    out = report_all(Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=width, height=24))
    text = ESCAPE.sub("", out)
    assert "warning: strange" in text
    assert "100%" in text
    assert " ".join(text.split()).endswith("60 B downloaded in 0.5 s (120 B/s)")
    assert max(len(line) for line in text.splitlines()) <= width
    assert out.rindex("\x1b[?25h") > out.rindex("\x1b[?25l")


def test_a_look_up_that_failed_leaves_nothing() -> None:
    """What it was looking for is in the error, below which no line says that it is still looked for."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, force_interactive=True, width=80, height=24)
    with terminal_reporter(console) as report:
        report(Waiting(None, "the server limits the request rate", 7.0))
    assert "limits the request rate" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")  # the line of the table is cleared


def test_a_reason_tells_what_happened_where_there_is_little_room() -> None:
    """Of the URL that an error begins with the host is enough; what happened there is not cut off."""
    state = busy()
    url = f"https://cdn.example.org/{'5' * 64}?…"
    state.apply(Retrying(shard(3, 12), f"{url}: the server answered 503.", 1, 5, 3.0), 1.0)
    assert "retry: cdn.example.org: the server answered 503." in drawn(state, 60)


def test_what_is_written_has_the_table_after_what_was_fetched() -> None:
    """The summary of the one stands above the table of the other, which is the last."""
    out = io.StringIO()
    with terminal_reporter(
        Console(file=out, force_terminal=True, force_interactive=True, width=80, height=24)
    ) as report:
        for event in EVENTS:
            report(event)
    text = ESCAPE.sub("", out.getvalue())
    assert text.index("60 B downloaded") < text.index("writing /models/new: 1 file, 100 B") < text.index("written")
    assert text.rstrip().endswith("done")


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR: the table is drawn, and no sequence sets a colour."""
    monkeypatch.setenv("NO_COLOR", "1")
    out = report_all(Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=80, height=24))
    colours = [code for codes in re.findall(r"\x1b\[([0-9;]*)m", out) for code in codes.split(";") if code]
    assert "100%" in out
    assert not [code for code in colours if 30 <= int(code) <= 49 or 90 <= int(code) <= 107]


def test_plain_lines_without_a_terminal() -> None:
    """In a log: a line for each step, in order, with no control sequence."""
    out = report_all(Console(file=io.StringIO(), force_terminal=False, width=20))
    lines = out.splitlines()
    assert lines == [line for event in LOAD if (line := announcement(event, Audience.LOG)) is not None]
    assert lines[0] == "org/m at aaaaaaaaaaaa: 1 file, 100 B, 40 B already here"
    assert lines[-1] == "1 file, 100 B: 60 B downloaded in 0.5 s (120 B/s)"


def test_plain_status_lines_are_five_seconds_apart() -> None:
    """A log gets one status line each five seconds, however many events there are."""
    started = time.monotonic()

    def fast() -> float:  # a clock that runs 20 times as fast
        return (time.monotonic() - started) * 20

    console = Console(file=io.StringIO(), force_terminal=False)
    with terminal_reporter(console, clock=fast) as report:
        report(EVENTS[0])
        while fast() < 30:
            report(FileProgress("m.safetensors", 50, 100))
            time.sleep(0.002)
        elapsed = fast()
    lines = [line for line in console.file.getvalue().splitlines() if "% " in line]  # type: ignore[attr-defined]
    assert 2 <= len(lines) <= elapsed / 5


def test_redraws_are_at_most_ten_a_second() -> None:
    """Thousands of events a second are drawn ten times a second at most."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, force_interactive=True, width=80, height=24)
    started = time.monotonic()
    with terminal_reporter(console) as report:
        report(EVENTS[0])
        while time.monotonic() - started < 1:
            report(FileProgress("m.safetensors", 50, 100))
    elapsed = time.monotonic() - started
    assert 3 <= file.getvalue().count("total") <= 10 * elapsed + 2


def test_a_blocked_terminal_does_not_block_the_load() -> None:
    """The reporter returns at once while the terminal takes nothing."""
    gate = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            gate.wait(10)
            return super().write(text)

    with terminal_reporter(Console(file=Stuck(), force_terminal=False)) as report:
        started = time.monotonic()
        for _ in range(1000):
            report(EVENTS[0])
        elapsed = time.monotonic() - started
        gate.set()
    assert elapsed < 1


def test_a_terminal_that_is_gone_does_not_break_the_load() -> None:
    """Writing fails; the block still ends normally."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with terminal_reporter(Console(file=Gone(), force_terminal=False)) as report:
        report(EVENTS[0])
        time.sleep(0.2)
        report(EVENTS[1])


SCRIPT = """
import sys, time
from rich.console import Console
from asyncfetch.events import *
from asyncfetch.progress.terminal import terminal_reporter
with terminal_reporter(Console(stderr=True)) as report:
    report(Resolved("org/m", None, None, tuple(FileState(f"s{i}", 10**8, 0, None) for i in range(3))))
    for i in range(3):
        report(FileStarted(f"s{i}", 10**8, 0))
        for part in range(1, 6):
            report(FileProgress(f"s{i}", part * 2 * 10**7, 10**8))
            time.sleep(0.05)
        report(FileVerified(f"s{i}", 10**8, "sha256:x"))
    report(Finished(3, 3 * 10**8, 3 * 10**8, 0.75))
"""


def test_through_a_pty() -> None:
    """On a real terminal of 80x24 the table redraws in place and ends complete."""
    with Terminal() as terminal:
        assert terminal.run([sys.executable, "-c", SCRIPT]) == 0
    out = terminal.written()
    assert "\x1b[1A" in out  # the cursor goes up: redrawn in place
    last = ESCAPE.sub("", out[out.rindex("s0") :])
    assert last.count("verified") == 3
    assert "total" in last
    assert last.rstrip().endswith("3 files, 300 MB: 300 MB downloaded in 0.8 s (400 MB/s)")
