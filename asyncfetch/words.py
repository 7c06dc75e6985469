"""What others wrote, fit for a message or a log: on one line, bounded, without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

__all__ = [
    "counted", "fit_to_show", "folded", "kind_of", "misfits", "quoted", "redact_source", "redact_url", "size_of",
    "some_of", "unlike", "without_secrets",
]  # fmt: skip


def redact_url(url: str) -> str:
    """`url` without user, password, query (which may be a signature) and fragment: fit for a message or a log."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "<unreadable URL>"
    return urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))


def redact_source(source: str) -> str:
    """What a caller named, fit for a message or a log: a URL without its secrets, a repository or a path as it is."""
    return redact_url(source) if "://" in source else source


def without_secrets(text: str) -> str:
    """`text` with no credentials, query or fragment in the URLs that it has, such as one in the place of an option."""
    if ":/" not in text:
        return text
    text = re.sub(r"(?<=:/)(/?)[^\s'\"/?#]*@", r"\1", text)
    return re.sub(r"(\w:/[^\s'\"?#]*)[?#](?!…)[^\s'\"]*", r"\1?…", text)


def fit_to_show(text: str, limit: int = 200) -> str:
    """What a server or a proxy says, in at most `limit` characters: no token, no credentials or query of a URL."""
    text = " ".join("".join(char if char.isprintable() else " " for char in text[: 20 * limit]).split())
    text = re.sub(r"(?<=//)[^\s'\"/?#]*@", "", text)
    text = re.sub(r"(?<=[/\w])\?[^\s'\"<>()]*=[^\s'\"<>()]*", "?…", text)
    text = re.sub(r"(?i)\b(Bearer|Basic)\s+[^\s,;'\"]+", r"\1 …", text)
    text = re.sub(r"\b(hf|api_org)_\w+", r"\1_…", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def quoted(said: str) -> str:
    """What a server says (see `fit_to_show`), to stand behind a sentence of ours."""
    return f" The server says: {said.rstrip('.')}." if said else ""


def some_of(names: Sequence[str], most: int) -> str:
    """The first `most` names, and whether there are more."""
    return ", ".join([*names[:most], *(["…"] if len(names) > most else [])])


def counted(shown: Sequence[str], total: int) -> str:
    """Names of which `shown` are the first of `total`, and how many more there are."""
    more = total - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")


_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?)(i?)B?", re.ASCII | re.IGNORECASE)


def size_of(text: str) -> int | None:
    """The bytes that a person means by "5GB", "20M" (powers of ten, as sizes are shown), "512MiB" (of 1024), or "7"."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        return None
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " "))


def kind_of(message: str) -> str:
    """`message` without the names and numbers in it: the same for all that say the same of different things."""
    return _NAMES.sub("*", message)


def folded(messages: Iterable[str]) -> list[str]:
    """One line for those that differ in numbers and names alone: the first of them, and how many there are."""
    alike: dict[str, list[str]] = {}
    for message in messages:
        alike.setdefault(kind_of(message), []).append(message)
    return [
        found[0] if len(found) == 1 else f"{found[0]} (and {len(found) - 1:,} more like this)"
        for found in alike.values()
    ]


_NAMES = re.compile(r"'[^']*'|\"[^\"]*\"|\S*\.safetensors\b|\S*\d\S*")


def unlike(found: Mapping[str, tuple[Any, Any]], most: int = 8) -> list[str]:
    """In what tensors of a model and of a checkpoint differ, by their names; the first `most` of them."""
    told = [f"{name} is {own} in the model and {its} in the checkpoint" for name, (own, its) in found.items()]
    return [*told[:most], *([f"{len(told):,} such in all"] if len(told) > most else [])]


def misfits(
    named: Mapping[str, Sequence[str]], unlikes: Iterable[Mapping[str, tuple[Any, Any]]], reasons: Sequence[str]
) -> str:
    """In what a state dict does not fit a model: the first of the names that are `named`, what is `unlike`, and why."""
    parts = [f"{len(names):,} {label} ({some_of(names, 5)})" for label, names in named.items() if names]
    parts += [part for found in unlikes for part in unlike(found)]
    return "; ".join([*parts, *reasons[:5], *["…"] * (len(reasons) > 5)])
