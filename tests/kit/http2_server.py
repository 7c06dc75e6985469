"""A server that speaks HTTP/2 without TLS (prior knowledge) and breaks it on purpose, request by request.

    with Http2Server({"/x": body}, [None, "rst"]) as server:
        async with httpx.AsyncClient(http1=False, http2=True) as client: ...

The faults are used up one for each request: None, "goaway" (before an answer), "goaway-mid", "rst",
"short" (the body ends before its length), "close" (mid-body), "refused" (RST_STREAM before an answer).
"""

from __future__ import annotations

import re
import socket
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Self

import h2.config
import h2.connection
import h2.errors
import h2.events

PREFIX_OF_FAULT = 20_000  # bytes of the body before a fault in its midst


class Http2Server:
    """Serves `files` by range. `seen` are the paths and first bytes asked for."""

    def __init__(self, files: Mapping[str, bytes], faults: Iterable[str | None]) -> None:
        self.files = files
        self.faults = deque(faults)
        self.seen: list[tuple[str, int | None]] = []
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://localhost:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.append(sock)
            thread = threading.Thread(target=_Connection(self, sock).serve, daemon=True)
            self._threads.append(thread)
            thread.start()

    def take(self, path: str, start: int | None) -> str | None:
        """The fault for a request."""
        with self._lock:
            self.seen.append((path, start))
            return self.faults.popleft() if self.faults else None


class _Connection:
    def __init__(self, server: Http2Server, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self._bodies: dict[int, tuple[memoryview, str | None]] = {}  # what is left to send of each stream

    def serve(self) -> None:
        with self._sock, suppress(OSError, h2.exceptions.ProtocolError):
            self._h2.initiate_connection()
            while self._flush() and (data := self._sock.recv(65536)):
                for event in self._h2.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        self._begin(event)
                    elif isinstance(event, h2.events.StreamReset):
                        self._bodies.pop(event.stream_id, None)
                for stream in list(self._bodies):
                    if not self._pump(stream):
                        self._flush()
                        return

    def _flush(self) -> bool:
        self._sock.sendall(self._h2.data_to_send())
        return True

    def _begin(self, event: h2.events.RequestReceived) -> None:
        headers = {name.decode(): value.decode() for name, value in event.headers or ()}
        path, stream = headers[":path"], event.stream_id
        body = self._server.files.get(path)
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        fault = self._server.take(path, int(ranged[1]) if ranged else None)
        if fault == "refused":
            self._h2.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        if body is None:
            self._h2.send_headers(stream, [(":status", "404"), ("content-length", "0")], end_stream=True)
            return
        answer = [(":status", "206" if ranged else "200"), ("etag", '"of-the-file"')]
        part = memoryview(body)
        if ranged:
            start, last = int(ranged[1]), min(int(ranged[2] or len(body)), len(body) - 1)
            answer.append(("content-range", f"bytes {start}-{last}/{len(body)}"))
            part = part[start : last + 1]
        if fault != "goaway":
            self._h2.send_headers(stream, [*answer, ("content-length", str(len(part)))])
        self._bodies[stream] = (part if fault is None else part[:PREFIX_OF_FAULT], fault)

    def _pump(self, stream: int) -> bool:
        """Send what the windows allow; at the end of the body its fault. False: the connection ends."""
        left, fault = self._bodies[stream]
        if fault == "goaway":
            self._h2.close_connection(last_stream_id=0)
            return False
        while left and (room := min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)) > 0:
            piece, left = left[:room], left[room:]
            self._h2.send_data(stream, bytes(piece), end_stream=not left and fault is None)
            self._flush()
        if left:
            self._bodies[stream] = (left, fault)
            return True
        del self._bodies[stream]
        match fault:
            case "short":
                self._h2.end_stream(stream)
            case "rst":
                self._h2.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
            case "goaway-mid":
                self._h2.close_connection(last_stream_id=stream)
                return False
            case "close":
                return False
        return True
