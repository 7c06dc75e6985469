"""`download(local_dir=)`: the files in a folder of the user's, once, updated, and never over what the user changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import snapshot_download

import asyncfetch
from asyncfetch.errors import DiskFullError, SourceError, StorageError
from asyncfetch.events import Event, Warned

from ..kit.fault_server import COMMIT, LOOK, QUICK, FaultServer, Repository, Truncate
from ..kit.files import safetensors_bytes, sharded_bytes
from ..kit.mounts import tiny_disk

TENSORS = {f"layer.{n}": np.full(30_000, n, dtype=np.uint8) for n in range(2)}
CHECKPOINT = sharded_bytes(TENSORS, 2)
SHARD = "model-00001-of-00002.safetensors"
BESIDE = {"config.json": b"{}", "1_Pooling/config.json": b'{"a": 1}', "README.md": b""}
FILES = {**CHECKPOINT, **BESIDE}
LATER = "f" * 40
DOT = Path(".cache", "huggingface")


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def repository(server: FaultServer) -> Repository:
    made = server.hub("org/model", FILES)
    server.listing(made)
    return made


def download(server: FaultServer, home: Path, **options: Any) -> asyncfetch.Snapshot:
    given = {"endpoint": server.url, "cache_dir": home / "cache", "token": False, "policy": QUICK}
    return asyncfetch.download("org/model", **{**given, "local_dir": home / "dir", **options})


def by_hub(server: FaultServer, home: Path, **options: Any) -> None:
    snapshot_download("org/model", local_dir=home / "dir", endpoint=server.url, token=False, **options)


def tree(folder: Path) -> dict[str, bytes]:
    """The files of a folder but for the bookkeeping."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".cache/")}


def bodies(server: FaultServer) -> int:
    """The bytes of files that were sent so far."""
    return sum(seen.sent for seen in server.seen if not seen.path.startswith("/api/"))


def upstream(server: FaultServer, files: Mapping[str, bytes]) -> None:
    """Another commit, which `main` is from now on."""
    made = server.hub("org/model", files, commit=LATER)
    server.listing(made, commit=LATER)


def test_the_tree_is_there(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    """Whole files in the repository's tree, recorded; no links to the cache; nothing is sent for what is here."""
    snapshot = download(server, tmp_path)
    folder = tmp_path / "dir"
    assert (snapshot.path, snapshot.commit) == (folder, COMMIT)
    assert snapshot.files == {name: folder / name for name in FILES}
    assert tree(folder) == FILES
    assert not [
        path for path in folder.rglob("*") if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1)
    ]
    assert {path.name for path in (folder / DOT).iterdir()} == {".gitignore", "CACHEDIR.TAG", "download"}
    assert not list(folder.rglob("*.incomplete"))
    before = bodies(server), len(server.seen)
    again = download(server, tmp_path, revision=COMMIT)
    assert (again.files, bodies(server), len(server.seen)) == (snapshot.files, *before)


