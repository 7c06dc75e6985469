"""A process that has loaded, or that loads just now, forks; and the child loads too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import asyncfetch
from asyncfetch.events import Event, FileStarted
from asyncfetch.sources.located import PREFIX_LIMIT

from ..kit.fault_server import LOOK, OK, Drip, FaultServer
from ..kit.files import sharded_bytes
from ..kit.strace import ROOT

_RANDOM = np.random.default_rng(23)
TENSORS = {f"layer.{n}": _RANDOM.integers(0, 255, 900_000, dtype=np.uint8) for n in range(3)}

# What each program has. `in_child` forks, and runs a function there; `end_of` tells how that ended.
FUNCTIONS = """
import gc, glob, os, sys, threading, time
import numpy as np
import anyio
import asyncfetch
from asyncfetch.errors import SourceError
from asyncfetch.events import FileStarted

endpoint, cache, *more = sys.argv[1:]

def load(folder, **options):
    folder = os.path.join(cache, folder)
    return asyncfetch.load("org/model", endpoint=endpoint, cache_dir=folder, token=False, **options)

def same(state):
    return state.keys() == expected.keys() and all(np.array_equal(state[name], expected[name]) for name in expected)

def in_child(work):
    pid = os.fork()
    if not pid:
        try:
            work()
        except SourceError as error:
            print("refused:", error.message, flush=True)
            os._exit(3)
        os._exit(0)
    return pid

def end_of(pid):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "deadlock"

def idle_child():
    pid = os.fork()
    if not pid:
        for descriptor in 0, 1, 2:  # so that nobody waits for the end of its output
            os.close(descriptor)
        time.sleep(60)
        os._exit(0)
    return pid

def under_way():
    while not glob.glob(os.path.join(cache, "shared/models--*/blobs/*.map.incomplete")):
        time.sleep(0.01)
"""

# What those begin with in which the parent has loaded before.
BEGIN = (
    FUNCTIONS
    + """
expected = load("reference")
print("ready", flush=True)
input()
"""
)

AFTER_A_LOAD = """
def child():
    assert same(load("child"))
    assert same(load("child"))
children = [in_child(child) for _ in range(2)]
assert same(load("parent"))
assert [end_of(pid) for pid in children] == [0, 0]
assert same(load("parent"))
"""

WHILE_OPEN = """
with asyncfetch.open("org/model", endpoint=endpoint, cache_dir=os.path.join(cache, "none"), token=False) as opened:
    assert np.array_equal(opened.tensor("layer.0"), expected["layer.0"])
    def child():
        assert same(load("child"))
        opened.tensor("layer.1")
    assert end_of(in_child(child)) == 3
    assert np.array_equal(opened.tensor("layer.1"), expected["layer.1"])
    pid = os.fork()
    if not pid:
        sys.exit(4)  # leaves the block in the child
    assert end_of(pid) == 4
    assert np.array_equal(opened.tensor("layer.2"), expected["layer.2"])
"""

WITHIN_A_STREAM = """
options = {"endpoint": endpoint, "token": False, "early": True}
for storage in "memory", "disk":
    with asyncfetch.stream("org/model", storage=storage, cache_dir=os.path.join(cache, storage), **options) as tensors:
        found = dict([next(tensors)])
        def child():
            assert same(load("child-of-" + storage))
            dict(tensors)
        assert end_of(in_child(child)) == 3
        pid = os.fork()
        if not pid:
            sys.exit(4)
        assert end_of(pid) == 4
        found |= dict(tensors)
    assert same({name: found[name] for name in expected})
"""

# From here on the parent forks in the middle of a download, whose locks the child must neither free nor keep.
BOTH_LOAD = """
thread = threading.Thread(target=lambda: load("shared"))
thread.start()
under_way()
def child():
    assert same(load("shared"))
assert end_of(in_child(child)) == 0
thread.join()
assert same(load("shared"))
"""

CANCELLED = """
async def cancelled():
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: asyncfetch.load_async("org/model", **options))
        await anyio.to_thread.run_sync(under_way)
        children.append(idle_child())
        group.cancel_scope.cancel()

