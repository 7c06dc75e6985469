"""The repositories that are served. Those that need torch and others to be made come from make_models.py."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

__all__ = ["write_plain"]

SHARDS = 4


def write_plain(root: Path) -> None:
    """`team/plain`, a model in shards with this and that beside them, and `datasets/team/data`."""
    model, draw = root / "team" / "plain", np.random.default_rng(3)
    (model / "sub").mkdir(parents=True)
    weight_map = {}
    for number in range(1, SHARDS + 1):
        file = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        tensors = {f"layers.{number}.{name}": draw.random((128, 300), np.float32) for name in "abc"}
        save_file(tensors, model / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (model / "config.json").write_text(json.dumps({"architectures": ["Plain"], "words": ["a"] * 500}))
    (model / "README.md").write_text("---\ntags: [plain]\n---\nA model. Größe: klein.\n")
    (model / "sub" / "words.txt").write_text("one two\n" * 20_000)
    (model / "tiny-Q4_K_M.gguf").write_bytes(b"GGUF" + random.Random(4).randbytes(300_000))
    data = root / "datasets" / "team" / "data" / "data"
    data.mkdir(parents=True)
    (data / "train.csv").write_text("word,number\n" + "".join(f"word{n},{n}\n" for n in range(1000)))
