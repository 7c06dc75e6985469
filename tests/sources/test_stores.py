"""Buckets of S3 and of Google, over real sockets: moto's server in a process of its own, behind a relay that counts."""

from __future__ import annotations

import base64
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, urlsplit

import numpy as np
import obstore
import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from obstore.store import AzureStore

import asyncfetch
from asyncfetch.cli.commands import run
from asyncfetch.cli.output import exit_code
from asyncfetch.errors import AccessError, AsyncfetchError, ChangedError, EntryNotFoundError, NotFoundError, SourceError
from asyncfetch.events import Event, Resolved, Retrying, Waiting, Warned
from asyncfetch.sources import stores
from asyncfetch.sources.signature import for_blob, with_header
from asyncfetch.sources.store_finder import _sha256_in
from asyncfetch.storage.checksums import parse_checksum

from ..kit.buckets import KEYS, killed_half_way, moto, put, without_stores
from ..kit.canaries import SIGNATURE, TOKEN, shown
from ..kit.child import in_child
from ..kit.files import safetensors_bytes, sharded_bytes
from ..kit.relay import Asked, Relay, Reply, Stall, relaying
from ..kit.small_model import ONE_LOOP

TENSORS = {f"layer.{n}.weight": np.arange(n, n + 40_000, dtype=np.float32) for n in range(4)}
FILES = sharded_bytes(TENSORS, 2)
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
BESIDE = {"config.json": b"{}", "1_Pooling/config.json": b"[]", "pytorch_model.bin": b"pickle"}
XML = f"<?xml version='1.0'?><Error><Code>{{}}</Code><Message>{{}}</Message><Signature>{SIGNATURE}</Signature></Error>"
ONE_LANE = asyncfetch.Policy(connections=1, min_split=1 << 30, attempts=2, backoff=0.001)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """moto's."""
    with moto() as told:
        yield told


