"""The public functions from end to end: real sockets, the embedded server, the real model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from blockbuster import blockbuster_ctx

import asyncfetch
from asyncfetch.engine.schedule import Board
from asyncfetch.errors import (
    AsyncfetchError,
    CheckpointNotFoundError,
    ChecksumMismatchError,
    InvalidIndexError,
    MissingTensorError,
    OfflineError,
    SelectionError,
    ShardNotFoundError,
    SourceError,
)
from asyncfetch.events import Event, FileStarted, FileVerified, Finished, Resolved, Warned
from asyncfetch.format.writer import write_safetensors
from asyncfetch.server import Server

from ..conftest import BACKENDS
from ..kit.fault_server import QUICK, FaultServer, Status
from ..kit.files import index_bytes, safetensors_bytes, sharded, sharded_bytes
from ..kit.minilm import minilm_root, source_tensors  # noqa: F401

pytestmark = pytest.mark.anyio

F32, BF16 = "demo/all-MiniLM-L6-v2", "demo/all-MiniLM-L6-v2-bf16"
INDEX = "model.safetensors.index.json"
TENSORS = {f"layer.{n}.weight": np.arange(n * 1000, n * 1000 + 50_000, dtype=np.float32) for n in range(6)}


def equal(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """The same names, dtypes, shapes and bytes."""
    return left.keys() == right.keys() and all(
        (a.dtype, a.shape, a.tobytes()) == (right[name].dtype, right[name].shape, right[name].tobytes())
        for name, a in left.items()
    )


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Everything below a folder: what must stay the same where nothing may be written."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with one small sharded model, org/model: six tensors in three shards."""
    folder = tmp_path / "models" / "org" / "model"
    folder.mkdir(parents=True)
    sharded(folder, TENSORS, shards=3)
    return tmp_path / "models"


