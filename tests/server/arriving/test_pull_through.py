"""Another Hub, served: what is asked for is fetched once, verified, kept, and handed out while it arrives."""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

import asyncfetch
from asyncfetch.errors import SourceError
from asyncfetch.server import Server
from asyncfetch.server.arriving.distrust import DAYS, REST, Distrust
from asyncfetch.server.source import freshness, upstream
from asyncfetch.server.source.freshness import Answer
from asyncfetch.server.source.relayed import without_xet
from asyncfetch.server.source.store import Store
from asyncfetch.spans import MiB
from asyncfetch.storage.journal import spans_on_disk

from ...kit.canaries import TOKEN
from ...kit.fault_server import (
    COMMIT,
    FaultServer,
    Flip,
    Headers,
    LoginPage,
    Mute,
    Stall,
    Status,
)
from ..clients import hub
from ..services import Gate, metric, process_of

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "org/model"
WEIGHTS = random.Random(5).randbytes(3_000_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
STORED = f"/storage/{SHA256}"
FILES = {"model.safetensors": WEIGHTS, "config.json": b"{}\n", "empty.txt": b"", "sub/words.txt": b"words" * 30_000}
PAGE = f"/{NAME}/resolve/main/model.safetensors"
PAGE_OF_BIG = f"/{NAME}/resolve/main/big.safetensors"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
OWN_CLIENT = pytest.mark.shows_secrets(reason="the links are logged by this test's own httpx client")


@pytest.fixture
def source() -> Iterator[FaultServer]:
    """The other Hub, with one repository."""
    with FaultServer() as server:
        server.listing(server.hub(NAME, FILES), per_page=2, elsewhere="http://elsewhere.invalid")
        yield server


@pytest.fixture
def service(source: FaultServer, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "cache", upstream=source.url) as running:
        yield running


def kept(cache: Path) -> dict[str, bytes]:
    """The files in the cache, by their names in the snapshot."""
    folder = cache / "models--org--model" / "snapshots" / COMMIT
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def blobs(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("blobs/*") if not path.name.endswith(".lock")]


def test_who_has_a_file_already(source: FaultServer, service: Server, tmp_path: Path) -> None:
    """Nothing is fetched for who has it, nor for who would go on with another one; then it is sent as to everybody."""
    etag = f'"{SHA256}"'
    asked = (
        ({"If-None-Match": etag}, 304, b""),
        ({"If-Match": '"0"', "Range": "bytes=7-9"}, 412, None),
        ({"If-Match": etag, "If-None-Match": '"0"', "Range": "bytes=7-9"}, 206, WEIGHTS[7:10]),
    )
    for conditions, status, _ in asked[:2]:
        assert httpx.get(service.url + PAGE, headers=conditions).status_code == status
    assert not source.to(STORED)
    for _ in range(2):  # while it arrives, and when it is in the cache
        for conditions, status, body in asked:
            answer = httpx.get(service.url + PAGE, headers=conditions)
            assert answer.status_code == status
            assert body is None or answer.content == body
            assert (answer.headers["etag"], answer.headers["x-repo-commit"]) == (etag, COMMIT)
        assert httpx.get(service.url + PAGE).content == WEIGHTS
    assert source.times_sent(STORED).max() == 1


def test_eight_cold_clients_at_once(source: FaultServer, service: Server, tmp_path: Path) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
def run(number):
    path = Path(snapshot_download("org/model", cache_dir=f"CACHE/{number}"))
    return sorted((str(file.relative_to(path)), file.stat().st_size) for file in path.rglob("*") if file.is_file())
with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(run, range(8)))
listed = sorted((entry.path, entry.size) for entry in list_repo_tree("org/model", recursive=True))
file = Path(hf_hub_download("org/model", "model.safetensors", local_dir="CACHE/one"))
import hashlib
result = [found, listed, model_info("org/model").sha, hashlib.sha256(file.read_bytes()).hexdigest()]
""".replace("CACHE", str(tmp_path / "clients"))
    found, listed, commit, digest = hub(service.url, tmp_path / "home", code)
    expected = sorted([name, len(data)] for name, data in FILES.items())
    assert found == [expected] * 8
    assert listed == expected
    assert commit == COMMIT
    assert digest == SHA256
    assert source.times_sent(STORED).max() == 1
    assert source.sent(STORED) == len(WEIGHTS)
    bodies = sum(source.sent(f"/{NAME}/resolve/{COMMIT}/{name}") for name in ("config.json", "sub/words.txt"))
    assert (
        bodies <= len(FILES["config.json"]) + len(FILES["sub/words.txt"]) + 2
    )  # a byte each with what is told of them
    assert all(len(source.to(f"/{NAME}/resolve/{COMMIT}/{name}")) <= 3 for name in FILES)
    assert kept(tmp_path / "cache") == {name: data for name, data in FILES.items() if data}
    assert all(seen.path.startswith(("/storage/", "/api/models/", f"/{NAME}/")) for seen in source.seen)


def test_connections_share_a_file_without_cutting_each_other_off(source: FaultServer, service: Server) -> None:
    """What a source has sent beyond a cut comes twice: so little is asked for at once that nobody has to be cut off."""
    data = random.Random(6).randbytes(24 * MiB)
    stored = source.hub(NAME, {"large.safetensors": data}).storage["large.safetensors"]
    assert httpx.get(f"{service.url}/{NAME}/resolve/main/large.safetensors", timeout=30).content == data
    asked = [seen.headers["range"].removeprefix("bytes=").split("-") for seen in source.to(stored)]
    lengths = [int(last) - int(first) + 1 for first, last in asked]
    assert lengths[0] <= len(data) // 4
    assert (sum(lengths), source.sent(stored), source.times_sent(stored).max()) == (len(data), len(data), 1)


def test_our_own_client(service: Server, source: FaultServer, tmp_path: Path) -> None:
    for number in range(2):
        found = asyncfetch.download(
            NAME, endpoint=service.url, cache_dir=tmp_path / str(number), files=["model.safetensors", "config.json"]
        )
        assert (found.path / "model.safetensors").read_bytes() == WEIGHTS
    assert source.sent(STORED) == len(WEIGHTS)


def test_bytes_come_while_the_file_arrives_and_it_goes_on_alone(
    source: FaultServer, service: Server, tmp_path: Path
) -> None:
    gate = Gate(1_000_000)
    source.fault(STORED, gate, forever=True)
    with httpx.stream("GET", service.url + PAGE) as response:
        assert (response.status_code, next(response.iter_bytes(900_000))) == (200, WEIGHTS[:900_000])
    assert source.sent(STORED) == 1_000_000
    gate.opened.set()
    blob = tmp_path / "cache" / "models--org--model" / "blobs" / SHA256
    source.wait_for(blob.is_file, 10)
    assert blob.read_bytes() == WEIGHTS
    assert source.times_sent(STORED).max() == 1
    source.wait_for(lambda: kept(tmp_path / "cache") == {"model.safetensors": WEIGHTS})


def test_a_second_reader_shares_what_arrives(source: FaultServer, service: Server) -> None:
    gate = Gate(1_000_000)
    source.fault(STORED, gate, forever=True)
    with httpx.stream("GET", service.url + PAGE) as first, httpx.stream("GET", service.url + PAGE) as second:
        pieces = [response.iter_bytes(500_000) for response in (first, second)]
        begun = [next(piece) for piece in pieces]
        gate.opened.set()
        assert [b"".join([start, *piece]) for start, piece in zip(begun, pieces, strict=True)] == [WEIGHTS] * 2
    assert source.times_sent(STORED).max() == 1


def part(service: Server, file: str, start: int, stop: int, data: bytes) -> bool:
    """Ask for bytes of a file that holds `data`; whether they are right."""
    response = httpx.get(
        f"{service.url}/{NAME}/resolve/main/{file}", headers={"Range": f"bytes={start}-{stop - 1}"}, timeout=30
    )
    assert (response.status_code, response.headers["content-range"]) == (206, f"bytes {start}-{stop - 1}/{len(data)}")
    return response.content == data[start:stop]


def test_ranges_before_within_and_far_beyond_what_has_come(source: FaultServer, tmp_path: Path) -> None:
    """Who reads far ahead gets it at once, and no byte is fetched for that which would come anyway."""
    data = random.Random(6).randbytes(15 * MiB)
    path = source.hub(NAME, {"big.safetensors": data}).storage["big.safetensors"]
    far = [12 * MiB + 77, 14 * MiB + 5]
    gate = Gate(2 * MiB, *far)
    source.fault(path, gate, forever=True)
    with Server(tmp_path / "cache", upstream=source.url) as service, ThreadPoolExecutor(4) as pool:

        def ask(span: tuple[int, int]) -> bool:
            return part(service, "big.safetensors", *span, data)

        assert ask((0, 1000))
        assert all(pool.map(ask, [(start, start + 10) for start in far]))
        assert not gate.opened.is_set()
        gate.opened.set()
        assert all(pool.map(ask, [(5, 3 * MiB), (3 * MiB, 9 * MiB), (13 * MiB, len(data)), (len(data) - 3, len(data))]))
        assert source.times_sent(path).max() == 1
        assert metric(service.url, 'served_bytes_total{origin="fill"') > 0
        assert metric(service.url, 'served_bytes_total{origin="passed"') == 0


def test_who_reads_far_ahead_leaves_something_to_who_reads_in_order(
    source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNCFETCH_CONNECTIONS", "2")
    data = random.Random(7).randbytes(60 * MiB)
    path = source.hub(NAME, {"big.safetensors": data}).storage["big.safetensors"]
    far = 20 * MiB + 77
    gate = Gate(MiB, far)
    source.fault(path, gate, forever=True)
    with Server(tmp_path / "cache", upstream=source.url) as service:
        assert part(service, "big.safetensors", 0, 1000, data)
        with httpx.stream("GET", f"{service.url}{PAGE_OF_BIG}", headers={"Range": f"bytes={far}-"}) as response:
            pieces = response.iter_bytes(1000)
            begun = next(pieces)
            gate.opened.set()
            assert begun + b"".join(pieces) == data[far:]
    starts = [seen.start or 0 for seen in source.to(path)]
    next_in_order, last_beyond = max(start for start in starts if start < far), max(starts)
    assert starts.index(next_in_order) < starts.index(last_beyond)


def test_wrong_bytes_once(source: FaultServer, tmp_path: Path) -> None:
    source.fault(STORED, Flip(1_000_000))
    for number in range(2):  # the second service is a restart
        with Server(tmp_path / "cache", upstream=source.url) as service:
            code = """
