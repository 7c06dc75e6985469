"""A directory of models, served with the protocol of the Hugging Face Hub.

Any client of the Hub works against it: `HF_ENDPOINT=http://127.0.0.1:8000`. Which repositories there are is told in
layout.py, which endpoints in endpoints.py. Needs the extra `serve`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..errors import SourceError
from .endpoints import ServerOptions, create_app
from .protocol.access_log import AccessLog, raw_path

try:
    import uvicorn

    from .access import is_loopback
    from .protocol.body import BrokenOffError
    from .protocol.connections import Connection, raise_descriptor_limit
except ImportError as missing:
    raise SourceError(
        f"Serving needs starlette and uvicorn: {missing}.",
        hint="Run: pip install 'asyncfetch[serve]'",
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self, Unpack

    from starlette.applications import Starlette
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Record", "Server", "ServerOptions", "create_app", "serve"]

GRACE = 1.0  # seconds that running responses get when the server stops, where nobody says how many
KEEP_ALIVE = 60  # seconds
LOOPBACK = "127.0.0.1,::1"  # whose X-Forwarded headers are believed: a proxy on this machine


_KEPT = 10_000  # records of requests: a server may run for months


class Record(NamedTuple):
    """A request that was answered. `path` is percent-encoded and has no query; `range` is the header."""

    method: str
    path: str
    range: str | None
    status: int


class _Recorder:
    """Keeps a Record of each of the last answers of `app`, and counts the body bytes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.records: deque[Record] = deque(maxlen=_KEPT)
        self.bytes_sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def record(message: Message) -> None:
            if message["type"] == "http.response.start":
                asked = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"range"), None)
                self.records.append(Record(scope["method"], raw_path(scope), asked, message["status"]))
            try:
                await send(message)
            except BrokenOffError as broken:
                self.bytes_sent += broken.nbytes
                raise
            if message["type"] == "http.response.body" and scope["method"] != "HEAD":
                self.bytes_sent += len(message.get("body", b""))

        await self.app(scope, receive, record)


class _Uvicorn(uvicorn.Server):
    """uvicorn that says when it is ready, and whose end is bounded: after `grace` seconds, connections are cut."""

    def __init__(self, config: uvicorn.Config, app: Starlette, on_ready: Callable[[], None], grace: float) -> None:
        super().__init__(config)
        self.app, self.on_ready, self.grace = app, on_ready, grace

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.state.leave()
        cut = asyncio.get_running_loop().call_later(self.grace, self._cut)
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()

    def _cut(self) -> None:
        self.app.state.stop()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


def _listen(host: str, port: int, *, tls: bool = False) -> tuple[socket.socket, str]:
    """A listening socket and its URL. Raises SourceError when the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"Cannot listen on {host}:{port}: {reason}.", hint="Name another host or port.") from error
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    scheme = "https" if tls else "http"
    return listener, f"{scheme}://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}"


class Server:
    """Serves the models under `root` from a thread with an event loop of its own.

        with Server("models") as server:
            load("org/model", endpoint=server.url)

    Port 0 takes a free one. `tls` and `trusted_proxies` are those of `serve`, the options those of `create_app`.
    `requests` and `bytes_sent` tell what was asked for and how many body bytes were handed to the network. No signal
    handler; the loggers are those of `serve`. Raises SourceError for a bad directory or certificate, and on entry
    for an address that cannot be had.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: tuple[str, str] | None = None,
        trusted_proxies: str = LOOPBACK,
        **options: Unpack[ServerOptions],
    ) -> None:
        self._transport = _Transport(tls, trusted_proxies)
        self._app = create_app(root, local=is_loopback(host), **options)
        self._recorder = _Recorder(self._app)
        self._address = (host, port)
        self._url: str | None = None

    @property
    def url(self) -> str:
        """The origin, without a slash at its end; fit for HF_ENDPOINT."""
        if self._url is None:
            raise RuntimeError("The server has no URL before it is entered.")
        return self._url

    @property
    def requests(self) -> tuple[Record, ...]:
        """The requests so far, the last 10,000, in the order in which their answers began."""
        return tuple(self._recorder.records)

    @property
    def bytes_sent(self) -> int:
        """Body bytes so far, of all answers."""
        return self._recorder.bytes_sent

    def __enter__(self) -> Self:
        listener, self._url = _listen(*self._address, tls=self._transport.tls is not None)
        ready = threading.Event()
        config = _config(AccessLog(self._recorder), self._transport, GRACE, log_config=None)
        self._uvicorn = _Uvicorn(config, self._app, ready.set, GRACE)

        def run() -> None:
            try:
                self._uvicorn.run([listener])
            finally:
                ready.set()

        self._thread = threading.Thread(target=run, name=f"asyncfetch {self._url}", daemon=True)
        self._thread.start()
        ready.wait(30)
        if not self._uvicorn.started:
            self.__exit__()
            raise RuntimeError("The server did not start.")
        return self

    def __exit__(self, *_: object) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(GRACE + 10)


@dataclass(frozen=True)
class _Transport:
    """How clients reach the server. Raises SourceError when the certificate or its key is not usable."""

    tls: tuple[str, str] | None
    trusted_proxies: str

    def __post_init__(self) -> None:
        if self.tls is None:
            return
        try:
            # uvicorn would ask for the password on the terminal, in the middle of its start.
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*self.tls, password=lambda: "")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "strerror", None) or error
            raise SourceError(
                f"The TLS certificate {self.tls[0]} cannot be used with the key {self.tls[1]}: {reason}.",
                hint="Give the whole chain and its key as PEM files, the key without a password.",
            ) from error


def _config(app: ASGIApp, transport: _Transport, grace: float, **logging: object) -> uvicorn.Config:
    certificate, key = transport.tls or (None, None)
    return uvicorn.Config(
        app,
        http=Connection,
        lifespan="on",
        ws="none",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(grace) + 5,
        proxy_headers=bool(transport.trusted_proxies),
        forwarded_allow_ips=transport.trusted_proxies,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        **logging,  # type: ignore[arg-type]
    )


def serve(
    root: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    on_ready: Callable[[str], None] | None = None,
    tls: tuple[str, str] | None = None,
    trusted_proxies: str = LOOPBACK,
    grace: float = GRACE,
    **options: Unpack[ServerOptions],
) -> None:
    """Serve the models under `root` until Ctrl-C or SIGTERM, then return. The options are those of `create_app`.

    `on_ready` is called with the URL once requests are answered. `tls`: the PEM files of a certificate, with its chain,
    and of its key. `trusted_proxies`: addresses and networks, separated by commas, whose X-Forwarded-For and
    X-Forwarded-Proto are believed; "*" for all, "" for none. `grace`: seconds that running answers get in the end.

    Prints nothing; uvicorn's warnings go to stderr. The logger `asyncfetch.server` tells at INFO what is hashed and
    left out, `asyncfetch.server.access` each request. Raises SourceError for a bad directory or certificate, or an
    address that cannot be had.
    """
    transport = _Transport(tls, trusted_proxies)
    app = create_app(root, local=is_loopback(host), **options)
    listener, url = _listen(host, port, tls=tls is not None)
    config = _config(AccessLog(app), transport, grace, log_level="warning")
    raise_descriptor_limit()
    server = _Uvicorn(config, app, lambda: on_ready and on_ready(url), grace)
    with suppress(KeyboardInterrupt):
        server.run([listener])