def test_no_second_download(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    """What is cached is put into the folder, and what is in the folder is not fetched into the cache."""
    download(server, tmp_path, local_dir=None)
    before = bodies(server)
    download(server, tmp_path, revision=COMMIT)
    assert (tree(tmp_path / "dir"), bodies(server)) == (FILES, before)
    shutil.rmtree(tmp_path / "cache")
    since = len(server.seen)
    assert tree(download(server, tmp_path).path) == FILES
    assert not [seen for seen in server.seen[since:] if seen.second and seen.sent > 1 << 16]
    assert not list(tmp_path.glob("cache/*/snapshots/*/*.safetensors")), "the folder has them"


def fetched(server: FaultServer, name: str) -> int:
    """The bytes of a file that were sent so far."""
    return sum(seen.sent for seen in server.seen if seen.path.endswith(f"/{name}"))


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_both_ways_with_huggingface_hub(server: FaultServer, tmp_path: Path, revision: str) -> None:
    """Each goes on with the folder of the other, and fetches nothing that is there."""
    server.listing(server.hub("org/model", FILES, links="none"))
    record = tmp_path / "dir" / DOT / "download/config.json.metadata"
    by_hub(server, tmp_path, revision=revision)
    theirs, sent = record.read_text(), fetched(server, SHARD)
    assert tree(download(server, tmp_path, revision=revision, include="*").path) == FILES
    assert fetched(server, SHARD) == sent == len(FILES[SHARD])
    assert record.read_text() == theirs
    shutil.rmtree(tmp_path / "dir")
    download(server, tmp_path, revision=revision)
    sent = fetched(server, SHARD)
    by_hub(server, tmp_path, revision=revision)
    assert (tree(tmp_path / "dir"), fetched(server, SHARD)) == (FILES, sent)
    assert record.read_text().split()[:2] == theirs.split()[:2]


@pytest.mark.parametrize("maker", ["ours", "huggingface_hub"])
def test_updated(server: FaultServer, tmp_path: Path, maker: str) -> None:
    """What changed upstream is replaced, what did not is left alone and recorded under the new commit."""
    server.listing(server.hub("org/model", FILES, links="none"))
    download(server, tmp_path) if maker == "ours" else by_hub(server, tmp_path)
    kept = (tmp_path / "dir" / "README.md").stat()
    newer = {**FILES, "config.json": b'{"new": true}', "new/file.txt": b"new"}
    upstream(server, newer)
    assert tree(download(server, tmp_path).path) == newer
    assert (tmp_path / "dir" / "README.md").stat().st_mtime_ns == kept.st_mtime_ns
    for name in ("config.json", "README.md", "new/file.txt"):
        assert (tmp_path / "dir" / DOT / f"download/{name}.metadata").read_text().startswith(f"{LATER}\n")


def edit(path: Path, *, old: bool = False, same_size: bool = False) -> bytes:
    """The user's own bytes; `old`: with a date before the download."""
    text = path.read_bytes()[::-1] if same_size else b"my own words"
    path.write_bytes(text)
    if old:
        os.utime(path, (1e9, 1e9))
    return text


@pytest.mark.parametrize("newer", [False, True], ids=["unchanged", "upstream"])
@pytest.mark.parametrize("how", [{}, {"old": True}, {"same_size": True}], ids=["edited", "dated-back", "same-size"])
@pytest.mark.parametrize("name", ["1_Pooling/config.json", SHARD])
def test_what_the_user_changed_stays(
    server: FaultServer, repository: Repository, tmp_path: Path, name: str, how: dict[str, Any], newer: bool
) -> None:
    """It is refused, by name, before a body is asked for and before anything is written; there are three ways out."""
    path = download(server, tmp_path).path / name
    text = edit(path, **how)
    wanted = {**FILES, name: FILES[name] + b" ", "README.md": b"new"} if newer else FILES
    if newer:
        wanted = (
            {**wanted, SHARD: FILES[SHARD]}
            if name != SHARD
            else {
                **FILES,
                **sharded_bytes({tensor: array + 1 for tensor, array in TENSORS.items()}, 2),
                "README.md": b"new",
            }
        )
        upstream(server, wanted)
    before = tree(tmp_path / "dir")
    since = len(server.seen)
    with pytest.raises(StorageError, match=r"not as downloaded, so not replaced: ") as caught:
        download(server, tmp_path)
    assert str(caught.value).endswith(
        f"{name}. Move it away to keep it, leave it out with exclude=, or pass overwrite=True."
    )
    assert tree(tmp_path / "dir") == before
    assert not [seen for seen in server.seen[since:] if seen.second and (seen.start or 0) > 0]
    with pytest.raises(StorageError, match="not as downloaded"):
        asyncfetch.dry_run(
            "org/model", endpoint=server.url, cache_dir=tmp_path / "cache", token=False, local_dir=tmp_path / "dir"
        )
    if name != SHARD:
        assert tree(download(server, tmp_path, exclude=name).path) == {**wanted, name: text}
    assert tree(download(server, tmp_path, overwrite=True).path) == wanted


def test_a_file_of_nobody_knows_whom(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    """Without a record the bytes decide: the same are taken for what they are, others stay."""
    (tmp_path / "dir").mkdir()
    for name in (SHARD, "config.json"):
        (tmp_path / "dir" / name).write_bytes(FILES[name])
    (tmp_path / "dir" / "mine.txt").write_bytes(b"mine")
    assert tree(download(server, tmp_path).path) == {**FILES, "mine.txt": b"mine"}
    assert server.covered(repository.storage[SHARD]) <= 1 << 16
    shutil.rmtree(tmp_path / "dir")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "README.md").write_bytes(b"notes")
    with pytest.raises(StorageError, match=r"README\.md"):
        download(server, tmp_path)
    assert tree(tmp_path / "dir") == {"README.md": b"notes"}


def test_edited_while_it_is_fetched(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    """What the user writes during the download stays, too."""
    path = download(server, tmp_path).path / "README.md"
    upstream(server, {**FILES, "README.md": b"new"})

    def report(event: Event) -> None:
        if type(event).__name__ == "Finished":
            path.write_bytes(b"written just now")

    with pytest.raises(StorageError, match=r"README\.md"):
        download(server, tmp_path, report=report)
    assert path.read_bytes() == b"written just now"


@pytest.mark.parametrize("where", ["1_Pooling", ".cache", ".cache/huggingface/download"])
def test_links_that_lead_out(server: FaultServer, repository: Repository, tmp_path: Path, where: str) -> None:
    """Nothing is written through a folder that is a link out of the folder."""
    (tmp_path / "else").mkdir()
    link = tmp_path / "dir" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "else")
    with pytest.raises(StorageError, match="a link leads out of"):
        download(server, tmp_path)
    assert not list((tmp_path / "else").iterdir())


def test_a_file_that_is_a_link(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    """Out of the folder: refused, and with overwrite= the link is replaced, not what it leads to."""
    outside, link = tmp_path / "outside", tmp_path / "dir" / "config.json"
    outside.write_bytes(FILES["config.json"])
    link.parent.mkdir()
    link.symlink_to(outside)
    with pytest.raises(StorageError, match=r"config\.json"):
        download(server, tmp_path)
    download(server, tmp_path, overwrite=True)
    assert not link.is_symlink()
    assert outside.read_bytes() == FILES["config.json"]
    (tmp_path / "linked").symlink_to(tmp_path / "dir")  # the folder itself may be a link
    assert tree(download(server, tmp_path, local_dir=tmp_path / "linked").path) == FILES


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ("CONFIG.json", "the same where case does not count"),
        ("1_pooling", "the same where case does not count"),
        ("Config.json/x.txt", "the same where case does not count"),
        (".cache/huggingface/download/config.json.metadata", "where what is downloaded is recorded"),
        (".CACHE/asyncfetch/x", "where what is downloaded is recorded"),
        ("../evil.txt", "not a path inside"),
    ],
)
def test_names_that_cannot_be(server: FaultServer, tmp_path: Path, extra: str, text: str) -> None:
    server.listing(server.hub("org/model", {**FILES, extra: b"x"}))
    with pytest.raises(SourceError, match=text):
        download(server, tmp_path)
    assert not (tmp_path / "dir").exists()


