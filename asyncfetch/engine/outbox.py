"""Small files that are whole and verified, on their way to their names: as many as wait, in one step of a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from anyio.abc import TaskGroup

from ..sources.located import Landed
from ..storage.maps import pages_of
from ..storage.small import SmallFile
from ..tasks import off_loop

__all__ = ["Outbox"]

_MOST = 32  # files in one step
_AT_ONCE = 2  # steps: one that waits for the disk holds up no other


class Outbox:
    """Publishes small files. Who puts one there goes on, and is told when it has landed.

    `publish` writes files and says where each is, in a thread. With `mapped` they are wanted for their tensors.
    """

    def __init__(self, publish: Callable[[Sequence[SmallFile]], list[Path]], *, mapped: bool) -> None:
        self._give_names = publish
        self._mapped = mapped
        self._waiting: deque[tuple[SmallFile, Callable[[Landed], None]]] = deque()
        self._running = 0

    def put(self, file: SmallFile, landed: Callable[[Landed], None], group: TaskGroup) -> None:
        """Publish `file` soon, in a task of `group`, which fails if that does. `landed` is called then."""
        self._waiting.append((file, landed))
        if self._running < _AT_ONCE and (not self._running or len(self._waiting) >= _MOST):
            self._running += 1
            group.start_soon(self._publish)

    async def _publish(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST))]
            places = await off_loop(partial(self._publish_these, [file for file, _ in taken]))
            for (_, landed), place in zip(taken, places, strict=True):
                landed(place)
        self._running -= 1

    def _publish_these(self, files: list[SmallFile]) -> list[Landed]:
        places = zip(self._give_names(files), files, strict=True)
        return [
            Landed(path=path, pages=pages_of(path, len(file.data)) if self._mapped else None) for path, file in places
        ]
