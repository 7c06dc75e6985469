"""The merge: views on maps and buffers, what is copied and what is not, casts, aliases, hashes of whole files."""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import ml_dtypes
import numpy as np
import pytest

from asyncfetch import PackedArray
from asyncfetch.engine.transfer import Landed
from asyncfetch.errors import ChecksumMismatchError, CorruptError, MissingTensorError, SourceError, StorageError
from asyncfetch.format.dtypes import DTYPES, cast, dtype_of, is_floating
from asyncfetch.format.index import Index
from asyncfetch.sources.headers import read_header
from asyncfetch.sources.located import Located, SourceFile, aliases_of
from asyncfetch.storage import maps
from asyncfetch.storage.buffers import aligned_buffer
from asyncfetch.storage.checksums import Checksum, file_digest, verify_file
from asyncfetch.tensors import merge as checkpoint
from asyncfetch.tensors.merge import on_network, state_dict

from ..kit.files import Tensor, safetensors_bytes

A, B = "a.safetensors", "b.safetensors"


def locate(
    folder: Path, shards: dict[str, dict[str, Tensor]], names: list[str] | None = None, **options: Any
) -> Located:
    """`shards` written into `folder`, found, and listed in the order of `names`."""
    files = []
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    for shard, tensors in shards.items():
        (folder / shard).write_bytes(safetensors_bytes(tensors, **options))
        file = SourceFile(shard, 0, None, path=folder / shard)
        anyio.run(read_header, file, None, None)
        files.append(file)
    index = Index("model.safetensors.index.json", {name: weight_map[name] for name in names or weight_map})
    return Located(str(folder), None, None, "", index, index, files)


def on_disk(located: Located) -> dict[str, Landed]:
    return {file.name: Landed(path=file.path) for file in located.files}


def in_memory(located: Located) -> dict[str, Landed]:
    """Each file in a buffer, as the transfer leaves it."""
    landed = {}
    for file in located.files:
        assert file.path is not None
        buffer = aligned_buffer(file.size, len(file.raw_header))
        buffer[:] = file.path.read_bytes()
        landed[file.name] = Landed(buffer=buffer)
    return landed


@pytest.fixture(params=["map", "buffer", "read"])
def landing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A shard mapped from disk, one in memory, and one read from a network file system."""
    if request.param == "read":
        monkeypatch.setattr(checkpoint, "on_network", lambda _path: True)
        monkeypatch.setattr(checkpoint, "_READ_JOB", 1000)
    return in_memory if request.param == "buffer" else on_disk


def bases(array: np.ndarray) -> Iterator[object]:
    """The array, and what it is a view of, down to the memory's owner."""
    owner: Any = array
    while owner is not None:
        yield owner
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)


# -- views -----------------------------------------------------------------------------------------


def test_two_shards_become_one_dict(tmp_path: Path, landing: Any) -> None:
    """Values, dtypes and shapes are right, and the order is the index's, not the files'."""
    floats, halves = np.arange(3000, dtype=np.float32).reshape(30, 100), np.arange(6, dtype=np.float16)
    located = locate(tmp_path, {A: {"x": floats, "y": halves}, B: {"z": np.array(7)}}, ["y", "z", "x"])
    merged = state_dict(located, landing(located))
    assert list(merged) == ["y", "z", "x"]
    assert merged["z"].shape == ()
    assert merged["z"].dtype == np.int64
    for name, expected in (("x", floats), ("y", halves)):
        assert merged[name].dtype == expected.dtype
        np.testing.assert_array_equal(merged[name], expected)


def test_arrays_are_writable_and_the_file_stays_as_it_was(tmp_path: Path, landing: Any) -> None:
    """Writing to an array changes it and nothing else: not the file, and not a second load of it."""
    located = locate(tmp_path, {A: {"x": np.zeros(2000), "y": np.ones(5)}})
    before = (tmp_path / A).read_bytes()
    landed = landing(located)
    merged = state_dict(located, landed)
    merged["x"][:] = 42
    merged["y"] += 1
    assert merged["x"].sum() == 42 * 2000
    assert (tmp_path / A).read_bytes() == before
    if landing is on_disk:
        assert not state_dict(located, landed)["x"].any()


def test_a_mapped_tensor_is_no_copy(tmp_path: Path) -> None:
    """From disk, all arrays of a shard are views on one map of the file."""
    located = locate(tmp_path, {A: {"x": np.zeros(4), "y": np.ones((2, 2), np.float32)}})
    merged = state_dict(located, on_disk(located))
    maps = [next(base for base in bases(array) if isinstance(base, mmap.mmap)) for array in merged.values()]
    assert maps[0] is maps[1]


