"""The checkpoint as objects in the nodes' stores: who holds which, and who has heard of it."""

from __future__ import annotations

import numpy as np

from .fluid import Floats, Ints
from .site import Outcome, Setting, Site

_FEW = 50  # up to so many nodes each event counts


class Objects:
    """Which node holds which object. One is held, and can be handed on, once it is whole, as in Ray's store.

    Shards are downloaded from the Hub by as many nodes as there are, spread over all racks, and are cut into `groups`
    objects there. Of a new holder others hear when the owner has taken the update in; it takes one at a time.

    held: bool, shape (nodes, objects).
    holders: nodes, shape (objects, nodes): the first `known` of each row are those that everybody has heard of.
    """

    def __init__(self, setting: Setting, nodes: int) -> None:
        self.site = Site(setting, nodes)
        self.count = setting.shards * setting.groups
        self.nbytes = setting.nbytes / self.count
        self.fluid = self.site.fluid()
        self._least_quantum = 0.0 if nodes <= _FEW else self.nbytes / min(setting.node, setting.connection) / 20
        self.held = np.zeros((nodes, self.count), bool)
        self.holders = np.zeros((self.count, nodes), np.int64)
        self.known = np.zeros(self.count, np.int64)
        shards = np.arange(setting.shards)
        self.fetcher = shards * nodes // setting.shards if nodes >= setting.shards else shards % nodes
        self._downloads = self.fluid.add(self.site.from_hub(self.fetcher), setting.nbytes / setting.shards)
        self._news_at: Floats = np.empty(0)
        self._news: Ints = np.empty((0, 2), np.int64)
        self.updates = 0

    def step(self, until: float = np.inf) -> Ints:
        """To the next event, news among them, or to `until`: the flows that ended there.

        With more than a few nodes events that are close together count as one: within a twentieth of what an object
        takes at least, and within 1/500 of the time that has passed.
        """
        if self._least_quantum:
            self.fluid.quantum = max(self._least_quantum, self.fluid.now / 500)
        return self.fluid.step(min(until, self._next_news()))

    def fetched(self, done: Ints) -> tuple[Ints, Ints]:
        """The nodes and the objects of those flows among `done` that were downloads from the Hub."""
        groups = self.site.setting.groups
        shards = np.flatnonzero(np.isin(self._downloads, done))
        objects = (shards[:, None] * groups + np.arange(groups)).ravel()
        return np.repeat(self.fetcher[shards], groups), objects

    def land(self, nodes: Ints, objects: Ints) -> None:
        """Nodes now hold objects, and tell the owner."""
        self.held[nodes, objects] = True
        self.updates += len(nodes)
        begin = max(self.fluid.now, self._news_at[-1] if len(self._news_at) else 0.0)
        times = begin + np.arange(1, len(nodes) + 1) / self.site.setting.owner
        self._news_at = np.concatenate([self._news_at, times])
        self._news = np.concatenate([self._news, np.stack([nodes, objects], axis=1)])

    def hear(self) -> tuple[Ints, Ints]:
        """What the owner has taken in by now: nodes and objects."""
        count = int(np.searchsorted(self._news_at, self.fluid.now * (1 + 1e-12), side="right"))
        news, self._news, self._news_at = self._news[:count], self._news[count:], self._news_at[count:]
        nodes, objects = news[:, 0], news[:, 1]
        ranks = rank_within(objects)
        self.holders[objects, self.known[objects] + ranks] = nodes
        self.known += np.bincount(objects, minlength=self.count)
        return nodes, objects

    def _next_news(self) -> float:
        """When there is something to hear, in seconds; those within a quantum come together."""
        return max(float(self._news_at[0]), self.fluid.now + self.fluid.quantum) if len(self._news_at) else np.inf

    def send(self, sources: Ints, sinks: Ints, nbytes: Floats | float) -> Ints:
        """Flows from nodes to nodes. Those between the same two share a connection."""
        pair = sources * self.site.nodes + sinks
        return self.fluid.add(self.site.between(sources, sinks), nbytes, connection=pair)

    def outcome(self, way: str) -> Outcome:
        """Once all nodes hold all."""
        site, setting = self.site, self.site.setting
        first = site.first["a node, in"]
        arrived = float(self.fluid.carried[first : first + site.nodes].sum())
        wasted = max(arrived - site.nodes * setting.nbytes, 0.0)
        return Outcome.of(way, site, self.fluid, requests=setting.requests, wasted=wasted, updates=self.updates)


def rank_within(groups: Ints) -> Ints:
    """For each element how many equal ones stand before it."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    first = np.searchsorted(ordered, ordered, side="left")
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - first
    return ranks
