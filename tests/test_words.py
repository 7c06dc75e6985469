"""What people write, as numbers, and fit to be shown."""

from __future__ import annotations

import pytest

from asyncfetch.words import redact_source, size_of, without_secrets


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("'https://me:pw@h/a?sig=1' is no size", "'https://h/a?…' is no size"),
        ("https://h/a?…: the server answered 503", "https://h/a?…: the server answered 503"),
        ("two: s3://key@b/c#d and ftp://h/?x.", "two: s3://b/c?… and ftp://h/?…"),
        ("The folder https:/me:pw@h does not exist", "The folder https:/h does not exist"),
        ("/models/what?b=c#d@e: no such file", "/models/what?b=c#d@e: no such file"),
        ("ratio 1:/2?x", "ratio 1:/2?…"),
        ("is it org/m@main?", "is it org/m@main?"),
    ],
)
def test_urls_within_a_message(text: str, shown: str) -> None:
    """They lose what may be secret, whatever stands before and behind them; what is no URL stays."""
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("https://me:pw@h/a?sig='1' 2", "https://h/a?…"),
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("org/m@refs/pr/1", "org/m@refs/pr/1"),
        ("./a b?c", "./a b?c"),
    ],
)
def test_a_source(source: str, shown: str) -> None:
    """A URL as a whole, and nothing else, is cut."""
    assert redact_source(source) == shown
