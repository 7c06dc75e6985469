"""A file that comes to a node in pieces, and what a plan tells the nodes, without a cluster."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest

from asyncfetch.cluster.driving import _asked
from asyncfetch.cluster.fetching import Arriving, Served
from asyncfetch.cluster.keeper import _identifies
from asyncfetch.cluster.options import ClusterOptions, TensorParallel
from asyncfetch.cluster.plan import Errand, Plan, stripped
from asyncfetch.errors import ChecksumMismatchError, OfflineError
from asyncfetch.network.ranges import Target
from asyncfetch.policy import Policy
from asyncfetch.sources.located import Located, SourceFile
from asyncfetch.storage.cache import RepoCache
from asyncfetch.storage.checksums import Checksum

from ..kit.canaries import PASSWORD, SIGNATURE, TOKEN, shown

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATA = bytes(range(256)) * 1000


def file_of(data: bytes, **more: object) -> SourceFile:
    etag = hashlib.sha256(data).hexdigest()
    file = SourceFile("m.safetensors", len(data), Checksum("sha256", etag), COMMIT, etag, etag, etag)
    for name, value in more.items():
        setattr(file, name, value)
    return file


@pytest.mark.parametrize("size", [0, 1, 70_000, len(DATA)])
def test_a_file_comes_in_pieces(tmp_path: Path, size: int) -> None:
    """A run that was stopped is gone on with; what is here already may come again."""
    cache, data = RepoCache(tmp_path, "org/model"), DATA[:size]
    first = Arriving(cache, COMMIT, file_of(data))
    assert first.accept(0, memoryview(data[:50_000])) == min(size, 50_000)
    first.suspend()
    again = Arriving(cache, COMMIT, file_of(data))
    assert again.partial.received == min(size, 50_000)
    for start in range(0, size, 30_000):
        again.accept(start, memoryview(data[start : start + 30_000]))
    assert again.finish().read_bytes() == data
    assert cache.find(COMMIT, "m.safetensors") is not None


def test_a_wrong_piece_leaves_nothing(tmp_path: Path) -> None:
    """Whichever byte is wrong: the file gets no name, and no later run goes on with it."""
    cache = RepoCache(tmp_path, "org/model")
    arriving = Arriving(cache, COMMIT, file_of(DATA))
    arriving.accept(0, memoryview(DATA[:-1]))
    arriving.accept(len(DATA) - 1, memoryview(b"\0"))
    with pytest.raises(ChecksumMismatchError):
        arriving.finish()
    assert cache.find(COMMIT, "m.safetensors") is None
    assert not [path for path in (cache.folder / "blobs").iterdir() if path.stat().st_size]


def test_a_plan_tells_no_secret(tmp_path: Path) -> None:
    """Neither links nor tokens go to nodes, and what is on the driver's disk is not taken for theirs."""
    link = Target(f"https://cdn.example/m?sign={SIGNATURE}", {"authorization": f"Bearer {TOKEN}"}, neutral=True)
    file = file_of(DATA, target=link, path=tmp_path / "m", in_blobs=True)
    located = Located("org/model", COMMIT, "main", "", None, None, [file])
    plan = Plan(stripped(located, None), "models--org--model", str(tmp_path / "cache"), Policy(), 1)
    assert shown(pickle.dumps(plan)) is None
    assert shown(repr(plan)) is None
    there = plan.find(plan.cache(), "m.safetensors")
    assert (there.path, there.in_blobs) == (None, False)
    plan.located.files[0].header = object()  # type: ignore[assignment]
    with pytest.raises(OfflineError):
        plan.landed()


def test_what_tells_calls_apart_tells_no_secret() -> None:
    """The keeper is asked by anybody what it holds: the address that somebody loads from is not in the answer."""

    def errand(source: str, nodes: int = 2, **options: Any) -> Errand:
        wanted: ClusterOptions = {"revision": "v2", **options}  # type: ignore[typeddict-item]
        return Errand(_asked(source, wanted, nodes, "both", True, "name", TensorParallel()), "/tmp/x", nodes, "both")

    web = f"https://me:{PASSWORD}@files.example/m/model.safetensors?X-Amz-Signature={SIGNATURE}"
    hub = {"endpoint": f"https://me:{PASSWORD}@hub.example"}
    told = [errand(web), errand(web + "&more"), errand("a/b", **hub), errand("a/b"), errand("a/b", 3), errand("a/c")]
    assert shown(pickle.dumps(told)) is None
    assert "files.example" not in repr(told)
    assert len({one.asked for one in told}) == len(told)
    assert errand(web).asked == told[0].asked


def test_who_may_have_a_link() -> None:
    """A link that is signed goes to nodes; what says who asks does not."""
    assert not _identifies(Target(f"https://cdn.example/m?sign={SIGNATURE}", {"X-Hf-Download-Counter": "1"}))
    assert _identifies(Target("https://hub.example/m", {"Authorization": f"Bearer {TOKEN}"}))
    assert _identifies(Target(f"https://user:{TOKEN}@web.example/m"))
    assert shown(repr(Served(Target(f"https://x/?{SIGNATURE}"), 1, b"", True))) is None