def test_a_buffered_tensor_is_no_copy(tmp_path: Path) -> None:
    """From memory, arrays are views on the buffer that was received into."""
    located = locate(tmp_path, {A: {"x": np.zeros(4, np.uint8)}})
    landed = in_memory(located)
    buffer = landed[A].buffer
    assert buffer is not None
    state_dict(located, landed)["x"][:] = 9
    assert bytes(buffer[-4:]) == b"\x09" * 4


@pytest.mark.parametrize("pad", [1, 8])
def test_data_in_memory_is_aligned(tmp_path: Path, pad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data section begins at a multiple of 64 bytes, however long the header is; so does what is read from NFS."""
    located = locate(tmp_path, {A: {"odd name": np.arange(9.0), "y": np.arange(8, dtype=np.int16)}}, pad=pad)
    header = located.files[0].header
    assert header is not None
    if pad == 1:
        assert header.data_start % 8, "the header is to be of a length that aligns nothing"
    monkeypatch.setattr(checkpoint, "on_network", lambda _path: True)
    for landed in (in_memory(located), on_disk(located)):
        for name, array in state_dict(located, landed).items():
            assert (array.ctypes.data - header.tensors[name].begin) % 64 == 0


def test_misaligned_tensors_are_copied(tmp_path: Path) -> None:
    """In a map, a tensor at an odd address comes as an aligned, writable copy; one of bytes stays a view."""
    for name in ("x", "xx", "xxx", "xxxx"):
        tensors: dict[str, Tensor] = {
            "pad": np.zeros(3, np.uint8),
            name: np.arange(5.0),
            "b": np.arange(4, dtype=np.int8),
        }
        located = locate(tmp_path, {A: tensors}, pad=1)
        merged = state_dict(located, on_disk(located))
        assert merged[name].flags.aligned
        assert merged[name].flags.writeable
        np.testing.assert_array_equal(merged[name], np.arange(5.0))
        assert any(isinstance(base, mmap.mmap) for base in bases(merged["b"]))


def test_unusual_shapes(tmp_path: Path, landing: Any) -> None:
    """0-d, empty in any dimension, one element: the shape is the header's."""
    tensors: dict[str, Tensor] = {
        "scalar": np.array(1.5, ml_dtypes.bfloat16),
        "none": np.zeros(0, np.float32),
        "flat": np.zeros((3, 0, 2), np.int64),
        "one": np.ones((1, 1, 1), np.float64),
    }
    located = locate(tmp_path, {A: tensors})
    merged = state_dict(located, landing(located))
    assert {name: array.shape for name, array in merged.items()} == {
        "scalar": (),
        "none": (0,),
        "flat": (3, 0, 2),
        "one": (1, 1, 1),
    }
    assert float(merged["scalar"]) == 1.5
    merged["scalar"][...] = 2
    assert float(merged["scalar"]) == 2


def test_a_file_without_tensors(tmp_path: Path) -> None:
    """A shard of a header alone is fine, and gives nothing."""
    located = locate(tmp_path, {A: {}})
    assert state_dict(located, on_disk(located)) == {}


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"), [("F4", (2, 3), 3), ("F6_E2M3", (4,), 3), ("F6_E3M2", (2, 2), 3)]
)
def test_packed_tensors(tmp_path: Path, landing: Any, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
    """F4 and F6 are their bytes, with dtype and logical shape at hand; a cast leaves them alone."""
    located = locate(tmp_path, {A: {"w": (dtype, shape, b"\x12\x34\x56")}})
    for target in (None, "float32"):
        array = state_dict(located, landing(located), dtype=target)["w"]
        assert isinstance(array, PackedArray)
        assert (array.safetensors_dtype, array.logical_shape) == (dtype, shape)
        assert (array.dtype, array.shape, array.tobytes()) == (np.uint8, (nbytes,), b"\x12\x34\x56")
        assert array.unpack().shape == shape


def test_selected_tensors_only(tmp_path: Path) -> None:
    """Of a narrowed index, the rest of a shard is not in the result."""
    located = locate(tmp_path, {A: {"x": np.zeros(1), "y": np.zeros(1)}}, ["y"])
    assert list(state_dict(located, on_disk(located))) == ["y"]


def test_without_headers(tmp_path: Path) -> None:
    """A checkpoint whose headers were never read cannot be merged."""
    located = locate(tmp_path, {A: {"x": np.zeros(1)}})
    located.selected = None
    with pytest.raises(SourceError, match="headers"):
        state_dict(located, on_disk(located))


# -- what landed counts ----------------------------------------------------------------------------


def test_what_landed_counts_not_what_was_seen_first(tmp_path: Path) -> None:
    """If the header that was looked at is not the one of the verified bytes, the tensors are where the latter says."""
    located = locate(tmp_path, {A: {"x": np.arange(4.0), "y": np.arange(2.0)}})
    data = safetensors_bytes({"y": np.arange(2.0), "x": np.arange(4.0)})
    assert len(data) == located.files[0].size
    (tmp_path / A).write_bytes(data)
    for landed in (on_disk(located), in_memory(located)):
        merged = state_dict(located, landed)
        np.testing.assert_array_equal(merged["x"], np.arange(4.0))
        np.testing.assert_array_equal(merged["y"], np.arange(2.0))


def test_what_landed_lacks_a_tensor(tmp_path: Path) -> None:
    """The same, without the tensor: an error that names the shard, the index and the tensor."""
    located = locate(tmp_path, {A: {"x": np.arange(4.0)}})
    (tmp_path / A).write_bytes(safetensors_bytes({"w": np.arange(4.0)}))
    with pytest.raises(MissingTensorError, match="'x'") as caught:
        state_dict(located, on_disk(located))
    assert (caught.value.file, caught.value.tensors) == (A, ("x",))


def test_a_file_of_another_size(tmp_path: Path) -> None:
    """A file that was cut after it was verified is refused: a map beyond its end would kill the process."""
    located = locate(tmp_path, {A: {"x": np.arange(400.0)}})
    os.truncate(tmp_path / A, 1000)
    with pytest.raises(CorruptError, match=r"1,000 bytes instead of"):
        state_dict(located, on_disk(located))


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    """A file that cannot be opened is a StorageError with its path."""
    located = locate(tmp_path, {A: {"x": np.arange(4.0)}})
    (tmp_path / A).unlink()
    with pytest.raises(StorageError, match=A):
        state_dict(located, on_disk(located))


def test_a_file_that_landed_nowhere(tmp_path: Path) -> None:
    """Neither a path nor a buffer: an error of ours."""
    located = locate(tmp_path, {A: {"x": np.arange(4.0)}})
    with pytest.raises(CorruptError, match="nowhere"):
        state_dict(located, {A: Landed()})


# -- network file systems --------------------------------------------------------------------------


def test_reading_in_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of many jobs is put together right."""
    monkeypatch.setattr(checkpoint, "_READ_JOB", 777)
    data = np.random.default_rng(1).bytes(10_000)
    (tmp_path / "file").write_bytes(data)
    buffer = memoryview(bytearray(len(data)))
    with open(tmp_path / "file", "rb") as stream:
        checkpoint.read_into(stream.fileno(), buffer)
    assert bytes(buffer) == data


def test_reading_a_file_that_shrinks(tmp_path: Path) -> None:
    """A file that ends before its size is an error, not a buffer with zeros."""
    (tmp_path / "file").write_bytes(b"x" * 100)
    with open(tmp_path / "file", "rb") as stream, pytest.raises(OSError, match="ends at byte 100"):
        checkpoint.read_into(stream.fileno(), memoryview(bytearray(101)))


@pytest.fixture
def unseen() -> Iterator[None]:
    """Nothing is known of the kind of any file system, now and afterwards."""
    maps._type_of.cache_clear()
    yield
    maps._type_of.cache_clear()


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize(
    ("kind", "expected"),
    [("nfs4", True), ("fuse.gcsfuse", True), ("lustre", True), ("ext4", False), ("overlay", False)],
)
def test_network_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, expected: bool) -> None:
    """The kind of the file system is the one that the kernel names for the file's device."""
    device = os.stat(tmp_path).st_dev
    table = (
        "22 1 0:999999 / /elsewhere rw,relatime shared:1 - nfs4 server:/ rw\n"
        f"23 1 {os.major(device)}:{os.minor(device)} / /here rw - {kind} source rw\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda *_args, **_kwargs: table)
    assert on_network(tmp_path) is expected


@pytest.mark.usefixtures("unseen")
def test_a_system_without_a_mount_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc, files are mapped."""

    def missing(*_args: object, **_kwargs: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert on_network(tmp_path) is False


# -- dtypes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.float32, np.float32),
        ("float16", np.float16),
        (np.dtype("f8"), np.float64),
        ("bfloat16", ml_dtypes.bfloat16),
        (ml_dtypes.bfloat16, ml_dtypes.bfloat16),
        ("BF16", ml_dtypes.bfloat16),
        ("bf16", ml_dtypes.bfloat16),
        ("F32", np.float32),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("float8_e5m2", ml_dtypes.float8_e5m2),
    ],
)
def test_names_of_dtypes(given: object, expected: Any) -> None:
    """numpy's dtypes and names, those of ml_dtypes, and those of safetensors."""
    assert dtype_of(given) == np.dtype(expected)


@pytest.mark.parametrize(
    "given", ["int8", "I64", "BOOL", np.complex64, "C64", "F4", "F6_E2M3", "no such", 17, object, "O", b""]
)
def test_what_is_no_floating_dtype(given: object) -> None:
    """Anything else is refused before a byte is downloaded."""
    with pytest.raises(SourceError, match="dtype="):
        dtype_of(given)


def test_casts(tmp_path: Path, landing: Any) -> None:
    """Floats of every kind take the dtype, by value; integers, bools and complex numbers stay."""
    values = np.array([1.5, -2.0, 0.25, 448.0])
    tensors: dict[str, Tensor] = {
        "bf16": values.astype(ml_dtypes.bfloat16),
        "f8": values.astype(ml_dtypes.float8_e4m3fn),
        "f16": values.astype(np.float16),
        "f64": values,
        "f32": values.astype(np.float32),
        "i8": np.arange(4, dtype=np.int8),
        "bool": np.array([True, False]),
        "c64": np.array([1 + 2j], np.complex64),
    }
    located = locate(tmp_path, {A: tensors})
    merged = state_dict(located, landing(located), dtype=np.float32)
    for name in ("bf16", "f8", "f16", "f64", "f32"):
        assert merged[name].dtype == np.float32
        np.testing.assert_array_equal(merged[name], values.astype(np.float32))
        assert merged[name].flags.writeable
    assert [merged[name].dtype for name in ("i8", "bool", "c64")] == [np.int8, np.bool_, np.complex64]
    np.testing.assert_array_equal(merged["c64"], [1 + 2j])


def test_a_cast_rounds_to_nearest() -> None:
    """F32 to BF16 is rounded as in every framework, ties to even."""
    halfway = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
    rounded = cast(halfway, np.dtype(ml_dtypes.bfloat16))
    assert rounded.view(np.uint16).tolist() == [0x3F80, 0x3F82, 0x3F81]


def test_every_float_can_be_cast_to_every_other() -> None:
    """Also those between which ml_dtypes knows no way; then by float32, which has all numbers of either."""
    floats = [entry.numpy for entry in DTYPES.values() if not entry.packed and is_floating(entry.numpy)]
    for own, target in itertools.product(floats, floats):
        ones = np.ones(3, np.float32).astype(own)
        assert cast(ones, target).astype(np.float32).tolist() == [1, 1, 1], (own, target)


def test_a_cast_to_the_same_dtype_is_no_copy() -> None:
    """An array that has the dtype already is itself."""
    array = np.zeros(3, np.float32)
    assert cast(array, np.dtype(np.float32)) is array


# -- aliases ---------------------------------------------------------------------------------------


def test_aliases(tmp_path: Path) -> None:
    """Dropped names come from both metadata; what is no pair of tensor names is told apart."""
    located = locate(
        tmp_path, {A: {"kept": np.zeros(1), "format": np.zeros(1)}}, metadata={"format": "pt", "tied": "kept"}
    )
    assert located.index is not None
    located.index.metadata.update(
        {"lm_head": "kept", "total_size": 8, "gone": "not there", "kept": "format", "list": ["kept"]}
    )
    merged = state_dict(located, on_disk(located))
    assert aliases_of(located, merged) == {"lm_head": "kept", "tied": "kept"}


def test_aliases_without_an_index(tmp_path: Path) -> None:
    """A single file has its own metadata only."""
    located = locate(tmp_path, {A: {"kept": np.zeros(1)}}, metadata={"tied": "kept"})
    located.index = None
    assert aliases_of(located, {"kept": None}) == {"tied": "kept"}


# -- whole files -----------------------------------------------------------------------------------


def test_digests_of_files(tmp_path: Path) -> None:
    """sha256 of the bytes, and git's SHA-1, which covers the size as well."""
    data = np.random.default_rng(2).bytes(100_000)
    (tmp_path / "file").write_bytes(data)
    assert file_digest(tmp_path / "file", "sha256") == hashlib.sha256(data).hexdigest()
    assert file_digest(tmp_path / "file", "git-sha1") == hashlib.sha1(b"blob 100000\0" + data).hexdigest()


def test_hashing_can_be_stopped(tmp_path: Path) -> None:
    """`check` runs after each piece, and what it raises comes out."""
    with open(tmp_path / "file", "wb") as stream:
        stream.truncate(20 << 20)
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        file_digest(tmp_path / "file", "sha256", check)
    assert len(calls) == 2


def test_verify_file(tmp_path: Path) -> None:
    """One wrong bit is found; the error has both hashes."""
    (tmp_path / "file").write_bytes(b"abd")
    expected = hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(ChecksumMismatchError) as caught:
        verify_file(tmp_path / "file", Checksum("sha256", expected), file="file")
    assert (caught.value.expected, caught.value.actual) == (expected, hashlib.sha256(b"abd").hexdigest())
    (tmp_path / "file").write_bytes(b"abc")
    verify_file(tmp_path / "file", Checksum("sha256", expected), file="file")
