"""scripts/bench: contestants side by side, interleaved, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import checkpoints, disk, page, report, scale, service, soak, start
from .line import Line
from .origin import Origin


@dataclass(frozen=True)
class Entry:
    """A row of the table: a contestant with its options, on one shape and scheme."""

    label: str
    contestant: str
    scheme: str
    shape: str
    options: dict[str, Any] = field(default_factory=dict)


NEEDS = {"aria2": "aria2c", "curl": "curl"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "mode",
        nargs="?",
        choices=["peers", "latency", "slow", "start", "disk", "scale", "service", "page"],
        default="peers",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=14, help="page: begin no further round after that")
    parser.add_argument("--gib", type=float, default=2.0, help="size of a checkpoint")
    parser.add_argument("--schemes", default="https,http")
    parser.add_argument("--shapes", default="four,one,many")
    parser.add_argument("--only", help="contestants whose label contains one of these texts (comma between)")
    parser.add_argument("--work", type=Path, default=default_work(), help="data and downloads; reused")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="service: watch memory and descriptors instead")
    parser.add_argument("--disk", type=Path, default=disk.default_place(), help="where `disk` keeps its checkpoints")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    parser.add_argument("--plot", type=Path, help="write a PNG")
    options = parser.parse_args()
    if shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists():
        raise SystemExit("scripts/bench needs nginx: apt-get install nginx-light")
    options.work.mkdir(parents=True, exist_ok=True)
    os.chmod(options.work, 0o755)
    options.disk.mkdir(parents=True, exist_ok=True)
    if options.mode == "service":
        data = service.make(options)
        if options.soak:
            raise SystemExit(soak.main(options, data))
        service.main(options, data)
        return
    if options.mode in ("scale", "start"):
        {"scale": scale, "start": start}[options.mode].main(options)
        return
    if options.mode == "page":
        page.write(everything(options), options, Path("docs"))
        return
    rows = {"peers": peers, "latency": latency, "slow": slow, "disk": disk.disk}[options.mode](options)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        report.print_table(rows, options.mode)
    if options.plot:
        report.plot(rows, options.plot)


def default_work() -> Path:
    """Memory where there is enough of it: the network and the client are measured, not the disk."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 12 << 30
    return (shared if roomy else Path(tempfile.gettempdir())) / "asyncfetch-bench"


def peers(options: argparse.Namespace) -> list[dict[str, Any]]:
    shapes = checkpoints.shapes(options.gib)
    wanted = options.shapes.split(",")
    data = options.work / "data"
    for name in wanted:
        checkpoints.make(data, shapes[name])
    entries = []
    for scheme in options.schemes.split(","):
        for shape in wanted:
            entries += _entries(scheme, shape)
    with Origin(data, options.work / "nginx") as origin:
        return _run(entries, shapes, origin, options)


