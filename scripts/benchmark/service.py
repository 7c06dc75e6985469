"""`asyncfetch serve --upstream` under load: cold, cached, beside a fill; and, with --soak, for a long time."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from scripts.matrix.services import Service, running

from . import checkpoints
from .line import Line
from .origin import Origin

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOW = float(8 << 20)  # bytes a second, of each connection to the source
COLD_BYTES = 64 << 20
_FILE = "model.safetensors"
_MIB = {"cold": 64, "cached": 256, "other": 256}  # of each checkpoint


def make(options: argparse.Namespace) -> Path:
    """The folder with all that the source has."""
    data: Path = options.work / "service"
    for name, mib in _MIB.items():
        checkpoints.make(data, checkpoints.Shape(name, 1, mib))
    return data


def main(options: argparse.Namespace, data: Path) -> None:
    rows = [*_cold(data, options), *_cached(data, options), *_beside(data, options)]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(title="asyncfetch serve --upstream")
    for column in ("case", "measured", "bar"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        table.add_row(row["case"], f"{row['measured']:.3g} {row['unit']}", row["bar"])
    Console(width=110).print(table)


@contextmanager
def served(origin: Origin, work: Path) -> Iterator[Service]:
    """A service before the source, with an empty cache."""
    cache = work / "service-cache"
    shutil.rmtree(cache, ignore_errors=True)
    options = [f"--upstream={origin.endpoint('http')}", f"--cache-dir={cache}", "--quiet"]
    with running("service", options, work) as service:
        yield service
    shutil.rmtree(cache, ignore_errors=True)


def start(**job: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "scripts.benchmark.readers", json.dumps(job)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, _ = process.communicate(timeout=600)
    if process.returncode:
        raise SystemExit("a client failed")
    result: dict[str, Any] = json.loads(said)
    return result


def page(service: Service, name: str) -> str:
    return f"{service.url}/bench/{name}/resolve/main/{_FILE}"


def cpu_seconds(*pids: int) -> float:
    """What processes have had of the processor so far, together."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def _row(case: str, measured: float, unit: str, bar: str = "") -> dict[str, Any]:
    return {"case": case, "measured": measured, "unit": unit, "bar": bar}


def _cold(data: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Eight clients at once; the source gives little to each connection. The best of the rounds."""
    best: dict[str, float] = {}
    with (
        Line(0.0, SLOW, 1e12, narrow=True) as line,
        Origin(data, options.work / "nginx", data_port=line.port, narrow=True) as origin,
    ):
        line.connect(origin.ports["http_data"])
        direct = COLD_BYTES / SLOW
        for _ in range(options.rounds):
            origin.count()
            with served(origin, options.work) as service:
                before = cpu_seconds(service.pid)
                told = finished(start(what="get", url=page(service, "cold"), clients=8))
                told["cpu"] = cpu_seconds(service.pid) - before
            told["data"], told["rest"] = origin.sent()
            best = {name: min(value, best.get(name, value)) for name, value in told.items() if name != "rate"}
    return [
        _row("8 cold clients: bytes of the file", best["data"] / COLD_BYTES, "x", "1.00"),
        _row("8 cold clients: all bytes", (best["data"] + best["rest"]) / COLD_BYTES, "x", "1.01"),
        _row("8 cold clients: first byte of the last", best["first"], "s", "0.5"),
        _row("8 cold clients: whole file", best["whole"] / direct, "of direct", "0.35"),
        _row("8 cold clients: CPU of the service", best["cpu"], "s"),
    ]


def _cached(data: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What is kept, against nginx in turns. Medians: what one client gets of either scatters by a half."""
    rows = []
    with Origin(data, options.work / "nginx") as origin, served(origin, options.work) as service:
        finished(start(what="get", url=page(service, "cached"), clients=1))
        urls = {"service": page(service, "cached"), "nginx": origin.data_url("http", "cached", _FILE)}
        for clients in (1, 16):
            rates: dict[str, list[float]] = {name: [] for name in urls}
            costs: dict[str, list[float]] = {name: [] for name in urls}
            gigabytes = clients * 8 * _MIB["cached"] * 2**20 / 1e9
            for _ in range(options.rounds):
                for name, url in urls.items():
                    pids = [service.pid] if name == "service" else origin.workers
                    before = cpu_seconds(*pids)
                    told = finished(start(what="get", url=url, clients=clients, rounds=8))
                    rates[name].append(told["rate"])
                    costs[name].append((cpu_seconds(*pids) - before) / gigabytes)
            ours, theirs = (statistics.median(rates[name]) for name in urls)
            rows.append(_row(f"cached, clients: {clients}", ours / 1e9, "GB/s"))
            rows.append(_row(f"cached, clients: {clients}", ours / theirs, "of nginx", "0.8"))
            for name, found in costs.items():
                rows.append(_row(f"cached, clients: {clients}: CPU of {name}", statistics.median(found), "s/GB"))
    return rows


def _beside(data: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """64 clients that ask for heads while a file comes in as fast as the machine lets it."""
    rows = []
    with Origin(data, options.work / "nginx") as origin:
        for pause in (0.1, 0.0):
            best = {"p50": 1e9, "p99": 1e9, "asked": 0.0}
            for _ in range(options.rounds):
                with served(origin, options.work) as service:
                    finished(start(what="get", url=page(service, "cached"), clients=1))
                    asking = start(what="heads", url=page(service, "cached"), clients=64, seconds=3, pause=pause)
                    finished(start(what="get", url=page(service, "other"), clients=1))
                    told = finished(asking)
                best = min(best, told, key=lambda one: one["p99"])
            how = f"{pause:g} s after each answer" if pause else "without a pause"
            rows.append(_row(f"HEAD of 64 beside a fill, {how}: p50", best["p50"] * 1e3, "ms"))
            bar = "50" if pause else ""
            rows.append(_row(f"HEAD of 64 beside a fill, {how}: p99", best["p99"] * 1e3, "ms", bar))
    return rows
