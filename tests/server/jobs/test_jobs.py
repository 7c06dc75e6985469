"""Jobs of a server before another Hub, and its own endpoints: over real sockets, with killed servers."""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from asyncfetch.errors import EntryNotFoundError, SelectionError, SourceError
from asyncfetch.server import Server
from asyncfetch.server.jobs import jobs
from asyncfetch.server.jobs.job_files import JobFiles
from asyncfetch.server.jobs.jobs import Job, JobState, Look, Refusal, Wanted
from asyncfetch.server.jobs.prefetch import wanted_paths
from asyncfetch.server.people.control import ROUTES, BadRequestError, prefetch_of
from asyncfetch.server.people.openapi import openapi_document

from ...kit.canaries import TOKEN
from ...kit.fault_server import COMMIT, FaultServer, Flip, Status
from ..arriving.test_pull_through import FILES, NAME, PAGE, SHA256, STORED, WEIGHTS, kept
from ..clients import hub
from ..services import Gate, process_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OTHERS = {"pytorch_model.bin": b"pickled", "onnx/model.onnx": b"graph"}


@pytest.fixture
def source() -> Iterator[FaultServer]:
    """The other Hub, with one repository."""
    with FaultServer() as server:
        server.listing(server.hub(NAME, FILES | OTHERS), per_page=2, elsewhere="http://elsewhere.invalid")
        yield server


@contextmanager
def serving(source: FaultServer, tmp_path: Path, **options: Any) -> Iterator[Service]:
    with (
        Server(tmp_path / "cache", upstream=source.url, **options) as server,
        httpx.Client(base_url=f"{server.url}/api/asyncfetch/") as client,
    ):
        yield Service(server.url, client, source)


class Service:
    """A server and its own endpoints."""

    def __init__(self, url: str, client: httpx.Client, source: FaultServer) -> None:
        self.url, self.client, self.source = url, client, source

    def start(self, source: str = NAME, headers: dict[str, str] | None = None, **body: Any) -> str:
        """The id of a new job."""
        answer = self.client.post("jobs", json={"source": source, **body}, headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.client.get(f"jobs/{job_id}").json())

    def ended(self, job_id: str, seconds: float = 20) -> dict[str, Any]:
        """The job, once it neither runs nor waits for its turn."""
        self.source.wait_for(lambda: self.job(job_id)["state"] not in ("queued", "running"), seconds)
        return self.job(job_id)


def test_what_was_prefetched_is_served_when_the_source_is_away(source: FaultServer, tmp_path: Path) -> None:
    with serving(source, tmp_path) as service:
        done = service.ended(service.start())
        files = {file["file"]: file for file in done["each"]}
        assert (done["state"], done["commit"], done["error"]) == ("done", COMMIT, None)
        assert {name: file["size"] for name, file in files.items()} == {name: len(data) for name, data in FILES.items()}
        assert done["size"] == done["received"] == sum(map(len, FILES.values()))
        assert files["model.safetensors"]["etag"] == SHA256
        assert files["model.safetensors"]["fetched"] == len(WEIGHTS)
        assert kept(tmp_path / "cache") == {name: data for name, data in FILES.items() if data}
        before = len(source.seen)
        again = service.ended(service.start())
        assert (again["state"], sum(file["fetched"] for file in again["each"])) == ("done", 0)
        assert not any(seen.path == STORED for seen in source.seen[before:])
    source.go_away()
    code = """
import os
folder = snapshot_download("org/model", ignore_patterns=["*.bin", "*.onnx"])
result = [sorted(os.listdir(folder)), os.path.getsize(hf_hub_download("org/model", "model.safetensors"))]
"""
    with serving(source, tmp_path) as service:
        assert httpx.head(service.url + PAGE).status_code == 200
        listed = ["config.json", "empty.txt", "model.safetensors", "sub"]
        assert hub(service.url, tmp_path / "home", code) == [listed, len(WEIGHTS)]
    assert source.times_sent(STORED).max() == 1