@pytest.fixture
def hub(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(models) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.mark.parametrize(("repository", "dtype", "shards"), [(F32, "F32", 4), (BF16, "BF16", 6)])
@pytest.mark.parametrize("storage", ["disk", "memory"])
async def test_the_real_model(
    minilm_root: Path,  # noqa: F811
    tmp_path: Path,
    repository: str,
    dtype: str,
    shards: int,
    storage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All tensors of a real model, from several shards over HTTP, equal the unsharded source bit by bit."""
    monkeypatch.setattr(Board, "steal", lambda *_: None)  # what was on its way to the other one would come twice
    events: list[Event] = []
    with Server(minilm_root) as server:
        tensors = await asyncfetch.load_async(
            repository, endpoint=server.url, cache_dir=tmp_path, storage=storage, report=events.append
        )
    assert equal(tensors, source_tensors(dtype))
    first, last = events[0], events[-1]
    assert isinstance(first, Resolved)
    assert isinstance(last, Finished)
    assert len(first.files) == last.files == shards
    verified = {event.file: event.checksum for event in events if isinstance(event, FileVerified)}
    assert verified == {file.file: file.checksum for file in first.files}
    assert sum(file.size for file in first.files) == last.nbytes == last.downloaded
    if storage == "memory":
        assert tree(tmp_path) == {}


async def test_pinned_and_cached_needs_no_request(hub: Server) -> None:
    """With a full commit and all files cached, nothing is sent; offline finds it by its branch too."""
    snapshot = await asyncfetch.download_async("org/model")
    assert snapshot.commit is not None
    assert sorted(snapshot.files) == sorted(path.name for path in snapshot.path.iterdir())
    before = len(hub.requests)
    assert equal(await asyncfetch.load_async(f"org/model@{snapshot.commit}"), TENSORS)
    assert equal(await asyncfetch.load_async("org/model", offline=True), TENSORS)
    assert len(hub.requests) == before
    with pytest.raises(OfflineError):
        await asyncfetch.load_async("org/other", offline=True)


async def test_the_single_file_where_there_is_no_index(hub: Server, models: Path) -> None:
    """Without an index the single file loads; with neither, the error names all that was tried."""
    sharded(models / "org" / "model", TENSORS, shards=3)
    single = models / "org" / "single"
    single.mkdir()
    write_safetensors(TENSORS, single / "model.safetensors")
    (models / "org" / "empty").mkdir()
    (models / "org" / "empty" / "config.json").write_text("{}")
    assert equal(await asyncfetch.load_async("org/single"), TENSORS)
    with pytest.raises(CheckpointNotFoundError) as caught:
        await asyncfetch.load_async("org/empty")
    assert caught.value.candidates[:2] == ("model.safetensors.index.json", "model.safetensors")


async def test_a_missing_shard_is_no_reason_to_fall_back(hub: Server, models: Path) -> None:
    """An index that names a shard which is not there is an error, also beside a single file."""
    folder = models / "org" / "model"
    (folder / "model-00002-of-00003.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(ShardNotFoundError) as caught:
        await asyncfetch.load_async("org/model")
    assert caught.value.file == "model-00002-of-00003.safetensors"


async def test_a_wrong_index_is_refused_before_any_shard_moves(hub: Server, models: Path, tmp_path: Path) -> None:
    """A tensor that its shard lacks: refused by the headers alone, and the cache stays as it was."""
    cache = tmp_path / "cache"
    await asyncfetch.load_async("org/model", cache_dir=cache)
    before, sent = tree(cache), hub.bytes_sent
    index = models / "org" / "model" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"layer.5.weight"', '"layer.9.weight"'))
    with pytest.raises(MissingTensorError) as caught:
        await asyncfetch.load_async("org/model", cache_dir=cache)
    assert caught.value.tensors == ("layer.9.weight",)
    assert tree(cache) == before
    assert hub.bytes_sent - sent < 250_000  # three beginnings of shards, of 1.2 MB in all


async def test_selection(hub: Server) -> None:
    """Only the shards that hold selected tensors are asked for."""
    tensors = await asyncfetch.load_async("org/model", select=["layer.0.*", "layer.1.weight"], dtype="bfloat16")
    assert list(tensors) == ["layer.0.weight", "layer.1.weight"]
    assert all(tensor.dtype == ml_dtypes.bfloat16 for tensor in tensors.values())
    asked = {record.path.rsplit("/", 1)[-1] for record in hub.requests}
    assert "model-00001-of-00003.safetensors" in asked
    assert "model-00003-of-00003.safetensors" not in asked
    with pytest.raises(SelectionError):
        await asyncfetch.load_async("org/model", select=lambda name: name == "nothing")


async def test_plain_urls(hub: Server, tmp_path: Path) -> None:
    """A folder, an index and a single shard by URL; a wrong checksum is refused, an unknown file is named."""
    base = f"{hub.url}/org/model/resolve/main"
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "endpoint": "https://hub.invalid"}
    warnings: list[str] = []

    def report(event: Event) -> None:
        if isinstance(event, Warned):
            warnings.append(event.message)

    assert equal(await asyncfetch.load_async(base, report=report, **options), TENSORS)
    assert any("no checksum" in text for text in warnings)
    assert equal(await asyncfetch.load_async(f"{base}/model.safetensors.index.json", **options), TENSORS)
    shard = "model-00001-of-00003.safetensors"
    one = await asyncfetch.load_async(f"{base}/{shard}", **options)
    assert one.keys() < TENSORS.keys()
    with pytest.raises(ChecksumMismatchError):
        await asyncfetch.load_async(f"{base}/{shard}", checksums={shard: "sha256:" + "0" * 64}, **options)
    with pytest.raises(SourceError, match="other"):
        await asyncfetch.load_async(base, checksums={"other": "0" * 64}, **options)


async def test_local_checkpoints(models: Path) -> None:
    """A folder, an index, a shard on disk; writing to an array leaves the file alone."""
    folder = models / "org" / "model"
    before = tree(folder)
    tensors = await asyncfetch.load_async(folder)
    assert equal(tensors, TENSORS)
    tensors["layer.0.weight"][:] = 7
    assert equal(await asyncfetch.load_async(folder / "model.safetensors.index.json"), TENSORS)
    assert tree(folder) == before
    (folder / "model-00001-of-00003.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    with pytest.raises(asyncfetch.AsyncfetchError, match=r"(?i)lfs"):
        await asyncfetch.load_async(folder)


async def test_verify_always(hub: Server) -> None:
    """A flipped bit in the cache is found, put aside and fetched again; offline it is an error."""
    snapshot = await asyncfetch.download_async("org/model")
    blob = snapshot.files["model-00002-of-00003.safetensors"].resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(ChecksumMismatchError):
        await asyncfetch.load_async("org/model", verify="always", offline=True)
    report = await asyncfetch.verify_async("org/model")
    assert [file.ok for file in report] == [True, True, False, True]
    assert equal(await asyncfetch.load_async("org/model", verify="always"), TENSORS)
    assert all(file.ok for file in await asyncfetch.verify_async("org/model"))


async def test_looking_writes_nothing(hub: Server, tmp_path: Path) -> None:
    """A dry run and an inspection read headers only, and leave no trace."""
    cache = tmp_path / "cache"
    planned = await asyncfetch.dry_run_async("org/model", cache_dir=cache)
    seen = await asyncfetch.inspect_async("org/model", cache_dir=cache)
    assert not cache.exists()
    assert [file.present for file in planned.files] == [0, 0, 0]
    assert {name: info.shape for name, (_, info) in seen.tensors.items()} == {n: t.shape for n, t in TENSORS.items()}
    assert [shard.size for shard in seen.shards] == [file.size for file in planned.files]


async def test_a_reporter_that_fails(hub: Server, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once and called no more; the load goes on."""
    calls = 0

    def report(_: Event) -> None:
        nonlocal calls
        calls += 1
        raise ZeroDivisionError("reporter")

    assert equal(await asyncfetch.load_async("org/model", report=report), TENSORS)
    assert calls == 1
    assert len([record for record in caplog.records if record.name == "asyncfetch" and record.exc_info]) == 1


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("no such repo!", {}),
        ("org/model", {"storage": "tape"}),
        ("org/model", {"verify": "never"}),
        ("org/model", {"dtype": "int8"}),
        ("org/model", {"checksums": {"a": "md5:0"}}),
        ("ftp://host/key", {}),
        ("./nothing/here", {}),
    ],
)
async def test_senseless_arguments(source: str, options: dict[str, Any]) -> None:
    """Refused by name before anything is sent."""
    with pytest.raises(SourceError):
        await asyncfetch.load_async(source, **options)