def test_interrupted_it_goes_on(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    """A failed download leaves a folder of whole files, and what came of the others in the cache.

    What a process that was killed left in the folder is removed, but not what another one may be writing.
    """
    records = tmp_path / "dir" / DOT / "download"
    records.mkdir(parents=True)
    for name, age in (("old", 9e8), ("new", None)):
        (records / f"{name}.asyncfetch.12345678.incomplete").write_bytes(b"half")
        if age is not None:
            os.utime(records / f"{name}.asyncfetch.12345678.incomplete", (age, age))
    page = repository.storage[SHARD]
    server.fault(page, Truncate(1000), forever=True)
    with pytest.raises(asyncfetch.NetworkError):
        download(server, tmp_path)
    assert not [name for name, data in tree(tmp_path / "dir").items() if data != FILES[name]]
    server.heal(page)
    assert tree(download(server, tmp_path).path) == FILES
    assert [path.name for path in records.glob("*.incomplete")] == ["new.asyncfetch.12345678.incomplete"]


LARGE = {"model.safetensors": safetensors_bytes({"w": np.zeros(3 << 20, np.uint8)}), "config.json": b"{}"}


@pytest.fixture
def large(server: FaultServer) -> str:
    """A repository of 3 MiB. Where the bytes of its weights are."""
    made = server.hub("org/model", LARGE)
    server.listing(made)
    return made.storage["model.safetensors"]


@pytest.mark.parametrize(("size", "apart"), [("5M", False), ("2M", True)], ids=["for one alone", "for none"])
def test_no_room_is_said_before_a_byte_moves(
    server: FaultServer, large: str, tmp_path: Path, size: str, apart: bool
) -> None:
    """What lands in the cache and what is put into the folder count both, also before there is a cache."""
    with tiny_disk(tmp_path / "disk", size) as disk:
        cache = tmp_path / "cache" if apart else disk / "new" / "cache"
        with pytest.raises(DiskFullError) as caught:
            download(server, disk, cache_dir=cache)
        assert caught.value.needed == (1 if apart else 2) * sum(map(len, LARGE.values()))
        assert not [seen for seen in server.to(large) if seen.sent > 1 << 16]


@pytest.mark.parametrize("apart", [False, True], ids=["one disk", "two disks"])
def test_what_an_earlier_call_brought_needs_no_room(
    server: FaultServer, large: str, tmp_path: Path, apart: bool
) -> None:
    """On a disk with room for what there is to be in the end, and little more, the same call goes on."""
    server.fault(large, LOOK, Truncate(2 << 20))
    with tiny_disk(tmp_path / "disk", "4M" if apart else "7M") as disk:
        cache = tmp_path / "cache" if apart else disk / "cache"
        once = replace(QUICK, attempts=1, connections=1)
        with pytest.raises(asyncfetch.NetworkError):
            download(server, disk, cache_dir=cache, policy=once)
        assert tree(download(server, disk, cache_dir=cache).path) == LARGE
        shutil.rmtree(disk / "dir")
        assert tree(download(server, disk, cache_dir=cache).path) == LARGE


@pytest.mark.parametrize("cache", ["/sys/cache", "~nobody-of-this-name/cache"], ids=["closed", "nowhere"])
def test_without_a_cache_that_can_be_written(
    server: FaultServer, repository: Repository, tmp_path: Path, cache: str
) -> None:
    """Where it is closed, or there is no place for one, the folder is filled all the same, and nothing is left over."""
    events: list[Event] = []
    assert tree(download(server, tmp_path, report=events.append, cache_dir=cache).path) == FILES
    assert any(
        isinstance(event, Warned) and "a cache of its own" in event.message for event in events
    ) is cache.startswith("/")
    assert not (tmp_path / "dir" / ".cache" / "asyncfetch").exists()
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "dir").rglob("*") if path.is_file())


