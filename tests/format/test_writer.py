"""A merged file: what is in it, and what happens to an older one when writing fails."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from asyncfetch.errors import DiskFullError, SourceError, StorageError
from asyncfetch.format import writer as export
from asyncfetch.format.arrays import PackedArray
from asyncfetch.format.dtypes import DTYPES
from asyncfetch.format.header import TensorInfo
from asyncfetch.format.writer import check_output, format_dtype, write_safetensors

ROOT = Path(__file__).parents[2]


def ordinary() -> dict[str, np.ndarray[Any, Any]]:
    return {
        "scalar": np.array(3.5, np.float64),
        "empty": np.zeros((0, 4), np.float32),
        "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
        "transposed": np.arange(12, dtype=np.int16).reshape(3, 4).T,
        "byte": np.array([1, 2, 3], np.uint8),
        "flags": np.array([True, False]),
        "ünïcode/ name": np.array([1 + 2j], np.complex64),
    }


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_safe_open_reads_back_what_was_written(tmp_path: Path) -> None:
    """Scalars, empty and non-contiguous arrays come back equal, with the metadata, and nothing is left beside."""
    tensors = ordinary()
    size = write_safetensors(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert size == (tmp_path / "m.safetensors").stat().st_size
    assert leftovers(tmp_path) == ["m.safetensors"]
    with safe_open(tmp_path / "m.safetensors", framework="np") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert set(opened.keys()) == set(tensors)
        for name, array in tensors.items():
            np.testing.assert_array_equal(opened.get_tensor(name), array)
            assert opened.get_tensor(name).dtype == array.dtype


@pytest.mark.parametrize("step", [3, 8, 20, 100])
def test_what_is_not_contiguous_goes_out_in_order_in_pieces(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any strides and either byte order give the bytes in C order, none of the copies above the bound of a step."""
    monkeypatch.setattr(export, "STEP", step)
    whole = np.arange(2 * 3 * 5 * 4, dtype=np.int16).reshape(2, 3, 5, 4)
    for array in (
        whole,
        whole.T,
        whole[:, ::-1, ::2],
        whole[1:, :0],
        whole.astype(">i2").T,
        np.broadcast_to(np.int16(7), (3, 4)),
    ):
        pieces = [bytes(piece) for piece in export.outgoing_array(np.asarray(array)).pieces()]
        assert b"".join(pieces) == np.asarray(array).astype("<i2").tobytes()
        assert max(map(len, pieces), default=0) <= max(step, 2)


