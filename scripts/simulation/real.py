"""scripts/simulate --real: the model beside the real thing, with 2 to 4 nodes on this machine.

Each node is a network namespace with a link of its own, of which the kernel lets little through each way (tbf), so
that links are what limits. It needs Linux, root, `ip`, `tc`, and the extras ray and serve. What is measured is when the
bytes passed, by the counters of the links: from the first to the last, without the start of processes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from .services import each_from_hub, service_per_rack
from .site import Outcome, Setting
from .store import pulled_at_will

RATE = 6e6  # bytes a second of each link, each way
PAYLOAD = 1448 / 1514  # of what a link carries: the rest are headers of TCP, IP and Ethernet
SHARDS, SHARD_BYTES = 8, 16_000_000
HUB, SERVICE = "hub", "service"
_NET = "10.99.7"
_RAYLET = 6400  # the port of each node's raylet
_STEP = 0.05  # seconds between two looks at the counters
_TALK = 0.01  # of the bytes: so many may be talk, and not the checkpoint

SETTING = Setting(
    nbytes=SHARDS * SHARD_BYTES,
    shards=SHARDS,
    node=RATE * PAYLOAD,
    line=RATE * PAYLOAD,
    internet=float("inf"),
    connection=float("inf"),
    uplink=float("inf"),
)
LOAD = """
import sys, time, asyncfetch.cluster, ray
ray.init(address=sys.argv[1], log_to_driver=False)
deadline = time.monotonic() + 120
while sum(row["Alive"] for row in ray.nodes()) < int(sys.argv[3]):
    if time.monotonic() > deadline:
        sys.exit("not all nodes came")
    time.sleep(0.2)
with asyncfetch.cluster.load("org/model", endpoint=sys.argv[2], token=False) as held:
    print(held.downloaded)
"""


class Namespaces:
    """Namespaces on one bridge. `run` starts a program at one of them."""

    def __init__(self, names: list[str], folder: Path) -> None:
        self.folder = folder
        self.address = {name: f"{_NET}.{number}" for number, name in enumerate(names, 2)}
        self._bridge = f"sim{os.getpid() % 10000}"
        self._running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Namespaces:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")
        for name, address in self.address.items():
            space, outside = self._space(name), self._link(name)
            _ip("netns", "add", space)
            _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", outside, "master", self._bridge, "up")
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", space, "link", "set", device, "up")
            limit = ["root", "tbf", "rate", f"{RATE * 8:.0f}bit", "burst", "64kb", "latency", "200ms"]
            # Each packet by itself: of many in one, tbf and the counters see one header.
            _ip("link", "set", outside, "gso_max_segs", "1")
            _ip("-n", space, "link", "set", "eth0", "gso_max_segs", "1")
            _run("tc", "qdisc", "add", "dev", outside, *limit)
            _run("tc", "-n", space, "qdisc", "add", "dev", "eth0", *limit)
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running):
            _end(process)
        for name in self.address:
            subprocess.run(["ip", "netns", "del", self._space(name)], check=False)
        subprocess.run(["ip", "link", "del", self._bridge], check=False)

    def run(self, name: str, *command: str) -> subprocess.Popen[str]:
        home = self.folder / name
        home.mkdir(exist_ok=True)
        environment = {**os.environ, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "NO_PROXY": "*"}
        environment |= {"HF_HOME": str(home / "hf"), "RAY_AUTH_MODE": "disabled"}
        environment["RAY_raylet_start_wait_time_s"] = "120"  # of a machine that does other things too
        with open(home / "log", "a") as log:
            whole = ["ip", "netns", "exec", self._space(name), *command]
            process = subprocess.Popen(
                whole, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
        self._running.append(process)
        return process

    def arrived(self) -> dict[str, int]:
        """Bytes that each namespace was sent, headers included."""
        return {name: self._counter(name, "tx_bytes") for name in self.address}

    def left(self, name: str) -> int:
        """Bytes that a namespace has sent."""
        return self._counter(name, "rx_bytes")

    def _counter(self, name: str, kind: str) -> int:
        return int(Path(f"/sys/class/net/{self._link(name)}/statistics/{kind}").read_text())

    def _space(self, name: str) -> str:
        return f"{self._bridge}-{name}"

    def _link(self, name: str) -> str:
        return f"{self._bridge}-{name[:3]}{name[-1]}"


def main() -> None:
    """Print the table: what the model says, and what was measured."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "tc"))):
        raise SystemExit("scripts/simulate --real needs root, ip and tc")
    if find_spec("ray") is None:
        raise SystemExit("scripts/simulate --real needs Ray: .venv/bin/pip install 'ray>=2.55'")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was made is removed
    print("| nodes | way | model, s | measured, s | egress, model | measured |")
    print("|---:|---|---:|---:|---:|---:|")
    for nodes in (2, 3, 4):
        for model, measure in WAYS:
            expected = model(SETTING, nodes)
            with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
                seconds, egress = measure(Path(folder), nodes)
            print(
                f"| {nodes} | {expected.way} | {expected.seconds:.1f} | {seconds:.1f} | "
                f"x{expected.egress / SETTING.nbytes:.2f} | x{egress / SETTING.nbytes:.2f} |",
                flush=True,
            )


