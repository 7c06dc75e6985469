"""`download`: a checkpoint and what belongs to it, or the files that are named; each verified, resumable, once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import hf_hub_download, snapshot_download

import asyncfetch
from asyncfetch.errors import (
    AccessError,
    ChecksumMismatchError,
    EntryNotFoundError,
    OfflineError,
    ProtocolError,
    SourceError,
)
from asyncfetch.events import Event, Resolved, Warned

from ..kit.fault_server import (
    COMMIT,
    OK,
    QUICK,
    Fault,
    FaultServer,
    Flip,
    Repository,
    Reset,
    Resource,
    Status,
    Truncate,
)
from ..kit.files import sharded_bytes

TENSORS = {f"layer.{n}": np.full(30_000, n, dtype=np.uint8) for n in range(3)}
CHECKPOINT = sharded_bytes(TENSORS, 2)
BESIDE = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": json.dumps({"vocab": {f"word{n}": n for n in range(9_000)}}).encode(),  # more than a prefix
    "README.md": b"",
    "1_Pooling/config.json": b"{}",
    "templates/a b.jinja": b"{{ messages }}",
    "2_Dense/model.safetensors": CHECKPOINT["model-00001-of-00002.safetensors"][:1000],
}
OTHER = {"pytorch_model.bin": b"\x80pickle" * 99, "onnx/model.onnx": b"onnx" * 99}


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def repository(server: FaultServer) -> Repository:
    made = server.hub("org/model", {**CHECKPOINT, **BESIDE, **OTHER})
    server.listing(made)
    return made


def download(server: FaultServer, cache: Path, source: str = "org/model", **options: Any) -> asyncfetch.Snapshot:
    given = {"endpoint": server.url, "cache_dir": cache, "token": False, "policy": QUICK, **options}
    return asyncfetch.download(source, **given)


def same(snapshot: asyncfetch.Snapshot, expected: Mapping[str, bytes]) -> bool:
    """Whether the snapshot has exactly these files, with these bytes, where it says."""
    here = {name: path.read_bytes() for name, path in snapshot.files.items()}
    return here == dict(expected) and all(snapshot.path / name == path for name, path in snapshot.files.items())


@pytest.mark.parametrize("per_page", [1000, 3])
def test_companions_come_too(server: FaultServer, tmp_path: Path, per_page: int) -> None:
    """The checkpoint, and all that holds no weights, by a listing of any number of pages."""
    made = server.hub("org/model", {**CHECKPOINT, **BESIDE, **OTHER})
    server.listing(made, per_page=per_page, elsewhere="https://official.example")
    events: list[Event] = []
    snapshot = download(server, tmp_path, report=events.append)
    assert same(snapshot, {**CHECKPOINT, **BESIDE})
    (resolved,) = (event for event in events if isinstance(event, Resolved))
    assert {file.file for file in resolved.files} == {*CHECKPOINT, *BESIDE} - {"model.safetensors.index.json"}
    assert all(file.checksum for file in resolved.files)
    assert not [event for event in events if isinstance(event, Warned)]


def test_the_hub_finds_it_offline(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    """huggingface_hub takes the snapshot for its own."""
    path = download(server, tmp_path).path
    found = snapshot_download("org/model", cache_dir=tmp_path, local_files_only=True)
    assert os.path.samefile(found, path)
    for name, data in BESIDE.items():
        local = hf_hub_download("org/model", name, cache_dir=tmp_path, local_files_only=True)
        assert Path(local).read_bytes() == data


def test_small_files_take_one_request(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    """Known by the listing, a small file comes whole with the first answer; and never again."""
    download(server, tmp_path)
    for name in ("config.json", "1_Pooling/config.json", "templates/a b.jinja", "README.md"):
        assert len(server.to(repository.pages[name])) == 1
    before = len(server.seen)
    assert same(download(server, tmp_path, revision=COMMIT), {**CHECKPOINT, **BESIDE})
    assert len(server.seen) == before, "a pinned commit whose files are here needs no request"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"weights_only": True}, [*CHECKPOINT]),
        ({"exclude": ["*.md", "1_Pooling/"]}, [*CHECKPOINT, *(set(BESIDE) - {"README.md", "1_Pooling/config.json"})]),
        ({"files": "config.json"}, ["config.json"]),
        ({"files": ["pytorch_model.bin", "README.md"]}, ["pytorch_model.bin", "README.md"]),
        ({"include": "*"}, [*CHECKPOINT, *BESIDE, *OTHER]),
        ({"include": ["*.json"], "exclude": "*index*"}, ["config.json", "tokenizer.json", "1_Pooling/config.json"]),
        ({"files": "onnx/model.onnx", "include": "*.md"}, ["onnx/model.onnx", "README.md"]),
        ({"select": "layer.0"}, [*BESIDE, "model.safetensors.index.json", "model-00001-of-00002.safetensors"]),
    ],
)
def test_which_files(
    server: FaultServer, repository: Repository, tmp_path: Path, options: dict[str, Any], names: list[str]
) -> None:
    """What is asked for, and nothing else; a dry run says the same; a second time nothing is sent."""
    files = {**CHECKPOINT, **BESIDE, **OTHER}
    access = {"endpoint": server.url, "cache_dir": tmp_path, "token": False, "policy": QUICK}
    plan = asyncfetch.dry_run("org/model", **access, **options)
    snapshot = download(server, tmp_path, **options)
    assert same(snapshot, {name: files[name] for name in names})
    assert {file.file for file in plan.files} == set(names) - {plan.index}
    before = sum(seen.sent for seen in server.seen if seen.second)
    assert same(download(server, tmp_path, **options), {name: files[name] for name in names})
    assert sum(seen.sent for seen in server.seen if seen.second) == before
    assert same(download(server, tmp_path, offline=True, **options), {name: files[name] for name in names})


def test_no_checkpoint_is_needed_for_files(server: FaultServer, tmp_path: Path) -> None:
    """A repository without safetensors: named files come, an empty one too."""
    made = server.hub("org/other", {**OTHER, "empty": b""})
    server.listing(made)
    assert same(download(server, tmp_path, "org/other", include="*"), {**OTHER, "empty": b""})


@pytest.mark.parametrize("page", ["config.json", "tokenizer.json", "templates/a b.jinja"])
@pytest.mark.parametrize("fault", [Flip(3), Reset(9), Status(503)], ids=["flipped", "reset", "503"])
def test_faults_of_companions(
    server: FaultServer, repository: Repository, tmp_path: Path, page: str, fault: Any
) -> None:
    """A small file is held against its git hash, and retried, as any other."""
    server.fault(repository.pages[page], fault)
    assert same(download(server, tmp_path), {**CHECKPOINT, **BESIDE})


def test_a_companion_that_stays_wrong(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    """Wrong bytes never get its name."""
    server.fault(repository.pages["config.json"], Flip(3), forever=True)
    with pytest.raises(ChecksumMismatchError, match=r"config\.json"):
        download(server, tmp_path)
    assert not list(tmp_path.glob("models--org--model/snapshots/*/config.json"))
    server.heal(repository.pages["config.json"])
    assert same(download(server, tmp_path), {**CHECKPOINT, **BESIDE})


def test_a_cached_companion_that_is_wrong(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    """One of another length is fetched again by itself, one of other bytes when asked to look."""
    blob = download(server, tmp_path).files["config.json"].resolve()
    blob.write_bytes(b"{}")
    assert same(download(server, tmp_path), {**CHECKPOINT, **BESIDE})
    (tmp_path / blob.relative_to(tmp_path)).write_bytes(BESIDE["config.json"][::-1])
    assert same(download(server, tmp_path, verify="always"), {**CHECKPOINT, **BESIDE})


def test_verify_covers_companions(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    """All that is here of the commit is hashed again, and nothing is said of what was never wanted."""
    snapshot = download(server, tmp_path)
    events: list[Event] = []
    assert {
        file.file: file.ok for file in asyncfetch.verify("org/model", cache_dir=tmp_path, report=events.append)
    } == dict.fromkeys((*CHECKPOINT, *BESIDE), True)
    assert not [event for event in events if isinstance(event, Warned)]
    snapshot.files["tokenizer.json"].resolve().write_bytes(BESIDE["tokenizer.json"][::-1])
    (wrong,) = (file for file in asyncfetch.verify("org/model", cache_dir=tmp_path) if not file.ok)
    assert (wrong.file, wrong.ok) == ("tokenizer.json", False)


@pytest.mark.parametrize("fault", [OK, Status(404, {"x-error-code": "EntryNotFound"}), Status(405), Status(501)])
def test_a_server_that_lists_nothing(server: FaultServer, tmp_path: Path, fault: Fault) -> None:
    """A mirror without the API: the checkpoint comes, and that the rest does not is said. Names still work."""
    server.hub("org/model", {**CHECKPOINT, **BESIDE})
    server.fault(f"/api/models/org/model/tree/{COMMIT}", fault, forever=True)
    events: list[Event] = []
    assert same(download(server, tmp_path, report=events.append), CHECKPOINT)
    (warned,) = (event for event in events if isinstance(event, Warned))
    assert warned.message == "org/model lists no files: only weights and index were downloaded"
    with pytest.raises(SourceError, match=r"lists no files. Give the names"):
        download(server, tmp_path, include="*.json")


def test_offline_what_is_missing_is_said(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    """A snapshot without all of its companions is used; what is named must be there."""
    download(server, tmp_path, exclude="*.json")
    events: list[Event] = []
    snapshot = download(server, tmp_path, offline=True, report=events.append)
    assert set(snapshot.files) == {*CHECKPOINT, *(name for name in BESIDE if not name.endswith(".json"))}
    (warned,) = (event.message for event in events if isinstance(event, Warned))
    assert "not in the cache: 1_Pooling/config.json, config.json, tokenizer.json" in warned
    with pytest.raises(OfflineError, match=r"config\.json"):
        download(server, tmp_path, offline=True, files="config.json")


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[1]",
        b'[{"type": "file"}]',
        b'[{"type":"file","path":"a","size":"x","oid":"1"}]',
        b"{}",
        b"[" * 99_999,
    ],
)
def test_a_listing_of_nonsense(server: FaultServer, repository: Repository, tmp_path: Path, body: bytes) -> None:
    """It is an error of ours, and nothing is written."""
    server.resources[f"/api/models/org/model/tree/{COMMIT}"] = Resource(body)
    with pytest.raises(ProtocolError):
        download(server, tmp_path)


def test_a_listing_in_a_circle(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    link = {"link": f'<{server.url}/api/models/org/model/tree/{COMMIT}?cursor=1>; rel="next"'}
    server.resources[f"/api/models/org/model/tree/{COMMIT}"] = Resource(b"[]", link)
    with pytest.raises(ProtocolError, match="circle"):
        download(server, tmp_path)


def test_names_that_leave_the_repository(server: FaultServer, tmp_path: Path) -> None:
    """What a listing names becomes no path outside."""
    made = server.hub("org/model", {**CHECKPOINT, "../../evil.json": b"{}"})
    server.listing(made)
    with pytest.raises(SourceError, match="not a path inside"):
        download(server, tmp_path / "cache")
    assert not list(tmp_path.rglob("evil.json"))


ODD = {"logs\\run.json": b"1", "a:notes.txt": b"2", "x/tab\tname.txt": b"3", "up\\..\\..\\evil.json": b"4"}


@pytest.fixture
def from_windows(server: FaultServer) -> Repository:
    """A repository with names that are no paths on every system, which the Hub takes."""
    made = server.hub("org/model", {**CHECKPOINT, **BESIDE, **ODD, **{f"many\\{n}.txt": b"" for n in range(40)}})
    server.listing(made)
    return made


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {**CHECKPOINT, **BESIDE}),
        ({"local_dir": "{}/dir"}, {**CHECKPOINT, **BESIDE}),
        ({"include": "*"}, {**CHECKPOINT, **BESIDE}),
        ({"include": ["x/*", "logs*", "config.json"]}, {"config.json": BESIDE["config.json"]}),
    ],
    ids=["companions", "folder", "all", "globs"],
)
def test_names_that_are_no_paths_everywhere(
    server: FaultServer, from_windows: Repository, tmp_path: Path, options: dict[str, Any], expected: dict[str, bytes]
) -> None:
    """They are left out, and a warning tells the first of them and how many there are; all else comes."""
    options = {name: text.format(tmp_path) if isinstance(text, str) else text for name, text in options.items()}
    for offline in (False, True):
        events: list[Event] = []
        snapshot = download(server, tmp_path / "cache", report=events.append, offline=offline, **options)
        assert same(snapshot, expected)
        warned = [event.message for event in events if isinstance(event, Warned) and "left out" in event.message]
        if not offline:  # where the listing is kept too
            (said,) = warned
            assert said.startswith("org/model has files whose names are no paths on every system, which are left out: ")
            assert said.isprintable()
            assert ("'logs\\\\run.json'" in said) is ("'a:notes.txt'" in said or "x/" in said)
            assert len(said) < 250
            assert ("more" in said) is ("config.json" not in str(options))
    assert not list(tmp_path.rglob("*evil*"))
    assert not list(tmp_path.rglob("*run.json"))


def test_a_plan_leaves_them_out_too(server: FaultServer, from_windows: Repository, tmp_path: Path) -> None:
    """What would not be downloaded is in no plan. Who leaves it out is not warned of it."""
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path, "token": False, "policy": QUICK}
    events: list[Event] = []
    plan = asyncfetch.dry_run("org/model", report=events.append, **options)
    assert {file.file for file in plan.files} == {*CHECKPOINT, *BESIDE} - {"model.safetensors.index.json"}
    assert len([event for event in events if isinstance(event, Warned)]) == 1
    exclude = ["*\\*", "?:*", "x/*"]
    asyncfetch.download("org/model", report=events.append, exclude=exclude, **options)
    assert len([event for event in events if isinstance(event, Warned)]) == 1


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", [*ODD])
def test_such_a_name_that_is_asked_for(
    server: FaultServer, from_windows: Repository, tmp_path: Path, listed: bool, name: str
) -> None:
    """It is an error before anything comes, with what to do."""
    if not listed:
        for path in [path for path in server.resources if "/tree/" in path]:
            del server.resources[path]
    wishes: list[dict[str, Any]] = [{"files": [name, "config.json"]}, *([{"include": name}] if listed else [])]
    for wish in wishes:
        with pytest.raises(SourceError, match="no path on every system") as caught:
            download(server, tmp_path, **wish)
        assert "exclude=" in caught.value.hint
        assert repr(name) in caught.value.message
    assert not list(tmp_path.rglob("*.json"))


def test_interrupted_companions_go_on(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    """What came of a file is not asked for again, but for the first bytes, which come with what is said of it."""
    page, size = repository.pages["tokenizer.json"], len(BESIDE["tokenizer.json"])
    server.fault(page, OK, Truncate(50_000), Status(403), forever=True)
    with pytest.raises(AccessError):
        download(server, tmp_path)
    assert len(server.to(page)) == 3
    server.heal(page)
    before = len(server.seen)
    assert same(download(server, tmp_path), {**CHECKPOINT, **BESIDE})
    assert server.covered(page, before) == size - 50_000


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weights_only": True, "files": "a"}, "weights_only= goes with none of"),
        ({"files": [1]}, "files= takes names or globs"),
        ({"include": ""}, "include= takes names or globs"),
        ({"exclude": 5}, "exclude= takes names or globs"),
        ({"files": []}, "files= is empty: it names no file"),
        ({"files": (name for name in ())}, "files= is empty"),
        ({"files": {}, "include": "*"}, "files= is empty"),
        ({"include": ()}, "include= is empty"),
        ({"include": set(), "files": ["config.json"]}, "include= is empty"),
        ({"include": [], "weights_only": True}, "include= is empty"),
        ({"files": [], "repo_type": "dataset"}, "files= is empty"),
    ],
)
def test_senseless_options(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(SourceError, match=text):
        asyncfetch.download("org/model", cache_dir=tmp_path, offline=True, **options)


@pytest.mark.parametrize("plan", [False, True])
def test_nothing_is_chosen(server: FaultServer, repository: Repository, tmp_path: Path, plan: bool) -> None:
    """An empty choice is never the whole checkpoint: nothing is asked for. Nothing may be left out, though."""
    call: Any = asyncfetch.dry_run if plan else asyncfetch.download
    given: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path, "token": False}
    for options in ({"files": []}, {"include": ()}):
        with pytest.raises(SourceError, match="is empty: it names no file"):
            call("org/model", **options, **given)
    assert not server.seen
    found = call("org/model", exclude=[], **given).files
    assert ({state.file for state in found} if plan else set(found)) >= {"config.json", "tokenizer.json"}


def test_a_misspelt_name(server: FaultServer, repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(EntryNotFoundError, match=r"no file 'confg.json'. It has config.json, "):
        download(server, tmp_path, files="confg.json")


def test_a_local_folder(tmp_path: Path) -> None:
    """It is all here: the same files by the same rules, and hidden ones only by their names."""
    for name, data in {**CHECKPOINT, **BESIDE, **OTHER}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for name in (".git/config", ".env.local", "1_Pooling/.idea/vcs.xml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
    assert same(asyncfetch.download(tmp_path), {**CHECKPOINT, **BESIDE})
    assert same(asyncfetch.download(tmp_path, files=".env.local"), {".env.local": b"mine"})
    assert same(asyncfetch.download(tmp_path, files="1_Pooling/config.json"), {"1_Pooling/config.json": b"{}"})


def test_named_files_of_a_web_folder(server: FaultServer, tmp_path: Path) -> None:
    """A plain server lists nothing: names work, and are found offline."""
    url = server.web("/files", {**CHECKPOINT, **BESIDE})
    options: dict[str, Any] = {"cache_dir": tmp_path, "endpoint": "http://hub.invalid", "policy": QUICK}
    names = ["config.json", "tokenizer.json"]
    for offline in (False, True):
        snapshot = asyncfetch.download(url, files=names, offline=offline, **options)
        assert same(snapshot, {name: BESIDE[name] for name in names})
    assert same(asyncfetch.download(url, **options), CHECKPOINT)
