"""The Hub's protocol as real clients speak it: huggingface_hub as it is, and what others were recorded to ask for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from asyncfetch.server import Server
from asyncfetch.server.folders.repository import Listed, Repository, Signature
from asyncfetch.server.served.page import home_page, repository_page

from ...kit.canaries import TOKEN
from ..clients import hub
from ..trees import write

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARDS = [save({"a": np.zeros((2, 3), np.float32)}), save({"b": np.zeros(5, np.float16), "c": np.zeros(2, np.float32)})]
NAMES = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
INDEX = json.dumps({"metadata": {}, "weight_map": {"a": NAMES[0], "b": NAMES[1], "c": NAMES[1]}}).encode()
ETAG = hashlib.sha256(SHARDS[0]).hexdigest()
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{ETAG}\nsize {len(SHARDS[0])}\n".encode()
COMMIT, OTHER = "c" * 40, "d" * 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded model, two plain ones, a dataset, and a repository of a hub cache, of which one file is not here."""
    root = tmp_path_factory.mktemp("served")
    model = root / "org" / "sharded"
    for name, data in {**dict(zip(NAMES, SHARDS, strict=True)), "model.safetensors.index.json": INDEX}.items():
        write(model / name, data)
    write(model / "config.json", b"{}\n")
    write(model / "onnx" / "page.html", b"<script>")
    write(root / "org" / "other" / "x")
    write(root / "single" / "x")
    write(root / "datasets" / "org" / "ds" / "data" / "train.csv", b"a,b\n1,2\n")
    cached = root / "models--org--cached"
    for commit in (COMMIT, OTHER):
        write(cached / "snapshots" / commit / "config.json", commit.encode())
    write(cached / "refs" / "main", COMMIT.encode())
    write(cached / "refs" / "refs" / "pr" / "1", OTHER.encode())
    listing = {"format_version": 1, "files": {"pruned.json": {"size": 1, "blob_id": "a" * 40}}}
    write(cached / "trees" / f"{OTHER}.json", json.dumps(listing).encode())
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    """A server without options, of a directory that no test changes."""
    with Server(root) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of `server`."""
    with httpx.Client(base_url=server.url) as made:
        yield made


def test_hub_asks_about_models(server: Server, tmp_path: Path) -> None:
    """What HfApi asks beside files: listings, refs, commits, access, parameters, `HEAD`."""
    code = """
api = HfApi()
refs, commits = api.list_repo_refs('org/cached', include_pull_requests=True), api.list_repo_commits('org/cached')
info = api.model_info('org/sharded', expand=['safetensors', 'siblings', 'sha', 'cardData'])
api.auth_check('org/sharded')
try:
    missing = api.auth_check('org/absent')
except RepositoryNotFoundError:
    missing = 'missing'
result = [
    [m.id for m in api.list_models()], [m.id for m in api.list_models(search='SHARD')],
    [m.id for m in api.list_models(author='org', limit=2)], [m.id for m in api.list_models(filter='onnx')],
    [d.id for d in api.list_datasets()],
    [[ref.name, ref.target_commit] for ref in refs.branches], [ref.ref for ref in refs.pull_requests],
    [c.commit_id for c in commits], api.list_repo_refs('single').branches[0].name, missing,
    info.safetensors.parameters, info.safetensors.total, len(info.siblings), info.author,
    api.get_safetensors_metadata('org/sharded').parameter_count,
    api.model_info('org/sharded', revision='HEAD').sha == info.sha,
    api.list_repo_commits('single')[0].commit_id == api.model_info('single').sha,
]
"""
    parameters = {"F32": 8, "F16": 5}
    assert hub(server.url, tmp_path / "hf", code) == [
        ["org/cached", "org/other", "org/sharded", "single"],
        ["org/sharded"],
        ["org/cached", "org/other"],
        [],
        ["org/ds"],
        [["main", COMMIT]],
        ["refs/pr/1"],
        [COMMIT],
        "main",
        "missing",
        parameters,
        13,
        5,
        None,
        parameters,
        True,
        True,
    ]


def test_hub_downloads_datasets_and_caches(server: Server, tmp_path: Path) -> None:
    """Datasets come by their own addresses, commits of a cache by their names, and what is not here is no `no`."""
    code = """
from pathlib import Path
def outcome(*args, **kwargs):
    try:
        return Path(hf_hub_download(*args, **kwargs)).read_text()
    except Exception as error:
        return type(error).__name__
