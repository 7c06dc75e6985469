"""Tensors of torch onto a device: through a ring of pinned buffers, beside what the device computes.

A copy from pageable memory is staged by the driver and holds up whoever asks for it. So the bytes are put into pinned
memory, a piece at a time, and the device fetches them from there by itself, on a stream that has nothing else to do
(https://docs.pytorch.org/docs/stable/notes/cuda.html#use-pinned-memory-buffers). Three rules keep that right:

1. A buffer is written again only when the event that was recorded behind its last copy has happened.
2. Who takes a tensor has its current stream wait for the event behind the tensor's last copy.
3. The allocator is told of that stream (`record_stream`), since the tensor's memory was made on another one.

Without a device, tests hold the ring against a stand-in for `Copier` whose copies happen as late as its events allow:
a broken rule gives other values. That `CudaCopier` does what its few lines say needs a device to be seen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any, Protocol

from ..errors import SourceError
from ..spans import MiB
from .torch_tensors import import_torch

__all__ = [
    "Arrival",
    "Copier",
    "CudaCopier",
    "Event",
    "Mover",
    "Movers",
    "Ring",
    "check_device",
    "device_of",
    "mover_to",
]

BUFFERS = 4  # one is filled while the device reads the others
BUFFER = 16 * MiB
_PATIENCE = 10.0  # seconds for the copies that are under way when a ring is closed
_PAUSE = 0.0002  # seconds between two looks at an event; a buffer is read in about a millisecond
_ALIGNMENT = 512  # bytes: what the driver copies fastest


class Event(Protocol):
    """A point in a stream of copies."""

    def query(self) -> bool:
        """Whether all that came before it has happened."""


class Copier(Protocol):
    """What the ring asks of one device: the few calls of torch.cuda."""

    def pinned(self, nbytes: int) -> Any:
        """Bytes of host memory that the device reads by itself: a tensor of uint8."""

    def empty(self, like: Any) -> Any:
        """A tensor on the device, of the shape and dtype of another, for copies to come."""

    def copy(self, target: Any, source: Any) -> None:
        """Have bytes on the device filled with pinned ones, some time after the copies before."""

    def record(self) -> Event:
        """The point behind the last copy."""

    def take(self, tensor: Any, event: Event) -> None:
        """What the calling thread does with `tensor` on the device from now on happens after `event`."""

    def settle(self) -> None:
        """Until what the calling thread has had the device do has happened."""


class CudaCopier:
    """The copies of one CUDA (or ROCm) device, on a stream of their own, which all loads of a process share."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch, self._device = torch, device
        self._stream = _stream_of(torch, device)

    def pinned(self, nbytes: int) -> Any:
        return self._torch.empty(nbytes, dtype=self._torch.uint8, pin_memory=True)

    def empty(self, like: Any) -> Any:
        with self._torch.cuda.stream(self._stream):
            return self._torch.empty(like.shape, dtype=like.dtype, device=self._device)

    def copy(self, target: Any, source: Any) -> None:
        with self._torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def record(self) -> Event:
        event: Event = self._torch.cuda.Event()
        event.record(self._stream)  # type: ignore[attr-defined]
        return event

    def take(self, tensor: Any, event: Event) -> None:
        stream = self._torch.cuda.current_stream(self._device)
        stream.wait_event(event)
        tensor.record_stream(stream)

    def settle(self) -> None:
        self._torch.cuda.current_stream(self._device).synchronize()


