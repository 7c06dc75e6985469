"""A file being received: any order, any interruption, any neighbour; and the order of its publication."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncfetch.errors import DiskFullError, StorageError
from asyncfetch.spans import Span, SpanSet
from asyncfetch.storage import locks as claim_module
from asyncfetch.storage import partial as module
from asyncfetch.storage.buffers import ALIGNMENT, aligned_buffer
from asyncfetch.storage.cache import RepoCache
from asyncfetch.storage.checksums import new_hash
from asyncfetch.storage.partial import FilePartial, MemoryPartial, Partial, spans_on_disk

from ..kit import mounts
from ..kit.strace import strace
from ..kit.users import as_nobody, public_folder

SIZE = 200_003
DATA = random.Random(1).randbytes(SIZE)
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = "e" * 64 + ".asyncfetch.incomplete"
KINDS = ["file", "memory"]


def make(kind: str, folder: Path, algorithm: str = "sha256", size: int = SIZE) -> Partial:
    if kind == "memory":
        return MemoryPartial(size, algorithm, data_start=8)
    return FilePartial(folder / NAME, size, algorithm, identity="etag:1")


def open_file(folder: Path, identity: str = "etag:1", size: int = SIZE) -> FilePartial:
    return FilePartial(folder / NAME, size, "sha256", identity=identity)


def feed(part: Partial, start: int, stop: int, data: bytes = DATA) -> None:
    """Receive [start, stop) as a connection does: into the place that the partial names."""
    scratch = memoryview(bytearray(stop - start))
    view = part.target(start, stop - start, scratch)
    view[:] = data[start:stop]
    part.accept(start, view)


def finish(part: Partial) -> str:
    while part.catch_up():
        pass
    return part.digest()


def close(part: Partial) -> None:
    if isinstance(part, FilePartial):
        part.discard()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def journal(folder: Path) -> Path:
    return folder / NAME.replace(".incomplete", ".map.incomplete")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is written after each landing instead of once a second."""
    monkeypatch.setattr(module, "_JOURNAL_INTERVAL", 0.0)


class Exclusive(SpanSet):
    """A set of spans that notices when two threads change it at once."""

    busy = False
    torn = False

    def add(self, start: int, stop: int) -> None:
        self.torn |= self.busy
        self.busy = True
        time.sleep(1e-4)
        super().add(start, stop)
        self.busy = False


# -- landing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_order_gives_the_right_hash(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """Pieces cut and landed in any order, some of them twice, with hashing in between: bytes and hash are right."""
    cuts = sorted(data.draw(st.sets(st.integers(1, 999), max_size=12)) | {0, 1000})
    pieces = data.draw(st.permutations(list(pairwise(cuts))))
    again = data.draw(st.lists(st.sampled_from(pieces), max_size=3))
    part = make(kind, tmp_path_factory.mktemp("any"), size=1000)
    try:
        for start, stop in [*pieces[:4], *again, *pieces[4:]]:
            feed(part, start, stop)
            if data.draw(st.booleans()):
                part.catch_up()
        assert part.missing() == []
        assert part.received == 1000
        assert finish(part) == hashlib.sha256(DATA[:1000]).hexdigest()
        assert bytes(part._load(0, 1000)) == DATA[:1000]
    finally:
        close(part)