def _each_from_hub(folder: Path, nodes: int) -> tuple[float, float]:
    with _served(folder, nodes) as (bench, url, names):
        return _timed(bench, names, [_download(bench, name, url) for name in names])


def _service(folder: Path, nodes: int) -> tuple[float, float]:
    with _served(folder, nodes) as (bench, url, names):
        cache = str(folder / "cache")
        own = bench.address[SERVICE]
        bench.run(SERVICE, *_ours(), "serve", "--upstream", url, "--cache-dir", cache, "--host", own)
        here = f"http://{own}:8000"
        _wait_for(bench, HUB, here)
        return _timed(bench, names, [_download(bench, name, here) for name in names])


def _ray(folder: Path, nodes: int) -> tuple[float, float]:
    with _served(folder, nodes) as (bench, url, names):
        head = f"{bench.address[names[0]]}:6379"
        for name in names:  # one after the other, since they share a folder
            address = bench.address[name]
            start = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--node-ip-address={address}"]
            start += ["--object-store-memory=400000000", "--num-cpus=2", f"--node-manager-port={_RAYLET}"]
            first = ["--head", "--include-dashboard=false", f"--temp-dir={folder}/r", "--port=6379"]
            bench.run(name, *start, *(first if name == names[0] else [f"--address={head}"]))
            _until(bench, HUB, f"import socket; socket.create_connection(('{address}', {_RAYLET}), 5)", address)
        return _timed(bench, names, [bench.run(names[0], sys.executable, "-c", LOAD, head, url, str(nodes))])


WAYS: list[tuple[Callable[[Setting, int], Outcome], Callable[[Path, int], tuple[float, float]]]] = [
    (each_from_hub, _each_from_hub),
    (service_per_rack, _service),
    (pulled_at_will, _ray),
]


@contextmanager
def _served(folder: Path, nodes: int) -> Iterator[tuple[Namespaces, str, list[str]]]:
    """Nodes, and a Hub that serves a checkpoint to them."""
    names = [f"node{number}" for number in range(nodes)]
    _make(folder / "models/org/model")
    with Namespaces([HUB, SERVICE, *names], folder) as bench:
        bench.run(HUB, *_ours(), "serve", str(folder / "models"), "--host", bench.address[HUB])
        url = f"http://{bench.address[HUB]}:8000"
        _wait_for(bench, SERVICE, url)
        yield bench, url, names


def _make(folder: Path) -> None:
    """A checkpoint of random bytes, in shards of one size."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(7)
    weight_map = {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {f"layers.{number}.{part}": random.integers(0, 256, SHARD_BYTES // 4, np.uint8) for part in range(4)}
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _ours() -> list[str]:
    return [sys.executable, "-m", "asyncfetch"]


def _download(bench: Namespaces, name: str, url: str) -> subprocess.Popen[str]:
    where = str(bench.folder / name / "hub")
    return bench.run(name, *_ours(), "download", "org/model", "--endpoint", url, "--cache-dir", where, "--quiet")


def _wait_for(bench: Namespaces, name: str, url: str) -> None:
    """Until a server knows the hashes of its files, asked from another namespace."""
    ask = f"import urllib.request as u; u.urlopen('{url}/api/models/org/model/revision/main', timeout=60).read()"
    _until(bench, name, ask, url)


def _until(bench: Namespaces, name: str, code: str, what: str) -> None:
    """Until a line of Python succeeds in a namespace."""
    for _ in range(60):
        if not bench.run(name, sys.executable, "-c", code).wait():
            return
        time.sleep(1)
    raise SystemExit(f"{what} does not answer")


def _timed(bench: Namespaces, names: list[str], processes: list[subprocess.Popen[str]]) -> tuple[float, float]:
    """Seconds from the Hub's first bytes until every node has all, and what the Hub sent, without headers."""
    before, sent_before = bench.arrived(), bench.left(HUB)
    begun = ended = None
    while any(process.poll() is None for process in processes):
        time.sleep(_STEP)
        now = bench.arrived()
        if begun is None and bench.left(HUB) - sent_before > SETTING.nbytes * _TALK:
            begun = time.monotonic()
        if sum(now[name] - before[name] for name in names) * PAYLOAD < len(names) * SETTING.nbytes * (1 - _TALK):
            ended = time.monotonic()
    if any(process.returncode for process in processes) or begun is None or ended is None:
        logs = "".join((bench.folder / name / "log").read_text()[-2000:] for name in names)
        raise SystemExit(f"a program failed:\n{logs}")
    return ended - begun, (bench.left(HUB) - sent_before) * PAYLOAD


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")


def _end(process: subprocess.Popen[str]) -> None:
    """The process and all that it started, which are one session."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(8)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
