"""Who may ask a server before another Hub, for what, and with whose token."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.requests import Request

from asyncfetch.cli.commands import run
from asyncfetch.cli.serving import ServeFlags, _warnings
from asyncfetch.errors import SourceError
from asyncfetch.server import Server
from asyncfetch.server.access import Admin, Door, Rules
from asyncfetch.server.protocol import peers
from asyncfetch.server.protocol.peers import user_of
from asyncfetch.server.source import freshness
from asyncfetch.server.source.freshness import Access
from asyncfetch.server.source.grants import Grants

from ..kit.canaries import TOKEN
from ..kit.fault_server import COMMIT, Answer, FaultServer, Resource
from ..kit.users import as_nobody
from .clients import hub

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "org/model"
FILES = {"config.json": b"{}\n", "model.safetensors": b"weights" * 20_000}
PAGE = f"/{NAME}/resolve/main/model.safetensors"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
OTHER = f"{TOKEN}-of-another"


@pytest.fixture
def source() -> Iterator[FaultServer]:
    """The other Hub, with some repositories."""
    with FaultServer() as server:
        for name in (NAME, "org/secret", "other/model", "datasets/org/data"):
            server.listing(server.hub(name, FILES))
        yield server


@pytest.mark.parametrize(
    ("allow", "deny", "admitted"),
    [
        ([], [], "org/model org/secret other/model datasets/org/data"),
        (["org/*"], [], "org/model org/secret"),
        (["org/*"], ["org/secret"], "org/model"),
        ([], ["ORG/Secret", "datasets/*"], "org/model other/model"),
        (["*/model", "datasets/org/data"], [], "org/model other/model datasets/org/data"),
        (["*"], ["other/*"], "org/model org/secret datasets/org/data"),
        (["org/m?del"], ["*"], ""),
    ],
)
def test_rules(allow: list[str], deny: list[str], admitted: str) -> None:
    rules = Rules.checked(allow, deny)
    names = [("models", "org/model"), ("models", "org/secret"), ("models", "other/model"), ("datasets", "org/data")]
    found = [name if kind == "models" else f"{kind}/{name}" for kind, name in names if rules.admit(kind, name)]
    assert found == admitted.split()
    assert rules.admit("models", "ORG/MODEL") == rules.admit("models", "org/model")


@pytest.mark.parametrize("pattern", ["", "models/org/name", "org/name/file", "datasets/", "org name", "org/\n*"])
def test_what_is_no_pattern(pattern: str) -> None:
    for allow, deny in (([pattern], []), ([], [pattern])):
        with pytest.raises(SourceError, match="no pattern of repositories"):
            Rules.checked(allow, deny)


def test_what_may_not_be_asked_for_is_not_there(source: FaultServer, tmp_path: Path) -> None:
    for revision in ("main", COMMIT):
        moved = Answer(307, {"location": f"/org/secret/resolve/{revision}/config.json"})
        source.resources[f"/old/name/resolve/{revision}/config.json"] = Resource(respond=lambda _, to=moved: to)
        moved = Answer(307, {"location": f"/api/models/org/secret/revision/{revision}"})
        source.resources[f"/api/models/old/name/revision/{revision}"] = Resource(respond=lambda _, to=moved: to)
    listed = json.dumps([{"id": "org/secret"}, {"id": NAME}, {"nothing": 1}]).encode()
    source.resources["/api/models"] = Resource(listed[: -len(', {"nothing": 1}]')] + b"]")
    source.resources["/api/datasets"] = Resource(listed)
    with Server(tmp_path / "cache", upstream=source.url, deny=["org/SECRET"]) as service:
        for path in (
            "/org/secret/resolve/main/config.json",
            f"/ORG/Secret/raw/{COMMIT}/config.json",
            "/api/models/org/secret",
            "/api/models/org/secret/tree/main",
            "/api/models/org/secret/auth-check",
        ):
            refused = httpx.get(service.url + path)
            assert (refused.status_code, refused.headers["x-error-code"]) == (401, "RepoNotFound")
        posted = httpx.post(f"{service.url}/api/models/org/secret/paths-info/main", json={"paths": ["config.json"]})
        assert posted.headers["x-error-code"] == "RepoNotFound"
        assert not source.seen
        for path in ("/old/name/resolve/main/config.json", "/api/models/old/name/revision/main"):
            assert httpx.get(service.url + path).headers["x-error-code"] == "RepoNotFound"
        assert not [seen for seen in source.seen if "secret" in seen.path]
        assert httpx.get(f"{service.url}/api/models").json() == [{"id": NAME}]
        assert httpx.get(f"{service.url}/api/datasets").json() == []  # none of the Hub's
        assert httpx.get(service.url + PAGE).content == FILES["model.safetensors"]
        code = """
