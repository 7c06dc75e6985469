"""What is written of a state dict, and as which files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..format.sharding import check_metadata, laid_out, names_like, parse_size
from .folder import Draft, named_folder, saved
from .outgoing import outgoing_tensors

__all__ = ["drafted", "named_folder", "saved"]

# What transformers and huggingface_hub ask of a file before they load it.
FORMAT = {"format": "pt"}


def drafted(
    state_dict: Mapping[str, Any],
    max_shard_size: int | str | None,
    metadata: Mapping[str, str] | None,
    filename_pattern: str,
) -> tuple[Draft, re.Pattern[str]]:
    """The files of a state dict, and the names of those that they replace. Raises SourceError."""
    names, limit, said = names_like(filename_pattern), parse_size(max_shard_size), check_metadata(metadata)
    tensors, aliases = outgoing_tensors(state_dict)
    layout = laid_out({name: tensor.nbytes for name, tensor in tensors.items()}, limit, filename_pattern)
    said |= {name: kept for name, kept in aliases.items() if name not in said}  # what the user says is left
    return Draft(layout, tensors, FORMAT if layout.index else {**FORMAT, **said}, said), names
