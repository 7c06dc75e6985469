"""A state dict in a folder: what other libraries find there, and what an older checkpoint there goes through."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import asyncfetch
from asyncfetch.errors import DiskFullError, SourceError, StorageError
from asyncfetch.events import Event, FileProgress, FileWritten, Writing
from asyncfetch.format.dtypes import DTYPES
from asyncfetch.saving import folder as module

from ..kit.small_model import ONE_LOOP
from ..kit.strace import strace
from ..kit.torch_or_not import needs_torch, torch

ROOT = Path(__file__).parents[2]
INDEX = "model.safetensors.index.json"


def numbers(count: int = 4, value: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    return {f"t.{n}": np.full(8, value, np.int64) for n in range(count)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def parts(path: Path) -> tuple[dict[str, str], list[tuple[str, Any]], bytes]:
    """Of a file its metadata, its tensors in the order of the header, and the data. The former has no order."""
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    return header.pop("__metadata__"), list(header.items()), raw[8 + length :]


@needs_torch
@pytest.mark.parametrize("limit", ["5GB", "1KB", 500, 50])
def test_the_files_are_those_of_huggingface_hub(limit: int | str, tmp_path: Path) -> None:
    """The split, the names, the index, the metadata of tied tensors, the order and each byte of the data."""
    from huggingface_hub import save_torch_state_dict

    def state_dict() -> dict[str, Any]:
        torch.manual_seed(0)
        tied = torch.randn(50, 7)
        return {
            "b.weight": tied, "embed": tied, "c": torch.randn(11, 3).bfloat16(), "a": torch.randn(5).half(),
            "turned": torch.randn(4, 6).t(), "ids": torch.arange(9), "scalar": torch.tensor(3.5),
            "wide": torch.zeros(900).to(torch.float8_e4m3fn), "flags": torch.tensor([True, False]),
            "complex": torch.randn(3, dtype=torch.complex64), "unsigned": torch.arange(4).to(torch.uint16),
            "small": torch.arange(4, dtype=torch.int16), "lm_head": tied,
        }  # fmt: skip

    said = {"note": "mine", "embed": "by hand"}
    (tmp_path / "theirs").mkdir()
    save_torch_state_dict(state_dict(), tmp_path / "theirs", max_shard_size=limit, metadata=dict(said))
    saved = asyncfetch.save(state_dict(), tmp_path / "ours", max_shard_size=limit, metadata=said)
    assert names(tmp_path / "ours") == names(tmp_path / "theirs") == sorted(saved.files)
    for name in saved.files:
        ours, theirs = tmp_path / "ours" / name, tmp_path / "theirs" / name
        if name == INDEX:
            assert ours.read_bytes() == theirs.read_bytes()
        else:
            assert parts(ours) == parts(theirs)


@needs_torch
def test_tensors_of_torch_that_share_memory(tmp_path: Path) -> None:
    """Parts that have no element in common are written; what overlaps in another way than as one tensor is refused."""
    whole = torch.arange(24.0).reshape(4, 6)
    state_dict = {"left": whole[:, :2], "right": whole[:, 2:], "conj": torch.tensor([1 + 2j, 3j]).conj()}
    asyncfetch.save(state_dict, tmp_path)
    from safetensors.torch import load_file as load_torch

    for name, tensor in load_torch(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, state_dict[name])
    before = (tmp_path / "model.safetensors").read_bytes()
    for other in (whole.t(), whole[:2], whole[:, 1:3], whole.flatten()):
        with pytest.raises(SourceError, match="different views of the same memory"):
            asyncfetch.save({"other": other, "whole": whole}, tmp_path)
    for bad in (torch.zeros(2, device="meta"), torch.zeros(2, 2).to_sparse(), torch.zeros(2, dtype=torch.complex128)):
        with pytest.raises(SourceError, match=r"^'bad': "):
            asyncfetch.save({"bad": bad}, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_all_dtypes_come_back(tmp_path: Path) -> None:
    """What `load` gave is saved and loaded again, in shards: names in their order, dtypes, shapes, bytes."""
    first = {
        code: np.arange(16, dtype=np.uint8).view(entry.numpy).reshape(2, -1)
        for code, entry in DTYPES.items()
        if not entry.packed and code != "BOOL"
    }
    asyncfetch.save({**first, "swapped": np.arange(3, dtype=">i4"), "F4": _packed()}, tmp_path, max_shard_size="40B")
    assert len(names(tmp_path)) > 6
    loaded = asyncfetch.load(tmp_path)
    asyncfetch.save(loaded, tmp_path / "again", max_shard_size=None)
    assert names(tmp_path / "again") == ["model.safetensors"]
    again = asyncfetch.load(tmp_path / "again")
    assert set(again) == set(loaded)
    assert list(loaded)[:3] == list(first)[:3]
    for name, array in again.items():
        assert (array.dtype, array.shape, array.tobytes()) == (
            loaded[name].dtype, loaded[name].shape, loaded[name].tobytes()
        )  # fmt: skip
    assert again["swapped"].tolist() == [0, 1, 2]
    assert again["F4"].unpack().astype(np.float32).tolist() == [[0.5, 0.0], [1.0, 0.0]]


def _packed() -> np.ndarray[Any, Any]:
    from asyncfetch.format.arrays import PackedArray
    from asyncfetch.format.header import TensorInfo

    return PackedArray.of(np.array([1, 2], np.uint8), TensorInfo("F4", (2, 2), 0, 2))


def test_arrays_of_jax(tmp_path: Path) -> None:
    """They are written as those of numpy, in their own dtypes."""
    jnp: Any = pytest.importorskip("jax.numpy")
    asyncfetch.save({"a": jnp.arange(6.0).reshape(2, 3).T, "b": jnp.ones(3, jnp.bfloat16)}, tmp_path)
    loaded = asyncfetch.load(tmp_path)
    assert loaded["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert (loaded["b"].dtype, loaded["b"].tolist()) == (ml_dtypes.bfloat16, [1, 1, 1])


@pytest.mark.timeout(120)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """Struck before each change of the file system: from one file or shards to one file, or to shards."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.saving.kills", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    told = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(told) == 5
    for case in told:
        assert case["found"][0] == [[1], [1]]
        assert case["found"][-1] == [[2], [2]]
        for by_reader in zip(*case["found"], strict=True):
            assert set(map(tuple, by_reader)) == {(1,), (2,)}, case
            assert list(by_reader) == sorted(by_reader), case