async def test_into_a_tree(hub: Server) -> None:
    """Nested dicts and lists take over the arrays by their joined names."""
    model = {"layer": [{"weight": np.zeros(50_000, np.float32)} for _ in range(6)]}
    report = await asyncfetch.load_into_async(model, "org/model")
    assert sorted(report.loaded) == sorted(TENSORS)
    assert all(np.array_equal(model["layer"][n]["weight"], TENSORS[f"layer.{n}.weight"]) for n in range(6))
    with pytest.raises(SourceError):
        await asyncfetch.load_into_async(model, TENSORS, revision="main")


# -- the whole of it, by parts -------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", BACKENDS[:2])  # blockbuster knows no trio
async def test_nothing_blocks_the_loop(tmp_path: Path) -> None:
    """No function reads, stats or connects on the event loop itself, with a cold cache or a warm one."""
    with FaultServer() as server:
        server.hub("org/model", sharded_bytes(TENSORS, 3))
        web = server.web("/models", sharded_bytes(TENSORS, 3))
        cache: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
        with blockbuster_ctx(scanned_modules=["asyncfetch"]) as blocked:
            assert blocked.functions
            for source, endpoint in (("org/model", server.url), (web, "https://hub.invalid")):
                options = {**cache, "endpoint": endpoint}
                await asyncfetch.dry_run_async(source, **options)
                await asyncfetch.load_async(source, storage="memory", **options)
                snapshot = await asyncfetch.download_async(source, **options)
                assert equal(await asyncfetch.load_async(source, verify="always", **options), TENSORS)
                await asyncfetch.inspect_async(source, **options)
                await asyncfetch.load_async(source, offline=True, **options)
                await asyncfetch.verify_async(source, **options)
            assert equal(await asyncfetch.load_async(snapshot.path), TENSORS)


