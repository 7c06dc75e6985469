"""A machine whose name server never answers: a network of its own, with nothing in it but that server.

with silent_resolver(sys.executable, "-c", code) as (process, queries):
    queries.recv(512)     # the process waits for an answer from now on
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .users import ROOT

_ENTER = """
import os, socket, subprocess, sys
channel, resolv_conf, *command = sys.argv[1:]
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["mount", "--bind", resolv_conf, "/etc/resolv.conf"], check=True)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
with socket.socket(fileno=int(channel)) as way:
    socket.send_fds(way, [b"!"], [server.fileno()])
server.close()
os.execv(command[0], command)
"""
_UNSHARE = ("unshare", "--net", "--mount")


@contextmanager
def silent_resolver(*command: str, **environ: str) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """A process in that network, and the socket of its name server, which sees its queries. Skips where that cannot be.

    A look-up takes minutes there, so who leaves at once did not wait for it.
    """
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and `ip` for a network of its own")
    if subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no network of its own")
    ours, theirs = socket.socketpair()
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"PYTHONPATH": str(ROOT), **environ}
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as conf, ours:
        conf.write("nameserver 127.0.0.1\noptions timeout:30 attempts:5\n")
        conf.flush()
        with theirs:
            process = subprocess.Popen(
                [*_UNSHARE, sys.executable, "-c", _ENTER, str(theirs.fileno()), conf.name, *command],
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[theirs.fileno()],
            )
        try:
            ours.settimeout(50)
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
            with socket.socket(fileno=descriptors[0]) as server:
                server.settimeout(50)
                yield process, server
        finally:
            process.kill()
            process.communicate()
