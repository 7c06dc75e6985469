"""In which form a caller gets the tensors of a checkpoint: their dtype and names, whose arrays they are, and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
from anyio import from_thread

from ..errors import SourceError
from ..format.dtypes import Array, dtype_or_none
from ..models.device import Arrival, Mover, check_device, device_of, mover_to
from ..models.names import Rename, renamed
from ..models.torch_tensors import import_torch, to_torch_or_bytes
from ..sources.located import Located
from ..tasks import off_loop, run_as_task
from ..tensors.reader import Reader, stream_closed
from ..tensors.scaling import Scaling

if TYPE_CHECKING:
    from .options import DeviceLike, DTypeLike, Framework

__all__ = ["Form", "Maker", "RenamedReader", "usable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the options of a call say of the tensors that it gives."""

    dtype: DTypeLike | None = None
    framework: Framework = "numpy"
    device: DeviceLike | None = None
    rename: Rename = None

    def target(self) -> np.dtype[Any] | None:
        """The dtype that floating tensors are cast to. Raises SourceError."""
        return dtype_or_none(self.dtype)

    async def maker(self) -> Maker:
        """What makes of arrays what the caller gets.

        Raises SourceError where torch is not installed, or the device cannot be used.
        """
        if self.framework == "numpy":
            if self.device is not None:
                raise SourceError("device= is for tensors of torch.", hint='Pass framework="torch" too.')
            return Maker(torch=False)
        await off_loop(import_torch, slow=True)
        if self.device is None:
            return Maker(torch=True)
        device = await usable(self.device)
        return Maker(torch=True, mover=None if device.type == "cpu" else mover_to(device))

    def names(self, located: Located, scaling: Scaling | None) -> dict[str, str] | None:
        """The new name of each tensor that is given, None where none is renamed. Raises SourceError."""
        if self.rename is None:
            return None
        return renamed(located.wanted.weight_map if scaling is None else scaling.names, self.rename)


async def usable(device: object) -> Any:
    """The torch.device that a caller means. Raises SourceError if torch is not installed, or cannot use it."""
    await off_loop(import_torch, slow=True)
    found = device_of(device)  # here, where a device may be current
    await off_loop(partial(check_device, found), slow=True)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """Makes of arrays what the caller gets: arrays, tensors on their memory, or tensors on a device."""

    torch: bool
    mover: Mover | None = None

    def handed_over(self, value: Any) -> Any:
        """The last step, in the thread of the caller: of an array, or of what `reader` has made of it."""
        if isinstance(value, Arrival):
            return value.take()
        return to_torch_or_bytes(value) if self.torch else value

    def reader(self, reader: Reader) -> Reader:
        """What reads tensors for `handed_over`."""
        return reader if self.mover is None else _MovedReader(reader, self.mover)

    def state_dict(self, tensors: Mapping[str, Array], names: Mapping[str, str] | None) -> dict[str, Any]:
        """A state dict as the caller gets it, in a worker thread. One array under two names stays one."""
        if self.mover is None and not self.torch:
            return dict(tensors) if names is None else {new: tensors[name] for name, new in names.items()}
        pairs = list(zip(tensors, tensors, strict=True) if names is None else names.items())
        different = {id(tensors[name]): tensors[name] for name, _ in pairs}
        made = dict(zip(different, self.every(different.values()), strict=True))
        return {new: made[id(tensors[name])] for name, new in pairs}

    def every(self, arrays: Iterable[Array]) -> list[Any]:
        """What the caller gets of each, all there. On a device it takes a while, in a worker thread."""
        if self.mover is None:
            return [self.handed_over(array) for array in arrays]
        arrivals = [self.mover.put(to_torch_or_bytes(array), from_thread.check_cancelled) for array in arrays]
        self.mover.wait(from_thread.check_cancelled)
        return [arrival.take() for arrival in arrivals]

    async def aclose(self) -> None:
        """End what is on its way to a device, within seconds."""
        if self.mover is not None:
            with anyio.CancelScope(shield=True):
                await off_loop(self.mover.close, slow=True)


class RenamedReader:
    """A reader of tensors under other names; those that have none are left out."""

    def __init__(self, reader: Reader, names: Mapping[str, str]) -> None:
        self._reader = reader
        self._names = names

    @property
    def closed(self) -> bool:
        return self._reader.closed

    async def next(self) -> tuple[str, Any] | None:
        while (found := await self._reader.next()) is not None:
            if found[0] in self._names:
                return self._names[found[0]], found[1]
        return None

    def next_at_hand(self) -> tuple[str, Any] | None:
        while (found := self._reader.next_at_hand()) is not None:
            if found[0] in self._names:
                return self._names[found[0]], found[1]
        return None

    def close(self) -> None:
        self._reader.close()


class _MovedReader:
    """A reader of tensors on their way to a device. What is on the host is free again when a tensor is given."""

    def __init__(self, reader: Reader, mover: Mover) -> None:
        self._reader = reader
        self._mover = mover
        self._held: tuple[str, Array] | None = None  # until it is moved: a wait for that may be cancelled

    @property
    def closed(self) -> bool:
        return self._reader.closed

    async def next(self) -> tuple[str, Any] | None:
        if self._held is None:
            self._held = await self._reader.next()
        if self._held is None:
            return None
        name, array = self._held
        put = partial(self._mover.put, to_torch_or_bytes(array), from_thread.check_cancelled)
        arrival = await run_as_task(partial(off_loop, put, slow=True))
        if self.closed:
            raise stream_closed()
        self._held = None
        return name, arrival

    def next_at_hand(self) -> tuple[str, Any] | None:
        """None: each takes work that is not the reader's."""
        return None

    def close(self) -> None:
        self._held = None
        self._reader.close()