@pytest.mark.parametrize("kind", KINDS)
def test_several_threads_land_at_once(tmp_path: Path, kind: str) -> None:
    """Eight connections on one file, each with a span of its own, and one that catches up: no byte is lost."""
    part = make(kind, tmp_path)
    spans = part.present = Exclusive()
    edges = [SIZE * number // 8 for number in range(9)]
    begin = threading.Barrier(9)

    def receive(number: int) -> None:
        begin.wait()
        for at in range(edges[number], edges[number + 1], 777):
            feed(part, at, min(at + 777, edges[number + 1]))

    def hash_along() -> None:
        begin.wait()
        while part.missing():
            part.catch_up()

    threads = [threading.Thread(target=receive, args=(number,)) for number in range(8)]
    threads.append(threading.Thread(target=hash_along))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    try:
        assert part.missing() == []
        assert not spans.torn
        assert finish(part) == SHA256
    finally:
        close(part)


@pytest.mark.parametrize("kind", KINDS)
def test_in_order_nothing_is_read_back(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lands at the frontier is hashed from the buffer that it came in."""
    part = make(kind, tmp_path)
    monkeypatch.setattr(part, "_load", lambda *_: pytest.fail("read back"))
    for at in range(0, SIZE, 10_000):
        feed(part, at, min(at + 10_000, SIZE))
        assert part.backlog == 0
    try:
        assert part.digest() == SHA256
    finally:
        close(part)


@pytest.mark.parametrize("kind", KINDS)
def test_a_digest_needs_all_bytes(tmp_path: Path, kind: str) -> None:
    """There is no digest of half a file, nor before the backlog is hashed."""
    part = make(kind, tmp_path)
    try:
        feed(part, 100, SIZE)
        with pytest.raises(RuntimeError, match="0 of"):
            part.digest()
        feed(part, 0, 100)
        assert part.backlog == SIZE - 100
        with pytest.raises(RuntimeError, match="100 of"):
            part.digest()
        assert finish(part) == SHA256
    finally:
        close(part)


@pytest.mark.parametrize("kind", KINDS)
def test_reset_begins_again(tmp_path: Path, kind: str) -> None:
    """After wrong bytes the same partial takes the right ones, and its hash knows nothing of before."""
    part = make(kind, tmp_path)
    try:
        feed(part, 0, SIZE, bytes(SIZE))
        assert finish(part) != SHA256
        part.reset()
        assert part.missing() == [Span(0, SIZE)]
        feed(part, 0, SIZE)
        assert finish(part) == SHA256
    finally:
        close(part)


def test_reset_forgets_the_journal(tmp_path: Path, often: None) -> None:
    """Killed right after a reset, nothing of the wrong bytes is claimed by the next run."""
    part = open_file(tmp_path)
    feed(part, 0, SIZE, bytes(SIZE))
    assert spans_on_disk(tmp_path / NAME, SIZE, identity="etag:1").nbytes == SIZE
    part.reset()
    assert spans_on_disk(tmp_path / NAME, SIZE, identity="etag:1").nbytes == 0
    part.discard()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_file(tmp_path: Path, kind: str) -> None:
    """A file of no bytes is whole at once."""
    part = make(kind, tmp_path, size=0)
    try:
        assert part.missing() == []
        assert part.digest() == hashlib.sha256().hexdigest()
    finally:
        close(part)


@pytest.mark.parametrize("kind", KINDS)
def test_git_hashes_count_the_size_first(tmp_path: Path, kind: str) -> None:
    """git-sha1 is what `git hash-object` says."""
    part = make(kind, tmp_path, "git-sha1", size=5)
    try:
        feed(part, 0, 5, b"hello")
        assert finish(part) == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"
    finally:
        close(part)
    assert new_hash("sha256", 5).hexdigest() == hashlib.sha256().hexdigest()


# -- memory ----------------------------------------------------------------------------------------


@given(size=st.integers(0, 5000), data_start=st.integers(0, 5000))
def test_buffers_are_aligned(size: int, data_start: int) -> None:
    """Byte `data_start` of a buffer is at a multiple of 64, whatever the header's length; it is writable."""
    buffer = aligned_buffer(size, data_start)
    assert (len(buffer), buffer.readonly) == (size, False)
    if size > data_start:
        assert np.frombuffer(buffer, np.uint8)[data_start:].ctypes.data % ALIGNMENT == 0


def test_memory_receives_in_place() -> None:
    """The memory form hands out its own bytes to receive into, and takes bytes from elsewhere too."""
    part = MemoryPartial(100, "sha256", data_start=16)
    view = part.target(10, 20, memoryview(bytearray()))
    view[:] = b"x" * 20
    assert bytes(part.buffer[10:30]) == b"x" * 20
    part.accept(10, view)
    part.accept(50, memoryview(b"elsewhere"))
    assert bytes(part.buffer[50:59]) == b"elsewhere"
    assert part.missing() == [Span(0, 10), Span(30, 50), Span(59, 100)]


# -- journal and resume ----------------------------------------------------------------------------


def test_suspend_and_resume(tmp_path: Path) -> None:
    """A later run has all bytes that landed, asks only for the others, and hashes the old ones again."""
    part = open_file(tmp_path)
    feed(part, 0, 50_000)
    feed(part, 90_000, 120_000)
    part.suspend()
    part.suspend()
    assert names(tmp_path) == {NAME, journal(tmp_path).name}
    assert spans_on_disk(tmp_path / NAME, SIZE, identity="etag:1").nbytes == 80_000
    again = open_file(tmp_path)
    assert again.missing() == [Span(50_000, 90_000), Span(120_000, SIZE)]
    for span in again.missing():
        feed(again, span.start, span.stop)
    assert finish(again) == SHA256
    blob = tmp_path / "blob"
    again.publish(lambda path: path.rename(blob))
    assert names(tmp_path) == {"blob"}
    assert blob.read_bytes() == DATA


def test_a_kill_costs_little_however_fast_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two seconds too the journal is written, by bytes: on a fast line much lands in a second."""
    monkeypatch.setattr(module, "_JOURNAL_BYTES", 60_000)
    part = open_file(tmp_path)
    written = []
    for at in range(0, SIZE, 20_000):
        feed(part, at, min(at + 20_000, SIZE))
        listed = spans_on_disk(tmp_path / NAME, SIZE, identity="etag:1").nbytes
        assert part.received - listed < 60_000
        written.append(listed)
    assert sorted(set(written)) == [0, 60_000, 120_000, 180_000]
    part.reset()
    feed(part, 0, 60_000)
    assert spans_on_disk(tmp_path / NAME, SIZE, identity="etag:1").nbytes == 60_000
    part.discard()


def test_a_journal_that_takes_long_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is written little may land that it does not list, however fast the line is."""
    monkeypatch.setattr(module, "_JOURNAL_BYTES", 60_000)
    monkeypatch.setattr(module, "_MOST_UNLISTED", 80_000)
    part, write = open_file(tmp_path), module.write_journal
    writing, go_on, landed = threading.Event(), threading.Event(), threading.Event()

    def late(*arguments: Any, **options: Any) -> None:
        writing.set()
        go_on.wait(10)
        write(*arguments, **options)

    def land_the_rest() -> None:
        for at in range(60_000, SIZE, 10_000):
            feed(part, at, min(at + 10_000, SIZE))
        landed.set()

    monkeypatch.setattr(module, "write_journal", late)
    first, second = threading.Thread(target=feed, args=(part, 0, 60_000)), threading.Thread(target=land_the_rest)
    first.start()
    assert writing.wait(10)
    second.start()
    assert not landed.wait(0.1)
    assert part.received == 80_000
    go_on.set()
    assert landed.wait(10)
    first.join()
    second.join()
    assert part.received - spans_on_disk(tmp_path / NAME, SIZE, identity="etag:1").nbytes < 60_000
    part.discard()


def test_bytes_that_rot_between_runs_are_noticed(tmp_path: Path) -> None:
    """The prefix is hashed from the disk, not remembered: a changed byte changes the digest."""
    part = open_file(tmp_path)
    feed(part, 0, 50_000)
    part.suspend()
    with open(tmp_path / NAME, "r+b") as stream:
        stream.seek(1234)
        stream.write(bytes([DATA[1234] ^ 1]))
    again = open_file(tmp_path)
    feed(again, 50_000, SIZE)
    assert finish(again) != SHA256
    again.discard()


def test_an_untouched_partial_leaves_nothing(tmp_path: Path) -> None:
    """A run that is cancelled before its first byte leaves no file behind."""
    open_file(tmp_path).suspend()
    assert names(tmp_path) == set()


def test_discard_leaves_nothing(tmp_path: Path, often: None) -> None:
    """Bytes with a wrong hash go, and their journal with them."""
    part = open_file(tmp_path)
    feed(part, 0, SIZE)
    assert names(tmp_path) == {NAME, journal(tmp_path).name}
    part.discard()
    part.discard()
    assert names(tmp_path) == set()


def copies_of_each_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Path]]:
    """Take a copy of the folder after each system call that changes it: what a kill there would leave."""
    folder = tmp_path / "live"
    folder.mkdir()
    moments: list[Path] = []

    def watch(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: object, **options: object) -> object:
            result = real(*arguments, **options)
            moments.append(tmp_path / f"moment-{len(moments)}")
            # Hard links keep the inode, which a journal is bound to; the bytes are copied beside it.
            moments[-1].mkdir()
            for path in folder.iterdir():
                os.link(path, moments[-1] / path.name)
                shutil.copyfile(path, moments[-1] / f"{path.name}.bytes")
            return result

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((module.os, "pwrite"), (module.os, "replace"), (module.os, "ftruncate")):
        watch(owner, name)
    return lambda: moments


