"""Which user of this machine a client is, as the kernel knows it. A proxy here mostly runs as a user of its own.

The kernel lists the TCP sockets of this machine with the users who made them, on Linux alone: /proc/net/tcp
(proc_pid_net(5)). Blocking calls: run them in a thread.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["is_own_user", "user_of"]

_ESTABLISHED = "01"
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def is_own_user(client: tuple[str, int], server: tuple[str, int]) -> bool:
    """Whether the client of a connection within this machine is of the user that this process is.

    True as well where the kernel has no such list, or does not show it: there nobody can tell.
    """
    for _ in range(2):  # a row may slip through while others come and go
        try:
            user = user_of(_listed(), client, server)
        except OSError:
            return True
        if user is not None:
            return user == os.geteuid()
    return False


def _listed() -> str:
    tables = [_TABLES[0].read_text("ascii")]
    with suppress(FileNotFoundError):  # a kernel without IPv6
        tables.append(_TABLES[1].read_text("ascii"))
    return "".join(tables)


def user_of(table: str, client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """The user whose socket at `client` is connected to `server`; None where there is none in the `table`.

    A socket that was closed is left out: it is listed for a while as that of root.
    """
    for ours, theirs in zip(_spellings(*client), _spellings(*server), strict=True):
        row = " ".join((ours, theirs, _ESTABLISHED))
        if found := re.search(rf"^ *\d+: {row} \S+ \S+ \S+ +(\d+) ", table, re.MULTILINE | re.ASCII):
            return int(found[1])
    return None


def _spellings(host: str, port: int) -> list[str]:
    """An address as the tables have it: each four bytes as a number of this machine's. IPv4 as IPv6 sockets too."""
    address = ipaddress.ip_address(host)
    packed = [address.packed]
    if address.version == 4:
        packed.append(ipaddress.ip_address(f"::ffff:{host}").packed)
    return [
        "".join(f"{int.from_bytes(one[at : at + 4], sys.byteorder):08X}" for at in range(0, len(one), 4))
        + f":{port:04X}"
        for one in packed
    ]
