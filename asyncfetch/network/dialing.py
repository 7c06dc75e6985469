"""From a host and a port to a connected socket."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import anyio
from anyio.abc import TaskGroup

from ..reasons import reason_of
from .names import addresses_of
from .reach import Reach

__all__ = ["connect", "describe", "interleave"]

_STAGGER = 0.25  # seconds between attempts: RFC 8305, section 5


def describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return reason_of(error)
    return str(error) or type(error).__name__


def interleave(addresses: list[Any]) -> list[Any]:
    """Addresses with the families in turn, each family's order kept: RFC 8305, section 4."""
    first = [info for info in addresses if info[0] == addresses[0][0]]
    other = [info for info in addresses if info[0] != addresses[0][0]]
    mixed = []
    for index in range(max(len(first), len(other))):
        mixed += first[index : index + 1] + other[index : index + 1]
    return mixed


async def connect(host: str, port: int, local_address: str | None, reach: Reach | None) -> socket.socket:
    """Happy eyeballs (RFC 8305): the first address to answer wins, a new one starts each 250 ms."""
    addresses = interleave(await addresses_of(host, port))
    if reach is not None:
        reach.check(host, [str(info[4][0]) for info in addresses])
    winner: list[socket.socket] = []
    failures: list[OSError] = []

    async def attempt(info: Any, failed: anyio.Event, group: TaskGroup) -> None:
        family, kind, protocol, _, address = info
        sock = None
        try:
            sock = socket.socket(family, kind, protocol)
            await _connect_one(sock, address, local_address)
        except OSError as error:
            failures.append(error)
            failed.set()
        else:
            if not winner:
                winner.append(sock)
                sock = None
                group.cancel_scope.cancel()
        finally:
            if sock is not None:
                sock.close()

    try:
        async with anyio.create_task_group() as group:
            for info in addresses:
                failed = anyio.Event()
                group.start_soon(attempt, info, failed, group)
                with anyio.move_on_after(_STAGGER):
                    await failed.wait()
    except BaseException:  # cancelled in the moment in which one had won
        for sock in winner:
            sock.close()
        raise
    if winner:
        return winner[0]
    if len(failures) == 1:
        raise failures[0]
    raise OSError(failures[0].errno, describe(failures[0])) from ExceptionGroup("all addresses failed", failures)


async def _connect_one(sock: socket.socket, address: Any, local_address: str | None) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if local_address is not None:
        sock.bind((local_address, 0))
    code = sock.connect_ex(address)
    if code in (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR):
        await anyio.wait_writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
