"""A model of many shards in a process that may have few files open, as on macOS (256) and in batch systems."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import asyncfetch

from ..kit.child import in_child
from ..kit.fault_server import FaultServer
from ..kit.files import sharded_bytes

SHARDS = 90
TENSORS = {f"layer.{n}": np.full(70_000 + n, n % 251, np.uint8) for n in range(SHARDS)}
FILES = sharded_bytes(TENSORS, SHARDS)

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")

_LIMITED = """
import os
how, endpoint, cache, limit, shards = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), int(limit)))
shards = int(shards)
options = dict(endpoint=endpoint, cache_dir=cache, token=False)
expected = {f"layer.{n}": numpy.full(70_000 + n, n % 251, numpy.uint8) for n in range(shards)}
if how != "verify":
    options["policy"] = asyncfetch.Policy(connections=8)
kept = []
def held():
    return len(os.listdir("/proc/self/fd"))
here = os.path.isdir(os.path.join(cache, "models--org--model", "blobs"))
before, most = held(), 0
if how in ("load", "memory"):
    state = asyncfetch.load("org/model", storage="memory" if how == "memory" else "disk", **options)
elif how == "download":
    asyncfetch.download("org/model", **options)
    state = asyncfetch.load("org/model", cache_dir=cache, offline=True)
elif how == "open":
    with asyncfetch.open("org/model", **options) as checkpoint:
        state = checkpoint.state_dict()
        most = held()
elif how == "load_into":
    state = {name: numpy.zeros_like(array) for name, array in expected.items()}
    asyncfetch.load_into(state, "org/model", **options)
elif how == "verify":
    asyncfetch.download("org/model", **options)
    assert all(one.ok for one in asyncfetch.verify("org/model", cache_dir=cache) if one.file.endswith("tensors"))
    state = asyncfetch.load("org/model", cache_dir=cache, offline=True)
else:
    from asyncfetch.events import FileVerified
    whole, all_whole = [], __import__("threading").Event()
    def report(event):
        if isinstance(event, FileVerified):
            whole.append(event.file)
            if len(whole) == shards:
                all_whole.set()
    with asyncfetch.stream("org/model", early=how == "early", report=report, **options) as tensors:
        first = next(tensors)
        if not here:
            assert all_whole.wait(30)
        most = held()
        state = dict([first, *tensors])
tell(
    right=state.keys() == expected.keys() and all(numpy.array_equal(state[name], expected[name]) for name in state),
    held=held() - before,
    most=most - before,
)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("how", ["load", "memory", "download", "open", "stream", "early", "load_into", "verify"])
def test_more_shards_than_descriptors(server: FaultServer, tmp_path: Path, how: str) -> None:
    """Each way works, with nothing cached and then with all; what is loaded holds no descriptor."""
    server.hub("org/model", FILES)
    for here in (False, True):
        if here and how == "open":  # which has written nothing
            asyncfetch.download("org/model", endpoint=server.url, cache_dir=tmp_path, token=False)
        told = in_child(_LIMITED, how, server.url, tmp_path, 88, SHARDS)
        assert told["right"]
        assert told["held"] <= 3  # of imports, not of shards
        assert told["most"] <= 60


@pytest.mark.heavy
def test_three_hundred_shards(server: FaultServer, tmp_path: Path) -> None:
    """The numbers of https://github.com/huggingface/xet-core/issues/436."""
    tensors = {f"layer.{n}": np.full(70_000 + n, n % 251, np.uint8) for n in range(300)}
    server.hub("org/model", sharded_bytes(tensors, 300))
    told = in_child(_LIMITED, "load", server.url, tmp_path, 256, 300)
    assert told["right"]
    assert told["held"] <= 3


@pytest.mark.parametrize("room", [2, 20])
def test_too_few_for_anything(server: FaultServer, tmp_path: Path, room: int) -> None:
    """The error says how many files this process may open, and how to have more."""
    server.hub("org/model", FILES)
    code = """
import os
try:
    asyncfetch.load("org/none", endpoint=sys.argv[1], cache_dir=sys.argv[2], token=False)  # imports what comes late
except errors.AsyncfetchError:
    pass
limit = max(map(int, os.listdir("/proc/self/fd"))) + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
try:
    asyncfetch.load("org/model", endpoint=sys.argv[1], cache_dir=sys.argv[2], token=False)
except errors.AsyncfetchError as error:
    tell(said=str(error), limit=limit)
"""
    told = in_child(code, server.url, tmp_path, room)
    assert f"this process may have {told['limit']} (ulimit -n)" in told["said"]


def test_a_map_lasts_as_long_as_its_last_view(tmp_path: Path) -> None:
    """Descriptor and file may be gone; each view keeps the pages, and the last one gives them back, once."""
    code = """
import gc, os, numpy as np
from asyncfetch.storage.maps import map_file
path = sys.argv[1]
def mapped():
    return sum(path in line for line in open("/proc/self/maps"))
sizes = [1, 4095, 4096, 4097, 3_000_000]
for size in sizes:
    with open(path, "wb") as stream:
        stream.write(os.urandom(size))
    data = open(path, "rb").read()
    with open(path, "rb") as stream:
        before = len(os.listdir("/proc/self/fd"))
        pages = map_file(stream.fileno(), size)
        assert len(os.listdir("/proc/self/fd")) == before
    os.unlink(path)
    view = np.frombuffer(pages, np.uint8)[size // 2:]
    del pages
    gc.collect()
    assert mapped() == 1 and view.tobytes() == data[size // 2:]
    child = os.fork()
    if not child:
        view[0] ^= 255
        os._exit(int(view[0] == data[size // 2]))
    assert os.waitpid(child, 0)[1] == 0
    assert view.tobytes() == data[size // 2:]
    view[0] ^= 255
    assert view[0] == data[size // 2] ^ 255
    del view
    gc.collect()
    assert mapped() == 0
tell(done=True)
"""
    assert in_child(code, tmp_path / "file")["done"]


def test_changes_stay_in_this_process(tmp_path: Path) -> None:
    """A tensor may be written to; the file stays as it is."""
    code = """
import numpy as np
from asyncfetch.storage.maps import map_file
with open(sys.argv[1], "wb") as stream:
    stream.write(bytes(10_000))
with open(sys.argv[1], "rb") as stream:
    pages = map_file(stream.fileno(), 10_000)
np.frombuffer(pages, np.uint8)[:] = 7
assert open(sys.argv[1], "rb").read() == bytes(10_000)
with open(sys.argv[1], "rb") as stream:
    assert map_file(stream.fileno(), 10_001) is None and map_file(stream.fileno(), 0) is None
tell(done=True)
"""
    assert in_child(code, tmp_path / "file")["done"]
