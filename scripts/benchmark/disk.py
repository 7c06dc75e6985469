"""Loads from the disk, cold and warm, against the loaders that people use: scripts/bench disk."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import checkpoints, report

# What is asked for, and who does it: the label in the table, the name among the contestants, the package it needs.
KINDS = {
    "load": [
        ("asyncfetch, torch", "asyncfetch torch", "torch"),
        ("safetensors, torch", "safetensors torch", "torch"),
        ("runai-model-streamer", "runai", "runai_model_streamer"),
        ("fastsafetensors", "fastsafetensors", "fastsafetensors"),
    ],
    "stream": [
        ("asyncfetch.stream", "asyncfetch stream", "torch"),
        ("safetensors, safe_open", "safetensors stream", "torch"),
        ("runai-model-streamer, reused buffers", "runai stream", "runai_model_streamer"),
        ("fastsafetensors, file by file", "fastsafetensors stream", "fastsafetensors"),
    ],
    "load_into": [
        ("asyncfetch.load_into", "asyncfetch into", "torch"),
        ("safetensors, load_state_dict", "safetensors into", "torch"),
        ("runai-model-streamer, load_state_dict", "runai into", "runai_model_streamer"),
        ("fastsafetensors, load_state_dict", "fastsafetensors into", "fastsafetensors"),
    ],
}


def disk(options: argparse.Namespace, *, states: str = "cold,warm") -> list[dict[str, Any]]:
    """Four shards of together `--gib` GiB in `--disk`, which must be on a disk: of tmpfs nothing can be dropped."""
    root = options.disk
    shape = checkpoints.shapes(options.gib)["four"]
    small = checkpoints.make(root, checkpoints.Shape("first-use", 2, 1))
    folder = checkpoints.make(root, shape)
    entries = []
    for state in states.split(","):
        for kind in KINDS:
            for label, contestant, package in KINDS[kind]:
                if find_spec(package) is None:
                    print(f"skipped: {label} ({package} is not installed)", file=sys.stderr)
                else:
                    entries.append((state, kind, label, contestant))
    if options.only:
        entries = [entry for entry in entries if any(text in entry[2] for text in options.only.split(","))]
    runs: list[list[dict[str, Any]]] = [[] for _ in entries]
    for round_ in report.rounds(options):
        for step in range(len(entries)):
            # Who comes after whom changes from round to round: memory that was just freed is not like other memory.
            number = (step + round_) % len(entries)
            state, kind, label, contestant = entries[number]
            job = {"folder": str(folder), "small": str(small), "cold": state == "cold", "nbytes": shape.nbytes}
            runs[number].append(_run(contestant, job))
            text = f"{state} {kind:9} {label:38} {runs[number][-1]['seconds']:6.2f} s"
            print(f"round {round_ + 1}/{options.rounds}  {text}", file=sys.stderr)
    return [
        {
            **report.medians(runs[number]),
            "label": label,
            "scheme": f"{state} disk",
            "shape": kind,
            "nbytes": shape.nbytes,
        }
        for number, (state, kind, label, _) in enumerate(entries)
    ]


def _run(contestant: str, job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "scripts.benchmark.disk_contestants", contestant, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(f"{contestant} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def default_place() -> Path:
    """Beside the repository's own files: they are on a disk."""
    return Path(".bench")