def test_which_files_come() -> None:
    def of(paths: list[str], kind: str = "models", **globs: tuple[str, ...]) -> list[str]:
        return wanted_paths(paths, Wanted("prefetch", kind, NAME, **globs))

    mixed = ["a.safetensors", "a.safetensors.index.json", "b.bin", "config.json", "x/c.safetensors", "x/d.gguf"]
    assert of(mixed) == ["a.safetensors", "a.safetensors.index.json", "config.json", "x/c.safetensors"]
    assert of(mixed, exclude=("x/",)) == ["a.safetensors", "a.safetensors.index.json", "config.json"]
    assert of(mixed, include=("x/*", "*.bin")) == ["b.bin", "x/c.safetensors", "x/d.gguf"]
    assert of(mixed, "datasets") == mixed
    assert of(["a.gguf", "config.json"]) == ["a.gguf", "config.json"]
    with pytest.raises(EntryNotFoundError):
        of(mixed, include=("*.h5",))
    with pytest.raises(SelectionError):
        of(mixed, exclude=("*",))


def test_names_that_are_no_paths_everywhere(caplog: pytest.LogCaptureFixture) -> None:
    """They are left out and the log says which; one that is asked for is an error."""
    paths = ["a.safetensors", "logs\\run.json", "config.json", "b:c"]
    assert wanted_paths(paths, Wanted("prefetch", "models", NAME)) == ["a.safetensors", "config.json"]
    assert wanted_paths(paths, Wanted("prefetch", "datasets", NAME)) == ["a.safetensors", "config.json"]
    assert ["left out: 'logs\\\\run.json', 'b:c'" in record.message for record in caplog.records] == [True, True]
    with pytest.raises(SourceError, match="no path on every system"):
        wanted_paths(paths, Wanted("prefetch", "models", NAME, include=("logs*",)))


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"source": " org/model "}, Wanted("prefetch", "models", "org/model")),
        ({"source": "org/model@v1", "include": ["*", "*"]}, Wanted("prefetch", "models", "org/model", "v1", ("*",))),
        ({"source": "datasets/org/data", "revision": ""}, Wanted("prefetch", "datasets", "org/data")),
        ({"source": "org/data", "repo_type": "dataset"}, Wanted("prefetch", "datasets", "org/data")),
        (
            {"source": "http://x/org/m/tree/refs/pr/3/sub"},
            Wanted("prefetch", "models", "org/m", "refs/pr/3", ("sub/",)),
        ),
        (
            {"source": "http://x/o/m/blob/v1/a.safetensors"},
            Wanted("prefetch", "models", "o/m", "v1", ("a.safetensors",)),
        ),
    ],
)
def test_what_a_request_wants(body: dict[str, Any], wanted: Wanted) -> None:
    assert prefetch_of(body, "http://x") == wanted


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"source": 3}, {"source": "/etc"}, {"source": "../x"}, {"source": "a/b/c"}, {"source": "s3://bucket/x"}),
        *({"source": "http://elsewhere/org/model"}, {"source": "org/model", "revision": "a b"}, {"source": "api/x"}),
        *({"source": "org/model", "inclued": ["*"]}, {"source": "org/model", "include": "*"}, {"source": "org/m\n"}),
        *({"source": "org/model@a", "revision": "b"}, {"source": "org/model", "include": [""]}),
        *({"source": "org/model", "include": ["x"] * 1000}, {"source": "org/model", "repo_type": "space"}),
    ],
)
def test_what_makes_no_sense(body: dict[str, Any]) -> None:
    with pytest.raises((BadRequestError, SourceError)):
        prefetch_of(body, "http://x")


def test_a_cancelled_job_stops_and_goes_on_from_where_it_was(source: FaultServer, tmp_path: Path) -> None:
    gate = Gate(1_000_000)
    source.fault(STORED, gate, forever=True)
    with serving(source, tmp_path) as service:
        job = service.start(include=["*.safetensors"])
        source.wait_for(lambda: source.sent(STORED) == 1_000_000 and service.client.get("state").json()["arriving"])
        assert service.client.post("jobs", json={"source": NAME, "include": ["*.safetensors"]}).json()["id"] == job
        cancelled = service.client.delete(f"jobs/{job}")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
        source.wait_for(lambda: not service.client.get("state").json()["arriving"])
        source.heal(STORED)
        gate.opened.set()
        since = len(source.seen)
        assert service.client.post(f"jobs/{job}/retry", json={}).status_code == 202
        assert service.ended(job)["state"] == "done"
        again = source.times_sent(STORED, since)
        assert again[:900_000].max() == 0  # it was on the disk
        assert kept(tmp_path / "cache")["model.safetensors"] == WEIGHTS
        assert service.client.delete(f"jobs/{job}").status_code == 204
        assert service.client.get(f"jobs/{job}").status_code == 404


