"""One cache for two tools: huggingface_hub, unmodified and in a process of its own, and asyncfetch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import asyncfetch
from asyncfetch import Snapshot
from asyncfetch.errors import CheckpointNotFoundError, OfflineError
from asyncfetch.server import Server
from asyncfetch.sources.located import PREFIX_LIMIT
from asyncfetch.storage.cache import RepoCache
from asyncfetch.storage.roots import url_repo_id

from ..kit.fault_server import FaultServer, Headers
from ..kit.files import safetensors_bytes, sharded
from ..kit.strace import ROOT
from ..kit.users import as_nobody, public_folder
from ..kit.zygote import zygote

INDEX = "model.safetensors.index.json"
TENSORS = {f"layer.{number}.weight": np.arange(number, number + 5000, dtype=np.float32) for number in range(7)}
BEGIN = """
import json, os, sys, warnings
from pathlib import Path
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import disable_progress_bars
disable_progress_bars()
warnings.simplefilter("ignore")
"""
SCAN = """
scan = scan_cache_dir()
repos = {repo.repo_id: repo for repo in scan.repos}
result = {
    "warnings": [str(warning) for warning in scan.warnings],
    "repos": {name: {
        "files": sorted(file.file_name for revision in repo.revisions for file in revision.files),
        "refs": sorted(repo.refs), "size": repo.size_on_disk,
    } for name, repo in repos.items()},
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Models with shards, with a single file, with both in a subfolder."""
    root = tmp_path_factory.mktemp("models")
    sharded(root / "org" / "sharded", TENSORS)
    (root / "org" / "sharded" / "config.json").write_text("{}")
    sharded(root / "org" / "nested" / "unet", TENSORS, 2)
    (root / "org" / "single").mkdir()
    (root / "org" / "single" / "model.safetensors").write_bytes(safetensors_bytes(TENSORS))
    with Server(root) as running:
        yield running


@pytest.fixture(autouse=True, params=["links", "no links"])
def home(request: pytest.FixtureRequest, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both tools use the server, without a cache so far; with symbolic links and without."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    if request.param == "no links":
        monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "1")
    return str(request.param)


@pytest.fixture(autouse=True, scope="module")
def python() -> Iterator[None]:
    """What `hub` runs with: a Python with the libraries that huggingface_hub imports, but not yet itself."""
    with zygote("filelock", "httpx2", "tqdm.auto", "yaml") as PYTHON[:]:
        yield


PYTHON: list[str] = []


def hub(code: str, cache: Path, **environ: str) -> Any:
    """What `code` leaves in `result`, run by a Python with huggingface_hub and without asyncfetch."""
    script = f"{BEGIN}{code}\nassert 'asyncfetch' not in sys.modules\nprint(json.dumps(result, default=str))"
    environ = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", **environ}
    run = subprocess.run([*PYTHON, "-c", script], capture_output=True, text=True, env=environ, cwd=ROOT, timeout=50)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def tree(cache: Path) -> dict[str, str]:
    """Each name below `cache` that a reader looks at: the target of a link, "dir", or the bytes."""
    found = {}
    for path in sorted(cache.rglob("*")):
        name = str(path.relative_to(cache))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "dir"
        else:
            found[name] = path.read_bytes().hex() if path.stat().st_size < 1000 else f"{path.stat().st_size} bytes"
        if path.name == "CACHEDIR.TAG":
            found[name] = path.read_text().splitlines()[0]
    return {name: what for name, what in found.items() if not {".locks", "trees", ".no_exist"} & {*Path(name).parts}}


def asked(server: Server) -> int:
    return len(server.requests)


def same(state_dict: dict[str, np.ndarray], expected: dict[str, np.ndarray] = TENSORS) -> bool:
    return set(state_dict) == set(expected) and all(
        np.array_equal(state_dict[name], expected[name]) for name in expected
    )


# -- ours, read by huggingface_hub -----------------------------------------------------------------


def test_both_tools_write_the_same_cache(tmp_path: Path) -> None:
    """After downloading the same files the two caches have the same names, links, refs, modes and bytes."""
    ours, theirs = tmp_path / "hub", tmp_path / "theirs"
    snapshot = asyncfetch.download("org/sharded")
    asyncfetch.download("org/nested", subfolder="unet")
    asyncfetch.download("org/single")
    code = f"""
result = [hf_hub_download("org/sharded", name) for name in {list(snapshot.files)}]
snapshot_download("org/nested")
hf_hub_download("org/single", "model.safetensors")
"""
    paths = hub(code, theirs)
    left, right = tree(ours), tree(theirs)
    kept = [name for name in left if "/listings" in name]  # which it passes over, as the next test shows
    assert len(kept) == 2 * 3
    assert {name: what for name, what in left.items() if name not in kept} == right
    assert [Path(path).relative_to(theirs) for path in paths] == [p.relative_to(ours) for p in snapshot.files.values()]
    assert len([name for name in left if "/snapshots/" in name and name.endswith(".safetensors")]) == 6
    for name, what in right.items():
        if what != "dir" and not what.startswith("->"):
            assert (ours / name).stat().st_mode == (theirs / name).stat().st_mode, name
    ref = (ours / "models--org--sharded/refs/main").read_bytes()
    assert ref == snapshot.commit.encode() if snapshot.commit else None


def test_huggingface_hub_finds_our_files_offline(tmp_path: Path, server: Server) -> None:
    """Every way to look into a cache gives our paths, without a request, and the scan has no complaint."""
    snapshot = asyncfetch.download("org/sharded")
    nested = asyncfetch.download("org/nested", subfolder="unet")
    before = asked(server)
    code = f"""
names, commit = {list(snapshot.files)}, {snapshot.commit!r}
{SCAN}
result["downloads"] = [hf_hub_download("org/sharded", name) for name in names]
result["pinned"] = [hf_hub_download("org/sharded", name, revision=commit) for name in names]
result["tries"] = [try_to_load_from_cache("org/sharded", name) for name in names]
result["snapshot"] = snapshot_download("org/sharded", local_files_only=True)
result["nested"] = snapshot_download("org/nested", local_files_only=True)
"""
    result = hub(code, tmp_path / "hub", HF_HUB_OFFLINE="1")
    paths = [str(path) for path in snapshot.files.values()]
    assert result["downloads"] == result["pinned"] == result["tries"] == paths
    assert result["snapshot"] == str(snapshot.path)
    assert result["nested"] == str(nested.path)
    assert result["warnings"] == []
    assert result["repos"]["org/sharded"]["files"] == sorted(Path(path).name for path in paths)
    assert result["repos"]["org/sharded"]["refs"] == ["main"]
    assert result["repos"]["org/sharded"]["size"] == sum(os.path.getsize(path) for path in paths)
    assert asked(server) == before


def test_huggingface_hub_downloads_only_what_we_did_not(tmp_path: Path, server: Server) -> None:
    """Its snapshot over ours fetches the other files of the repository and none of the shards."""
    snapshot = asyncfetch.download("org/sharded", weights_only=True)
    before = asked(server)
    path = hub("result = snapshot_download('org/sharded')", tmp_path / "hub")
    assert path == str(snapshot.path)
    fetched = [
        record.path for record in server.requests[before:] if record.method == "GET" and "/resolve/" in record.path
    ]
    assert [Path(name).name for name in fetched] == ["config.json"]
    assert (snapshot.path / "config.json").read_text() == "{}"


def test_absences_are_shared(tmp_path: Path) -> None:
    """What we found missing huggingface_hub knows to be missing."""
    snapshot = asyncfetch.download("org/single")
    code = f"""
from huggingface_hub.file_download import _CACHED_NO_EXIST
result = [try_to_load_from_cache("org/single", name) is _CACHED_NO_EXIST for name in ({INDEX!r}, "other.json")]
{SCAN.replace("result", "scanned")}
result += scanned["warnings"]
"""
    assert hub(code, tmp_path / "hub", HF_HUB_OFFLINE="1") == [True, False]
    assert (snapshot.path.parents[1] / ".no_exist" / str(snapshot.commit) / INDEX).is_file()


def test_an_unfinished_download_is_no_corruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an interrupted run leaves gives no warning, and `hf cache prune` removes it."""
    asyncfetch.download("org/single")
    cache = RepoCache(tmp_path / "hub", "org/sharded")
    cache.prepare()
    cache.partial("e" * 64).write_bytes(bytes(100))
    (cache.folder / "blobs" / f"{'e' * 64}.asyncfetch.map.incomplete").write_text("{}")
    with cache.lock("e" * 64):
        pass
    result = hub(SCAN, tmp_path / "hub")
    assert [warning for warning in result["warnings"] if "sharded" not in warning] == []
    assert "org/single" in result["repos"]
    environ = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [str(Path(sys.executable).with_name("hf")), "cache", "prune", "--yes"]
    subprocess.run(command, check=True, env=environ, capture_output=True, timeout=50)
    assert list((cache.folder / "blobs").glob("*")) == []


def test_refs_of_any_name(tmp_path: Path) -> None:
    """Nested names of refs, written by us, are read by huggingface_hub."""
    revisions = ["refs/pr/1", "v1.0", "feature/a/b"]
    snapshot = asyncfetch.download("org/single")
    for revision in revisions:
        RepoCache(tmp_path / "hub", "org/single").write_ref(revision, str(snapshot.commit))
        assert same(asyncfetch.load("org/single", revision=revision, offline=True))
    code = f"""
{SCAN}
result["paths"] = [hf_hub_download("org/single", "model.safetensors", revision=revision) for revision in {revisions}]
"""
    result = hub(code, tmp_path / "hub", HF_HUB_OFFLINE="1")
    assert result["paths"] == [str(snapshot.path / "model.safetensors")] * 3
    assert result["repos"]["org/single"]["refs"] == sorted(["main", *revisions])
    assert result["warnings"] == []


# -- theirs, read by us ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["snapshot", "files"])
def test_we_load_their_download_without_a_request(tmp_path: Path, server: Server, how: str) -> None:
    """With the commit pinned nothing is sent, as with offline=True; then nothing is written either."""
    names = [INDEX, *(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))]
    code = f"""
if {how == "snapshot"}: path = Path(snapshot_download("org/sharded"))
else: path = Path([hf_hub_download("org/sharded", name) for name in {names}][-1]).parent
result = path.name
"""
    commit = hub(code, tmp_path / "hub")
    everything = {str(path): path.lstat().st_mtime_ns for path in (tmp_path / "hub").rglob("*")}
    before = asked(server)
    assert same(asyncfetch.load("org/sharded", revision=commit))
    assert same(asyncfetch.load(f"org/sharded@{commit}", verify="always"))
    assert same(asyncfetch.load("org/sharded", offline=True))
    assert same(asyncfetch.load("org/sharded", revision=commit, storage="memory"))
    assert asked(server) == before
    assert {str(path): path.lstat().st_mtime_ns for path in (tmp_path / "hub").rglob("*")} == everything


