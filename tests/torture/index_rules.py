"""The rules of asyncfetch.format.index in other words: `judge` says what must be read from any bytes, if anything."""

from __future__ import annotations

import json
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

MAX_BYTES = 1 << 13
MAX_SHARDS = 8
DEVICES = ["CON", "nul", "Aux", "PRN", "COM1", "com9", "LPT3", "CONIN$", "conout$", "COM²", "LPT³", "con ", "COM0"]


class Members(list[tuple[str, Any]]):
    """An object with all its members, also those of the same name."""


def judge(raw: bytes) -> dict[str, str] | None:
    """The weight_map of an index; None if the index must be refused."""
    if len(raw) > MAX_BYTES:
        return None
    try:
        decoder = json.JSONDecoder(object_pairs_hook=Members, parse_constant=lambda name: {}[name])
        top = decoder.decode(raw.decode("utf-8-sig"))
    except (ValueError, KeyError, RecursionError):
        return None
    maps = [value for key, value in top if key == "weight_map"] if isinstance(top, Members) else []
    if len(maps) != 1 or not isinstance(maps[0], Members) or not all(is_text(value) for value in strings_of(top)):
        return None
    weight_map = dict(maps[0])
    shards = [value for _, value in maps[0]]
    if not all(isinstance(shard, str) and is_portable(shard) for shard in shards):
        return None
    once = len(set(maps[0])) == len(weight_map) > 0 and "__metadata__" not in weight_map
    return weight_map if once and are_apart(set(shards)) and len(set(shards)) <= MAX_SHARDS else None


def strings_of(value: Any) -> list[str]:
    """Every string in a tree."""
    if isinstance(value, str):
        return [value]
    inner = [part for member in value for part in member] if isinstance(value, Members) else value
    return [text for part in inner for text in strings_of(part)] if isinstance(inner, list) else []


def is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_portable(name: str) -> bool:
    """Whether a shard's name is one relative path, the same one, on every system."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if (
        str(posix) != name
        or windows.parts != posix.parts
        or windows.drive
        or ":" in name
        or name[-12:] != ".safetensors"
    ):
        return False
    if not all(letter.isprintable() or unicodedata.category(letter) in ("Zs", "Co", "Cn") for letter in name):
        return False
    stems = {part.partition(".")[0].rstrip(" ").upper() for part in posix.parts}
    devices = {device.rstrip(" ").upper() for device in DEVICES}
    devices |= {port + digit for port in ("COM", "LPT") for digit in "0123456789¹²³"}
    return (
        len(name.encode()) <= 1024
        and not stems & devices
        and all(len(part.encode()) <= 255 and part == part.rstrip(". ") and part != ".." for part in posix.parts)
    )


def are_apart(shards: set[str]) -> bool:
    """Whether no file system takes two of the shards for one, or one for the folder of another."""
    folded = {unicodedata.normalize("NFC", unicodedata.normalize("NFD", shard).casefold()) for shard in shards}
    folders = {str(parent) for shard in folded for parent in PurePosixPath(shard).parents}
    return len(folded) == len(shards) and not folded & folders
