"""Which name was probably meant, also among as many as a mixture of experts has."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from itertools import islice
from typing import TypeVar

__all__ = ["near_name", "near_names"]

T = TypeVar("T")

_COMPARED = 200  # names that are all compared: each takes difflib some 60 microseconds
_SAMPLE = 1_000  # names at the beginning, at the end, and in between, whose words are known
_WRONG = 3  # words of a name that may be misspelt
_LONGEST = 500  # characters: difflib's work grows with their square


def near_name(name: str, names: Collection[str]) -> str | None:
    """The one of `names` that is most like `name`, or None if none is."""
    return next(iter(near_names(name, names, 1)), None)


def near_names(name: str, names: Collection[str], most: int) -> list[str]:
    """The `most` of `names` that are most like `name`, the nearest first.

    Many names are not compared one by one. They are made of few words between dots, which a sample shows:
    what is looked for is what `name` becomes where words that are not among them are spelled as those are,
    or where its first words or its last one are added or left out. The time hardly grows with the names.
    """
    if len(name) > _LONGEST:
        return []
    pool: Iterable[str] = names if len(names) <= _COMPARED else _respelled(name, names)
    return difflib.get_close_matches(name, [one for one in dict.fromkeys(pool) if len(one) <= _LONGEST], most)


def _respelled(name: str, names: Collection[str]) -> Iterable[str]:
    """Those of `names` that `name` becomes by words that it has wrong, too many or too few."""
    step = max(len(names) // _SAMPLE, 1)
    sample = [
        *islice(names, _SAMPLE),
        *islice(names, max(len(names) - _SAMPLE, 0), None),
        *islice(names, 0, None, step),
    ]
    known = [one.split(".") for one in sample if len(one) <= _LONGEST]
    words = _some(word for parts in known for word in parts if not word.isdecimal())
    heads = _some(tuple(parts[:length]) for parts in known for length in (1, 2))
    tails = _some(parts[-1] for parts in known)
    given = name.split(".")
    wrong = {part for part in given if part not in words and not part.isdecimal()}
    right = {part: _closest(part, words) for part in wrong} if len(wrong) <= _WRONG else {}
    for parts in (given, [right.get(part, part) for part in given]):
        variants = [parts, parts[1:], parts[2:], parts[:-1]]
        variants += [[*head, *parts] for head in heads]
        variants += [[*parts, tail] for tail in tails]
        yield from (one for one in map(".".join, variants) if one in names)


def _some(found: Iterable[T]) -> dict[T, None]:
    """The first distinct ones."""
    return dict.fromkeys(islice(dict.fromkeys(found), _COMPARED))


def _closest(word: str, words: dict[str, None]) -> str:
    return next(iter(difflib.get_close_matches(word, words, 1)), word)
