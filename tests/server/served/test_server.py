"""The server, over real sockets: raw HTTP, httpx, and huggingface_hub as it is."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import anyio
import httpx
import pytest

from asyncfetch.errors import ChangedError, SourceError
from asyncfetch.server import Server
from asyncfetch.server.folders import catalog
from asyncfetch.server.server import _Recorder

from ...kit.canaries import TOKEN
from ..clients import hub
from ..services import metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncfetch.server.folders.repository import Listed

WEIGHTS = bytes(range(256)) * 12_000  # 3 MB: several chunks
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
CONFIG_ID = hashlib.sha1(b"blob 3\0{}\n").hexdigest()
OWN_CLIENT = pytest.mark.shows_secrets(reason="the links are logged by this test's own httpx client")
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ODD = ("q?x=1#f.safetensors", "ü.json", "100%20 real.txt", "sub/+&;=.json")


def build(folder: Path) -> Path:
    """A directory of two models, of two parts and of one, with a secret beside it."""
    model = folder / "root" / "org" / "name"
    files = {"model.safetensors": WEIGHTS, "config.json": b"{}\n", "empty.safetensors": b"", "empty.txt": b""}
    for name, data in {**files, **{name: name.encode() for name in ODD}}.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(data)
    (folder / "root" / "single").mkdir()
    (folder / "root" / "single" / "config.json").write_bytes(b"[]")
    (folder / "secret").write_bytes(b"secret")
    (model / "escape.json").symlink_to(folder / "secret")
    (model / "part.incomplete").write_bytes(b"part")
    (model / ".hidden").write_bytes(b"hidden")
    return folder / "root"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory for one test, which may change it."""
    return build(tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without options, of a directory that no test changes."""
    with Server(build(tmp_path_factory.mktemp("models"))) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of `server` that follows no redirect."""
    with httpx.Client(base_url=server.url) as made:
        yield made


def file_url(server: Server, file: str = "model.safetensors") -> str:
    return f"{server.url}/org/name/resolve/main/{quote(file)}"


def raw(url: str, request: str) -> bytes:
    """The answer to bytes that no HTTP library touches."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(f"{request}\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1"))
        return b"".join(iter(lambda: connection.recv(65536), b""))


# --- huggingface_hub, unmodified


def test_hub_snapshot(server: Server, tmp_path: Path) -> None:
    """snapshot_download brings every file, odd names too, and nothing that is not to be served."""
    path = Path(hub(server.url, tmp_path / "hf", "result = snapshot_download('org/name')"))
    files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert files.pop("model.safetensors") == WEIGHTS
    assert files.pop("config.json") == b"{}\n"
    assert files.pop("empty.txt") == files.pop("empty.safetensors") == b""
    assert files == {name: name.encode() for name in ODD}
    assert (path / "model.safetensors").resolve().name == SHA256
    commit = httpx.get(f"{server.url}/api/models/org/name").json()["sha"]
    assert path.name == commit


def test_hub_downloads_and_errors(server: Server, tmp_path: Path) -> None:
    """hf_hub_download works by branch and commit, for ids of one part, and gets the errors it knows."""
    code = """
def name(call, *args, **kwargs):
    try:
        return open(call(*args, **kwargs)).read()
    except Exception as error:
        return type(error).__name__
get = hf_hub_download
commit = model_info('org/name').sha
result = [
    name(get, 'org/name', 'config.json'),
    name(get, 'org/name', 'config.json', revision=commit),
    name(get, 'single', 'config.json'),
    name(get, 'org/name', 'absent'),
    name(get, 'org/name', 'config.json', revision='refs/pr/1'),
    name(get, 'org/absent', 'config.json'),
    name(get, 'org/name', 'escape.json'),
    file_exists('org/name', 'config.json'), file_exists('org/name', '.hidden'), repo_exists('org/absent'),
    name(model_info, 'org/name', revision='0' * 40),
]
"""
    assert hub(server.url, tmp_path / "hf", code) == [
        *("{}\n", "{}\n", "[]"),
        *("RemoteEntryNotFoundError", "RevisionNotFoundError", "RepositoryNotFoundError", "RemoteEntryNotFoundError"),
        *(True, False, False),
        "RevisionNotFoundError",
    ]
    negative = tmp_path / "hf" / "hub" / "models--org--name" / ".no_exist"
    assert next(negative.rglob("absent"), None)  # the 404 named the commit


def test_hub_listings(server: Server, tmp_path: Path) -> None:
    """model_info, list_repo_tree and get_paths_info agree on sizes and hashes."""
    code = """
api = HfApi()
info = api.model_info('org/name', files_metadata=True)
blob = next(s for s in info.siblings if s.rfilename == 'model.safetensors')
tree = {e.path: e for e in api.list_repo_tree('org/name', recursive=True, expand=True)}
flat = [e.path for e in api.list_repo_tree('org/name', path_in_repo='sub')]
paths = api.get_paths_info('org/name', ['model.safetensors', 'sub', 'absent'])
weights = tree['model.safetensors']
result = [
    [blob.size, blob.lfs.sha256, blob.lfs.pointer_size], [weights.size, weights.lfs.sha256, weights.lfs.pointer_size],
    blob.blob_id == weights.blob_id == paths[0].blob_id, tree['config.json'].blob_id, weights.xet_hash,
    weights.last_commit.oid == info.sha, type(tree['sub']).__name__, flat, [e.path for e in paths], len(tree),
]
"""
    result = hub(server.url, tmp_path / "hf", code)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{SHA256}\nsize {len(WEIGHTS)}\n"
    assert result[0] == result[1] == [len(WEIGHTS), SHA256, len(pointer)]
    assert result[2] is True
    assert result[3] == CONFIG_ID
    assert result[4] is None
    assert result[5:] == [True, "RepoFolder", ["sub/+&;=.json"], ["model.safetensors", "sub"], 9]


def test_hub_redirects_and_tokens(root: Path, tmp_path: Path) -> None:
    """With a token and storage on another origin, the token goes to the one and not to the other."""
    code = "result = open(hf_hub_download('org/name', 'model.safetensors'), 'rb').read().hex()"
    with ExitStack() as stack:
        storage = stack.enter_context(Server(root, secret=b"shared"))
        front = stack.enter_context(Server(root, secret=b"shared", token=TOKEN, redirect=storage.url))
        result = hub(front.url, tmp_path / "hf", code, TOKEN)
    assert bytes.fromhex(result) == WEIGHTS
    assert {(record.path, record.status) for record in storage.requests} == {(f"/cdn/{SHA256}", 200)}
    assert front.bytes_sent < len(WEIGHTS) <= storage.bytes_sent


def test_hub_private_and_gated(root: Path, tmp_path: Path) -> None:
    """Without the token a private model is missing and a gated one says so; with it both are there."""
    code = """
result = []
for name in 'org/name', 'single':
    try:
        result.append(model_info(name).gated)
    except RepositoryNotFoundError as error:
        result.append(type(error).__name__)
"""
    with Server(root, token=TOKEN, gated=frozenset({"single"})) as server:
        assert hub(server.url, tmp_path / "a", code) == ["RepositoryNotFoundError", "GatedRepoError"]
        assert hub(server.url, tmp_path / "b", code, TOKEN) == [False, "manual"]


# --- files


def test_heads(client: httpx.Client) -> None:
    """HEAD tells commit, hash and size: by sha256 for weights, by git blob id for small files."""
    weights = client.head("/org/name/resolve/main/model.safetensors")
    assert (weights.status_code, weights.content) == (200, b"")
    assert weights.headers["etag"] == weights.headers["x-linked-etag"] == f'"{SHA256}"'
    assert weights.headers["content-length"] == weights.headers["x-linked-size"] == str(len(WEIGHTS))
    assert weights.headers["accept-ranges"] == "bytes"
    assert "content-encoding" not in weights.headers
    small = client.head("/org/name/resolve/main/config.json")
    assert small.headers["etag"] == f'"{CONFIG_ID}"'
    assert (small.headers["x-linked-etag"], small.headers["x-linked-size"]) == (small.headers["etag"], "3")
    commit = small.headers["x-repo-commit"]
    assert commit == weights.headers["x-repo-commit"]
    assert client.head(f"/org/name/resolve/{commit}/config.json").status_code == 200
    assert client.head(f"/org/name/resolve/{commit[:7]}/config.json").headers["x-error-code"] == "RevisionNotFound"


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("0-0", 0, 0),
        ("5-", 5, len(WEIGHTS) - 1),
        ("-7", len(WEIGHTS) - 7, len(WEIGHTS) - 1),
        ("1000000-2500000", 1000000, 2500000),
    ],
)
def test_ranges(client: httpx.Client, asked: str, first: int, last: int) -> None:
    """A range brings exactly its bytes and says which of how many they are."""
    answer = client.get("/org/name/resolve/main/model.safetensors", headers={"Range": f"bytes={asked}"})
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(WEIGHTS)}"
    assert answer.headers["content-length"] == str(last - first + 1)
    assert answer.content == WEIGHTS[first : last + 1]


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=9-5", "lines=1-2"])
def test_ranges_that_are_ignored(client: httpx.Client, asked: str) -> None:
    """What is not one range brings the whole file."""
    answer = client.get("/org/name/resolve/main/model.safetensors", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, WEIGHTS)


@pytest.mark.parametrize(("file", "size"), [("model.safetensors", len(WEIGHTS)), ("empty.safetensors", 0)])
def test_ranges_past_the_end(client: httpx.Client, file: str, size: int) -> None:
    """416 tells the true size; an empty file has no range at all."""
    answer = client.get(f"/org/name/resolve/main/{file}", headers={"Range": f"bytes={size}-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{size}"
    assert answer.headers["x-repo-commit"]


def test_a_head_ignores_ranges(client: httpx.Client) -> None:
    """Range is defined for GET alone (RFC 9110, 14.2)."""
    answer = client.head("/org/name/resolve/main/model.safetensors", headers={"Range": "bytes=1-2"})
    assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(WEIGHTS)))


@pytest.mark.parametrize(
    ("validator", "status"),
    [
        (f'"{SHA256}"', 206),
        (f'W/"{SHA256}"', 200),
        ('"other"', 200),
        (SHA256, 200),
        ("Tue, 24 Nov 2026 00:00:00 GMT", 200),
    ],
)
def test_if_range(client: httpx.Client, validator: str, status: int) -> None:
    """Only the very ETag keeps the range (RFC 9110, 13.1.5: strong comparison)."""
    headers = {"Range": "bytes=0-9", "If-Range": validator}
    answer = client.get("/org/name/resolve/main/model.safetensors", headers=headers)
    assert answer.status_code == status
    assert answer.content == (WEIGHTS[:10] if status == 206 else WEIGHTS)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "empty.txt"])
def test_who_has_a_file_is_told_so(client: httpx.Client, name: str) -> None:
    """Without its bytes, also where a range is asked for; a part of another one is refused (RFC 9110, 13.2.2)."""
    url = f"/org/name/resolve/main/{name}"
    whole = client.get(url)
    etag = whole.headers["etag"]
    for method in ("GET", "HEAD"):
        for more in ({}, {"Range": "bytes=0-"}, {"If-Modified-Since": "Tue, 24 Nov 2015 00:00:00 GMT"}):
            known = client.request(method, url, headers={"If-None-Match": f'"x", W/{etag}', **more})
            assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", etag)
            assert "content-type" not in known.headers
            other = client.request(method, url, headers={"If-Match": f"W/{etag}", **more})
            assert (other.status_code, other.headers["x-error-code"]) == (412, "PreconditionFailed")
        lines = [("If-None-Match", '"x"'), ("If-None-Match", etag)]
        assert client.request(method, url, headers=lines).status_code == 304
    for headers in ({"If-None-Match": '"x"'}, {"If-Match": etag}, {"If-Modified-Since": whole.headers["date"]}):
        assert client.get(url, headers=headers).content == whole.content


@pytest.mark.parametrize("file", ["empty.safetensors", "empty.txt"])
def test_empty_files(client: httpx.Client, file: str) -> None:
    """An empty file is 200 with a length of 0."""
    answer = client.get(f"/org/name/resolve/main/{file}")
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "0", b"")


@pytest.mark.parametrize("file", ODD)
def test_odd_names(client: httpx.Client, file: str) -> None:
    """A percent-encoded name is decoded once, with its slashes encoded or not."""
    for path in (quote(file), quote(file, safe="")):
        assert client.get(f"/org/name/resolve/main/{path}").content == file.encode()


# --- what must not come out


@pytest.mark.parametrize(
    "path",
    [
        "/org/name/resolve/main/../../../../secret",
        "/org/name/resolve/main/%2e%2e/%2e%2e/%2e%2e/secret",
        "/org/name/resolve/main/..%2f..%2f..%2fsecret",
        "/org/name/resolve/main//etc/passwd",
        "/org/name/resolve/main/sub/../config.json",
        "/org/name/resolve/main/./config.json",
        "/org/name/resolve/main/escape.json",
        "/org/name/resolve/main/.hidden",
        "/org/name/resolve/main/part.incomplete",
        "/org/name/resolve/main/config.json%00",
        "/org/name/resolve/main/",
        "/../resolve/main/secret",
        "/org/../resolve/main/secret",
        "/%2e%2e/%2e%2e/resolve/main/secret",
        "/org%2fname%2f../resolve/main/config.json",
        "/org/resolve/main/name/config.json",
        "/api/models/org/name/tree/main/..",
        "/api/models/org/name/tree/main/%2e%2e%2f%2e%2e",
        "/api/models/../..",
    ],
)
def test_traversal(server: Server, path: str) -> None:
    """No spelling of a path leaves the model, or reaches what is not served."""
    status = int(raw(server.url, f"GET {path} HTTP/1.1").split(b" ", 2)[1])
    assert status in (401, 404)


@pytest.mark.parametrize(
    "path", ["main/a%0d%0aX-Evil:%201", "main/%F0%9F%92%A5", "x%0dX-Evil:%201/a", "x%0d%0aX-Evil:%201/a", "%E4%B8%AD/a"]
)
def test_header_injection(client: httpx.Client, path: str) -> None:
    """What a path says cannot become a header, nor break the answer."""
    answer = client.get(f"/org/name/resolve/{path}")
    assert answer.status_code == 404
    assert "x-evil" not in answer.headers


def test_errors(client: httpx.Client) -> None:
    """Each error has the Hub's status and code; a missing file names the commit."""
    entry = client.get("/org/name/resolve/main/absent")
    assert (entry.status_code, entry.headers["x-error-code"]) == (404, "EntryNotFound")
    assert len(entry.headers["x-repo-commit"]) == 40
    assert "absent" in entry.headers["x-error-message"]
    revision = client.get("/org/name/resolve/refs%2Fpr%2F1/config.json")
    assert (revision.status_code, revision.headers["x-error-code"]) == (404, "RevisionNotFound")
    model = client.get("/org/absent/resolve/main/config.json")
    assert (model.status_code, model.headers["x-error-code"]) == (401, "RepoNotFound")
    folder = client.get("/api/models/org/name/tree/main/additional_chat_templates")
    assert (folder.status_code, folder.headers["x-error-code"]) == (404, "EntryNotFound")
    assert client.post("/org/name/resolve/main/config.json").status_code == 405
    assert client.get("/api/models/org/name/paths-info/main").status_code == 405
    dataset = client.get("/api/datasets/org/name")
    assert (dataset.status_code, dataset.headers["x-error-code"]) == (401, "RepoNotFound")


def test_errors_of_requests(client: httpx.Client) -> None:
    """A malformed cursor, limit or body is 400, and a body without end is cut off."""
    assert client.get("/api/models/org/name/tree/main?cursor=%C3%A9").status_code == 400
    assert client.get("/api/models/org/name/tree/main?limit=x").status_code == 400
    paths = "/api/models/org/name/paths-info/main"
    assert client.post(paths, json=[1]).status_code == 400
    assert client.post(paths, content=bytes(9_000_000)).status_code == 413
    assert [entry["path"] for entry in client.post(paths, json={"paths": ["sub", "x"]}).json()] == ["sub"]


# --- tokens, gates, signed URLs


def test_tokens(root: Path) -> None:
    """Without the token all is hidden; a wrong one is called wrong, in the words that clients know."""
    with Server(root, token=TOKEN) as server, httpx.Client(base_url=server.url) as client:
        for path in ("/org/name/resolve/main/config.json", "/api/models/org/name", "/api/models/org/name/tree/main"):
            assert client.get(path).headers["x-error-code"] == "RepoNotFound"
            assert client.get(path, headers=BEARER).status_code == 200
            wrong = client.get(path, headers={"Authorization": f"Bearer {TOKEN}x"})
            assert (wrong.status_code, wrong.headers["x-error-message"]) == (
                401,
                "Invalid credentials in Authorization header",
            )
            assert wrong.headers["x-error-code"] == "InvalidCredentials"
        assert client.get("/api/whoami-v2").status_code == 401
        assert client.get("/api/whoami-v2", headers=BEARER).json()["name"] == "local"
        assert TOKEN not in repr(server.requests)


def test_gates_have_no_side_door(root: Path) -> None:
    """A gated model stays gated under every other name that leads to its files."""
    (root / "alias").mkdir()
    (root / "alias" / "name").symlink_to(root / "org" / "name")
    (root / "org" / "README.md").write_bytes(b"makes org a model that holds org/name")
    with Server(root, gated=frozenset({"org/name"})) as server, httpx.Client(base_url=server.url) as client:
        for path in (
            "/org/name/resolve/main",
            "/alias/name/resolve/main",
            "/org/resolve/main/name",
            "/name/sub/resolve/main",
        ):
            answer = client.get(f"{path}/config.json")
            assert answer.headers.get("x-error-code") == ("RepoNotFound" if path.startswith("/name") else "GatedRepo")
        assert client.get("/org/name/resolve/main/config.json").status_code == 403
        assert client.get("/single/resolve/main/config.json").status_code == 200


@OWN_CLIENT
def test_redirects(root: Path) -> None:
    """LFS files redirect to a signed URL with their metadata; small ones come at once."""
    with Server(root, redirect=True) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/org/name/resolve/main/config.json").content == b"{}\n"
        for answer in (client.head(file_url(server)), client.get(file_url(server), headers={"Range": "bytes=1-2"})):
            assert answer.status_code == 302
            assert answer.headers["x-linked-etag"] == f'"{SHA256}"'
            assert answer.headers["x-linked-size"] == str(len(WEIGHTS))
            assert len(answer.headers["x-repo-commit"]) == 40
        location = answer.headers["location"]
        assert location.startswith(f"{server.url}/cdn/{SHA256}?")
        assert {"X-Amz-Signature", "Expires"} <= set(parse_qs(urlsplit(location).query))
        part = client.get(location, headers={"Range": "bytes=1-2"})
        assert (part.status_code, part.content) == (206, WEIGHTS[1:3])
        assert "x-repo-commit" not in part.headers
        odd = client.get("/org/name/resolve/main/q%3Fx=1%23f.safetensors", follow_redirects=True)
        assert odd.content == ODD[0].encode()


@OWN_CLIENT
def test_signed_urls_are_checked(root: Path) -> None:
    """A token, a changed signature, another file and an old URL are each refused, as by S3."""
    with Server(root, redirect=True) as server, httpx.Client(base_url=server.url) as client:
        location = client.get(file_url(server)).headers["location"]
        assert client.get(location, headers=BEARER).status_code == 400
        for broken in (
            location.replace("Signature=", "Signature=0"),
            location.replace("model.safe", "q.safe"),
            location.split("?")[0],
        ):
            answer = client.get(broken)
            assert (answer.status_code, "SignatureDoesNotMatch" in answer.text) == (403, True)
        (root / "org" / "name" / "model.safetensors").write_bytes(b"new")
        assert client.get(location).status_code == 404
    with Server(root, redirect=True, lifetime=-1) as server:
        expired = httpx.get(httpx.get(file_url(server)).headers["location"])
        assert (expired.status_code, "expired" in expired.text) == (403, True)


# --- listings and changes


def test_pages(root: Path) -> None:
    """A long listing comes in pages of 1000 that are linked on this very host, without gap or overlap."""
    for number in range(2100):
        (root / "single" / f"{number % 7}").mkdir(exist_ok=True)
        (root / "single" / f"{number % 7}" / f"{number}.txt").write_bytes(b"")
    with Server(root) as server:
        url, pages = f"{server.url}/api/models/single/tree/main?recursive=true&expand=false", []
        while url:
            answer = httpx.get(url)
            pages.append([entry["path"] for entry in answer.json()])
            url = answer.links.get("next", {}).get("url", "")
            assert not url or url.startswith(server.url)
        top = httpx.get(f"{server.url}/api/models/single/tree/main").json()
    assert [len(page) for page in pages] == [1000, 1000, 108]
    assert len({path for page in pages for path in page}) == 2108
    assert [entry["path"] for entry in top] == [*"0123456", "config.json"]


def test_a_changed_file_is_a_new_commit(root: Path) -> None:
    """After a change the new bytes come under a new commit, and the old commit is gone."""
    with Server(root) as server, httpx.Client(base_url=server.url) as client:
        before = client.head("/org/name/resolve/main/config.json").headers
        (root / "org" / "name" / "config.json").write_bytes(b"[]\n")
        after = client.get("/org/name/resolve/main/config.json")
        assert after.content == b"[]\n"
        assert after.headers["etag"] != before["etag"]
        old = client.get(f"/org/name/resolve/{before['x-repo-commit']}/config.json")
        assert old.headers["x-error-code"] == "RevisionNotFound"


def test_a_burst_of_requests(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look at the disk counts for a burst; bytes are those of the hash all the same, and soon all is seen."""
    url, config = "/api/models/single", "/single/resolve/main/config.json"
    with Server(root) as server, httpx.Client(base_url=server.url) as client:
        assert client.get(url).status_code == 200
        (root / "single" / "new").write_bytes(b"new")
        while "new" not in client.get(url).text:
            pass
        monkeypatch.setattr(catalog, "BURST", 60)
        client.head(config)
        (root / "single" / "config.json").write_bytes(b"[1]")
        answer = client.get(config)
        assert (answer.content, client.get("/single/resolve/main/another").status_code) == (b"[1]", 404)
        assert answer.headers["etag"] == f'"{hashlib.sha1(b"blob 3" + bytes(1) + b"[1]").hexdigest()}"'
        (root / "single" / "config.json").unlink()
        assert client.get(config).headers["x-error-code"] == "EntryNotFound"
    with Server(root, gated=frozenset({"single"})) as server:
        assert [httpx.get(f"{server.url}{config}").status_code for _ in range(3)] == [403] * 3


def test_files_that_do_not_hold_still(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While files change under the hash the answer is 503, to be asked again."""

    def changing(listed: Listed, *_: object) -> str:
        raise ChangedError(listed.path, "it was written to")

    monkeypatch.setattr("asyncfetch.server.folders.hashing.hash_file", changing)
    with Server(root) as server:
        answer = httpx.get(file_url(server))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "changed at its source" in answer.headers["x-error-message"]


def test_a_file_cut_short_ends_the_connection(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A body that cannot be completed is never completed with other bytes. What went of it is counted to the byte."""
    caplog.set_level(logging.INFO, "asyncfetch.server.access")
    weights = root / "org" / "name" / "model.safetensors"
    os.truncate(weights, 1 << 25)
    with Server(root) as server, httpx.stream("GET", file_url(server)) as answer:
        received = answer.iter_raw()
        pieces = [next(received)]
        os.truncate(weights, 1 << 20)
        with pytest.raises(httpx.RemoteProtocolError):
            pieces.extend(received)
        got = sum(map(len, pieces))
        assert server.bytes_sent == got
        assert metric(server.url, 'served_bytes_total{origin="own"') == got
    (line,) = [line for line in caplog.messages if line.endswith("broken off")]
    assert line.split()[4] == str(got)


# --- running


def test_counters(root: Path) -> None:
    """Requests and body bytes are counted; a HEAD has none."""
    path = "/single/resolve/main/config.json"
    with Server(root) as server, httpx.Client(base_url=server.url) as client:
        client.head(path)
        client.head("/absent/resolve/main/x")
        assert server.bytes_sent == 0
        client.get(path, headers={"Range": "bytes=0-0"})
    assert server.bytes_sent == 1
    assert server.requests == (
        ("HEAD", path, None, 200),
        ("HEAD", "/absent/resolve/main/x", None, 401),
        ("GET", path, "bytes=0-0", 206),
    )


def test_stopping_with_a_client_that_does_not_read(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A stalled download does not hold the server, and the end is silent and leaves nothing listening."""
    os.truncate(root / "org" / "name" / "model.safetensors", 1 << 25)
    with httpx.Client() as client:
        with Server(root) as server:
            stalled = client.send(client.build_request("GET", file_url(server)), stream=True)
            started = time.monotonic()
        assert time.monotonic() - started < 5
        stalled.close()
        with pytest.raises(httpx.ConnectError):
            client.get(server.url)
    assert not server._thread.is_alive()
    assert capfd.readouterr() == ("", "")


def test_stopping_while_hashing(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A hash that would take minutes ends with the server."""
    os.truncate(root / "org" / "name" / "model.safetensors", 1 << 40)
    with Server(root) as server:
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(b"GET /api/models/org/name HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.3)
            started = time.monotonic()
            server.__exit__()
    assert time.monotonic() - started < 5
    assert not server._thread.is_alive()
    assert capfd.readouterr().err == ""


def test_descriptors_are_closed(server: Server) -> None:
    """Downloads, whole, broken off or of a range, leave no file open."""
    for _ in range(5):
        httpx.get(file_url(server), headers={"Range": "bytes=0-9"})
        with httpx.stream("GET", file_url(server)) as answer:
            next(answer.iter_raw())
    deadline = time.monotonic() + 5
    while open_files("model.safetensors") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert open_files("model.safetensors") == []


def open_files(name: str) -> list[str]:
    """What this process, and so the server in it, holds open under `name`."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(link))
    return [path for path in found if path.endswith(name)]


def test_addresses(root: Path) -> None:
    """A taken port and a host that is not here are errors of ours; there is no URL before the start."""
    with Server(root) as server:
        port = urlsplit(server.url).port
        assert port is not None
        with pytest.raises(SourceError, match=f"127.0.0.1:{port}"):
            Server(root, port=port).__enter__()
    with pytest.raises(SourceError, match=r"192\.0\.2\.1"):
        Server(root, host="192.0.2.1").__enter__()
    with pytest.raises(RuntimeError):
        _ = Server(root).url
    with pytest.raises(SourceError, match="not a directory"):
        Server(root / "single" / "config.json")


SERVE = """
import sys
from asyncfetch.server import serve
serve(sys.argv[1], port=0, on_ready=lambda url: print(url, flush=True))
print("returned", flush=True)
"""


def test_serve_until_interrupted(root: Path) -> None:
    """In the foreground Ctrl-C ends it promptly and without a word, even with a stalled download."""
    os.truncate(root / "org" / "name" / "model.safetensors", 1 << 25)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process, httpx.Client() as client:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        stalled = client.send(
            client.build_request("GET", f"{url}/org/name/resolve/main/model.safetensors"), stream=True
        )
        assert stalled.status_code == 200
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=10)
        finally:
            process.kill()
        stalled.close()
    assert (process.returncode, out, err) == (0, "returned\n", "")


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_the_extra_is_named(missing: str) -> None:
    """Without the extra the import says what to install."""
    code = f"import sys; sys.modules[{missing!r}] = None\nimport asyncfetch.server"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith("asyncfetch.errors.SourceError: Serving needs starlette and uvicorn: ")
    assert missing in last.partition(": Serving needs starlette and uvicorn: ")[2]
    assert last.endswith("Run: pip install 'asyncfetch[serve]'")


def test_made_in_another_loop(root: Path) -> None:
    """Where a server is made says nothing about the loop in which it serves."""

    async def make() -> Server:
        return Server(root)

    with anyio.run(make, backend="trio") as server:
        assert httpx.get(f"{server.url}/single/resolve/main/config.json").content == b"[]"


def test_records_are_bounded() -> None:
    """A server that runs for months keeps the last requests, and counts all bytes."""
    kept = 10_000

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"12"})

    async def send(_message: Any) -> None:
        pass

    async def requests() -> None:
        for number in range(kept + 7):
            scope = {"type": "http", "method": "GET", "path": f"/{number}", "raw_path": b"/%d" % number, "headers": []}
            await recorder(scope, send, send)

    recorder = _Recorder(app)
    asyncio.run(requests())
    assert [recorder.records[0].path, recorder.records[-1].path] == ["/7", f"/{kept + 6}"]
    assert (len(recorder.records), recorder.bytes_sent) == (kept, 2 * (kept + 7))
