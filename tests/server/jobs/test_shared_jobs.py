"""Jobs of servers that share a cache: each tells all of them, one runs each, and another goes on where one ended."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from asyncfetch.server.jobs import job_files
from asyncfetch.server.jobs.job_files import JobFiles
from asyncfetch.server.jobs.jobs import Job, JobState, Look, Wanted

from ...kit.fault_server import FaultServer
from ..arriving.test_pull_through import FILES, NAME, STORED, kept
from ..services import Gate, process_of
from .test_jobs import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .test_jobs import Service


@pytest.fixture
def source() -> Iterator[FaultServer]:
    """The other Hub, with one repository."""
    with FaultServer() as server:
        server.listing(server.hub(NAME, FILES))
        yield server


def _held_up(source: FaultServer, cut: int) -> Gate:
    gate = Gate(cut)
    source.fault(STORED, gate, forever=True)
    return gate


def _let_go(source: FaultServer, gate: Gate) -> None:
    source.heal(STORED)
    gate.opened.set()


def _states(service: Service) -> dict[str, str]:
    return {job["id"]: job["state"] for job in service.client.get("jobs").json()}


def test_a_new_server_goes_on_with_what_the_old_one_leaves(source: FaultServer, tmp_path: Path) -> None:
    gate = _held_up(source, 700_000)
    with ExitStack() as ending:
        old = ending.enter_context(serving(source, tmp_path))
        job = old.start()
        source.wait_for(lambda: source.sent(STORED) == 700_000, 10)
        with serving(source, tmp_path) as new:
            told = new.job(job)
            assert (told["state"], told["repository"], told["each"]) == ("running", NAME, [])
            assert "Another server" in told["reason"]
            since = len(source.seen)
            _let_go(source, gate)
            ending.close()
            assert new.ended(job)["state"] == "done"
            assert source.times_sent(STORED, since)[:600_000].max() == 0  # it was on the disk
            assert kept(tmp_path / "cache") == {name: data for name, data in FILES.items() if data}


def test_nobody_asks_for_the_jobs_of_who_is_killed(source: FaultServer, tmp_path: Path) -> None:
    gate = _held_up(source, 300_000)
    with process_of(source, tmp_path / "cache") as (process, url), serving(source, tmp_path):
        httpx.post(f"{url}/api/asyncfetch/jobs", json={"source": NAME, "include": ["*.safetensors"]})
        source.wait_for(lambda: source.sent(STORED) == 300_000, 20)
        _let_go(source, gate)
        process.send_signal(signal.SIGKILL)
        process.wait()
        source.wait_for(lambda: "model.safetensors" in kept(tmp_path / "cache"), 20)


def test_servers_on_one_cache_tell_each_other(source: FaultServer, tmp_path: Path) -> None:
    gate = _held_up(source, 500_000)
    with serving(source, tmp_path) as one, serving(source, tmp_path) as two:
        body: dict[str, Any] = {"include": ["*.safetensors"], "exclude": ["x/"]}
        job = one.start(**body)
        source.wait_for(lambda: source.sent(STORED) == 500_000, 10)
        again = two.client.post("jobs", json={"source": NAME, **body})
        assert (again.status_code, again.json()["id"]) == (200, job)
        assert two.client.post(f"jobs/{job}/retry", json={}).json()["state"] == "running"
        with serving(source, tmp_path) as three:  # who starts takes nothing from who lives
            assert _states(three) == {job: "running"}
            assert three.client.get(f"jobs/{job}").json()["reason"]
        assert two.client.delete(f"jobs/{job}").json()["state"] == "cancelled"
        source.wait_for(lambda: not one.client.get("state").json()["arriving"], 10)
        assert _states(one) == _states(two) == {job: "cancelled"}
        _let_go(source, gate)
        assert two.client.post(f"jobs/{job}/retry", json={}).status_code == 202
        assert one.ended(job)["state"] == "done"  # as its file says
        assert one.client.delete(f"jobs/{job}").status_code == 204
        assert two.client.get(f"jobs/{job}").status_code == 404


def _job(job_id: str, state: JobState = JobState.RUNNING) -> Job:
    return Job(job_id, Wanted("prefetch", "datasets", "a/b"), 4.0, state=state, started=5.0)


def test_a_job_is_one_process_s(tmp_path: Path) -> None:
    first, second = JobFiles(tmp_path), JobFiles(tmp_path)
    first.look()
    first.save(_job("00000000000a"))
    (seen,) = second.look().changed
    assert seen.elsewhere
    assert not second.claim(seen.id)
    assert second.look() == Look()
    second.save(_job("00000000000a"))  # which is not its to write
    assert first.look() == Look()
    second.save(_job("00000000000a", JobState.CANCELLED))
    assert first.look() == Look(cancelled=("00000000000a",))
    first.save(_job("00000000000b"))
    assert [one.id for one in second.look().changed] == ["00000000000b"]
    first.close()
    (left,) = second.look().changed
    assert (left.id, left.elsewhere) == ("00000000000b", False)
    second.save(_job("00000000000b", JobState.DONE))
    third = JobFiles(tmp_path)
    assert {(one.id, one.state, one.elsewhere) for one in third.look().changed} == {
        ("00000000000a", JobState.CANCELLED, False),
        ("00000000000b", JobState.DONE, False),
    }
    third.forget(_job("00000000000a"))
    assert second.look() == Look(gone=("00000000000a",))
    assert [path.name for path in tmp_path.iterdir()] == ["00000000000b.json"]


def test_a_folder_that_is_as_it_was_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_files, "_SETTLED", 0.0)
    writer, reader = JobFiles(tmp_path), JobFiles(tmp_path)
    writer.look()
    writer.save(_job("00000000000e", JobState.DONE))
    assert len(reader.look().changed) == 1
    assert reader.look() == Look()  # a second look at what came in one tick of the clock of the file system
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b'"done"', b'"failed"'))  # in its place: the folder is as it was
    assert reader.look() == Look()
    os.utime(tmp_path)
    assert [one.state for one in reader.look().changed] == [JobState.FAILED]


def test_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    first, second = JobFiles(tmp_path), JobFiles(tmp_path)
    first.look()
    first.save(_job("00000000000c"))
    (found,) = second.look().changed  # as after a restart: nothing tells that somebody is at it
    assert not found.elsewhere
    first.save(_job("00000000000d"))
    assert second.look() == Look()  # but what comes later is of who is alive
    second.save(_job("00000000000c", JobState.DONE))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000000000c.json", "00000000000d.json"]
