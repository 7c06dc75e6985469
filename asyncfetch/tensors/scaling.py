"""Scaled weights on their way out of a checkpoint: refused where they would be cast alone, else given their numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..errors import SourceError
from ..format.dequantize import dequantized
from ..format.dtypes import Array, cast
from ..format.hostile import short_repr
from ..format.scaled import ScaledWeight, refuse_foreign
from ..sources.located import Located
from ..tasks import off_loop, run_as_task
from .reader import Reader, stream_closed
from .scaled import scaled_in

__all__ = [
    "ScaledReader",
    "Scaling",
    "cast_alone",
    "copied_alone",
    "refuse_plain_cast",
    "refuse_plain_copy",
    "scaling_of",
]


def refuse_plain_cast(located: Located, target: np.dtype[Any]) -> None:
    """Raise SourceError if a selected tensor counts only times its scale, and is to be cast to `target`."""
    for found in scaled_in(located, located.wanted.weight_map):
        raise cast_alone(found, target)


def refuse_plain_copy(located: Located) -> None:
    """Raise SourceError if a selected tensor counts only times its scale, and is to be copied into a model's dtypes."""
    for found in scaled_in(located, located.wanted.weight_map):
        raise copied_alone(found)


def copied_alone(found: ScaledWeight) -> SourceError:
    """The error for a weight that would be copied into a model without its scale."""
    stored = "assign=True for a model that takes what is stored"
    return SourceError(
        f"{short_repr(found.weight)} ({found.dtype}) counts only times its scale {short_repr(found.scale)}: "
        "copied alone into a model of another dtype it would be wrong.",
        hint=f"Pass dequantize=True for its numbers, or {stored}." if found.understood else _unknown(found, stored),
    )


def cast_alone(found: ScaledWeight, target: np.dtype[Any]) -> SourceError:
    """The error for a weight that would be cast without its scale."""
    stored = "no dtype= for what is stored"
    return SourceError(
        f"{short_repr(found.weight)} ({found.dtype}) counts only times its scale {short_repr(found.scale)}: "
        f"cast to {target.name} alone it would be wrong.",
        hint=f"Pass dequantize=True for its numbers, or {stored}." if found.understood else _unknown(found, stored),
    )


def _unknown(found: ScaledWeight, stored: str) -> str:
    """What to do with a weight whose numbers `dequantize=True` cannot tell either."""
    return f"Pass {stored}. Only the library that wrote it knows its numbers: {found.flaw}."


def scaling_of(located: Located) -> Scaling:
    """What `dequantize=True` does to the selected tensors. Raises SourceError for what it cannot."""
    weights = {found.weight: found for found in scaled_in(located, located.wanted.weight_map)}
    for found in weights.values():
        if found.flaw:
            raise SourceError(
                f"dequantize=True cannot tell the numbers of {short_repr(found.weight)} ({found.dtype}): {found.flaw}.",
                hint="Load it as it is stored.",
            )
    refuse_foreign(located.wanted.weight_map, weights)
    return Scaling(located, weights)


