"""A source that cannot be asked, and a cache that has what is asked for: when the cache is used, and what is told."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncfetch
from asyncfetch.errors import (
    AccessError,
    AsyncfetchError,
    NetworkError,
    NotFoundError,
    ProtocolError,
    RateLimitedError,
)
from asyncfetch.events import Event, Resolved, Retrying, Waiting, Warned
from asyncfetch.storage.cache import RepoCache

from ..kit.fault_server import COMMIT, OK, QUICK, Fault, FaultServer, Hangup, LoginPage, Mute, ResetAtOnce, Status
from ..kit.small_model import FILES, INDEX, KINDS, ONE_FILE, SHARD, load, same

pytestmark = pytest.mark.anyio

HASTY = replace(QUICK, read_timeout=0.3, attempts=3)
PAGE = f"/org/model/resolve/main/{INDEX}"
ANOTHER = "f" * 40
SOURCES = pytest.mark.parametrize("source", ["org/model", "/elsewhere/files"], ids=["repository", "web"])


def serve(server: FaultServer) -> None:
    server.hub("org/model", FILES)
    server.web("/elsewhere/files", FILES)


async def run(server: FaultServer, cache: Path, source: str = "org/model", **options: Any) -> list[Event]:
    """Load a model, see that it is right, and return what was told."""
    told: list[Event] = []
    assert same(await load(server, cache, source, **{"policy": HASTY, "report": told.append, **options}))
    return told


def warned(told: list[Event]) -> list[str]:
    """The warnings about the cache."""
    return [event.message for event in told if isinstance(event, Warned) and "What is cached is used" in event.message]


@KINDS
@SOURCES
async def test_nobody_listens(server: FaultServer, tmp_path: Path, source: str, kind: str) -> None:
    """The cache is used at once, with one warning that says why, which commit, and since when."""
    serve(server)
    before = await run(server, tmp_path, source, kind=kind)
    assert not warned(before)
    server.go_away()
    told = await run(server, tmp_path, source, kind=kind)
    (warning,) = warned(told)
    commit = next(event.commit for event in told if isinstance(event, Resolved))
    assert commit == next(event.commit for event in before if isinstance(event, Resolved))
    assert f"commit {commit}" in warning
    assert server.url in warning
    assert "last looked up on 20" in warning
    assert not any(isinstance(event, Retrying | Waiting) for event in told)


@pytest.mark.parametrize(
    "fault",
    [
        Hangup,
        ResetAtOnce,
        Mute,
        Status(503, {"retry-after": "30"}),
        Status(500, {"retry-after": "3600"}),
        Status(429, {"retry-after": "60"}),
        Status(429, {"ratelimit": '"api";r=0;t=280'}),
    ],
    ids=["hangs up", "resets", "silent", "503", "500", "429", "quota"],
)
async def test_one_request_is_enough(server: FaultServer, tmp_path: Path, fault: Fault) -> None:
    """However the Hub cannot be asked: after the first failure that would cost more than seconds."""
    serve(server)
    await run(server, tmp_path)
    asked = len(server.to(PAGE))
    server.fault(PAGE, fault, forever=True)
    assert warned(await run(server, tmp_path))
    assert len(server.to(PAGE)) == asked + 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_what_passes_in_a_moment_is_waited_for(server: FaultServer, tmp_path: Path, status: int) -> None:
    """A failure that costs no time is tried again, and the Hub's answer is used; a lasting one ends in the cache."""
    serve(server)
    await run(server, tmp_path)
    server.fault(PAGE, Status(status, {"retry-after": "0"}))
    told = await run(server, tmp_path)
    assert not warned(told)
    assert any(isinstance(event, Retrying) for event in told)
    server.fault(PAGE, Status(status, {"retry-after": "0"}), forever=True)
    assert warned(await run(server, tmp_path, policy=replace(HASTY, attempts=2)))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Status(401, {"x-error-code": "RepoNotFound"}), NotFoundError),
        (Status(401, {"x-error-message": "Invalid credentials in Authorization header"}), AccessError),
        (Status(403, {"x-error-code": "GatedRepo"}), AccessError),
        (Status(403), AccessError),
        (Status(404, {"x-error-code": "RepoNotFound"}), NotFoundError),
        (Status(404, {"x-error-code": "RevisionNotFound"}), NotFoundError),
        (LoginPage, ProtocolError),
    ],
    ids=["hidden", "token", "gated", "refused", "gone", "no revision", "portal"],
)
async def test_an_answer_is_a_fact(server: FaultServer, tmp_path: Path, fault: Fault, error: type) -> None:
    """Who may not read it any more, or what is gone, is not read from the cache."""
    serve(server)
    await run(server, tmp_path)
    server.fault(PAGE, fault, forever=True)
    with pytest.raises(error):
        await run(server, tmp_path)


@pytest.mark.parametrize("revision", ["v1", "refs/pr/1", ANOTHER])
async def test_another_revision_is_not_what_is_cached(server: FaultServer, tmp_path: Path, revision: str) -> None:
    """What was never asked for is not replaced by what was."""
    serve(server)
    await run(server, tmp_path)
    server.go_away()
    with pytest.raises(NetworkError):
        await run(server, tmp_path, revision=revision)


