"""How the server words sizes, and what others wrote, in logs, headers and pages."""

from __future__ import annotations

__all__ = ["header_text", "size_text"]


def size_text(size: float) -> str:
    """`size` bytes in powers of ten, as the Hub shows them: "4.97 GB"."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"


def header_text(text: str) -> str:
    """`text` as it may stand in a header or on a line of a log."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)
