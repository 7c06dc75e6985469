"""What a file is that should be safetensors and is not, from its first bytes."""

from __future__ import annotations

import re

__all__ = ["recognize"]

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
