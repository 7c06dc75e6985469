"""What is mapped and not in memory is read before it is touched: seen by what the kernel has of real files."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from asyncfetch.format.header import Header, TensorInfo
from asyncfetch.spans import MiB, Span
from asyncfetch.storage import memory, readahead
from asyncfetch.storage.maps import map_file
from asyncfetch.tensors.ahead import wanted_spans
from tests.kit.pages import cold_file, forget, read_ahead_ended, resident

WINDOW, PIECE = readahead._WINDOW, readahead._PIECE


def mapped(path: Path) -> mmap.mmap:
    with open(path, "rb") as stream:
        pages = map_file(stream.fileno(), path.stat().st_size)
    assert pages is not None
    return pages


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """No threads: what they would do is done by `work`. What an earlier test of this process has queued is over."""
    read_ahead_ended()
    monkeypatch.setattr(readahead, "_threads", lambda _path: 0)


def work() -> None:
    readahead._workers += 1
    readahead._work()


@pytest.mark.parametrize("advice", [readahead._POPULATE_READ, 9999], ids=["populate", "kernel without it"])
def test_what_is_wanted_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, advice: int) -> None:
    path = cold_file(tmp_path / "shard", 10 * WINDOW)
    monkeypatch.setattr(readahead, "_POPULATE_READ", advice)
    pages, far = mapped(path), Span(6 * WINDOW - 5, 7 * WINDOW + 5000)
    for _ in range(20):  # where others need the memory, what was read may be gone already
        readahead.read_ahead(pages, path, [Span(1000, 2 * WINDOW - 1000), far])
        read_ahead_ended()
        if resident(path, 1000, 2 * WINDOW - 1000) and resident(path, far.start, far.stop):
            break
    else:
        pytest.fail("it was not read")
    assert not resident(path, 9 * WINDOW, 10 * WINDOW)


@pytest.mark.parametrize("writable", [True, False])
def test_what_is_in_memory_costs_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_hand: None, writable: bool
) -> None:
    path = cold_file(tmp_path / "shard", 3 * WINDOW + 1)
    path.read_bytes()
    monkeypatch.setattr(readahead, "_may_write", lambda _path: writable)
    monkeypatch.setattr(readahead, "available_memory", lambda: pytest.fail("it was looked for memory"))
    readahead.read_ahead(mapped(path), path, [Span(0, 3 * WINDOW + 1)])
    assert not readahead._queue


def test_a_file_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_hand: None) -> None:
    """mincore says of every page that it is there, so a read that may not wait tells."""
    path = tmp_path / "shard"
    path.write_bytes(os.urandom(WINDOW + 5000))
    monkeypatch.setattr(readahead, "_may_write", lambda _path: False)
    for _ in range(20):  # the look has the kernel read, and a fast disk may have brought some of it by then
        forget(path)
        pages = mapped(path)
        readahead.read_ahead(pages, path, [Span(0, WINDOW + 5000)])
        found = [window.start for _, window in readahead._queue]
        work()
        if found == [0, WINDOW]:
            break
        del pages  # what is mapped is not forgotten
    assert found == [0, WINDOW]
    assert resident(path, 0, WINDOW + 5000)


def test_what_lies_between_is_not_read_again(tmp_path: Path, by_hand: None) -> None:
    """Cold pieces beside each other are read by one call, and what is in memory by none."""
    nbytes = 2 * WINDOW + 5 * PIECE
    path = cold_file(tmp_path / "shard", nbytes)
    warm = Span(WINDOW + 2 * PIECE, WINDOW + 3 * PIECE)
    for _ in range(20):  # where others need the memory, what was read may be gone already
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing beyond what is read
            stream.seek(warm.start)
            stream.read(warm.nbytes)
        readahead.read_ahead(mapped(path), path, [Span(0, nbytes)])
        found = [window for _, window in readahead._queue]
        work()
        if len(found) > 3:
            break
        forget(path)
    assert found == [
        Span(0, WINDOW),
        Span(WINDOW, warm.start),
        Span(warm.stop, warm.stop + WINDOW),
        Span(warm.stop + WINDOW, nbytes),
    ]


@pytest.mark.parametrize(
    ("told", "threads"),
    [("128", 8), ("2560", 6), ("4096\n", 4), ("8192", 2), ("65536", 2), ("0", 8), ("much", 8), (None, 8)],
)
def test_as_many_threads_as_the_disk_needs(tmp_path: Path, told: str | None, threads: int) -> None:
    path = tmp_path / "shard"
    path.touch()
    device = path.stat().st_dev
    if told is not None:
        folder = tmp_path / f"sys/class/bdi/{os.major(device)}:{os.minor(device)}"
        folder.mkdir(parents=True)
        (folder / "read_ahead_kb").write_text(told)
    assert readahead._threads(path, tmp_path) == threads
    path.unlink()
    assert readahead._threads(path, tmp_path) == 8


def test_no_more_than_half_of_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_hand: None) -> None:
    path = cold_file(tmp_path / "shard", 5 * WINDOW)
    pages, room = mapped(path), 7 * WINDOW
    monkeypatch.setattr(readahead, "available_memory", lambda: room)
    readahead.read_ahead(pages, path, [Span(0, 5 * WINDOW)])
    readahead.read_ahead(pages, path, [Span(0, 5 * WINDOW)])  # of another load, at the same time
    assert [window for _, window in readahead._queue] == [Span(n * WINDOW, (n + 1) * WINDOW) for n in range(3)]
    work()
    room = 0
    readahead.read_ahead(pages, path, [Span(4 * WINDOW, 5 * WINDOW)])
    assert not readahead._queue
    assert not resident(path, 4 * WINDOW + WINDOW // 2, 5 * WINDOW)


def test_what_nobody_has_any_more_is_not_read(tmp_path: Path, by_hand: None) -> None:
    path = cold_file(tmp_path / "shard", 2 * WINDOW)
    pages = mapped(path)
    readahead.read_ahead(pages, path, [Span(0, 2 * WINDOW)])
    assert len(readahead._queue) == 2
    del pages
    work()
    read_ahead_ended()
    assert not resident(path, 0, 4096)
    assert not resident(path, WINDOW, WINDOW + 4096)


def test_a_file_that_cannot_be_read(tmp_path: Path, by_hand: None) -> None:
    """It was cut after it was mapped: to touch it would end the process, and its first failure is the last."""
    path, good = cold_file(tmp_path / "shard", 3 * WINDOW), cold_file(tmp_path / "good", WINDOW)
    pages, others = mapped(path), mapped(good)
    os.truncate(path, 0)
    readahead.read_ahead(pages, path, [Span(0, 3 * WINDOW)])
    (file, _), *rest = readahead._queue
    assert len(rest) == 2
    assert not file.broken
    readahead.read_ahead(others, good, [Span(0, WINDOW)])
    work()
    read_ahead_ended()
    assert file.broken
    assert resident(good, 0, WINDOW)


def test_no_thread_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cold_file(tmp_path / "shard", 3 * WINDOW)
    pages = mapped(path)

    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        readahead.read_ahead(pages, path, [Span(0, WINDOW)])
    readahead.read_ahead(pages, path, [Span(WINDOW, 2 * WINDOW)])  # the next one reads for both
    read_ahead_ended()


def test_near_tensors_are_one_span() -> None:
    header = Header({}, {}, 100, 9 * MiB)
    for name, begin, end in (
        ("a", 0, 10),
        ("b", 10, 20),
        ("far", 2 * MiB, 2 * MiB + 7),
        ("all else", 3 * MiB, 8 * MiB),
    ):
        header.tensors[name] = TensorInfo("U8", (end - begin,), begin, end)
    assert wanted_spans(header, ["far", "b", "a"]) == [Span(100, 120), Span(2 * MiB + 100, 2 * MiB + 107)]
    assert wanted_spans(header, ["all else", "far"]) == [Span(2 * MiB + 100, 8 * MiB + 100)]
    assert wanted_spans(header, list(header.tensors)) == [Span(100, 9 * MiB)]
    assert wanted_spans(header, []) == []


def test_a_file_that_lost_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_hand: None) -> None:
    path = cold_file(tmp_path / "shard", WINDOW)
    pages = mapped(path)
    path.unlink()
    readahead.read_ahead(pages, path, [Span(0, WINDOW)])
    assert not readahead._queue


def test_the_end_of_a_program_waits_for_no_disk(tmp_path: Path) -> None:
    """It ends while most is still to be read, and so does a child that it has forked meanwhile."""
    path = cold_file(tmp_path / "shard", 8192 * MiB)
    code = f"""