data = Path(snapshot_download('org/ds', repo_type='dataset'))
result = [
    (data / 'data' / 'train.csv').read_text(), HfFileSystem().cat('datasets/org/ds/data/train.csv').decode(),
    outcome('org/cached', 'config.json'), outcome('org/cached', 'config.json', revision='refs/pr/1'),
    outcome('org/cached', 'pruned.json', revision='refs/pr/1'), outcome('org/cached', 'unknown.json'),
    outcome('org/cached', 'absent.json', revision='refs/pr/1'),
    sorted(str(path.name) for path in Path(constants.HF_HUB_CACHE).rglob('.no_exist/*/*')),
]
"""
    assert hub(server.url, tmp_path / "hf", f"from huggingface_hub import constants{code}") == [
        *("a,b\n1,2\n", "a,b\n1,2\n", COMMIT, OTHER),
        *("LocalEntryNotFoundError", "RemoteEntryNotFoundError", "RemoteEntryNotFoundError"),
        ["absent.json"],
    ]


SINGLE_BYTE = {"accept": "application/vnd.xet-fileinfo+json, */*", "accept-encoding": "identity", "range": "bytes=0-0"}
JS_EXPAND = "expand=pipeline_tag&expand=private&expand=gated&expand=downloads&expand=likes&expand=lastModified"
MODEL, API = "/org/sharded", "/api/models/org/sharded"
RECORDED = {
    "npm @huggingface/hub": [
        ("GET", f"{API}/tree/main?recursive=true&expand=true", {}, 200),
        ("HEAD", f"{MODEL}/raw/main/config.json", {}, 200),
        ("GET", f"{MODEL}/resolve/main/{NAMES[0]}", SINGLE_BYTE, 206),
        ("GET", f"{MODEL}/resolve/main/config.json", SINGLE_BYTE, 206),
        ("GET", f"{API}/revision/HEAD?{JS_EXPAND}", {}, 200),
        ("GET", f"{API}/commits/main?limit=100", {}, 200),
        ("HEAD", f"{MODEL}/raw/main/model.safetensors", {}, 404),
        ("HEAD", f"{MODEL}/raw/main/model.safetensors.index.json", {}, 200),
        ("GET", f"{API}/revision/main?{JS_EXPAND}&expand=sha", {}, 200),
        ("GET", "/api/models?search=shard&limit=100", {}, 200),
    ],
    "npm @huggingface/transformers": [
        ("GET", f"{MODEL}/resolve/main/config.json", {"accept-encoding": "identity", "range": "bytes=0-0"}, 206),
        ("GET", f"{MODEL}/resolve/main/config.json", {"accept-encoding": "gzip, deflate"}, 200),
    ],
    "llama.cpp -hf": [  # common/hf-cache.cpp
        ("GET", f"{API}/refs", {}, 200),
        ("GET", f"{API}/tree/{{commit}}?recursive=true", {}, 200),
        ("HEAD", f"{MODEL}/resolve/{{commit}}/{NAMES[1]}", {}, 200),
        ("GET", f"{MODEL}/resolve/{{commit}}/{NAMES[1]}", {"range": "bytes=8-"}, 206),
    ],
    "hf-hub (Rust)": [
        ("GET", f"{API}/revision/main", {}, 200),
        ("GET", f"{MODEL}/resolve/main/{NAMES[1]}", {"range": "bytes=0-0"}, 206),
    ],
    "transformers": [
        ("HEAD", f"{MODEL}/resolve/main/adapter_config.json", {"accept-encoding": "identity"}, 404),
        ("GET", f"{API}/tree/main/additional_chat_templates?recursive=false&expand=false", {}, 404),
        ("GET", "/api/agent-harnesses", {}, 404),
    ],
    "datasets": [
        ("GET", "/api/datasets/org/ds/revision/main", {}, 200),
        ("HEAD", "/datasets/org/ds/resolve/main/data/train.csv", {"accept-encoding": "identity"}, 200),
        ("GET", "/datasets/org/ds/raw/main/data/train.csv", {}, 200),
    ],
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_requests(client: httpx.Client, name: str) -> None:
    """What other clients send is answered as they need it, without a word of Xet, and with a code for each refusal."""
    commit = client.get(f"{API}/refs").json()["branches"][0]["targetCommit"]
    for method, path, headers, status in RECORDED[name]:
        answer = client.request(method, path.format(commit=commit), headers=headers)
        assert (path, answer.status_code) == (path, status)
        assert "xet" not in (str(answer.headers) + answer.text).lower()
        assert ("x-error-code" in answer.headers) is (status >= 400)
        if status == 206:
            assert answer.headers["content-range"].startswith("bytes ")
        if "/resolve/" in path and status < 400:
            assert answer.headers["x-linked-size"].isdigit()
            assert answer.headers["x-linked-etag"] == answer.headers["etag"]


def test_what_expand_selects(client: httpx.Client) -> None:
    """Only what was asked for, as far as it is known of a folder."""
    found = client.get(f"{API}?expand=sha&expand=safetensors&expand=trendingScore").json()
    assert found.keys() == {"_id", "id", "sha", "safetensors"}
    assert client.get("/api/models/single?expand=safetensors").json().keys() == {"_id", "id"}


def test_raw(client: httpx.Client) -> None:
    """Of an LFS file git has the pointer, of any other the file; ranges, lengths and tags are those of what is sent."""
    pointer = client.get(f"{MODEL}/raw/main/{NAMES[0]}")
    assert (pointer.status_code, pointer.content) == (200, POINTER)
    sha1 = hashlib.sha1(b"blob %d\0" % len(POINTER) + POINTER).hexdigest()
    assert pointer.headers["etag"] == f'"{sha1}"'
    head = client.head(f"{MODEL}/raw/main/{NAMES[0]}")
    assert (head.content, head.headers["content-length"]) == (b"", str(len(POINTER)))
    part = client.get(f"{MODEL}/raw/main/{NAMES[0]}", headers={"Range": "bytes=-9"})
    assert (part.status_code, part.content) == (206, POINTER[-9:])
    assert client.get(f"{MODEL}/raw/main/{NAMES[0]}", headers={"Range": "bytes=999-"}).status_code == 416
    assert client.get(f"{MODEL}/raw/main/config.json").content == b"{}\n"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{MODEL}/resolve/main/config.json", "application/json"),
        (f"{MODEL}/resolve/main/{NAMES[0]}", "application/octet-stream"),
        (f"{MODEL}/resolve/main/onnx/page.html", "text/plain; charset=utf-8"),
        ("/datasets/org/ds/resolve/main/data/train.csv", "text/plain; charset=utf-8"),
        (f"{MODEL}/raw/main/{NAMES[0]}", "text/plain; charset=utf-8"),
        (API, "application/json"),
        (MODEL, "text/html; charset=utf-8"),
    ],
)
def test_content_types(client: httpx.Client, path: str, expected: str) -> None:
    """Each answer says what it is, and nothing that somebody put into a repository runs in a browser."""
    answer = client.get(path)
    assert answer.headers["content-type"] == expected
    assert "content-encoding" not in answer.headers
    if "/api/" not in path:
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize("path", [f"{MODEL}/resolve/main/config.json", "/api/models", "/nothing/at/all"])
def test_methods_that_are_refused(client: httpx.Client, method: str, path: str) -> None:
    """Nothing can be written, and that is said in JSON, with a code."""
    answer = client.request(method, path, content=b"x" * 10)
    if (method, path) == ("POST", "/nothing/at/all"):
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "NotFound")
        return
    assert (answer.status_code, answer.headers["x-error-code"]) == (405, "MethodNotAllowed")
    assert answer.headers["allow"].startswith("GET")
    assert method in answer.json()["error"]


def test_a_failure_of_the_server_is_json(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody thought of is a 500 with a code, and tells nothing of the machine."""

    def broken(*_: Any) -> None:
        raise OSError(5, "secret")

    monkeypatch.setattr("asyncfetch.server.folders.catalog.Catalog.locate", broken)
    with Server(root) as server:
        answer = httpx.get(f"{server.url}{API}")
    assert (answer.status_code, answer.headers["x-error-code"]) == (500, "InternalError")
    assert "secret" not in answer.text


