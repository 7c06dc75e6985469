"""Where the Hub is, who asks, and whether to ask at all: read from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import SourceError, redact_url
from ..network.urls import origin_of

__all__ = ["DEFAULT_ENDPOINT", "Settings", "find_token"]


_TRUE = {"1", "ON", "YES", "TRUE"}


DEFAULT_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """Where the Hub is, who asks, and whether to ask at all. Its repr never shows the token."""

    endpoint: str
    token: str | None
    offline: bool

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
        chosen = (endpoint or environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        if not _is_web_url(chosen):
            raise SourceError(f"The endpoint {redact_url(chosen)!r} is not an http(s) URL.")
        if offline is None:
            offline = any(environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
        return cls(chosen, find_token(environ, token), offline)


def _is_web_url(text: str) -> bool:
    try:
        scheme, host, _ = origin_of(text)
    except ValueError:
        return False
    return scheme in ("http", "https") and bool(host)


def find_token(environ: Mapping[str, str], token: str | bool | None) -> str | None:
    """The token to send, or None. Raises SourceError if `token` is True and none is found."""
    if isinstance(token, str):
        return _clean(token)
    if token is False or (token is None and environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE):
        return None
    found = _clean(environ.get("HF_TOKEN")) or _clean(environ.get("HUGGING_FACE_HUB_TOKEN"))
    if found is None:
        home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
        path = environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")
        try:
            found = _clean(Path(os.path.expandvars(path)).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            found = None
    if found is None and token is True:
        raise SourceError("token=True, and no token was found.", hint="Set HF_TOKEN, or run `hf auth login`.")
    return found


def _clean(token: str | None) -> str | None:
    text = (token or "").replace("\r", "").replace("\n", "").strip()
    if not text.isascii() or not text.isprintable():
        raise SourceError("The token has characters that no HTTP header can carry.")
    return text or None
