"""A source that lies, or leads elsewhere: a clear status, nothing wrong is kept, and what else it has is served."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from typing import TYPE_CHECKING, NamedTuple

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncfetch.errors import ProtocolError
from asyncfetch.network.reach import Reach
from asyncfetch.network.transport import Transport
from asyncfetch.server import Server
from asyncfetch.server.arriving import distrust
from asyncfetch.server.source import freshness
from asyncfetch.server.source.relayed import told_headers
from asyncfetch.spans import MiB

from ...kit.fault_server import COMMIT, QUICK, FaultServer, Headers, LoginPage, Resource, Seen, Status
from ...kit.fault_server import Answer as Sent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ...kit.fault_server import Fault

NAME = "org/model"
SIZE = 300_000
WEIGHTS = random.Random(9).randbytes(SIZE)
FILES = {"model.safetensors": WEIGHTS, "other.safetensors": WEIGHTS[::-1]}
STORED = f"/storage/{hashlib.sha256(WEIGHTS).hexdigest()}"
AT_MAIN = f"/{NAME}/resolve/main/model.safetensors"
TREE = f"/api/models/{NAME}/tree/main"


@pytest.fixture
def source() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.listing(server.hub(NAME, FILES))
        yield server


@pytest.fixture
def service(source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(tmp_path / "cache", upstream=source.url) as running:
        yield running


def redirect(location: str) -> Fault:
    return Status(302, {"location": location})


def document(value: object) -> Fault:
    return Status(200, {"content-type": "application/json"}, json.dumps(value).encode())


def entry(path: str) -> dict[str, object]:
    return {"type": "file", "path": path, "size": 1, "oid": "0" * 40}


def bomb() -> bytes:
    """64 MiB that take up next to nothing."""
    packer = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16)
    return b"".join([packer.compress(b"[" + b" " * (64 * MiB)), packer.flush()])


BOMB = bomb()


def loop(answer: Sent) -> Sent:
    """To the same address once more."""
    return redirect("?again")(answer)


LIES: dict[str, tuple[str, str, Fault]] = {
    # what it is: what clients ask for, what lies about it, and how
    "a page for people": ("at_main", "at_main", LoginPage),
    "a loop": ("at_main", "at_main", loop),
    "a loop at the storage": ("at_main", "stored", loop),
    "a file of this machine": ("at_main", "at_main", redirect("file:///etc/passwd")),
    "a file of this machine, by the storage": ("at_main", "stored", redirect("file:///etc/passwd")),
    "no address": ("at_main", "at_main", redirect("http://[")),
    "no size": ("at_main", "at_main", Headers(x_linked_size=None)),
    "a size below zero": ("at_main", "at_main", Headers(x_linked_size="-1")),
    "a larger size": ("at_main", "at_main", Headers(x_linked_size="300001")),
    "a smaller size": ("at_main", "at_main", Headers(x_linked_size="100000")),
    "a larger size that it stands by": ("at_commit", "at_commit", Headers(x_linked_size="300001")),
    "a smaller size that it stands by": ("at_commit", "at_commit", Headers(x_linked_size="100000")),
    "a hash that leads elsewhere": ("at_main", "at_main", Headers(x_linked_etag='"../../../evil"')),
    "a commit that leads elsewhere": ("at_main", "at_main", Headers(x_repo_commit="../../../evil")),
    "another commit on the way": ("at_main", "at_commit", Headers(x_repo_commit="f" * 40)),
    "another hash on the way": ("at_main", "at_commit", Headers(x_linked_etag=f'"{"f" * 64}"')),
    "another commit than was asked for": ("at_commit", "at_commit", Headers(x_repo_commit="f" * 40)),
    "HTML for JSON": ("tree", "tree", LoginPage),
    "JSON that is nested too deeply": ("tree", "tree", Status(200, {}, b"[" * 2_000_000)),
    "an answer without an end": ("tree", "tree", Status(200, {}, b"[" + b" " * (33 * MiB))),
    "a bomb": ("tree", "tree", Status(200, {"content-encoding": "gzip"}, BOMB)),
    "a path that leads elsewhere": ("tree", "tree", document([entry("config.json"), entry("../../.bashrc")])),
    "a path of Windows": ("tree", "tree", document([entry("..\\..\\evil.exe")])),
    "an absolute path": ("tree", "tree", document([entry("/etc/passwd")])),
    "a file that leads elsewhere": (
        "info",
        "info",
        document({"sha": COMMIT, "siblings": [{"rfilename": "a/../../b"}]}),
    ),
    "a commit that is a path": ("info", "info", document({"sha": "../../evil", "siblings": []})),
    "a loop of the API": ("info", "info", loop),
    "another site": ("info", "info", redirect("http://127.0.0.1:9/")),
}


class Told(NamedTuple):
    """A repository of the source, and the paths at which it is told of its weights."""

    weights: bytes
    at_main: str
    at_commit: str
    stored: str
    tree: str
    info: str

    @classmethod
    def by(cls, source: FaultServer, number: int) -> Told:
        """Another one for each number, with other bytes."""
        name, weights = f"org/model{number}", random.Random(number).randbytes(SIZE)
        repository = source.hub(name, {"model.safetensors": weights, "config.json": b"{}\n"})
        source.listing(repository)
        pages = (f"/{name}/resolve/{revision}/model.safetensors" for revision in ("main", COMMIT))
        api = f"/api/models/{name}"
        return cls(weights, *pages, repository.storage["model.safetensors"], f"{api}/tree/main", f"{api}/revision/main")


# One for all: to make one costs more than what it asks. It keeps no connection that nobody would close.
CLIENT = httpx.Client(timeout=30, limits=httpx.Limits(max_keepalive_connections=0))


def is_well(service: Server) -> bool:
    return CLIENT.get(service.url + AT_MAIN.replace("model.s", "other.s")).content == WEIGHTS[::-1]


def expect_refusal(url: str, lie: str) -> None:
    """The answer is an error of ours, or breaks off where the source proved wrong on the way."""
    try:
        answer = CLIENT.get(url)
    except httpx.RemoteProtocolError:
        assert "size" in lie
    else:
        assert (answer.status_code, answer.headers.get("x-error-code")) in ((502, "Source"), (502, "WrongBytes")), lie
        assert "evil" not in answer.text


def test_lies_of_the_source(
    source: FaultServer, service: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing wrong is kept or written elsewhere, and when the source has come to itself, all is right."""
    monkeypatch.setattr(distrust, "REST", 0.0)
    monkeypatch.setattr(freshness, "BRANCH", 0.0)
    for number, (lie, (asked, faulty, fault)) in enumerate(LIES.items()):
        told = Told.by(source, number)
        source.fault(getattr(told, faulty), fault, forever=True)
        url = service.url + getattr(told, asked)
        expect_refusal(url, lie)
        assert is_well(service), lie
        source.heal(getattr(told, faulty))
        source.wait_for(lambda url=url: CLIENT.head(url).headers.get("x-linked-size") in (None, str(SIZE)))  # type: ignore[misc]
        again = CLIENT.get(url)
        assert again.status_code == 200, lie
        assert asked in ("tree", "info") or again.content == told.weights, lie
    for path in (tmp_path / "cache").rglob("blobs/*"):
        assert path.suffix in (".lock", ".incomplete") or path.name in digests(path)
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def digests(path: Path) -> tuple[str, str]:
    data = path.read_bytes()
    return hashlib.sha256(data).hexdigest(), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def test_a_refusal_that_is_a_bomb(source: FaultServer, service: Server) -> None:
    for path in (TREE, AT_MAIN):
        source.fault(
            path, Status(404, {"content-encoding": "gzip", "x-error-code": "EntryNotFound"}, BOMB), forever=True
        )
        answer = CLIENT.get(service.url + path)
        assert answer.status_code in (404, 502)
        assert len(answer.content) < 32 * MiB
    assert is_well(service)


