"""A device that is none: its copies happen as late as its events allow, so that a broken rule gives other values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .torch_or_not import torch

__all__ = ["LateDevice", "LateEvent"]

_GARBAGE = 0x5A


@dataclass(eq=False)
class LateEvent:
    """The point behind the `number`th copy. Each third question has one more copy happen."""

    device: LateDevice
    number: int

    def query(self) -> bool:
        if self.device.hangs:
            return False
        self.device.asked += 1
        self.device.advance(self.device.asked % 3 == 0)
        return self.device.happened >= self.number


class LateDevice:
    """Stands for `asyncfetch.models.device.Copier`. What is on it is in memory of the CPU, and garbage until copied."""

    def __init__(self, *_: Any) -> None:
        self.queued: list[tuple[Any, Any]] = []
        self.happened = self.asked = 0
        self.buffers: list[Any] = []
        self.taken = 0
        self.settled = 0
        self.hangs = False  # no copy happens any more

    def pinned(self, nbytes: int) -> Any:
        self.buffers.append(torch.empty(nbytes, dtype=torch.uint8))
        return self.buffers[-1]

    def empty(self, like: Any) -> Any:
        made = torch.empty(like.shape, dtype=like.dtype)
        made.reshape(-1).view(torch.uint8).fill_(_GARBAGE)
        return made

    def copy(self, target: Any, source: Any) -> None:
        assert any(_within(source, buffer) for buffer in self.buffers), "only pinned memory is read beside the host"
        self.queued.append((target, source))

    def record(self) -> LateEvent:
        return LateEvent(self, len(self.queued))

    def take(self, tensor: Any, event: LateEvent) -> None:
        self.taken += 1
        self.advance(event.number - self.happened)

    def settle(self) -> None:
        self.settled += 1

    def advance(self, copies: int) -> None:
        for target, source in self.queued[self.happened : self.happened + max(copies, 0)]:
            target.copy_(source)
            self.happened += 1

    @property
    def waiting(self) -> int:
        """Copies that have not happened, and read a buffer when they do."""
        return len(self.queued) - self.happened


def _within(part: Any, whole: Any) -> bool:
    begin = part.data_ptr() - whole.data_ptr()
    return bool(begin >= 0 and begin + part.numel() <= whole.numel())