try:
    result = hf_hub_download("org/secret", "config.json")
except RepositoryNotFoundError as error:
    result = "not there"
"""
        assert hub(service.url, tmp_path / "home", code) == "not there"
    with Server(tmp_path / "cache", upstream=source.url, deny=[NAME]) as service:  # also what is kept
        assert httpx.get(service.url + PAGE).status_code == 401


def test_one_token_for_all(source: FaultServer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="opens what it may see to everybody"):
        Server(tmp_path / "cache", upstream=source.url, upstream_token=TOKEN)
    source.token = TOKEN
    options = {"allow": ["org/*"], "upstream_token": TOKEN}
    with Server(tmp_path / "cache", upstream=source.url, **options) as service:  # type: ignore[arg-type]
        for headers in (None, {"Authorization": "Bearer of-a-client"}):
            assert httpx.get(service.url + PAGE, headers=headers).content == FILES["model.safetensors"]
        assert httpx.get(f"{service.url}/api/models/other/model").headers["x-error-code"] == "RepoNotFound"
        assert TOKEN not in httpx.get(f"{service.url}/metrics").text + httpx.get(service.url).text
        assert httpx.get(f"{service.url}/api/whoami-v2").status_code == 401
        told = httpx.get(f"{service.url}/api/whoami-v2", headers={"Authorization": "Bearer of-a-client"})
        assert told.json()["name"] == "local"
        asked = [seen.headers.get("authorization") for seen in source.seen if not seen.second]
        assert asked
        assert set(asked) == {f"Bearer {TOKEN}"}
        assert not [seen for seen in source.seen if "whoami" in seen.path]


def test_a_token_of_its_own(source: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "own" / "mine").mkdir(parents=True)
    (tmp_path / "own" / "mine" / "config.json").write_bytes(b"{}")
    with Server(tmp_path / "cache", upstream=source.url, token=TOKEN, own=tmp_path / "own") as service:
        refused = httpx.get(service.url + PAGE)
        assert (refused.status_code, refused.headers["x-error-code"]) == (401, "Unauthorized")
        wrong = httpx.get(service.url + PAGE, headers={"Authorization": "Bearer another"})
        assert (wrong.status_code, wrong.headers["x-error-code"]) == (401, "InvalidCredentials")
        assert "/mine" not in httpx.get(service.url).text
        for page in ("/metrics", "/api/models", "/api/models?limit=1", "/mine/resolve/main/config.json"):
            assert httpx.get(service.url + page).status_code == 401
        assert not source.seen
        for page in ("/", "/metrics", "/api/models?limit=1", "/mine/resolve/main/config.json"):
            answer = httpx.get(service.url + page, headers=BEARER)
            assert answer.status_code == 200
            assert TOKEN not in answer.text
        assert httpx.get(service.url + PAGE, headers=BEARER).content == FILES["model.safetensors"]
        assert hub(service.url, tmp_path / "home", f"result = whoami()['name'], model_info('{NAME}').sha", TOKEN) == [
            "local",
            COMMIT,
        ]
    assert not [seen for seen in source.seen if "authorization" in seen.headers]
    for token in ("", "two words", "é"):
        with pytest.raises(SourceError, match="one word"):
            Door(token=token)
        with pytest.raises(SourceError, match="one word"):
            Admin(token)


def request_of(
    client: str = "127.0.0.1", host: str = "localhost:8000", http_version: str = "1.1", **headers: str
) -> Request:
    sent = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Request(
        {
            "type": "http",
            "http_version": http_version,
            "method": "POST",
            "scheme": "http",
            "path": "/",
            "query_string": b"",
            "client": (client, 50_000),
            "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
        }
    )


def test_who_may_change_something() -> None:
    ours = {"authorization": f"Bearer {TOKEN}"}
    with_token, at_home, off = Admin(TOKEN, local=True), Admin(local=True), Admin()
    assert [with_token.allows(request_of(**ours)), with_token.allows(request_of("10.0.0.7", "hub", **ours))] == [
        True
    ] * 2
    assert not with_token.allows(request_of())
    assert not with_token.allows(request_of(authorization="Bearer another"))
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert at_home.allows(request_of(host=host))
    for request in (
        request_of("10.0.0.7"),
        request_of(host="models.example.org"),  # a name that was made to lead here
        request_of(x_forwarded_for="127.0.0.1"),
        request_of(forwarded="for=127.0.0.1"),
        request_of(via="1.1 proxy"),
        request_of(x_real_ip="127.0.0.1"),
        request_of(x_forwarded_proto="https"),
        request_of(cf_ray="1"),
        request_of(http_version="1.0"),  # as nginx asks
        request_of(connection="Keep-Alive, Close"),
    ):
        assert not at_home.allows(request)
    assert at_home.allows(request_of(connection="keep-alive", accept="*/*", origin="http://localhost:8000"))
    assert not off.allows(request_of())
    assert not off.allows(request_of(**ours))
    assert TOKEN not in repr((with_token, Door(token=TOKEN)))


ROW = "   7: {ours} {theirs} {state} 00000000:00000000 02:00000000 00000000 {user:5d}        0 4242 2 0 20 4 30 10 -1\n"


def in_table(address: tuple[str, int]) -> str:
    """An address as the kernel spells it, of IPv4 and on this machine."""
    return f"{int.from_bytes(socket.inet_aton(address[0]), sys.byteorder):08X}:{address[1]:04X}"


def test_which_user_a_client_is() -> None:
    """By its own end of the connection, and not by that of the server, while it is open at both ends."""
    ours, theirs = ("127.0.0.1", 51_234), ("127.0.0.2", 8001)
    row = {"ours": in_table(ours), "theirs": in_table(theirs), "state": "01", "user": 33}
    other_end = {"ours": row["theirs"], "theirs": row["ours"], "state": "01", "user": 0}
    for state, user in (("01", 33), ("05", None), ("06", None)):
        table = "  sl  local_address ...\n" + ROW.format(**other_end) + ROW.format(**{**row, "state": state})
        assert user_of(table, ours, theirs) == user
    assert user_of(ROW.format(**row), ("127.0.0.1", 51_235), theirs) is None


def asked_from(sock: socket.socket, server: Server) -> int:
    """The status of an eviction that is asked for on `sock`, which may have a port already."""
    url = urlsplit(server.url)
    body = json.dumps({"repository": "org/none"})
    with sock:
        sock.connect((f"::ffff:{url.hostname}" if sock.family == socket.AF_INET6 else url.hostname, url.port))
        head = f"Host: {url.netloc}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        sock.sendall(f"POST /api/asyncfetch/kept/evict HTTP/1.1\r\n{head}\r\n\r\n{body}".encode())
        return int(sock.recv(1000).split()[1])


def test_another_user_of_this_machine_may_change_nothing(
    source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "tcp"
    with Server(tmp_path / "cache", upstream=source.url) as server:
        url = urlsplit(server.url)
        assert asked_from(socket.socket(), server) == 404  # nothing of it is kept
        if Path("/proc/net/tcp6").exists():
            assert asked_from(socket.socket(socket.AF_INET6), server) == 404
        monkeypatch.setattr(peers, "_TABLES", (table, tmp_path / "none"))
        assert asked_from(socket.socket(), server) == 404  # nobody can tell
        for user, status in ((os.geteuid(), 404), (os.geteuid() + 1, 403)):
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            ends = {"ours": in_table(sock.getsockname()), "theirs": in_table(("127.0.0.1", url.port or 0))}
            table.write_text(ROW.format(**ends, state="01", user=user))
            assert asked_from(sock, server) == status
        assert asked_from(socket.socket(), server) == 403  # it is not in the table


def test_a_process_of_another_user_may_change_nothing(source: FaultServer, tmp_path: Path) -> None:
    code = """
client = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
client.request("POST", "/api/asyncfetch/kept/evict", b"{}", {"Content-Type": "application/json"})
print(client.getresponse().status)
"""
    with Server(tmp_path / "cache", upstream=source.url) as server:
        done = as_nobody("import http.client, sys, encodings.idna", code, urlsplit(server.url).port)
    assert done.stdout.split() == ["403"], done.stderr


@pytest.mark.parametrize(
    ("public_url", "status"),
    [("https://models.example.org", 403), ("http://10.1.2.3:9000/hub", 403), ("http://localhost:9000", 404)],
)
def test_a_server_with_a_public_url_is_for_others(
    source: FaultServer, tmp_path: Path, public_url: str, status: int
) -> None:
    with Server(tmp_path / "cache", upstream=source.url, public_url=public_url) as server:
        answer = httpx.post(f"{server.url}/api/asyncfetch/kept/evict", json={"repository": "org/none"})
        assert answer.status_code == status
    warned = [*_warnings(ServeFlags(public_url=public_url)), *_warnings(ServeFlags(admin_token_env="ADMIN"))]
    assert ["--admin-token-env" in line for line in warned] == [True] * (status == 403)


def statuses(service: Server, *tokens: str) -> list[int]:
    return [httpx.get(service.url + PAGE, headers={"Authorization": f"Bearer {token}"}).status_code for token in tokens]


def test_who_may_see_what_outlasts_a_restart(
    source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    source.token = TOKEN
    with Server(cache, upstream=source.url) as service:
        assert statuses(service, TOKEN, OTHER) == [200, 401]
    source.go_away()
    with Server(cache, upstream=source.url) as service:
        assert statuses(service, TOKEN, OTHER) == [200, 502]
    monkeypatch.setattr(freshness, "LAPSED", 0.0)
    monkeypatch.setattr(freshness, "DECISION", 0.0)
    with Server(cache, upstream=source.url) as service:
        assert statuses(service, TOKEN) == [502]  # the word of the source has an end
    monkeypatch.undo()
    (path,) = cache.rglob("grants.sqlite3")
    assert path.stat().st_mode & 0o077 == 0
    kept = path.read_bytes()
    for secret in (TOKEN.encode(), hashlib.sha256(TOKEN.encode()).hexdigest().encode(), NAME.encode()):
        assert secret not in kept
    source.come_back()
    source.token = OTHER
    monkeypatch.setattr(freshness, "DECISION", 0.0)
    with Server(cache, upstream=source.url) as service:
        assert statuses(service, TOKEN, OTHER) == [401, 200]
    source.go_away()
    with Server(cache, upstream=source.url) as service:  # nor does it come back what was taken back
        assert statuses(service, TOKEN, OTHER) == [502, 200]


def test_what_was_taken_back_is_gone_where_nothing_can_be_written(tmp_path: Path) -> None:
    now = 1e9
    grants = Grants(tmp_path, lambda: now)
    for scope in ("told", "files"):
        grants.access.grant("who", NAME, scope, now)
    grants.save(grants.access.take_changes())
    assert not grants.access.take_changes()
    assert Grants(tmp_path, lambda: now).access.could("who", NAME, "files", now)
    # The next one can read what is kept, and no more.
    full = Grants(tmp_path, lambda: now)
    full._ledger._schema += " PRAGMA query_only = 1;"
    full.access.revoke("who", NAME, "files")
    full.save(full.access.take_changes())
    assert not Grants(tmp_path, lambda: now).access.could("who", NAME, "files", now)


def test_the_word_of_the_source_has_an_end() -> None:
    access = Access(b"key")
    access.grant("who", NAME, "files", 100.0)
    assert [access.may("who", NAME, scope, 100.0 + freshness.DECISION - 1) for scope in ("told", "files")] == [True] * 2
    assert not access.may("who", NAME, "told", 100.0 + freshness.DECISION)
    assert access.could("who", NAME, "told", 100.0 + freshness.LAPSED - 1)
    assert not access.could("who", NAME, "told", 100.0 + freshness.LAPSED)
    assert not access.may("who", NAME, "told", 99.0)  # a clock that was set back
    assert not any(access.may(who, name, "told", 100.0) for who, name in (("", NAME), ("who", "org/other")))
    access.revoke("who", NAME, "files")
    assert access.may("who", NAME, "told", 100.0)
    assert not access.could("who", NAME, "files", 100.0)
    changes = access.take_changes()
    assert sorted(changes.values(), key=str) == [100.0, None]
    for second in range(2):  # what is renewed is written down now and then
        access.grant("who", NAME, "told", 101.0 + second)
    assert not access.take_changes()
    access.grant("who", NAME, "told", 100.0 + freshness.KEPT_AGAIN)
    assert list(access.take_changes().values()) == [100.0 + freshness.KEPT_AGAIN]


def test_the_command_says_what_it_opens(source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = [f"--upstream={source.url}", f"--cache-dir={tmp_path / 'cache'}"]
    monkeypatch.setenv("HUB", TOKEN)
    command = [sys.executable, "-m", "asyncfetch", "serve", *base, "--port=0", "--host=0.0.0.0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("export "):
                break
        process.kill()
    assert re.search("WARNING: everybody who reaches this port may .* fill this disk", "".join(lines))
    assert "in the clear" in "".join(lines)
    assert not list(_warnings(ServeFlags()))
    assert not [line for line in _warnings(ServeFlags(host="0.0.0.0", allow=("org/*",))) if "everybody" in line]
    for options, words in (
        ([*base, "--upstream-token-env=HUB"], "needs a list of the repositories"),
        ([*base, "--admin-token-env=NONE"], "names NONE, which is not set"),
        ([*base, "--max-size=many"], "--max-size 'many' is no size"),
        ([*base, "--max-size=0"], "bytes above 0"),
        ([str(tmp_path), "--max-size=1G"], "--max-size goes with --upstream"),
        ([str(tmp_path), "--allow=org/*"], "--allow goes with --upstream"),
    ):
        with pytest.raises(SourceError, match=words):
            run(["serve", "--port=0", *options])
