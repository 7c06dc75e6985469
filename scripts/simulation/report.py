"""The outcomes as a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib

from .site import Outcome, Setting

matplotlib.use("Agg")


def table(outcomes: Sequence[Outcome], setting: Setting) -> str:
    """A row for each outcome; those of one number of nodes stand together."""
    lines = [
        "| nodes | way | egress | requests | seconds | sent twice | hottest | busy |",
        "|---:|---|---:|---:|---:|---:|---|---:|",
    ]
    for one in sorted(outcomes, key=lambda outcome: outcome.nodes):
        times = one.egress / setting.nbytes
        lines.append(
            f"| {one.nodes:,} | {one.way} | {nbytes(one.egress)} (x{times:,.0f}) | {one.requests:,} | "
            f"{one.seconds:,.0f} | {nbytes(one.wasted)} | {one.hottest} | {one.load:.0%} |"
        )
    return "\n".join(lines)


def nbytes(count: float) -> str:
    """Bytes with three digits that count: 141 GB."""
    for unit in ("MB", "GB", "TB", "PB"):
        size = count / {"MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}[unit]
        if size < 999.5:
            return f"{size:.3g} {unit}" if size >= 0.5 or unit != "MB" else "0"
    return f"{size:,.0f} PB"
