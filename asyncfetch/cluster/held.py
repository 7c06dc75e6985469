"""A checkpoint that a cluster holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from ..api.results import StateDict

__all__ = ["HeldCheckpoint"]


class HeldCheckpoint:
    """A checkpoint that nodes of a cluster hold until it is released. It goes into any task or actor of Ray.

    `commit` is that of `Snapshot`. `refs` maps each shard to the objects in Ray's store that hold it: its header, and
    its data in groups of tensors; it is empty with `keep="disk"`.

    It is released by the end of its block, by `release()`, or with the driver; with `hold="name"` by `release()` alone.
    """

    commit: str | None
    refs: dict[str, list[Any]]

    async def local_async(self) -> StateDict:
        """The state dict on this node. Call it in a task or an actor.

        Arrays are read-only views on the node's shared memory, each on 64 bytes: all processes of the node share them,
        and nothing is copied. With `keep="disk"` they are writable views on private maps of the files in the node's
        cache, as `asyncfetch.load_async` gives them. Use `array.copy()` for training in place.

        Raises OfflineError on a node whose disk does not have it, NetworkError where it was released or lost.
        """
        raise NotImplementedError

    def local(self) -> StateDict:
        """The blocking twin of `local_async`."""
        raise NotImplementedError

    def release(self) -> None:
        """Let all nodes forget what they hold in memory, and end what is under way. Files on disk stay. Blocks."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """As `release`, for async code; a checkpoint that is held by its name stays."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        raise NotImplementedError