import os, sys
from pathlib import Path
from asyncfetch.spans import Span
from asyncfetch.storage import readahead
from asyncfetch.storage.maps import map_file
path = Path({str(path)!r})
with open(path, "rb") as stream:
    pages = map_file(stream.fileno(), path.stat().st_size)
readahead.available_memory, readahead._threads = lambda: None, lambda path: 1
readahead.read_ahead(pages, path, [Span(0, path.stat().st_size)])
child = os.fork()
if not child:
    sys.exit(bool(readahead._queue or readahead._queued or readahead._workers))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert readahead._queue
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], capture_output=True, text=True, check=False
    )
    last_is_read = resident(path, 8191 * MiB, 8192 * MiB)
    path.unlink()
    assert not last_is_read
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


GROUPS = {
    "nobody tells": ({}, None),
    "the machine": ({"proc/meminfo": "MemTotal: 900 kB\nMemAvailable:     200 kB\n"}, 200 << 10),
    "a container of version 2": (
        {
            "proc/meminfo": "MemAvailable: 200000 kB\n",
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "5000\n",
            "sys/fs/cgroup/memory.current": "4000\n",
            "sys/fs/cgroup/memory.stat": "anon 1000\ninactive_file 1200\nactive_file 300\nshmem 77\n",
        },
        2500,
    ),
    "the group above has less": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/memory.max": "9000\n",
            "sys/fs/cgroup/a/b/memory.current": "10\n",
            "sys/fs/cgroup/a/memory.max": "700\n",
            "sys/fs/cgroup/a/memory.current": "100\n",
            "sys/fs/cgroup/memory.max": "max\n",
        },
        600,
    ),
    "a container of version 1, whose path is the host's": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/x\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "6000\n",
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 9\ntotal_inactive_file 1500\ntotal_active_file 1\n",
        },
        501,
    ),
    "more is used than it has": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "5000\n",
            "sys/fs/cgroup/memory.current": "6000\n",
        },
        0,
    ),
}


@pytest.mark.parametrize("case", GROUPS)
def test_available_memory(tmp_path: Path, case: str) -> None:
    files, expected = GROUPS[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.available_memory(tmp_path) == expected


def test_available_memory_here() -> None:
    found = memory.available_memory()
    assert found is not None
    assert MiB < found < 1 << 50
