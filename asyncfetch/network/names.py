"""Looking names up, in threads that nobody waits for.

A resolver that does not answer holds `getaddrinfo` up for half a minute, and nothing ends it sooner. The look-ups
of asyncio, uvloop and libuv run in threads that the loop or the interpreter joins when it ends
(https://github.com/python/cpython/issues/112169), so leaving would take as long. Here they run in daemon
threads of our own: who is cancelled leaves at once, and so does the process.
"""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import anyio

__all__ = ["addresses_of"]

_MOST = 32  # look-ups at a time, those that were left alone included

_Name = tuple[str | bytes, int]
_Addresses = list[tuple[Any, ...]]


class _LookUps:
    """Those that run. Who asks for the same name meanwhile shares one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[_Name, Future[_Addresses]] = {}

    def of(self, name: _Name) -> Future[_Addresses]:
        """The look-up of `name`, which runs. Raises OSError where too many hang."""
        with self._lock:
            if name in self._running:
                return self._running[name]
            if len(self._running) >= _MOST:
                raise socket.gaierror(socket.EAI_AGAIN, f"{_MOST} other names are being looked up, without an answer")
            found = self._running[name] = Future()
        try:
            threading.Thread(target=self._run, args=(name, found), name="asyncfetch names", daemon=True).start()
        except RuntimeError as error:  # no more threads: whoever shares this one learns of it too
            self._forget(name)
            found.set_exception(socket.gaierror(socket.EAI_AGAIN, f"no thread to look it up: {error}"))
        return found

    def _run(self, name: _Name, found: Future[_Addresses]) -> None:
        try:
            addresses: _Addresses = list(socket.getaddrinfo(*name, type=socket.SOCK_STREAM))
        except Exception as error:
            self._forget(name)
            found.set_exception(error)
        else:
            self._forget(name)  # before anyone learns of it: who asks then asks anew
            found.set_result(addresses)

    def _forget(self, name: _Name) -> None:
        with self._lock:
            self._running.pop(name, None)


class _Wake:
    """Wakes a task from another thread, on any event loop. No signal is sent once the task has left."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)  # a byte finds room
        self._lock = threading.Lock()  # else a byte might go to who got the descriptor next

    def give(self, _: object = None) -> None:
        with self._lock:
            if self._theirs.fileno() != -1:
                self._theirs.send(b"\0")

    async def wait(self) -> None:
        try:
            await anyio.wait_readable(self._ours)
        finally:
            with self._lock:
                self._ours.close()
                self._theirs.close()


_look_ups = _LookUps()


def _forget_all() -> None:
    """In a forked child none of the threads lives."""
    global _look_ups
    _look_ups = _LookUps()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


async def addresses_of(host: str, port: int) -> _Addresses:
    """The addresses of `host`, as `socket.getaddrinfo` tells them. Raises OSError. A cancellation leaves at once."""
    # For text Python loads a codec, which CPython 3.13 cannot do where the working directory is gone.
    name = host.encode("ascii") if host.isascii() else host
    try:
        with suppress(socket.gaierror):  # an address needs no look-up, and no thread
            return list(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except UnicodeError as error:  # labels that are empty, or too long
        raise socket.gaierror(socket.EAI_NONAME, "this is no name of a host") from error
    look_up = _look_ups.of((name, port))
    wake = _Wake()
    look_up.add_done_callback(wake.give)  # at once, in this thread, if it is done by now
    await wake.wait()
    return look_up.result()
