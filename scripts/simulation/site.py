"""What is simulated: a checkpoint, a site with nodes in racks, and what the Hub allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .fluid import Floats, Fluid, Ints

GBIT = 1e9 / 8  # bytes a second


@dataclass(frozen=True)
class Setting:
    """Numbers of a site, each with where its default comes from. Rates are bytes a second.

    nbytes, shards: Llama 3.1 70B in BF16 (https://huggingface.co/meta-llama/Llama-3.1-70B).
    piece: the largest object that travels from node to node, in bytes.
    node: the link of a node, each way: EC2 g5.48xlarge (https://aws.amazon.com/ec2/instance-types/g5/).
    internet: what a node can have from outside, half of its link; connection: what one TCP connection between two
        nodes can have (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-network-bandwidth.html).
    rack: nodes in a rack; uplink: of a rack, each way: 16 x 100 Gbit/s
        (https://engineering.fb.com/2019/03/14/data-center-engineering/f16-minipack/), here for 32 nodes.
    line: from the Hub to the site: a port of 100 Gbit/s (https://aws.amazon.com/directconnect/features/).
    quota, window: requests for files that the Hub answers in so many seconds, for a user of the free plan
        (https://huggingface.co/docs/hub/rate-limits).
    owner: location updates a second that the process that owns all objects takes in. As many as the tasks that one
        process can start (https://github.com/ray-project/ray/blob/master/release/perf_metrics/microbenchmark.json).
    patience: seconds after which Ray asks for an object again, doubled each time (object_manager_pull_timeout_ms in
        https://github.com/ray-project/ray/blob/master/src/ray/common/ray_config_def.h).
    """

    nbytes: float = 141.1e9
    shards: int = 30
    piece: float = 4e9
    node: float = 100 * GBIT
    internet: float = 50 * GBIT
    connection: float = 10 * GBIT
    rack: int = 32
    uplink: float = 1600 * GBIT
    line: float = 100 * GBIT
    quota: int = 5000
    window: float = 300.0
    owner: float = 8000.0
    patience: float = 10.0

    @property
    def groups(self) -> int:
        """Into how many objects of one size a shard is cut: as few as `piece` allows."""
        return math.ceil(self.nbytes / self.shards / self.piece)

    @property
    def requests(self) -> int:
        """Requests of one download that count for the quota: the index, and the link of each shard."""
        return self.shards + 1


class Site:
    """The links of `nodes` nodes, by number, and the paths over them. All arrays are int64.

    `services`: machines beside the nodes, with links like theirs: one in each rack, and after these one more that is
    in no rack.
    """

    KINDS = ("the line to the Hub", "a node's way to the Internet", "a node, in", "a node, out", "a rack, in")
    KINDS += ("a rack, out", "a service's way to the Internet", "a service, in", "a service, out")

    def __init__(self, setting: Setting, nodes: int, *, services: bool = False) -> None:
        self.setting, self.nodes = setting, nodes
        self.racks = math.ceil(nodes / setting.rack)
        count = self.racks + 1 if services else 0
        sizes = [1, nodes, nodes, nodes, self.racks, self.racks, count, count, count]
        near, far = 2 * [setting.node], setting.internet
        rates = [setting.line, far, *near, *2 * [setting.uplink], far, *near]
        self.capacities: Floats = np.concatenate([[np.inf], np.repeat(rates, sizes).astype(float)])
        self.first = dict(zip(self.KINDS, 1 + np.concatenate([[0], np.cumsum(sizes)[:-1]]), strict=True))
        self.kinds = np.concatenate([[-1], np.repeat(np.arange(len(sizes)), sizes)])

    def rack_of(self, nodes: Ints) -> Ints:
        return nodes // self.setting.rack

    def link(self, kind: str, numbers: Ints) -> Ints:
        return self.first[kind] + numbers

    def from_hub(self, nodes: Ints) -> Ints:
        """The paths from the Hub to nodes."""
        line = np.full(len(nodes), self.first["the line to the Hub"])
        outside = self.link("a node's way to the Internet", nodes)
        rack = self.link("a rack, in", self.rack_of(nodes))
        return np.stack([line, outside, self.link("a node, in", nodes), rack], axis=1)

    def between(self, sources: Ints, sinks: Ints) -> Ints:
        """The paths from nodes to nodes; those in one rack share its switch and not its uplink."""
        out, into = self.rack_of(sources), self.rack_of(sinks)
        leaves = np.where(out == into, 0, self.link("a rack, out", out))
        enters = np.where(out == into, 0, self.link("a rack, in", into))
        return np.stack([self.link("a node, out", sources), leaves, enters, self.link("a node, in", sinks)], axis=1)

    def fluid(self, quantum: float = 0.0) -> Fluid:
        return Fluid(self.capacities, quantum, self.setting.connection)


@dataclass(frozen=True)
class Outcome:
    """What one way of bringing the checkpoint to all nodes takes.

    egress: bytes that the Hub sent. seconds: until the last node has all. requests: that count for the quota.
    wasted: bytes that nodes were sent twice. updates: location updates that the owner took in.
    hottest: what was busiest, and for which part of the time, 0 to 1.
    """

    way: str
    nodes: int
    seconds: float
    egress: float
    requests: int
    wasted: float
    updates: int
    hottest: str
    load: float

    @classmethod
    def of(cls, way: str, site: Site, fluid: Fluid, *, requests: int, wasted: float = 0.0, updates: int = 0) -> Outcome:
        """Read off when all is done."""
        setting, seconds = site.setting, fluid.now
        loads = fluid.carried[1:] / site.capacities[1:] / seconds
        busiest = int(loads.argmax())
        found = {Site.KINDS[site.kinds[1 + busiest]]: float(loads[busiest])}
        windows = math.ceil(requests / setting.quota)
        if windows > 1:  # the last window is not waited for
            found["the Hub's quota of requests"] = min(1.0, (windows - 1) * setting.window / seconds)
        if updates:
            found["the owner's location updates"] = min(1.0, updates / setting.owner / seconds)
        hottest = max(found, key=lambda name: found[name])
        egress = float(fluid.carried[site.first["the line to the Hub"]])
        return cls(way, site.nodes, seconds, egress, requests, wasted, updates, hottest, found[hottest])