@pytest.mark.parametrize("code", [code for code, entry in DTYPES.items() if not entry.packed])
def test_every_whole_byte_dtype(code: str, tmp_path: Path) -> None:
    """Each dtype keeps its name, its shape and its bytes."""
    array = np.arange(8 * DTYPES[code].bits // 8, dtype=np.uint8)
    array = (array % 2 if code == "BOOL" else array).view(DTYPES[code].numpy).reshape(2, 4)
    write_safetensors({"x": array}, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="np") as opened:
        assert opened.get_slice("x").get_dtype() == code
        assert opened.get_slice("x").get_shape() == [2, 4]
    assert (tmp_path / "m.safetensors").read_bytes().endswith(array.tobytes())


@pytest.mark.parametrize(("code", "shape", "nbytes"), [("F4", (3, 6), 9), ("F6_E2M3", (2, 4), 6), ("F6_E3M2", (4,), 3)])
def test_packed_dtypes_keep_their_logical_shape(code: str, shape: tuple[int, ...], nbytes: int, tmp_path: Path) -> None:
    """F4 and F6 bytes go out as they came in, under the shape that counts elements."""
    raw = np.arange(nbytes, dtype=np.uint8)
    packed = PackedArray.of(raw, TensorInfo(code, shape, 0, nbytes))
    write_safetensors({"x": packed, "wide": np.zeros(1)}, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="np") as opened:
        assert opened.get_slice("x").get_dtype() == code
        assert opened.get_slice("x").get_shape() == list(shape)
    assert (tmp_path / "m.safetensors").read_bytes().endswith(raw.tobytes())


def test_a_slice_of_a_packed_array_is_plain_bytes() -> None:
    """What numpy derives from a packed array has lost its meaning and counts as U8."""
    packed = PackedArray.of(np.arange(4, dtype=np.uint8), TensorInfo("F4", (8,), 0, 4))
    assert (format_dtype(packed), format_dtype(packed[1:])) == ("F4", "U8")


@pytest.mark.parametrize("array", [np.array(["text"]), np.zeros(2, ml_dtypes.int4), np.zeros(2, np.complex128)])
def test_a_dtype_outside_the_format_is_refused(array: np.ndarray[Any, Any], tmp_path: Path) -> None:
    """Strings, int4 and complex128 have no name in the format: nothing is written."""
    with pytest.raises(SourceError, match="no dtype for"):
        write_safetensors({"x": array}, tmp_path / "m.safetensors")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("length", range(8))
def test_data_begins_aligned_and_widest_first(length: int, tmp_path: Path) -> None:
    """Each tensor lies at a multiple of its element size, whatever the length of the header."""
    path = tmp_path / "m.safetensors"
    write_safetensors(ordinary(), path, metadata={"note": "x" * length})
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    assert start % 8 == 0
    with safe_open(path, framework="np") as opened:
        widths = [load_file(path)[name].itemsize for name in opened.offset_keys()]
    assert widths == sorted(widths, reverse=True)


def test_a_model_is_not_copied(tmp_path: Path) -> None:
    """Writing 256 MiB raises the peak of memory by far less than that."""
    script = (
        "import numpy as np, resource\n"
        "from asyncfetch.format.writer import write_safetensors\n"
        "x = np.ones(1 << 28, np.uint8)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"write_safetensors({{'x': x}}, {str(tmp_path / 'm.safetensors')!r})\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 64 * 1024  # KiB


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_room_is_said_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has both numbers, and the old file is untouched."""
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 90, 10))
    with pytest.raises(DiskFullError) as caught:
        write_safetensors({"x": np.zeros(100)}, target)
    assert (caught.value.free, caught.value.needed > 800) == (10, True)
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EIO, StorageError)], ids=["full", "broken"]
)
def test_a_failing_write_leaves_the_old_file(
    number: int, kind: type[StorageError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up or breaks in the middle: an error of ours, the old file, and no temporary one."""
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")

    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(export.os, "fsync", fail)
    with pytest.raises(kind) as caught:
        write_safetensors({"x": np.zeros(100)}, target)
    assert isinstance(caught.value.__cause__, OSError)
    assert target.read_bytes() == b"old"
    assert leftovers(tmp_path) == ["m.safetensors"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Ctrl-C in the middle of the data: the old file stays, the temporary one goes."""
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")
    script = (
        "import time\n"
        "import numpy as np\n"
        "from asyncfetch.format import writer\n"
        "write = writer._write_all\n"
        "def slowly(*arguments):\n"  # so that the interrupt comes between two tensors
        "    time.sleep(0.05)\n"
        "    write(*arguments)\n"
        "writer._write_all = slowly\n"
        "print('go', flush=True)\n"
        f"writer.write_safetensors({{str(i): np.ones(1000, np.uint8) for i in range(1000)}}, {str(target)!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        deadline = time.monotonic() + 20
        while not (drafts := [*tmp_path.glob(".*/*")]) or not drafts[0].stat().st_size:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert b"KeyboardInterrupt" in errors
    assert target.read_bytes() == b"old"
    assert leftovers(tmp_path) == ["m.safetensors"]


def test_what_the_reference_refuses_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that safetensors itself cannot open never replaces a good one."""
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")
    monkeypatch.setattr(export, "_header", lambda placed, metadata: b"\x10" + bytes(7) + b"{not a header..}")
    with pytest.raises(SourceError, match="cannot be written"):
        write_safetensors({"x": np.zeros(2)}, target)
    assert target.read_bytes() == b"old"


def test_the_mode_of_a_replaced_file_is_kept(tmp_path: Path) -> None:
    """A new file gets what the umask says, a replaced one keeps what it had."""
    target, fresh, plain = tmp_path / "m.safetensors", tmp_path / "n.safetensors", tmp_path / "plain"
    target.touch()
    target.chmod(0o640)
    plain.touch()
    write_safetensors({"x": np.zeros(2)}, target)
    write_safetensors({"x": np.zeros(2)}, fresh)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert fresh.stat().st_mode == plain.stat().st_mode


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    """The blob behind a link, shared by others, keeps its bytes."""
    blob, link = tmp_path / "blob", tmp_path / "m.safetensors"
    blob.write_bytes(b"shared")
    link.symlink_to(blob)
    write_safetensors({"x": np.zeros(2)}, link)
    assert blob.read_bytes() == b"shared"
    assert not link.is_symlink()


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    """A folder, a missing parent and a device are refused by name; the device survives."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "m.safetensors", "does not exist"),
        (fifo, "not a regular file"),
    ):
        with pytest.raises(SourceError, match=message):
            check_output(path)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
