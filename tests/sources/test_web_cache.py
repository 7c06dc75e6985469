"""What the cache keeps of a plain URL: each file by itself, each source under its own name, each snapshot whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import scan_cache_dir

from asyncfetch.errors import AccessError, ChecksumMismatchError, OfflineError
from asyncfetch.sources.located import PREFIX_LIMIT, Located
from asyncfetch.storage.cache import RepoCache
from asyncfetch.storage.roots import url_repo_id

from ..kit.fault_server import OK, QUICK, Answer, FaultServer, Headers, Status
from ..kit.files import safetensors_bytes, sharded_bytes
from ..kit.sessions import open_session

pytestmark = pytest.mark.anyio

POLICY = replace(QUICK, attempts=1)
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
OLD = sharded_bytes({f"layer.{n}.weight": np.full(50, n, np.float32) for n in range(4)}, 2)
NEW = sharded_bytes({f"layer.{n}.weight": np.full(50, -n, np.float32) for n in range(4)}, 2)
FIRST, SECOND = {"select": "layer.[02].*"}, {"select": "layer.[13].*"}  # what lies in A, and in B


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """The cache's folder, in which the Hub's tools find nothing to complain of, before and after a prune."""
    yield tmp_path
    if any(tmp_path.iterdir()):
        assert scan_cache_dir(tmp_path).warnings == []


async def load(url: str, cache: Path, **options: Any) -> tuple[Located, list[str]]:
    """Download; also the names of the files that were not in the cache."""
    async with open_session(url, cache_dir=cache, policy=POLICY, **options) as session:
        located = await session.locate()
        missing = [file.name for file in located.files if file.path is None]
        await session.download(located)
        return located, missing


async def offline(url: str, cache: Path, **options: Any) -> dict[str, bytes]:
    """The bytes of the files that are found without a server."""
    async with open_session(url, cache_dir=cache, policy=POLICY, offline=True, **options) as session:
        located = await session.locate()
        return {file.name: file.path.read_bytes() for file in located.files if file.path is not None}


def refs(cache: Path) -> set[str]:
    """The names under which snapshots are recorded."""
    return {ref for repo in scan_cache_dir(cache).repos for ref in repo.refs}


def prune(cache: Path) -> None:
    """As `hf cache prune`: what no name stands for goes."""
    found = scan_cache_dir(cache)
    detached = [one.commit_hash for repo in found.repos for one in repo.revisions if not one.refs]
    found.delete_revisions(*detached).execute()


async def test_one_file_after_the_other(server: FaultServer, cache: Path, links: bool) -> None:
    """Each file that was named by its URL has a name of its own in the cache, and stays there offline."""
    url = server.web("/models", OLD)
    for name in (A, B):
        await load(url + name, cache)
    assert refs(cache) == {A, B}
    prune(cache)
    for name in (A, B):
        assert await offline(url + name, cache) == {name: OLD[name]}
    with pytest.raises(OfflineError):
        await offline(url, cache)


async def test_a_part_of_what_is_here(server: FaultServer, cache: Path, links: bool) -> None:
    """A part of what was loaded whole is not fetched again, and the whole is still there, also after a prune."""
    url = server.web("/models", OLD)
    whole, _ = await load(url, cache)
    for source, options in ((url, FIRST), (url + B, {})):
        part, missing = await load(source, cache, **options)
        assert (missing, part.commit) == ([], whole.commit)
    prune(cache)
    assert await offline(url, cache) == {A: OLD[A], B: OLD[B]}
    assert await offline(url, cache, **SECOND) == {B: OLD[B]}
    assert await offline(url + B, cache) == {B: OLD[B]}


async def test_the_whole_after_a_part(server: FaultServer, cache: Path) -> None:
    """Only the rest is fetched; the part, the other part and the whole are there offline."""
    files = sharded_bytes({"first": np.zeros(9), "second": np.zeros(PREFIX_LIMIT)}, 2)
    url = server.web("/models", files)
    await load(url, cache, select="first")
    await load(url + B, cache)
    sent = server.sent(f"/models/{B}")
    whole, missing = await load(url, cache)
    assert missing == []
    assert server.sent(f"/models/{B}") <= sent + PREFIX_LIMIT
    assert whole.cache is not None
    assert whole.commit is not None
    assert {path.name for path in whole.cache.snapshot(whole.commit).iterdir()} == {INDEX, A, B}
    for select, names in (("first", [A]), ("second", [B]), (None, [A, B])):
        assert await offline(url, cache, select=select) == {name: files[name] for name in names}


async def test_parts_without_links(server: FaultServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a snapshot holds the files themselves, another one has its own: right, if not thrifty."""
    monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "1")
    url = server.web("/models", OLD)
    await load(url, cache, **FIRST)
    assert (await load(url, cache))[1] == [A, B]
    assert await offline(url, cache) == {A: OLD[A], B: OLD[B]}