@cache
def _stream_of(torch: Any, device: Any) -> Any:
    return torch.cuda.Stream(device)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A tensor on a device, whose last byte may still be on its way."""

    tensor: Any
    event: Event | None = None
    copier: Copier | None = None

    def take(self) -> Any:
        """The tensor, for use by the calling thread and its current stream."""
        if self.copier is not None and self.event is not None:
            self.copier.take(self.tensor, self.event)
        return self.tensor


class Mover(Protocol):
    """Brings tensors to one device. `put` and `wait` block; threads may share it."""

    def put(self, tensor: Any, check: Callable[[], object] = ...) -> Arrival:
        """The tensor there; the one that was given is read when this returns. `check` is called now and then."""

    def wait(self, check: Callable[[], object] = ...) -> None:
        """Until all that was put is there, and all that this thread did with it has happened."""

    def close(self) -> None:
        """End what is under way, within seconds."""


@dataclass(eq=False, slots=True)
class _Buffer:
    memory: Any
    event: Event | None = None  # behind the last copy from it


class Ring:
    """A few pinned buffers in turn, in each of which tensors and pieces of them lie one after another."""

    def __init__(self, copier: Copier, *, buffers: int = BUFFERS, nbytes: int = BUFFER) -> None:
        self._copier = copier
        self._most = buffers
        self._nbytes = nbytes
        self._buffers: list[_Buffer] = []  # the one that is being filled is the last
        self._at = nbytes
        self._closed = False
        self._lock = Lock()

    def put(self, tensor: Any, check: Callable[[], object] = lambda: None) -> Arrival:
        with self._lock:
            target, event = self._copier.empty(tensor), None
            source, there = _bytes_of(tensor), _bytes_of(target)
            done, size = 0, len(source)
            while done < size:
                buffer = self._buffer(check)
                count = min(size - done, self._nbytes - self._at)
                piece = buffer.memory[self._at : self._at + count]
                piece.copy_(source[done : done + count])
                self._copier.copy(there[done : done + count], piece)
                buffer.event = event = self._copier.record()
                self._at += -(-count // _ALIGNMENT) * _ALIGNMENT
                done += count
            return Arrival(target, event, self._copier)

    def _buffer(self, check: Callable[[], object]) -> _Buffer:
        """The buffer that has room: the last, a new one, or the one that was filled first, when it has been read."""
        self._check(check)
        if self._at < self._nbytes:
            return self._buffers[-1]
        if len(self._buffers) < self._most:
            self._buffers.append(_Buffer(self._copier.pinned(self._nbytes)))
        else:
            self._until_read(self._buffers[0], check)
            self._buffers.append(self._buffers.pop(0))
        self._at = 0
        return self._buffers[-1]

    def wait(self, check: Callable[[], object] = lambda: None) -> None:
        with self._lock:
            for buffer in self._buffers:
                self._until_read(buffer, check)
            self._copier.settle()

    def _until_read(self, buffer: _Buffer, check: Callable[[], object]) -> None:
        while buffer.event is not None and not buffer.event.query():
            self._check(check)
            time.sleep(_PAUSE)

    def _check(self, check: Callable[[], object]) -> None:
        check()
        if self._closed:
            raise SourceError("The stream is closed.", hint="Use it inside its `with` block, or before close().")

    def close(self) -> None:
        """Let the buffers go once the device has read them. One that it has not read after seconds is kept for ever."""
        self._closed = True
        with self._lock:
            limit = time.monotonic() + _PATIENCE
            for buffer in self._buffers:
                while buffer.event is not None and not buffer.event.query():
                    if time.monotonic() > limit:
                        _never_read.append(buffer)
                        logging.getLogger("asyncfetch").warning("The device has not read a pinned buffer: it is kept")
                        break
                    time.sleep(_PAUSE)
            self._buffers.clear()
            self._at = self._nbytes


_never_read: list[_Buffer] = []


class _Plain:
    """Copies to a device without pinned memory: each is there when it returns."""

    def __init__(self, device: Any) -> None:
        self._device = device

    def put(self, tensor: Any, check: Callable[[], object] = lambda: None) -> Arrival:
        check()
        return Arrival(tensor.to(self._device))

    def wait(self, check: Callable[[], object] = lambda: None) -> None:
        check()

    def close(self) -> None:
        return


def _bytes_of(tensor: Any) -> Any:
    torch = import_torch()
    return tensor.contiguous().reshape(-1).view(torch.uint8)


class Movers:
    """What brings tensors to the devices of one model: a mover for each, made with the first tensor."""

    def __init__(self) -> None:
        self._movers: dict[Any, Mover] = {}

    def put(self, tensor: Any, device: Any) -> Arrival:
        """As `Mover.put`."""
        if device not in self._movers:
            self._movers[device] = mover_to(device)
        return self._movers[device].put(tensor)

    def wait(self) -> None:
        """Until all that was put is there, and all that this thread did with it has happened."""
        for mover in self._movers.values():
            mover.wait()

    def close(self) -> None:
        """As `Mover.close`."""
        for mover in self._movers.values():
            mover.close()
        self._movers.clear()


def device_of(device: object) -> Any:
    """The torch.device that `device` names; "cuda" alone is the current one of this thread. Raises SourceError."""
    torch = import_torch()
    with _refused(device):
        found = torch.device(device)
        if found.type == "meta":
            raise ValueError("it has no memory for values.")
        if found.type == "cuda" and found.index is None:
            found = torch.device("cuda", torch.cuda.current_device())
    return found


_NAMED = 'Give "cuda:0" or "cpu".'


def check_device(device: Any, option: str = "device", hint: str = _NAMED) -> None:
    """Raise SourceError if no memory is to be had on a device, which was given as `option`."""
    with _refused(str(device), option, hint):
        import_torch().empty(1, device=device)


@contextmanager
def _refused(device: object, option: str = "device", hint: str = _NAMED) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).partition(". ")[0].removesuffix(".") + "."
        raise SourceError(f"{option}={device!r} cannot be used: {reason}", hint=hint) from error


def mover_to(device: Any) -> Mover:
    """What brings tensors to a device that can be used."""
    return Ring(CudaCopier(import_torch(), device)) if device.type == "cuda" else _Plain(device)