# --- for people


def test_the_list(client: httpx.Client, server: Server) -> None:
    """The page at / names what is served and links to it, and each page to the files."""
    home = client.get("/")
    assert f"export HF_ENDPOINT={server.url}<" in home.text
    assert "default-src 'none'" in home.headers["content-security-policy"]
    for link in ("/org/cached", "/org/sharded", "/single", "/datasets/org/ds"):
        assert f'href="{server.url}{link}"' in home.text
        assert client.get(link).status_code == 200
    commit = client.get(API).json()["sha"]
    assert f'href="{server.url}{MODEL}/resolve/{commit}/onnx/page.html"' in client.get(MODEL).text
    assert client.get("/nothing").status_code == client.get("/favicon.ico").status_code == 404


def test_a_page_shows_no_code(server: Server) -> None:
    """What a client says is its host, and what files are called, is text."""
    code = '"><script>'
    listed = Listed(f"{code}.txt", "/x", Signature(0, 0, 0, 0, 0))
    page = repository_page(code, "models", Repository(code, (listed,), {listed: "a" * 40}))
    assert "<script" not in home_page(code, {"models": [code]}) + page
    with httpx.Client(base_url=server.url, headers={"Host": code}) as client:
        assert "<script" not in client.get("/").text + client.get(MODEL).text