async def test_one_file_changes(server: FaultServer, cache: Path) -> None:
    """Only that one is fetched again, and offline the new state is found."""
    url = server.web("/models", OLD)
    first, _ = await load(url, cache)
    server.web("/models", {B: NEW[B]})
    second, missing = await load(url, cache)
    assert missing == [B]
    assert second.commit != first.commit
    assert await offline(url, cache) == {A: OLD[A], B: NEW[B]}
    server.web("/models", OLD)
    third, missing = await load(url, cache)
    assert (third.commit, missing) == (first.commit, [])
    assert await offline(url, cache) == {A: OLD[A], B: OLD[B]}


async def test_a_part_that_changed(server: FaultServer, cache: Path) -> None:
    """Offline the part is the new one, and the whole is what it was when it was seen whole."""
    url = server.web("/models", OLD)
    await load(url, cache)
    server.web("/models", NEW)
    assert (await load(url, cache, **SECOND))[1] == [B]
    assert await offline(url, cache, **SECOND) == {B: NEW[B]}
    assert await offline(url, cache) == {A: OLD[A], B: OLD[B]}


async def test_parts_of_two_times_are_not_one_checkpoint(server: FaultServer, cache: Path) -> None:
    """Between two selections the files may have changed, so offline they are no whole; each is there by itself."""
    url = server.web("/models", OLD)
    await load(url, cache, **FIRST)
    server.web("/models", NEW)
    await load(url, cache, **SECOND)
    with pytest.raises(OfflineError, match=A):
        await offline(url, cache)
    assert await offline(url, cache, **FIRST) == {A: OLD[A]}
    assert await offline(url, cache, **SECOND) == {B: NEW[B]}


async def test_a_shard_that_is_not_here_is_no_reason_to_fall_back(server: FaultServer, cache: Path) -> None:
    """Offline, a snapshot with an index that lacks a shard is not replaced by another one with a single file."""
    url = server.web("/models", {**OLD, SINGLE: OLD[A]})
    await load(url + SINGLE, cache)
    await load(url, cache, **FIRST)
    with pytest.raises(OfflineError, match=B):
        await offline(url, cache)
    assert await offline(url + SINGLE, cache) == {SINGLE: OLD[A]}


async def test_an_interrupted_download(server: FaultServer, cache: Path) -> None:
    """What a download had published before it failed is not fetched again, whatever is selected next."""
    files = sharded_bytes({"small": np.zeros(9), "large": np.zeros(PREFIX_LIMIT)}, 2)

    def refused(answer: Answer) -> Answer:
        server.wait_for(lambda: any(cache.glob(f"models--*/snapshots/*/{A}")))
        return Status(403)(answer)

    url = server.web("/models", files)
    server.fault(f"/models/{B}", OK, refused, forever=True)
    with pytest.raises(AccessError, match="403"):
        await load(url, cache)
    assert (await load(url, cache, select="small"))[1] == []
    assert await offline(url, cache, select="small") == {A: files[A]}
    with pytest.raises(OfflineError, match=B):
        await offline(url, cache)