def test_the_journal_never_leads(tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after any write, rename or truncation, the journal lists only bytes that are on the disk."""
    moments = copies_of_each_moment(tmp_path, monkeypatch)
    order = list(range(0, SIZE, 20_000))
    random.Random(2).shuffle(order)
    first = open_file(tmp_path / "live")
    for at in order[:5]:
        feed(first, at, min(at + 20_000, SIZE))
    first.suspend()
    second = open_file(tmp_path / "live")
    for at in order[5:8]:
        feed(second, at, min(at + 20_000, SIZE))
    second.reset()
    for at in order[:3]:
        feed(second, at, min(at + 20_000, SIZE))
    second.suspend()
    listed = 0
    for moment in moments():
        spans = spans_on_disk(moment / NAME, SIZE, identity="etag:1")
        data = (moment / f"{NAME}.bytes").read_bytes()
        for span in spans:
            listed += span.nbytes
            assert data[span.start : span.stop] == DATA[span.start : span.stop], moment
    assert len(moments()) > 20
    assert listed > 5 * SIZE


@pytest.mark.parametrize("call", ["unlink", "replace"])
def test_a_kill_while_the_journal_is_replaced(
    tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The old one or the new one counts at every moment; once the bytes are dropped neither does."""
    part = open_file(tmp_path)
    feed(part, 0, 1000)

    def killed(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(*((module.os, call) if call == "replace" else (Path, call)), killed)
        with pytest.raises(SystemExit):
            feed(part, 1000, 3000)
    assert journal(tmp_path).exists() is (call == "unlink")
    listed = 1000 if call == "unlink" else 3000
    assert spans_on_disk(tmp_path / NAME, SIZE, identity="etag:1").nbytes == listed
    part.reset()
    assert names(tmp_path) == {NAME}
    assert spans_on_disk(tmp_path / NAME, SIZE, identity="etag:1").nbytes == 0
    part.discard()


def test_a_stale_journal_dies_before_its_file_is_used_again(tmp_path: Path) -> None:
    """Content A, then content B of the same size, killed early, then A: nothing of B passes for A."""
    part = open_file(tmp_path, "A")
    feed(part, 0, SIZE)
    part.suspend()
    other = open_file(tmp_path, "B")
    feed(other, 0, SIZE, bytes(SIZE))
    os.close(other._fd)  # as a kill does: no suspend, no journal, but the lock is gone
    other._closed = True
    again = open_file(tmp_path, "A")
    try:
        assert again.missing() == [Span(0, SIZE)]
    finally:
        again.discard()


@pytest.mark.parametrize(
    "change",
    [
        {"identity": "etag:2"},
        {"size": SIZE + 1},
        {"inode": 1},
        {"format_version": 2},
        {"spans": [[5, 3]]},
        {"spans": [[-5, 3]]},
        {"spans": [[0, SIZE + 1]]},
        {"spans": "all"},
        {"spans": [["0"]]},
        {"spans": None},
    ],
    ids=str,
)
def test_a_foreign_journal_is_ignored(tmp_path: Path, change: dict[str, object]) -> None:
    """A journal of other content, another file, another version, or of nonsense claims nothing."""
    part = open_file(tmp_path)
    feed(part, 0, 1000)
    part.suspend()
    saved = json.loads(journal(tmp_path).read_text())
    assert saved["spans"] == [[0, 1000]]
    journal(tmp_path).write_text(json.dumps({**saved, **change}))
    again = open_file(tmp_path)
    try:
        assert again.missing() == [Span(0, SIZE)]
        assert not again.backlog, "nothing of it is hashed"
    finally:
        again.discard()


@pytest.mark.parametrize("keep", [0, 1, 20, -1])
def test_a_torn_journal_is_ignored(tmp_path: Path, keep: int) -> None:
    """Half a journal is none."""
    part = open_file(tmp_path)
    feed(part, 0, 1000)
    part.suspend()
    journal(tmp_path).write_bytes(journal(tmp_path).read_bytes()[:keep])
    assert spans_on_disk(tmp_path / NAME, SIZE, identity="etag:1").nbytes == 0


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"null", b"\xff\xfe", b'{"format_version": 1}'])
def test_a_hostile_journal_is_ignored(tmp_path: Path, content: bytes) -> None:
    """What is no journal at all neither raises nor claims."""
    (tmp_path / NAME).write_bytes(bytes(SIZE))
    journal(tmp_path).write_bytes(content)
    assert spans_on_disk(tmp_path / NAME, SIZE, identity="etag:1").nbytes == 0


