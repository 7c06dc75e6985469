"""Connections through a SOCKS 5 proxy (RFC 1928, RFC 1929): a few bytes to and fro, then the socket is as any other.

By hand, since httpcore's own way waits for the proxy without a time-out, takes half an answer for a whole one, and
leaves the socket open when the proxy refuses.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct

import anyio
import httpcore

from .proxies import Proxy
from .sockets import Backend

__all__ = ["SocksBackend"]

_OPEN, _PASSWORD = 0, 2  # methods of authentication
_ADDRESS_BYTES = {1: 4, 4: 16}
_REPLIES = {  # RFC 1928, section 6
    1: "it failed",
    2: "its rules do not allow this connection",
    3: "the network is unreachable",
    4: "the host is unreachable",
    5: "the connection was refused",
    6: "the time to live ran out",
    7: "it knows no such command",
    8: "it knows no such kind of address",
}
_LASTING = frozenset({2, 7, 8})


class SocksRefusal(httpcore.ProxyError):
    """The proxy does not connect. `lasting`: it will not the next time either."""

    def __init__(self, message: str, *, lasting: bool) -> None:
        super().__init__(message)
        self.lasting = lasting


class SocksBackend(Backend):
    """Opens connections through a SOCKS 5 proxy, which resolves the names."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__()
        self._proxy = proxy

    async def dial(self, host: str, port: int, local_address: str | None) -> socket.socket:
        sock = await super().dial(self._proxy.host, self._proxy.port, local_address)
        try:
            await self._greet(sock)
            await _send(sock, b"\x05\x01\x00" + _address(host) + struct.pack("!H", port))
            version, reply, _, kind = await _receive(sock, 4)
            if version != 5:
                raise SocksRefusal("it does not speak SOCKS 5", lasting=True)
            if reply:
                raise SocksRefusal(_REPLIES.get(reply, f"it answered {reply}"), lasting=reply in _LASTING)
            length = (await _receive(sock, 1))[0] if kind == 3 else _ADDRESS_BYTES.get(kind, 0)
            await _receive(sock, length + 2)  # where it connects from, which tells us nothing
        except BaseException:
            sock.close()
            raise
        return sock

    async def _greet(self, sock: socket.socket) -> None:
        """Agree on a method of authentication, and pass it."""
        auth = self._proxy.auth
        await _send(sock, bytes([5, 2, _OPEN, _PASSWORD]) if auth else bytes([5, 1, _OPEN]))
        version, method = await _receive(sock, 2)
        if version != 5:
            raise SocksRefusal("it does not speak SOCKS 5", lasting=True)
        if method == _PASSWORD and auth:
            user, password = auth
            await _send(sock, bytes([1, len(user)]) + user + bytes([len(password)]) + password)
            if (await _receive(sock, 2))[1]:
                raise SocksRefusal("it does not accept the user and the password", lasting=True)
        elif method != _OPEN:
            raise SocksRefusal("it wants another way to sign in than none or a password", lasting=True)


def _address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("idna") if not host.isascii() else host.encode()
        if not 0 < len(name) < 256:
            raise OSError(errno.EINVAL, "the name is too long") from None
        return bytes([3, len(name)]) + name
    return bytes([1 if address.version == 4 else 4]) + address.packed


async def _send(sock: socket.socket, data: bytes) -> None:
    while data:
        try:
            data = data[sock.send(data) :]
        except (BlockingIOError, InterruptedError):
            await anyio.wait_writable(sock)


async def _receive(sock: socket.socket, nbytes: int) -> bytes:
    """Exactly so many bytes: what follows them is the server's."""
    data = b""
    while len(data) < nbytes:
        try:
            piece = sock.recv(nbytes - len(data))
        except (BlockingIOError, InterruptedError):
            await anyio.wait_readable(sock)
            continue
        if not piece:
            raise SocksRefusal("it closed the connection", lasting=False)
        data += piece
    return data
