"""What all files of one transfer share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from ..errors import ProtocolError
from ..events import Notifier
from ..network.transport import Transport
from ..policy import Policy
from ..sources.links import Links
from ..sources.located import Landed, Located, SourceFile
from ..storage.cache import RepoCache
from ..storage.partial import Partial
from ..storage.small import SmallFile, publish_small
from .consumer import Consumer
from .outbox import Outbox
from .schedule import Board, Growth
from .signals import Signal

__all__ = ["Job"]


@dataclass(eq=False)
class Job:
    """What all files of a transfer share. `landed` is told of each that landed."""

    located: Located
    transport: Transport
    policy: Policy
    notify: Notifier
    storage: str
    named: bool  # each file is wanted by its name in the snapshot, and else for its tensors
    consumer: Consumer | None
    landed: Callable[[SourceFile, Landed, Partial | None], None]
    downloaded: int = 0
    group: TaskGroup = field(init=False)  # of the lanes, and of what hashes behind them

    def __post_init__(self) -> None:
        self.board: Board[str] = Board(self.policy.min_split)
        self.growth = Growth()
        self.links = Links(self.located.origin)
        self.memory = Signal()  # the consumer has some again
        self.outbox = Outbox(self._publish_small, mapped=not self.named)

    @property
    def cache(self) -> RepoCache:
        if self.located.cache is None:
            raise ProtocolError("a local checkpoint has nothing to download", url=self.located.source)
        return self.located.cache

    @property
    def commit(self) -> str:
        if self.located.commit is None:
            raise ProtocolError("no commit is known", url=self.located.source)
        return self.located.commit

    def _publish_small(self, files: Sequence[SmallFile]) -> list[Path]:
        return publish_small(self.cache, self.commit, files, named=self.named)

    async def wait_connected(self, signal: Signal) -> bool:
        """Wait for a signal with a connection in hand. False: somebody wants that connection."""
        given, wanted = signal.next, False

        async def watch() -> None:
            nonlocal wanted
            await self.transport.limits.connections.wanted()
            wanted = True
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            await given.wait()
            group.cancel_scope.cancel()
        return not wanted