def everything(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the page shows: the usual ways, without those that only tell developers something."""
    rows: list[dict[str, Any]] = []
    end = time.monotonic() + 60 * options.minutes
    for left, (schemes, shapes) in ((4, ("https", "four")), (3, ("http", "one"))):
        options.schemes, options.shapes, options.only = schemes, shapes, "asyncfetch (verified),hub,aria2c,curl"
        options.until = time.monotonic() + (end - time.monotonic()) / left
        rows += peers(options)
    options.only, options.until = None, end
    return rows + disk.disk(options, states="cold")


def _entries(scheme: str, shape: str) -> list[Entry]:
    entries = [
        Entry("asyncfetch (verified)", "asyncfetch", scheme, shape, {"storage": "disk"}),
        Entry("asyncfetch, memory (verified)", "asyncfetch", scheme, shape, {"storage": "memory"}),
        Entry("asyncfetch beside a ticker", "asyncfetch", scheme, shape, {"storage": "disk", "ticker": True}),
        Entry("huggingface_hub + safetensors", "huggingface_hub", scheme, shape),
        Entry("aria2c -x4 + safetensors", "aria2", scheme, shape),
        Entry("curl --parallel + safetensors", "curl", scheme, shape),
        Entry("httpx loop + safetensors", "httpx", scheme, shape),
    ]
    if shape == "four":
        entries += [
            Entry("raw sockets, download only", "raw sockets", scheme, shape),
            Entry(
                "asyncfetch, download only, no hash", "asyncfetch", scheme, shape, {"storage": "disk", "hash": False}
            ),
        ]
    return entries


def latency(options: argparse.Namespace) -> list[dict[str, Any]]:
    """50 ms away, 60 MB/s for each connection, 400 MB/s for all: one connection cannot fill the line."""
    shapes = checkpoints.shapes(options.gib)
    data = options.work / "latency"
    for name in ("four", "one"):
        checkpoints.make(data, shapes[name])
    entries = []
    for shape in ("four", "one"):
        for storage in ("disk", "memory"):
            entries.append(
                Entry(f"asyncfetch, {storage} (verified)", "asyncfetch", "http", shape, {"storage": storage})
            )
        entries.append(Entry("aria2c -x16", "aria2", "http", shape, {"split": 16, "download_only": True}))
        entries.append(Entry("curl --parallel", "curl", "http", shape, {"download_only": True}))
    with Line() as line, Origin(data, options.work / "nginx", data_port=line.port) as origin:
        line.connect(origin.ports["http_data"])
        rows = _run(entries, shapes, origin, options)
    for row in rows:
        row["of_limit"] = row["nbytes"] / row["seconds"] / line.total_rate
    return rows


def slow(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A small checkpoint where each connection brings little, and many of them bring more."""
    shapes = checkpoints.shapes(options.gib)
    data = options.work / "slow"
    checkpoints.make(data, shapes["small"])
    rows = []
    for rate in (2e6, 200e3):
        entries = [Entry("asyncfetch, disk (verified)", "asyncfetch", "http", "small", {"storage": "disk"})]
        for split in (4, 16):  # for each of four files
            how = {"split": split, "piece": "1M", "download_only": True}
            entries.append(Entry(f"aria2c, {4 * split} connections", "aria2", "http", "small", how))
        with Line(0.02, rate) as line, Origin(data, options.work / "nginx", data_port=line.port) as origin:
            line.connect(origin.ports["http_data"])
            measured = _run(entries, shapes, origin, options)
        rows += [{**row, "shape": f"small, {rate / 1e3:.0f} kB/s a connection"} for row in measured]
    return rows


def _run(
    entries: list[Entry], shapes: dict[str, checkpoints.Shape], origin: Origin, options: argparse.Namespace
) -> list[dict[str, Any]]:
    texts = options.only.split(",") if options.only else [""]
    entries = [entry for entry in entries if any(text in entry.label for text in texts)]
    for name, tool in NEEDS.items():
        if shutil.which(tool) is None and any(entry.contestant == name for entry in entries):
            print(f"skipped: {name} ({tool} is not installed)", file=sys.stderr)
            entries = [entry for entry in entries if entry.contestant != name]
    runs: list[list[dict[str, Any]]] = [[] for _ in entries]
    for round_ in report.rounds(options):
        for number, entry in enumerate(entries):
            origin.count()
            result = _run_one(entry, shapes[entry.shape], origin, options.work)
            result["connections"], result["requests"] = origin.count()
            runs[number].append(result)
            text = f"{entry.scheme} {entry.shape:5} {entry.label:36} {result['seconds']:6.2f} s"
            print(f"round {round_ + 1}/{options.rounds}  {text}", file=sys.stderr)
    rows = []
    for number, entry in enumerate(entries):
        row = report.medians(runs[number])
        row |= {
            "label": entry.label,
            "scheme": entry.scheme,
            "shape": entry.shape,
            "nbytes": shapes[entry.shape].nbytes,
        }
        rows.append(row)
    return rows


def _run_one(entry: Entry, shape: checkpoints.Shape, origin: Origin, work: Path) -> dict[str, Any]:
    job = {
        "repository": f"bench/{shape.name}",
        "endpoint": origin.endpoint(entry.scheme),
        "urls": [origin.data_url(entry.scheme, shape.name, file) for file in shape.files()],
        "nbytes": shape.nbytes,
        "ca": str(origin.ca),
        "target": str(work / "target"),
        **entry.options,
    }
    environment = {**os.environ, "SSL_CERT_FILE": str(origin.ca), "HF_HOME": str(work / "home"), "NO_PROXY": "*"}
    command = [sys.executable, "-m", "scripts.benchmark.contestants", entry.contestant, json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{entry.label} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
