"""What a transfer hands over, and to whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..sources.located import Landed, SourceFile
from ..storage.partial import Partial

__all__ = ["Consumer"]


class Consumer(Protocol):
    """Takes what lands while the transfer goes on, and bounds what is in memory. All on the event loop.

    The transfer sets `wake`, which the consumer calls when there is memory again. `early`: what is
    handed out may be unverified, so a file with a wrong hash is not fetched again.
    """

    wake: Callable[[], None]

    @property
    def early(self) -> bool: ...

    @property
    def reads_partials(self) -> bool:
        """Whether it reads each file while it is on its way to the disk. Else small ones come when they are whole."""
        ...

    def admits(self, file: SourceFile) -> bool:
        """Whether there is memory to begin `file`; it is spoken for then."""
        ...

    def partial(self, file: SourceFile) -> Partial:
        """The memory form of `file`."""
        ...

    def room(self, file: SourceFile, offset: int) -> int:
        """How many bytes of `file` may be received from `offset` on; 0 while there is no memory."""
        ...

    def advanced(self, file: SourceFile, partial: Partial) -> None:
        """More of `file` is here, or is hashed."""
        ...

    def landed(self, file: SourceFile, landed: Landed, partial: Partial | None) -> None:
        """`file` is whole and verified; `partial` is None if it was here already."""
        ...

    def verified(self, file: SourceFile) -> None:
        """The hash of `file` is right, if one is known. It is synced and published next."""
        ...

    async def restarting(self, file: SourceFile) -> None:
        """The hash of `file` is wrong. When this returns, all that was received of it is forgotten."""
        ...
