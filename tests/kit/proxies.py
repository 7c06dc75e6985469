"""Proxies on this machine: a scripted one that answers CONNECT as it is told, and real ones of Debian's."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

__all__ = ["ConnectProxy", "microsocks", "tinyproxy"]


class ConnectProxy:
    """Answers each CONNECT with the next of `answers`, statuses or whole heads; after the last one it connects.

    None is silence until the client leaves. `asked` has the head of each request. With `tls` it speaks TLS itself.
    """

    def __init__(
        self, answers: Sequence[int | bytes | None] = (), *, forever: bool = False, tls: ssl.SSLContext | None = None
    ) -> None:
        self._tls = tls
        self._answers = list(answers)
        self._forever = forever
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.asked: list[str] = []
        self.place = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5)

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.add(client)
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
                self._sockets.add(client)
            head = b""
            while b"\r\n\r\n" not in head:
                piece = client.recv(65536)
                if not piece:
                    return
                head += piece
            self.asked.append(head.decode("latin-1"))
            answer: int | bytes | None = 200
            if self._answers:
                answer = self._answers[0] if self._forever else self._answers.pop(0)
            if answer is None:
                client.recv(1)
            elif isinstance(answer, bytes):
                client.sendall(answer)
            elif answer != 200:
                client.sendall(b"HTTP/1.1 %d Scripted\r\ncontent-length: 0\r\n\r\n" % answer)
            else:
                self._tunnel(client, head.split(b" ")[1].decode())

    def _tunnel(self, client: socket.socket, place: str) -> None:
        host, _, port = place.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port))) as server:
            self._sockets.add(server)
            client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join(5)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def tinyproxy(*lines: str) -> Iterator[str]:
    """A real HTTP proxy, as host:port. `lines` of its configuration, such as `BasicAuth user password`."""
    with tempfile.TemporaryDirectory() as folder, _free_port() as port:
        config = Path(folder) / "tinyproxy.conf"
        config.write_text("\n".join([f"Port {port}", "Listen 127.0.0.1", "Timeout 20", "LogLevel Critical", *lines]))
        with _running("tinyproxy", "tinyproxy-bin", "-d", "-c", str(config)):
            yield _wait_for(port)


@contextmanager
def microsocks(*arguments: str) -> Iterator[str]:
    """A real SOCKS 5 proxy, as host:port. `arguments` such as `-u`, user, `-P`, password."""
    with _free_port() as port, _running("microsocks", "microsocks", "-i", "127.0.0.1", "-p", str(port), *arguments):
        yield _wait_for(port)


@contextmanager
def _free_port() -> Iterator[int]:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    yield port


@contextmanager
def _running(command: str, package: str, *arguments: str) -> Iterator[None]:
    path = shutil.which(command, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if path is None:
        pytest.skip(f"needs {command}: apt-get install {package}")
    process = subprocess.Popen([path, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int) -> str:
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < until, "the proxy never listened"
            time.sleep(0.01)
        else:
            return f"127.0.0.1:{port}"
