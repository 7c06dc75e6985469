"""What shards and their index say about themselves, where they become others. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..format.header import Header
from ..format.index import aliases_in

__all__ = ["merged_metadata"]


def merged_metadata(headers: Iterable[Header], index: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, str]:
    """What the shards say about themselves, and the index about tied names; nothing on which they disagree.

    A tied name is one that was not written because it is another name of one of `names`, which was. The rest of
    the index's metadata is about the index: its numbers, the tool that split the shards.
    """
    metadata: dict[str, str] = {}
    disputed = set()
    for said in [*(header.metadata for header in headers), aliases_in([index], names)]:
        for key, value in said.items():
            if metadata.setdefault(key, value) != value:
                disputed.add(key)
    return {key: value for key, value in metadata.items() if key not in disputed}
