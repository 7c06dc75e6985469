"""What two URLs share, and where a redirect may lead. Pure."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from urllib.parse import urljoin, urlsplit

from ..errors import ProtocolError

__all__ = ["may_identify", "no_downgrade", "origin_of", "redirected"]


def origin_of(url: str) -> tuple[str, str, int]:
    """(scheme, host, port): what two URLs must share to share a token. RFC 6454, section 4."""
    return _origin_of("/".join(url.split("/", 3)[:3]))


@lru_cache(maxsize=64)  # each request asks several times
def _origin_of(start: str) -> tuple[str, str, int]:
    """Of a URL up to its path."""
    parts = urlsplit(start)
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(scheme, 0)


def may_identify(first: str, here: str) -> bool:
    """Whether what identifies the caller at `first`, a token above all, may go along to `here`.

    Within an origin; and from http to https of the same host, as httpx and curl do: who reads the second request
    could have read the first. On the usual ports alone, since behind any other may be somebody else's server.
    """
    one, other = origin_of(first), origin_of(here)
    return one == other or (one[1] == other[1] and (one[0], one[2], other[0], other[2]) == ("http", 80, "https", 443))


def redirected(here: str, location: str) -> str:
    """The address that a Location header at `here` names. Raises ProtocolError if it is none."""
    with suppress(ValueError):  # its text may show a password: so it is no context of ours
        target = urljoin(here, location)
        origin_of(target)
        return target
    raise ProtocolError("it redirects to something that is no address", url=here)


def no_downgrade(here: str, target: str) -> bool:
    """Whether a redirect may be followed at all: to http or https, and never from https to http."""
    schemes = urlsplit(here).scheme.lower(), urlsplit(target).scheme.lower()
    return schemes in {("http", "http"), ("http", "https"), ("https", "https")}
