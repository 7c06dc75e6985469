"""httpx's requests over an httpcore pool that uses our network backend."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Any
from urllib.request import getproxies

import anyio
import httpcore
import httpx

from ..errors import CertificateError
from ..tasks import off_loop
from .sockets import Backend

__all__ = ["LazyClient", "PoolTransport"]


class LazyClient:
    """The caller's client; or else one of our own, made when the first request is sent.

    Ours uses the proxies of the environment, and without proxies it receives bodies in bursts. So a source
    that needs no network is not troubled by what the environment says of it.
    """

    def __init__(self, injected: Any) -> None:
        self._injected = injected
        self._own: httpx.AsyncClient | None = None
        self._backend: Backend | None = None

    def get(self) -> Any:
        """The client to send with."""
        if self._injected is None and self._own is None:
            if {"http", "https", "all"} & getproxies().keys():
                limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
                self._own = httpx.AsyncClient(limits=limits)
            else:
                self._backend = Backend()
                self._own = httpx.AsyncClient(transport=PoolTransport(self._backend))
        return self._injected if self._own is None else self._own

    async def aclose(self) -> None:
        """Close ours and its idle connections. Bounded, not cancelled; the caller's stays as it is."""
        if self._own is not None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await self._own.aclose()
        if self._backend is not None:
            self._backend.close()


class PoolTransport(httpx.AsyncBaseTransport):
    """httpx over an httpcore pool with our network backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._pools: dict[str, httpcore.AsyncConnectionPool] = {}  # by scheme

    async def _pool(self, url: httpx.URL) -> httpcore.AsyncConnectionPool:
        scheme = url.scheme
        if scheme not in self._pools:
            context = None
            if scheme == "https":
                variables = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
                try:  # in a thread: it takes 30 ms
                    context = await off_loop(lambda: _ssl_context(*variables), slow=True)
                except OSError as error:
                    raise CertificateError(f"the certificate store cannot be read: {error}", url=str(url)) from error
            # No bound: httpcore loses slots when a request that waits for one is cancelled
            # (https://github.com/encode/httpcore/issues/1093). Limits.connections bounds them.
            pool = httpcore.AsyncConnectionPool(
                ssl_context=context,
                max_connections=None,
                max_keepalive_connections=None,
                keepalive_expiry=30.0,
                network_backend=self._backend,
            )
            self._pools.setdefault(scheme, pool)  # another request may have made one meanwhile
        return self._pools[scheme]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path
        )
        pool = await self._pool(request.url)
        answer = await pool.handle_async_request(
            httpcore.Request(request.method, url, headers=request.headers.raw, extensions=request.extensions)
        )
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_PoolStream(answer), extensions=answer.extensions
        )

    async def aclose(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()


class _PoolStream(httpx.AsyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._answer.aiter_stream():
            yield chunk

    async def aclose(self) -> None:
        await self._answer.aclose()


@lru_cache(maxsize=4)
def _ssl_context(cert_file: str | None, cert_dir: str | None) -> ssl.SSLContext:  # noqa: ARG001
    return httpx.create_ssl_context()  # reads both variables
