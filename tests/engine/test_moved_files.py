"""A source that leads to others: one of them dies while it serves a file, and the source leads to another by then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import EntryNotFoundError, NetworkError
from asyncfetch.events import Event, FileProgress, Retrying
from asyncfetch.network.ranges import Target
from asyncfetch.network.reading import read_all, read_span
from asyncfetch.network.transport import Transport
from asyncfetch.sources.links import Links
from asyncfetch.sources.located import SourceFile
from asyncfetch.spans import Span

from ..kit.fault_server import OK, QUICK, Answer, Drip, Fault, FaultServer, Hangup, Mute, Resource, Seen, Status
from ..kit.files import safetensors_bytes
from ..kit.small_model import ONE_FILE, SINGLE, load, same

pytestmark = pytest.mark.anyio

TENSORS = {f"t{n}": np.random.default_rng(n).integers(0, 255, 300_000, dtype=np.uint8) for n in range(10)}
BODY = safetensors_bytes(TENSORS)
PATH = "/mirror/model.safetensors"
NODE = "/pool/model.safetensors"
PATIENT = replace(QUICK, patience=60, attempts=3, max_backoff=0.1, connections=5, min_split=1 << 18)


class Front:
    """Three servers: one that leads to the first or the second of the others."""

    def __init__(self, servers: tuple[FaultServer, FaultServer, FaultServer]) -> None:
        self.source, self.one, self.other = servers
        self.leads_to = self.one
        self.url = self.source.url + PATH
        self.source.resources[PATH] = Resource(respond=self._redirect)
        for node in (self.one, self.other):
            node.web("/pool", {"model.safetensors": BODY})

    def _redirect(self, _seen: Seen) -> Answer:
        return Answer(302, {"location": self.leads_to.url + NODE}, b"over there")

    @property
    def asked(self) -> int:
        return len(self.source.to(PATH))


@pytest.fixture
def front() -> Iterator[Front]:
    with FaultServer() as source, FaultServer() as one, FaultServer() as other:
        yield Front((source, one, other))


def when_half_is_here(
    strike: Callable[[], object], *, after: int = 0, then: Callable[[], object] = lambda: None
) -> Callable[[Event], None]:
    """A reporter that strikes once half of the file is here, and does `then` at the retry of number `after`."""
    struck, retried = list[Event](), list[Event]()

    def report(event: Event) -> None:
        if isinstance(event, FileProgress) and event.received > len(BODY) // 2 and not struck:
            struck.append(event)
            strike()
        if isinstance(event, Retrying):
            retried.append(event)
            if len(retried) == after:
                then()

    return report


async def loaded(front: Front, cache: Path, **options: Any) -> None:
    state = await asyncfetch.load_async(front.url, cache_dir=cache, **{"policy": PATIENT, **options})
    assert all(np.array_equal(state[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("storage", ["disk", "memory"])
async def test_the_source_leads_to_another_node(front: Front, tmp_path: Path, storage: str) -> None:
    """All connections are cut and refused: the source is asked once for all, and each goes on where it was."""
    front.one.fault(NODE, OK, Drip(20_000, 0.02), forever=True)
    before: list[int] = []

    def strike() -> None:
        before.append(front.asked)
        front.leads_to = front.other
        front.one.go_away()

    await loaded(front, tmp_path, storage=storage, report=when_half_is_here(strike))
    assert front.asked == before[0] + 1
    assert 0 < front.other.sent(NODE) < 0.6 * len(BODY)


async def test_an_open_checkpoint_goes_on_elsewhere(front: Front, tmp_path: Path) -> None:
    """Tensors that are read when the node is gone come from the other."""
    async with asyncfetch.Client(cache_dir=tmp_path, policy=PATIENT) as client:
        checkpoint = await client.open(front.url)
        assert np.array_equal(await checkpoint.tensor("t9"), TENSORS["t9"])
        before = front.asked
        front.leads_to = front.other
        front.one.go_away()
        async with anyio.create_task_group() as group:
            for name in ("t2", "t4", "t7"):
                group.start_soon(checkpoint.tensor, name)
        assert np.array_equal(await checkpoint.tensor("t5"), TENSORS["t5"])
        assert front.asked == before + 1
        await checkpoint.aclose()


@pytest.mark.parametrize(
    "says",
    [Mute, Hangup, Status(503), Status(429, {"retry-after": "200"}), Status(404), Status(401), None],
    ids=["nothing", "hangs-up", "503", "429", "404", "401", "is-gone"],
)
async def test_a_source_that_cannot_tell(front: Front, tmp_path: Path, says: Fault | None) -> None:
    """A node that is away for a moment is gone back to, whatever becomes of the source: as if it had not been asked."""
    front.one.fault(NODE, OK, Drip(50_000, 0.02), forever=True)

    def strike() -> None:
        front.one.go_away()
        if says is None:
            front.source.go_away()
        else:
            front.source.fault(PATH, says, forever=True)

    report = when_half_is_here(strike, after=30, then=front.one.come_back)
    policy = replace(PATIENT, read_timeout=0.3)
    with anyio.fail_after(25):
        await loaded(front, tmp_path, policy=policy, report=report)
    assert not front.other.seen


async def test_another_file_elsewhere_is_not_mixed_in(front: Front, tmp_path: Path) -> None:
    """Where nothing but its ETag tells what a file is, a node with another one does not take over; the first does."""
    front.other.web("/pool", {"model.safetensors": BODY}, etag='"another"')
    front.one.fault(NODE, OK, Drip(50_000, 0.02), forever=True)

    def strike() -> None:
        front.leads_to = front.other
        front.one.go_away()

    report = when_half_is_here(strike, after=25, then=front.one.come_back)
    await loaded(front, tmp_path, report=report)
    assert all(seen.looks and seen.sent <= 1 for seen in front.other.seen)


async def test_links_of_a_hub(server: FaultServer, tmp_path: Path) -> None:
    """Storage that fails twice in a row is left for what the Hub names then: at the second failure, and no sooner."""
    repository = server.hub("org/model", ONE_FILE)
    path = repository.storage[SINGLE]
    page = "/org/model/resolve/main/" + SINGLE
    asked: dict[int, int] = {}
    for failures in (1, 2, 3, 4):
        server.fault(path, *failures * [Status(503)])
        before = len(server.to(page)) + len(server.to(repository.pages[SINGLE]))
        policy = replace(PATIENT, connections=1, attempts=9)
        assert same(await load(server, tmp_path / str(failures), policy=policy))
        asked[failures] = len(server.to(page)) + len(server.to(repository.pages[SINGLE])) - before
    assert asked[2] == asked[1] + 1
    assert asked[3] == asked[2]
    assert asked[4] == asked[3] + 1


@pytest.mark.parametrize("whole", [False, True], ids=["span", "all"])
async def test_what_is_read_into_memory(server: FaultServer, whole: bool) -> None:
    """Indexes and headers too; and where nobody can be asked, the error is as before."""
    server.web("/files", {"x.bin": BODY[:5000]})
    with FaultServer() as gone:
        dead = Target(gone.url + "/x.bin", signed=True)
    asked: list[bool] = []

    async def renew() -> Target:
        asked.append(True)
        return Target(server.url + "/files/x.bin", signed=True)

    async def read(**options: Any) -> bytes:
        if whole:
            return await read_all(transport, dead, limit=5000, file="x", **options)
        return await read_span(transport, dead, Span(0, 5000), file="x", size=5000, **options)

    async with Transport(replace(QUICK, attempts=4)) as transport:
        assert await read(renew=renew) == BODY[:5000]
        assert asked == [True]
        with pytest.raises(NetworkError):
            await read()
        dead = replace(dead, signed=False)
        with pytest.raises(NetworkError):
            await read(renew=renew)
        assert asked == [True]


class _Origin:
    """Tells the same address again and again, until it has been asked often enough."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), 0

    async def target(self, file: SourceFile, *, renew: bool) -> Target:
        if renew:
            self.asked += 1
            await anyio.lowlevel.checkpoint()
            if self.answers[0] == "none":
                raise EntryNotFoundError(self.answers.pop(0), "here")
            file.target = Target(self.answers.pop(0), signed=True)
        assert file.target is not None
        return file.target


async def test_the_same_answer_is_for_all_who_wait() -> None:
    """Many who find one node away get one answer, also if it is the same address; and ask again if that is away."""
    origin = _Origin("https://a/", "none", "https://b/")
    file = SourceFile("x", 1, None, target=Target("https://a/", signed=True))
    links = Links(origin)
    used = [await links.target(file, None)] * 7
    for asked, url in ((1, "https://a/"), (3, "https://b/")):
        now: list[Target] = []

        async def ask(refused: Target, now: list[Target]) -> None:
            try:
                now.append(await links.target(file, replace(refused, hashed=True)))
            except EntryNotFoundError:
                assert origin.asked == 2

        async with anyio.create_task_group() as group:
            for refused in used:
                group.start_soon(ask, refused, now)
        assert origin.asked == asked
        assert {target.url for target in now} == {url}
        used = now
    assert len(used) == 6
