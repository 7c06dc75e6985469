"""A fan-out tree for each object: who has it hands it on to few, in the order in which it came.

The trees of two objects have other inner nodes, so that all links work (as in SplitStream,
https://www.cs.rice.edu/~druschel/publications/splitstream-sosp.pdf). A tree leads from rack to rack first, so that each
object enters a rack once.
"""

from __future__ import annotations

import numpy as np

from .fluid import Ints
from .objects import Objects, rank_within
from .site import Outcome, Setting, Site


def fanned_out(setting: Setting, nodes: int, *, width: int = 3, lanes: int = 10, seed: int = 7) -> Outcome:
    """`width`: children in a tree; `lanes`: how many objects a node sends at once."""
    fan = FanOut(Objects(setting, nodes), width, lanes, np.random.default_rng(seed))
    while not fan.objects.held.all():
        fan.step()
    return fan.objects.outcome("fan-out trees")


class FanOut:
    """Who is sent what.

    sending: rows of (source, sink, object) that are under way.
    """

    def __init__(self, objects: Objects, width: int, lanes: int, random: np.random.Generator) -> None:
        self.objects, self._lanes = objects, lanes
        nodes = objects.site.nodes
        roots = np.repeat(objects.fetcher, objects.site.setting.groups)
        edges = [edges_of_tree(objects.site, root, number, width, random) for number, root in enumerate(roots)]
        keys = np.concatenate([number * nodes + tree[:, 0] for number, tree in enumerate(edges)])
        order = np.argsort(keys, kind="stable")
        self._keys, self._sinks = keys[order], np.concatenate(edges)[order, 1]
        # Rows like those of `sending`, in the order in which they became possible.
        self._waiting: Ints = np.empty((0, 3), np.int64)
        self.sending: Ints = np.empty((0, 3), np.int64)
        self._ids: Ints = np.empty(0, np.int64)

    def step(self) -> None:
        """To the next event, and what follows from it."""
        objects = self.objects
        done = objects.step()
        nodes, what = objects.fetched(done)
        ended = np.isin(self._ids, done)
        arrived = self.sending[ended]
        self._ids, self.sending = self._ids[~ended], self.sending[~ended]
        objects.land(np.concatenate([nodes, arrived[:, 1]]), np.concatenate([what, arrived[:, 2]]))
        self._waiting = np.concatenate([self._waiting, self._next_hops(*objects.hear())])
        busy = np.bincount(self.sending[:, 0], minlength=objects.site.nodes)
        sources = self._waiting[:, 0]
        now = rank_within(sources) < self._lanes - busy[sources]
        begun = self._waiting[now]
        self._waiting = self._waiting[~now]
        self._ids = np.concatenate([self._ids, objects.send(begun[:, 0], begun[:, 1], objects.nbytes)])
        self.sending = np.concatenate([self.sending, begun])

    def _next_hops(self, nodes: Ints, what: Ints) -> Ints:
        """The rows that nodes which hold an object now have to send."""
        keys = what * self.objects.site.nodes + nodes
        first = np.searchsorted(self._keys, keys, side="left")
        counts = np.searchsorted(self._keys, keys, side="right") - first
        rows = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        return np.stack([np.repeat(nodes, counts), self._sinks[rows], np.repeat(what, counts)], axis=1)


def edges_of_tree(site: Site, root: int, number: int, width: int, random: np.random.Generator) -> Ints:
    """The tree of object `number`, as rows of (parent, child), from rack to rack before within one."""
    nodes, size = site.nodes, site.setting.rack
    own = root // size
    starts = np.arange(site.racks) * size
    sizes = np.minimum(size, nodes - starts)
    leaders = starts + number % sizes
    leaders[own] = root
    others = random.permutation(np.delete(np.arange(site.racks), own))
    chain = leaders[np.concatenate([[own], others])]
    edges = [_heap(chain, width)]
    for start, count, leader in zip(starts, sizes, leaders, strict=True):
        rest = random.permutation(np.delete(np.arange(start, start + count), leader - start))
        edges.append(_heap(np.append(leader, rest), width))
    return np.concatenate(edges)


def _heap(order: Ints, width: int) -> Ints:
    """Rows of (parent, child): each but the first is the child of an earlier one, which has at most `width`."""
    places = np.arange(1, len(order))
    return np.stack([order[(places - 1) // width], order[places]], axis=1)
