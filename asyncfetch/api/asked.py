"""What is asked for of an opened checkpoint, and what is fetched for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..format.dtypes import Array
from ..format.ranks import Cut
from ..tensors.gather import Want
from ..tensors.portions import Portion
from ..tensors.scaling import Scaling

__all__ = ["Asked"]


@dataclass(eq=False, slots=True)
class Asked:
    """The stored tensor `name` or a part of it; with `scaling`, the numbers of a weight, or `cut` of them."""

    name: str
    portions: list[Portion]
    scaling: Scaling | None = None
    cut: Cut | None = None

    def wants(self) -> list[Want]:
        """What is to be read."""
        return [want for portion in self.portions for want in portion.wants()]

    def array(self, target: np.dtype[Any] | None) -> Array:
        """The array, once all that was read is here."""
        if self.scaling is None:
            return self.portions[0].array(target)
        stored = {portion.name: portion.array(None) for portion in self.portions}
        numbers = self.scaling.numbers(self.name, stored, target)
        return numbers if self.cut is None else self.cut.of(numbers)

    def drop(self) -> None:
        """Forget what was read."""
        self.portions = []
