"""A relay in front of a store's server: it counts what is asked and sent, and answers and stalls on command."""

from __future__ import annotations

import http.client
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

__all__ = ["Asked", "Relay", "Reply", "Stall", "relaying"]


@dataclass(frozen=True)
class Reply:
    """An answer of the relay's own instead of the store's."""

    status: int
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stall:
    """So many bytes of the body and no more, until the client goes or the relay ends."""

    after: int


@dataclass
class Asked:
    """One request, and how many bytes of body were sent for it."""

    method: str
    raw: str  # the path as it was sent
    path: str  # decoded
    query: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    sent: int = 0


class Relay:
    """`url` stands for the store. `script` is by path: what the next requests get; a callable runs before the store."""

    def __init__(self, backend: int) -> None:
        self.asked: list[Asked] = []
        self.script: defaultdict[str, deque[Reply | Stall | Callable[[], object]]] = defaultdict(deque)
        self.stalled = threading.Event()
        self._closing = threading.Event()
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                with suppress(OSError, http.client.HTTPException):
                    relay._handle(self, backend)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that go in between
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def of(self, name: str, method: str = "GET") -> list[Asked]:
        """The requests for a file."""
        return [one for one in self.asked if one.path.endswith(f"/{name}") and one.method == method]

    def close(self) -> None:
        self._closing.set()
        self.server.shutdown()
        self.server.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler, backend: int) -> None:
        path, _, query = handler.path.partition("?")
        asked = Asked(handler.command, path, unquote(path), query, dict(handler.headers))
        self.asked.append(asked)
        scripted = self.script[asked.path]
        fault = scripted.popleft() if scripted and asked.method == "GET" else None
        if isinstance(fault, Reply):
            _answer(handler, fault)
            return
        if fault is not None and not isinstance(fault, Stall):
            fault()
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        headers = {name: text for name, text in handler.headers.items() if name.lower() != "connection"}
        connection = http.client.HTTPConnection("127.0.0.1", backend, timeout=30)
        try:
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            handler.send_response_only(answer.status)
            for name, text in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    handler.send_header(name, text)
            if answer.getheader("content-length") is None:
                handler.send_header("connection", "close")
                handler.close_connection = True
            handler.end_headers()
            while piece := answer.read(1 << 16):
                if isinstance(fault, Stall) and asked.sent + len(piece) > fault.after:
                    piece = piece[: fault.after - asked.sent]
                handler.wfile.write(piece)
                asked.sent += len(piece)
                if isinstance(fault, Stall) and asked.sent == fault.after:
                    self.stalled.set()
                    self._closing.wait(30)
                    return
        finally:
            connection.close()


def _answer(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    handler.send_response_only(reply.status)
    body = reply.body.encode()
    for name, text in {"content-length": str(len(body)), **reply.headers}.items():
        handler.send_header(name, text)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def relaying(backend: int) -> Iterator[Relay]:
    """A relay to the server at a port of this machine."""
    relay = Relay(backend)
    thread = threading.Thread(target=relay.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield relay
    finally:
        relay.close()
        thread.join()