import hashlib
from pathlib import Path
result = hashlib.sha256(Path(hf_hub_download("org/model", "model.safetensors")).read_bytes()).hexdigest()
"""
            assert hub(service.url, tmp_path / str(number), code) == SHA256
            # Whoever has a beginning may have a wrong one.
            again = httpx.get(service.url + PAGE, headers={"Range": "bytes=2000000-"})
            assert (again.status_code, again.content) == (200, WEIGHTS)
            from_0 = httpx.get(service.url + PAGE, headers={"Range": "bytes=0-9"})
            assert (from_0.status_code, from_0.content) == (206, WEIGHTS[:10])
    assert source.sent(STORED) <= 2.1 * len(WEIGHTS)
    assert [path.name for path in blobs(tmp_path / "cache")] == [SHA256]


def test_wrong_bytes_for_ever(source: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source.fault(STORED, Flip(1_000_000), forever=True)
    code = """
try:
    result = hf_hub_download("org/model", "model.safetensors")
except Exception as error:
    result = type(error).__name__
"""
    with Server(tmp_path / "cache", upstream=source.url) as service:
        assert hub(service.url, tmp_path / "home", code) == "HfHubHTTPError"
        assert "came with wrong bytes again and again" in caplog.text
    with Server(tmp_path / "cache", upstream=source.url) as service:  # a restart forgets nothing
        answer = httpx.get(service.url + PAGE)
        assert (answer.status_code, answer.headers["x-error-code"]) == (502, "WrongBytes")
        assert REST - 60 < int(answer.headers["retry-after"]) <= REST + 1
    assert source.sent(STORED) <= 2.1 * len(WEIGHTS)
    assert not [path for path in blobs(tmp_path) if path.stat().st_size >= len(WEIGHTS)]


def test_no_byte_of_a_small_file_before_its_hash(source: FaultServer, service: Server) -> None:
    page = f"/{NAME}/resolve/main/config.json"
    source.fault(page.replace("main", COMMIT), Flip(1), forever=True)
    answer = httpx.get(service.url + page)
    assert (answer.status_code, answer.headers["x-error-code"]) == (502, "WrongBytes")


@pytest.mark.heavy
def test_a_killed_service_goes_on(source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCFETCH_CONNECTIONS", "1")  # another one would bring what is missing
    data = random.Random(7).randbytes(16 * MiB)
    repository = source.hub(NAME, {"big.safetensors": data})
    path, etag = repository.storage["big.safetensors"], hashlib.sha256(data).hexdigest()
    source.fault(path, Stall(9 * MiB))
    partial = tmp_path / "cache" / "models--org--model" / "blobs" / f"{etag}.asyncfetch.incomplete"

    def journaled() -> int:
        return spans_on_disk(partial, len(data), identity=etag).nbytes if partial.exists() else 0

    page = f"/{NAME}/resolve/main/big.safetensors"
    with process_of(source, tmp_path / "cache") as (process, url), httpx.stream("GET", url + page) as response:
        assert next(response.iter_bytes(1000)) == data[:1000]
        source.wait_for(lambda: journaled() > 4 * MiB, 20)
        process.send_signal(signal.SIGKILL)
        process.wait()
    there, before = journaled(), source.sent(path)
    with process_of(source, tmp_path / "cache") as (_, url):
        assert httpx.get(url + page, timeout=30).content == data
        assert source.sent(path) - before <= len(data) - there


def test_the_source_is_away(source: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import os
result = [sorted(os.listdir(snapshot_download("org/model"))), model_info("org/model").sha,
          len(list(list_repo_tree("org/model", recursive=True))), file_exists("org/model", "adapter_config.json")]
"""
    with Server(tmp_path / "cache", upstream=source.url) as service:
        before = hub(service.url, tmp_path / "before", code)
    source.go_away()
    monkeypatch.setattr(freshness, "BRANCH", 0.0)
    with Server(tmp_path / "cache", upstream=source.url) as service:
        assert hub(service.url, tmp_path / "after", code) == before
        never = httpx.get(f"{service.url}/{NAME}/resolve/main/never.txt")
        assert never.status_code == 502
        assert "elsewhere" not in never.text
        source.come_back()
        assert httpx.get(f"{service.url}/{NAME}/resolve/main/never.txt").status_code == 404