def test_loads_offline(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    """A filled folder is a checkpoint of its own, whose record is held against its bytes when that is asked for."""
    folder = download(server, tmp_path).path
    state = asyncfetch.load(folder, offline=True)
    assert all(np.array_equal(state[name], TENSORS[name]) for name in TENSORS)
    checked = {file.file: (file.ok, file.checksum is not None) for file in asyncfetch.verify(folder)}
    assert checked == dict.fromkeys(FILES, (True, True))
    data = bytearray(FILES[SHARD])
    data[-1] ^= 1
    (folder / SHARD).write_bytes(data)
    asyncfetch.load(folder)
    (wrong,) = (file.file for file in asyncfetch.verify(folder) if not file.ok)
    assert wrong == SHARD
    with pytest.raises(asyncfetch.ChecksumMismatchError):
        asyncfetch.load(folder, verify="always")


def test_a_web_folder(server: FaultServer, tmp_path: Path) -> None:
    """A plain server gives no hashes: they are taken of what came."""
    url = server.web("/files", CHECKPOINT)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "policy": QUICK, "local_dir": tmp_path / "dir"}
    for _ in range(2):
        assert tree(asyncfetch.download(url, **options).path) == CHECKPOINT
    (tmp_path / "dir" / SHARD).write_bytes(b"mine")
    with pytest.raises(StorageError, match=SHARD):
        asyncfetch.download(url, **options)
    assert tree(asyncfetch.download(url, overwrite=True, **options).path) == CHECKPOINT


def test_senseless(tmp_path: Path) -> None:
    for name, data in CHECKPOINT.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=r"here already, so there is nothing to download\. Copy it"):
        asyncfetch.download(tmp_path, local_dir=tmp_path / "dir")
    with pytest.raises(SourceError, match="overwrite= goes with local_dir="):
        asyncfetch.download("org/model", overwrite=True, cache_dir=tmp_path)
    with pytest.raises(SourceError, match="local_dir= takes a path"):
        asyncfetch.download("org/model", local_dir=5, cache_dir=tmp_path)  # type: ignore[arg-type]
