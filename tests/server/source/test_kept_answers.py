"""For how long what another Hub said counts, by a clock that the test sets."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest

from asyncfetch.server import Server, endpoints
from asyncfetch.server.pull_through import PullThrough
from asyncfetch.server.source import freshness, grants
from asyncfetch.server.source.freshness import AWAY, BRANCH, DECISION, LAPSED, Access, Answer, Health, is_fresh
from asyncfetch.server.source.grants import Grants

from ...kit.canaries import TOKEN
from ...kit.fault_server import COMMIT, FaultServer, Mute, Status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "org/model"
YEARS = 10 * 365 * 86400.0
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def source() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.listing(server.hub(NAME, {"config.json": b"{}", "model.safetensors": b"x" * 100_000}))
        yield server


class Clock:
    """The clock of a service, which can be moved on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(endpoints, "PullThrough", partial(PullThrough, now=moved))
    return moved


class Asking:
    """Asks a service, and counts what that asks its source."""

    def __init__(self, service: Server, source: FaultServer) -> None:
        self.service, self.source = service, source

    def __call__(self, path: str, method: str = "HEAD", **headers: str) -> tuple[int, int]:
        """The status, and how many requests the source got."""
        before = len(self.source.seen)
        answer = httpx.request(method, self.service.url + path, headers=headers, timeout=15)
        return answer.status_code, len(self.source.seen) - before


@pytest.fixture
def ask(source: FaultServer, tmp_path: Path, clock: Clock) -> Iterator[Asking]:
    with Server(tmp_path, upstream=source.url) as service:
        yield Asking(service, source)


def page(file: str, revision: str = "main") -> str:
    return f"/{NAME}/resolve/{revision}/{file}"


def test_what_is_absent_is_absent_for_so_long(ask: Asking, clock: Clock) -> None:
    """Of a branch for half a minute, of a commit for as long as anybody may see the repository."""
    assert [ask(page("absent")), ask(page("absent", COMMIT))] == [(404, 1), (404, 1)]
    clock.ahead = BRANCH - 5
    assert [ask(page("absent")), ask(page("absent", COMMIT))] == [(404, 0), (404, 0)]
    clock.ahead = BRANCH + 1
    assert [ask(page("absent")), ask(page("absent", COMMIT))] == [(404, 1), (404, 0)]
    ask.source.hub(NAME, {"absent": b"here by now"})
    clock.ahead = 2 * BRANCH + 2
    assert ask(page("absent")) == (200, 1)


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "GatedRepo"), (401, "RepoNotFound"), (404, None), (410, None)],
)
def test_a_refusal_counts_for_nobody_else(ask: Asking, status: int, code: str | None) -> None:
    """It is asked for again each time, so whoever is let in is let in at once."""
    for path in (page("config.json"), f"/api/models/{NAME}/revision/main", f"/api/models/{NAME}/tree/{COMMIT}"):
        refused = Status(status, {"x-error-code": code} if code else {})
        ask.source.fault(path, refused, refused)
        assert [ask(path), ask(path), ask(path, **BEARER)] == [(status, 1), (status, 1), (200, 1)]
        assert ask(path)[0] == 200


def test_a_revision_that_may_be_pushed_tomorrow(ask: Asking, clock: Clock) -> None:
    path = page("config.json", "f" * 40)
    ask.source.fault(path, *[Status(404, {"x-error-code": "RevisionNotFound"})] * 2)
    assert [ask(path), ask(path)] == [(404, 1), (404, 0)]
    clock.ahead = BRANCH + 1
    assert ask(path) == (404, 1)


def test_years_later_and_the_source_is_away(source: FaultServer, tmp_path: Path, clock: Clock) -> None:
    """Revision, tree and HEAD, of a branch and of a commit, by another process than the one that asked."""
    asked = [
        *(f"/api/models/{NAME}/{kind}/{revision}" for kind in ("revision", "tree") for revision in ("main", COMMIT)),
        *(page(file, revision) for file in ("config.json", "absent") for revision in ("main", COMMIT)),
    ]
    with Server(tmp_path, upstream=source.url) as service:
        before = [httpx.get(service.url + path).status_code for path in asked]
        assert before == [200] * 6 + [404] * 2
        source.wait_for(lambda: [*tmp_path.glob("models--*/snapshots/*/config.json")] != [])
    source.go_away()
    clock.ahead = YEARS
    with Server(tmp_path, upstream=source.url) as service:
        assert [httpx.get(service.url + path).status_code for path in asked] == before
        assert httpx.get(service.url + page("config.json")).content == b"{}"
        assert (
            httpx.post(f"{service.url}/api/models/{NAME}/paths-info/{COMMIT}", json={"paths": ["config.json"]}).json()[
                0
            ]["size"]
            == 2
        )


def statuses(service: Server, paths: list[str], headers: dict[str, str] | None = None) -> list[int]:
    return [httpx.get(service.url + path, headers=headers, timeout=15).status_code for path in paths]


