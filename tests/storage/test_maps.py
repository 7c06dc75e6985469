"""Where a file lies in memory, and what of it."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from asyncfetch.spans import MiB
from asyncfetch.storage.maps import map_file

LARGE = 2 * MiB


@pytest.mark.skipif(sys.platform != "linux", reason="pages of two sizes are Linux's")
@pytest.mark.parametrize("size", [3 * LARGE + 5, 2 * LARGE, LARGE + mmap.PAGESIZE, LARGE - 1, 1])
def test_large_pages_stay_possible(tmp_path: Path, size: int) -> None:
    """A file is not mapped worse than the kernel itself would have it, and no byte beyond its end is."""
    content = np.random.default_rng(size).bytes(size)
    path = tmp_path / "shard"
    path.write_bytes(content)
    with path.open("rb") as stream:
        plain, pages = (
            mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY),
            map_file(stream.fileno(), size),
        )
    assert pages is not None
    assert pages[:] == content
    if size >= LARGE and not address(plain) % LARGE:
        assert not address(pages) % LARGE


def address(pages: mmap.mmap) -> int:
    return int(np.frombuffer(pages, np.uint8).ctypes.data)
