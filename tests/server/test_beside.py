"""A folder of one's own beside another Hub: its names win, and both are listed together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from asyncfetch.errors import SourceError
from asyncfetch.server import Server
from asyncfetch.server.folders import catalog

from ..kit.canaries import TOKEN
from ..kit.fault_server import COMMIT, Answer, FaultServer, Resource
from .clients import hub
from .trees import write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..kit.fault_server import Seen

THEIRS = ["org/model", "org/shared", *(f"big/model-{number}" for number in range(5))]


@pytest.fixture
def source() -> Iterator[FaultServer]:
    """The other Hub, which lists its models in pages."""

    def listing(seen: Seen) -> Answer:
        query = dict(httpx.QueryParams(seen.query))
        begin, limit = int(query.get("cursor", 0)), int(query.get("limit", 3))
        page, headers = [{"id": name} for name in THEIRS[begin : begin + limit]], {"content-type": "application/json"}
        if begin + limit < len(THEIRS):
            following = httpx.QueryParams({**query, "cursor": begin + limit})
            headers["link"] = f'<{server.url}/api/models?{following}>; rel="next"'
        return Answer(200, headers, json.dumps(page).encode())

    with FaultServer() as server:
        for name in ("org/model", "org/shared"):
            server.hub(name, {"config.json": b"theirs"})
        server.resources["/api/models"] = Resource(respond=listing)
        yield server


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for name in ("org/shared", "team/one", "team/two"):
        write(tmp_path / "own" / name / "config.json", f"ours {name}".encode())
    return tmp_path / "own"


@pytest.fixture
def service(source: FaultServer, own: Path, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "cache", upstream=source.url, own=own) as running:
        yield running


def listed(url: str, query: str) -> tuple[list[str], int]:
    """The names on all pages, and how many pages there were."""
    names, following, pages = list[str](), f"{url}/api/models?{query}", 0
    while following:
        answer = httpx.get(following)
        names += [one["id"] for one in answer.json()]
        following, pages = answer.links.get("next", {}).get("url", ""), pages + 1
        assert not following or following.startswith(url)
    return names, pages


def test_its_names_win(source: FaultServer, service: Server, tmp_path: Path) -> None:
    code = """
