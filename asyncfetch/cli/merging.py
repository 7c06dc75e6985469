"""The shards of a checkpoint as one file: `load --output`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from ..api.results import Inspection
from ..format.dtypes import Array
from ..format.index import aliases_in
from ..format.writer import write_safetensors
from ..progress.text import printable, size_text

__all__ = ["merge", "merged_metadata"]


def merge(tensors: Mapping[str, Array], found: Inspection, output: Path, *, quiet: bool) -> None:
    """Write the tensors of `found` to the one file `output`."""
    if not quiet:
        print(f"writing {printable(str(output))}", file=sys.stderr)
    size = write_safetensors(tensors, output, metadata=merged_metadata(found))
    if not quiet:
        print(f"wrote {printable(str(output))}, {size_text(size)}", file=sys.stderr)


def merged_metadata(found: Inspection) -> dict[str, str]:
    """What the shards say about themselves, and the index about tied names; nothing on which they disagree.

    A tied name is one that was not written because it is another name of a tensor that was. The rest of
    the index's metadata is about the index: its numbers, the tool that split the shards.
    """
    tied = aliases_in([found.metadata], found.tensors)
    metadata: dict[str, str] = {}
    disputed = set()
    for said in [*(shard.header.metadata for shard in found.shards), tied]:
        for key, value in said.items():
            if metadata.setdefault(key, value) != value:
                disputed.add(key)
    return {key: value for key, value in metadata.items() if key not in disputed}