@pytest.mark.parametrize("size", [0, 500, SIZE - 1, SIZE + 1])
def test_a_partial_that_was_cut_or_grown_is_not_resumed(tmp_path: Path, size: int) -> None:
    """The journal counts only for a file of the whole size, as we left it."""
    part = open_file(tmp_path)
    feed(part, 0, 1000)
    part.suspend()
    os.truncate(tmp_path / NAME, size)
    again = open_file(tmp_path)
    try:
        assert again.missing() == [Span(0, SIZE)]
        assert (tmp_path / NAME).stat().st_size == SIZE
    finally:
        again.discard()


def test_a_partial_without_a_journal_is_not_resumed(tmp_path: Path) -> None:
    """Bytes that nobody vouches for are written over, not added to."""
    (tmp_path / NAME).write_bytes(b"x" * (SIZE + 1))
    part = open_file(tmp_path)
    assert part.missing() == [Span(0, SIZE)]
    feed(part, 0, SIZE)
    assert finish(part) == SHA256
    final = part.publish(lambda path: path.rename(path.with_name("blob")))
    assert final.read_bytes() == DATA


def test_a_journal_that_cannot_be_written_costs_no_download(
    tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal only saves work, so its failure is no failure: the file is received and published."""
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if str(target).endswith(".map.incomplete"):
            raise OSError(errno.ENOSPC, "no space")
        real(source, target)

    monkeypatch.setattr(module.os, "replace", replace)
    part = open_file(tmp_path)
    feed(part, 0, SIZE)
    assert finish(part) == SHA256
    part.publish(lambda path: path.rename(tmp_path / "blob"))
    assert names(tmp_path) == {"blob"}


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that takes only a part of the bytes is followed by one of the rest."""
    real = os.pwrite
    monkeypatch.setattr(module.os, "pwrite", lambda fd, data, offset: real(fd, data[:7777], offset))
    part = open_file(tmp_path)
    feed(part, 0, SIZE)
    assert (tmp_path / NAME).read_bytes() == DATA
    part.discard()


# -- neighbours ------------------------------------------------------------------------------------


def test_the_second_claimer_gets_a_private_file(tmp_path: Path) -> None:
    """Two runs at one blob: each writes a file of its own, both are right, the private one leaves nothing."""
    first, second = open_file(tmp_path), open_file(tmp_path)
    assert first.path == tmp_path / NAME
    assert second.path != first.path
    assert re.fullmatch(r"e{64}\.[0-9a-f]{8}\.asyncfetch\.incomplete", second.path.name)
    feed(first, 0, 1000)
    feed(second, 0, SIZE)
    assert finish(second) == SHA256
    assert (tmp_path / NAME).read_bytes()[1000:] == bytes(SIZE - 1000)
    second.publish(lambda path: path.rename(tmp_path / "blob"))
    feed(first, 1000, SIZE)
    assert finish(first) == SHA256
    third = open_file(tmp_path)
    feed(third, 0, 10)
    third.suspend()
    first.suspend()
    assert names(tmp_path) == {"blob", NAME, journal(tmp_path).name}


def _hold(folder: Path, ready: multiprocessing.Queue[str], go_on: multiprocessing.Event) -> None:
    part = open_file(folder)
    feed(part, 0, 1000)
    part.save_journal()
    ready.put(part.path.name)
    go_on.wait(20)
    os._exit(9)  # no suspend


def test_a_killed_holder_frees_its_partial(tmp_path: Path) -> None:
    """While another process lives its partial is its own; once it is killed the next run goes on with it."""
    spawn = multiprocessing.get_context("spawn")
    ready, go_on = spawn.Queue(), spawn.Event()
    process = spawn.Process(target=_hold, args=(tmp_path, ready, go_on))
    process.start()
    assert ready.get(timeout=20) == NAME
    private = open_file(tmp_path)
    assert private.path.name != NAME
    private.suspend()
    go_on.set()
    process.join(20)
    assert process.exitcode == 9
    part = open_file(tmp_path)
    assert part.path.name == NAME
    assert part.missing() == [Span(1000, SIZE)]
    part.discard()


@pytest.mark.parametrize("locks", ["refused", "granted"])
def test_locks_that_lie_lose_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: str) -> None:
    """Where there are no locks, or everyone gets them, each run takes a private file, and leaves nothing behind."""

    def flock(*_: object) -> None:
        if locks == "refused":
            raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(claim_module.fcntl, "flock", flock)
    part, other = open_file(tmp_path), open_file(tmp_path)
    assert len({part.path.name, other.path.name, NAME}) == 3
    feed(part, 0, SIZE)
    assert finish(part) == SHA256
    part.discard()
    other.suspend()
    assert names(tmp_path) == set()