def test_what_is_named_is_synced_before(tmp_path: Path) -> None:
    """The order of system calls, for shards that take the names of old ones: a power cut finds no name of nothing.

    Shards and their folder before each index that names them, the index before it gets its name, its folder after
    that, and only then what the old one named.
    """
    script = (
        "import sys, numpy as np\n"
        "from tests.saving.kills import checkpoint\n"
        "from pathlib import Path\n"
        "checkpoint(int(sys.argv[1]), 64, Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", script, "1", str(tmp_path / "m")]
    subprocess.run(command, check=True, cwd=ROOT)
    command[-2] = "2"
    calls = [_call(line) for line in strace(command, "fsync,rename,renameat2,link,linkat,unlink", tmp_path)]

    def places(wanted: str, pattern: str) -> list[int]:
        return [at for at, (call, path) in enumerate(calls) if call == wanted and re.fullmatch(pattern, path)]

    first, last = places("rename", f"m/{INDEX}")
    written = places("fsync", r"m/\.asyncfetch-\w+/model-.*\.safetensors\.incomplete")
    taken = places("rename", r"m/model-.*\.safetensors")
    folder, staging = places("fsync", "m"), places("fsync", r"m/\.asyncfetch-\w+")
    assert (len(written), len(taken)) == (3, 3)
    assert max(written) < min(staging) < first < min(taken)
    assert any(max(taken) < at < last for at in folder)
    assert {first + 1, last + 1} <= set(folder)
    assert {first - 1, last - 1} <= set(places("fsync", rf"m/\.asyncfetch-\w+/{INDEX}\.\w+"))