def test_what_a_client_reads_outlasts_the_job(source: FaultServer, tmp_path: Path) -> None:
    gate = Gate(1_000_000)
    source.fault(STORED, gate, forever=True)
    with serving(source, tmp_path) as service:
        job = service.start(include=["*.safetensors"])
        with httpx.stream("GET", service.url + PAGE) as response:
            pieces = response.iter_bytes(100_000)
            begun = next(pieces)
            told = service.client.get("state").json()["arriving"][0]
            assert (told["repository"], told["file"], told["readers"]) == (NAME, "model.safetensors", 1)
            assert service.client.delete(f"jobs/{job}").json()["state"] == "cancelled"
            gate.opened.set()
            assert b"".join([begun, *pieces]) == WEIGHTS
    assert source.times_sent(STORED).max() == 1


def test_jobs_outlast_a_killed_server(source: FaultServer, tmp_path: Path) -> None:
    gate = Gate(1_000_000)
    source.fault(STORED, gate, forever=True)
    with process_of(source, tmp_path / "cache") as (process, url):
        job = httpx.post(f"{url}/api/asyncfetch/jobs", json={"source": NAME}).json()["id"]
        source.wait_for(lambda: source.sent(STORED) == 1_000_000, 20)
        process.send_signal(signal.SIGKILL)
        process.wait()
    source.heal(STORED)
    gate.opened.set()
    with serving(source, tmp_path) as service:
        assert service.ended(job)["state"] == "done"
    with serving(source, tmp_path) as service:
        assert service.job(job)["files_done"] == len(FILES)


def test_a_job_waits_for_its_token_after_a_restart(source: FaultServer, tmp_path: Path) -> None:
    source.token = TOKEN
    gate = Gate(1_000_000)
    source.fault(STORED, gate, forever=True)
    with serving(source, tmp_path) as service:
        failed = service.ended(service.start())
        assert (failed["state"], failed["error"]["code"]) == ("failed", "repository_not_found")
        assert "token of the source" in failed["error"]["hint"]
        job = service.start(headers={"X-Hub-Token": TOKEN})
        source.wait_for(lambda: source.sent(STORED) == 1_000_000, 10)
    source.heal(STORED)
    gate.opened.set()
    with serving(source, tmp_path) as service:
        assert service.ended(job)["state"] == "needs_token"
        assert service.client.post("jobs", json={"source": NAME}, headers={"X-Hub-Token": TOKEN}).json()["id"] == job
        assert service.ended(job)["state"] == "done"


def test_what_the_server_may_see_it_may_see_after_a_restart(source: FaultServer, tmp_path: Path) -> None:
    source.token = TOKEN
    gate = Gate(1_000_000)
    source.fault(STORED, gate, forever=True)
    with serving(source, tmp_path, upstream_token=TOKEN, allow=["org/*"]) as service:
        assert service.client.post("jobs", json={"source": "another/model"}).status_code == 403
        job = service.start(include=["*.safetensors"])
        source.wait_for(lambda: source.sent(STORED) == 1_000_000, 10)
    source.heal(STORED)
    gate.opened.set()
    with serving(source, tmp_path, upstream_token=TOKEN, allow=["org/*"]) as service:
        assert service.ended(job)["state"] == "done"
    with serving(source, tmp_path, upstream_token=TOKEN, allow=["another/*"]) as service:
        assert service.ended(_retried(service, job))["error"]["code"] == "access_denied"


def test_one_wrong_file_does_not_hold_up_the_others(source: FaultServer, tmp_path: Path) -> None:
    source.fault(STORED, Flip(10), forever=True)
    source.fault(f"/{NAME}/resolve/main/config.json", Status(429, {"retry-after": "0"}))
    with serving(source, tmp_path) as service:
        failed = service.ended(service.start())
        assert (failed["state"], failed["error"]["code"]) == ("failed", "checksum_mismatch")
        assert [file["file"] for file in failed["each"] if not file["done"]] == ["model.safetensors"]
        state = service.client.get("state").json()
        assert [(one["file"], one["code"]) for one in state["failures"]] == [("model.safetensors", "checksum_mismatch")]
        asked = source.sent(STORED)
        again = service.ended(_retried(service, failed["id"]))
        assert (again["state"], source.sent(STORED)) == ("failed", asked)  # nobody asks a third time


def _retried(service: Service, job: str) -> str:
    assert service.client.post(f"jobs/{job}/retry", json={}).status_code == 202
    return job


