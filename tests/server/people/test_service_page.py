"""The page of a server before another Hub, as text, and who watches it."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest

from asyncfetch.server import Server
from asyncfetch.server.people import live
from asyncfetch.server.people import state as people_state
from asyncfetch.server.people.live import Live, View
from asyncfetch.server.people.service_page import HEADERS, page_parts, service_page

from ...kit.fault_server import FaultServer
from ...kit.small_model import ONE_LOOP

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;</script><script>alert(2)</script>"


@pytest.fixture
def source() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def state(**changed: Any) -> dict[str, Any]:
    """A document of a server that does nothing."""
    source = {"url": "http://hub", "state": "well", "reason": None, "retry_after": None, "rate_limit": None}
    traffic = dict.fromkeys(("served", "fetched", "saved", "asked", "retries", "wrong_hashes"), 0)
    lists = {"arriving": [], "jobs": [], "kept": [], "failures": []}
    counts = {"arriving_in_all": 0, "jobs_in_all": 0, "kept_in_all": 0, "kept_named": 0}
    room = {"used": 0, "max_size": None, "min_free": None}
    return {"source": source, "traffic": traffic, "room": room, **lists, **counts, **changed}


class Elements(HTMLParser):
    """All elements with their attributes, as a browser takes them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_names_are_text_wherever_they_stand() -> None:
    error = {"code": "x", "message": HOSTILE, "hint": HOSTILE}
    held = {"reason": HOSTILE, "retry_in": 3.0}
    arriving = {
        "repository": HOSTILE, "file": HOSTILE, "size": 10, "received": 5, "state": "backoff", "rate": 1,
        "seconds_left": 5.0, "retries": 1, "restarts": 1, "readers": 2, **held,
    }  # fmt: skip
    job = {
        "id": "0" * 12, "task": "prefetch", "repository": HOSTILE, "revision": HOSTILE, "include": [HOSTILE],
        "exclude": [HOSTILE], "state": "needs_token", "created": 0.0, "started": None, "ended": 1.0, "commit": None,
        "files": 3, "files_done": 1, "size": 10, "received": 5, "rate": None, "reason": HOSTILE, "error": error,
    }  # fmt: skip
    kept = {"repository": HOSTILE, "files": 1, "size": 5, "last_read": 1.0, "hits": 2, "pinned": False}
    source = {"url": HOSTILE, "state": "away", "reason": HOSTILE, "retry_after": 5.0, "rate_limit": None}
    failure = {"at": 1.0, "repository": HOSTILE, "file": HOSTILE, **error}
    document = state(arriving=[arriving], jobs=[job], kept=[kept], source=source, failures=[failure])
    page = service_page(document, origin=HOSTILE, base=HOSTILE, admin="yes", own={"models": [HOSTILE]})
    elements = Elements(page).found
    assert [tag for tag, _ in elements].count("script") == 1
    assert not any(tag == "img" or any(name.startswith("on") for name in attributes) for tag, attributes in elements)
    (button,) = (attributes for _, attributes in elements if attributes.get("data-path") == "kept/pin")
    assert json.loads(button["data-body"] or "") == {"repository": HOSTILE}
    assert all(html in page for html in page_parts(document, full=True).values())


def test_long_hashes_are_told_by_their_beginning() -> None:
    """In whatever is said of a file: an address of storage would fill the screen of a phone."""
    said = f"http://storage/{'ab' * 32}: it closed the connection"
    error = {"code": "x", "message": said, "hint": ""}
    arriving = {
        "repository": "o/m", "file": "x", "size": 10, "received": 5, "state": "backoff", "rate": None,
        "seconds_left": None, "retries": 1, "restarts": 0, "readers": 0, "reason": said, "retry_in": None,
    }  # fmt: skip
    page = page_parts(
        state(arriving=[arriving], failures=[{"at": 1.0, "repository": "o/m", "file": "x", **error}]), full=True
    )
    for part in ("arriving", "trouble"):
        assert f"http://storage/{'ab' * 6}…: it closed" in page[part]


