"""Sizes, times and names as people read them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncfetch.progress.text import amount, clock_text, fit_names, printable, rate_text, ratio, size_text, wrapped


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (53_123_456, "53.1 MB"),
        (4_973_283_328, "4.97 GB"),
        (2e12, "2.00 TB"),
    ],
)
def test_sizes_have_three_digits(size: float, text: str) -> None:
    """A size is shown in the largest unit that it fills, with three significant digits."""
    assert size_text(size) == text


def test_amounts_share_the_unit_of_the_whole() -> None:
    """Part and whole are comparable at a glance, and never wider than a column of 12."""
    assert amount(310_000_000, 4_970_000_000) == "0.31/4.97 GB"
    assert amount(0, 0) == "0/0 B"
    assert amount(99_960_000_000, 99_960_000_000) == "100/100 GB"


@given(st.integers(0, 10**13), st.integers(0, 10**13))
def test_amounts_fit_their_column(one: int, other: int) -> None:
    """No amount is wider than its column, whatever the sizes."""
    part, whole = sorted((one, other))
    assert len(amount(part, whole)) <= 12


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0:00"), (31, "0:31"), (3753, "1:02:33"), (86399, "23:59:59"), (9e5, "10 d")]
)
def test_clock(seconds: float, text: str) -> None:
    """A remaining time reads like a clock, and in days when it is long."""
    assert clock_text(seconds) == text


def test_a_share_reaches_one_hundred_percent_only_at_the_end() -> None:
    """The last byte is what makes 100 %; nothing of nothing is all."""
    assert f"{ratio(999_999, 1_000_000):.0%}" == "99%"
    assert ratio(1_000_000, 1_000_000) == 1
    assert ratio(0, 0) == 1


def test_a_rate_is_never_negative() -> None:
    """A clock that steps or a file that starts over shows no negative rate."""
    assert rate_text(-5) == "0 B/s"


def test_control_characters_are_escaped() -> None:
    """What a server names cannot move the cursor, set a title or reverse the reading order."""
    assert printable("a\x1b]0;x\x07\u202eb\nc\udcff") == "a\\x1b]0;x\\x07\\u202eb\\nc\\udcff"
    assert printable("模型-é [red]") == "模型-é [red]"


def numbered(count: int = 163) -> list[str]:
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def test_names_that_fit_are_left_alone() -> None:
    """Nothing is cut without need, and first what every name ends in."""
    assert fit_names(numbered()[:1], 40) == ["model-00001-of-00163.safetensors"]
    assert fit_names(numbered()[:2], 20) == ["model-00001-of-00163", "model-00002-of-00163"]


@pytest.mark.parametrize("width", range(5, 33))
def test_shards_stay_distinct_when_shortened(width: int) -> None:
    """163 shards have 163 different names at every width that can hold the number."""
    short = fit_names(numbered(), width)
    assert max(map(len, short)) <= width
    assert len(set(short)) == 163


@pytest.mark.parametrize("width", [1, 9, 20, 30, 200])
def test_lines_are_cut_at_spaces(width: int) -> None:
    """No word is cut, and no command between backticks; a longer one has a line for itself."""
    text = "Run it again, or see `asyncfetch load --help`; it is at https://example.org/a-very/long-path here."
    lines = wrapped(text, width, indent="  ").split("\n")
    assert " ".join(line.strip() for line in lines) == text
    assert all(line.startswith("  ") for line in lines[1:])
    assert all(len(line) <= width or re.fullmatch(r"\s*(`[^`]*`\S*|\S+)", line) for line in lines)


def test_shards_stay_distinct_beside_other_files() -> None:
    """Whatever else is listed with them, as tokenizers and indexes are."""
    others = ["tokenizer.json", "model.safetensors.index.json", "special_tokens_map_of_the_model.json"]
    short = fit_names([*numbered(4), *others], 21)
    assert short[:5] == [*(f"model-{i:05}-of-00004" for i in range(1, 5)), "tokenizer.json"]
    assert len(set(short)) == 7


@given(st.lists(st.text(min_size=1, max_size=60), max_size=8), st.integers(1, 50), st.sampled_from(["…", "..."]))
def test_shortened_names_never_exceed_the_width(names: list[str], width: int, dots: str) -> None:
    """Any names at any width: as many come out as went in, none too long."""
    short = fit_names(names, width, dots=dots)
    assert len(short) == len(names)
    assert all(len(name) <= max(width, len(dots)) for name in short)
