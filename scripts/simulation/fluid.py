"""Bytes as a fluid: flows over links of fixed capacities, which they share max-min fairly.

Rates change when a flow starts, ends, stalls or catches up with the flow that it is fed by, and are constant in
between, so the model is exact from event to event (Bertsekas and Gallager, Data Networks, 6.5.2: max-min fairness).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_NEAR = 1e-9  # relative: two numbers this close are the same


def max_min_rates(paths: Ints, capacities: Floats, feeders: Ints | None = None, still: Any = None) -> Floats:
    """Rates of flows, in bytes a second: no flow can have more unless one with less or as much gets less.

    `paths`: for each flow the links that it crosses, shape (flows, links on a path); link 0 is no link and has room
    for everything. `feeders`: for each flow the row of another one that it must not outrun, or -1; a feeder stands
    before those that it feeds. `still`: flows that move nothing.

    Each round freezes the flows of every link that is the narrowest one for all of its flows: their rate is final,
    because what others leave on other links can no longer reach them. The narrowest link of all is always one.
    """
    count = len(paths)
    rates = np.zeros(count)
    open_ = np.ones(count, bool) if still is None else ~still
    room = capacities.astype(float)
    fed = np.flatnonzero(feeders >= 0) if feeders is not None else np.empty(0, np.int64)
    while open_.any():
        rows = np.flatnonzero(open_)
        links = paths[rows]
        users = np.bincount(links.ravel(), minlength=len(room))
        share = np.where(users > 0, room / np.maximum(users, 1), np.inf)
        level = rates.copy()
        level[rows] = share[links].min(axis=1)
        if feeders is not None:
            _hold_back(level, fed, feeders)
        narrow = level[rows, None] >= share[links] * (1 - _NEAR)
        narrowest = np.bincount(links.ravel(), weights=narrow.ravel(), minlength=len(room)) == users
        narrowest[0] = False
        final = (narrowest[links] & narrow).any(axis=1) | np.isinf(level[rows])
        if feeders is not None:
            feeder = feeders[rows]
            final |= (feeder >= 0) & ~open_[feeder] & (level[rows] >= rates[feeder] * (1 - _NEAR))
        rows = rows[final]
        rates[rows] = level[rows]
        open_[rows] = False
        spent = np.bincount(paths[rows].ravel(), weights=np.repeat(rates[rows], paths.shape[1]), minlength=len(room))
        room = np.maximum(room - np.where(np.isinf(room), 0, spent), 0)
    return rates


def _hold_back(level: Floats, fed: Ints, feeders: Ints) -> None:
    """No flow above the one that feeds it, through chains of any length."""
    while True:
        held = np.minimum(level[fed], level[feeders[fed]])
        if (held == level[fed]).all():
            return
        level[fed] = held


@dataclass
class Fluid:
    """Flows, moved from event to event.

    capacities: bytes a second of each link; link 0 is no link.
    quantum: seconds; what ends within it ends together, at its end. Zero is exact. No byte is lost or made up either
    way: a flow that ends early waits, so a time is at most one quantum a hop too long.
    connection: bytes a second of a connection, which those flows share that were added with the same one.
    carried: bytes that each link has carried.
    """

    capacities: Floats
    quantum: float = 0.0
    connection: float = np.inf
    now: float = 0.0
    carried: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.carried = np.zeros(len(self.capacities))
        self._paths = np.empty((0, 1), np.int64)
        self._ids = np.empty(0, np.int64)  # of the flows that are under way; rows of the arrays below
        self._size, self._moved, self._allowed = np.empty(0), np.empty(0), np.empty(0)
        self._feeder = np.empty(0, np.int64)  # an id, or -1
        self._connection = np.empty(0, np.int64)  # a number, or -1
        self._next = 0

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Ints:
        """Of the flows that are under way, ascending."""
        return self._ids

    def add(
        self,
        paths: Ints,
        size: Floats | float,
        *,
        feeder: Ints | None = None,
        allowed: Floats | None = None,
        connection: Ints | None = None,
    ) -> Ints:
        """Start flows of `size` bytes; their ids, ascending.

        `feeder`: ids of flows whose bytes these hand on. `allowed`: how far each may go for now, in bytes.
        `connection`: a number for each, not negative.
        """
        count = len(paths)
        ids = np.arange(self._next, self._next + count)
        self._next += count
        sizes = np.broadcast_to(np.asarray(size, float), count)
        self._paths = np.vstack([self._paths, paths]) if len(self._ids) else paths
        self._ids = np.concatenate([self._ids, ids])
        self._size = np.concatenate([self._size, sizes])
        self._moved = np.concatenate([self._moved, np.zeros(count)])
        self._allowed = np.concatenate([self._allowed, sizes if allowed is None else allowed])
        self._feeder = np.concatenate([self._feeder, np.full(count, -1) if feeder is None else feeder])
        self._connection = np.concatenate([self._connection, np.full(count, -1) if connection is None else connection])
        return ids

    def allow(self, ids: Ints, allowed: Floats) -> None:
        """Let flows that are under way go further."""
        self._allowed[self._rows(ids)] = allowed

    def moved(self, ids: Ints) -> Floats:
        """Bytes that flows under way have moved."""
        return self._moved[self._rows(ids)]

    def step(self, until: float = np.inf) -> Ints:
        """Go on to the next event, or to `until`: the ids of the flows that ended there.

        RuntimeError: nothing can ever happen again.
        """
        feeders, lag = self._feeders()
        still = self._moved >= self._allowed * (1 - _NEAR)
        tied = np.where(lag <= self._size * _NEAR, feeders, -1)
        paths, capacities = self._with_connections()
        rates = max_min_rates(paths, capacities, tied if (tied >= 0).any() else None, still)
        seconds = min(self._next_event(rates, feeders, tied, lag), until - self.now)
        if not np.isfinite(seconds):
            raise RuntimeError("the flows that are left wait for each other")
        seconds = min(max(seconds, self.quantum), until - self.now)
        moving = np.minimum(rates * seconds, self._allowed - self._moved)
        self._moved += moving
        width = self._paths.shape[1]
        self.carried += np.bincount(self._paths.ravel(), np.repeat(moving, width), minlength=len(self.carried))
        self.now += seconds
        ended = self._moved >= self._size * (1 - _NEAR)
        done = self._ids[ended]
        self._keep(~ended)
        return done

    def _with_connections(self) -> tuple[Ints, Floats]:
        """Paths and links, with a link more for each connection."""
        if np.isinf(self.connection) or not (self._connection >= 0).any():
            return self._paths, self.capacities
        numbers, own = np.unique(self._connection, return_inverse=True)
        links = np.where(self._connection >= 0, len(self.capacities) + own, 0)
        return np.column_stack([self._paths, links]), np.append(self.capacities, np.full(len(numbers), self.connection))

    def _rows(self, ids: Ints) -> Ints:
        return np.searchsorted(self._ids, ids)

    def _feeders(self) -> tuple[Ints, Floats]:
        """For each flow the row of its feeder, or -1 where that has ended, and by how many bytes it lags behind."""
        lag = np.full(len(self._ids), np.inf)
        rows = np.full(len(self._ids), -1)
        fed = np.flatnonzero(self._feeder >= 0)
        if fed.size:
            at = np.minimum(self._rows(self._feeder[fed]), len(self._ids) - 1)
            here = self._ids[at] == self._feeder[fed]
            fed, at = fed[here], at[here]
            rows[fed] = at
            lag[fed] = self._moved[at] - self._moved[fed]
        return rows, lag

    def _next_event(self, rates: Floats, feeders: Ints, tied: Ints, lag: Floats) -> float:
        """Seconds until a flow ends, reaches what it is allowed, or catches up with its feeder."""
        moving = rates > 0
        left = (self._allowed - self._moved)[moving] / rates[moving]
        soonest = float(left.min(initial=np.inf))
        behind = np.flatnonzero((feeders >= 0) & (tied < 0))
        gain = rates[behind] - rates[feeders[behind]]
        behind, gain = behind[gain > 0], gain[gain > 0]
        return min(soonest, float((lag[behind] / gain).min(initial=np.inf)))

    def _keep(self, kept: npt.NDArray[np.bool_]) -> None:
        self._paths = self._paths[kept]
        self._ids, self._size, self._moved = self._ids[kept], self._size[kept], self._moved[kept]
        self._allowed, self._feeder = self._allowed[kept], self._feeder[kept]
        self._connection = self._connection[kept]
