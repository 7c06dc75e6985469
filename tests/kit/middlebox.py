"""What stands between a client and a server and forgets idle connections: a NAT, a firewall, a load balancer."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from typing import Any, Self

__all__ = ["Middlebox"]


class _Flow:
    """One connection, and what became of it: "" as long as it is known, else "reset" or "silent"."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.forgotten = ""
        self.struck = False  # the client sent something over it that went nowhere

    def to_server(self) -> None:
        with suppress(OSError):
            while data := self.client.recv(65536):
                if self.forgotten == "reset":
                    self.struck = True
                    self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.client.close()
                    return
                if self.forgotten:
                    self.struck = True
                else:
                    self.server.sendall(data)
        with suppress(OSError):
            self.server.shutdown(socket.SHUT_WR)

    def to_client(self) -> None:
        with suppress(OSError):
            while data := self.server.recv(65536):
                if not self.forgotten:
                    self.client.sendall(data)
        with suppress(OSError):
            if not self.forgotten:
                self.client.shutdown(socket.SHUT_WR)


class Middlebox:
    """Passes bytes between whoever connects to `port` and a port of this machine, until `forget`."""

    def __init__(self, backend: int) -> None:
        self._backend = backend
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self.flows: list[_Flow] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        sockets = [self._listener, *(sock for flow in self.flows for sock in (flow.client, flow.server))]
        for sock in sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for sock in sockets:
            sock.close()

    def forget(self, how: str) -> None:
        """Forget all connections: who uses one again is told so ("reset"), or hears nothing ever ("silent")."""
        for flow in self.flows:
            flow.forgotten = how

    @property
    def struck(self) -> int:
        """How many connections were used after they had been forgotten."""
        return sum(flow.struck for flow in self.flows)

    def _start(self, work: Any) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                flow = _Flow(client, socket.create_connection(("127.0.0.1", self._backend)))
                self.flows.append(flow)
                self._start(flow.to_server)
                self._start(flow.to_client)
