"""Ray's object store: each node pulls each object from a holder that it draws by lot.

The rules are those of Ray's pull and push managers
(https://github.com/ray-project/ray/tree/master/src/ray/object_manager): a node asks as soon as it hears of a first
holder, so all ask the same one (https://github.com/ray-project/ray/issues/2945); a holder serves all who ask in turns;
who still waits after 10, 30, 70... seconds draws again, and what it asked for before is sent all the same, from the
beginning (https://github.com/ray-project/ray/issues/56523).
"""

from __future__ import annotations

import numpy as np

from .fluid import Floats, Ints
from .objects import Objects, rank_within
from .site import Outcome, Setting


def pulled_at_will(
    setting: Setting,
    nodes: int,
    *,
    at_once: int | None = None,
    admitted: int | None = None,
    first: int = 0,
    seed: int = 7,
) -> Outcome:
    """Every node asks for `at_once` objects at a time (None: all), each beginning elsewhere in the checkpoint.

    `admitted`: for each holder of an object that is known so many nodes may ask for it, but `first` of them in any
    case, and the others are told to wait; None: all may.
    """
    pulls = Pulls(Objects(setting, nodes), at_once, np.random.default_rng(seed), admitted, first)
    while not pulls.objects.held.all():
        pulls.step()
    many = "everything" if at_once is None else f"{at_once} objects"
    how = f"{many} at once" if admitted is None else f"{admitted} for each holder, {first} at first"
    return pulls.objects.outcome(f"Ray's store, {how}")


class Pulls:
    """What the nodes ask each other for.

    asked: which node waits for which object; bool, shape (nodes, objects), as for all tables here.
    tries: how often it has asked a holder so far; zero while it does not know one, or is not admitted.
    """

    def __init__(
        self,
        objects: Objects,
        at_once: int | None,
        random: np.random.Generator,
        admitted: int | None = None,
        first: int = 0,
    ) -> None:
        self.objects, self._random, self._admitted, self._first = objects, random, admitted, first
        shape = objects.held.shape
        self._at_once = objects.count if at_once is None else at_once
        self.asked = np.zeros(shape, bool)
        self._again_at = np.full(shape, np.inf)  # when it asks again
        self.tries = np.zeros(shape, np.int64)
        self._next = np.zeros(shape[0], np.int64)  # how many of its objects a node has looked at
        self._open = np.zeros(shape[0], np.int64)  # how many it waits for
        self._own = np.zeros(shape, bool)  # what it downloads itself
        self._own[np.repeat(objects.fetcher, objects.site.setting.groups), np.arange(objects.count)] = True
        self._flow_ids: Ints = np.empty(0, np.int64)
        self._flows: Ints = np.empty((0, 3), np.int64)  # node, object, source
        self._twice: Floats = np.empty(0)  # bytes that a holder sends once more behind those that count
        self._ask_for_more(np.arange(shape[0]))

    def step(self) -> None:
        """To the next event, and what follows from it."""
        objects = self.objects
        done = objects.step(float(self._again_at.min()))
        nodes, what = objects.fetched(done)
        ended = np.isin(self._flow_ids, done)
        flows, twice = self._flows[ended], self._twice[ended]
        self._flow_ids, self._flows, self._twice = self._flow_ids[~ended], self._flows[~ended], self._twice[~ended]
        again = twice > 0
        objects.send(flows[again, 2], flows[again, 0], twice[again])  # wasted: nobody waits for it
        flows = _first_of_each(flows[~objects.held[flows[:, 0], flows[:, 1]]], objects.count)
        objects.land(np.concatenate([nodes, flows[:, 0]]), np.concatenate([what, flows[:, 1]]))
        self._again_at[flows[:, 0], flows[:, 1]] = np.inf
        self.asked[flows[:, 0], flows[:, 1]] = False
        np.subtract.at(self._open, flows[:, 0], 1)
        self._ask_for_more(np.unique(flows[:, 0]))
        objects.hear()
        self._pull(*self._may_begin())
        self._pull(*np.nonzero(self._again_at <= objects.fluid.now))

    def _may_begin(self) -> tuple[Ints, Ints]:
        """Nodes that have not asked yet, and the objects for which they may."""
        known, begun = self.objects.known, self.tries > 0
        nodes, what = np.nonzero(self.asked & ~begun & (known > 0))
        if self._admitted is None or not nodes.size:
            return nodes, what
        order = self._random.permutation(len(nodes))
        nodes, what = nodes[order], what[order]
        room = np.maximum(self._admitted * known, self._first) - (self.asked & begun).sum(axis=0)
        chosen = rank_within(what) < room[what]
        return nodes[chosen], what[chosen]

    def _ask_for_more(self, nodes: Ints) -> None:
        """Fill the nodes' places with what comes next in their order."""
        count = self.objects.count
        while nodes.size:
            nodes = nodes[(self._open[nodes] < self._at_once) & (self._next[nodes] < count)]
            what = (nodes + self._next[nodes]) % count
            self._next[nodes] += 1
            wanted = ~self._own[nodes, what]
            self.asked[nodes[wanted], what[wanted]] = True
            self._open[nodes[wanted]] += 1

    def _pull(self, nodes: Ints, what: Ints) -> None:
        """Ask a holder that is drawn by lot; one that sends already sends all of it again."""
        if not nodes.size:
            return
        objects, nodes_in_all = self.objects, self.objects.site.nodes
        lots = (self._random.random(len(nodes)) * objects.known[what]).astype(np.int64)
        sources = objects.holders[what, lots]
        self._again_at[nodes, what] = objects.fluid.now + objects.site.setting.patience * 2.0 ** self.tries[nodes, what]
        self.tries[nodes, what] += 1
        keys = (nodes * objects.count + what) * nodes_in_all + sources
        sent = (self._flows[:, 0] * objects.count + self._flows[:, 1]) * nodes_in_all + self._flows[:, 2]
        repeated = np.isin(sent, keys)
        self._twice[repeated] = objects.fluid.moved(self._flow_ids[repeated])
        new = ~np.isin(keys, sent)
        ids = objects.send(sources[new], nodes[new], objects.nbytes)
        self._flow_ids = np.concatenate([self._flow_ids, ids])
        self._flows = np.concatenate([self._flows, np.stack([nodes[new], what[new], sources[new]], axis=1)])
        self._twice = np.concatenate([self._twice, np.zeros(len(ids))])


def _first_of_each(flows: Ints, count: int) -> Ints:
    """Of flows that brought the same object to the same node in one moment, the first."""
    return flows[rank_within(flows[:, 0] * count + flows[:, 1]) == 0]
