"""Hostile names: nothing written outside of the cache, nothing asked for outside of the repository, no token lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx
import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from asyncfetch.errors import AsyncfetchError, CorruptError, InvalidIndexError, ProtocolError, SourceError
from asyncfetch.format.index import check_shard_name
from asyncfetch.network.urls import no_downgrade, origin_of, redirected
from asyncfetch.sources.candidates import candidates
from asyncfetch.sources.hub import Hub, clean_etag
from asyncfetch.sources.request import HubSource, LocalSource, UrlSource, check_repo_id, parse_source
from asyncfetch.sources.settings import Settings
from asyncfetch.storage.cache import RepoCache, path_inside
from asyncfetch.storage.checksums import checksum_of_etag
from asyncfetch.storage.roots import url_repo_id

from ..kit.strace import ROOT
from . import hostile_names as hostile
from .hostile_run import PLACES

QUICK, WHOLE = 200, 5_000  # of each property
CALLS_QUICK, CALLS_WHOLE = 30, 3_000  # of each place
ENDPOINT = "https://hub.example"

ForAll = Callable[..., None]


@pytest.fixture
def for_all(seed: int, scale: Callable[[int, int], int]) -> ForAll:
    """`for_all(strategy, check)`: hypothesis, as often as this run wants, with its seed, and `always` besides."""

    def run(names: SearchStrategy[Any], check: Callable[[Any], None], always: Sequence[Any] = ()) -> None:
        for name in always:
            check(name)

        @hypothesis.seed(seed)
        @settings(
            max_examples=scale(QUICK, WHOLE), deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(names)
        def checked(name: Any) -> None:
            check(name)

        checked()

    return run


def tries(*strategies: SearchStrategy[str]) -> SearchStrategy[str]:
    return st.one_of(*strategies)


def stays_inside(path: str) -> bool:
    """Whether a relative path leads to no other folder, under the rules of every system and in a URL."""
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    return (
        os.path.normpath(os.path.join("/cache", path)) == f"/cache/{path}"
        and not windows.drive
        and not windows.root
        and not {"", ".", ".."} & {*posix.parts, *windows.parts}
        and posix.parts == windows.parts
        and "\0" not in path
    )


def test_path_inside(for_all: ForAll) -> None:
    """What passes stays in its folder on disk, on any system."""
    passed = Counter[bool]()

    def check(name: str) -> None:
        try:
            path = path_inside(name)
        except SourceError:
            passed[False] += 1
            return
        passed[True] += 1
        assert str(path) == name
        assert stays_inside(name)

    for_all(tries(hostile.names, hostile.shards, hostile.revisions), check)
    assert min(passed[True], passed[False]) > 10


def test_shard_names(for_all: ForAll) -> None:
    """What passes stays in its folder, and is the file's name to every reader."""
    passed = Counter[bool]()

    def check(name: str) -> None:
        try:
            check_shard_name(name, file="index", tensor="t")
        except InvalidIndexError:
            passed[False] += 1
            return
        passed[True] += 1
        assert stays_inside(name)
        assert str(path_inside(name)) == name
        assert name.endswith(".safetensors")
        assert all(len(part.encode()) <= 255 for part in name.split("/"))

    for_all(hostile.shards, check)
    assert min(passed[True], passed[False]) > 10


def sent(url: str) -> str:
    """The target that an HTTP client sends for `url`, after it resolved what it resolves."""
    return httpx.URL(url).raw_path.decode()


def test_addresses_in_a_repository(for_all: ForAll) -> None:
    """Whatever the file and the revision are called, the request is below the repository, or there is none."""
    hub = Hub(None, Settings(ENDPOINT, "hf_canary", False), "org/model")  # type: ignore[arg-type]
    passed = Counter[bool]()

    def check(pair: tuple[str, str]) -> None:
        file, revision = pair
        try:
            url = hub.url(file, revision)
        except SourceError:
            passed[False] += 1
            return
        passed[True] += 1
        assert origin_of(url) == origin_of(ENDPOINT)
        target = sent(url)
        assert target.startswith("/org/model/resolve/")
        assert [unquote(part) for part in target.split("/")] == [
            "",
            "org",
            "model",
            "resolve",
            revision,
            *file.split("/"),
        ]
        assert "?" not in target
        assert not {".", "..", ""} & set(unquote(target).split("/")[1:])

    for_all(st.tuples(tries(hostile.shards, hostile.names), tries(hostile.revisions, st.just("main"))), check)
    assert min(passed[True], passed[False]) > 10