def _call(line: str) -> tuple[str, str]:
    """The name of a system call, and the last path of it, below the folder of the test."""
    name = re.search(r"(\w+)\(", line)
    paths = re.findall(r'[<"](/[^>"]*)[>"]', line)
    assert name is not None
    return name[1].replace("renameat2", "rename"), re.sub(r".*/(?=m(/|$))", "", paths[-1])


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"state_dict": {}}, "is empty"),
        ({"state_dict": {1: np.zeros(1)}}, "1 cannot be the name"),
        ({"state_dict": {"__metadata__": np.zeros(1)}}, "cannot be the name"),
        ({"state_dict": {"\ud800": np.zeros(1)}}, "no text of Unicode"),
        ({"state_dict": {"a": {"b": np.zeros(1)}}}, "'a': it is no array.*Flatten"),
        ({"state_dict": {"a": 1.5}}, "'a': it is no array and no tensor, but float"),
        ({"state_dict": {"a": np.ma.masked_array([1, 2], [0, 1])}}, "masked"),
        ({"state_dict": {"a": np.zeros(1, ml_dtypes.int4)}}, "'a': .* no dtype for 'int4'"),
        ({"max_shard_size": "5 parsecs"}, "no size"),
        ({"max_shard_size": 0}, "no size"),
        ({"max_shard_size": True}, "no size"),
        ({"filename_pattern": "model.safetensors"}, "no pattern"),
        ({"filename_pattern": "../m{suffix}.safetensors"}, "no pattern"),
        ({"metadata": {"a": 1}}, "text by text"),
        ({"metadata": "a"}, "metadata= takes"),
        ({"state_dict": [np.zeros(1)]}, "state_dict= takes"),
    ],
)
def test_what_is_refused(wanted: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Nothing is written, and no folder is made."""
    with pytest.raises(SourceError, match=said):
        asyncfetch.save(**{"state_dict": numbers(), "folder": tmp_path / "new", **wanted})
    assert not (tmp_path / "new").exists()


def test_folders_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a folder in the way, a snapshot of the cache, a full disk, one where another process is saving."""
    (tmp_path / "file").write_text("mine")
    snapshot = tmp_path / "models--org--m" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "taken" / "model.safetensors").mkdir(parents=True)
    for folder, said in (("file", "no folder"), (str(snapshot), "snapshot of the cache"), ("taken", "is a folder")):
        with pytest.raises(SourceError, match=said):
            asyncfetch.save(numbers(), tmp_path / folder)
    with pytest.raises(StorageError, match=f"{tmp_path / 'file'}: it is no folder. Name another folder"):
        asyncfetch.save(numbers(), tmp_path / "file" / "below")
    assert names(tmp_path / "taken") == ["model.safetensors"]
    assert (tmp_path / "file").read_text() == "mine"
    asyncfetch.save(numbers(value=1), tmp_path / "busy")
    with module.locked(tmp_path / "busy"), pytest.raises(StorageError, match="another process is saving there"):
        asyncfetch.save(numbers(value=2), tmp_path / "busy")
    monkeypatch.setattr(module, "free_bytes", lambda _: 100)
    with pytest.raises(DiskFullError):
        asyncfetch.save(numbers(value=2), tmp_path / "busy")
    assert names(tmp_path / "busy") == ["model.safetensors"]
    assert int(load_file(tmp_path / "busy" / "model.safetensors")["t.0"][0]) == 1


def test_what_else_is_in_the_folder_stays(tmp_path: Path) -> None:
    """Old shards and the old index go; config, other checkpoints and what is called nearly so stay."""
    kept = ["config.json", "model.fp16.safetensors", "model.safetensors.bak", "adapter_model.safetensors"]
    for name in [*kept, "model-00001-of-00009.safetensors", INDEX]:
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "adapter_model.safetensors")
    asyncfetch.save(numbers(), tmp_path)
    assert names(tmp_path) == sorted([*kept, "model.safetensors"])
    assert not (tmp_path / "model.safetensors").is_symlink()
    assert (tmp_path / "adapter_model.safetensors").read_text() == "{}"
    asyncfetch.save(numbers(), tmp_path, filename_pattern="adapter_model{suffix}.safetensors", max_shard_size=64)
    assert "adapter_model.safetensors.index.json" in names(tmp_path)
    assert "model.safetensors" in names(tmp_path)
    assert "adapter_model.safetensors" not in names(tmp_path)


def test_progress_and_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is told, to its last byte. Where the second cannot be written, the old checkpoint is all there is."""
    seen: list[Event] = []
    asyncfetch.save(numbers(), tmp_path, max_shard_size=128, report=seen.append)
    (began,) = [event for event in seen if isinstance(event, Writing)]
    assert seen[0] == began
    assert [file.present for file in began.files] == [0, 0]
    for file in began.files:
        assert FileProgress(file.file, file.size, file.size) in seen
        assert FileWritten(file.file, file.size) in seen
        assert (tmp_path / file.file).stat().st_size == file.size
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_file, written = module.write_file, []

    def failing(*args: Any, **kwargs: Any) -> None:
        written.append(args)
        if len(written) == 2:
            raise OSError(5, os.strerror(5))
        write_file(*args, **kwargs)

    monkeypatch.setattr(module, "write_file", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        asyncfetch.save(numbers(value=2), tmp_path, max_shard_size=128)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.anyio
@ONE_LOOP
async def test_a_cancelled_save_leaves_the_old(tmp_path: Path) -> None:
    """When control is back no thread writes any more, and nothing is left of the new one."""
    await asyncfetch.save_async(numbers(value=1), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with anyio.CancelScope() as scope:

        def report(event: Event) -> None:
            if isinstance(event, FileProgress):
                scope.cancel()

        big = {f"t.{n}": np.zeros(1 << 20, np.int64) for n in range(8)}
        await asyncfetch.save_async(big, tmp_path, report=report)
    assert scope.cancelled_caught
    assert names(tmp_path) == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before
