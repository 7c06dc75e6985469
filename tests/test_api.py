"""The public functions from end to end: real sockets, the embedded server, the real model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import (
    CheckpointNotFoundError,
    ChecksumMismatchError,
    MissingTensorError,
    OfflineError,
    SelectionError,
    ShardNotFoundError,
    SourceError,
)
from asyncfetch.events import Event, FileVerified, Finished, Resolved, Warned
from asyncfetch.export import write_safetensors
from asyncfetch.server import Server

from .files import sharded
from .minilm import minilm_root, source_tensors  # noqa: F401

pytestmark = pytest.mark.anyio

F32, BF16 = "demo/all-MiniLM-L6-v2", "demo/all-MiniLM-L6-v2-bf16"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
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
) -> None:
    """All tensors of a real model, from several shards over HTTP, equal the unsharded source bit by bit."""
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
    assert len([record for record in caplog.records if record.name == "asyncfetch"]) == 1


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("no such repo!", {}),
        ("org/model", {"storage": "tape"}),
        ("org/model", {"verify": "never"}),
        ("org/model", {"dtype": "int8"}),
        ("org/model", {"checksums": {"a": "md5:0"}}),
        ("s3://bucket/key", {}),
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
