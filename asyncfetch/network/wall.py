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

from ..errors import AsyncfetchError, CertificateError, NetworkError, ProtocolError, ProxyError, StalledError
from ..words import fit_to_show
from .proxies import Proxy
from .retry import may_pass

__all__ = [
    "our_request",
    "pool_is_full",
    "proxy_answered",
    "raise_translated",
    "redact_logs",
    "retry_after",
    "words_of",
]

# By name, since an injected client may be of httpx's or of httpx2's family.
# h2's own errors come through both where a body of HTTP/2 contradicts its length.
_FAMILIES = frozenset({"httpx", "httpcore", "httpx2", "httpcore2", "h2"})
_PARSERS = _FAMILIES | {"h11"}
# Bytes that came over the wire, or were to go: of a line that is no HTTP the parsers show all.
_QUOTATION = re.compile(r":?\s*(bytearray\()?\bb\\*['\"].*", re.DOTALL)


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


def words_of(headers: Mapping[str, str]) -> str:
    """What a Hub says of an answer that is none (X-Error-Message, X-Error-Code), fit to be shown; "" for nothing."""
    said = headers.get("x-error-message", "") or headers.get("x-error-code", "")
    return fit_to_show(said)


def raise_translated(error: Exception, url: str, proxy: Proxy | None = None) -> NoReturn:
    """Raise the error of ours for one of the network's; what is not the network's, as it is.

    `proxy` is the one that the request went through, as far as that is known.
    """
    _cut_quotations(error)
    ours = _translated(error, url, proxy)
    if ours is error:
        raise error
    raise ours from error


def _cut_quotations(error: BaseException) -> None:
    """Take out of a parser's error, and of those behind it, what they quote: it may be a token, or a signed link.

    What is left says what is wrong, and they stay causes of ours.
    """
    for one in _chain(error):
        if "ProtocolError" in type(one).__name__ and type(one).__module__.partition(".")[0] in _PARSERS:
            texts = (str(arg) if isinstance(arg, BaseException) else arg for arg in one.args)
            one.args = tuple(_QUOTATION.sub("", text) if isinstance(text, str) else text for text in texts)


def pool_is_full(error: Exception) -> bool:
    """Whether a client of the caller had no connection free for a request, which was not sent."""
    return "PoolTimeout" in _names(error)


def _names(error: Exception) -> set[str]:
    """What the network's libraries call an error; nothing if it is not theirs."""
    return {cls.__name__ for cls in type(error).__mro__ if cls.__module__.partition(".")[0] in _FAMILIES}


def _translated(error: Exception, url: str, proxy: Proxy | None) -> Exception:
    if isinstance(error, AsyncfetchError):
        return error
    through, hint = "", None
    if proxy:
        through = f" (through the proxy {proxy})"
        hint = f"{proxy.variable} names the proxy: does it run, and is that its address?"
    certificate = _certificate_fault(error)
    if certificate is not None:
        return _certificate_error(certificate, url, through)
    names = _names(error)
    kind, reason = type(error).__name__, fit_to_show(str(error)) or type(error).__name__
    if isinstance(error, UnicodeError):  # a name that no resolver can be asked for, as with a part of 64 letters
        return ProtocolError(f"{kind}: {reason}", url=url)
    if not names:
        return NetworkError(f"{kind}: {reason}{through}", url=url, hint=hint) if isinstance(error, OSError) else error
    if "ProxyError" in names:
        return _proxy_error(error, reason, url, proxy)
    if "PoolTimeout" in names:
        return StalledError(f"the client that was passed had no connection free ({kind})", url=url, hint=_FULL_POOL)
    if "TimeoutException" in names:
        return StalledError(f"timed out ({kind}){through}", url=url, hint=hint)
    if names & {"UnsupportedProtocol", "InvalidURL", "DecodingError", "TooManyRedirects"}:
        return ProtocolError(kind, url=url)
    return NetworkError(f"{kind}: {reason}{through}", url=url, hint=hint)


_FULL_POOL = (
    "Other requests use all that it may have: give it more (httpx.Limits(max_connections=...)), or another client."
)


