"""How the server words sizes, and what others wrote, in logs, headers and pages."""

from __future__ import annotations

from ..progress.text import size_text as exact_size_text

__all__ = ["header_text", "size_text", "span_text"]


def size_text(size: float) -> str:
    """`size` bytes as the command line has them, without zeros that say nothing: "4.97 GB", "3 MB"."""
    number, _, unit = exact_size_text(size).partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


def header_text(text: str) -> str:
    """`text` as it may stand in a header or on a line of a log."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)


def span_text(seconds: float) -> str:
    """A time as people say it, in one unit: "31 s", "5 min", "3 h", "4 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
