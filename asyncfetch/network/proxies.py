"""Which proxy a request goes through, by the variables of the environment. Pure: no socket, no client.

Read as curl and httpx read them (https://everything.curl.dev/usingcurl/proxies/env.html), and so that any
spelling that means one thing only is understood. What cannot be understood is an error that names the variable
and never its value, which may hold a password. It comes when a request is about to go through that proxy:
whoever needs no network does not hear of it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes, urlsplit

import httpx

from ..errors import SourceError

__all__ = ["Proxies", "Proxy"]

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
# What desktops write (`socks://`) speaks version 5 everywhere by now. Names are always resolved by the proxy.
_SCHEMES = {"socks": "socks5", **{name: name for name in _PORTS}}
_EXAMPLE = "Write http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT with special characters percent-encoded."
_BLANKS = re.compile(r"[\s,]+")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and who uses it. As text it has no credentials."""

    scheme: str
    host: str  # an IPv6 address without brackets
    port: int
    auth: tuple[bytes, bytes] | None = field(default=None, repr=False)
    variable: str = ""  # that names it

    @property
    def socks(self) -> bool:
        """Whether it speaks SOCKS 5 rather than HTTP."""
        return self.scheme.startswith("socks")

    def __str__(self) -> str:
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class Proxies:
    """The proxies of an environment, by the scheme of what is asked for, and what goes around them."""

    def __init__(self, found: Mapping[str, str]) -> None:
        """`found` is as `urllib.request.getproxies` has it: "http", "https", "all" and "no" to their values."""
        self._found = {scheme: text.strip() for scheme, text in found.items()}
        self._around = [entry for entry in _BLANKS.split(self._found.get("no", "")) if entry]

    def for_url(self, url: str) -> Proxy | None:
        """The proxy of a request to `url`; None where it goes straight. Raises SourceError if it is no usable one."""
        parts = urlsplit(url)
        scheme = next((name for name in (parts.scheme.lower(), "all") if self._found.get(name)), None)
        if scheme is None:
            return None
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme.lower(), 0)
        if any(_covers(entry, parts.scheme.lower(), host, port) for entry in self._around):
            return None
        return _parsed(self._found[scheme], f"{scheme.upper()}_PROXY")


def _parsed(text: str, variable: str) -> Proxy:
    """The proxy that `text` names: [SCHEME://][USER[:PASSWORD]@]HOST[:PORT][/]."""
    start = re.match(r"([a-z][a-z0-9+.-]*)://", text, re.ASCII | re.IGNORECASE)
    scheme, rest = (start[1], text[start.end() :]) if start else ("http", text)
    known = _SCHEMES.get(scheme.lower())
    if known is None:
        kinds = "http, https, socks5 and socks5h"
        raise SourceError(f"{variable} names a proxy of a kind that is not supported.", hint=f"These are: {kinds}.")
    # By the last @, since passwords are often written as they are, with @, /, : or # in them.
    user, _, place = rest.rpartition("@")
    place = re.split(r"[/?#]", place, maxsplit=1)[0].strip()
    match = re.fullmatch(r"(\[[^\[\]]+\]|[^:\[\]\s]+)(?::(.*))?", place)
    host = _host(match[1].strip("[]")) if match else None
    port = match[2] or str(_PORTS[known]) if match else ""
    if host is None or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        what = "no usable host" if host is None else "no usable port"
        raise SourceError(f"{variable} has {what}.", hint=_EXAMPLE)
    name, _, password = user.partition(":")
    auth = (_decoded(name), _decoded(password)) if user.strip(":") else None
    if known.startswith("socks") and auth and max(map(len, auth)) > 255:  # RFC 1929
        raise SourceError(f"{variable}: SOCKS allows no more than 255 bytes for a user or a password.")
    return Proxy(known, host, int(port), auth, variable)


def _host(text: str) -> str | None:
    """A host as it is asked for, in ASCII; None if it is none."""
    with suppress(httpx.InvalidURL, ValueError):
        return httpx.URL(scheme="http", host=text).raw_host.decode("ascii") or None
    return None


def _decoded(text: str) -> bytes:
    """What percent signs stand for; one that stands for nothing is itself."""
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape"))


def _covers(entry: str, scheme: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY takes `host` around the proxy.

    `*`; a name, which covers all below it; `.name` or `*.name`, which cover those alone; an address, with or
    without brackets; a network such as 10.0.0.0/8 or [fd00::]/8. Names and addresses may have a port. What is none of
    these covers nothing.
    """
    wanted, mark, rest = entry.rpartition("://")
    if mark and wanted.lower() not in (scheme, "all"):
        return False
    rest = rest.lower().rstrip("/")
    if rest == "*":
        return True
    if network := _network(rest):
        address = _address(host)
        return address is not None and address.version == network.version and address in network
    match = re.fullmatch(r"(\[[^\[\]]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?", rest)
    if match is None or (match[2] and int(match[2]) != port):
        return False
    address = _address(match[1])
    if address is not None:
        return address == _address(host)
    name, host = match[1].removeprefix("*").rstrip("."), host.lower().rstrip(".")
    below = host.endswith("." + name.removeprefix("."))
    return below if name.startswith(".") else below or host == name


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """An address, or a network in CIDR form: 10.0.0.0/8, ::1, [fd00::]/8, [fd00::/8]."""
    match = re.fullmatch(r"\[([^\[\]]+)\](/[0-9]+)?", text, re.ASCII)
    with suppress(ValueError):
        return ipaddress.ip_network(match[1] + (match[2] or "") if match else text, strict=False)
    return None


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
        return getattr(address, "ipv4_mapped", None) or address
    return None
