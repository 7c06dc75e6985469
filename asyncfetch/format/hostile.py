"""What is read as hostile input: JSON by the letter, and what a file is that should be safetensors and is not."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable
from typing import Any

__all__ = ["FlawError", "parse_json", "recognize", "short_repr"]

# The length of a real header is mostly zeros, so it is not taken for one of the texts.
_KNOWN_CONTENT = tuple(
    (re.compile(pattern, re.DOTALL), sentence)
    for pattern, sentence in (
        (rb"\0+\Z", "It begins with zeros: a copy or a download was not finished."),
        (rb"version ", "It looks like a Git LFS pointer: run `git lfs pull`, or fetch it through the Hub."),
        (rb"<{7} ?", "It holds the marks of an unresolved Git merge conflict."),
        (rb"(?=[^\0]{8})\s*<[!?a-zA-Z]", "It looks like HTML or XML: an error or a login page was saved in its place."),
        (rb"(?=[^\0]{8})\s*[{[]\s*[\"{}[]", "It looks like JSON: an error message or an index was saved in its place."),
        (rb"PK\x03\x04", "It is a zip archive, as torch.save writes: convert it to safetensors."),
        (rb"\x80[\x02-\x05][c(}\]\x8a\x95]", "It is a pickle, as torch.save writes: convert it to safetensors."),
        (rb"GGUF", "It is a GGUF file, not safetensors."),
        (rb"\x93NUMPY", "It is a numpy .npy file, not safetensors."),
        (rb"\x89HDF", "It is an HDF5 file, not safetensors."),
        (rb"\x1f\x8b\x08", "It is compressed with gzip: a Content-Encoding was not undone."),
        (rb"\x28\xb5\x2f\xfd", "It is compressed with zstd: a Content-Encoding was not undone."),
        (rb"[\t\r\n -~]{8,}\Z", "It looks like plain text: an error message was saved in its place."),
    )
)


def recognize(prefix: bytes) -> str:
    """A sentence that says what a file is that begins with `prefix`, or "" where that is unclear."""
    return next((sentence for pattern, sentence in _KNOWN_CONTENT if pattern.match(prefix)), "")


_FREE_BRACKETS = 250_000


_CHARACTERS_PER_BRACKET = 6  # the shortest entries have seven; [] and a comma take three, and 64 bytes in memory


class FlawError(ValueError):
    """A broken rule, before it is known in which file."""

    def __init__(self, reason: str, tensor: str | None = None, hint: str = "") -> None:
        self.reason, self.tensor, self.hint = reason, tensor, hint
        super().__init__(reason if tensor is None else f"tensor {short_repr(tensor)} {reason}")


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlevel = 3


def short_repr(value: object) -> str:
    """`repr(value)` without its middle: hostile names and nesting must not flood a message, or the stack."""
    return _SHORT.repr(value)


def parse_json(raw: bytes | memoryview, object_hook: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    """The value of `raw` by the letter of RFC 8259, in UTF-8. Objects are what `object_hook` makes of their pairs.

    Unlike the json module: no NaN or Infinity, no byte-order mark, no other encoding, no lone
    surrogate, no millions of brackets, and -0 is a float. Raises ValueError with a short reason
    that continues "it …".
    """
    try:
        text = str(raw, "utf-8")
        _refuse_bomb(text)
        tree = json.loads(
            text,
            object_pairs_hook=object_hook,
            parse_constant=_refuse_constant,
            parse_int=_parse_int if "-0" in text else None,
        )
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 at byte {error.start}"
    except json.JSONDecodeError as error:
        reason = f"is not JSON: {error.msg.removesuffix(' at')} at character {error.pos}"
    except RecursionError:
        reason = "is nested too deeply"
    except ValueError as error:
        reason = str(error) if isinstance(error, FlawError) else "has an integer of thousands of digits"
    else:
        if "\\u" not in text or not any(match[1] for match in _ESCAPES.finditer(text)):
            return tree
        reason = "has half of a surrogate pair"
    raise ValueError(reason)  # out here, so that no context keeps the whole text alive


# Every escape of a valid text, from left to right; group 1 is a surrogate without its partner.
_ESCAPES = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)


def _refuse_bomb(text: str) -> None:
    most = max(_FREE_BRACKETS, len(text) // _CHARACTERS_PER_BRACKET)
    if len(text) > most and text.count("[") + text.count("{") > most:
        raise FlawError(f"has more than {most:,} brackets in {len(text):,} characters")


def _refuse_constant(name: str) -> None:
    raise FlawError(f"is not JSON, which has no {name}")


def _parse_int(digits: str) -> int | float:
    return -0.0 if digits == "-0" else int(digits)
