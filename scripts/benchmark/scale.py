"""How the cost outside the bytes grows: 1 to 1000 shards, up to 100,000 tensors, nearly no bytes."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import checkpoints
from .origin import Origin

COUNTS = [(1, 100), (10, 1_000), (100, 10_000), (1000, 100_000)]  # shards, tensors in all
TENSOR_BYTES = 64


def main(options: argparse.Namespace) -> None:
    data = options.work / "scale"
    for shards, tensors in COUNTS:
        _make(data, shards, tensors)
    rows = []
    with Origin(data, options.work / "nginx-scale") as origin:
        for shards, tensors in COUNTS:
            target = options.work / "target"
            shutil.rmtree(target, ignore_errors=True)
            origin.count()
            job = {"endpoint": origin.endpoint("http"), "repository": f"bench/s{shards}", "target": str(target)}
            row: dict[str, Any] = {"shards": shards, "tensors": tensors}
            row["cold"] = _load(job)
            row["connections"], row["requests"] = origin.count()
            row["warm"] = min(_load(job) for _ in range(options.rounds))
            rows.append(row)
            shutil.rmtree(target, ignore_errors=True)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(title="the cost outside the bytes")
    for column in ("shards", "tensors", "cold s", "warm s", "cold ms/shard", "warm us/tensor", "conn.", "req."):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            f"{row['shards']:,}",
            f"{row['tensors']:,}",
            f"{row['cold']:.2f}",
            f"{row['warm']:.3f}",
            f"{row['cold'] * 1e3 / row['shards']:.1f}",
            f"{row['warm'] * 1e6 / row['tensors']:.1f}",
            str(row["connections"]),
            str(row["requests"]),
        )
    Console(width=110).print(table)


def _make(root: Path, shards: int, tensors: int) -> None:
    folder = root / f"s{shards}"
    if (folder / "model.safetensors.index.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shape = checkpoints.Shape(folder.name, max(shards, 2), 0)
    weight_map: dict[str, str] = {}
    for number, file in enumerate(shape.files()[:shards]):
        names = [f"model.layers.{number}.tensor_{i}.weight" for i in range(tensors // shards)]
        checkpoints.write_sparse(folder / file, dict.fromkeys(names, TENSOR_BYTES))
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _load(job: dict[str, Any]) -> float:
    """Seconds of one load in a process of its own, imports left out."""
    code = (
        "import json,sys,time,asyncfetch.api.functions as a; j=json.loads(sys.argv[1]); t=time.perf_counter();"
        "d=a.load(j['repository'],endpoint=j['endpoint'],cache_dir=j['target']); print(time.perf_counter()-t, len(d))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(job)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return float(done.stdout.split()[0])