def test_locks_of_one_host_lose_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where locks hold on one host only, a second host that begins the file takes nothing from the first."""
    first = open_file(tmp_path)
    feed(first, 0, SIZE)
    with monkeypatch.context() as patched:
        patched.setattr(claim_module, "_lock", lambda descriptor: True)
        patched.setattr(claim_module, "_excludes", lambda path: True)
        second = open_file(tmp_path)
    assert second.path == first.path
    assert finish(first) == SHA256
    assert first.publish(lambda path: path.rename(path.with_name("blob"))).read_bytes() == DATA
    second.discard()


def test_a_claim_on_a_file_that_was_published_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between open and lock the holder before us renamed the file: what it published, and the next one, stay."""
    real = fcntl.flock
    others: list[int] = []

    def publish_first(descriptor: int, flags: int) -> None:
        if not (tmp_path / "blob").exists():
            (tmp_path / NAME).write_bytes(DATA)
            (tmp_path / NAME).rename(tmp_path / "blob")
            others.append(os.open(tmp_path / NAME, os.O_CREAT | os.O_RDWR))
        real(descriptor, flags)

    monkeypatch.setattr(claim_module.fcntl, "flock", publish_first)
    part = open_file(tmp_path)
    assert part.path == tmp_path / NAME
    feed(part, 0, SIZE, bytes(SIZE))
    assert (tmp_path / "blob").read_bytes() == DATA
    assert (tmp_path / NAME).read_bytes() == bytes(SIZE)
    assert [os.fstat(descriptor).st_nlink for descriptor in others] == [1]
    part.discard()
    os.close(others[0])


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_at_the_partials_path_is_refused(tmp_path: Path, exists: bool) -> None:
    """A planted link is not followed: what it points to is neither written, cut nor made."""
    victim = tmp_path / "victim"
    if exists:
        victim.write_text("precious")
    folder = tmp_path / "blobs"
    folder.mkdir()
    (folder / NAME).symlink_to(victim)
    with pytest.raises(StorageError) as caught:
        open_file(folder)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ELOOP
    assert victim.exists() is exists
    assert not exists or victim.read_text() == "precious"


