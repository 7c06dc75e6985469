"""What `asyncfetch doctor` says of environments that are broken, each in its own way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import anyio
import pytest

from asyncfetch.cli.doctor import Finding, doctor, examine
from asyncfetch.spans import MiB

from ..kit.canaries import PASSWORD, TOKEN
from ..kit.certificates import trusted_context
from ..kit.fault_server import Answer, FaultServer, LoginPage, Resource, Seen, Status
from ..kit.mounts import tiny_disk
from ..kit.odd_mount import odd_mount
from ..kit.users import as_nobody, public_folder

WHO = "/api/whoami-v2"


@pytest.fixture
def hub() -> Iterator[FaultServer]:
    """A Hub that knows one token, with requests left."""
    server = FaultServer()
    server.resources["/api/models"] = Resource(b"[]", {"ratelimit": '"api";r=499;t=60'})

    def who(seen: Seen) -> Answer:
        known = seen.headers.get("authorization") == f"Bearer {TOKEN}"
        return Answer(200, {}, b'{"name": "someone"}') if known else Answer(401, {"x-error-message": "Invalid"})

    server.resources[WHO] = Resource(respond=who)
    with server:
        yield server


def findings(environ: Mapping[str, str], cache: Path | None, endpoint: str | None) -> dict[str, Finding]:
    found = anyio.run(examine, environ, cache, endpoint)
    assert all(one.hint for one in found if one.state == "wrong"), "what to do is not said"
    return {one.name: one for one in found}


def test_all_is_well(hub: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each thing that a load uses has a line, whose token it is stands there, and nothing is left behind."""
    environ = {"HF_TOKEN": TOKEN, "HF_HUB_CACHE": str(tmp_path / "hub")}
    assert doctor(environ, cache_dir=None, endpoint=hub.url, as_json=False) == 0
    lines = capsys.readouterr().out
    assert doctor(environ, cache_dir=None, endpoint=hub.url, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert [found["name"] for found in told["findings"]] == [
        *("versions", "cache", "free space", "links", "locks", "endpoint", "network", "rate limit", "token")
    ]
    for line in ("That of someone, from HF_TOKEN", "499 requests of the kind 'api' are left for the next 60 s"):
        assert line in lines
    assert "WRONG" not in lines
    assert list(tmp_path.iterdir()) == []
    assert {seen.path for seen in hub.seen if "authorization" in seen.headers} == {WHO}


@pytest.mark.parametrize(
    ("changes", "name", "says", "code"),
    [
        ({"HF_TOKEN": "hf_expired"}, "token", "That of HF_TOKEN is refused", 4),
        ({"HF_TOKEN": "zwölf"}, "token", "characters that no HTTP header can carry", 2),
        ({"HF_HUB_CACHE": "~nobody-of-that-name/hub"}, "cache", "home folder that is not known", 2),
        ({"HF_HUB_CACHE": __file__ + "/hub"}, "cache", "Not a directory", 7),
        ({"ASYNCFETCH_CONNECTIONS": "many"}, "settings", "ASYNCFETCH_CONNECTIONS is 'many'", 2),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_variable_that_is_wrong(
    hub: FaultServer, tmp_path: Path, changes: dict[str, str], name: str, says: str, code: int
) -> None:
    """The finding names the thing, the command ends with the code that a load would end with, and the rest is told."""
    environ = {"HF_HUB_CACHE": str(tmp_path), **changes}
    found = findings(environ, None, hub.url)
    assert doctor(environ, cache_dir=None, endpoint=hub.url, as_json=True) == code
    assert found[name].state == "wrong"
    assert says in found[name].what
    assert found["network"].state == "good"


@pytest.mark.parametrize(
    ("proxy", "name", "says"),
    [
        ("gopher://host:1", "proxy", "HTTP_PROXY"),
        (f"http://user:{PASSWORD}@127.0.0.1:9", "network", "127.0.0.1:9"),
    ],
    ids=["no proxy", "away"],
)
def test_a_proxy_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str, name: str, says: str
) -> None:
    """One that is none, and one that is away: it is named, its password is not."""
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    found = findings({}, tmp_path, "http://hub.invalid")
    assert found[name].state == "wrong"
    assert says in found[name].what


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (LoginPage, "not as a Hub does"),
        (Status(503), "503"),
        (Status(429, {"retry-after": "290"}), "limits"),  # not waited for
        (Status(302, {"location": "http://elsewhere.invalid/"}), "not as a Hub does"),
    ],
    ids=["a page", "a server's fault", "a limit", "a redirect"],
)
def test_a_hub_that_is_none(hub: FaultServer, tmp_path: Path, fault: object, says: str) -> None:
    """A sign-in page, a failure, a redirect: the token is not shown to it."""
    hub.fault("/api/models", fault, forever=True)  # type: ignore[arg-type]
    found = findings({"HF_TOKEN": TOKEN}, tmp_path, hub.url)
    assert found["network"].state == "wrong"
    assert says in found["network"].what
    assert all("authorization" not in seen.headers for seen in hub.seen)