class Scaling:
    """Which tensors of a checkpoint become which: `names` maps each result, in order, to the tensor it is made of.

    `weights` are by their stored names, `uses` are those that a scale goes into. Such scales are no results.
    """

    def __init__(self, located: Located, weights: Mapping[str, ScaledWeight]) -> None:
        self.weights = weights
        self.uses: dict[str, list[ScaledWeight]] = {}
        for found in weights.values():
            for scale in found.scales:
                self.uses.setdefault(scale, []).append(found)
        self.names = {
            weights[name].name if name in weights else name: name
            for name in located.wanted.weight_map
            if name not in self.uses and name not in located.scales
        }

    def lenders(self, located: Located) -> set[str]:
        """The files with scales of weights that lie in others."""
        shards = located.wanted.weight_map
        return {
            located.path_of(shards[scale])
            for scale, found in self.uses.items()
            if any(shards[weight.weight] != shards[scale] for weight in found)
        }

    def numbers(self, weight: str, stored: Mapping[str, Array], target: np.dtype[Any] | None) -> Array:
        """A weight and its scales, as they are stored, made numbers of `target` (None: float32)."""
        found = self.weights[weight]
        second = None if found.second is None else stored[found.second]
        return dequantized(found, stored[weight], stored[found.scale], second, target)

    def merged(self, stored: Mapping[str, Array], target: np.dtype[Any] | None) -> dict[str, Array]:
        """A state dict of what is stored, one tensor after another."""
        return {
            name: self.numbers(source, stored, target) if source in self.weights else _cast(stored[source], target)
            for name, source in self.names.items()
        }

    def hollow(self, stored: Mapping[str, Array], target: np.dtype[Any] | None) -> dict[str, Array]:
        """What `merged` will give, without memory, of arrays without memory."""
        one = np.zeros((), np.float32 if target is None else target)
        return {
            name: np.broadcast_to(one, self.weights[source].result) if source in self.weights else stored[source]
            for name, source in self.names.items()
        }


def _cast(array: Array, target: np.dtype[Any] | None) -> Array:
    return array if target is None else cast(array, target)


class ScaledReader:
    """A reader of tensors as they are stored, which gives numbers. What comes before its scale waits for it.

    A weight that waits is memory beside that of the stream's limit; where files are mapped it is none.
    """

    def __init__(self, reader: Reader, scaling: Scaling, target: np.dtype[Any] | None) -> None:
        self._reader = reader
        self._scaling = scaling
        self._target = target
        self._stored: dict[str, Array] = {}  # what has come, and is not made or still goes into something
        self._due: deque[str] = deque()  # of these what can be made now
        self._left = {scale: len(found) for scale, found in scaling.uses.items()}

    @property
    def closed(self) -> bool:
        return self._reader.closed

    async def next(self) -> tuple[str, Array] | None:
        """The next tensor, as that of the reader below."""
        while True:
            if self._due:  # not taken from here before it is made: a wait for it may be cancelled
                made = await run_as_task(partial(off_loop, self._making(self._due[0])))
                self._check_open()
                return self._handed_out(self._due.popleft(), made)
            found = await self._reader.next()
            if found is None:
                return None
            self._check_open()
            self._take(*found)

    def next_at_hand(self) -> tuple[str, Array] | None:
        """None: each takes work that is not the reader's."""
        return None

    def close(self) -> None:
        self._stored.clear()
        self._due.clear()
        self._reader.close()

    def _take(self, name: str, array: Array) -> None:
        """Keep what is stored until it is of no use, and see what can be made of it."""
        found = self._scaling.weights.get(name)
        for weight in [found] if found is not None else self._scaling.uses.get(name, ()):
            self._stored[name] = array
            if all(one in self._stored for one in (weight.weight, *weight.scales)):
                self._due.append(weight.weight)
        if self._scaling.names.get(name) == name and found is None:
            self._stored[name] = array
            self._due.append(name)

    def _check_open(self) -> None:
        if self.closed:
            raise stream_closed()

    def _making(self, name: str) -> Callable[[], Array]:
        """What makes a tensor, of what is stored now: meanwhile the stream may be closed, and nothing be stored."""
        found = self._scaling.weights.get(name)
        if found is None:
            return partial(_cast, self._stored[name], self._target)
        parts = {one: self._stored[one] for one in (name, *found.scales)}
        return partial(self._scaling.numbers, name, parts, self._target)

    def _handed_out(self, name: str, array: Array) -> tuple[str, Array]:
        """What was made of the stored tensor `name`, under its name."""
        del self._stored[name]
        found = self._scaling.weights.get(name)
        for scale in found.scales if found is not None else ():
            self._left[scale] -= 1
            if not self._left[scale]:
                del self._stored[scale]
        return name if found is None else found.name, array
