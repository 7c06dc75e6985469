"""What `asyncfetch prefetch` takes, and how it asks a server to fetch in advance and shows how that goes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import quote

import httpx
from cyclopts import Parameter

from ..api.options import RepoType
from ..errors import (
    AccessError,
    AsyncfetchError,
    NetworkError,
    NotFoundError,
    ProtocolError,
    RateLimitedError,
    ServerError,
    SourceError,
    redact_url,
)
from ..events import FileProgress, FileStarted, FileState, FileVerified, Finished, Reporter, Resolved, Waiting
from ..network.trust import trusted
from ..network.wall import raise_translated, retry_after
from ..policy import Policy
from ..progress.text import printable
from ..sources.settings import Settings
from ..storage.checksums import checksum_of_etag
from ..words import fit_to_show, redact_source
from .options import FLAG, CommonFlags, reporting
from .output import flush_stdout, print_json

__all__ = ["PrefetchFlags", "job_error", "prefetch_from"]

POLL = 0.3  # seconds between two looks at a job
_TIMEOUT = 30.0  # seconds for an answer
_UNDER_WAY = ("queued", "running")


@Parameter(name="*")
@dataclass(frozen=True)
class PrefetchFlags:
    """Which server, and what it is to fetch."""

    server: str | None = None
    """Where `asyncfetch serve --upstream` runs. Default: HF_ENDPOINT."""
    revision: str | None = None
    """Branch, tag or commit. Default: main."""
    repo_type: RepoType | None = None
    """dataset: a repository of data, of which all files come. Also: datasets/ORG/NAME."""
    include: Annotated[tuple[str, ...], FLAG] = ()
    """Glob over all files, repeatable: only what matches. Default: safetensors, and what holds no weights."""
    exclude: Annotated[tuple[str, ...], FLAG] = ()
    """Glob over files to leave out, repeatable."""
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True
    """Show how it goes until all is there, or print the job's id and leave it alone."""
    admin_token_env: str | None = None
    """Send the server's admin token, which is in this variable."""
    quiet: Annotated[bool, FLAG] = False
    """No progress; only warnings and errors."""
    json: Annotated[bool, FLAG] = False
    """One JSON object a line on stdout: events, then a result or an error."""

    def body(self, source: str) -> dict[str, Any]:
        """What the server is sent."""
        given = {"revision": self.revision, "repo_type": self.repo_type}
        globs = {"include": list(self.include), "exclude": list(self.exclude)}
        return {"source": source, **{name: value for name, value in {**given, **globs}.items() if value}}


def prefetch_from(source: str, flags: PrefetchFlags) -> None:
    """Let a server fetch `source` in advance. Raises what the job ended with, and what `_Server.ask` raises."""
    with _Server.of(flags) as server:
        job = server.ask("POST", "jobs", flags.body(source))
        if flags.wait:
            with reporting(CommonFlags(quiet=flags.quiet, json=flags.json)) as report, _interruptible(server, job):
                job = _watch(server, job, report)
            if job["state"] != "done":
                raise job_error(job)
    if flags.json:
        shown = redact_source(source)
        print_json({"type": "result", "command": "prefetch", "source": shown, "server": server.url, "job": job})
    else:
        print(f"{job['repository']}@{job['commit']}" if flags.wait else job["id"])


@contextmanager
def _interruptible(server: _Server, job: Mapping[str, Any]) -> Iterator[None]:
    """Say what an interrupt does not end."""
    try:
        yield
    except KeyboardInterrupt:
        flush_stdout()
        print(f"the job {job['id']} goes on at {printable(server.url)}, whose page can cancel it", file=sys.stderr)
        raise


class _Server:
    """The server's own endpoints. Tokens go there, in headers, and nowhere else."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.url = redact_url(url)
        self._base = f"{url}/api/asyncfetch/"
        try:
            self._client = httpx.Client(headers=headers, timeout=_TIMEOUT, verify=trusted(os.environ))
        except OSError as error:
            raise_translated(error, self.url)

    @classmethod
    def of(cls, flags: PrefetchFlags) -> _Server:
        """Raises SourceError."""
        url = flags.server or os.environ.get("HF_ENDPOINT", "").strip()
        if not url:
            raise SourceError("Which server is to fetch it?", hint="Give --server URL, or set HF_ENDPOINT.")
        settings = Settings.from_env(os.environ, endpoint=url)
        headers = {"X-Hub-Token": settings.token} if settings.token else {}
        if flags.admin_token_env is not None:
            token = os.environ.get(flags.admin_token_env)
            if not token:
                raise SourceError(f"--admin-token-env names {flags.admin_token_env}, which is not set.")
            headers["Authorization"] = f"Bearer {token}"
        return cls(settings.endpoint, headers)

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that is answered. Raises SourceError, AccessError, NotFoundError and the network's errors."""
        try:
            answer = self._client.request(method, self._base + path, json=body)
        except Exception as error:
            raise_translated(error, self.url)
        try:
            told = answer.json()
        except ValueError:
            told = None
        if not isinstance(told, dict):
            hint = "It is for `asyncfetch serve --upstream`, which has to run there."
            raise ProtocolError(f"the answer ({answer.status_code}) is none of its jobs", url=self.url, hint=hint)
        if answer.status_code >= 400:
            raise self._refused(answer, fit_to_show(str(told.get("error", ""))))
        return told

    def _refused(self, answer: httpx.Response, said: str) -> AsyncfetchError:
        status = answer.status_code
        if status == 400:
            return SourceError(said)
        if status in (401, 403):
            hint = "Name the variable that holds its admin token: --admin-token-env NAME." if status == 401 else ""
            return AccessError(f"{self.url} refuses: {said}", hint=hint)
        if status == 404:
            hint = "Is it `asyncfetch serve --upstream`, and as new as this?"
            return NotFoundError(f"{self.url}: {said}", hint=hint)
        if status == 429:
            return RateLimitedError(self.url, retry_after(answer.headers), said)
        return ServerError(status, url=self.url, retry_after=retry_after(answer.headers), said=said)