def test_addresses_in_a_web_folder(for_all: ForAll) -> None:
    """A file of a folder is below the folder."""
    source = UrlSource("https://web.example/some/folder/", None, "sig=x")
    passed = Counter[bool]()

    def check(file: str) -> None:
        try:
            url = source.url(file)
        except SourceError:
            passed[False] += 1
            return
        passed[True] += 1
        assert origin_of(url) == ("https", "web.example", 443)
        assert sent(url) == f"/some/folder/{quote(file)}?sig=x"

    for_all(tries(hostile.shards, hostile.names), check)
    assert min(passed[True], passed[False]) > 10


def test_names_in_the_cache(for_all: ForAll, tmp_path: Path) -> None:
    """Every path that the cache makes of what a server or a caller says is in its own folder, or is refused."""
    passed = Counter[str]()
    whole = st.tuples(hostile.hashes, hostile.long_hashes, tries(hostile.shards, hostile.names), hostile.revisions)

    def check(said: tuple[str, str, str, str]) -> None:
        commit, etag, file, revision = said
        cache = RepoCache(tmp_path, "org/model", symlinks=True)
        made: list[tuple[str, Callable[[], Any]]] = [
            ("snapshot", lambda: cache.snapshot(commit)),
            ("blob", lambda: cache.blob(clean_etag(etag))),
            ("partial", lambda: cache.partial(etag)),
            ("lock", lambda: Path(cache.lock(etag).lock_file)),
            ("find", lambda: cache.find("0" * 40, file)),
            ("absent", lambda: cache.known_absent(commit, file)),
            ("commit", lambda: cache.commit_of(revision)),
            ("blob by its size", lambda: cache.whole_blob(etag, 1)),
            ("ref", lambda: cache.write_ref(revision, commit)),
            ("remembered", lambda: cache.remember_absent(commit, file)),
        ]
        for name, make in made:
            with suppress(SourceError, CorruptError, AsyncfetchError):
                path = make()
                passed[name] += 1
                if isinstance(path, Path):
                    assert str(path).startswith(
                        (f"{tmp_path}/models--org--model/", f"{tmp_path}/.locks/models--org--model/")
                    )
                    assert os.path.normpath(path) == str(path)
        assert checksum_of_etag(etag) is None or re.fullmatch("[0-9a-f]{40}([0-9a-f]{24})?", etag, re.ASCII)

    for_all(whole, check)
    assert len(passed) == 10
    assert {path.name for path in tmp_path.iterdir()} <= {"models--org--model", ".locks"}
    for path in (tmp_path / "models--org--model" / "refs").rglob("*"):
        assert path.is_dir() or re.fullmatch("[0-9a-f]{40}", path.read_text())


def test_sources(for_all: ForAll, tmp_path: Path) -> None:
    """Whatever a caller names becomes a sound source, or a SourceError; its folder in the cache is one folder."""
    kinds = Counter[str]()
    prefixes = st.sampled_from(
        ["", "", "", f"{ENDPOINT}/", f"{ENDPOINT}/org/model/", "https://web.example/", "https://", "http://u:p@"]
    )
    said = st.tuples(
        prefixes, tries(hostile.repo_ids, hostile.names), st.none() | hostile.revisions, st.none() | hostile.names
    )

    def check(arguments: tuple[str, str, str | None, str | None]) -> None:
        prefix, name, revision, subfolder = arguments
        try:
            source = parse_source(
                prefix + name, revision=revision, subfolder=subfolder, endpoint=ENDPOINT, kind_of=lambda path: None
            )
        except SourceError:
            kinds["refused"] += 1
            return
        kinds[type(source).__name__] += 1
        assert not isinstance(source, LocalSource)
        if isinstance(source, HubSource):
            assert check_repo_id(source.repo_id) == source.repo_id
            assert re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source.repo_id, re.ASCII)
            folder = RepoCache(tmp_path, source.repo_id).folder
        else:
            origin_of(source.folder)
            folder = RepoCache(tmp_path, url_repo_id(source.folder)).folder
            with suppress(SourceError):
                assert origin_of(source.url(candidates(None)[0])) == origin_of(source.folder)
        assert folder.parent == tmp_path
        assert folder.name.startswith("models--")

    of_each = [("", "..", None, None), ("", "org/model", None, None), ("https://web.example/", "folder", None, None)]
    for_all(said, check, always=of_each)
    assert kinds.keys() == {"refused", "HubSource", "UrlSource"}


