"""Where the Hub is, who asks, and whether to ask at all: read from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import SourceError, redact_url
from ..network.urls import origin_of
from ..storage.roots import expanded

__all__ = ["DEFAULT_ENDPOINT", "Settings", "cleaned", "find_token", "token_place"]


_TRUE = {"1", "ON", "YES", "TRUE"}


DEFAULT_ENDPOINT = "https://huggingface.co"
# Which send on to it. Asked there at once, so that no token goes without TLS or is left behind at another origin.
_OTHER_NAMES = ("https://hf.co", "http://hf.co", "http://huggingface.co")


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """Where the Hub is, who asks, and whether to ask at all. Its repr never shows the token.

    `token_fault` says why a token that is there cannot be used: nothing to who needs none.
    """

    endpoint: str
    token: str | None
    offline: bool
    token_fault: str = ""

    def __repr__(self) -> str:
        token = "set" if self.token else None
        return f"Settings(endpoint={redact_url(self.endpoint)!r}, token={token!r}, offline={self.offline})"

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str],
        *,
        endpoint: str | None = None,
        token: str | bool | None = None,
        offline: bool | None = None,
    ) -> Settings:
        """The settings by the same variables and files as huggingface_hub, read now.

        `token`: a string is used, False means none, True means that one must be found, None means
        that one is used if found: HF_TOKEN, HUGGING_FACE_HUB_TOKEN, the file HF_TOKEN_PATH
        (default HF_HOME/token). Raises SourceError.
        """
        given = (endpoint or "").strip() or environ.get("HF_ENDPOINT", "").strip() or DEFAULT_ENDPOINT
        chosen = given.rstrip("/")
        if not _is_web_url(chosen):
            hint = f"Write it as {DEFAULT_ENDPOINT}: HF_ENDPOINT or endpoint=."
            raise SourceError(f"The endpoint {redact_url(chosen)!r} is not an http(s) URL.", hint=hint)
        if chosen.lower() in _OTHER_NAMES:
            chosen = DEFAULT_ENDPOINT
        if offline is None:
            offline = any(environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
        found, fault = find_token(environ, token)
        return cls(chosen, found, offline, fault)


def _is_web_url(text: str) -> bool:
    if re.search(r"[\x00-\x20\x7f]", text):  # urlsplit leaves some of these out
        return False
    try:
        scheme, host, _ = origin_of(text)
    except ValueError:
        return False
    return scheme in ("http", "https") and bool(host)


def find_token(environ: Mapping[str, str], token: str | bool | None) -> tuple[str | None, str]:
    """The token to send, or None; and if one is there that cannot be sent, why not.

    Raises SourceError if `token` itself cannot be sent, or is True and none is found. What the environment holds
    fails nobody who may need no token, as for a public repository, a folder or a URL.
    """
    if isinstance(token, str):
        return cleaned(token, "The token"), ""
    if token is False or (token is None and environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE):
        return None, ""
    found, fault = None, ""
    try:
        found = cleaned(environ.get("HF_TOKEN"), "The token in HF_TOKEN")
        found = found or cleaned(environ.get("HUGGING_FACE_HUB_TOKEN"), "The token in HUGGING_FACE_HUB_TOKEN")
        found = found or _read_token(environ)
    except SourceError as error:
        fault = str(error)
    if found is None and token is True:
        raise SourceError(fault or "token=True, and no token was found.", hint="Set HF_TOKEN, or run `hf auth login`.")
    return found, fault


def _read_token(environ: Mapping[str, str]) -> str | None:
    """The token of the file that huggingface_hub keeps it in; None if there is no such file or nothing in it."""
    path = _token_file(environ)
    if path is None:
        return None
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name is impossible"
        raise SourceError(f"The token file {str(path)!r} cannot be read: {reason}.") from None
    # Some editors and shells begin a file with a mark of its encoding, and write UTF-16.
    encoding = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    return cleaned(text, f"The token in the file {str(path)!r}")


def _token_file(environ: Mapping[str, str]) -> Path | None:
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return expanded(environ.get("HF_TOKEN_PATH") or os.path.join(home, "token"))


def token_place(environ: Mapping[str, str]) -> str:
    """Where the token of the environment stands: the name of a variable, or of a file."""
    named = (name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if environ.get(name, "").strip())
    return next(named, None) or str(_token_file(environ))


def cleaned(token: str | None, what: str) -> str | None:
    """A secret without what files and shells put around it; None for nothing. Raises SourceError."""
    text = (token or "").replace("\r", "").replace("\n", "").strip().strip("\ufeff").strip()
    if not text.isascii() or not text.isprintable():
        raise SourceError(f"{what} has characters that no HTTP header can carry.")
    return text or None
