"""The outcomes as a picture. It needs matplotlib, of the dependency group bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from . import report
from .site import Outcome, Setting


def plot(outcomes: Sequence[Outcome], setting: Setting, path: Path) -> None:
    """Seconds and egress by the number of nodes, a line for each way."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots(1, 2)
    for way in dict.fromkeys(one.way for one in outcomes):
        rows = sorted((one for one in outcomes if one.way == way), key=lambda outcome: outcome.nodes)
        nodes = [one.nodes for one in rows]
        axes[0].plot(nodes, [one.seconds for one in rows], "o-", label=way)
        axes[1].plot(nodes, [one.egress / setting.nbytes for one in rows], "o-", label=way)
    for axis, title in zip(axes, ("seconds until the last node has all", "egress, in checkpoints"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="nodes", title=title)
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{report.nbytes(setting.nbytes)} in {setting.shards} shards to many nodes")
    figure.savefig(path, dpi=120)