def test_redirects(for_all: ForAll) -> None:
    """An address that is taken for the endpoint's own is the endpoint's own to the client that connects."""
    here = "http://localhost:8080"
    others = [
        "http://localhost:8081",
        "http://127.0.0.1:8080",
        "http://evil.example:8080",
        "http://localhost",
        "http://[::1]:8080",
    ]
    kinds = Counter[str]()

    def check(location: str) -> None:
        try:
            target = redirected(f"{here}/org/model/resolve/main/x?sig=y", hostile.as_header(location))
        except ProtocolError:
            kinds["refused"] += 1
            return
        if not no_downgrade(here, target):
            assert urlsplit(target).scheme not in ("http", "https")
            kinds["another scheme"] += 1
            return
        own = origin_of(target) == origin_of(here)
        kinds["own" if own else "other"] += 1
        try:
            url = httpx.URL(target)
        except (httpx.InvalidURL, ValueError):
            return  # not sent at all
        if own:
            assert (url.scheme, url.host, url.port) == ("http", "localhost", 8080)

    of_each = ["http://[x/", "ftp://localhost:8080/x", "/x", "//127.0.0.1:8080/x"]
    for_all(hostile.locations(here, others), check, always=of_each)
    assert kinds.keys() == {"refused", "another scheme", "own", "other"}


def hostile_run(tree: Path, count: int, seed: int, places: list[str]) -> list[dict[str, Any]]:
    """What the calls of a run came to; its rules are its own."""
    (tree / "cwd").mkdir(parents=True)
    for path in (tree / "canary.safetensors", tree / "a" / "canary.safetensors"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"canary")
    command = [sys.executable, "-m", "tests.torture.hostile_run", str(count), str(seed), str(tree), *places]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tree / "cwd", env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_tree(tree: Path) -> None:
    """Nothing new outside of the cache; within it the folders of its layout, and no link that leads out."""
    cache = tree / "a" / "b" / "cache"
    outside = {path for path in tree.rglob("*") if cache not in (path, *path.parents)}
    assert outside == {tree / name for name in ("cwd", "canary.safetensors", "a", "a/canary.safetensors", "a/b")}
    assert (tree / "canary.safetensors").read_bytes() == (tree / "a" / "canary.safetensors").read_bytes() == b"canary"
    for path in cache.iterdir():
        assert path.name in (".locks", "CACHEDIR.TAG") or path.name.startswith("models--")
    for folder in cache.glob("models--*"):
        assert {path.name for path in folder.iterdir()} <= {"blobs", "refs", "snapshots", "identities", ".no_exist"}
        for path in (folder / "blobs").iterdir():
            assert re.match("[0-9a-f]{40}", path.name)
    for path in cache.rglob("*"):
        if path.is_symlink():
            assert cache in path.resolve(strict=True).parents


def test_calls(tmp_path: Path, seed: int, scale: Callable[[int, int], int], figure: Callable[[str], None]) -> None:
    """Names, hashes, addresses and revisions from anywhere, against a server that serves any path."""
    count = scale(CALLS_QUICK, CALLS_WHOLE)
    groups = [[place] for place in PLACES] if scale(0, 1) else [list(PLACES)]
    trees = [tmp_path / f"tree{n}" for n in range(len(groups))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(hostile_run, trees, [count] * len(groups), [seed] * len(groups), groups))
    for tree in trees:
        check_tree(tree)
    results = [result for part in parts for result in part]
    assert [result["place"] for result in results] == list(PLACES)
    for result in results:
        kinds = result["outcomes"]
        figure(f"{result['place']}: {sum(kinds.values()):,} calls, {result['requests']:,} requests, {kinds}")
        if scale(0, 1):  # nothing listens at the hosts
            assert len(kinds) > 1
            assert result["requests"] or result["place"] == "web host"
        assert PLACES[result["place"]].right is None or result["outcomes"].get("downloaded"), "all are refused"
    total = sum(sum(result["outcomes"].values()) for result in results)
    figure(f"{total:,} calls, {sum(result['requests'] for result in results):,} requests, nothing outside")