async def test_a_file_without_a_validator(server: FaultServer, cache: Path) -> None:
    """Nothing tells it from its successor, so it is fetched each time, alone or in a part."""
    url = server.web("/models", OLD)
    server.fault(f"/models/{B}", Headers(etag=None), forever=True)
    whole, _ = await load(url, cache)
    assert (await load(url, cache))[1] == [B]
    part, missing = await load(url, cache, **SECOND)
    assert missing == [B]
    assert part.commit != whole.commit
    assert (await load(url, cache, **FIRST))[1] == []


async def test_a_file_without_a_validator_changes(server: FaultServer, cache: Path, links: bool) -> None:
    """What came last is what is there, also where it has the size of what was there before."""
    for files in (OLD, NEW):
        url = server.web("/models", {SINGLE: files[A]}, etag="")
        await load(url, cache)
        assert await offline(url, cache) == {SINGLE: files[A]}


async def test_a_hash_tells_more_than_a_validator(server: FaultServer, cache: Path, links: bool) -> None:
    """A cached file of another hash is no match, even if its validator is the same; one whose hash fits is."""
    data = safetensors_bytes({"x": np.zeros(9)})
    url = server.web("/models", {SINGLE: data})
    await load(url, cache)
    right = hashlib.sha256(data).hexdigest()
    assert (await load(url, cache, checksums={SINGLE: right}))[1] == []
    with pytest.raises(ChecksumMismatchError):
        async with open_session(url, cache_dir=cache, policy=POLICY, checksums={SINGLE: "0" * 64}) as session:
            await session.fetch()


async def test_a_blob_of_the_same_hash(server: FaultServer, cache: Path) -> None:
    """Where the hash is known, a file that is here under another name or validator is only linked."""
    data = safetensors_bytes({"x": np.zeros(9)})
    url = server.web("/models", {A: data, B: data})
    await load(url + A, cache)
    assert (await load(url + B, cache, checksums={B: hashlib.sha256(data).hexdigest()}))[1] == []
    assert await offline(url + B, cache) == {B: data}


async def test_a_damaged_record(server: FaultServer, cache: Path) -> None:
    """What a snapshot was made of is believed only whole. Without it a part is fetched again; the whole writes it."""
    url = server.web("/models", OLD)
    whole, _ = await load(url, cache)
    assert whole.cache is not None
    record = whole.cache.folder / "identities" / f"{whole.commit}.json"
    good = record.read_bytes()
    record.write_bytes(good[:-5])
    assert (await load(url, cache, **FIRST))[1] == [A]
    assert (await load(url, cache))[1] == []
    assert record.read_bytes() == good


async def test_a_query_that_selects(server: FaultServer, cache: Path, links: bool) -> None:
    """Two versions of a file that only the query tells apart are two sources, online and offline."""
    url = server.web("/models", {SINGLE: OLD[A]}) + SINGLE
    (page,) = [path for path in server.resources if path.endswith(SINGLE)]
    versions = {"version=1": OLD[A], "version=2": NEW[A], "b=2&a=1": OLD[B], "sp=2": NEW[B], "design=2": OLD[A]}
    for query, data in versions.items():
        server.web("/models", {SINGLE: data}, etag='"the same"')
        await load(f"{url}?{query}", cache)
    assert server.seen[-1].path == page
    for query, data in versions.items():
        assert await offline(f"{url}?{query}", cache) == {SINGLE: data}
    assert await offline(f"{url}?a=1&b=2", cache) == {SINGLE: OLD[B]}
    with pytest.raises(OfflineError):
        await offline(f"{url}?version=3", cache)
    with pytest.raises(OfflineError):
        await offline(url, cache)


