"""What `inspect` tells beyond names and shapes: parameters, how weights are quantised, what a load needs in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import asyncfetch
from asyncfetch.server import Server
from asyncfetch.spans import MiB

from ..format.test_scaled import FORMS
from ..kit.files import sharded

F8, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16
WAYS = {
    "DeepSeek 300 x 200": ("F8_E4M3", "F32", "block of 128 x 128"),
    "rows (40, 1)": ("F8_E4M3", "F16", "row"),
    "gpt-oss": ("U8", "U8", "group of 32"),
    "NVFP4, ModelOpt ()": ("U8", "F8_E4M3", "group of 16"),
}


def inspected(folder: Path, tensors: dict[str, Any]) -> asyncfetch.Inspection:
    sharded(folder, tensors)
    return asyncfetch.inspect(folder)


@pytest.mark.parametrize("kind", WAYS)
def test_quantised_weights(kind: str, tmp_path: Path) -> None:
    """Their way is told as their writers mean it, and parameters are the numbers for which they stand."""
    stored, _, numbers = FORMS[kind]
    plain = {"norm.weight": np.ones(33, np.float32), "ids": np.arange(5)}
    found = inspected(tmp_path, {f"a.{name}": array for name, array in stored.items()} | plain)
    (way,) = found.quantized
    assert (way.dtype, way.scale, way.shared_by) == WAYS[kind]
    assert (way.count, way.flaw) == (1, "")
    assert way.nbytes == sum(array.nbytes for array in stored.values())
    assert found.parameters == numbers.size + 33 + 5
    needs = {need.way: need for need in found.memory}
    assert needs["load, dequantized"].own == 4 * numbers.size
    assert needs["load, dequantized to bfloat16"].own == 2 * (numbers.size + 33)
    assert not any("as float32" in way for way in needs)


def test_what_nobody_else_can_read(tmp_path: Path) -> None:
    """Weights of GPTQ and the like are told as such, and no memory is promised for their numbers."""
    gptq = {
        "a.qweight": np.zeros((4, 8), np.int32),
        "a.scales": np.ones((1, 8), np.float16),
        "b.weight": np.ones(3, "f4"),
    }
    rows = {f"c.{name}": array for name, array in FORMS["rows (40, 1)"][0].items()}
    found = inspected(tmp_path, gptq | rows)
    known, other = found.quantized
    assert (known.shared_by, known.flaw) == ("row", "")
    assert (other.dtype, other.count) == ("I32", 1)
    assert "a.qweight" in other.flaw
    assert not any("dequantized" in need.way for need in found.memory)


def test_an_empty_selection_needs_nothing(tmp_path: Path) -> None:
    """All numbers are those of what was selected."""
    sharded(tmp_path, {"a.weight": np.ones((3, 5), np.float32), "b.weight": np.ones(7, np.float32)})
    found = asyncfetch.inspect(tmp_path, select="a.*")
    assert found.parameters == 15
    assert {need.way: need.mapped for need in found.memory}["load"] == 60


CHILD = """
import gc, json, re, sys
from pathlib import Path
import asyncfetch

def anonymous():
    gc.collect()
    return int(re.findall(r"Anonymous:\\s+(\\d+) kB", Path("/proc/self/smaps_rollup").read_text())[0]) * 1024

folder, cases = sys.argv[1], json.loads(sys.argv[2])
for repository, way, options in [cases[-1], *cases]:  # the first of them for what any load takes once
    where = {"cache_dir": f"{folder}/{way} of {repository}"}
    need = {one.way: one for one in asyncfetch.inspect(repository, **where).memory}[way]
    before = anonymous()
    tensors = asyncfetch.load(repository, **where, **options)
    sums = [array.reshape(-1)[::1024].astype("f4").sum() for array in tensors.values()]  # each page is touched
    print(json.dumps([way, need.own, anonymous() - before]), flush=True)
    del tensors
"""
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("org/plain", "load", {}),
    ("org/plain", "load, in memory alone", {"storage": "memory"}),
    ("org/plain", "load, as float32", {"dtype": "float32"}),
    ("org/scaled", "load, dequantized to bfloat16", {"dequantize": True, "dtype": "bfloat16"}),
    ("org/scaled", "load, dequantized", {"dequantize": True}),
]


def test_what_a_load_takes_is_what_was_told(tmp_path: Path) -> None:
    """Held against what the kernel counts of a process."""
    rows = 8 * MiB // 256
    plain = {f"layers.{n}.weight": np.ones((rows, 128), BF16) for n in range(4)}
    sharded(tmp_path / "models/org/plain", plain | {"ids": np.arange(MiB // 8)})
    scaled = {f"layers.{n}.weight": np.ones((rows, 128), F8) for n in range(4)}
    scaled |= {f"layers.{n}.weight_scale": np.full((rows, 1), 0.5, np.float32) for n in range(4)}
    sharded(tmp_path / "models/org/scaled", scaled)
    with Server(tmp_path / "models") as server:
        command = [sys.executable, "-c", CHILD, str(tmp_path), json.dumps(CASES)]
        # What is freed is given back at once, whatever was freed before: else malloc keeps some megabytes.
        env = {**os.environ, "HF_ENDPOINT": server.url, "MALLOC_MMAP_THRESHOLD_": "65536"}
        ran = subprocess.run(command, capture_output=True, text=True, env=env, timeout=50)
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines()][1:]
    assert [way for way, *_ in lines] == [way for _, way, _ in CASES]
    for way, told, taken in lines:
        assert abs(taken - told) < 2 * MiB + told // 50, way
