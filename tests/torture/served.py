"""A played Hub in a process of its own: it shares no GIL, descriptors, threads or memory with what is measured."""

from __future__ import annotations

import multiprocessing
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.managers import BaseManager
from typing import Any

import numpy as np

from ..kit.fault_server import Drip, FaultServer, Flip, Status
from ..kit.files import sharded_bytes

__all__ = ["Hub", "hub_process", "model"]


def model(seed: int, nbytes: int, shards: int = 3) -> dict[str, np.ndarray]:
    """`shards` * 2 tensors of random bytes, together about `nbytes`."""
    source = np.random.default_rng(seed)
    return {f"layer.{n}": source.integers(0, 255, nbytes // shards // 2, dtype=np.uint8) for n in range(2 * shards)}


class Hub:
    """What runs in the other process: repositories of `model(...)`, and what they did."""

    def __init__(self, certificate: str | None = None) -> None:
        context = None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
        self._server = FaultServer(context)
        self._server.__enter__()
        self._paths: dict[str, list[str]] = {}

    def url(self) -> str:
        return self._server.url

    def serve(self, repo: str, seed: int, nbytes: int, shards: int = 3) -> None:
        repository = self._server.hub(repo, sharded_bytes(model(seed, nbytes, shards), shards))
        self._paths[repo] = list(repository.storage.values())

    def drip(self, repo: str, nbytes: int, seconds: float) -> None:
        """From now on, each answer pauses after so many bytes."""
        for path in self._paths[repo]:
            self._server.fault(path, Drip(nbytes, seconds), forever=True)

    def fail(self, repo: str, status: int) -> None:
        """From now on, storage answers with `status`."""
        for path in self._paths[repo]:
            self._server.fault(path, Status(status), forever=True)

    def corrupt(self, repo: str, at: int) -> None:
        """From now on, byte `at` of each shard has a wrong bit."""
        for path in self._paths[repo]:
            self._server.fault(path, Flip(at), forever=True)

    def sent(self, repo: str) -> int:
        """How many different bytes of shards were sent since the last call, also over connections that broke."""
        nbytes = sum(self._server.covered(path) for path in self._paths[repo])
        self._server.seen.clear()
        return nbytes

    def close(self) -> None:
        self._server.__exit__()


class _Manager(BaseManager):
    pass


_Manager.register("Hub", Hub)


@contextmanager
def hub_process(certificate: str | None = None) -> Iterator[Any]:
    """A proxy of a `Hub`. `certificate` is a file with key and chain: then it speaks TLS."""
    with _Manager(ctx=multiprocessing.get_context("spawn")) as manager:
        hub = manager.Hub(certificate)  # type: ignore[attr-defined]
        yield hub
        hub.close()
