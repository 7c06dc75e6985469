"""scripts/simulate: one checkpoint to many nodes, on paper: egress, time and the hottest link of several ways.

Each rate is in Gbit/s. Where a default comes from is told by `Setting` in scripts/simulation/site.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

from . import report
from .services import each_from_hub, service_per_rack
from .site import GBIT, Outcome, Setting
from .store import pulled_at_will
from .tree import fanned_out

WAYS: dict[str, Callable[[Setting, int], Outcome]] = {
    "hub": each_from_hub,
    "service": service_per_rack,
    "services": lambda setting, nodes: service_per_rack(setting, nodes, above=True),
    "ray-at-once": pulled_at_will,
    "ray": lambda setting, nodes: pulled_at_will(setting, nodes, admitted=1, first=16),
    "tree": fanned_out,
}
RATES = ("node", "internet", "connection", "uplink", "line")


def main() -> None:
    options = _parser().parse_args()
    if options.real:
        from .real import main as measure  # which needs Ray, and what nodes are made of

        measure()
        return
    setting = _setting(options)
    outcomes = []
    for nodes in options.nodes:
        for way in options.ways:
            outcomes.append(WAYS[way](setting, nodes))
            print(f"{nodes:,} nodes, {outcomes[-1].way}: {outcomes[-1].seconds:,.1f} s", file=sys.stderr)
    if options.json:
        print(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=1))
    else:
        print(report.table(outcomes, setting))
    if options.plot:
        from .picture import plot  # which needs matplotlib

        plot(outcomes, setting, options.plot)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--nodes", type=_numbers, default=[10, 100, 1000, 10_000], help="comma between")
    parser.add_argument("--ways", type=_ways, default=list(WAYS), help=f"of {', '.join(WAYS)}; comma between")
    default = Setting()
    parser.add_argument("--gb", type=float, default=default.nbytes / 1e9, help="size of the checkpoint")
    parser.add_argument("--shards", type=int, default=default.shards)
    parser.add_argument("--piece", type=float, default=default.piece / 1e9, help="GB of the largest object in a store")
    for name, text in {
        "node": "a node's link, each way",
        "internet": "what a node can have from outside",
        "connection": "what two nodes can have of each other",
        "uplink": "a rack's uplink, each way",
        "line": "from the Hub to the site",
    }.items():
        parser.add_argument(f"--{name}", type=float, default=getattr(default, name) / GBIT, help=text)
    parser.add_argument("--rack", type=int, default=default.rack, help="nodes in a rack")
    parser.add_argument("--quota", type=int, default=default.quota, help="requests that the Hub answers in a window")
    parser.add_argument("--window", type=float, default=default.window, help="seconds of a window")
    parser.add_argument("--owner", type=float, default=default.owner, help="location updates a second")
    parser.add_argument("--patience", type=float, default=default.patience, help="seconds until Ray asks again")
    parser.add_argument("--real", action="store_true", help="measure some of it beside the model; needs root and Ray")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    parser.add_argument("--plot", type=Path, help="write a PNG")
    return parser


def _numbers(text: str) -> list[int]:
    numbers = [int(word) for word in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("at least one node")
    return numbers


def _ways(text: str) -> list[str]:
    ways = text.split(",")
    if unknown := set(ways) - WAYS.keys():
        raise argparse.ArgumentTypeError(f"no such way: {', '.join(sorted(unknown))}")
    return ways


def _setting(options: argparse.Namespace) -> Setting:
    same = {name: getattr(options, name) for name in ("shards", "rack", "quota", "window", "owner", "patience")}
    rates = {name: getattr(options, name) * GBIT for name in RATES}
    setting = Setting(nbytes=options.gb * 1e9, piece=options.piece * 1e9, **same, **rates)
    wrong = [field.name for field in dataclasses.fields(setting) if not getattr(setting, field.name) > 0]
    if wrong:
        raise SystemExit(f"scripts/simulate: more than 0 is needed for {', '.join(wrong)}")
    return setting


if __name__ == "__main__":
    main()
