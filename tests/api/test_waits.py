"""Time: waits that a server asks for, connections that drip, deadlines of the caller."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncfetch.errors import RateLimitedError, ServerError, StalledError
from asyncfetch.events import Retrying
from asyncfetch.network.transport import Transport

from ..kit.fault_server import LOOK, QUICK, Answer, Drip, Fault, FaultServer, Raw, Stall, Status, transport_of
from ..kit.small_model import CALM, FILES, KINDS, ONE_FILE, ONE_LOOP, SHARD, SINGLE, load, same

# -- waits -----------------------------------------------------------------------------------------


@pytest.mark.anyio
@ONE_LOOP
async def test_sixteen_connections_do_not_wake_together(server: FaultServer) -> None:
    """After a 429 none comes before its time, and then they come spread out, not at one moment."""
    server.web("/files", {"x": b"hello"})
    limited = Status(429, {"retry-after": "1"})
    server.fault("/files/x", *16 * [limited])
    arrived: list[float] = []

    def arrival(answer: Answer) -> Answer:
        arrived.append(time.monotonic())
        return answer

    server.fault("/files/x", arrival, forever=True)
    async with Transport(CALM) as transport:
        began = time.monotonic()
        async with anyio.create_task_group() as group:
            for _ in range(16):
                group.start_soon(lambda: transport.fetch(server.url + "/files/x", limit=10))
    assert len(arrived) == 16
    assert min(arrived) - began >= 1
    busiest = max(sum(at <= other < at + 0.1 for other in arrived) for at in arrived)
    assert busiest <= 10  # of sixteen within a tenth of a second; all of them without a spread


@pytest.mark.anyio
@ONE_LOOP
@KINDS
@pytest.mark.parametrize(
    "lines",
    [
        b"Retry-After: 0",
        b"Retry-After: 0\r\nRetry-After: 86400",
        b"Retry-After: -1",
        b"Retry-After: \xb2",
        b"Retry-After:",
        b"Retry-After: soon",
        b"Retry-After: Sun, 31 Dec 2023 00:00:00 GMT\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT",
        b"Retry-After: Mon, 01 Jan 2024 00:00:00 GMT\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT",
        b"RateLimit: rubbish",
    ],
)
async def test_waits_that_are_none(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, lines: bytes, kind: str
) -> None:
    """Zero, the past and nonsense, as bytes on a wire: the usual backoff, and no foreign error."""
    monkeypatch.setattr(random, "random", lambda: 0.0)
    server.web("/files", {"x": b"hello"})
    server.fault("/files/x", Raw(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n" + lines + b"\r\n\r\n"))
    async with transport_of(kind, CALM) as transport:
        began = time.monotonic()
        assert (await transport.fetch(server.url + "/files/x", limit=10)).body == b"hello"
    assert time.monotonic() - began < 1.5


@pytest.mark.anyio
@ONE_LOOP
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "999999999"}, 999_999_999),
        ({"retry-after": "Tue, 02 Jan 2024 00:00:00 GMT"}, 86_400),  # the server's Date is the first of January
        ({"ratelimit": '"api";r=0;t=3600'}, 3601),
        ({"retry-after": format_datetime(datetime(9999, 1, 1, tzinfo=UTC), usegmt=True)}, None),
    ],
)
async def test_waits_that_are_too_long(
    server: FaultServer, tmp_path: Path, status: int, headers: dict[str, str], seconds: float | None
) -> None:
    """What is beyond the policy's patience ends the load at once, with the wait in the error."""
    path = server.hub("org/model", FILES).storage[SHARD]
    server.fault(path, Status(status, headers), forever=True)
    began = time.monotonic()
    with pytest.raises(RateLimitedError if status == 429 else ServerError) as caught:
        await load(server, tmp_path)
    assert time.monotonic() - began < 5
    assert len(server.to(path)) == 1
    assert isinstance(caught.value, RateLimitedError | ServerError)
    assert caught.value.retry_after is not None
    assert seconds is None or caught.value.retry_after == seconds


# -- drips -----------------------------------------------------------------------------------------


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("storage", ["disk", "memory"])
async def test_slow_loris(server: FaultServer, tmp_path: Path, storage: str, kind: str) -> None:
    """A byte in time for each read is still a stall: given up within the window and a second, and resumed."""
    path = server.hub("org/model", ONE_FILE).storage[SINGLE]
    dripped: list[float] = []

    def drip(answer: Answer) -> Answer:
        dripped.append(time.monotonic())
        return Drip(1, 0.02)(answer)

    server.fault(path, LOOK, drip)
    policy = replace(CALM, stall_window=0.3, stall_bytes=1000, connections=1)
    reasons: list[tuple[float, str]] = []

    def report(event: Any) -> None:
        if isinstance(event, Retrying):
            reasons.append((time.monotonic(), event.reason))

    assert same(await load(server, tmp_path, policy=policy, storage=storage, kind=kind, report=report))
    ((at, reason),) = reasons
    assert "only" in reason
    assert 0.25 < at - dripped[0] < 0.3 + 1
    dripping, resumed = server.to(path)[-2:]
    # The last bytes may still have been on their way, one every 20 ms; from the beginning it would be 15 at least.
    assert 0 <= (dripping.start or 0) + dripping.sent - (resumed.start or 0) <= 8


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("fault", [Drip(1, 0.02), Stall(0), Drip(2000, 0.1)], ids=["loris", "silence", "slow"])
async def test_deadline_of_the_caller(server: FaultServer, tmp_path: Path, fault: Fault, kind: str) -> None:
    """Whatever comes over the wire, or does not, a deadline around the call is obeyed, and the bytes stay."""
    path = server.hub("org/model", ONE_FILE).storage[SINGLE]
    server.fault(path, LOOK, fault, forever=True)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.5):
            await load(server, tmp_path, policy=replace(CALM, stall_window=20), kind=kind)
    assert time.monotonic() - began < 2.5
    server.heal(path)
    assert same(await load(server, tmp_path, kind=kind))
    cut, resumed = [seen.start or 0 for seen in server.to(path)][-2:]
    assert resumed >= cut


@pytest.mark.anyio
@ONE_LOOP
async def test_drip_that_never_ends(server: FaultServer, tmp_path: Path) -> None:
    """Connections that bring a few bytes each do not refill the budget: the load ends with the network's error."""
    path = server.hub("org/model", ONE_FILE).storage[SINGLE]
    server.fault(path, LOOK, Drip(1, 0.01), forever=True)
    policy = replace(CALM, stall_window=0.1, stall_bytes=1000, connections=1)
    with pytest.raises(StalledError):
        await load(server, tmp_path, policy=policy)
    assert len(server.to(path)) == QUICK.attempts