async def test_many_small_tensors(tmp_path: Path) -> None:
    """20,000 tensors in 50 shards are all there, in the order of the index, each from its own shard."""
    rows = np.arange(60_000, dtype=np.int32).reshape(20_000, 3)
    tensors = {f"model.layers.{n // 100}.experts.{n % 100}.weight": row for n, row in enumerate(rows)}
    sharded(tmp_path / "models" / "org" / "many", tensors, shards=50)
    with Server(tmp_path / "models") as server:
        events: list[Event] = []
        loaded = await asyncfetch.load_async(
            "org/many", endpoint=server.url, cache_dir=tmp_path / "cache", report=events.append
        )
        gets = [record for record in server.requests if record.method == "GET"]
    assert list(loaded) == list(tensors)
    assert np.array_equal(np.stack(list(loaded.values())), rows)
    assert len({event.file for event in events if isinstance(event, FileVerified)}) == 50
    assert len(gets) <= 2 * 50 + 2


async def test_memory_touches_no_disk(hub: Server, tmp_path: Path) -> None:
    """With storage="memory" neither the cache nor HF_HOME has a new name; the data is aligned to 64 bytes."""
    home, cache = Path(os.environ["HF_HOME"]), tmp_path / "cache"
    tensors = await asyncfetch.load_async("org/model", storage="memory", cache_dir=cache)
    assert equal(tensors, TENSORS)
    assert equal(await asyncfetch.load_async("org/model", storage="memory"), TENSORS)
    assert not cache.exists()
    assert tree(home) == {}
    where = (await asyncfetch.inspect_async("org/model")).tensors
    for name, tensor in tensors.items():
        assert (tensor.ctypes.data - where[name][1].begin) % 64 == 0
        assert tensor.flags.writeable


async def test_cached_arrays_are_writable_and_private(hub: Server) -> None:
    """Writing to all that was loaded leaves the blobs as they are, and the next load right."""
    tensors = await asyncfetch.load_async("org/model")
    for tensor in tensors.values():
        tensor[:] = -1
    assert all(file.ok for file in await asyncfetch.verify_async("org/model"))
    assert equal(await asyncfetch.load_async("org/model", offline=True), TENSORS)


async def test_casting_a_real_model(minilm_root: Path, tmp_path: Path) -> None:  # noqa: F811
    """BF16 to F32 gives the values of BF16; integers keep their dtype."""
    tensors = await asyncfetch.load_async(minilm_root / BF16, dtype="float32")
    source = source_tensors("BF16")
    kinds = {name: np.dtype(np.float32) if t.dtype == ml_dtypes.bfloat16 else t.dtype for name, t in source.items()}
    assert equal(tensors, {name: tensor.astype(kinds[name]) for name, tensor in source.items()})
    assert np.dtype(np.int64) in kinds.values()


async def test_unlisted_tensors_are_reported(hub: Server, models: Path) -> None:
    """What a shard holds beyond the index, and whole shards, are not in the result, and a Warned says so of each."""
    (models / "org" / "model" / INDEX).write_bytes(index_bytes({"layer.0.weight": "model-00001-of-00003.safetensors"}))
    events: list[Event] = []
    assert list(await asyncfetch.load_async("org/model", report=events.append)) == ["layer.0.weight"]
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert len(warned) == 2
    assert "layer.3.weight" in warned[0]
    assert "nothing of 2 shard(s), such as model-00002-of-00003.safetensors" in warned[1]


async def test_an_index_beside_a_single_file_is_reported(hub: Server, models: Path) -> None:
    """The index is used, and one Warned names both."""
    (models / "org" / "model" / "model.safetensors").write_bytes(safetensors_bytes({"other": np.zeros(3)}))
    for source in ("org/model", models / "org" / "model"):
        events: list[Event] = []
        assert equal(await asyncfetch.load_async(source, report=events.append), TENSORS)
        warned = [event.message for event in events if isinstance(event, Warned)]
        assert len(warned) == 1
        assert f"{INDEX} and also model.safetensors" in warned[0]


async def test_revisions(hub: Server) -> None:
    """A branch and a commit, in the source or beside it, are the same checkpoint; two that differ are refused."""
    snapshot = await asyncfetch.download_async("org/model")
    commit = snapshot.commit
    for source, revision in (("org/model@main", None), ("org/model", "main"), (f"org/model@{commit}", commit)):
        assert await asyncfetch.download_async(source, revision=revision) == snapshot
    with pytest.raises(SourceError, match="revision"):
        await asyncfetch.load_async("org/model@main", revision="dev")
    with pytest.raises(AsyncfetchError, match="no revision 'dev'"):
        await asyncfetch.load_async("org/model@dev")


