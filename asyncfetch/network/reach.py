"""Where a server that asks on behalf of others may be led: not to what only its own machine can reach.

A source answers with redirects and links, and clients choose what is asked for. So one that is elsewhere could let the
services of this machine be asked, or what the machine is told by its network: a cloud's metadata at 169.254.169.254,
with credentials. It is the address that counts, as names resolve to anything.
"""

from __future__ import annotations

from ipaddress import ip_address

from ..errors import ProtocolError

__all__ = ["Reach"]


class Reach:
    """Where `home`, the host of a source, may lead: to addresses of this machine and its link only if it is there."""

    def __init__(self, home: str) -> None:
        self._home = home.lower()
        self._home_is_near = False

    def check(self, host: str, addresses: list[str]) -> None:
        """Raises ProtocolError where `host`, which has these addresses, may not be asked."""
        near = any(_is_near(address) for address in addresses)
        if host.lower() == self._home:
            self._home_is_near = near
        elif near and not self._home_is_near:
            raise ProtocolError(
                "it is an address of this machine or its link, where another site may not lead", url=f"//{host}"
            )


def _is_near(text: str) -> bool:
    """Whether an address is this machine, or is assigned on its link (RFC 6890)."""
    address = ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_link_local or address.is_unspecified
