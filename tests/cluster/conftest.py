"""Three real raylets of Ray on addresses of this machine, one cluster for all tests here; each has its own cache."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from asyncfetch.policy import Policy

from ..kit.fault_server import FaultServer, Repository

# A node that is dead is seen to be within seconds; one that is only busy is given ten.
SOON = {"health_check_period_ms": 1000, "health_check_failure_threshold": 2, "health_check_timeout_ms": 5000}
STORE = 100 << 20  # bytes of each node's object store
# One connection for each file: of several, one may be sent what another has taken over, and then no count is exact.
CALM = Policy(connections=1, backoff=0.01, max_backoff=0.05, patience=0, connect_timeout=20, read_timeout=20)


@dataclass
class Raylets:
    """The cluster. `run` runs a function in a worker at a node, and returns what it returns."""

    ray: Any
    cluster: Any
    root: Path
    last: int = 1
    homes: dict[str, Path] = field(default_factory=dict)  # by the ids of nodes
    raylets: dict[str, Any] = field(default_factory=dict)

    def add(self, **options: Any) -> str:
        """Start a node, and return its id."""
        self.last += 1  # never 127.0.0.1, which Ray takes for the address of the network
        before, home = set(self.alive()) if self.ray.is_initialized() else set(), self.root / f"node{self.last}"
        raylet = self.cluster.add_node(
            node_ip_address=f"127.0.0.{self.last}",
            num_cpus=2,
            **{"object_store_memory": STORE, **options},
            include_dashboard=False,
            env_vars={"HF_HOME": str(home)},
        )
        if not self.ray.is_initialized():
            self.ray.init(address=self.cluster.address, log_to_driver=False)
        self.cluster.wait_for_nodes()
        (node,) = set(self.alive()) - before
        self.homes[node], self.raylets[node] = home, raylet
        return str(node)

    def kill(self, node: str) -> None:
        """Kill a node as a machine dies that loses its power."""
        self.cluster.remove_node(self.raylets.pop(node), allow_graceful=False)

    def alive(self) -> list[str]:
        return [row["NodeID"] for row in self.ray.nodes() if row["Alive"]]

    def run(self, node: str, function: Callable[..., Any], *arguments: Any) -> Any:
        strategy = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        return self.ray.get(self.ray.remote(function).options(scheduling_strategy=strategy).remote(*arguments))

    def snapshots(self, node: str, repo: str) -> dict[str, bytes]:
        """What the cache of a node has of a repository, by names."""
        found = {}
        for path in (self.homes[node] / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots").glob("*/**/*"):
            if path.is_file():
                found[path.as_posix().split("/snapshots/")[1].partition("/")[2]] = path.read_bytes()
        return found


@pytest.fixture(scope="package")
def raylets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raylets]:
    """The cluster of these tests, with three nodes; it ends before other tests count threads and memory."""
    ray = pytest.importorskip("ray")
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("raylets")
    patch.setenv("HOME", str(root / "home"))  # where Ray leaves the token of its own that local clusters use
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    for name in [name for name in os.environ if name.upper().startswith(("HF_", "HUGGING"))]:
        patch.delenv(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray.util.scheduling_strategies
        from ray.cluster_utils import Cluster

        found = Raylets(ray, Cluster(), root)
        try:
            found.add(_system_config=SOON)
            for _ in range(2):
                found.add()
            yield found
        finally:
            ray.shutdown()
            found.cluster.shutdown()
            patch.undo()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What Ray leaves open is not what is tested, and that JAX, where it was used before, warns of forks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"os\.fork", RuntimeWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def sent(server: FaultServer, repository: Repository) -> dict[str, int]:
    """How many bytes of each file behind links were sent so far."""
    return {name: server.sent(path) for name, path in repository.storage.items()}