def _watch(server: _Server, job: dict[str, Any], report: Reporter) -> dict[str, Any]:
    """The job when it is over, with its files. Tells how it goes meanwhile; a server that is away is waited for."""
    told, patience = _Told(report), Policy.from_env().patience
    lost: float | None = None
    while True:
        try:
            job = server.ask("GET", f"jobs/{quote(job['id'])}")
        except NetworkError as error:
            lost = time.monotonic() if lost is None else lost
            if not error.transient or time.monotonic() - lost > patience:
                raise
            told.hold("the server does not answer")
            time.sleep(1)
            continue
        lost = None
        told.take(job)
        if job["state"] not in _UNDER_WAY:
            return job
        time.sleep(POLL)


@dataclass
class _Told:
    """What the reporter was told so far, so that it is told what is new, as the events of a download."""

    report: Reporter
    since: float = field(default_factory=time.monotonic)
    reason: str | None = None
    seen: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def hold(self, reason: str, file: str | None = None, delay: float | None = None) -> None:
        if reason != self.reason:
            self.reason = reason
            self.report(Waiting(file, reason, delay))

    def take(self, job: Mapping[str, Any]) -> None:
        """Tell what changed since the last time."""
        if job["state"] == "queued":
            self.hold("the server does other jobs first")
        if job["reason"]:
            self.hold(job["reason"])
        each = {file["file"]: file for file in job["each"]}
        if each and not self.seen:
            files = tuple(FileState(name, file["size"], 0, _checksum(file)) for name, file in each.items())
            self.report(Resolved(job["repository"], job["commit"], None, files))
        for name, file in each.items():
            self._take_file(name, file, self.seen.get(name))
        self.seen = each
        if job["state"] == "done":
            fetched, seconds = sum(file["fetched"] for file in each.values()), time.monotonic() - self.since
            self.report(Finished(len(each), job["size"], fetched, seconds))

    def _take_file(self, name: str, file: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
        size, received = file["size"], file["received"]
        if file["done"]:
            if before is None or not before["done"]:
                self.report(FileVerified(name, size, _checksum(file)))
            return
        if received and not (before and before["received"]):
            self.report(FileStarted(name, size, max(received - file["fetched"], 0)))
            self.report(FileProgress(name, received, size))
        elif before and received != before["received"]:
            self.report(FileProgress(name, received, size))
        if file["reason"] and (before is None or before["reason"] != file["reason"]):
            self.report(Waiting(name, file["reason"], file["retry_in"]))


def _checksum(file: Mapping[str, Any]) -> str | None:
    found = checksum_of_etag(file["etag"] or "")
    return None if found is None else str(found)


def job_error(job: Mapping[str, Any]) -> AsyncfetchError:
    """The error that a job ended with: of the class with its code, so that the exit code is that of a download."""
    name = f"{job['repository']}@{job['revision']}"
    if job["state"] == "cancelled" or job["error"] is None:
        return AsyncfetchError(f"The job for {name} was cancelled.", hint="Run the same command again to go on.")
    error = job["error"]
    kind = _kinds(AsyncfetchError).get(str(error["code"]), AsyncfetchError)
    hint = "Run the same command again with HF_TOKEN set." if job["state"] == "needs_token" else str(error["hint"])
    named = error["message"] if job["repository"] in error["message"] else f"{name}: {error['message']}"
    found = kind.__new__(kind)  # what else it carries stayed there
    found.args, found.hint = (named,), hint
    return found


def _kinds(kind: type[AsyncfetchError]) -> dict[str, type[AsyncfetchError]]:
    """The errors below one, and it itself, by their codes."""
    found = {kind.code: kind}
    for below in kind.__subclasses__():
        found |= _kinds(below)
    return found
