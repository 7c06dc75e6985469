"""A line between client and server: it delays, and limits each connection and all together.

The bytes are spliced through pipes inside the kernel, so that the line costs little of the CPU
that it shares with those it stands between.
"""

from __future__ import annotations

import fcntl
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

CHUNK = 1024 * 1024  # the size of a pipe too: its default of 64 KiB made the line the bottleneck
_LEAST_CHUNK = 8 * 1024
_STEPS = 50  # in so many a second comes what a slow connection brings


class Line:
    """Listens on `port`. Use as a context manager. `delay` is a round trip in seconds, rates are bytes a second.

    `narrow`: little is on its way in buffers, so that what a server has sent is nearly what a client got.

    A connection takes one round trip to open, each request one to be answered.
    """

    def __init__(
        self, delay: float = 0.05, rate: float = 60e6, total_rate: float = 400e6, *, narrow: bool = False
    ) -> None:
        self.delay, self.rate, self.total_rate = delay, rate, total_rate
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._target = 0
        self._all = Bucket(total_rate)
        self._chunk = max(min(CHUNK, int(rate / _STEPS)), _LEAST_CHUNK) if not narrow else _LEAST_CHUNK
        self._narrow = narrow

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def connect(self, port: int) -> None:
        """Forward to `port`, from now on."""
        self._target = port
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        time.sleep(self.delay)
        server = socket.socket()
        if self._narrow:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * _LEAST_CHUNK)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _LEAST_CHUNK)
        server.connect(("127.0.0.1", self._target))
        threading.Thread(target=self._forward_late, args=(client, server), daemon=True).start()
        own = Bucket(self.rate)

        def limit(nbytes: int) -> None:
            own.spend(nbytes)
            self._all.spend(nbytes)

        self._forward(server, client, limit)
        for sock in (client, server):
            sock.close()

    def _forward_late(self, source: socket.socket, sink: socket.socket) -> None:
        """Forward each piece `delay` after it came, however many are on their way."""
        pieces: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def send() -> None:
            with suppress(OSError):
                while True:
                    due, data = pieces.get()
                    time.sleep(max(due - time.monotonic(), 0))
                    if not data:
                        sink.shutdown(socket.SHUT_WR)
                        return
                    sink.sendall(data)

        threading.Thread(target=send, daemon=True).start()
        data = b"-"
        while data:
            try:
                data = source.recv(_LEAST_CHUNK)
            except OSError:
                data = b""
            pieces.put((time.monotonic() + self.delay, data))

    def _forward(self, source: socket.socket, sink: socket.socket, before: Callable[[int], None]) -> None:
        read, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, CHUNK)
        try:
            while moved := os.splice(source.fileno(), write, self._chunk):
                before(moved)
                while moved:
                    moved -= os.splice(read, sink.fileno(), moved)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        finally:
            os.close(read)
            os.close(write)


class Bucket:
    """Tokens that flow in at `rate` and may run up a debt, which is slept off."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    def spend(self, nbytes: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - 0.01) + nbytes / self._rate
            wait = self._free_at - now
        if wait > 0:
            time.sleep(wait)