@pytest.mark.parametrize(("most", "token"), [(3, None), (1, "admin"), (9, None)])
def test_all_that_is_kept_can_be_seen(
    source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, token: str | None
) -> None:
    """The page has the largest, and leads to one with all. What may not be named to everybody is counted."""
    monkeypatch.setattr(people_state, "MOST", most)
    for number in range(5):
        snapshot = tmp_path / "cache" / f"models--org--m{number}" / "snapshots" / ("c" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_bytes(b" " * (number + 1))
    with Server(tmp_path / "cache", upstream=source.url, admin_token=token) as server:
        some, all_ = (httpx.get(f"{server.url}/{query}").text for query in ("", "?kept=all"))
    if token is not None:
        assert all("And 5 repositories not shown to everybody." in page for page in (some, all_))
        return
    shown = [re.findall(r'<th scope="row">(org/m\d)', page) for page in (some, all_)]
    assert shown == [["org/m4", "org/m3", "org/m2", "org/m1", "org/m0"][:number] for number in (most, 5)]
    leads = ["?kept=all" in [values.get("href") for _, values in Elements(page).found] for page in (some, all_)]
    assert leads == [most < 5, False]
    assert ("2 smaller repositories" in some) is (most == 3)


def test_nothing_runs_but_what_is_in_the_page() -> None:
    policy = dict(part.strip().partition(" ")[::2] for part in HEADERS["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert re.fullmatch(r"'sha256-[^ ]+'", policy["script-src"])
    assert re.fullmatch(r"'sha256-[^ ]+'", policy["style-src"])


class Counting:
    """A state that is another one at each look."""

    def __init__(self) -> None:
        self.looks = 0

    async def document(self, *, full: bool) -> dict[str, Any]:
        self.looks += 1
        return state(kept_in_all=self.looks, arriving_in_all=int(full))


@pytest.mark.anyio
@ONE_LOOP
async def test_who_reads_slowly_gets_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TICK", 0.0)
    counting = Counting()
    shown = Live(counting)  # type: ignore[arg-type]
    slow, quick = (shown.events(View(full=True, page=False)) for _ in range(2))
    for viewer in (slow, quick):
        assert await anext(viewer) == b"retry: 3000\n\n"
    looks = [json.loads((await anext(viewer)).partition(b"data: ")[2])["kept_in_all"] for viewer in [quick] * 20]
    assert looks == sorted(set(looks))
    latest = json.loads((await anext(slow)).partition(b"data: ")[2])
    assert latest["kept_in_all"] > looks[-1]
    page = shown.events(View(full=False, page=True))
    await anext(page)
    assert json.loads((await anext(page)).partition(b"data: ")[2]) == page_parts(
        state(kept_in_all=counting.looks), full=False
    )
    shown.end()
    with anyio.fail_after(5):
        assert [event async for event in slow] == []
    for viewer in (slow, quick, page):
        await viewer.aclose()


def test_not_too_many_watch(source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MOST", 3)
    with (
        Server(tmp_path / "cache", upstream=source.url) as server,
        httpx.Client(base_url=f"{server.url}/api/asyncfetch/") as client,
    ):
        with ExitStack() as watching:
            for _ in range(3):
                response = watching.enter_context(client.stream("GET", "events"))
                assert response.headers["content-type"].startswith("text/event-stream")
                lines = response.iter_lines()
                watching.callback(lines.close)
                assert json.loads(next(line for line in lines if line.startswith("data: "))[6:])["kept"] == []
            assert client.get("events").status_code == 503
        source.wait_for(lambda: client.head("events").status_code == 200)


def test_who_watches_is_let_go_when_the_server_ends(source: FaultServer, tmp_path: Path) -> None:
    with ExitStack() as ending:
        server = ending.enter_context(Server(tmp_path / "cache", upstream=source.url))
        with httpx.stream("GET", f"{server.url}/api/asyncfetch/events") as response:
            lines = response.iter_lines()
            assert next(line for line in lines if line.startswith("data: "))
            ending.close()
            assert [line for line in lines if line.startswith("data: ")] == []  # a connection that is cut would raise