def test_what_only_this_machine_can_reach() -> None:
    """Another site does not lead there, by whatever name or form of the address; one that is here may."""
    near = ["127.0.0.1", "127.9.9.9", "169.254.169.254", "0.0.0.0", "::1", "::", "fe80::1%eth0", "::ffff:127.0.0.1"]
    away, here = Reach("hub.example"), Reach("LOCALHOST")
    away.check("hub.example", ["192.0.2.1", "2001:db8::1"])
    here.check("localhost", ["127.0.0.1"])
    for address in near:
        here.check("storage.example", [address])
        with pytest.raises(ProtocolError):
            away.check("storage.example", ["192.0.2.7", address])
    away.check("storage.example", ["192.0.2.7", "10.0.0.1", "2001:db8::2"])


@pytest.mark.anyio
async def test_nothing_is_sent_there() -> None:
    def count(seen: Seen) -> Sent:
        return Sent(200, {}, b"secret")

    with FaultServer() as server:
        server.resources["/"] = Resource(respond=count)
        async with Transport(QUICK, reach=Reach("hub.example")) as transport:
            with pytest.raises(ProtocolError, match="may not lead"):
                await transport.fetch(server.url, limit=10)
        assert not server.accepted
        async with Transport(QUICK, reach=Reach("localhost")) as transport:
            assert (await transport.fetch(server.url, limit=10)).body == b"secret"
    await anyio.lowlevel.checkpoint()