def test_answers_are_asked_for_again_when_they_may_have_changed(
    source: FaultServer, service: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = f"/{NAME}/resolve/main/adapter_config.json"

    def ask(path: str) -> tuple[int, int]:
        """The status, and how often the source was asked."""
        before = len(source.seen)
        answer = httpx.head(service.url + path)
        assert "x-repo-commit" in answer.headers
        return answer.status_code, len(source.seen) - before

    assert [ask(PAGE), ask(PAGE), ask(PAGE.replace("main", COMMIT))] == [(200, 1), (200, 0), (200, 0)]
    assert [ask(absent), ask(absent)] == [(404, 1), (404, 0)]
    monkeypatch.setattr(freshness, "BRANCH", 0.0)
    assert [ask(absent), ask(PAGE), ask(PAGE.replace("main", COMMIT))] == [(404, 1), (200, 1), (200, 0)]


def test_a_source_that_says_nothing(source: FaultServer, service: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert httpx.head(service.url + PAGE).status_code == 200
    monkeypatch.setattr(freshness, "BRANCH", 0.0)
    monkeypatch.setattr(upstream, "PATIENCE", 0.3)
    unknown = f"/{NAME}/resolve/main/config.json"
    for path in (PAGE, unknown):
        source.fault(path, Mute, forever=True)
    assert httpx.head(service.url + PAGE).status_code == 200
    assert httpx.head(service.url + unknown).status_code == 502
    asked = len(source.to(PAGE))
    assert httpx.head(service.url + PAGE).status_code == 200  # it is away, and not waited for again
    assert len(source.to(PAGE)) == asked


def test_a_source_that_limits_the_rate(source: FaultServer, service: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert httpx.head(service.url + PAGE).status_code == 200
    monkeypatch.setattr(freshness, "BRANCH", 0.0)
    unknown = f"/{NAME}/resolve/main/config.json"
    for path in (PAGE, unknown):
        source.fault(path, Status(429, {"retry-after": "100"}), forever=True)
    assert [httpx.head(service.url + PAGE).status_code for _ in range(3)] == [200, 200, 200]
    assert len(source.to(PAGE)) == 2  # it is left alone then
    refused = httpx.head(service.url + unknown)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "101")


def test_who_may(source: FaultServer, service: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.token = TOKEN
    paths = (PAGE, f"/api/models/{NAME}/revision/main", f"/api/models/{NAME}/tree/{COMMIT}?recursive=true")

    def statuses(headers: dict[str, str] | None = None) -> list[int]:
        return [httpx.get(service.url + path, headers=headers).status_code for path in paths]

    refused = httpx.get(service.url + PAGE)
    assert (refused.status_code, refused.headers["x-error-code"]) == (401, "RepoNotFound")
    assert httpx.get(service.url + PAGE, headers=BEARER).content == WEIGHTS
    assert statuses(BEARER) == [200, 200, 200]
    assert statuses() == statuses({"Authorization": "Bearer another"}) == [401, 401, 401]
    assert httpx.get(service.url + PAGE, headers={"Authorization": "Basic eA=="}).status_code == 401
    asked = len(source.seen)
    assert statuses(BEARER) == [200, 200, 200]
    assert len(source.seen) == asked
    assert not any(seen.second and "authorization" in seen.headers for seen in source.seen)
    files = [path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files
    assert not any(
        TOKEN.encode() in data or hashlib.sha256(TOKEN.encode()).hexdigest().encode() in data for data in files
    )
    monkeypatch.setattr(freshness, "DECISION", 0.0)
    source.token = "revoked-and-replaced"
    assert statuses(BEARER) == [401, 401, 401]
    source.token = TOKEN
    assert statuses(BEARER) == [200, 200, 200]
    source.go_away()
    assert statuses(BEARER) == [200, 200, 200]
    assert statuses() == [502, 502, 502]


def test_who_may_read_what_is_told_of_a_gated_repository(source: FaultServer, service: Server) -> None:
    assert httpx.get(service.url + PAGE, headers=BEARER).content == WEIGHTS
    for path in (PAGE, PAGE.replace("main", COMMIT)):
        source.fault(path, Status(403, {"x-error-code": "GatedRepo"}), forever=True)
    assert httpx.get(f"{service.url}/api/models/{NAME}/revision/main").status_code == 200
    answer = httpx.get(service.url + PAGE)
    assert (answer.status_code, answer.headers["x-error-code"]) == (403, "GatedRepo")


def test_no_xet_and_no_link_that_leads_elsewhere(source: FaultServer, service: Server) -> None:
    xet = Headers(x_xet_hash="0" * 64, link='<http://elsewhere.invalid/token>; rel="xet-auth"', set_cookie="a=b")
    source.fault(PAGE, xet)
    source.fault(f"/api/models/{NAME}/tree/main", xet)
    told = [httpx.head(service.url + PAGE), httpx.get(f"{service.url}/api/models/{NAME}/tree/main")]
    assert not any({"link", "set-cookie", "x-xet-hash", "location"} & set(answer.headers) for answer in told)
    assert without_xet(b'[{"xetHash":"0","lfs":{"oid":"1","xetEnabled":true}}]') == b'[{"lfs":{"oid":"1"}}]'
    assert without_xet(b'{ "a": 1 }') == b'{ "a": 1 }'
    page = httpx.get(f"{service.url}/api/models/{NAME}/tree/{COMMIT}?recursive=true")
    assert page.links["next"]["url"].startswith(f"{service.url}/api/models/{NAME}/tree/{COMMIT}?")


def test_paths_and_datasets(source: FaultServer, service: Server, tmp_path: Path) -> None:
    source.hub("datasets/org/data", {"sub/data.csv": b"1,2\n"})
    code = f"""
from pathlib import Path
api = HfApi()
paths = api.get_paths_info("org/model", ["config.json", "model.safetensors", "absent.txt"], revision="{COMMIT}")
file = hf_hub_download("org/data", "sub/data.csv", repo_type="dataset")
result = [[(path.path, path.size) for path in paths], Path(file).read_text()]
"""
    paths, data = hub(service.url, tmp_path / "home", code)
    assert paths == [["config.json", 3], ["model.safetensors", len(WEIGHTS)]]
    assert data == "1,2\n"
    source.wait_for(lambda: bool([*(tmp_path / "cache" / "datasets--org--data" / "snapshots").rglob("data.csv")]))


@pytest.mark.parametrize(
    "path",
    [PAGE, f"/api/models/{NAME}/revision/main", f"/api/models/{NAME}/tree/{COMMIT}"],
)
def test_a_portal_in_place_of_the_source(source: FaultServer, service: Server, path: str) -> None:
    source.fault(path, LoginPage)
    assert httpx.get(service.url + path).status_code == 502
    assert httpx.get(service.url + path).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/../etc/resolve/main/passwd", 401),
        ("/org%2f../model/resolve/main/a", 401),
        (f"/{NAME}/resolve/main/..%2f..%2fother", 404),
        (f"/{NAME}/resolve/..%2fx/config.json", 404),
        (f"/api/models/{NAME}/tree/..%2f..%2fother", 404),
        ("/api/agent-harnesses", 404),
        ("/cdn/0", 404),
    ],
)
def test_paths_that_lead_elsewhere(source: FaultServer, service: Server, path: str, status: int) -> None:
    with closing(http.client.HTTPConnection(service.url.removeprefix("http://"))) as connection:
        connection.request("GET", path)  # as it is, where others would resolve the dots
        assert connection.getresponse().status == status
    assert not source.seen


def test_what_does_not_go_together(tmp_path: Path) -> None:
    for options in (
        {"gated": frozenset({"a"})},
        {"follow_links": True},
        {"upstream": "ftp://x"},
        {"upstream": "http://a:b@x"},
    ):
        with pytest.raises(SourceError):
            Server(tmp_path / "cache", **{"upstream": "http://x", **options})  # type: ignore[arg-type]


def test_distrust_lasts_for_days(tmp_path: Path) -> None:
    now = time.time()
    distrust = Distrust(tmp_path / "state" / "distrust.json", lambda: now)
    assert distrust.may_resume("a")
    assert not distrust.rest_of("a")
    assert not distrust.right("a")
    distrust.wrong("a")
    assert not distrust.may_resume("a")
    assert not distrust.rest_of("a")
    distrust.wrong("a")
    assert distrust.rest_of("a") == REST
    distrust.save()
    kept_marks = Distrust(tmp_path / "state" / "distrust.json", lambda: now)
    assert kept_marks.rest_of("a") == REST
    assert not kept_marks.may_resume("a")
    now += REST
    assert not kept_marks.rest_of("a")
    assert kept_marks.right("a")
    assert not kept_marks.right("a")
    assert not kept_marks.may_resume("a")
    now += DAYS
    assert kept_marks.may_resume("a")
    kept_marks.save()
    (tmp_path / "state" / "distrust.json").write_bytes(b'{"format": 1, "etags": [')
    assert Distrust(tmp_path / "state" / "distrust.json").may_resume("a")
    assert sorted(os.listdir(tmp_path / "state")) == ["distrust.json", "distrust.lock"]


def test_a_damaged_answer_is_no_answer(tmp_path: Path) -> None:
    answer = Answer(200, {"etag": "a"}, b"body\nof two lines", 5.0, fixed=True, open=False)
    Store(tmp_path).put("question", answer)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    whole = path.read_bytes()
    assert Store(tmp_path).get("question") == answer
    for damaged in (whole[:-1], b"", b"[]\n", whole.replace(b"question", b"another!")):
        path.write_bytes(damaged)
        assert Store(tmp_path).get("question") is None