@pytest.fixture
def relay(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """In front of moto: the endpoint that the environment names, with keys, and no other setting."""
    without_stores(monkeypatch, tmp_path)
    with relaying(port) as relay:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": relay.url, "AWS_REGION": "eu-west-1"}.items():
            monkeypatch.setenv(name, value)
        yield relay


@pytest.fixture(scope="module")
def bucket(port: int) -> str:
    """A checkpoint in a folder whose name wants quoting, what belongs to it, and objects that stand for folders."""
    marks = {"1_Pooling/": b"", "": b"", "../a b+cd/x.json": b"1"}
    files = {
        f"models/a b+c/{name}".replace("a b+c/../", ""): content for name, content in (FILES | BESIDE | marks).items()
    }
    put(port, "bucket", files)
    return "s3://bucket/models/a b+c"


def same(state: Any) -> bool:
    return set(state) == set(TENSORS) and all(np.array_equal(state[name], TENSORS[name]) for name in TENSORS)


def bodies(relay: Relay, name: str) -> list[tuple[int, int]]:
    """The first byte that each request for a file asked for, and how many were sent."""
    ranges = [(one.headers.get("range", one.headers.get("Range", "")), one.sent) for one in relay.of(name)]
    return [(int(text.removeprefix("bytes=").partition("-")[0] or 0), sent) for text, sent in ranges]


def keys_of(asked: Asked) -> dict[str, str]:
    return dict(parse_qsl(asked.query))


@pytest.mark.anyio
async def test_load(relay: Relay, bucket: str, tmp_path: Path) -> None:
    """Every loop: right tensors, held against the store's own hashes, each byte once; and then without the store."""
    events: list[Event] = []
    assert same(await asyncfetch.load_async(bucket, cache_dir=tmp_path, report=events.append))
    (resolved,) = [event for event in events if isinstance(event, Resolved)]
    assert resolved.source == f"{bucket}/"
    assert all(file.checksum is not None for file in resolved.files)
    assert not [event for event in events if isinstance(event, Warned)]
    assert sum(sent for name in (A, B) for _, sent in bodies(relay, name)) == sum(len(FILES[name]) for name in (A, B))
    asked = len(relay.asked)
    assert (
        asked == 1 + 2 * 3 + 1
    )  # the index; of each shard beginning, head and rest; the single file that is not there
    assert same(await asyncfetch.load_async(bucket, cache_dir=tmp_path, offline=True))
    assert len(relay.asked) == asked


def test_part_of_a_tensor(relay: Relay, bucket: str, tmp_path: Path) -> None:
    """`open` asks for the bytes of a slice, signed, and no shard but the one that has it."""
    with asyncfetch.open(bucket, cache_dir=tmp_path) as checkpoint:
        before = len(relay.asked)
        part = checkpoint.tensor("layer.3.weight", np.s_[30_000:30_010])
        assert np.array_equal(part, TENSORS["layer.3.weight"][30_000:30_010])
        (asked,) = relay.asked[before:]
    assert asked.path.endswith(B)
    assert asked.sent == 40
    assert "X-Amz-Signature" in keys_of(asked)


def test_download(relay: Relay, bucket: str, tmp_path: Path) -> None:
    """A checkpoint with what lies beside it, by the listing; then by names and globs; each file once."""
    assert same(asyncfetch.load(bucket, cache_dir=tmp_path))
    sent = len(bodies(relay, A))
    relay.script["/bucket"].append(Reply(503, XML.format("SlowDown", "Please reduce your request rate.")))
    path = Path(asyncfetch.download(bucket, cache_dir=tmp_path).path)
    here = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert here == {name: content for name, content in (FILES | BESIDE).items() if name != "pytorch_model.bin"}
    assert len(bodies(relay, A)) == sent + 1  # its beginning, which says that it is still the same
    offline = asyncfetch.download(bucket, cache_dir=tmp_path, offline=True)
    assert offline.path == path
    assert all(verified.ok for verified in asyncfetch.verify(bucket, cache_dir=tmp_path))
    other = asyncfetch.download(bucket, cache_dir=tmp_path / "other", include="*.bin", files="config.json")
    assert sorted(file.name for file in Path(other.path).iterdir()) == ["config.json", "pytorch_model.bin"]
    with pytest.raises(EntryNotFoundError, match=r"'nothing\*'.*It has"):
        asyncfetch.download(bucket, cache_dir=tmp_path, include="nothing*")


def test_a_companion_that_changes(relay: Relay, port: int, tmp_path: Path) -> None:
    """It is fetched again, and alone, into a snapshot of its own: nothing is ever added to one that is there."""
    put(port, "changes", FILES | {"config.json": b"old"})
    old = Path(asyncfetch.download("s3://changes", cache_dir=tmp_path).path)
    fetched = len(relay.of("config.json"))
    assert Path(asyncfetch.download("s3://changes", cache_dir=tmp_path).path) == old
    assert len(relay.of("config.json")) == fetched
    put(port, "changes", {"config.json": b"new"})
    new = Path(asyncfetch.download("s3://changes", cache_dir=tmp_path).path)
    assert [path.joinpath("config.json").read_bytes() for path in (old, new)] == [b"old", b"new"]
    assert asyncfetch.download("s3://changes", cache_dir=tmp_path, offline=True).path == new
    assert sum(sent for _, sent in bodies(relay, A)) == len(FILES[A]) + 2 * 65_536  # twice more its beginning alone


def test_a_listing_for_others_alone(relay: Relay, bucket: str, tmp_path: Path) -> None:
    """Who may read and not list gets the checkpoint, and is told; a glob cannot be answered then."""
    home = f"/{bucket.split('/')[2]}"
    refusal = Reply(403, XML.format("AccessDenied", "Access Denied"))
    relay.script[home].extend([refusal] * 2)
    events: list[Event] = []
    path = Path(asyncfetch.download(bucket, cache_dir=tmp_path, report=events.append).path)
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    (warned,) = [event.message for event in events if isinstance(event, Warned)]
    assert warned.startswith(f"{bucket}/ lists no files: only weights and index were downloaded (The listing of")
    with pytest.raises(AccessError, match=r"The listing of s3://.* was refused: the store answered 403 AccessDenied"):
        asyncfetch.download(bucket, cache_dir=tmp_path, include="*.json")


def test_a_key_that_is_no_path_everywhere(relay: Relay, port: int, tmp_path: Path) -> None:
    """It is left out, and a warning says so; all that is beside it comes."""
    put(port, "windows", FILES | {"config.json": b"{}", "logs\\run.json": b"1", "a:b.txt": b"2"})
    events: list[Event] = []
    snapshot = asyncfetch.download("s3://windows", cache_dir=tmp_path, report=events.append)
    assert {*snapshot.files} == {*FILES, "config.json"}
    (warned,) = [event.message for event in events if isinstance(event, Warned) and "left out" in event.message]
    assert warned.endswith("left out: 'a:b.txt', 'logs\\\\run.json'")


def test_a_key_that_is_no_path(relay: Relay, port: int, tmp_path: Path) -> None:
    """obstore lists no bucket that has one: the checkpoint comes, and who wants more is told of the key."""
    put(port, "odd-keys", FILES | {"a//b.json": b"1"})
    assert asyncfetch.download("s3://odd-keys", cache_dir=tmp_path).path.exists()
    with pytest.raises(SourceError, match=r'whose key is no path: .*"a//b\.json"'):
        asyncfetch.download("s3://odd-keys", cache_dir=tmp_path, include="*")


def test_killed(relay: Relay, port: int, tmp_path: Path) -> None:
    """After kill -9 the next run fetches what is missing and no more."""
    big = safetensors_bytes({"big": np.arange(2_500_000, dtype=np.float32)})
    put(port, "killed", {SINGLE: big}, hashed=False)
    rest = f"/killed/{SINGLE}"
    relay.script[rest].extend([lambda: None, Stall(6 << 20)])  # its beginning comes whole
    stop = killed_half_way(f"s3://killed/{SINGLE}", tmp_path / "cache", relay.stalled)
    before = len(relay.of(SINGLE))
    state = asyncfetch.load(f"s3://killed/{SINGLE}", cache_dir=tmp_path / "cache", policy=ONE_LANE)
    assert np.array_equal(state["big"], np.arange(2_500_000, dtype=np.float32))
    assert bodies(relay, SINGLE)[before:] == [(0, 65_536), (stop, len(big) - stop)]


def test_replaced_under_the_download(relay: Relay, port: int, tmp_path: Path) -> None:
    """Another object of the same size is noticed by its ETag, where there is no hash that would tell."""
    old, new = (safetensors_bytes({"w": np.full(50_000, value, np.float32)}) for value in (1, 2))
    put(port, "replaced", {SINGLE: old}, hashed=False)
    relay.script[f"/replaced/{SINGLE}"].extend(
        [lambda: None, lambda: put(port, "replaced", {SINGLE: new}, hashed=False)]
    )
    with pytest.raises(ChangedError):
        asyncfetch.load(f"s3://replaced/{SINGLE}", cache_dir=tmp_path)
    events: list[Event] = []
    state = asyncfetch.load(f"s3://replaced/{SINGLE}", cache_dir=tmp_path, report=events.append)
    assert state["w"][0] == 2
    (warned,) = [event.message for event in events if isinstance(event, Warned)]
    assert "no checksum is known" in warned


def test_replaced_while_its_link_is_renewed(relay: Relay, port: int, tmp_path: Path) -> None:
    """What a new link leads to is held against what was there before, or two files would be put together."""
    old, new = (safetensors_bytes({"w": np.full(50_000, value, np.float32)}) for value in (1, 2))
    put(port, "renewed", {SINGLE: old}, hashed=False)
    refused = Reply(403, XML.format("AccessDenied", "Request has expired"))
    relay.script[f"/renewed/{SINGLE}"].extend(
        [lambda: None, refused, lambda: put(port, "renewed", {SINGLE: new}, hashed=False)]
    )
    with pytest.raises(ChangedError, match="its size or its ETag"):
        asyncfetch.load(f"s3://renewed/{SINGLE}", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("headers", "known"),
    [
        ({"x-amz-checksum-sha256": f"{'A' * 43}="}, True),
        ({"x-amz-checksum-sha256": f"{'A' * 43}=", "x-amz-checksum-type": "FULL_OBJECT"}, True),
        ({"x-amz-checksum-sha256": f"{'A' * 43}=", "x-amz-checksum-type": "COMPOSITE"}, False),
        ({"x-amz-checksum-sha256": f"{'A' * 43}=-2"}, False),
        ({"x-amz-checksum-crc64nvme": "AAAAAAAAAAA=", "etag": f'"{"a" * 64}"'}, False),
    ],
)
def test_which_hashes_count(headers: dict[str, str], known: bool) -> None:
    """A SHA-256 of the whole object; not one of the hashes of its parts, and no ETag, whatever it looks like."""
    assert _sha256_in(headers) == (parse_checksum(f"sha256:{'0' * 64}", file="x") if known else None)


def test_links_that_have_expired(relay: Relay, bucket: str, tmp_path: Path) -> None:
    """A new one is made, and the file goes on; the store is asked why it was refused, and for no byte twice."""
    refused = Reply(403, XML.format("AccessDenied", "Request has expired"))
    relay.script[f"/{bucket[5:]}/{A}"].extend([lambda: None, refused])
    events: list[Event] = []
    assert same(asyncfetch.load(bucket, cache_dir=tmp_path, policy=ONE_LANE, report=events.append))
    assert [event.file for event in events if isinstance(event, Retrying)] == [A]
    assert sum(sent for _, sent in bodies(relay, A)) == len(FILES[A]) + 1


@pytest.mark.anyio
@ONE_LOOP
async def test_links_before_they_end(relay: Relay, bucket: str, tmp_path: Path) -> None:
    """One that is about to end is not used any more: another one is signed, which asks nobody."""
    async with asyncfetch.Client(cache_dir=tmp_path) as client:
        checkpoint = await client.open(bucket)
        (file,) = [one for one in checkpoint._located.files if one.name == A]
        place = checkpoint._located.origin
        assert file.target is not None
        assert file.target.until is not None
        assert 0 < file.target.until - time.monotonic() < stores.LIFETIME
        asked = len(relay.asked)
        assert await place.target(file, renew=False) is file.target
        file.target = replace(file.target, until=time.monotonic() - 1)
        again = await place.target(file, renew=False)
        assert again.until > time.monotonic()
        assert again.validator == file.target.validator
        assert len(relay.asked) == asked


@pytest.mark.parametrize(
    ("reply", "error", "said"),
    [
        (
            Reply(403, XML.format("InvalidAccessKeyId", "No such key in our records.")),
            AccessError,
            "InvalidAccessKeyId",
        ),
        (Reply(403, XML.format("AccessDenied", "Access Denied")), AccessError, "for what is not there, too"),
        (Reply(400, XML.format("ExpiredToken", "The provided token has expired.")), AccessError, "ExpiredToken"),
        (
            Reply(
                403,
                XML.format("RequestTimeTooSkewed", "The difference is too large."),
                {"date": format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)},
            ),
            AccessError,
            r"clock is 1[12]\d minutes behind",
        ),
        (Reply(404, XML.format("NoSuchBucket", "None")), NotFoundError, "There is no bucket"),
        (Reply(405, XML.format("MethodNotAllowed", "No")), asyncfetch.ProtocolError, "405 MethodNotAllowed No"),
    ],
    ids=["wrong key", "closed", "expired token", "clock", "no bucket", "other"],
)
def test_refusals(
    relay: Relay, bucket: str, tmp_path: Path, reply: Reply, error: type[AsyncfetchError], said: str
) -> None:
    """An error of ours at once, which says whose word it is, what was found and what to do; no candidate is tried."""
    relay.script[f"/{bucket[5:]}/{INDEX}"].append(reply)
    with pytest.raises(error, match=said) as caught:
        asyncfetch.load(bucket, cache_dir=tmp_path)
    assert len(relay.asked) == 1
    if error is AccessError:
        assert exit_code(caught.value) == 4
        assert "AWS_ACCESS_KEY_ID is used" in str(caught.value)