@pytest.mark.parametrize("planted", [".map.incomplete", ".map.incomplete.tmp.incomplete"])
def test_a_link_at_the_journals_path_is_not_followed(tmp_path: Path, planted: str) -> None:
    """Neither the journal nor the file that becomes it is written through a planted link."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "blobs"
    folder.mkdir()
    link = folder / NAME.replace(".incomplete", planted)
    link.symlink_to(victim)
    part = open_file(folder)
    assert not link.is_symlink()
    link.symlink_to(victim)  # again, in the middle of the download
    feed(part, 0, 1000)
    part.suspend()
    assert victim.read_text() == "precious"
    assert spans_on_disk(folder / NAME, SIZE, identity="etag:1").nbytes == 1000


def test_another_users_partial_is_left_alone() -> None:
    """In a shared cache a partial that may not be opened is another user's: write a private file beside it."""
    prepare = "import sys; from pathlib import Path; from asyncfetch.storage.partial import FilePartial"
    code = (
        "part = FilePartial(Path(sys.argv[1]), 10, 'sha256', identity='x')\n"
        "part.accept(0, memoryview(b'0123456789'))\n"
        "print(part.path.name, part.digest()); part.discard()"
    )
    with public_folder() as folder:
        part = open_file(folder)
        feed(part, 0, 1000)
        part.suspend()
        folder.chmod(0o777)
        run = as_nobody(prepare, code, folder / NAME)
        assert run.returncode == 0, run.stderr
        name, digest = run.stdout.split()
        assert name != NAME
        assert digest == hashlib.sha256(b"0123456789").hexdigest()
        assert names(folder) == {NAME, journal(folder).name}
        assert spans_on_disk(folder / NAME, SIZE, identity="etag:1").nbytes == 1000


