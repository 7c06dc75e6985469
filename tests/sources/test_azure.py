"""Containers of Azure, over real sockets: Azurite, which checks signatures, behind a relay that counts."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import obstore
import pytest
from obstore.store import AzureStore

import asyncfetch
from asyncfetch.errors import AccessError, AsyncfetchError, ChangedError, NotFoundError
from asyncfetch.events import Event, Warned
from asyncfetch.sources.store_env import DEVELOPMENT

from ..kit.buckets import azurite, killed_half_way, make_container, without_stores
from ..kit.canaries import PASSWORD
from ..kit.files import safetensors_bytes, sharded_bytes
from ..kit.relay import Relay, Stall, relaying

pytestmark = pytest.mark.timeout(150)  # Azurite takes ten seconds to start, and several times as many on a busy machine

TENSORS = {f"layer.{n}.weight": np.arange(n, n + 40_000, dtype=np.float32) for n in range(4)}
FILES = sharded_bytes(TENSORS, 2) | {"config.json": b"{}"}
SHARD, BIG_FILE = "model-00002-of-00002.safetensors", "model.safetensors"
BIG = np.arange(2_500_000, dtype=np.float32)
ACCOUNT = DEVELOPMENT["account_name"]
SOURCE = f"abfss://box@{ACCOUNT}.dfs.core.windows.net/a b+c/é"
ONE_LANE = asyncfetch.Policy(connections=1, min_split=1 << 30, attempts=2, backoff=0.001)


def store_at(port: int, container: str) -> AzureStore:
    options = {"allow_http": True}
    return AzureStore(container, **DEVELOPMENT, endpoint=f"http://127.0.0.1:{port}/{ACCOUNT}", client_options=options)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Azurite's, with a checkpoint in a container for its owner, and a file in one for everybody."""
    with azurite(tmp_path_factory.mktemp("azurite")) as port:
        make_container(port, "box")
        make_container(port, "open", public=True)
        for name, content in FILES.items():
            obstore.put(store_at(port, "box"), f"a b+c/é/{name}", content)
        obstore.put(store_at(port, "open"), BIG_FILE, safetensors_bytes({"big": BIG}))
        yield port


@pytest.fixture
def relay(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Relay]:
    """In front of Azurite: the endpoint of the account that the environment names. No signature is logged or kept."""
    without_stores(monkeypatch, tmp_path)
    with relaying(port) as relay:
        parts = {"AccountName": ACCOUNT, "AccountKey": DEVELOPMENT["account_key"]}
        parts["BlobEndpoint"] = f"{relay.url}/{ACCOUNT}"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", ";".join("=".join(pair) for pair in parts.items()))
        yield relay
    assert "sig=" not in caplog.text
    small = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size < 1 << 20]
    assert not [path for path in small if b"sig=" in path.read_bytes()]


@pytest.mark.anyio
async def test_load_and_open(relay: Relay, tmp_path: Path) -> None:
    """Every loop: signed by the account's key, each byte once, nothing without the store; a slice by its bytes."""
    events: list[Event] = []
    state = await asyncfetch.load_async(SOURCE, cache_dir=tmp_path, report=events.append)
    assert all(np.array_equal(state[name], TENSORS[name]) for name in TENSORS)
    assert sum(one.sent for one in relay.of(SHARD)) == len(FILES[SHARD])
    assert all("sig=" in one.query for one in relay.asked)
    assert "sig=" not in repr(events)
    assert len([event for event in events if isinstance(event, Warned)]) == 2  # no hash of either shard is known
    asked = len(relay.asked)
    assert set(await asyncfetch.load_async(SOURCE, cache_dir=tmp_path, offline=True)) == set(TENSORS)
    assert len(relay.asked) == asked
    async with asyncfetch.open_async(SOURCE, cache_dir=tmp_path / "other") as checkpoint:
        before = len(relay.asked)
        part = await checkpoint.tensor("layer.3.weight", np.s_[30_000:30_010])
        assert np.array_equal(part, TENSORS["layer.3.weight"][30_000:30_010])
    assert [one.sent for one in relay.asked[before:]] == [40]