@pytest.mark.parametrize("status", [301, 400])
def test_another_region(relay: Relay, bucket: str, tmp_path: Path, status: int) -> None:
    """A bucket that lies in another region is asked there: AWS says so in a header, MinIO in its words."""
    words = XML.format("X", "wrong region").replace("</Error>", "<Region>us-west-2</Region></Error>")
    headers = {"x-amz-bucket-region": "us-west-2"} if status == 301 else {}
    relay.script[f"/{bucket[5:]}/{INDEX}"].append(Reply(status, words, headers))
    assert same(asyncfetch.load(bucket, cache_dir=tmp_path))
    regions = [keys_of(one)["X-Amz-Credential"].split("/")[2] for one in relay.asked]
    assert (regions[0], set(regions[1:])) == ("eu-west-1", {"us-west-2"})


def test_a_listing_in_another_region(relay: Relay, bucket: str, tmp_path: Path) -> None:
    """obstore does not tell which region; what an object's refusal says counts for the listing too."""
    elsewhere = Reply(301, "", {"x-amz-bucket-region": "us-west-2"})
    relay.script["/bucket"].append(elsewhere)
    relay.script[f"/{bucket[5:]}/config.json"].append(elsewhere)
    path = Path(asyncfetch.download(bucket, cache_dir=tmp_path, include="*.json").path)
    assert sorted(file.relative_to(path).as_posix() for file in path.rglob("*.json")) == [
        "1_Pooling/config.json", "config.json", INDEX,
    ]  # fmt: skip