# -- a full disk -----------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with mounts.tiny_disk(tmp_path / "tiny", "256k") as folder:
        yield folder


def test_a_full_disk_is_said_and_what_landed_is_kept(tmp_path: Path, tiny_disk: Path) -> None:
    """DiskFullError names the path and what is needed; after making room the same run goes on."""
    filler = tiny_disk / "filler"
    filler.write_bytes(bytes(100 * 1024))
    part = open_file(tiny_disk)

    def fill() -> None:
        for at in range(0, SIZE, 4096):
            feed(part, at, min(at + 4096, SIZE))

    with pytest.raises(DiskFullError) as caught:
        fill()
    landed = part.received
    assert (caught.value.path, caught.value.needed) == (str(tiny_disk / NAME), SIZE)
    assert isinstance(caught.value.__cause__, OSError)
    filler.write_bytes(b"")
    part.suspend()
    again = open_file(tiny_disk)
    assert again.received == landed > 0
    for span in again.missing():
        feed(again, span.start, span.stop)
    assert finish(again) == SHA256
    again.discard()


def test_suspending_on_a_full_disk_hides_no_error(tmp_path: Path, tiny_disk: Path) -> None:
    """No room for the journal either: suspending stays silent, so that the first error is the one that is seen."""
    part = open_file(tiny_disk)
    feed(part, 0, 1000)
    with pytest.raises(OSError, match="space"):
        (tiny_disk / "filler").write_bytes(bytes(1 << 20))
    part.suspend()
    os.truncate(tiny_disk / "filler", 0)
    assert spans_on_disk(tiny_disk / NAME, SIZE, identity="etag:1").nbytes in (0, 1000)
    assert names(tiny_disk) <= {"filler", NAME, journal(tiny_disk).name}


# -- publication -----------------------------------------------------------------------------------


def test_a_failed_sync_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After fsync failed the pages may be gone: the partial is removed, and nothing is published."""
    calls = []

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, "input/output error")

    part = open_file(tmp_path)
    feed(part, 0, SIZE)
    monkeypatch.setattr(module.os, "fsync", fail)
    with pytest.raises(StorageError, match="input/output error"):
        part.publish(lambda path: path.rename(tmp_path / "blob"))
    assert len(calls) == 1
    assert names(tmp_path) == set()


def test_descriptors_that_run_out_are_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails beside reads and writes is told as those are, and what landed is resumed."""

    def fail(_: int) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    part = open_file(tmp_path)
    feed(part, 0, SIZE)
    with monkeypatch.context() as patched:
        patched.setattr(module.os, "dup", fail)
        with pytest.raises(StorageError, match="too many open files"):
            part.publish(lambda path: path.rename(tmp_path / "blob"))
    part.suspend()
    with monkeypatch.context() as patched:
        patched.setattr(module.os, "fstat", fail)
        with pytest.raises(StorageError, match="too many open files"):
            open_file(tmp_path)
    assert spans_on_disk(tmp_path / NAME, SIZE, identity="etag:1").nbytes == SIZE