def _proxy_error(error: Exception, reason: str, url: str, proxy: Proxy | None) -> ProxyError:
    """Of a CONNECT that was answered by another status than 2xx, or of SOCKS."""
    if status := re.match(r"([1-9][0-9]{2})\b", reason):  # as httpcore words it
        return proxy_answered(int(status[1]), url, proxy, reason)
    named = f"the proxy {proxy}" if proxy else "the proxy"
    lasting = getattr(error, "lasting", True)
    hint = f"Check {proxy.variable}." if proxy and lasting else ""
    message = f"{named} makes no connection: {reason.rstrip('.')}"
    return ProxyError(
        message, url=url, hint=hint, proxy=str(proxy) if proxy else None, status=None, transient=not lasting
    )


def proxy_answered(status: int, url: str, proxy: Proxy | None, reason: str = "") -> ProxyError:
    """The error for what a proxy answers instead of a connection. `reason` begins with the status."""
    named = f"the proxy {proxy}" if proxy else "the proxy"
    variable, hint = proxy.variable if proxy else "HTTPS_PROXY", ""
    if status == 407:
        hint = f"Write {variable}=http://USER:PASSWORD@HOST:PORT, with special characters percent-encoded."
    elif not may_pass(status):
        hint = "It does not let this address through: ask who runs it, or name the host in NO_PROXY to go around it."
    message = f"{named} answered {reason or status}"
    known = str(proxy) if proxy else None
    return ProxyError(message, url=url, hint=hint, proxy=known, status=status, transient=may_pass(status))


# OpenSSL's number of a fault (X509_V_ERR_..., openssl-verification-options(1)) -> a word, what it says, what to do.
_CLOCK = "Check the clock of this machine; if it is right, the server must renew its certificate."
_STORE = (
    "If a proxy between here and there inspects TLS, put its root certificate into the system's store, "
    "or name a file that holds it in SSL_CERT_FILE."
)
_PLACE = "Check the address; or something between here and there answers in its place, such as a sign-in page."
CERTIFICATE_FAULTS = {
    9: ("not_yet_valid", "it is not valid yet", "Check the clock of this machine."),
    10: ("expired", "it has expired", _CLOCK),
    18: ("self_signed", "it is signed by itself", _STORE),
    19: ("unknown_root", "it goes back to a root that is not in the store", _STORE),
    20: ("unknown_root", "nobody in the store has signed it", _STORE),
    21: ("unknown_root", "nobody in the store has signed it", _STORE),
    23: ("revoked", "it has been revoked", ""),
    62: ("wrong_host", "it is for another host", _PLACE),
    64: ("wrong_host", "it is for another address", _PLACE),
}


def _certificate_error(fault: ssl.SSLCertVerificationError, url: str, through: str) -> CertificateError:
    said = fit_to_show(getattr(fault, "verify_message", "") or fault.reason or str(fault))
    number = getattr(fault, "verify_code", 0)
    reason, what, hint = CERTIFICATE_FAULTS.get(number, ("other", said, None))
    error = CertificateError(f"its TLS certificate is not trusted: {what}{through}", url=url, hint=hint)
    error.reason = reason
    return error


def _certificate_fault(error: BaseException) -> ssl.SSLCertVerificationError | None:
    return next((seen for seen in _chain(error) if isinstance(seen, ssl.SSLCertVerificationError)), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it, as far as they are looked at."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__


# Each by its name, since a filter on a parent is not asked for the records of its children.
_LOGGERS = tuple(
    f"{family}{part}"
    for family in sorted(_FAMILIES)
    for part in ("", ".connection", ".http11", ".http2", ".proxy", ".socks")
)
_ours: ContextVar[bool] = ContextVar("asyncfetch_request", default=False)
_LOG = logging.getLogger("asyncfetch")


class _Redact(logging.Filter):
    """Cuts secrets out of the lines about our requests; those about others in the process stay as they are.

    A line for each request is for those who ask for details, here as in our own log: it needs "asyncfetch" at DEBUG.

    httpx logs whole URLs at INFO, httpcore logs the headers of answers at DEBUG: queries go (also
    relative ones), and the user and password of a URL, and cookies.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if _ours.get():
            if record.levelno <= logging.INFO and not _LOG.isEnabledFor(logging.DEBUG):
                return False
            text = re.sub(r"\?[^\s'\"]+", "?…", record.getMessage())
            text = _QUOTATION.sub("", text) if "ProtocolError(" in text else text
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
