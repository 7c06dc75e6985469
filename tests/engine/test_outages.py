"""The network goes away and comes back: how long a download goes on, what it tells, what its last word is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncfetch.errors import AsyncfetchError, NetworkError, RateLimitedError, ServerError
from asyncfetch.events import Event, FileStarted, Retrying
from asyncfetch.policy import Policy

from ..kit.fault_server import LOOK, QUICK, Fault, FaultServer, Hangup, Mute, ResetAtOnce, Status, Truncate
from ..kit.small_model import FILES, KINDS, ONE_FILE, SINGLE, load, same

PATIENT = replace(QUICK, attempts=2, max_backoff=0.02, patience=60, read_timeout=0.2)


@pytest.mark.anyio
@KINDS
async def test_an_outage_is_waited_for(server: FaultServer, tmp_path: Path, kind: str) -> None:
    """Connections are cut in the middle and refused from then on, many times more often than `attempts` says."""
    server.hub("org/model", FILES)
    told: list[Event] = []

    def report(event: Event) -> None:
        told.append(event)
        retries = sum(isinstance(one, Retrying) for one in told)
        if isinstance(event, FileStarted) and sum(isinstance(one, FileStarted) for one in told) == 1:
            server.go_away()
        elif isinstance(event, Retrying) and retries == 12:
            server.come_back()

    assert same(await load(server, tmp_path, policy=PATIENT, kind=kind, report=report))
    waits = [event for event in told if isinstance(event, Retrying)]
    assert len(waits) >= 12
    assert all(event.patience is not None and 0 < event.patience <= 60 for event in waits)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fault", "times"),
    [(Hangup, 9), (ResetAtOnce, 9), (Truncate(0), 9), (Mute, 4), (Status(503), 9), (Status(502), 9), (Status(500), 9)],
    ids=["hangs up", "resets", "ends early", "says nothing", "503", "502", "500"],
)
async def test_kinds_of_outages(server: FaultServer, tmp_path: Path, fault: Fault, times: int) -> None:
    """However a server that answered well is away: it is tried again until it is back."""
    path = server.hub("org/model", ONE_FILE).storage[SINGLE]
    server.fault(path, Truncate(1000), *times * [fault])
    assert same(await load(server, tmp_path, policy=replace(PATIENT, connections=1)))
    assert len(server.to(path)) == times + 2


@pytest.mark.anyio
@pytest.mark.parametrize("storage", ["disk", "memory"])
async def test_the_last_word_is_how_to_go_on(server: FaultServer, tmp_path: Path, storage: str) -> None:
    """When patience is over: the network's error, which says how much is kept; and the next call goes on there."""
    path = server.hub("org/model", ONE_FILE).storage[SINGLE]
    server.fault(path, LOOK, Truncate(100_000), Hangup, forever=True)
    policy = replace(PATIENT, patience=0.2, connections=1)
    with pytest.raises(NetworkError) as caught:
        await load(server, tmp_path, policy=policy, storage=storage)
    kept = "Call it again to go on: 0.1 of 0.3 MB are kept."
    assert (kept in caught.value.hint) == (storage == "disk")
    server.heal(path)
    assert same(await load(server, tmp_path, policy=policy))
    assert (server.to(path)[-1].start == 100_000) == (storage == "disk")


@pytest.mark.anyio
@pytest.mark.parametrize("fault", [Status(503), Status(429, {"retry-after": "3600"})], ids=["503", "429"])
async def test_the_last_word_counts_what_has_landed(server: FaultServer, tmp_path: Path, fault: Fault) -> None:
    """Files that are whole are kept as well. What else there is to say is said too."""
    last = server.hub("org/model", FILES).storage["model-00002-of-00002.safetensors"]
    server.fault(last, LOOK, fault, forever=True)
    with pytest.raises((ServerError, RateLimitedError)) as caught:
        await load(server, tmp_path, policy=replace(PATIENT, patience=0.1, connections=1))
    assert caught.value.hint.endswith("Call it again to go on: 0.2 of 0.3 MB are kept.")
    assert ("Wait, or send a token" in caught.value.hint) == isinstance(caught.value, RateLimitedError)


@pytest.mark.anyio
@pytest.mark.parametrize("fault", [Hangup, Status(503), None], ids=["hangs up", "503", "refuses"])
async def test_a_first_contact_gets_attempts_alone(server: FaultServer, tmp_path: Path, fault: Fault | None) -> None:
    """An address that never gave a good answer may be a wrong one: a few attempts, whatever patience says."""
    server.hub("org/model", ONE_FILE)
    if fault is None:
        server.go_away()
    else:
        server.fault(f"/org/model/resolve/main/{SINGLE}.index.json", fault, forever=True)
    told: list[Any] = []
    with pytest.raises(NetworkError) as caught, anyio.fail_after(30):
        await load(server, tmp_path, policy=replace(PATIENT, attempts=4, patience=3600), report=told.append)
    assert isinstance(caught.value, ServerError) == (fault is not None and fault is not Hangup)
    assert [(event.attempt, event.attempts, event.patience) for event in told] == [(n, 4, None) for n in (1, 2, 3)]


def test_defaults() -> None:
    """Some minutes, as documented; the variable and the field say the same."""
    assert Policy().patience == 300
    assert Policy.from_env({"ASYNCFETCH_PATIENCE": "90.5"}).patience == 90.5
    with pytest.raises(AsyncfetchError, match="ASYNCFETCH_PATIENCE"):
        Policy.from_env({"ASYNCFETCH_PATIENCE": "5m"})