def test_command_line(
    relay: Relay, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes buckets wherever it takes a source, and ends with 3 for what is not there."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert run(["download", bucket]) == 0
    assert run(["inspect", bucket, "--json"]) == 0
    assert "layer.3.weight" in capsys.readouterr().out
    for source, words in (
        ("s3://nobodys/x", "There is no bucket"),
        (f"{bucket}/../x", "made of dots"),
        (f"{bucket}/sub", "checkpoint"),
    ):
        with pytest.raises(AsyncfetchError, match=words) as caught:
            run(["load", source])
        assert exit_code(caught.value) == (2 if "dots" in words else 3)


def test_what_there_is_instead(relay: Relay, bucket: str, tmp_path: Path) -> None:
    """No checkpoint in this folder: what is there, and how to name it."""
    with pytest.raises(asyncfetch.CheckpointNotFoundError, match=r"Give the folder itself: s3://\w+/models/a b\+c\."):
        asyncfetch.load(bucket.rpartition("/")[0], cache_dir=tmp_path)


def test_anonymous(relay: Relay, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody's credentials are found nothing is signed; a refusal says what to set; no machine holds it up."""
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"{relay.url}/nothing-here")  # answers, and has no credentials
    assert same(asyncfetch.load(bucket, cache_dir=tmp_path))
    relay.script[f"/{bucket[5:]}/{INDEX}"].append(Reply(403, XML.format("AccessDenied", "Access Denied")))
    with pytest.raises(AccessError, match=r"no AWS credentials were found.*Set AWS_ACCESS_KEY_ID"):
        asyncfetch.load(bucket, cache_dir=tmp_path)
    read = [one for one in relay.asked if one.path.startswith(f"/{bucket[5:]}")]
    assert read
    assert not any(one.query for one in read)


def test_credentials_that_obstore_asks_for(
    relay: Relay, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a container: links are signed with them, and what their secret would sign besides is not asked for."""
    for name in KEYS:
        monkeypatch.delenv(name)
    (tmp_path / "token").write_text("a token")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{relay.url}/role")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    told = {"AccessKeyId": "AKIAROLE", "SecretAccessKey": TOKEN, "Token": TOKEN, "Expiration": "2099-01-01T00:00:00Z"}
    relay.script["/role"].append(Reply(200, json.dumps(told)))
    events: list[Event] = []
    assert same(asyncfetch.load(bucket, cache_dir=tmp_path, report=events.append))
    read = [keys_of(one) for one in relay.asked if one.path.startswith("/bucket/")]
    assert all(fields["X-Amz-Credential"].startswith("AKIAROLE/") for fields in read)
    assert all(shown(fields["X-Amz-Security-Token"]) for fields in read)
    assert len([event for event in events if isinstance(event, Warned)]) == 2  # no hash is known
    relay.script["/role"].append(Reply(403, TOKEN))
    with pytest.raises(AccessError, match=r"No credentials for s3://bucket/models/a b\+c/: answered 403\."):
        asyncfetch.load(bucket, cache_dir=tmp_path)


def test_a_profile_that_wants_boto3(relay: Relay, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What obstore does not know of AWS's settings boto3 does, checksums included; without it the error names it."""
    told = json.dumps({"Version": 1, "AccessKeyId": "AKIAPROCESS", "SecretAccessKey": "of no use"})
    (tmp_path / "told").write_text(told)
    (tmp_path / "settings").write_text(f"[profile mine]\ncredential_process = cat {tmp_path}/told\n")
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "settings"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    events: list[Event] = []
    assert same(asyncfetch.load(bucket, cache_dir=tmp_path / "cache", report=events.append))
    assert {keys_of(one)["X-Amz-Credential"].split("/")[0] for one in relay.asked} == {"AKIAPROCESS"}
    assert not [event for event in events if isinstance(event, Warned)]
    (tmp_path / "told").unlink()
    with pytest.raises(AccessError, match=r"No credentials for s3://bucket/models/a b\+c/"):
        asyncfetch.load(bucket, cache_dir=tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(SourceError, match=r"the AWS profile 'mine' is used\. Run: pip install boto3"):
        asyncfetch.load(bucket, cache_dir=tmp_path / "cache")


def test_places_of_the_same_name(
    relay: Relay, port: int, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one endpoint gave is not what another one has: not offline, and not after another look."""
    assert same(asyncfetch.load(bucket, cache_dir=tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}/")
    with pytest.raises(asyncfetch.OfflineError):
        asyncfetch.load(bucket, cache_dir=tmp_path, offline=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:1")
    with pytest.raises(SourceError, match=r"is no plain http\(s\) URL"):
        asyncfetch.load(bucket, cache_dir=tmp_path)


def test_without_the_extra(relay: Relay, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names it; what is cached needs it not."""
    asyncfetch.download(bucket, cache_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(SourceError, match=r"pip install 'asyncfetch\[cloud\]'"):
        asyncfetch.load(bucket, cache_dir=tmp_path)
    assert same(asyncfetch.load(bucket, cache_dir=tmp_path, offline=True))


def test_in_a_forked_child(relay: Relay, bucket: str, tmp_path: Path) -> None:
    """obstore would wait for ever there: an error says so."""
    told = in_child(
        """
import os, signal
source, cache = sys.argv[1:]
asyncfetch.inspect(source, cache_dir=cache)
reading, writing = os.pipe()
if not os.fork():
    signal.alarm(20)  # what waits for ever ends itself
    try:
        asyncfetch.inspect(source, cache_dir=cache)
    except errors.SourceError as error:
        os.write(writing, str(error).encode())
    os._exit(0)
os.close(writing)
tell(said=os.read(reading, 1000).decode())
""",
        bucket,
        tmp_path / "cache",
    )
    assert "forked" in told["said"]


def test_one_more_signed_header() -> None:
    """A link that is signed anew is the one that botocore makes for the same moment, header and all."""
    secret, name, value = KEYS["AWS_SECRET_ACCESS_KEY"], "x-amz-checksum-mode", "ENABLED"
    credentials = Credentials("AKIAEXAMPLE", secret, token="to/ken+==")

    def signed(**headers: str) -> AWSRequest:
        request = AWSRequest("HEAD", "https://s3.eu-west-1.amazonaws.com/b/a%20b/%C3%BC%2Bc.safetensors", headers)
        S3SigV4QueryAuth(credentials, "s3", "eu-west-1", expires=3600).add_auth(request)
        return request

    def second(request: AWSRequest) -> list[str]:
        return parse_qs(urlsplit(request.url).query)["X-Amz-Date"]

    plain, request = signed(), signed(**{name: value})
    while second(plain) != second(request):  # a new one began in between
        plain, request = signed(), signed(**{name: value})
    made = with_header("HEAD", plain.url, secret, name, value)
    assert sorted(parse_qsl(urlsplit(made).query)) == sorted(parse_qsl(urlsplit(request.url).query))


def test_names_that_azure_signs_as_they_are() -> None:
    """Of a plain name obstore's signature is ours; of another one it is that of the name without percents."""
    secret = base64.b64encode(KEYS["AWS_SECRET_ACCESS_KEY"].encode()).decode()
    store = AzureStore("box", account_name="mine", account_key=secret)
    plain, quoted = obstore.sign(store, "GET", ["a/b", "a/b c"], timedelta(hours=1))
    assert for_blob(plain, secret, "mine/box/a/b") == plain
    assert parse_qs(urlsplit(for_blob(quoted, secret, "mine/box/a/b"))[3]) == parse_qs(urlsplit(plain)[3])
    assert urlsplit(for_blob(quoted, secret, "mine/box/a/b c")).path == "/box/a/b%20c"


# -- Google ------------------------------------------------------------------------------------------------------


@pytest.fixture
def google(relay: Relay, bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same bucket by Google's name: the XML that its API speaks is that of S3."""
    monkeypatch.setenv("GOOGLE_BASE_URL", relay.url)
    return bucket.replace("s3://", "gs://")


def test_google_signs_offline(relay: Relay, google: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key of a service account links are signed here: for an hour, by it, for this object, and rightly."""
    private = rsa.generate_private_key(65537, 2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    told = {"type": "service_account", "client_email": "me@example.iam", "private_key": pem, "private_key_id": "1"}
    (tmp_path / "key.json").write_text(json.dumps(told))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    path = Path(asyncfetch.download(google, cache_dir=tmp_path / "cache").path)
    (tmp_path / "key.json").unlink()  # which is a secret, and is searched for no canary
    assert (path / "1_Pooling/config.json").read_bytes() == b"[]"
    asked = relay.of(A)[0]
    fields = keys_of(asked)
    assert fields["X-Goog-Expires"] == "3600"
    assert fields["X-Goog-Credential"].startswith("me@example.iam/")
    signature = bytes.fromhex(fields.pop("X-Goog-Signature"))
    query = "&".join(f"{quote(name, safe='')}={quote(fields[name], safe='')}" for name in sorted(fields))
    canonical = f"GET\n{asked.raw}\n{query}\nhost:storage.googleapis.com\n\nhost\nUNSIGNED-PAYLOAD"
    digest = hashes.Hash(hashes.SHA256())
    digest.update(canonical.encode())
    scope = fields["X-Goog-Credential"].partition("/")[2]
    text = f"GOOG4-RSA-SHA256\n{fields['X-Goog-Date']}\n{scope}\n{digest.finalize().hex()}"
    private.public_key().verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())


@pytest.mark.parametrize("name", ["load", "download"])
def test_two_calls_at_once(relay: Relay, port: int, tmp_path: Path, name: str) -> None:
    """Of an object without a SHA-256 too one call brings the bytes for both, by what the store tells of its version."""
    content = safetensors_bytes({"a": np.arange(200_000, dtype=np.float32)})
    put(port, "shared", {SINGLE: content, "config.json": b"{}"}, hashed=False)
    begun, waits = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert waits.wait(20)

    def hear(event: Event) -> None:
        if isinstance(event, Waiting):
            waits.set()

    relay.script[f"/shared/{SINGLE}"].extend([lambda: None, hold])
    options: dict[str, Any] = {"cache_dir": tmp_path, "policy": ONE_LANE}
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(asyncfetch.load, "s3://shared", **options)
        assert begun.wait(20)
        second = pool.submit(getattr(asyncfetch, name), "s3://shared", report=hear, **options)
        found = second.result(30)
        assert first.result(30).keys() == {"a"}
    assert {"a"} == found.keys() if name == "load" else found.files[SINGLE].read_bytes() == content
    assert sum(one.sent for one in relay.of(SINGLE) if one.sent > 1 << 16) == len(content) - (1 << 16)


def test_google_with_a_token(relay: Relay, google: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token goes along in a header, and to the store alone; nothing is signed."""
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", f"{TOKEN}\n")
    assert same(asyncfetch.load(google, cache_dir=tmp_path))
    assert relay.asked
    assert all(shown(one.headers["authorization"]) and not one.query for one in relay.asked)


def test_google_credentials_that_sign_nothing(google: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own want google-auth: where that is not installed the error says so, before anything is asked."""
    (tmp_path / "user.json").write_text(json.dumps({"type": "authorized_user", "refresh_token": "x"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "user.json"))
    monkeypatch.setitem(sys.modules, "obstore.auth.google", None)
    with pytest.raises(SourceError, match="pip install google-auth"):
        asyncfetch.load(google, cache_dir=tmp_path / "cache")
