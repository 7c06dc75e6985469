"""Loads in processes of their own, forked from a server that has imported asyncfetch; each waits for its start."""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import numpy as np

from asyncfetch import AsyncfetchError, Policy, load

__all__ = ["Job", "Loader", "digest_of"]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Job:
    """A load of `source` into `cache`. `locks`: "real", "none" (granted to all), "host" (within a process)."""

    endpoint: str
    cache: str
    locks: str = "real"
    source: str = "org/model"
    policy: Policy = field(default_factory=Policy)


class Loader:
    """A process that does a job once `begin` was called."""

    def __init__(self, job: Job) -> None:
        self._ours, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(job, theirs), daemon=True)
        self._process.start()
        theirs.close()
        assert self._ours.recv() == "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._ours.close()

    def begin(self) -> None:
        self._ours.send("go")

    def result(self, seconds: float) -> str:
        """The digest of the state dict, or what went wrong."""
        assert self._ours.poll(seconds), f"no end within {seconds:g} s"
        outcome: str = self._ours.recv()
        self._process.join(10)
        return outcome

    @property
    def running(self) -> bool:
        return not self._ours.poll()

    def stop(self) -> None:
        """SIGSTOP, and wait until the kernel has stopped all of its threads."""
        pid = self._process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)

    def go_on(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(job: Job, connection: Connection) -> None:
    _LOCKS[job.locks]()
    connection.send("ready")
    connection.recv()
    try:
        state = load(job.source, endpoint=job.endpoint, cache_dir=job.cache, token=False, policy=job.policy)
        outcome = digest_of(state)
    except AsyncfetchError as error:
        outcome = f"{type(error).__name__}: {error}"
    connection.send(outcome)


def _grant_to_all() -> None:
    fcntl.flock = lambda descriptor, operation: None


def _hold_within_the_process() -> None:
    """What `local_lock=flock` of NFS and `localflock` of Lustre do, with each process for a host of its own."""
    held: dict[tuple[int, int], int] = {}

    def identity(descriptor: int) -> tuple[int, int] | None:
        with suppress(OSError):
            return os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino
        return None  # closed, which frees its lock

    def flock(descriptor: int, operation: int) -> None:
        file = identity(descriptor)
        assert file is not None
        holder = held.get(file)
        if operation & fcntl.LOCK_UN:
            held.pop(file, None)
        elif holder not in (None, descriptor) and identity(holder) == file:
            raise BlockingIOError
        else:
            held[file] = descriptor

    fcntl.flock = flock
    name = f"host-{os.getpid()}"
    socket.gethostname = lambda: name


_LOCKS = {"real": lambda: None, "none": _grant_to_all, "host": _hold_within_the_process}


def digest_of(state: Mapping[str, Any]) -> str:
    """One hash over names, dtypes, shapes and bytes, in order."""
    running = hashlib.sha256()
    for name, array in state.items():
        running.update(f"{name} {array.dtype} {array.shape};".encode())
        running.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return running.hexdigest()
