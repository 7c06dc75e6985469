"""Tensors as a table in a notebook, with layers that are alike in one line."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from ..format.layers import folded_layers
from ..progress.text import printable, size_text

__all__ = ["tensor_table"]

_MOST = 40  # lines
_LEFT = ' style="text-align: left"'
_CELL = f"<td{_LEFT}>"


def tensor_table(title: str, tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> str:
    """HTML: `title`, and a line for each of `tensors` (name, dtype, shape, bytes), or for those that are alike."""
    lines = folded_layers(tensors)
    rows = [
        (
            printable(one.name),
            one.dtype,
            " × ".join(map(str, one.shape)) or "scalar",
            f"{one.count:,}",
            size_text(one.nbytes),
        )
        for one in lines[:_MOST]
    ]
    if len(lines) > _MOST:
        rest = lines[_MOST:]
        more = f"{sum(one.count for one in rest):,}"
        rows.append((f"and {len(rest):,} more like these", "", "", more, size_text(sum(one.nbytes for one in rest))))
    head = "".join(f"<th{_LEFT}>{name}</th>" for name in ("tensor", "dtype", "shape", "tensors", "size"))
    body = "".join("<tr>" + "".join(f"{_CELL}{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div>{escape(title)}</div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
