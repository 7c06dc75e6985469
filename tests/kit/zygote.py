"""Many short Python programs, each in a process of its own, without what it costs to import the same again each time.

    with zygote("asyncfetch.cli.main") as python:
        subprocess.run([*python, "-m", "asyncfetch", "load", ...])

`python` stands for sys.executable: a small program that asks a process, which has imported those modules
and done nothing else, to fork. The fork has the small program's arguments, environment, folder and
streams, and runs `-m module ...` or `-c code ...`; signals are handed on to it, and the small program ends
as it ends. How a Python starts, with its locale or with -W, is not tested in this way.
"""

from __future__ import annotations

import gc
import importlib
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["zygote"]

_LAUNCH = Path(__file__).with_name("launch.py")
_ROOT = Path(__file__).parents[2]
_MESSAGE = 1 << 20  # bytes, at most, of arguments and environment


@contextmanager
def zygote(*preload: str) -> Iterator[list[str]]:
    """The begin of a command that runs Python in a fork of a process that has imported the modules `preload`."""
    with tempfile.TemporaryDirectory(prefix="asyncfetch-zygote-") as folder:
        path = os.path.join(folder, "socket")
        command = [sys.executable, "-m", "tests.kit.zygote", path, *preload]
        # One thread for BLAS: with more, a fork would be one of a process with threads.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        # It ends with its stdin, so also when this process is killed.
        with subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as one:
            assert one.stdout is not None
            assert one.stdout.readline() == b"ready\n"
            yield [sys.executable, "-I", "-S", str(_LAUNCH), path]
        assert one.returncode == 0


def main(path: str, preload: list[str]) -> None:
    """Fork for each connection, and tell it how the fork ended. Returns in the forks, which are what was asked for."""
    for module in preload:
        importlib.import_module(module)
    assert threading.active_count() == 1
    gc.freeze()  # the forks need not look at what is here, and so copy it
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(64)
        os.write(1, b"ready\n")
        wanted = _serve(listener)
    if wanted is not None:
        _become(wanted)


def _serve(listener: socket.socket) -> tuple[list[bytes], list[int]] | None:
    """In a fork, what it is to be: arguments and environment, and its standard streams. None when all is over."""
    forks: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor that tells the end of each
    while True:
        ready, _, _ = select.select([0, listener, *forks, *(asker for _, asker in forks.values())], [], [])
        if 0 in ready:
            return None
        for ended in [one for one in forks if one in ready]:
            pid, asker = forks.pop(ended)
            os.close(ended)
            _, status = os.waitpid(pid, 0)
            with suppress(OSError):
                asker.send(b"%d" % status)
            asker.close()
        for pid, asker in forks.values():
            if asker in ready:  # who asked was killed
                os.kill(pid, signal.SIGKILL)
        if listener in ready:
            asker, _ = listener.accept()
            message, streams, _, _ = socket.recv_fds(asker, _MESSAGE, 3)
            if not message:  # killed before it asked
                asker.close()
                continue
            pid = os.fork()
            if pid == 0:
                return message.split(b"\0"), streams
            for stream in streams:
                os.close(stream)
            with suppress(OSError):
                asker.send(b"%d" % pid)
            forks[os.pidfd_open(pid)] = pid, asker


def _become(wanted: tuple[list[bytes], list[int]]) -> None:
    """Be a Python that was started with these arguments, environment and streams."""
    (count, *message), streams = wanted
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, 1024)
    folder, *arguments = (os.fsdecode(one) for one in message[: int(count)])
    environment = (one.partition(b"=") for one in message[int(count) :])
    os.chdir(folder)
    os.environb.clear()
    os.environb.update({name: value for name, _, value in environment})
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    flag, what, *rest = arguments
    sys.path[:0] = [""]
    sys.argv = [flag, *rest]
    if flag == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
