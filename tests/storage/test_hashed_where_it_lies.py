"""What landed out of order is hashed where it lies in memory, as far as that is sure to be there."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from asyncfetch.spans import MiB
from asyncfetch.storage import maps
from asyncfetch.storage.maps import in_memory, sees_writes
from asyncfetch.storage.partial import FilePartial

from ..kit.pages import forget, resident

SIZE = 3 * MiB + 4321
DATA = random.Random(3).randbytes(SIZE)
NAME = "e" * 64 + ".asyncfetch.incomplete"


def begin(folder: Path) -> FilePartial:
    return FilePartial(folder / NAME, SIZE, "sha256", identity="etag:1")


def land_backwards(part: FilePartial, step: int = 700_000) -> None:
    for start in reversed(range(0, SIZE, step)):
        part.accept(start, memoryview(DATA)[start : start + step])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with begin(tmp_path).path.open("rb") as stream:
        seen = sees_writes(stream.fileno())
    if not seen:
        pytest.skip("NOT TESTED: of this file system it is not known whether maps show what is written")
    (tmp_path / NAME).unlink()
    return tmp_path


def test_nothing_is_copied(folder: Path) -> None:
    """And afterwards nothing of it counts as memory of this process, and no descriptor is left."""
    part = begin(folder)
    descriptors = os.listdir("/proc/self/fd")
    land_backwards(part)
    while part.catch_up():
        pass
    assert part.digest() == hashlib.sha256(DATA).hexdigest()
    assert part._scratch is None
    assert NAME not in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert os.listdir("/proc/self/fd") == descriptors
    part.discard()


def test_what_an_earlier_run_left_is_read(folder: Path) -> None:
    """It may have to come from the disk, which may fail: as an error of ours."""
    part = begin(folder)
    part.accept(0, memoryview(DATA)[: 2 * MiB])
    part.suspend()
    part = begin(folder)
    assert part.received == 2 * MiB
    while part.catch_up():
        pass
    assert part._scratch is not None
    part.accept(2 * MiB, memoryview(DATA)[2 * MiB :])
    assert part.digest() == hashlib.sha256(DATA).hexdigest()
    part.discard()


def test_other_file_systems_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_SHARED_PAGES", ())
    part = begin(folder)
    land_backwards(part)
    while part.catch_up():
        pass
    assert part.digest() == hashlib.sha256(DATA).hexdigest()
    assert part._scratch is not None
    part.discard()


_CHILD = """
import os, sys
from pathlib import Path
from asyncfetch.errors import StorageError
from asyncfetch.storage import partial
from asyncfetch.spans import MiB
part = partial.FilePartial(Path(sys.argv[1]), 8 * MiB, "sha256", identity="etag:1")
part.accept(4 * MiB, memoryview(bytes(4 * MiB)))
part.accept(MiB, memoryview(bytes(3 * MiB)))
part.accept(0, memoryview(bytes(MiB)))
load = part._load
def cut(offset, limit):
    if offset == 2 * MiB:
        os.truncate(sys.argv[1], 10_000)
    return load(offset, limit)
part._load = cut
try:
    while part.catch_up():
        pass
except StorageError as error:
    print(error.message)
"""


def test_a_file_that_is_cut_meanwhile(folder: Path) -> None:
    """By whom ever: an error that names it, and not the end of the process (SIGBUS)."""
    done = subprocess.run([sys.executable, "-c", _CHILD, folder / NAME], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert f"{NAME}" in done.stdout
    assert "although 8,388,608 were written" in done.stdout


def test_what_is_not_in_memory(folder: Path) -> None:
    """A byte that is on the disk alone, or beyond the end of the file, is not."""
    path = folder / "file"
    path.write_bytes(DATA)
    with path.open("rb") as stream:
        descriptor = stream.fileno()
        os.fsync(descriptor)
        assert in_memory(descriptor, SIZE - 1)
        assert not in_memory(descriptor, SIZE)
        if maps._file_system(descriptor) not in ("tmpfs", "overlay"):
            forget(path)
            # The look has the kernel read it, and a fast disk may have brought it by then.
            assert not in_memory(descriptor, SIZE // 2) or resident(path, SIZE // 2, SIZE // 2 + 1)


def test_a_file_system_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps._type_of.cache_clear()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "1 1 0:1 / / rw - ext4 none rw\n")
    with (tmp_path / "file").open("wb") as stream:
        assert not sees_writes(stream.fileno())
    maps._type_of.cache_clear()
