"""Sizes, rates, times and names as text that people read.

Sizes are bytes; MB and GB are powers of ten, as the Hub shows them. Whatever came from a server goes
through `printable` first.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

__all__ = [
    "amount",
    "clock_text",
    "files",
    "fit_names",
    "printable",
    "rate_text",
    "ratio",
    "seconds_text",
    "size_text",
    "wrapped",
]

UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3), ("B", 1))


def files(count: int) -> str:
    """`count` with its noun."""
    return f"{count:,} file" if count == 1 else f"{count:,} files"


def ratio(part: int, whole: int) -> float:
    """The share of `whole` that is `part`, rounded down to percent; 1 only when it is all there."""
    return 1.0 if part >= whole else part * 100 // whole / 100


def _unit(size: float) -> tuple[str, int]:
    return next((unit for unit in UNITS if size >= unit[1]), UNITS[-1])


def _scaled(value: float, whole: float, unit: int) -> str:
    decimals = 0 if unit == 1 or whole / unit >= 99.95 else 1 if whole / unit >= 9.995 else 2
    return f"{value / unit:.{decimals}f}"


def size_text(size: float) -> str:
    """`size` bytes with three significant digits: "4.97 GB"."""
    name, unit = _unit(size)
    return f"{_scaled(size, size, unit)} {name}"


def rate_text(speed: float) -> str:
    """`speed` bytes a second: "53.1 MB/s"."""
    return f"{size_text(max(speed, 0.0))}/s"


def amount(part: int, whole: int) -> str:
    """Both in the unit of `whole`: "0.31/4.97 GB"."""
    name, unit = _unit(whole)
    return f"{_scaled(part, whole, unit)}/{_scaled(whole, whole, unit)} {name}"


def seconds_text(seconds: float) -> str:
    """A duration that has ended: "0.4 s", "38 s" or "3:07"."""
    if seconds >= 60:
        return clock_text(seconds)
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def clock_text(seconds: float) -> str:
    """A duration as "0:31" or "1:02:33"; days and more as "2 d"."""
    whole = int(seconds + 0.5)
    if whole >= 2 * 86400:
        return f"{whole // 86400} d"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def printable(text: str) -> str:
    r"""`text` with control and format characters as escapes ("\x1b"): a server must not drive the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def wrapped(text: str, width: int, *, indent: str = "") -> str:
    """`text` in lines of at most `width` characters, cut at spaces; those after the first begin with `indent`.

    A word that is longer, and what stands between backticks, is not cut: a path, a URL or a command is to be copied.
    """
    whole = re.sub(r"`[^`]*`", lambda found: found[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        whole, max(width, 1), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace("\0", " ")


def fit_names(names: Sequence[str], width: int, *, dots: str = "…") -> list[str]:
    """`names` cut to `width` characters, so that what tells them apart stays.

    First the shared ".safetensors" goes, then the rest of what all names end in, then of what they
    begin with; a name that is still too long loses its middle. Where that makes two of them one, names that differ in
    numbers alone, as shards do, are cut for themselves.
    """
    long = list(dict.fromkeys(name for name in names if len(name) > width))
    cut = dict(zip(long, _fit_alike(long, width, dots), strict=True))
    if len(set(cut.values())) < len(long):
        alike: dict[str, list[str]] = {}
        for name in long:
            alike.setdefault(re.sub(r"\d+", "0", name), []).append(name)
        for group in alike.values():
            cut |= zip(group, _fit_alike(group, width, dots), strict=True)
    return [cut.get(name, name) for name in names]


def _fit_alike(names: Sequence[str], width: int, dots: str) -> list[str]:
    ending = ".safetensors"
    if all(name.endswith(ending) for name in names):
        names = [name.removesuffix(ending) for name in names]
    if max(map(len, names), default=0) <= width:
        return list(names)
    head, tail = _shared(names), _shared([name[::-1] for name in names])
    if len(names) < 2:
        head = tail = 0
    return [_cut(name, head, tail, width, dots) for name in names]


def _shared(names: Sequence[str]) -> int:
    first, last = min(names), max(names)
    for count, (left, right) in enumerate(zip(first, last, strict=False)):
        if left != right:
            return count
    return min(len(first), len(last))


def _cut(name: str, head: int, tail: int, width: int, dots: str) -> str:
    if len(name) <= width:
        return name
    core_end = max(len(name) - tail, head)
    start = name[:core_end] + dots
    if tail and len(start) <= width:
        return start
    core = dots + name[head:core_end] + (dots if tail else "")
    if head and len(core) <= width:
        return dots + name[core_end - (width - len(core)) - (core_end - head) : core_end] + (dots if tail else "")
    keep = max(width - len(dots), 0)
    left = keep // 2
    return name[:left] + dots + name[len(name) - (keep - left) :] if keep else name[:width]
