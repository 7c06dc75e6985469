"""scripts/clients: real clients of the Hub against `asyncfetch serve`, over a folder and over another Hub.

Each client downloads and compares with the files that are served, byte by byte, and asks what else it may ask. The
exit code is 1 where one of them fails, or is refused something that should have been there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .contestants import CLIENTS, Client, why_expected
from .environments import command_of
from .models import write_plain
from .runs import PROGRAMS, Outcome, run
from .services import both


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/clients", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME", default="", help="clients whose name contains this")
    parser.add_argument("--list", action="store_true", help="name the clients")
    options = parser.parse_args()
    clients = [client for client in CLIENTS if options.only in client.name]
    if options.list or not clients:
        print(*(client.name for client in CLIENTS), sep="\n")
        return 0 if options.list else 2
    base = Path(sys.prefix) / "clients"
    outcomes, skipped = [], []
    with tempfile.TemporaryDirectory(prefix="asyncfetch-clients-") as work:
        models = Path(work) / "models"
        _make(models, clients, base)
        with both(models, Path(work)) as services:
            for client in clients:
                command = command_of(client, PROGRAMS / client.program, base)
                if command is None:
                    skipped.append(client.name)
                    continue
                for service in services:
                    outcomes.append(run(client, command, service, models))
                    _say(outcomes[-1])
    _print(outcomes)
    for name in skipped:
        print(f"SKIPPED: {name}, for want of npm", file=sys.stderr)
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def _make(models: Path, clients: list[Client], base: Path) -> None:
    write_plain(models)
    maker = next((client for client in CLIENTS if client.name == "transformers"), None)
    if maker is not None and any(client.made for client in clients):
        command = command_of(maker, PROGRAMS / "make_models.py", base)
        assert command is not None
        subprocess.run([*command, str(models), "--sentences"], check=True)


def _say(outcome: Outcome) -> None:
    print(f"{outcome.client} on {outcome.service}: {'good' if outcome.is_good else 'FAILED'}", file=sys.stderr)
    for one in outcome.unexpected:
        print(f"  unexpected: {one.method} {one.path} {one.status}", file=sys.stderr)
    if outcome.error:
        print(outcome.error, file=sys.stderr)


def _print(outcomes: list[Outcome]) -> None:
    table = Table(title="Clients of the Hub against asyncfetch serve")
    for column in ("client", "service", "requests", "refused", "unexpected", "bytes"):
        table.add_column(column, justify="left" if column in ("client", "service") else "right")
    for outcome in outcomes:
        numbers = (len(outcome.asked), len(outcome.refused), len(outcome.unexpected))
        bytes_ = "FAILED" if outcome.error else "right"
        table.add_row(outcome.client, outcome.service, *map(str, numbers), bytes_)
    console = Console(width=110)
    console.print(table)
    why = defaultdict(set)
    for outcome in outcomes:
        for one in outcome.refused:
            if told := why_expected(one.status, one.path):
                why[told].add(f"{one.path.rpartition('/')[2]} ({one.status})")
    console.print("Refused, as was to be expected:" if why else "Nothing was refused.")
    for told, names in why.items():
        console.print(f"- {told}: {', '.join(sorted(names))}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