async def test_checksums_of_a_url(hub: Server, models: Path, tmp_path: Path) -> None:
    """With the right hashes of shards and index, a URL's files are cached under them, and nothing is warned of."""
    folder = models / "org" / "model"
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    url = f"{hub.url}/org/model/resolve/main"
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "endpoint": "https://hub.invalid"}
    events: list[Event] = []
    assert equal(await asyncfetch.load_async(url, checksums=sums, report=events.append, **options), TENSORS)
    assert not [event for event in events if isinstance(event, Warned)]
    blobs = {name.rpartition("/")[2] for name in tree(tmp_path / "cache") if "/blobs/" in name}
    assert {sums[name] for name in sums if name != INDEX} < blobs
    sent = hub.bytes_sent
    assert equal(await asyncfetch.load_async(url, checksums=sums, **options), TENSORS)
    assert hub.bytes_sent - sent < 300_000  # the index and three beginnings
    with pytest.raises(ChecksumMismatchError, match=INDEX):
        await asyncfetch.load_async(url, checksums={**sums, INDEX: "0" * 64}, **options)


async def test_a_wrong_checksum_leaves_nothing(hub: Server, tmp_path: Path) -> None:
    """A download whose hash is wrong is fetched once more, then refused: no blob, no partial, no snapshot."""
    shard, cache = "model-00002-of-00003.safetensors", tmp_path / "cache"
    options: dict[str, Any] = {"cache_dir": cache, "endpoint": "https://hub.invalid", "checksums": {shard: "0" * 64}}
    with pytest.raises(ChecksumMismatchError) as caught:
        await asyncfetch.load_async(f"{hub.url}/org/model/resolve/main/{shard}", **options)
    assert (caught.value.file, caught.value.expected) == (shard, "0" * 64)
    assert not [name for name, content in tree(cache).items() if "blobs/" in name or "snapshots/" in name]


async def test_checksums_where_the_hub_names_another_kind(tmp_path: Path) -> None:
    """A file that git holds has only its git hash: the caller's sha256 counts, downloaded or cached."""
    data = safetensors_bytes({"x": np.arange(3000)})
    with FaultServer() as server:
        etag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        server.hub("org/model", {"model.safetensors": data}, links="none")
        for path in list(server.resources):
            if path.endswith("model.safetensors"):
                server.resources[path].headers["etag"] = f'"{etag}"'
        options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path / "cache", "policy": QUICK}
        right = {"model.safetensors": hashlib.sha256(data).hexdigest()}
        for _ in range(2):
            with pytest.raises(ChecksumMismatchError):
                await asyncfetch.load_async("org/model", checksums={"model.safetensors": "0" * 64}, **options)
            assert list(await asyncfetch.load_async("org/model", checksums=right, **options)) == ["x"]
        with pytest.raises(ChecksumMismatchError, match="damaged"):
            await asyncfetch.load_async("org/model", checksums={"model.safetensors": "0" * 64}, offline=True, **options)


async def test_a_damaged_file_is_replaced(hub: Server) -> None:
    """What verify="always" finds wrong is not written to: others may have it mapped. The rest is not fetched."""
    snapshot = await asyncfetch.download_async("org/model")
    blob = snapshot.files["model-00002-of-00003.safetensors"].resolve()
    blob.write_bytes(wrong := blob.read_bytes()[:-1] + b"!")
    events: list[Event] = []
    os.link(blob, other := blob.with_name("mapped"))
    assert equal(await asyncfetch.load_async("org/model", verify="always", report=events.append), TENSORS)
    assert other.read_bytes() == wrong
    assert not list(blob.parent.glob("*incomplete"))
    assert [event.file for event in events if isinstance(event, FileStarted)] == ["model-00002-of-00003.safetensors"]
    assert isinstance(events[0], Resolved)
    assert sum(isinstance(event, Resolved) for event in events) == 1
    assert sorted(event.file for event in events if isinstance(event, FileVerified)) == sorted(
        file.file for file in events[0].files
    )
    assert [event.file for event in events if isinstance(event, Warned)] == ["model-00002-of-00003.safetensors"]
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.downloaded == blob.stat().st_size


