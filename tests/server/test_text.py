"""How the server words sizes."""

from __future__ import annotations

import pytest

from asyncfetch.server.text import size_text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *[(0, "0 B"), (999, "999 B"), (3 * 10**6, "3 MB"), (90_856_960, "90.9 MB"), (4_970_000_000, "4.97 GB")],
        *[(999_600_000, "1000 MB"), (100_000, "100 kB"), (10_040_000, "10 MB"), (7 * 10**15, "7000 TB")],
    ],
)
def test_sizes(size: int, text: str) -> None:
    """Three digits and no zeros behind them, also just below the next unit."""
    assert size_text(size) == text