async def test_a_newer_commit_is_a_fact(server: FaultServer, tmp_path: Path) -> None:
    """Once the Hub has named another commit, the old one is not used, however it fails then."""
    serve(server)
    await run(server, tmp_path)
    pages = server.hub("org/model", FILES, commit=ANOTHER).pages
    server.fault(pages[SHARD], Hangup, forever=True)
    with pytest.raises(NetworkError):
        await run(server, tmp_path)


async def test_a_commit_that_is_cached_needs_nobody(server: FaultServer, tmp_path: Path) -> None:
    """A full commit hash: no request, no warning."""
    serve(server)
    await run(server, tmp_path)
    server.go_away()
    requests = len(server.seen)
    assert not warned(await run(server, tmp_path, revision=COMMIT))
    assert len(server.seen) == requests


@pytest.mark.parametrize("revision", ["main", COMMIT])
async def test_a_single_file_of_another_tool(server: FaultServer, tmp_path: Path, revision: str) -> None:
    """A cache that does not know that there is no index, as huggingface_hub leaves it."""
    server.hub("org/model", ONE_FILE)
    await run(server, tmp_path)
    shutil.rmtree(tmp_path / "models--org--model" / ".no_exist")
    server.go_away()
    (warning,) = warned(await run(server, tmp_path, revision=revision))
    assert ("last looked up on" in warning) == (revision == "main")


@SOURCES
async def test_not_all_is_cached(server: FaultServer, tmp_path: Path, source: str) -> None:
    """The network's error stays the error, after the usual attempts, and says what is there; a part that is all
    there is used."""
    serve(server)
    options: dict[str, Any] = {"cache_dir": tmp_path, "token": False, "policy": HASTY}
    if source == "org/model":
        url, options["endpoint"] = source, server.url
    else:
        url = server.url + source
    await asyncfetch.load_async(url, select="layer.0", **options)
    server.go_away()
    told: list[Event] = []
    with pytest.raises(NetworkError) as caught:
        await asyncfetch.load_async(url, report=told.append, **options)
    assert sum(isinstance(event, Retrying) for event in told) == HASTY.attempts - 1
    assert "1 of 2 files are cached" in caught.value.hint
    part = await asyncfetch.load_async(url, select="layer.0", report=told.append, **options)
    assert list(part) == ["layer.0"]
    assert warned(told)


async def test_wrong_bytes_are_never_used(server: FaultServer, tmp_path: Path) -> None:
    """A cached file that is not what it should be is no reason to load it."""
    serve(server)
    await run(server, tmp_path)
    shard = RepoCache(tmp_path, "org/model").snapshot(COMMIT) / SHARD
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    server.go_away()
    with pytest.raises(AsyncfetchError):
        await run(server, tmp_path, verify="always")


async def test_a_client_that_waits_for_a_quota(server: FaultServer, tmp_path: Path) -> None:
    """While the gate of a client is closed for a minute, its next calls use the cache without a request."""
    serve(server)
    await run(server, tmp_path)
    server.fault(PAGE, Status(429, {"retry-after": "60"}), forever=True)
    async with asyncfetch.Client(endpoint=server.url, cache_dir=tmp_path, token=False, policy=HASTY) as client:
        with anyio.fail_after(30):
            for _ in range(3):
                told: list[Event] = []
                assert same(await client.load("org/model", report=told.append))
                assert warned(told)
    assert server.to(PAGE)[-1].status == 429
    assert sum(seen.status == 429 for seen in server.to(PAGE)) == 1


async def test_rate_limits_without_a_cache_are_waited_for(server: FaultServer, tmp_path: Path) -> None:
    """Nothing is cached: the limit is the error, after the usual attempts."""
    serve(server)
    server.fault(PAGE, Status(429, {"retry-after": "0"}), forever=True)
    with pytest.raises(RateLimitedError):
        await run(server, tmp_path, policy=replace(HASTY, attempts=1))
    assert len(server.to(PAGE)) == 2


async def test_who_has_no_reporter_is_warned_too(server: FaultServer, tmp_path: Path) -> None:
    """By Python's own warnings, once; nobody is warned where the Hub answers."""
    serve(server)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await run(server, tmp_path, report=None)
    server.go_away()
    with pytest.warns(asyncfetch.AsyncfetchWarning, match=f"What is cached is used: commit {COMMIT}") as caught:
        await run(server, tmp_path, report=None)
    assert len(caught) == 1


CALLS: dict[str, Callable[..., Any]] = {
    "dry_run": asyncfetch.dry_run_async,
    "inspect": asyncfetch.inspect_async,
    "download": asyncfetch.download_async,
}


@pytest.mark.parametrize("name", CALLS)
async def test_every_call(server: FaultServer, tmp_path: Path, name: str) -> None:
    """All calls that look a source up do it in the same way."""
    serve(server)
    options: dict[str, Any] = {"cache_dir": tmp_path, "token": False, "policy": HASTY, "endpoint": server.url}
    await asyncfetch.download_async("org/model", **options)
    server.fault(PAGE, OK)
    server.go_away()
    told: list[Event] = []
    found = await CALLS[name]("org/model", report=told.append, **options)
    assert found.commit == COMMIT
    assert len(warned(told)) == 1


async def test_offline_stays_what_it_is(server: FaultServer, tmp_path: Path) -> None:
    """Who asks for the cache alone gets it without a warning."""
    serve(server)
    await run(server, tmp_path)
    assert not warned(await run(server, tmp_path, offline=True))
