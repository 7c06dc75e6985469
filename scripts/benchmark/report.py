"""Medians, tables, plots."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_MiB = 1 << 20


def rounds(options: argparse.Namespace) -> Iterator[int]:
    """The numbers of the rounds, as far as there is time for one more like those before (`options.until`)."""
    began = time.monotonic()
    for number in range(options.rounds):
        each = (time.monotonic() - began) / max(number, 1)
        if number and time.monotonic() + each > getattr(options, "until", math.inf):
            print(f"no time for more than {number} rounds", file=sys.stderr)
            return
        yield number


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the rounds, and the seconds of all rounds."""
    keys = {key for run in runs for key in run}
    row = {key: statistics.median(run[key] for run in runs if key in run) for key in keys}
    row["rounds"] = [round(run["seconds"], 3) for run in runs]
    return row


def print_table(rows: list[dict[str, Any]], mode: str) -> None:
    console = Console(width=150)
    groups = dict.fromkeys((row["scheme"], row["shape"]) for row in rows)
    for scheme, shape in groups:
        chosen = [row for row in rows if (row["scheme"], row["shape"]) == (scheme, shape)]
        table = Table(title=f"{scheme}, {shape} ({chosen[0]['nbytes'] / _MiB:,.0f} MiB)", title_justify="left")
        table.add_column("contestant")
        columns = [
            "s",
            "MB/s",
            "ratio",
            "CPU s",
            "CPU s/GB",
            "peak MiB",
            "anon. MiB",
            "conn.",
            "req.",
            "lag p99",
            "lag max ms",
            "merge ms",
        ]
        if mode == "latency":
            columns.append("of limit")
        for column in columns:
            table.add_column(column, justify="right")
        ours = next((row["seconds"] for row in chosen if row["label"].startswith("asyncfetch")), chosen[0]["seconds"])
        for row in chosen:
            cells = [
                row["label"],
                f"{row['seconds']:.2f}",
                f"{row['nbytes'] / row['seconds'] / 1e6:.0f}",
                f"{row['seconds'] / ours:.2f}",
                f"{row['cpu']:.1f}",
                f"{row['cpu'] / row['nbytes'] * 1e9:.2f}",
                f"{row['peak'] / _MiB:.0f}",
                f"{row['anonymous'] / _MiB:.0f}" if "anonymous" in row else "",
                f"{row['connections']:.0f}" if "connections" in row else "",
                f"{row['requests']:.0f}" if "requests" in row else "",
                f"{row['lag_p99'] * 1e3:.1f}" if "lag_p99" in row else "",
                f"{row['lag_max'] * 1e3:.0f}" if "lag_max" in row else "",
                f"{row['merge'] * 1e3:.1f}" if row.get("merge") else "",
            ]
            if mode == "latency":
                cells.append(f"{row['of_limit']:.2f}")
            table.add_row(*cells)
        console.print(table)
    console.print("Medians. ratio: seconds against the first row. MB is 10^6 bytes. Lag: of a 1 ms ticker, after 1 s.")


def title(row: dict[str, Any]) -> str:
    """What a group of rows shows, in words."""
    what = {
        "four": "four shards",
        "one": "one file",
        "many": "shards of 16 MiB",
        "shards64": "64 shards of 4 MiB",
        "load": "a state dict",
        "stream": "tensor by tensor",
        "load_into": "into a model",
    }.get(row["shape"], row["shape"])
    where = row["scheme"] if "disk" in row["scheme"] else f"Hub over {row['scheme']}"
    return f"{where[0].upper()}{where[1:]}: {what}, {row['nbytes'] / _MiB:,.0f} MiB"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds by contestant, one panel for each scheme and shape, two in a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys((row["scheme"], row["shape"]) for row in rows))
    height = -(-len(groups) // 2)
    figure, axes = pyplot.subplots(height, min(len(groups), 2), figsize=(14, 2.2 * height + 0.6), squeeze=False)
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    for axis, (scheme, shape) in zip(axes.flat, groups, strict=False):
        chosen = [row for row in rows if (row["scheme"], row["shape"]) == (scheme, shape)][::-1]
        colors = ["#2a6f97" if row["label"].startswith("asyncfetch") else "#b0b7bf" for row in chosen]
        bars = axis.barh([row["label"] for row in chosen], [row["seconds"] for row in chosen], color=colors)
        axis.bar_label(bars, fmt="%.2f s", padding=3, fontsize=8)
        axis.set_title(title(chosen[0]), loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.15)
    figure.supxlabel("seconds, median (shorter is better)", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")
