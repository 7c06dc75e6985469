"""The reader's end of a stream of tensors."""

from __future__ import annotations

from typing import Any, Protocol

from ..errors import SourceError

__all__ = ["Reader", "stream_closed"]


class Reader(Protocol):
    """What a stream's reader asks: the next tensor, until there is none."""

    @property
    def closed(self) -> bool: ...

    async def next(self) -> tuple[str, Any] | None: ...

    def next_at_hand(self) -> tuple[str, Any] | None: ...

    def close(self) -> None: ...


def stream_closed() -> SourceError:
    """The error for who reads on."""
    return SourceError("The stream is closed.", hint="Use it inside its `with` block, or before close().")