def test_download_by_the_listing(relay: Relay, tmp_path: Path) -> None:
    """What lies beside the checkpoint comes too; what the listing says of a shard is what its own answer said."""
    path = Path(asyncfetch.download(SOURCE, cache_dir=tmp_path).path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == FILES
    before = len(relay.asked)
    every = Path(asyncfetch.download(SOURCE, cache_dir=tmp_path, include="*").path)
    assert {file.name: file.read_bytes() for file in every.iterdir()} == FILES
    fetched = [one.path.rpartition("/")[2] for one in relay.asked[before:]]
    assert fetched == ["box", "model.safetensors.index.json"]  # of the index a load keeps the content's hash alone


def test_killed(relay: Relay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After kill -9 the next run fetches what is missing and no more. Nobody's signature opens a public container."""
    monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "1")
    source, whole = f"az://open/{BIG_FILE}", len(safetensors_bytes({"big": BIG}))
    relay.script[f"/{ACCOUNT}/open/{BIG_FILE}"].extend([lambda: None, Stall(6 << 20)])  # its beginning comes whole
    stop = killed_half_way(source, tmp_path / "cache", relay.stalled)
    before = len(relay.asked)
    assert np.array_equal(asyncfetch.load(source, cache_dir=tmp_path / "cache", policy=ONE_LANE)["big"], BIG)
    assert [one.sent for one in relay.asked[before:]] == [65_536, whole - stop]
    assert not any(one.query for one in relay.asked)


def test_replaced_under_the_download(relay: Relay, port: int, tmp_path: Path) -> None:
    """Another object of the same size is noticed by its ETag, which If-Range names."""
    old, new = (safetensors_bytes({"w": np.full(50_000, value, np.float32)}) for value in (1, 2))
    store = store_at(port, "box")
    obstore.put(store, "w.safetensors", old)
    path = f"/{ACCOUNT}/box/w.safetensors"
    relay.script[path].extend([lambda: None, lambda: obstore.put(store, "w.safetensors", new)])
    with pytest.raises(ChangedError):
        asyncfetch.load("az://box/w.safetensors", cache_dir=tmp_path)


@pytest.mark.parametrize("kind", ["wrong key", "access signature", "wrong signature", "nobody", "no container"])
def test_credentials(relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int, kind: str) -> None:
    """Each way to ask, and what a refusal says: whose word it is, and what was found."""
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{relay.url}/{ACCOUNT}")
    obstore.put(store_at(port, "box"), SHARD, FILES[SHARD])
    link = obstore.sign(store_at(port, "box"), "GET", SHARD, timedelta(hours=1)).partition("?")[2]
    source: str = f"az://box/{SHARD}"
    error: type[AsyncfetchError] | None = AccessError
    match kind:
        case "wrong key":
            monkeypatch.setenv("AZURE_STORAGE_KEY", base64.b64encode(PASSWORD.encode()).decode())
            said = "403 AuthorizationFailure.*the key of the storage account is used"
        case "access signature":
            monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"?{link}")
            error, said = None, ""
        case "wrong signature":
            monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", link[:-8] + "AAAA%3D")
            said = "403 AuthorizationFailure.*a shared access signature is used"
        case "nobody":
            monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "1")
            said = "AZURE_SKIP_SIGNATURE is set"
        case _:
            monkeypatch.setenv("AZURE_STORAGE_KEY", DEVELOPMENT["account_key"])
            source, error, said = "az://nothing/x.safetensors", NotFoundError, "There is no container 'nothing'"
    if error is None:
        assert set(asyncfetch.load(source, cache_dir=tmp_path)) == {"layer.1.weight", "layer.3.weight"}
        return
    with pytest.raises(error, match=said) as caught:
        asyncfetch.load(source, cache_dir=tmp_path)
    assert "sig=" not in f"{caught.value!r} {vars(caught.value)}"
    assert len(relay.asked) == 1
