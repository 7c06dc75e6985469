"""What people write, as numbers."""

from __future__ import annotations

import pytest

from asyncfetch.words import size_of


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *[
            ("0", 0),
            ("7", 7),
            ("7B", 7),
            ("5GB", 5 * 10**9),
            ("20M", 20 * 10**6),
            ("1.5k", 1500),
            (" 2 tb ", 2 * 10**12),
        ],
        *[("512MiB", 512 * 2**20), ("1.5Ki", 1536), ("3gib", 3 * 2**30), ("2Ti", 2 * 2**40)],
        *[(text, None) for text in ("", "G", "-1", "1e3", "1.2.3", "10X", "٣", "5iB", "5 G B", "inf", "5GB/s")],
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    """Powers of ten, as sizes are shown, and of 1024 where an i says so; anything else is no size."""
    assert size_of(text) == size
