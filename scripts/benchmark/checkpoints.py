"""The checkpoints that are served: made once, reused while their names and sizes fit."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

MiB = 1 << 20
_TENSORS_PER_SHARD = 8


@dataclass(frozen=True)
class Shape:
    """`shards` files of `mib` MiB each; an index where there is more than one."""

    name: str
    shards: int
    mib: int

    @property
    def nbytes(self) -> int:
        return self.shards * self.mib * MiB

    def files(self) -> list[str]:
        if self.shards == 1:
            return ["model.safetensors"]
        return [f"model-{i:05d}-of-{self.shards:05d}.safetensors" for i in range(1, self.shards + 1)]


def shapes(gib: float) -> dict[str, Shape]:
    """The shapes of `gib` GiB: 4 shards, one file, and half as much in shards of 16 MiB; and one that is small."""
    mib = int(gib * 1024)
    return {
        "four": Shape("four", 4, mib // 4),
        "one": Shape("one", 1, mib),
        "many": Shape("many", mib // 32, 16),
        "shards64": Shape("shards64", 64, 4),
        "small": Shape("small", 4, 22),
    }


def make(root: Path, shape: Shape) -> Path:
    """Write the checkpoint to root/<name> if it is not there. Returns its folder."""
    folder = root / shape.name
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for number, file in enumerate(shape.files()):
        names = [f"shard{number}.tensor{i}" for i in range(_TENSORS_PER_SHARD)]
        weight_map |= dict.fromkeys(names, file)
        _write(folder / file, names, shape.mib * MiB // _TENSORS_PER_SHARD)
    if shape.shards > 1:
        index = {"metadata": {"total_size": shape.nbytes}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_sparse(path: Path, tensors: dict[str, int]) -> None:
    """A shard of zeros that takes no room on disk: U8 tensors of the given sizes in bytes."""
    with open(path, "wb") as stream:
        stream.write(_header(tensors))
        stream.truncate(stream.tell() + sum(tensors.values()))
    path.chmod(0o644)


def _write(path: Path, names: list[str], tensor_bytes: int) -> None:
    header = _header(dict.fromkeys(names, tensor_bytes))
    size = len(header) + tensor_bytes * len(names)
    if path.exists() and path.stat().st_size == size:
        return
    with open(path, "wb") as stream:
        stream.write(header)
        left = size - len(header)
        while left:
            left -= stream.write(os.urandom(min(left, 4 * MiB)))
    path.chmod(0o644)


def _header(tensors: dict[str, int]) -> bytes:
    entries, at = {}, 0
    for name, nbytes in tensors.items():
        entries[name] = {"dtype": "U8", "shape": [nbytes], "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % 8)
    return struct.pack("<Q", len(text)) + text
