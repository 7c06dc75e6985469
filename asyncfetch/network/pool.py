"""httpx's requests over httpcore pools that use our network backends."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from typing import Any
from urllib.request import getproxies

import anyio
import httpcore
import httpx

from ..errors import CertificateError, SourceError, redact_url
from ..tasks import off_loop
from .proxies import Proxies, Proxy
from .reach import Reach
from .sockets import KEPT_IDLE, Backend, served_before
from .socks import SocksBackend
from .trust import trusted
from .wall import raise_translated

__all__ = ["LazyClient", "PoolTransport"]

_log = logging.getLogger("asyncfetch.requests")


class LazyClient:
    """The caller's client; or else one of our own, made when the first request is sent.

    So a source that needs no network is not troubled by what the environment says of it.
    """

    def __init__(self, injected: Any, reach: Reach | None = None) -> None:
        self._injected, self._reach = injected, reach
        self._own: _Sender | None = None

    @property
    def injected(self) -> bool:
        """Whether it is the caller's."""
        return self._injected is not None

    def get(self) -> Any:
        """The client to send with. Raises SourceError where the caller has closed theirs."""
        if getattr(self._injected, "is_closed", None) is True:
            raise SourceError("The caller's httpx.AsyncClient is closed.", hint="Keep it open while it is sent with.")
        if self._injected is None and self._own is None:
            self._own = _Sender(PoolTransport(Proxies(getproxies()), self._reach))
        return self._injected if self._own is None else self._own

    def proxy_of(self, url: str) -> Proxy | None:
        """The proxy that a request of ours to `url` goes through. Of the caller's client nothing is known."""
        return self._own.transport.proxies.for_url(url) if self._own else None

    async def aclose(self) -> None:
        """Close ours and its idle connections. Bounded, not cancelled; the caller's stays as it is."""
        if self._own is not None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await self._own.transport.aclose()
            self._own.transport.close_idle()


class _Sender:
    """What requests of ours need of httpx.AsyncClient, in its words: that takes a third of the time of a small request.

    Cookies are kept, and a user and a password in a URL are sent. Redirects are the caller's.
    """

    def __init__(self, transport: PoolTransport) -> None:
        self.transport = transport
        self._cookies = httpx.Cookies()

    def build_request(
        self, method: str, url: str, *, headers: Mapping[str, str], timeout: tuple[float, float, float, float]
    ) -> httpx.Request:
        """A request, with the cookies that are known. `timeout` is as httpx has it, in seconds."""
        extensions = {"timeout": dict(zip(("connect", "read", "write", "pool"), timeout, strict=True))}
        return httpx.Request(method, url, headers=headers, cookies=self._cookies or None, extensions=extensions)

    async def send(
        self,
        request: httpx.Request,
        *,
        auth: object = True,
        stream: bool = True,  # noqa: ARG002
        follow_redirects: bool = False,  # noqa: ARG002
    ) -> httpx.Response:
        """The answer, its body unread, be it a redirect. `auth=None`: what the URL says of a user is not sent."""
        user, password = request.url.username, request.url.password
        if auth is not None and (user or password):
            request = next(httpx.BasicAuth(user, password).auth_flow(request))
        response = await self.transport.handle_async_request(request)
        response.request = request
        if "set-cookie" in response.headers:
            self._cookies.extract_cookies(response)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s %s: %d", request.method, redact_url(str(request.url)), response.status_code)
        return response


# What the pool has made for the request that runs.
_made: ContextVar[list[httpcore.AsyncConnectionInterface]] = ContextVar("asyncfetch_connections_made")


class _Pool(httpcore.AsyncConnectionPool):
    """A pool that notes which connection it makes for a request."""

    def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
        connection = super().create_connection(origin)
        _made.get().append(connection)
        served_before.set(False)
        return connection

    async def ask(self, request: httpcore.Request) -> httpcore.Response:
        """The head of an answer. What was made for a request that fails is closed."""
        made = list[httpcore.AsyncConnectionInterface]()
        _made.set(made)
        served_before.set(True)  # unless the pool makes one
        try:
            return await self.handle_async_request(request)
        except BaseException:
            await _close(made)
            raise
        finally:
            made.clear()  # the context outlives the request

    async def forget(self, origin: httpcore.Origin) -> None:
        """Close the idle connections that the pool itself keeps for an origin."""
        await _close([one for one in self.connections if one.is_idle() and one.can_handle_request(origin)])