def test_a_source_elsewhere_does_not_lead_here(
    source: FaultServer, service: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions and links alike."""
    check = Reach.check

    def elsewhere(self: Reach, host: str, addresses: list[str]) -> None:
        """As if the name of the source were that of another machine."""
        check(self, host, ["192.0.2.1"] if host == "localhost" else addresses)

    monkeypatch.setattr(Reach, "check", elsewhere)
    assert is_well(service)
    with FaultServer() as inside:
        here = inside.url.replace("localhost", "127.0.0.1")
        source.fault(STORED, redirect(f"{here}/admin"), forever=True)
        answer = CLIENT.get(service.url + AT_MAIN)
        assert (answer.status_code, answer.headers["x-error-code"]) == (502, "Source")
        assert not inside.accepted


def sent(text: str) -> str:
    """A text as it is in a head of ours when it is in UTF-8 on the way."""
    return text.encode().decode("latin-1")


@given(
    st.dictionaries(st.sampled_from(["x-error-message", "x-error-code", "x-repo-commit", "x-total-count"]), st.text())
)
def test_any_headers_are_made_fit(headers: dict[str, str]) -> None:
    for value in told_headers(headers).values():
        assert value.isascii()
        assert value.isprintable()
        assert len(value) <= 1000


@pytest.mark.parametrize("path", [AT_MAIN, TREE, f"/{NAME}/raw/main/model.safetensors"])
def test_headers_that_cannot_be_handed_on(source: FaultServer, service: Server, path: str) -> None:
    """A refusal in any script arrives as such, from the source and from what is kept; what is none is left out."""
    told = {"x-error-code": "EntryNotFound", "x-repo-commit": "../../x", "x-total-count": sent("四")}
    message = sent("没有 模型.safetensors") + " " + "m" * 5000
    source.fault(path, Status(404, {**told, "x-error-message": message}), forever=True)
    for _ in range(2):
        refused = httpx.get(service.url + path)
        assert (refused.status_code, refused.headers["x-error-code"]) == (404, "EntryNotFound")
        assert refused.headers["x-error-message"].startswith("?? ??.safetensors m")
        assert len(refused.headers["x-error-message"]) == 1000
        assert not {"x-repo-commit", "x-total-count"} & set(refused.headers)


def test_a_next_page_in_any_script(source: FaultServer, service: Server) -> None:
    """It is asked for as the source named it; an address that no client could follow is no listing."""

    def listing(seen: Seen) -> Sent:
        headers = {"content-type": "application/json"}
        if "cursor" not in seen.query:
            headers["link"] = f'<{source.url}{TREE}?cursor={sent("页")}%20%2B+2>; rel="next"'
        return Sent(200, headers, json.dumps([entry(seen.query or "first")]).encode())

    source.resources[TREE] = Resource(respond=listing)
    first = httpx.get(service.url + TREE)
    second = httpx.get(first.links["next"]["url"])
    assert [one["path"] for one in first.json() + second.json()] == ["first", "cursor=%E9%A1%B5%20%2B+2"]
    far = {"content-type": "application/json", "link": f'<{source.url}{TREE}?cursor={"p" * 20_000}>; rel="next"'}
    source.resources[TREE] = Resource(respond=lambda _: Sent(200, far, b"[]"))
    assert httpx.get(service.url + TREE + "?recursive=true").status_code == 502
