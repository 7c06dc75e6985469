"""scripts/bench page: one run of everything, as docs/benchmarks.md and a plot beside it."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import report

Rows = list[dict[str, Any]]
PACKAGES = ("asyncfetch", "httpx", "huggingface_hub", "safetensors", "torch", "runai-model-streamer", "fastsafetensors")

METHOD = """\
# Benchmarks

Written by `scripts/bench page`, from one run. What counts are the ratios: how many times as long as asyncfetch another
one took in the same run. Seconds depend on the machine, and on who else works on it.

![Seconds by contestant](benchmarks.png)

## How it is measured

- Each run is a process of its own. All contestants take turns, {rounds} times at the most; the figures are medians
  of the rounds that are listed.
- **From a Hub**: nginx on the same machine, metadata on one port and the bytes behind a redirect on another, as the Hub
  does it. From nothing cached to a state dict in memory. asyncfetch holds every byte against its sha256 and the others
  do not. All imports come before the clock starts. aria2c and curl download, and safetensors loads what they brought.
- **From the disk**: four files. What a first use costs, imports too, comes before the clock. Then the kernel is made to
  forget what it holds of the files (`posix_fadvise`), which mincore confirms.
  The clock stops when each page of each tensor was touched: a state dict of which nothing was read yet is no load.
  The model of `load_into` is on the meta device.
- CPU s/GB: processor seconds of the process and its children for each 10^9 bytes; from a Hub since the process began,
  imports included, from the disk while the clock runs. "times": seconds against the first
  row. MB is 10^6 bytes.

## The machine

{machine}
"""


def write(rows: Rows, options: argparse.Namespace, folder: Path) -> None:
    """`folder`/benchmarks.md and benchmarks.png of the measurements."""
    text = METHOD.format(rounds=options.rounds, machine=_machine())
    for scheme, shape in dict.fromkeys((row["scheme"], row["shape"]) for row in rows):
        text += "\n" + _table([row for row in rows if (row["scheme"], row["shape"]) == (scheme, shape)])
    (folder / "benchmarks.md").write_text(text, encoding="utf-8")
    report.plot(rows, folder / "benchmarks.png")


def _table(rows: Rows) -> str:
    ours = rows[0]["seconds"]
    lines = [
        f"## {report.title(rows[0])}",
        "",
        "| | s | MB/s | times | CPU s/GB | all rounds, s |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        rounds = ", ".join(f"{seconds:.2f}" for seconds in sorted(row["rounds"]))
        lines.append(
            f"| {row['label']} | {row['seconds']:.2f} | {row['nbytes'] / row['seconds'] / 1e6:.0f} | "
            f"{row['seconds'] / ours:.2f} | {row['cpu'] / row['nbytes'] * 1e9:.2f} | {rounds} |"
        )
    return "\n".join(lines) + "\n"


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    packages = [f"{name} {found}" for name in PACKAGES if (found := _version(name))]
    tools = [line for tool in ("aria2c", "curl", "nginx") if (line := _first_line(tool))]
    return "\n".join(
        [
            f"- {os.cpu_count()} processors, {memory:.0f} GiB of memory, {platform.system()} {platform.release()}",
            f"- load average at the end, over 1, 5 and 15 minutes: {load} (what runs besides makes all of them slower)",
            f"- Python {platform.python_version()}, {', '.join(packages)}",
            f"- {'; '.join(tools)}",
            f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        ]
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_line(tool: str) -> str:
    try:
        flag = "-v" if tool == "nginx" else "--version"
        done = subprocess.run([tool, flag], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return " ".join((done.stdout or done.stderr).splitlines()[0].replace("nginx version: ", "").split()[:3])
