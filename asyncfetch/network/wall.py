"""The wall between the network's libraries and us: their errors become ours, their logs lose their secrets."""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from typing import NoReturn

from ..errors import CertificateError, NetworkError, ProtocolError, StalledError

__all__ = ["our_request", "raise_translated", "redact_logs", "retry_after"]

# By name, since an injected client may be of httpx's or of httpx2's family.
# h2's own errors come through both where a body of HTTP/2 contradicts its length.
_FAMILIES = frozenset({"httpx", "httpcore", "httpx2", "httpcore2", "h2"})


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: Retry-After (RFC 9110, 10.2.3), or an empty RateLimit.

    A date counts from the answer's own Date. Unreadable values are None, past dates are 0.
    """
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        return float(text)
    if text:
        try:
            then = parsedate_to_datetime(text)
            now = parsedate_to_datetime(headers["date"]) if "date" in headers else None
            reference = now.timestamp() if now is not None else time.time()
            return max(then.timestamp() - reference, 0.0)
        except (ValueError, TypeError, IndexError, OverflowError):
            pass
    empty = re.search(r";\s*r=0\s*;\s*t=([0-9]{1,9})\b", headers.get("ratelimit", ""), re.ASCII)
    return float(empty[1]) + 1.0 if empty else None


def raise_translated(error: Exception, url: str) -> NoReturn:
    """Raise the error of ours for one of the network's; what is not the network's, as it is."""
    ours = _translated(error, url)
    if ours is error:
        raise error
    raise ours from error


def _translated(error: Exception, url: str) -> Exception:
    if isinstance(error, ssl.SSLCertVerificationError) or _caused_by_certificate(error):
        return CertificateError("its TLS certificate is not trusted", url=url)
    names = {cls.__name__ for cls in type(error).__mro__ if cls.__module__.partition(".")[0] in _FAMILIES}
    reason = str(error) or type(error).__name__
    if not names:
        if isinstance(error, OSError):
            return NetworkError(f"{type(error).__name__}: {reason}", url=url)
        return error
    if "TimeoutException" in names:
        return StalledError(f"timed out ({type(error).__name__})", url=url)
    if names & {"ProxyError", "UnsupportedProtocol", "InvalidURL", "DecodingError", "TooManyRedirects"}:
        return ProtocolError(type(error).__name__, url=url)
    return NetworkError(f"{type(error).__name__}: {reason}", url=url)


def _caused_by_certificate(error: BaseException) -> bool:
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return False
        if isinstance(seen, ssl.SSLCertVerificationError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


# Each by its name, since a filter on a parent is not asked for the records of its children.
_LOGGERS = tuple(
    f"{family}{part}"
    for family in sorted(_FAMILIES)
    for part in ("", ".connection", ".http11", ".http2", ".proxy", ".socks")
)
_ours: ContextVar[bool] = ContextVar("asyncfetch_request", default=False)


class _Redact(logging.Filter):
    """Cuts secrets out of the lines about our requests; those about others in the process stay as they are.

    httpx logs whole URLs at INFO, httpcore logs the headers of answers at DEBUG: queries go (also
    relative ones), and the user and password of a URL, and cookies.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if _ours.get():
            text = re.sub(r"\?[^\s'\"]+", "?…", record.getMessage())
            text = re.sub(r"//[^\s'\"/?#]*@", "//", text)
            record.msg, record.args = re.sub(r"(?i)(b'set-cookie', b)('[^']*'|\"[^\"]*\")", r"\1'…'", text), ()
        return True


_REDACT = _Redact()


def redact_logs() -> None:
    """Put a filter on the loggers of the network's libraries. It does nothing outside of `our_request`."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_REDACT)  # adding the same filter again changes nothing


@contextmanager
def our_request() -> Iterator[None]:
    """What is logged in the block has no secrets, once `redact_logs` was called."""
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)
