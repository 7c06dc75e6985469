"""The shards of a checkpoint as one file: `load --output`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from ..api.results import Inspection
from ..format.dtypes import Array
from ..format.writer import write_safetensors
from ..progress.text import printable, size_text
from ..saving.metadata import merged_metadata

__all__ = ["merge"]


def merge(tensors: Mapping[str, Array], found: Inspection, output: Path, *, quiet: bool) -> None:
    """Write the tensors of `found` to the one file `output`."""
    if not quiet:
        print(f"writing {printable(str(output))}", file=sys.stderr)
    metadata = merged_metadata((shard.header for shard in found.shards), found.metadata, found.tensors)
    size = write_safetensors(tensors, output, metadata=metadata)
    if not quiet:
        print(f"wrote {printable(str(output))}, {size_text(size)}", file=sys.stderr)