def test_pages_of_listings(client: httpx.Client, server: Server) -> None:
    """A long listing comes in pages, and keeps what was asked for."""
    first = client.get("/api/models?author=org&limit=2&expand=a&expand=b")
    assert [model["id"] for model in first.json()] == ["org/cached", "org/other"]
    assert first.links["next"]["url"].startswith(
        f"{server.url}/api/models?author=org&limit=2&expand=a&expand=b&cursor="
    )
    second = client.get(first.links["next"]["url"])
    assert ([model["id"] for model in second.json()], second.links) == (["org/sharded"], {})
    assert client.get("/api/models?limit=x").headers["x-error-code"] == "BadRequest"


def test_listings_need_the_token(root: Path) -> None:
    """Where a token is asked for, nobody without it learns what there is."""
    with Server(root, token=TOKEN) as server, httpx.Client(base_url=server.url) as client:
        for path in ("/", "/api/models", "/api/datasets"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["x-error-code"]) == (401, "Unauthorized")
            assert "single" not in answer.text
            assert "single" in client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).text or "datasets" in path
        assert client.get("/single").headers["x-error-code"] == client.get("/none").headers["x-error-code"]


# --- commits of a cache


def test_what_a_cache_does_not_hold(client: httpx.Client) -> None:
    """A commit is named with a 404 only where it is known to lack the file: clients remember that."""
    known = client.head(f"/org/cached/resolve/{OTHER}/absent")
    assert (known.headers["x-error-code"], known.headers["x-repo-commit"]) == ("EntryNotFound", OTHER)
    unknown = client.head(f"/org/cached/resolve/{COMMIT}/absent")
    assert (unknown.headers["x-error-code"], unknown.headers.get("x-repo-commit")) == ("EntryNotFound", None)
    pruned = client.head(f"/org/cached/resolve/{OTHER}/pruned.json")
    assert (pruned.status_code, pruned.headers["x-error-code"]) == (404, "NotDownloaded")
    revision = client.head("/org/cached/resolve/refs%2Fpr%2F2/config.json")
    assert (revision.status_code, revision.headers["x-error-code"]) == (404, "RevisionNotFound")


@pytest.mark.shows_secrets(reason="the links are logged by this test's own httpx client")
def test_redirects_of_a_cache(tmp_path: Path) -> None:
    """A signed link leads to the bytes of its commit, also where that is not the one of `main`."""
    for commit, data in ((COMMIT, SHARDS[0]), (OTHER, SHARDS[1])):
        write(tmp_path / "datasets--d" / "snapshots" / commit / "w.safetensors", data)
    write(tmp_path / "datasets--d" / "refs" / "main", COMMIT.encode())
    with Server(tmp_path, redirect=True) as server, httpx.Client(base_url=server.url, follow_redirects=True) as client:
        for revision, data in (("main", SHARDS[0]), (OTHER, SHARDS[1])):
            assert client.get(f"/datasets/d/resolve/{revision}/w.safetensors").content == data


def test_a_damaged_file_is_not_served(tmp_path: Path) -> None:
    """A blob that has another hash than its name is refused once that is known."""
    cached = tmp_path / "models--m"
    blob = write(cached / "blobs" / ETAG, SHARDS[0][:-1] + b"x")
    write(cached / "snapshots" / COMMIT / "other")
    (cached / "snapshots" / COMMIT / "w.safetensors").symlink_to(f"../../blobs/{blob.name}")
    with Server(tmp_path, ahead=True) as server, httpx.Client(base_url=server.url) as client:
        while (answer := client.head("/m/resolve/main/w.safetensors")).status_code == 200:
            assert answer.headers["etag"] == f'"{ETAG}"'
        assert (answer.status_code, answer.headers["x-error-code"]) == (500, "Damaged")