def test_their_listing_answers_for_missing_files(tmp_path: Path, server: Server) -> None:
    """A single file has no index: their listing of the commit says so, without a request."""
    commit = hub("result = Path(snapshot_download('org/single')).name", tmp_path / "hub")
    before = asked(server)
    assert same(asyncfetch.load("org/single", revision=commit))
    assert same(asyncfetch.load("org/single", offline=True))
    assert asked(server) == before
    shutil.rmtree(tmp_path / "hub/models--org--single/trees")
    assert same(asyncfetch.load("org/single", revision=commit))
    assert asked(server) > before, "so it was the listing that knew"


def test_their_absences_are_honoured(tmp_path: Path, server: Server) -> None:
    """A file that they looked for in vain is not asked for again."""
    code = f"""
from huggingface_hub.errors import EntryNotFoundError
try: hf_hub_download("org/single", {INDEX!r})
except EntryNotFoundError: pass
result = Path(hf_hub_download("org/single", "model.safetensors")).parent.name
"""
    commit = hub(code, tmp_path / "hub")
    before = asked(server)
    assert same(asyncfetch.load("org/single", revision=commit))
    assert asked(server) == before


def test_blobs_from_before_links_were_switched_off(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that another commit, or another time, left is used again: linked, or copied where links are off."""
    monkeypatch.delenv("HF_HUB_DISABLE_SYMLINKS", raising=False)
    path = Path(hub("result = hf_hub_download('org/single', 'model.safetensors')", tmp_path / "hub"))
    shutil.rmtree(path.parents[1])
    before = asked(server)
    for links in (True, False):
        monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "0" if links else "1")
        assert same(asyncfetch.load("org/single"))
        assert path.is_symlink() is links
        path.unlink()
    ranges = [record.range for record in server.requests[before:] if record.path.endswith("/model.safetensors")]
    assert ranges == [f"bytes=0-{PREFIX_LIMIT - 1}"] * 2, "only metadata and header"


def test_offline_without_a_download(server: Server) -> None:
    """Offline and not cached is an error of its own, without a request."""
    before = asked(server)
    for source in ("org/sharded", f"org/sharded@{'c' * 40}"):
        with pytest.raises(OfflineError):
            asyncfetch.load(source, offline=True)
    assert asked(server) == before


def test_a_shard_that_they_did_not_fetch(tmp_path: Path, server: Server) -> None:
    """Over a part of a snapshot we fetch the rest: the index and the shards that are there are not asked for again."""
    names = [INDEX, "model-00002-of-00003.safetensors"]
    code = f"result = [hf_hub_download('org/sharded', name) for name in {names}]"
    commit = Path(hub(code, tmp_path / "hub")[0]).parent.name
    with pytest.raises(OfflineError):
        asyncfetch.load("org/sharded", offline=True)
    before = asked(server)
    assert same(asyncfetch.load("org/sharded", revision=commit))
    good = [record.path for record in server.requests[before:] if record.status < 300]
    fetched = {Path(path).name for path in good if "/resolve/" in path}
    assert fetched == {"model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"}


def test_a_damaged_file_is_put_aside(tmp_path: Path, home: str) -> None:
    """verify="always" notices a flipped byte in a linked blob and fetches it again; then the scan is clean."""
    path = Path(hub("result = hf_hub_download('org/single', 'model.safetensors')", tmp_path / "hub"))
    good = path.read_bytes()
    damaged = bytearray(good)
    damaged[-1] ^= 1
    path.resolve().write_bytes(damaged)
    if home == "no links":
        pytest.skip("without links nothing tells the hash of a cached file")
    assert not same(asyncfetch.load("org/single"))
    assert same(asyncfetch.load("org/single", verify="always"))
    assert path.read_bytes() == good
    assert hub(SCAN, tmp_path / "hub")["warnings"] == []


# -- both, and neither -----------------------------------------------------------------------------


def test_an_unchanged_cache_is_not_written(tmp_path: Path) -> None:
    """A second run over a whole cache changes nothing at all."""
    asyncfetch.load("org/single")
    before = {str(path): path.lstat().st_mtime_ns for path in (tmp_path / "hub").rglob("*")}
    assert same(asyncfetch.load("org/single"))
    assert {str(path): path.lstat().st_mtime_ns for path in (tmp_path / "hub").rglob("*")} == before


@pytest.mark.heavy
@pytest.mark.parametrize("online", [True, False])
def test_a_cache_that_may_only_be_read(server: Server, tmp_path: Path, online: bool) -> None:
    """Another user's whole cache serves, online and offline, although nothing in it may be written."""
    prepare = (  # the same calls, so that what they import late is there
        "import asyncfetch, json, sys\n"
        "asyncfetch.download('org/sharded', cache_dir=sys.argv[1])\n"
        "asyncfetch.load('org/sharded', cache_dir=sys.argv[1])"
    )
    code = (
        "snapshot = asyncfetch.download('org/sharded')\n"
        "arrays = asyncfetch.load('org/sharded')\n"
        "single = asyncfetch.load('org/single')\n"
        "total = sum(float(array.sum()) for array in arrays.values())\n"
        "print(json.dumps([len(arrays), total, len(single), str(snapshot.path)]))"
    )
    with public_folder() as root:
        first = asyncfetch.download("org/sharded", cache_dir=root)
        asyncfetch.download("org/single", cache_dir=root)
        before = {str(path): path.lstat().st_mtime_ns for path in root.rglob("*")}
        environ = {"HF_HUB_CACHE": str(root), "HF_HOME": "/nonexistent", "HF_HUB_OFFLINE": "0" if online else "1"}
        copy = shutil.copytree(root, tmp_path / "copy", symlinks=True)
        run = as_nobody(prepare, code, copy, **environ)
        assert run.returncode == 0, run.stderr
        expected = sum(float(array.sum()) for array in TENSORS.values())
        assert json.loads(run.stdout) == [len(TENSORS), expected, len(TENSORS), str(first.path)]
        assert {str(path): path.lstat().st_mtime_ns for path in root.rglob("*")} == before


def test_files_of_a_url_are_no_corruption(tmp_path: Path) -> None:
    """A checkpoint from a plain web server lies in the same layout: the scan lists it, and it works offline."""
    files = sharded(tmp_path / "files", TENSORS)
    with FaultServer() as web:
        url = web.web("/models/mine", files)
        state_dict = asyncfetch.load(url)
        assert same(state_dict)
        count = len(web.seen)
        assert same(asyncfetch.load(url, offline=True))
        assert len(web.seen) == count
        result = hub(SCAN, tmp_path / "hub")
        assert result["warnings"] == []
        assert list(result["repos"]) == [url_repo_id(url)]
        assert result["repos"][url_repo_id(url)]["files"] == sorted(files)
        web.fault("/models/mine/model-00001-of-00003.safetensors", Headers(etag='"other"'), forever=True)
        assert same(asyncfetch.load(url))
        assert hub(SCAN, tmp_path / "hub")["warnings"] == []


def test_a_url_without_a_checkpoint_writes_nothing(tmp_path: Path) -> None:
    """Nothing found, nothing cached: an empty repository would be one that the scan complains of."""
    with FaultServer() as web:
        url = web.web("/models/none", {"config.json": b"{}"})
        with pytest.raises(CheckpointNotFoundError):
            asyncfetch.load(url)
    assert not (tmp_path / "hub").exists()


@pytest.mark.anyio
async def test_async_download_into_their_cache(tmp_path: Path, anyio_backend: Any) -> None:
    """On every event loop the same snapshot."""
    snapshot = await asyncfetch.download_async("org/nested", subfolder="unet")
    assert isinstance(snapshot, Snapshot)
    assert await anyio.Path(snapshot.path / "unet" / INDEX).is_file()
