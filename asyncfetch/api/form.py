"""In which form a caller gets the tensors of a checkpoint: their dtype, their names, and whose arrays they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..format.dtypes import Array, dtype_or_none
from ..models.names import Rename, renamed
from ..models.torch_tensors import import_torch, to_torch_or_bytes
from ..sources.located import Located
from ..tasks import off_loop
from ..tensors.scaling import Reader, Scaling

if TYPE_CHECKING:
    from .options import DTypeLike, Framework

__all__ = ["Form", "RenamedReader"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the options of a call say of the tensors that it gives."""

    dtype: DTypeLike | None = None
    framework: Framework = "numpy"
    rename: Rename = None

    def target(self) -> np.dtype[Any] | None:
        """The dtype that floating tensors are cast to. Raises SourceError."""
        return dtype_or_none(self.dtype)

    async def maker(self) -> Callable[[Array], Any]:
        """What makes of an array what the caller gets, in no time. Raises SourceError where torch is not installed."""
        if self.framework == "numpy":
            return lambda array: array
        await off_loop(import_torch, slow=True)
        return to_torch_or_bytes

    def names(self, located: Located, scaling: Scaling | None) -> dict[str, str] | None:
        """The new name of each tensor that is given, None where none is renamed. Raises SourceError."""
        if self.rename is None:
            return None
        return renamed(located.wanted.weight_map if scaling is None else scaling.names, self.rename)

    def given(
        self, tensors: Mapping[str, Array], names: Mapping[str, str] | None, make: Callable[[Array], Any]
    ) -> dict[str, Any]:
        """A state dict as the caller gets it. One array under two names stays one."""
        made: dict[int, Any] = {}
        for array in tensors.values():
            if id(array) not in made:
                made[id(array)] = make(array)
        pairs = zip(tensors, tensors, strict=True) if names is None else names.items()
        return {new: made[id(tensors[name])] for name, new in pairs}


class RenamedReader:
    """A reader of tensors under other names; those that have none are left out."""

    def __init__(self, reader: Reader, names: Mapping[str, str]) -> None:
        self._reader = reader
        self._names = names

    @property
    def closed(self) -> bool:
        return self._reader.closed

    async def next(self) -> tuple[str, Array] | None:
        while (found := await self._reader.next()) is not None:
            if found[0] in self._names:
                return self._names[found[0]], found[1]
        return None

    def next_at_hand(self) -> tuple[str, Array] | None:
        while (found := self._reader.next_at_hand()) is not None:
            if found[0] in self._names:
                return self._names[found[0]], found[1]
        return None

    def close(self) -> None:
        self._reader.close()