class PoolTransport(httpx.AsyncBaseTransport):
    """httpx over httpcore pools: one for each scheme and proxy.

    Straight and through SOCKS, sockets are ours and bodies come in bursts. Through an HTTP proxy, connections are
    httpcore's: a tunnel belongs to one server, and must not be parked under the proxy's address.
    """

    def __init__(self, proxies: Proxies, reach: Reach | None = None) -> None:
        self.proxies, self._reach = proxies, reach
        self._pools: dict[tuple[str, Proxy | None], _Pool] = {}
        self._backends: dict[Proxy | None, Backend] = {}

    async def _pool(self, url: httpx.URL, proxy: Proxy | None) -> _Pool:
        key = url.scheme, proxy
        if key not in self._pools:
            context = None
            if url.scheme == "https" or (proxy and proxy.scheme == "https"):
                try:  # in a thread: it takes 30 ms
                    context = await off_loop(lambda: trusted(os.environ), slow=True)
                except OSError as error:
                    what, hint = (
                        f"the certificate store cannot be read: {error}",
                        "Without it the system's store counts.",
                    )
                    raise CertificateError(what, url=str(url), hint=hint) from error
            by_http = None if proxy is None or proxy.socks else proxy
            # No bound: httpcore loses slots when a request that waits for one is cancelled
            # (https://github.com/encode/httpcore/issues/1093). Limits.connections bounds them.
            pool = _Pool(
                ssl_context=context,
                max_connections=None,
                max_keepalive_connections=None,
                keepalive_expiry=KEPT_IDLE,
                network_backend=None if by_http else self._backend(proxy),
                proxy=None if by_http is None else _as_httpcore_has_it(by_http, context),
            )
            self._pools.setdefault(key, pool)  # another request may have made one meanwhile
        return self._pools[key]

    def _backend(self, proxy: Proxy | None) -> Backend:
        if proxy not in self._backends:
            self._backends[proxy] = Backend(self._reach) if proxy is None else SocksBackend(proxy)
        return self._backends[proxy]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path
        )
        proxy = self.proxies.for_url(str(request.url))
        pool = await self._pool(request.url, proxy)
        asked = httpcore.Request(request.method, url, headers=request.headers.raw, extensions=request.extensions)
        try:
            answer = await self._answer(pool, asked, proxy)
        except Exception as error:
            raise_translated(error, str(request.url), proxy)
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_PoolStream(answer), extensions=answer.extensions
        )

    async def _answer(self, pool: _Pool, asked: httpcore.Request, proxy: Proxy | None) -> httpcore.Response:
        """The head of an answer. Once more, at once, where it was asked for over a connection that had served before.

        Such a one may have died while it was idle, and nobody told: that says nothing of the server. All that is sent
        are GET and HEAD, which may be sent again (RFC 9110, section 9.2.2).
        """
        try:
            return await pool.ask(asked)
        except (httpcore.NetworkError, httpcore.RemoteProtocolError, httpcore.TimeoutException):
            if not served_before.get():
                raise
        origin = asked.url.origin
        await pool.forget(origin)
        if proxy in self._backends:
            self._backends[proxy].forget(origin.host.decode("ascii"), origin.port)
        return await pool.ask(asked)

    async def aclose(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()

    def close_idle(self) -> None:
        """Close the connections that wait for another request."""
        for backend in self._backends.values():
            backend.close()


async def _close(connections: list[httpcore.AsyncConnectionInterface]) -> None:
    """Close what was made for a request that failed. Bounded, not cancelled.

    Cancelled between the connection and the request, httpcore keeps one that is open and that nobody is ever given.
    """
    with anyio.CancelScope(shield=True), anyio.move_on_after(5):
        for connection in connections:
            await connection.aclose()


def _as_httpcore_has_it(proxy: Proxy, context: ssl.SSLContext | None) -> httpcore.Proxy:
    url = httpcore.URL(scheme=proxy.scheme, host=proxy.host, port=proxy.port, target="/")
    return httpcore.Proxy(url, auth=proxy.auth, ssl_context=context if proxy.scheme == "https" else None)


class _PoolStream(httpx.AsyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._answer.aiter_stream():
            yield chunk

    async def aclose(self) -> None:
        await self._answer.aclose()