options = {"endpoint": endpoint, "cache_dir": os.path.join(cache, "shared"), "token": False}
children = []
anyio.run(cancelled)
events = []
assert same(load("shared", report=events.append))
os.kill(children[0], 9)
started = [event for event in events if isinstance(event, FileStarted)]
assert len(started) == 3
assert all(event.present > 100_000 for event in started), started
"""

KILLED = """
thread = threading.Thread(target=lambda: load("shared"))
thread.start()
under_way()
print(idle_child(), flush=True)
thread.join()
"""

# The fork falls into the import of one module by another thread, which goes on when the fork is over, or after a while.
FIRST_CALL = """
import importlib.abc

class Gate(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == at and not begun.is_set():
            begun.set()
            forked.wait(0.5)

at = more[0]
work = lambda folder: load(folder)
if at == "torch":
    from asyncfetch.models.torch_tensors import import_torch
    with open(os.path.join(cache, "torch.py"), "w") as file:
        file.write("whole = True")
    sys.path.insert(0, cache)
    work = lambda folder: import_torch().whole

begun, forked = threading.Event(), threading.Event()
sys.meta_path.insert(0, Gate())
os.register_at_fork(after_in_parent=forked.set)
thread = threading.Thread(target=work, args=("parent",))
thread.start()
begun.wait()

def child():
    assert gc.isenabled()
    assert work("child")
    assert gc.isenabled()

print(end_of(in_child(child)))
thread.join()
assert gc.isenabled()
"""

# The thread that imports forks itself, and so would wait for itself.
BY_AN_IMPORT = """
import importlib.abc

class Gate(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "httpx" and not children:
            children.append(0)
            children[0] = os.fork()
            if not children[0]:
                os._exit(0 if gc.isenabled() else 1)

children = []
sys.meta_path.insert(0, Gate())
began = time.monotonic()
assert load("parent")
assert end_of(children[0]) == 0
assert time.monotonic() - began < 20
assert gc.isenabled()
assert end_of(in_child(lambda: load("child"))) == 0
"""

COLLECTIONS = """
from asyncfetch.tasks import without_collections

def child():
    assert gc.isenabled()
    with without_collections():
        assert not gc.isenabled()
    assert gc.isenabled()

def paused(work):
    def wait():
        with without_collections():
            begun.set()
            over.wait()

    begun, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait()
    work()
    over.set()
    thread.join()

children = []
paused(lambda: children.append(in_child(child)))
assert end_of(children[0]) == 0
with without_collections():
    pid = os.fork()  # in the middle of a block of this very thread, which ends in the child too
if not pid:
    child()
    os._exit(0)
assert end_of(pid) == 0
assert gc.isenabled()

gc.disable()
paused(lambda: children.append(in_child(lambda: os._exit(4 if gc.isenabled() else 0))))
assert end_of(children[1]) == 0
assert not gc.isenabled()
"""

# Another thread looks for certificates, which all calls wait for.
CERTIFICATES = """
from asyncfetch.network.trust import trusted

def look():
    try:
        trusted({"SSL_CERT_DIR": cache})
    except OSError as error:
        assert "has no certificates" in str(error)

def gate(event, args):
    if event == "os.listdir" and not begun.is_set():
        begun.set()
        forked.wait(0.5)

begun, forked = threading.Event(), threading.Event()
sys.addaudithook(gate)
os.register_at_fork(after_in_parent=forked.set)
thread = threading.Thread(target=look)
thread.start()
begun.wait()
assert end_of(in_child(look)) == 0
thread.join()
"""

# Another thread makes a model, for which it is alone.
MODELS = """
from asyncfetch.adapters.pretrained import _alone

def make():
    begun.set()
    over.wait()

begun, over = threading.Event(), threading.Event()
thread = threading.Thread(target=anyio.run, args=(_alone, make))
thread.start()
begun.wait()
assert end_of(in_child(lambda: anyio.run(_alone, int))) == 0
over.set()
thread.join()
assert anyio.run(_alone, int) == 0
"""


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        running.hub("org/model", sharded_bytes(TENSORS))
        yield running


def python(code: str, server: FaultServer, cache: Path, *more: str, begin: str = BEGIN) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", begin + code, server.url, str(cache), *more],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def go(process: subprocess.Popen[str]) -> None:
    """Wait until the program is ready, then let it begin."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    process.stdin.write("\n")
    process.stdin.flush()


def slow_down(server: FaultServer) -> None:
    """From now on a shard takes about two seconds beyond its prefix, so that there is a journal half-way."""
    for path in server.resources:
        if path.startswith("/storage/"):
            server.fault(path, LOOK, Drip(16_384, 0.04), OK, forever=True)


def ended(process: subprocess.Popen[str]) -> str:
    """What it printed, once it has ended well and without a word of complaint."""
    output, errors = process.communicate(timeout=40)
    assert process.returncode == 0, errors
    assert not errors
    return output


@pytest.mark.parametrize(("name", "refusals"), [("AFTER_A_LOAD", 0), ("WHILE_OPEN", 1), ("WITHIN_A_STREAM", 2)])
def test_the_child_loads(server: FaultServer, tmp_path: Path, name: str, refusals: int) -> None:
    """It works in the child, what the parent has open refuses to work there, and the parent goes on."""
    with python(globals()[name], server, tmp_path) as process:
        try:
            go(process)
            output = ended(process)
        finally:
            process.kill()
    assert output.count("refused: It was opened in another process") == refusals


@pytest.mark.parametrize("name", ["BOTH_LOAD", "CANCELLED"])
def test_a_fork_in_the_middle(server: FaultServer, tmp_path: Path, name: str) -> None:
    """A child that loads the same waits for its parent; one that does nothing keeps no lock of a cancelled load."""
    with python(globals()[name], server, tmp_path) as process:
        try:
            go(process)
            slow_down(server)
            ended(process)
        finally:
            process.kill()
    if name == "BOTH_LOAD":
        for path in server.resources:
            if path.startswith("/storage/"):
                assert server.sent(path) <= 2 * len(server.resources[path].body) + 2 * PREFIX_LIMIT


def test_killed_while_a_child_lives(server: FaultServer, tmp_path: Path) -> None:
    """The locks of a killed parent do not live on in its child: the next load goes on where the journal ends."""
    with python(KILLED, server, tmp_path) as process:
        try:
            go(process)
            slow_down(server)
            assert process.stdout is not None
            child = int(process.stdout.readline())
        finally:
            process.kill()
    try:
        events: list[Event] = []
        began = time.monotonic()
        state = asyncfetch.load(
            "org/model", endpoint=server.url, cache_dir=tmp_path / "shared", token=False, report=events.append,
            policy=asyncfetch.Policy(lock_patience=1),
        )  # fmt: skip
        assert time.monotonic() - began < 10
    finally:
        os.kill(child, signal.SIGKILL)
    assert all(np.array_equal(state[name], TENSORS[name]) for name in TENSORS)
    started = [event.present for event in events if isinstance(event, FileStarted)]
    assert max(started) > PREFIX_LIMIT


@pytest.mark.parametrize("module", ["anyio._backends._asyncio", "httpx", "asyncfetch.engine.transfer", "torch"])
def test_the_first_call_in_another_thread(server: FaultServer, tmp_path: Path, module: str) -> None:
    """The fork waits for what another thread imports: the child has all of it, and collects its garbage."""
    with python(FIRST_CALL, server, tmp_path, module, begin=FUNCTIONS) as process:
        try:
            assert ended(process) == "0\n"
        finally:
            process.kill()


def test_a_fork_that_cannot_wait(server: FaultServer, tmp_path: Path) -> None:
    """What waits for forks itself is waited for by none. The child says why it cannot load, and does not hang."""
    with python(FIRST_CALL, server, tmp_path, "filelock", begin=FUNCTIONS) as process:
        try:
            output = ended(process)
        finally:
            process.kill()
    assert output.startswith("refused: This process was forked while another thread of its parent imported")
    assert output.endswith("\n3\n")


@pytest.mark.parametrize("name", ["BY_AN_IMPORT", "COLLECTIONS", "CERTIFICATES", "MODELS"])
def test_in_the_middle_of_what_all_calls_share(server: FaultServer, tmp_path: Path, name: str) -> None:
    """Neither garbage collection nor a lock of the process stays as another thread had it."""
    with python(globals()[name], server, tmp_path, begin=FUNCTIONS) as process:
        try:
            assert ended(process) == ""
        finally:
            process.kill()
