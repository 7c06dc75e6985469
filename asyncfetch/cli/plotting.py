"""A picture of where the bytes of a checkpoint are, by matplotlib. Needs the extra `plot`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..api.results import Inspection
from ..errors import SourceError, storage_errors
from ..format.layers import Part, parts_of, stem_of
from ..format.writer import check_output
from ..progress.text import fit_names, printable, size_text

__all__ = ["check_plot", "plot"]

_FORMATS = ("png", "svg", "pdf")
_MOST_PARTS = 12  # bars; the smallest are together in the last one
_MOST_KINDS = 8  # colours of a layer's pieces
_NAME = 34  # characters of a part's name
_WIDTH, _BAR, _LAYERS = 10.0, 0.3, 3.2  # inches


def check_plot(path: Path) -> Path:
    """`path` as a place for a picture, checked before anything is asked for. Raises SourceError and StorageError."""
    if path.suffix.lower().lstrip(".") not in _FORMATS:
        raise SourceError(f"--plot {str(path)!r:.200} is no picture: its name ends in none of .png, .svg and .pdf.")
    _figures()
    return check_output(path)


def plot(found: Inspection, path: Path) -> None:
    """Write a picture of `found` to `path`, replaced as a whole: its parts, and the layers of its largest stack.

    Raises StorageError.
    """
    rows = [(name, info.dtype, info.shape, info.nbytes) for name, (_, info) in found.tensors.items()]
    parts = parts_of((name, shape, nbytes) for name, _, shape, nbytes in rows)
    stack = max((part for part in parts if len(part.layers) > 1), key=lambda part: part.nbytes, default=None)
    heights = [max(_BAR * (min(len(parts), _MOST_PARTS) + 2), 1.2), *([_LAYERS] if stack else [])]
    figure: Any = _figures().Figure(figsize=(_WIDTH, sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    at = f" at {found.commit[:12]}" if found.commit else ""
    size = size_text(sum(row[3] for row in rows))
    figure.suptitle(_text(f"{found.source}{at}: {found.parameters:,} parameters, {size}"), fontsize=11)
    _draw_parts(axes[0], parts, rows)
    if stack is not None:
        _draw_layers(axes[1], stack, rows)
    partial = path.with_name(
        f".{secrets.token_hex(8)}.asyncfetch.incomplete"
    )  # the other name may be as long as can be
    try:
        with storage_errors(path, writing="output"):
            figure.savefig(partial, format=path.suffix.lower().lstrip("."), dpi=150)
            partial.replace(path)
    finally:
        with suppress(OSError):  # what went wrong before is what counts
            partial.unlink()


def _figures() -> Any:
    """The module of matplotlib that draws without a window."""
    try:
        from matplotlib import figure
    except ImportError:
        raise SourceError(
            "A picture needs matplotlib, which is not installed.", hint="Run: pip install 'asyncfetch[plot]'"
        ) from None
    return figure


def _text(text: str) -> str:
    """What a source names, for a picture: a dollar sign would begin a formula."""
    return printable(text).replace("$", r"\$")


Rows = Sequence[tuple[str, str, tuple[int, ...], int]]


def _draw_parts(axes: Any, parts: Sequence[Part], rows: Rows) -> None:
    """A bar for each part, the largest first, in a colour for each dtype."""
    shown = parts if len(parts) <= _MOST_PARTS else parts[: _MOST_PARTS - 1]
    places = {part.stem: n for n, part in enumerate(shown)}
    sums: dict[str, list[int]] = {}
    for name, dtype, _, nbytes in rows:
        place = places.get(stem_of(name)[0], len(shown))
        sums.setdefault(dtype, [0] * (len(shown) + 1))[place] += nbytes
    names = fit_names([printable(part.name) for part in shown], _NAME)
    if len(shown) < len(parts):
        names.append(f"{len(parts) - len(shown):,} others")
    _stack(axes.barh, [(dtype, counts[: len(names)]) for dtype, counts in _largest_first(sums)], range(len(names)))
    axes.set_yticks(range(len(names)), map(_text, names))
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: size_text(value))
    totals = [sum(counts[n] for counts in sums.values()) for n in range(len(names))]
    for n, total in enumerate(totals):
        axes.annotate(f" {size_text(total)}", (total, n), va="center", fontsize=8)
    axes.set_xlim(0, max(totals, default=0) * 1.15 or 1)  # room for the text beside the longest bar
    _tidy(axes, "dtype")


def _draw_layers(axes: Any, stack: Part, rows: Rows) -> None:
    """A bar for each layer of a stack, in a colour for each of its pieces."""
    numbers = sorted(stack.layers)
    place = {number: n for n, number in enumerate(numbers)}
    sums: dict[str, list[int]] = {}
    for name, _, _, nbytes in rows:
        if (found := stack.layer_of(name)) is not None:
            number, rest = found
            sums.setdefault(rest.partition(".")[0] or "all", [0] * len(numbers))[place[number]] += nbytes
    pieces = _largest_first(sums)
    if len(pieces) > _MOST_KINDS:
        others = [sum(column) for column in zip(*(counts for _, counts in pieces[_MOST_KINDS - 1 :]), strict=True)]
        pieces = [*pieces[: _MOST_KINDS - 1], ("others", others)]
    _stack(axes.bar, pieces, numbers)
    axes.set_xlabel(_text(stack.name))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: size_text(value))
    _tidy(axes, "a layer")


def _largest_first(sums: dict[str, list[int]]) -> list[tuple[str, list[int]]]:
    return sorted(sums.items(), key=lambda item: -sum(item[1]))


def _stack(draw: Any, sums: Sequence[tuple[str, list[int]]], places: Sequence[int]) -> None:
    """Draw bars on each other, or beside each other where they lie."""
    below = [0] * len(places)
    start = "left" if draw.__name__ == "barh" else "bottom"
    for name, counts in sums:
        draw(places, counts, label=_text(name), **{start: below})
        below = [one + other for one, other in zip(below, counts, strict=True)]


def _tidy(axes: Any, title: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title=title, fontsize=8, title_fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
