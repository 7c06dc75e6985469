"""What is mapped and wanted is read before it is touched."""

from __future__ import annotations

import mmap
from collections.abc import Collection
from typing import Any

from ..format.header import Header
from ..sources.located import Landed
from ..spans import MiB, Span
from ..storage.readahead import read_ahead

__all__ = ["read_wanted_ahead", "wanted_spans"]

_NEAR = MiB  # the kernel reads in such pieces anyway, and each span costs a call


def read_wanted_ahead(landed: Landed, buffer: Any, header: Header, names: Collection[str]) -> None:
    """Have the tensors `names` of a shard read, if `buffer` is a map of it. Returns at once."""
    if isinstance(buffer, mmap.mmap) and landed.path is not None:
        read_ahead(buffer, landed.path, wanted_spans(header, names))


def wanted_spans(header: Header, names: Collection[str]) -> list[Span]:
    """Where in a shard the tensors `names` are, all of which it has; what is near is one span."""
    if len(names) == len(header.tensors):
        return [Span(header.data_start, header.file_size)]
    spans: list[Span] = []
    for info in sorted(map(header.tensors.__getitem__, names), key=lambda info: info.begin):
        start, stop = header.data_start + info.begin, header.data_start + info.end
        if spans and start - spans[-1].stop <= _NEAR:
            start = spans.pop().start
        spans.append(Span(start, stop))
    return spans
