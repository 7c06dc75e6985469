"""Memory whose start lies where processors and accelerators want it."""

from __future__ import annotations

import mmap

import numpy as np

from ..spans import MiB

__all__ = ["ALIGNMENT", "aligned_buffer"]


ALIGNMENT = 64  # bytes: a cache line, and what JAX asks of a buffer that it takes without a copy


def aligned_buffer(size: int, data_start: int) -> memoryview:
    """`size` writable bytes of which number `data_start` lies at a 64-byte boundary.

    Large ones are mapped by themselves: so they are free for other programs once they are dropped,
    while malloc may keep blocks of up to 32 MiB. Huge pages are not asked for: in a virtual machine
    that reports its free pages to the host, their first touch takes three times as long as that of
    normal pages (https://docs.kernel.org/mm/free_page_reporting.html).
    """
    if size < MiB:
        raw = np.empty(size + ALIGNMENT, dtype=np.uint8)
        shift = -(raw.ctypes.data + data_start) % ALIGNMENT
        return raw.data[shift : shift + size]
    try:
        pages = mmap.mmap(-1, size + ALIGNMENT, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"No memory for {size:,} bytes.") from error
    shift = -data_start % ALIGNMENT  # pages are aligned
    return memoryview(pages)[shift : shift + size]
