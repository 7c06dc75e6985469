"""How many round trips pass until the first byte of a shard is here, and until all is: scripts/bench start.

Hub and storage are half a second away, each behind a line of its own, and the files are small: what passes is waiting.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from . import checkpoints
from .line import Line
from .origin import Origin

DELAY = 0.5  # seconds of a round trip, beside which what a busy machine adds is little
SHAPES = (checkpoints.Shape("one", 1, 1), checkpoints.Shape("four", 4, 1))

_CODE = """
import json, shutil, sys, time
import asyncfetch.api.functions as api, asyncfetch.api.call
from asyncfetch.network.body import Body
job = json.loads(sys.argv[1])
first, count = [], Body._count
def counted(body, nbytes):
    if ".safetensors" in body.url and nbytes > 1000 and body.status in (200, 206) and "resolve" not in body.url:
        first.append(time.perf_counter())
    count(body, nbytes)
Body._count = counted
shutil.rmtree(job["target"], ignore_errors=True)
began = time.perf_counter()
api.load(job["repository"], endpoint=job["endpoint"], cache_dir=job["target"])
print(json.dumps({"first": first[0] - began, "all": time.perf_counter() - began}))
"""


def main(options: argparse.Namespace) -> None:
    """Print the least of all rounds: what is more is not the line's."""
    data = options.work / "start"
    for shape in SHAPES:
        checkpoints.make(data, shape)
    rows = []
    for scheme in options.schemes.split(","):
        for shape in SHAPES:
            rows.append({"scheme": scheme, "shape": shape.name, **_measured(scheme, shape, options)})
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(title="round trips of a first load")
    for column in ("", "to the first byte", "to the state dict", "connections", "requests"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = [f"{row[key]:.1f}" for key in ("first", "all", "connections", "requests")]
        table.add_row(f"{row['scheme']}, {row['shape']}", *figures)
    Console(width=110).print(table)


def _measured(scheme: str, shape: checkpoints.Shape, options: argparse.Namespace) -> dict[str, float]:
    data, work = options.work / "start", options.work / "nginx-start"
    with Line(DELAY) as hub, Line(DELAY) as storage, Origin(data, work, data_port=storage.port) as origin:
        hub.connect(origin.ports[scheme])
        storage.connect(origin.ports[scheme + "_data"])
        job = {
            "endpoint": f"{scheme}://127.0.0.1:{hub.port}",
            "repository": f"bench/{shape.name}",
            "target": str(options.work / "target"),
        }
        origin.count()
        runs = [_load(job, str(origin.ca)) for _ in range(options.rounds)]
        connections, requests = origin.count()
    row = {key: min(run[key] for run in runs) / DELAY for key in ("first", "all")}
    return row | {"connections": connections / options.rounds, "requests": requests / options.rounds}


def _load(job: dict[str, Any], ca: str) -> dict[str, float]:
    environment = {"SSL_CERT_FILE": ca, "NO_PROXY": "*", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", _CODE, json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    result: dict[str, float] = json.loads(done.stdout)
    return result