def test_published_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    """A blob may be read by whom the umask lets, not only by its owner."""
    code = (
        "import os, sys; from pathlib import Path; os.umask(0o027)\n"
        "from asyncfetch.storage.partial import FilePartial\n"
        "part = FilePartial(Path(sys.argv[1]), 0, 'sha256', identity='x')\n"
        "part.publish(lambda path: path.rename(path.with_name('blob')))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / NAME)], check=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / "blob").stat().st_mode & 0o777 == 0o640


PUBLISH = """
import sys
from pathlib import Path
from asyncfetch.storage.cache import RepoCache
from asyncfetch.storage.partial import FilePartial
cache = RepoCache(Path(sys.argv[1]), "org/name")
cache.prepare()
cache.symlinks()
etag, commit = "e" * 64, "c" * 40
part = FilePartial(cache.partial(etag), 10, "sha256", identity="x")
part.accept(0, memoryview(b"0123456789"))
part.publish(lambda path: cache.publish(path, etag, commit, "sub/model.safetensors"))
cache.write_ref("main", commit)
"""


LARGE = """
import os, sys
from pathlib import Path
from asyncfetch.storage.partial import FilePartial
size = 32 << 20
part = FilePartial(Path(sys.argv[1], "x.incomplete"), size, "sha256", identity="x")
piece = memoryview(bytes(1 << 20))
for offset in range(0, size, len(piece)):
    part.accept(offset, piece)
part.publish(lambda path: path.rename(path.with_name("blob")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be told to begin")
def test_the_disk_is_not_left_idle_until_the_last_sync(tmp_path: Path) -> None:
    """A few MiB wait for it at the most: what came before is on its way."""
    calls = strace([sys.executable, "-c", LARGE, str(tmp_path)], "pwrite64,sync_file_range,fsync", tmp_path)
    kinds = "".join(call.split("(")[0].split()[-1][0] for call in calls if "x.incomplete" in call)
    assert re.fullmatch(r"(p{2,16}s){4,}p{0,16}f", kinds), kinds


def test_the_order_of_publication(tmp_path: Path) -> None:
    """Write, fsync, close, rename, fsync of the folder, link, and the ref last: a power cut leaves no lie."""
    calls = strace([sys.executable, "-c", PUBLISH, str(tmp_path)], "pwrite64,fsync,close,rename,symlink", tmp_path)
    blobs, snapshot = r"blobs/e{64}", r"snapshots/c{40}/sub"
    steps = [
        rf"pwrite64\(\d+<.*{blobs}\.asyncfetch\.incomplete>, .*10, 0\) = 10",
        rf"fsync\(\d+<.*{blobs}\.asyncfetch\.incomplete>\) = 0",
        rf"close\(\d+<.*{blobs}\.asyncfetch\.incomplete>\) = 0",
        rf'rename\(".*{blobs}\.asyncfetch\.incomplete", ".*{blobs}"\) = 0',
        r"fsync\(\d+<.*/blobs>\) = 0",
        rf'symlink\("\.\./\.\./\.\./{blobs}", ".*{snapshot}/model\.safetensors"\) = 0',
        rf"fsync\(\d+<.*{snapshot}>\) = 0",
        r"fsync\(\d+<.*/blobs/c{40}\.\w{8}\.incomplete>\) = 0",
        r'rename\(".*/blobs/c{40}\.\w{8}\.incomplete", ".*/refs/main"\) = 0',
        r"fsync\(\d+<.*/refs>\) = 0",
    ]
    position = -1
    for step in steps:
        found = [number for number, call in enumerate(calls) if number > position and re.search(step, call)]
        assert found, f"{step} is not, or not there, in:\n" + "\n".join(calls)
        position = found[0]
    cache = RepoCache(tmp_path, "org/name")
    assert (cache.snapshot("c" * 40) / "sub/model.safetensors").read_bytes() == b"0123456789"
