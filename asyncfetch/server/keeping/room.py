"""How much has to go so that something has room, and what goes first. Pure, without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .inventory import Inventory, Item

__all__ = ["Limits", "excess", "in_order"]

_FLOOR = 2**30  # bytes of a file system that are left free where nobody said how many
_FLOOR_PART = 100  # and of a smaller one this part


class Limits(NamedTuple):
    """How large a cache may be, and how much of its file system stays free, in bytes; None where nobody said it.

    Where neither is set nothing is ever removed: a cache may be shared with people who did not ask for that.
    """

    max_size: int | None = None
    min_free: int | None = None

    @classmethod
    def checked(cls, max_size: int | None, min_free: int | None) -> Limits:
        """Raises SourceError for a size that makes no sense."""
        if (max_size is not None and max_size <= 0) or (min_free is not None and min_free < 0):
            raise SourceError("The room of a cache is a number of bytes above 0, and what stays free is none below it.")
        return cls(max_size, min_free)

    @property
    def evict(self) -> bool:
        return self.max_size is not None or self.min_free is not None

    def floor(self, total: int | None) -> int:
        """Bytes of a file system of `total` bytes that stay free."""
        if self.min_free is not None:
            return self.min_free
        return _FLOOR if total is None else min(_FLOOR, total // _FLOOR_PART)


def excess(found: Inventory, more: int, limits: Limits) -> int:
    """How many bytes have to go so that `more` have room; 0 or less if none."""
    over = found.used + more - limits.max_size if limits.max_size is not None else 0
    short = limits.floor(found.total) + found.owed + more - found.free if found.free is not None else 0
    return max(over, short)


def in_order(
    items: Iterable[Item], read: Mapping[str, float], keep: Iterable[str] = ()
) -> list[tuple[list[Item], float]]:
    """The items that may go, the least recently read first; those that share an inode go together.

    `read` is when each was read, by its key; one that never was counts by when it was written. `keep` are folders of
    repositories that stay.
    """
    staying = frozenset(keep)
    groups: dict[tuple[int, int], list[Item]] = {}
    for item in items:
        groups.setdefault(item.inode, []).append(item)
    aged = [
        (group, max(max(read.get(item.key, 0.0), item.at) for item in group))
        for group in groups.values()
        if not any(item.folder in staying for item in group)
    ]
    return sorted(aged, key=lambda one: (one[1], one[0][0].key))
