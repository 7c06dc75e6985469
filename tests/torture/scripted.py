"""Scripts of faults, played against real servers: each load ends right, or with an error of ours, in time.

A `Script` says how a small checkpoint is loaded and which faults strike where; its text repeats it.
`play` runs many of them at once. After each, the server is healed and the same load must succeed.
"""

from __future__ import annotations

import gc
import hashlib
import ssl
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import AsyncfetchError
from asyncfetch.policy import Policy

from ..engine.test_faults import assert_clean, assert_silent, texts_of
from ..kit.certificates import trusted_context
from ..kit.fault_server import Answer, Fault, FaultServer, Truncate
from ..kit.files import sharded_bytes

DEADLINE = 30.0  # seconds; the slowest script of 10,000 takes a few
SHARD = "model-00001-of-00002.safetensors"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
OTHER_COMMIT = "f" * 40
FIRST_DATE, SECOND_DATE = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"
HASTY = Policy(
    connections=4,
    attempts=5,
    patience=0,
    backoff=0,
    max_backoff=0,
    max_wait=0.05,
    read_timeout=0.2,
    connect_timeout=2,
    progress_unit=1 << 14,
    min_split=20_000,
    burst=8192,
    stall_window=0.5,
    stall_bytes=2000,
    max_redirects=3,
)
PATIENT = Policy(connections=4, patience=0, backoff=0.01, min_split=20_000)  # for the load after the faults
# httpcore leaves a socket to the garbage collector when a TLS handshake of the caller's client is cancelled.
CLIENTS = [
    pytest.param("own", id="own"),
    pytest.param(
        "generic",
        marks=[
            pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
            pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
        ],
        id="generic",
    ),
]
_RANDOM = np.random.default_rng(11)
TENSORS = {f"layer.{n}": _RANDOM.integers(0, 255, 65_000, dtype=np.uint8) for n in range(4)}
OTHERS = {name: array[::-1].copy() for name, array in TENSORS.items()}

Step = tuple[str, Fault]  # a fault and its text


@dataclass(frozen=True)
class Strike:
    """Faults for one file: one for each request to its page, or to where its bytes are served."""

    file: str
    where: str  # "page" or "bytes"
    steps: tuple[tuple[Step, ...], ...]

    def __str__(self) -> str:
        return f"{self.where} of {self.file}: " + ", ".join(" + ".join(text for text, _ in step) for step in self.steps)


@dataclass(frozen=True)
class Script:
    """One load. `source`: "hub", "hub-direct" (no links), "web" (with checksums), "web-unhashed" or "web-dated".

    The last two have no hashes, and the very last no ETags, only dates.

    `must_pass`: no error is good enough.
    """

    label: str
    source: str = "hub"
    sharded: bool = True
    storage: str = "memory"
    client: str = "own"
    tls: bool = False
    call: str = "load"
    strikes: tuple[Strike, ...] = ()
    must_pass: bool = False
    policy: Policy = HASTY

    def __str__(self) -> str:
        kind = ("sharded" if self.sharded else "single", self.storage, self.client, "tls" if self.tls else "plain")
        return "\n    ".join([f"{self.label}: {self.call} {self.source} {' '.join(kind)}", *map(str, self.strikes)])


@dataclass
class Report:
    """What came of all scripts. `outcomes` counts "right" and error codes."""

    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    slowest: float = 0.0
    faults: int = 0

    def __str__(self) -> str:
        errors = sum(self.outcomes.values()) - self.outcomes["right"]
        return (
            f"{sum(self.outcomes.values())} scripts with {self.faults} faults, {self.outcomes['right']} right, "
            f"{errors} typed errors, {len(self.violations)} violations, slowest {self.slowest:.1f} s"
        )


class ViolationError(Exception):
    """The load did what it never may."""


def replaced(server: FaultServer, name: str, nbytes: int) -> Fault:
    """The single file becomes another one, and the connection breaks."""

    def fault(answer: Answer) -> Answer:
        other = sharded_bytes(OTHERS, 1)["model-00001-of-00001.safetensors"]
        server.web(f"/files/{name}", {SINGLE: other}, **dated(server, name))
        server.hub(f"org/{name}", {SINGLE: other}, commit=OTHER_COMMIT)
        return Truncate(nbytes)(answer)

    return fault


def dated(server: FaultServer, name: str) -> dict[str, str]:
    """The headers of the other file: a newer date, where the first one has a date only."""
    resource = server.resources.get(f"/files/{name}/{SINGLE}")
    return {"etag": "", "last_modified": SECOND_DATE} if resource and "last-modified" in resource.headers else {}