def test_nobody_answers(tmp_path: Path) -> None:
    """A closed port, and an endpoint that is no URL."""
    assert findings({}, tmp_path, "http://127.0.0.1:9")["network"].exit_code == 6
    assert findings({}, tmp_path, "huggingface.co")["endpoint"].exit_code == 2


def test_a_token_in_the_open(tmp_path: Path) -> None:
    """It is sent to no endpoint without TLS that is elsewhere: that is said before anyone could read it."""
    found = findings({"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}, tmp_path, "http://hub.invalid")
    assert found["token"].state == "wrong"
    assert "in the open" in found["token"].what


def test_a_certificate_that_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finding has the reason and the way out of the library's own error."""
    context = trusted_context(tmp_path, monkeypatch)
    with FaultServer(context) as server:
        server.resources["/api/models"] = Resource(b"[]")
        assert findings({}, tmp_path / "hub", server.url)["certificates"].state == "good"
        monkeypatch.delenv("SSL_CERT_FILE")
        found = findings({}, tmp_path / "hub", server.url)["certificates"]
    assert (found.state, found.exit_code) == ("wrong", 6)
    assert "nobody in the store has signed it" in found.what
    assert found.hint


def test_offline_nothing_is_asked(hub: FaultServer, tmp_path: Path) -> None:
    """What would be used is told; no request goes out."""
    found = findings({"HF_HUB_OFFLINE": "1", "HF_TOKEN": TOKEN}, tmp_path, hub.url)
    assert found["network"].state == "note"
    assert not hub.seen


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A disk with little room is worth a note, and one without any is wrong."""
    with tiny_disk(tmp_path / "disk", "8m") as disk:
        found = findings({"HF_HUB_OFFLINE": "1"}, disk / "hub", None)
        assert found["free space"].state == "note"
        assert "8.39 MB, which is little" in found["free space"].what
        (disk / "filler").write_bytes(bytes(8 * MiB - 8192))
        found = findings({"HF_HUB_OFFLINE": "1"}, disk, None)
    assert (found["free space"].state, found["free space"].exit_code) == ("wrong", 7)
    assert "the disk is full" in found["free space"].what


def test_a_file_system_without(tmp_path: Path) -> None:
    """Links, locks and writing in any order are tried, and each that is missing is told with what follows from it."""
    with odd_mount(tmp_path, "no links", "no locks", "in order") as folder:
        found = findings({"HF_HUB_OFFLINE": "1"}, folder / "hub", None)
        assert list(folder.iterdir()) == []
    assert [found[name].state for name in ("links", "locks", "writing")] == ["note"] * 3


@pytest.mark.parametrize(
    ("home", "hub", "says"),
    [
        (0o755, 0o755, "may be read and not written to"),
        (0o755, 0o700, "may be neither read nor written to"),
        (0o700, 0o755, "cannot be used: Permission denied"),
    ],
    ids=["to be read", "closed", "in a closed folder"],
)
def test_the_cache_of_another_user(home: int, hub: int, says: str) -> None:
    """What may be done with it is told as it is, also where it may not even be looked at."""
    prepare = (  # all that is imported late: a Python may lie where only its user may look
        "import os, sys, anyio._backends._asyncio, importlib.metadata; importlib.metadata.version('anyio'); "
        "from asyncfetch.cli.doctor import doctor"
    )
    code = (
        "environ = {'HF_HUB_OFFLINE': '1', 'HF_HUB_CACHE': sys.argv[1]}\n"
        "sys.exit(doctor(environ, cache_dir=None, endpoint=None, as_json=True))"
    )
    with public_folder() as folder:
        cache = folder / "home" / "hub"
        cache.mkdir(parents=True)
        cache.chmod(hub)
        cache.parent.chmod(home)
        ran = as_nobody(prepare, code, cache)
    assert ran.returncode == 7, ran.stderr
    (found,) = (one for one in json.loads(ran.stdout)["findings"] if one["name"] == "cache")
    assert says in found["what"]