@pytest.mark.parametrize(
    "signed",
    [
        "X-Amz-Signature={}&X-Amz-Expires=3600&X-Amz-Date={}",
        "sv=2022-11-02&st={}&se={}&sr=c&sp=rl&sig={}",
        "Expires={}&Signature={}&Key-Pair-Id=K",
        "GoogleAccessId=a&Expires={}&Signature={}",
        "OSSAccessKeyId=a&Expires={}&Signature={}",
        "access_token={}",
    ],
)
async def test_a_signature_selects_nothing(server: FaultServer, cache: Path, signed: str) -> None:
    """What was fetched with one signature is found with the next, and without one, and no name shows it."""
    url = server.web("/models", OLD)
    await load(f"{url}?{signed.replace('{}', '1111')}", cache)
    assert (await load(f"{url}?{signed.replace('{}', '2222')}", cache))[1] == []
    for query in (f"?{signed.replace('{}', '3333')}", ""):
        assert await offline(url + query, cache) == {A: OLD[A], B: OLD[B]}
    assert (await load(f"{url}?{signed.replace('{}', '2222')}&version=2", cache))[1] == [A, B]


async def test_spellings_of_one_address(server: FaultServer, cache: Path) -> None:
    """A fragment and a user change nothing of what is asked for; a port does, and so does a folder."""
    url = server.web("/models", OLD)
    await load(url + A, cache)
    for spelling in (f"{url}{A}#part", f"{url.replace('://', '://user:word@')}{A}"):
        assert (await load(spelling, cache))[1] == []
        assert await offline(spelling, cache) == {A: OLD[A]}
    other = server.web("/models/sub", {A: NEW[A]})
    with pytest.raises(OfflineError):
        await offline(other + A, cache)
    assert (await load(other + A, cache))[1] == [A]
    with FaultServer() as second:
        elsewhere = second.web("/models", {A: OLD[B]})
        assert (await load(elsewhere + A, cache))[1] == [A]
        assert await offline(elsewhere + A, cache) == {A: OLD[B]}
    assert await offline(url + A, cache) == {A: OLD[A]}
    assert await offline(other + A, cache) == {A: NEW[A]}


@pytest.mark.parametrize("first", ["", INDEX, A, B])
async def test_by_index_by_folder_and_by_shard(server: FaultServer, cache: Path, first: str, links: bool) -> None:
    """Whichever name comes first, each is found again by all names that it has a part in."""
    url = server.web("/models", OLD)
    await load(url + first, cache)
    names = {A: OLD[A], B: OLD[B]}
    for source in ("", INDEX, A, B):
        wanted = {source: names[source]} if source in names else names
        if first in ("", INDEX, source):
            assert (await load(url + source, cache))[1] == []
        else:
            await load(url + source, cache)
        assert await offline(url + source, cache) == wanted
    for source in ("", INDEX, A, B):
        assert (await load(url + source, cache))[1] == []
        assert await offline(url + source, cache) == ({source: names[source]} if source in names else names)


async def test_variants_of_one_folder(server: FaultServer, cache: Path, links: bool) -> None:
    """A variant beside the plain file is a checkpoint of its own: each is there offline, whichever came last."""
    half = "model.fp16.safetensors"
    url = server.web("/models", {SINGLE: OLD[A], half: OLD[B]})
    for _ in range(2):
        await load(url, cache)
        await load(url, cache, variant="fp16")
        assert await offline(url, cache) == {SINGLE: OLD[A]}
        assert await offline(url, cache, variant="fp16") == {half: OLD[B]}


async def test_a_record_that_cannot_be_written(server: FaultServer, cache: Path) -> None:
    """It only saves work: without it the files are here all the same."""
    url = server.web("/models", OLD)
    folder = RepoCache(cache, url_repo_id(url)).folder
    folder.mkdir()
    (folder / "identities").write_bytes(b"in the way")
    assert (await load(url, cache))[1] == [A, B]
    assert (await load(url, cache))[1] == []
    assert await offline(url, cache) == {A: OLD[A], B: OLD[B]}