from pathlib import Path
names = ["org/model", "org/shared", "team/one"]
result = [Path(hf_hub_download(name, "config.json")).read_text() for name in names]
"""
    assert hub(service.url, tmp_path / "home", code) == ["theirs", "ours org/shared", "ours team/one"]
    assert not [seen for seen in source.seen if "shared" in seen.path or "team" in seen.path]
    assert httpx.get(f"{service.url}/org/shared/resolve/main/absent").status_code == 404
    assert httpx.get(f"{service.url}/team/absent/resolve/main/config.json").status_code == 404
    assert not [seen for seen in source.seen if "shared" in seen.path]
    checks: dict[str, Any] = httpx.get(f"{service.url}/readyz").json()["checks"]
    assert list(checks) == ["folder", "cache", "upstream"]


def test_both_are_listed_together(service: Server, source: FaultServer) -> None:
    ours, theirs = ["org/shared", "team/one", "team/two"], [name for name in THEIRS if name != "org/shared"]
    assert listed(service.url, "limit=100") == ([*ours, *theirs], 1)
    for limit in (1, 2, 3, 4, 5):
        names, pages = listed(service.url, f"limit={limit}")
        assert (names, pages > 1) == ([*ours, *theirs], True)
    assert listed(service.url, "search=team&limit=1")[0][:2] == ["team/one", "team/two"]
    page = httpx.get(f"{service.url}/").text
    assert all(name in page for name in ours)
    for query in ("limit=x", "filter=y&limit=", "filter=y&limit=1e3", "limit=2&limit=%E4%B8%AD", f"limit={'9' * 5000}"):
        assert httpx.get(f"{service.url}/api/models?{query}").status_code == 400
    source.go_away()
    assert httpx.get(f"{service.url}/api/models").status_code == 502  # half a listing would pass for the whole


def test_a_new_folder_counts_at_once(source: FaultServer, service: Server, own: Path) -> None:
    """Its hashes are kept beside the answers of the Hub, so that nothing is hashed twice."""
    url = f"{service.url}/org/model/resolve/main/config.json"
    assert httpx.get(url).text == "theirs"
    write(own / "org" / "model" / "config.json", b"ours by now")
    assert httpx.get(url).text == "ours by now"


def test_a_download_into_the_folder(source: FaultServer, service: Server, own: Path, tmp_path: Path) -> None:
    """It goes on after its first file has landed there, and all of it is served from there in the end."""
    files = {"a/config.json": b"{}", "b.safetensors": bytes(range(256)) * 3000, "c.json": b"3", "d.txt": b"4"}
    source.listing(source.hub("new/model", files))
    code = f"result = snapshot_download('new/model', local_dir={str(own / 'new' / 'model')!r}, max_workers=1)"
    assert hub(service.url, tmp_path / "home", code) == str(own / "new" / "model")
    assert {name: (own / "new" / "model" / name).read_bytes() for name in files} == files
    source.go_away()
    info = httpx.get(f"{service.url}/api/models/new/model").json()
    assert {one["rfilename"] for one in info["siblings"]} == set(files)


def _without(source: FaultServer, *revisions: str) -> None:
    """Have the Hub say that it does not have these revisions of org/shared."""
    refused = Resource(respond=lambda _: Answer(404, {"x-error-code": "RevisionNotFound"}, b"Invalid rev id"))
    for revision in revisions:
        source.resources[f"/org/shared/resolve/{revision}/config.json"] = refused
        source.resources[f"/api/models/org/shared/tree/{revision}"] = refused


def test_what_the_folder_does_not_have_of_revisions(source: FaultServer, service: Server) -> None:
    """The Hub may: of a commit of its own, and of a branch. Else the folder's own answer stays."""

    def told(revision: str, path: str = "config.json") -> tuple[int, str]:
        answer = httpx.get(f"{service.url}/org/shared/resolve/{revision}/{path}")
        return answer.status_code, answer.headers.get("x-error-code", answer.text)

    ours = httpx.get(f"{service.url}/api/models/org/shared").json()["sha"]
    assert [told(revision) for revision in ("main", "HEAD", ours)] == [(200, "ours org/shared")] * 3
    assert told("main", "absent") == (404, "EntryNotFound")
    assert not [seen for seen in source.seen if "shared" in seen.path]
    assert told(COMMIT) == (200, "theirs")
    assert told(COMMIT, "absent") == (404, "EntryNotFound")
    _without(source, "0" * 40, "1" * 40, "v9")
    assert told("0" * 40) == told("v9") == (404, "RevisionNotFound")
    unknown_there = httpx.get(f"{service.url}/team/one/resolve/v9/config.json")
    assert unknown_there.headers["x-error-code"] == "RevisionNotFound"
    body = {"paths": ["config.json"]}
    listed = httpx.post(f"{service.url}/api/models/org/shared/paths-info/{'1' * 40}", json=body)
    assert listed.headers["x-error-code"] == "RevisionNotFound"
    source.go_away()
    assert told("2" * 40)[0] == 502  # nobody knows


def test_a_commit_while_the_folder_is_hashed(
    source: FaultServer, service: Server, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then nobody knows whether it is the folder's: the Hub is asked whether it is one of its."""
    monkeypatch.setattr(catalog, "PATIENCE", 0.1)
    os.truncate(write(own / "org" / "shared" / "w.safetensors"), 1 << 40)
    page = f"{service.url}/org/shared/resolve"
    assert httpx.get(f"{page}/{COMMIT}/config.json").text == "theirs"
    _without(source, "5" * 40)
    for revision in ("main", "5" * 40):
        assert httpx.get(f"{page}/{revision}/config.json").headers["x-error-code"] == "Hashing"


def test_it_goes_with_another_hub_alone(own: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        Server(tmp_path / "cache", own=own)
    with pytest.raises(SourceError):
        Server(tmp_path / "cache", upstream="http://x", follow_links=True)


def test_it_asks_for_the_token_of_the_server(source: FaultServer, own: Path, tmp_path: Path) -> None:
    with Server(tmp_path / "cache", upstream=source.url, own=own, token=TOKEN) as service:
        asked = ["/team/one/resolve/main/config.json", "/org/model/resolve/main/config.json", "/api/models", "/metrics"]
        for path in asked:
            assert httpx.get(service.url + path).status_code == 401
            assert httpx.get(service.url + path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert httpx.get(f"{service.url}/healthz").status_code == 200


def test_by_the_command_line(source: FaultServer, own: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asyncfetch", "serve", str(own), f"--upstream={source.url}", "--port=0"]
    with subprocess.Popen(
        [*command, f"--cache-dir={tmp_path / 'cache'}"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if line.startswith("serving "))
        assert said.startswith(f"serving 3 models of {own} and {source.url} at http://127.0.0.1:")
        url = next(line for line in process.stderr if line.startswith("export ")).strip().partition("=")[2]
        assert httpx.get(f"{url}/team/two/resolve/main/config.json").text == "ours team/two"
        process.terminate()
        assert process.wait(20) == 0