async def test_looking_moves_headers_only(tmp_path: Path) -> None:
    """A dry run and an inspection move the index and the beginnings of shards, however large these are."""
    sharded(tmp_path / "models" / "org" / "large", {f"t{n}": np.zeros(2_000_000, np.uint8) for n in range(3)}, shards=3)
    with Server(tmp_path / "models") as server:
        for function in (asyncfetch.dry_run_async, asyncfetch.inspect_async):
            sent = server.bytes_sent
            await function("org/large", endpoint=server.url, cache_dir=tmp_path / "cache")
            assert server.bytes_sent - sent < 4 * 65536 + 10_000
    assert not (tmp_path / "cache").exists()


async def test_inspecting_a_selection(hub: Server, models: Path) -> None:
    """`tensors` holds what `select` picks, with an index and without."""
    single = models / "org" / "single"
    single.mkdir()
    write_safetensors(TENSORS, single / "model.safetensors")
    for source in ("org/model", "org/single"):
        found = await asyncfetch.inspect_async(source, select="*.4.*")
        assert list(found.tensors) == ["layer.4.weight"]
        assert list(await asyncfetch.load_async(source, select="*.4.*")) == ["layer.4.weight"]


async def test_errors_are_no_groups(tmp_path: Path) -> None:
    """When every shard fails at once, one exception comes out as itself; the others are its notes."""
    with FaultServer() as server:
        repository = server.hub("org/model", sharded_bytes(TENSORS, 3))
        for path in repository.storage.values():
            server.fault(path, Status(418), forever=True)
        with pytest.raises(AsyncfetchError) as caught:
            await asyncfetch.load_async("org/model", endpoint=server.url, cache_dir=tmp_path, policy=QUICK)
    assert not isinstance(caught.value, BaseExceptionGroup)


async def test_an_index_that_is_none(hub: Server, models: Path, tmp_path: Path) -> None:
    """A hostile index is refused, and nothing was written anywhere."""
    index = index_bytes({"x": "../../../escape.safetensors"})
    (models / "org" / "model" / INDEX).write_bytes(index)
    before = tree(tmp_path)
    with pytest.raises(InvalidIndexError):
        await asyncfetch.load_async("org/model", cache_dir=tmp_path / "cache")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("where", ["index", "shards"])
async def test_dropped_names_of_tied_tensors(hub: Server, models: Path, where: str) -> None:
    """A name that the writer dropped is filled through either metadata; the state dict has the kept name only."""
    files = sharded_bytes(
        {"wte": np.arange(6.0), "b": np.ones(2)}, 2, metadata={"head": "wte"} if where == "shards" else None
    )
    if where == "index":
        weight_map = {"wte": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        files[INDEX] = index_bytes(weight_map, {"head": "wte", "total_size": 64})
    (models / "org" / "tied").mkdir()
    for name, content in files.items():
        (models / "org" / "tied" / name).write_bytes(content)
    assert sorted(await asyncfetch.load_async("org/tied")) == ["b", "wte"]
    model = {"wte": np.zeros(6), "head": np.zeros(6), "b": np.zeros(2)}
    report = await asyncfetch.load_into_async(model, "org/tied")
    assert np.array_equal(model["head"], np.arange(6.0))
    assert (sorted(report.loaded), dict(report.tied)) == (["b", "wte"], {"head": "wte"})


async def test_into_a_torch_module(hub: Server) -> None:
    """From the Hub into a module on the meta device: values, dtypes and the tie are right."""
    torch = pytest.importorskip("torch")

    class Layer(torch.nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(50_000, device="meta"))

    model = torch.nn.Module()
    model.layer = torch.nn.ModuleList([Layer() for _ in range(6)])
    report = await asyncfetch.load_into_async(model, "org/model", dtype="bfloat16")
    assert len(report.loaded) == 6
    assert not report.on_meta
    for n in range(6):
        expected = TENSORS[f"layer.{n}.weight"].astype(ml_dtypes.bfloat16)
        assert model.layer[n].weight.dtype == torch.bfloat16
        assert np.array_equal(model.layer[n].weight.detach().float().numpy(), expected.astype(np.float32))