def test_pin_evict_and_verify(source: FaultServer, tmp_path: Path) -> None:
    with serving(source, tmp_path) as service:
        service.ended(service.start())
        body, post = {"repository": NAME}, service.client.post
        assert post("kept/pin", json=body).status_code == 200
        assert service.client.get("state").json()["kept"][0]["pinned"] is True
        assert post("kept/evict", json=body).status_code == 400
        assert post("kept/unpin", json=body).status_code == 200
        blob = tmp_path / "cache" / "models--org--model" / "blobs" / SHA256
        blob.chmod(0o644)
        with blob.open("r+b") as stream:
            stream.write(b"damage")
        wrong = service.ended(post("kept/verify", json=body).json()["id"])
        assert (wrong["state"], wrong["error"]["code"]) == ("failed", "checksum_mismatch")
        assert not blob.exists()
        assert httpx.get(service.url + PAGE).content == WEIGHTS
        source.wait_for(blob.exists)
        assert service.ended(post("kept/verify", json=body).json()["id"])["state"] == "done"
        source.wait_for(lambda: post("kept/evict", json=body).json()["freed"] >= len(WEIGHTS))
        assert service.client.get("state").json()["kept"] == []
        assert post("kept/evict", json=body).status_code == 404


def test_a_wrong_file_is_removed_wherever_it_is_wrong(source: FaultServer, tmp_path: Path) -> None:
    """Two repositories have one file under two names, and the disk spoils it: it is not lent back to the first."""
    names = [NAME, "other/copy", "third/copy"]
    for name in names[1:]:
        source.listing(source.hub(name, {"model.safetensors": WEIGHTS}))
    blobs = [tmp_path / "cache" / f"models--{name.replace('/', '--')}" / "blobs" / SHA256 for name in names]
    with serving(source, tmp_path) as service:
        for name in names:
            service.ended(service.start(source=name))
        assert len({blob.stat().st_ino for blob in blobs}) == 1
        blobs[2].unlink()
        blobs[2].write_bytes(WEIGHTS)  # a file of its own, and a good one
        blobs[0].chmod(0o644)
        with blobs[0].open("r+b") as stream:
            stream.seek(99_999)
            stream.write(b"damage")
        wrong = service.ended(service.client.post("kept/verify", json={"repository": NAME}).json()["id"])
        assert wrong["error"]["code"] == "checksum_mismatch"
        assert [blob.exists() for blob in blobs] == [False, False, True]
        for name in names:
            assert httpx.get(f"{service.url}/{name}/resolve/main/model.safetensors").content == WEIGHTS
        source.wait_for(blobs[0].exists)
        assert (
            service.ended(service.client.post("kept/verify", json={"repository": NAME}).json()["id"])["state"] == "done"
        )


CHANGES = [("POST", "jobs"), ("DELETE", f"jobs/{'0' * 12}"), ("POST", f"jobs/{'0' * 12}/retry"), ("POST", "kept/pin")]


def test_who_may_change_something(source: FaultServer, tmp_path: Path) -> None:
    def statuses(service: Service, **headers: str) -> set[int]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        bodies = {"jobs": {"source": NAME}, "kept/pin": {"repository": NAME}}
        return {
            service.client.request(method, path, json=bodies.get(path, {}), headers=named).status_code
            for method, path in CHANGES
        }

    with serving(source, tmp_path) as service:
        port = service.url.rpartition(":")[2]
        assert statuses(service, origin="http://elsewhere.example") == {403}
        assert statuses(service, origin="null") == {403}
        assert statuses(service, sec_fetch_site="cross-site") == {403}
        assert statuses(service, sec_fetch_site="same-site") == {403}
        assert statuses(service, host=f"rebound.example:{port}", origin=f"http://rebound.example:{port}") == {403}
        assert statuses(service, x_forwarded_for="10.0.0.7") == {403}
        for path, body in (("jobs", {"source": NAME}), ("kept/pin", {"repository": NAME})):
            plain = service.client.post(path, content=json.dumps(body), headers={"content-type": "text/plain"})
            assert plain.status_code == 400
        assert (service.client.get("jobs").json(), kept(tmp_path / "cache")) == ([], {})
        assert statuses(service, origin=service.url, sec_fetch_site="same-origin") <= {200, 202, 404}
    with serving(source, tmp_path, admin_token=TOKEN) as service:
        assert statuses(service) == statuses(service, authorization="Bearer another") == {401}
        assert statuses(service, authorization=f"Bearer {TOKEN}") <= {200, 202, 404}
    with serving(source, tmp_path, host="0.0.0.0") as service:
        assert statuses(service) == {403}