class Slot:
    """A pair of servers on which one script after the other is played."""

    def __init__(self, folder: Path, tls: ssl.SSLContext, trusted: ssl.SSLContext, number: int) -> None:
        self.folder = folder
        self.servers = {False: FaultServer(), True: FaultServer(tls)}
        self._trusted = trusted
        self._number = number
        self._played = 0

    def __enter__(self) -> Slot:
        for server in self.servers.values():
            server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers.values():
            server.__exit__()

    async def play(self, script: Script, report: Report) -> None:
        """Play one script, and add to the report what came of it."""
        self._played += 1
        name = f"m{self._number}-{self._played}"
        cache = self.folder / name
        server = self.servers[script.tls]
        began = time.monotonic()
        try:
            outcome = await self._play(script, server, name, cache)
        except Exception as error:
            outcome = "violation"
            text = str(error) if isinstance(error, ViolationError) else "\n".join(_chain(error))
            report.violations.append(f"{script}\n  -> {text}")
        report.outcomes[outcome] += 1
        report.faults += sum(len(step) for strike in script.strikes for step in strike.steps)
        report.slowest = max(report.slowest, time.monotonic() - began)
        server.resources.clear()
        server.seen.clear()

    async def _play(self, script: Script, server: FaultServer, name: str, cache: Path) -> str:
        files = sharded_bytes(TENSORS, 2 if script.sharded else 1, metadata={"script": name})
        if not script.sharded:
            files = {SINGLE: files["model-00001-of-00001.safetensors"]}
        paths = self._serve(script, server, name, files)
        changes = False
        for strike in script.strikes:
            for step in strike.steps:
                faults = tuple(replaced(server, name, 5000) if text == "Replaced" else fault for text, fault in step)
                changes |= any(text == "Replaced" for text, _ in step)
                server.fault(paths[strike.where][strike.file], faults)
        good = [TENSORS, OTHERS] if changes else [TENSORS]
        try:
            with anyio.fail_after(DEADLINE):
                state = await self._load(script, server, name, cache, files, script.policy, checksums=not changes)
        except AsyncfetchError as error:
            assert_silent(texts_of(error))
            if script.must_pass:
                raise ViolationError(f"it should have passed: {type(error).__name__}: {error}") from error
            outcome = error.code
        except TimeoutError:
            raise ViolationError(f"it did not end within {DEADLINE:.0f} s") from None
        else:
            if not any(same(state, tensors) for tensors in good):
                raise ViolationError("wrong bytes")
            outcome = "right"
        assert_clean(cache)
        for path in {*paths["page"].values(), *paths["bytes"].values()}:
            server.heal(path)
        with anyio.fail_after(DEADLINE):
            state = await self._load(script, server, name, cache, files, PATIENT, checksums=not changes)
        if not any(same(state, tensors) for tensors in good):
            raise ViolationError("wrong bytes in the load after the faults")
        assert_clean(cache)
        return outcome

    def _serve(self, script: Script, server: FaultServer, name: str, files: dict[str, bytes]) -> dict[str, Any]:
        """Serve the files; the paths of each file's page and of its bytes."""
        if script.source.startswith("web"):
            dates = {"etag": "", "last_modified": FIRST_DATE} if script.source == "web-dated" else {}
            server.web(f"/files/{name}", files, **dates)
            paths = {file: f"/files/{name}/{file}" for file in files}
            return {"page": paths, "bytes": paths}
        links = r".*\.safetensors" if script.source == "hub" else "nothing"
        repository = server.hub(f"org/{name}", files, links=links)
        # The first file is asked for by the branch, all others by its commit.
        first = INDEX if script.sharded else SINGLE
        pages = {**repository.pages, first: f"/org/{name}/resolve/main/{first}"}
        direct = {**pages, **({SINGLE: repository.pages[SINGLE]} if SINGLE in files else {})}
        return {"page": pages, "bytes": {**direct, **repository.storage}}

    async def _load(
        self,
        script: Script,
        server: FaultServer,
        name: str,
        cache: Path,
        files: dict[str, bytes],
        policy: Policy,
        *,
        checksums: bool,
    ) -> dict[str, Any]:
        options: dict[str, Any] = {"policy": policy, "token": False, "cache_dir": cache}
        if script.source.startswith("hub"):
            source, options["endpoint"] = f"org/{name}", server.url
        else:
            source = f"{server.url}/files/{name}/"
        if script.source == "web" and checksums:
            options["checksums"] = {file: f"sha256:{hashlib.sha256(body).hexdigest()}" for file, body in files.items()}
        if script.client == "own":
            return await called(script.call, script.storage, source, options)
        async with httpx.AsyncClient(verify=self._trusted, trust_env=False) as client:
            return await called(script.call, script.storage, source, {**options, "client": client})


async def called(call: str, storage: str, source: str, options: dict[str, Any]) -> dict[str, Any]:
    """The state dict by one of the ways to get it."""
    if call == "open":
        async with asyncfetch.open_async(source, **options) as checkpoint:
            return await checkpoint.state_dict()
    if call == "stream":
        async with asyncfetch.stream_async(source, storage=storage, **options) as tensors:
            return {name: array async for name, array in tensors}
    return await asyncfetch.load_async(source, storage=storage, **options)


def same(state: dict[str, Any], tensors: dict[str, Any]) -> bool:
    return state.keys() == tensors.keys() and all(np.array_equal(state[name], tensors[name]) for name in tensors)


def _chain(error: BaseException) -> Iterable[str]:
    seen: BaseException | None = error
    while seen is not None:
        yield f"{type(seen).__name__}: {seen}"
        seen = seen.__cause__ or seen.__context__


def play(
    scripts: Iterable[Script], folder: Path, monkeypatch: pytest.MonkeyPatch, backend: Any, at_once: int = 8
) -> Report:
    """Play the scripts, several at a time, each in a slot of its own."""
    report = Report()
    waiting = deque(scripts)
    tls, trusted = _certified(folder, monkeypatch)
    monkeypatch.setattr("random.random", lambda: 0.0)  # a Retry-After of 0 is not spread over a second
    slots = [Slot(folder, tls, trusted, number) for number in range(at_once)]

    async def serve(slot: Slot) -> None:
        while waiting:
            await slot.play(waiting.popleft(), report)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for slot in slots:
                group.start_soon(serve, slot)

    for slot in slots:
        slot.__enter__()
    try:
        anyio.run(main, backend=backend[0], backend_options=backend[1])
    finally:
        for slot in slots:
            slot.__exit__()
        gc.collect()  # so that what is not closed is told of this test
    return report


def _certified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The TLS context of a server, and one of a client that trusts it, as the own path then does too."""
    context = trusted_context(folder, monkeypatch)
    return context, ssl.create_default_context(cafile=str(folder / "ca.pem"))