@pytest.mark.parametrize("hears", [{}, {"Authorization": "Bearer of-somebody-else"}], ids=["nobody", "somebody-else"])
def test_what_is_not_for_everybody_any_more(
    source: FaultServer, tmp_path: Path, clock: Clock, hears: dict[str, str]
) -> None:
    """One refusal of one file closes all of it, for all servers of the cache, until the Hub says otherwise."""
    asked = [page("config.json"), page("model.safetensors", COMMIT), f"/api/models/{NAME}/tree/{COMMIT}"]
    with Server(tmp_path, upstream=source.url) as one, Server(tmp_path, upstream=source.url) as other:
        for service in (one, other):
            assert [statuses(service, asked), statuses(service, asked, BEARER)] == [[200] * 3] * 2
        source.token = TOKEN
        assert statuses(one, [page("another.safetensors")], hears) == [401]
        source.go_away()
        clock.ahead = DECISION + 1
        with Server(tmp_path, upstream=source.url) as later:
            for service in (one, other, later):
                assert statuses(service, asked) == [502] * 3
                assert statuses(service, asked, BEARER) == [200] * 3
        source.come_back()
        source.token = None
        assert statuses(one, asked) == [200] * 3
        source.go_away()
        clock.ahead = YEARS
        with Server(tmp_path, upstream=source.url) as later:
            for service in (one, later):
                assert statuses(service, asked) == [200] * 3


def test_what_became_gated(source: FaultServer, tmp_path: Path, clock: Clock) -> None:
    """Its listing stays for everybody, its files do not."""
    files = [page("config.json"), page("config.json", COMMIT), page("model.safetensors")]
    listings = [f"/api/models/{NAME}/tree/{COMMIT}", f"/api/models/{NAME}/revision/main"]
    with Server(tmp_path, upstream=source.url) as one, Server(tmp_path, upstream=source.url) as other:
        for service in (one, other):
            assert statuses(service, files + listings) == [200] * 5
        clock.ahead = DECISION + 1
        source.fault(page("model.safetensors"), Status(403, {"x-error-code": "GatedRepo"}))
        assert statuses(one, [page("model.safetensors")]) == [403]
        source.go_away()
        for service in (one, other):
            assert statuses(service, files + listings) == [502] * 3 + [200] * 2


def test_many_tokens_do_not_close_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness, "_MOST", 3)
    access = Access(b"key")
    access.grant("", NAME, "told", 1.0)
    for number in range(5):
        access.grant(f"token {number}", NAME, "told", 2.0)
    assert access.is_open(NAME, "told")
    assert [access.could(f"token {number}", NAME, "told", 2.0) for number in range(5)] == [False] * 2 + [True] * 3
    for number in range(3):
        access.grant("", f"org/model-{number}", "told", 3.0)
    assert not access.is_open(NAME, "told")


def test_the_last_word_counts_whichever_server_heard_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants, "_MOST", 2)
    now = 1e9
    one, other = Grants(tmp_path, lambda: now), Grants(tmp_path, lambda: now)
    for access in (one.access, other.access):
        for name in "abc":
            access.grant("who", name, "told", now)
    one.save(one.access.take_changes())
    assert other.refused() == {}
    now += 5
    for name in "abc":
        one.access.revoke("who", name, "told")
    one.access.revoke("who", "nobody may", "told")  # nor ever might: nothing is kept of it
    one.save(one.access.take_changes())
    other.access.grant("who", "a", "told", now + 1)
    refused = other.refused()
    assert list(refused.values()) == [now] * 3
    assert other.refused() == {}  # nothing is new
    other.access.take_back(refused)
    assert [other.access.could("who", name, "told", now + 1) for name in "abc"] == [True, False, False]
    other.save(other.access.take_changes())  # what it was told before does not come back
    later = Grants(tmp_path, lambda: now + 1)
    assert [later.access.could("who", name, "told", now + 1) for name in "abc"] == [True, False, False]
    assert len(Grants(tmp_path, lambda: now).refused()) == 2


def test_several_questions_take_no_longer_than_one(
    source: FaultServer, ask: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a list of paths the listing of each folder may be needed."""
    monkeypatch.setattr("asyncfetch.server.pull_through.PATIENCE", 0.5)
    for folder in "ab":
        source.fault(f"/api/models/{NAME}/tree/{COMMIT}/{folder}", Mute, forever=True)
    path, paths = f"{ask.service.url}/api/models/{NAME}/paths-info/{COMMIT}", ["a/1", "b/2"]
    assert httpx.post(path, json={"paths": paths}, timeout=6).status_code == 502


def test_how_long_things_count() -> None:
    answer = Answer(404, {}, b"", 1000.0, fixed=False, open=True)
    assert [is_fresh(answer, 1000.0 + after) for after in (0, BRANCH - 0.1, BRANCH, YEARS)] == [
        True,
        True,
        False,
        False,
    ]
    assert not is_fresh(answer, 999.0)  # the clock was set back
    assert is_fresh(answer._replace(fixed=True), 1000.0 + YEARS)
    access = Access(b"key")
    access.grant("who", NAME, "files", 1000.0)
    assert [access.may("who", NAME, "told", 1000.0 + after) for after in (DECISION - 1, DECISION)] == [True, False]
    assert [access.could("who", NAME, "told", 1000.0 + after) for after in (LAPSED - 1, LAPSED)] == [True, False]
    health = Health()
    health.failed(1000.0)
    assert [health.away(1000.0 + after) for after in (AWAY - 1, AWAY)] == [True, False]
    health.failed(1000.0)
    health.answered(1001.0)
    assert (health.away(1001.0), health.reached(1002.0)) == (False, True)