def test_names_are_told_to_who_may_see_them(source: FaultServer, tmp_path: Path) -> None:
    source.token = TOKEN
    gate = Gate(1_000_000)
    source.fault(STORED, gate, forever=True)
    admin = {"Authorization": "Bearer admin"}
    with serving(source, tmp_path, admin_token="admin") as service:
        job = service.start(include=["*.safetensors"], headers={**admin, "X-Hub-Token": TOKEN})
        source.wait_for(lambda: source.sent(STORED) == 1_000_000, 10)
        told = service.client.get("state").json()
        assert (told["arriving"], told["jobs"], told["kept"]) == ([], [], [])
        assert (told["arriving_in_all"], told["jobs_in_all"]) == (1, 1)
        for path in ("state", "jobs", "kept"):
            assert NAME not in service.client.get(path).text
        assert "model.safetensors" not in httpx.get(service.url).text
        assert service.client.get(f"jobs/{job}").status_code == 404
        assert service.client.get(f"jobs/{job}", headers=admin).json()["repository"] == NAME
        source.token = None  # it becomes public
        assert httpx.get(service.url + f"/api/models/{NAME}/revision/main").status_code == 200
        assert service.client.get("state").json()["jobs"][0]["repository"] == NAME
        gate.opened.set()


def test_each_route_is_described_and_each_answer_is_as_described(source: FaultServer, tmp_path: Path) -> None:
    document = openapi_document()
    described = {
        path.removeprefix("/"): tuple(sorted(method.upper() for method in item if method != "parameters"))
        for path, item in document["paths"].items()
    }
    assert described == {path: tuple(sorted(methods)) for path, methods in ROUTES.items()}
    with serving(source, tmp_path) as service:
        assert service.client.get("openapi.json").json() == document

        def check(method: str, path: str, route: str, **given: Any) -> Any:
            """The answer to a request, once it is found to be as the description has it."""
            answer = service.client.request(method, path, **given)
            told = document["paths"][f"/{route}"][method.lower()]["responses"][str(answer.status_code)]
            if "content" in told:
                schema = told["content"]["application/json"]["schema"]
                Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())
                return answer.json()
            assert not answer.content
            return None

        job = check("POST", "jobs", "jobs", json={"source": NAME})["id"]
        source.fault(STORED, Flip(10))
        check("POST", "jobs", "jobs", json={"source": "org/absent"})
        service.ended(job)
        httpx.get(service.url + PAGE)
        for route in ("state", "jobs", "kept", "openapi.json"):
            check("GET", route, route)
        check("GET", f"jobs/{job}", "jobs/{id}")
        check("POST", f"jobs/{job}/retry", "jobs/{id}/retry", json={})
        check("DELETE", f"jobs/{job}", "jobs/{id}")
        for action in ("pin", "unpin", "verify", "evict"):
            check("POST", f"kept/{action}", f"kept/{action}", json={"repository": NAME})
        for body in ({"source": "///"}, {"repository": NAME, "more": 1}):
            check("POST", "jobs", "jobs", json=body)
        refused = service.client.post("jobs", content=b"{" * 100_000, headers={"content-type": "application/json"})
        assert refused.status_code == 400
        for path in ("nothing", "jobs/x", "jobs/{id}", "kept/pin/x", ""):
            assert service.client.get(path).status_code in (404, 405)
        assert service.client.put("jobs").headers["allow"] == "HEAD, GET, POST"


def test_jobs_on_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    wanted = Wanted("prefetch", "models", NAME, "v1", ("*.json",), ("x/",))
    error = Refusal("network", "It is away.", "Wait.")
    job = Job("0123456789ab", wanted, 5.0, True, JobState.FAILED, 6.0, 7.0, COMMIT, error, counted=(3, 2, 100, 60))
    first = JobFiles(folder)
    assert first.look() == Look()
    first.save(job)
    assert first.look() == Look()  # its own doing is no news
    (found,) = JobFiles(folder).look().changed
    assert vars(found) == vars(job)
    (path,) = folder.glob("*.json")
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"[]", whole.replace(b"org/model", b"../model"), whole.replace(b'"failed"', b'"x"')):
        path.write_bytes(damaged)
        assert JobFiles(folder).look() == Look()
    first.forget(job)
    assert list(folder.iterdir()) == []


def test_old_jobs_are_forgotten(source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MOST", 2)
    with serving(source, tmp_path) as service:
        started = [service.ended(service.start(f"org/absent{number}"))["id"] for number in range(4)]
        assert [job["id"] for job in service.client.get("jobs").json()] == started[:0:-1]
