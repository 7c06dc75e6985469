"""A server of forks: imports all of asyncfetch once, then runs each load in a child of its own.

Reads one JSON object a line from stdin, see `runs.Run` for its keys, and writes two lines for each: the
child's pid at its start, its exit status and its result at its end. A child that is to be traced
waits for an empty line first. Kills by time come from here, so that no pid can be another's by then.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import resource
import secrets
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import anyio
import anyio._backends._asyncio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import numpy as np

import asyncfetch
from asyncfetch.network import trust
from asyncfetch.storage import partial

# What a first load imports and reads late.
asyncfetch.load_async, asyncfetch.Policy  # noqa: B018
trust.trusted(os.environ)


def digest_of(state_dict: dict[str, Any]) -> str:
    """One hash over names, dtypes, shapes and bytes, in order."""
    running = hashlib.sha256()
    for name, array in state_dict.items():
        running.update(f"{name} {array.dtype} {array.shape};".encode())
        running.update(np.ascontiguousarray(array).view(np.uint8).data)
    return running.hexdigest()


def main() -> None:
    for line in sys.stdin:
        _serve(json.loads(line))


def _serve(run: dict[str, Any]) -> None:
    """One run in a fork, watched to its end."""
    reading, writing = os.pipe()
    gate_reading, gate_writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        os.close(gate_writing)
        os.read(gate_reading, 1)
        os.close(gate_reading)
        _child(run, writing)
    os.close(writing)
    os.close(gate_reading)
    _say({"pid": pid})
    if run["traced"]:
        sys.stdin.readline()
    os.close(gate_writing)
    result, late = _watch(pid, reading, run)
    _, status = os.waitpid(pid, 0)
    _say({"status": os.waitstatus_to_exitcode(status), "late": late, **json.loads(result or "{}")})


def _watch(pid: int, reading: int, run: dict[str, Any]) -> tuple[bytes, bool]:
    """What the child wrote until its end, or until it was killed as `kill_after` or its deadline say."""
    began, result, kill_after = time.monotonic(), b"", run["kill_after"]
    limit = run["deadline"] if kill_after is None else kill_after
    late = False
    while True:
        left = None if late else max(began + limit - time.monotonic(), 0)
        if not select.select([reading], [], [], left)[0]:
            late = True
            os.kill(pid, signal.SIGKILL)
        elif piece := os.read(reading, 65536):
            result += piece
        else:
            os.close(reading)
            return result, late and kill_after is None


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _child(run: dict[str, Any], writing: int) -> NoReturn:
    result: dict[str, Any]
    try:
        _prepare(run)
        result = {"digest": anyio.run(_load, run)}
    except asyncfetch.AsyncfetchError as error:
        result = {"error": type(error).__name__, "code": error.code, "message": str(error)}
    except BaseException as error:
        result = {"foreign": type(error).__name__, "message": traceback.format_exc()}
    with open(writing, "wb") as stream:
        stream.write(json.dumps(result).encode())
    os._exit(0)


def _prepare(run: dict[str, Any]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(run["environ"])
    if run["umask"] is not None:
        os.umask(run["umask"])
    if run["often"]:
        partial._JOURNAL_INTERVAL = 0
    if run["one_thread"]:
        _use_one_thread()


def _use_one_thread() -> None:
    """Do in the event loop's thread what is done in others, and name files by counting.

    Then the calls on the cache are the same ones in the same order each time, and strace, which counts
    the calls of each thread for itself and selects by exact paths, can name every one of them.
    """

    async def run_sync(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return function(*arguments)

    count = itertools.count()
    anyio.to_thread.run_sync = run_sync
    anyio.from_thread.check_cancelled = lambda: None
    secrets.token_hex = lambda nbytes=None: f"{next(count):0{2 * (nbytes or 4)}x}"


async def _load(run: dict[str, Any]) -> str:
    policy = asyncfetch.Policy(**run["policy"])
    options = {"endpoint": run["endpoint"], "token": False, "policy": policy, **run["options"]}
    if run["warm"]:
        # The first load imports what is imported late, so that what fails then is ours.
        await asyncfetch.load_async(run["source"], cache_dir=run["warm"], **options)
        if run["uid"] is not None:
            os.setgroups([])
            os.setgid(run["uid"])
            os.setuid(run["uid"])
        for name, value in run["limits"].items():
            kind = getattr(resource, name)
            open_now = max(map(int, os.listdir("/proc/self/fd"))) if name == "RLIMIT_NOFILE" else 0
            resource.setrlimit(kind, (open_now + value, resource.getrlimit(kind)[1]))
    return digest_of(await asyncfetch.load_async(run["source"], cache_dir=run["cache"], **options))


if __name__ == "__main__":
    main()
