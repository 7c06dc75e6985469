"""`asyncfetch doctor`: what a load would use here, and whether it works. Each finding is good, or says what to do.

Nothing is changed but for a probe in the cache, which goes at once. The token goes to the endpoint and nowhere else.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import anyio

from ..errors import AccessError, AsyncfetchError, CertificateError, StorageError, redact_url, storage_errors
from ..network.proxies import Proxies
from ..network.transport import Reply, Transport
from ..policy import Policy, __version__
from ..progress.text import printable, seconds_text, size_text
from ..sources.settings import DEFAULT_ENDPOINT, Settings, token_place
from ..storage.cache import RepoCache
from ..storage.files import has_locks, takes_any_order
from ..storage.roots import cache_root
from ..tasks import off_loop
from .output import NO_ROOM, exit_code, for_people, print_json
from .wording import in_flags

__all__ = ["Finding", "doctor", "examine"]

_PACKAGES = ("anyio", "httpx", "httpcore", "numpy", "safetensors", "huggingface-hub", "torch", "transformers")
_LIMIT = 64 * 1024  # bytes of an answer
_NOTHING = 10**6  # bytes, of a disk that is full: the system keeps some
_LITTLE = 10**10  # bytes: less than one checkpoint of today
_RATE = re.compile(r'"?(\w+)"?\s*;\s*r=(\d{1,9})(?:\s*;\s*t=(\d{1,9}))?')


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a load would use. `state`: "good", "note" (works, and worth knowing) or "wrong"."""

    name: str
    state: str
    what: str
    hint: str = ""
    exit_code: int = 0

    @classmethod
    def of_error(cls, name: str, error: AsyncfetchError) -> Finding:
        return cls(name, "wrong", in_flags(error.message), in_flags(error.hint), exit_code(error))


def doctor(environ: Mapping[str, str], *, cache_dir: Path | None, endpoint: str | None, as_json: bool) -> int:
    """Print what is found. Returns 0, or the exit code of the first thing that is wrong."""
    findings = anyio.run(examine, environ, cache_dir, endpoint)
    code = next((found.exit_code for found in findings if found.state == "wrong"), 0)
    if as_json:
        print_json({"type": "result", "command": "doctor", "exit_code": code, "findings": [*map(asdict, findings)]})
        return code
    width = max(len(found.name) for found in findings)
    marks = {"good": "ok   ", "note": "note ", "wrong": "WRONG"}
    indent = " " * (width + 9)
    for found in findings:
        line = f"{marks[found.state]}  {found.name:{width}}  {printable(found.what)}"
        print(for_people(line, sys.stdout, indent=indent))
        if found.hint:
            print(for_people(f"{indent}{printable(found.hint)}", sys.stdout, indent=indent))
    sys.stdout.flush()
    return code


async def examine(environ: Mapping[str, str], cache_dir: Path | None, endpoint: str | None) -> list[Finding]:
    """All findings, in the order in which a load meets them."""
    findings = [_versions()]
    try:
        policy = Policy.from_env(environ)
    except AsyncfetchError as error:
        findings.append(Finding.of_error("settings", error))
        policy = Policy()
    findings += await off_loop(lambda: list(_cache(environ, cache_dir)), slow=True)
    try:
        settings = Settings.from_env(environ, endpoint=endpoint)
    except AsyncfetchError as error:
        return [*findings, Finding.of_error("endpoint", error)]
    return [*findings, *await _network(environ, policy, settings)]


def _versions() -> Finding:
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    packages = ", ".join(f"{name} {number}" for name, number in found.items())
    return Finding("versions", "good", f"asyncfetch {__version__}, Python {platform.python_version()}, {packages}")


# -- the disk ----------------------------------------------------------------------------------


def _cache(environ: Mapping[str, str], explicit: Path | None) -> Iterator[Finding]:
    """Where files go: whether they can be written, linked and locked there, and for how many there is room."""
    try:
        root = cache_root(environ, explicit)
    except AsyncfetchError as error:
        yield Finding.of_error("cache", error)
        return
    folder = next(one for one in (root, *root.parents) if os.path.exists(one))  # also where another may not be entered
    try:
        with storage_errors(root, writing="cache"):
            probe = folder / f"asyncfetch-doctor.{secrets.token_hex(4)}"
            probe.mkdir()
    except StorageError as error:
        yield _unusable(root, error)
        return
    try:
        made = "" if root.exists() else ", which the first download makes"
        yield Finding("cache", "good", f"{root}{made}")
        yield _room(folder)
        yield from _abilities(probe)
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _unusable(root: Path, error: StorageError) -> Finding:
    """What is to be said of a cache in which nothing can be made."""
    elsewhere = "HF_HUB_CACHE or --cache-dir."
    if not os.path.exists(root) or os.access(root, os.W_OK | os.X_OK):
        why = error.__cause__.strerror if isinstance(error.__cause__, OSError) else str(error)
        hint = f"Name another folder: {elsewhere}"
        return Finding("cache", "wrong", f"{root} cannot be used: {why}.", hint, exit_code(error))
    if not os.access(root, os.R_OK | os.X_OK):
        hint = f"Name a folder of your own: {elsewhere}"
        return Finding("cache", "wrong", f"{root} may be neither read nor written to.", hint, exit_code(error))
    hint = f"What is cached is used. To download, name a folder that you may write to: {elsewhere}"
    return Finding("cache", "wrong", f"{root} may be read and not written to.", hint, exit_code(error))


def _room(folder: Path) -> Finding:
    usage = shutil.disk_usage(folder)
    if not usage.total:  # some file systems do not tell
        return Finding("free space", "note", "The file system does not tell.")
    if usage.free < _NOTHING:
        hint = "What is cached is used. To download, free some space, or name another place with --cache-dir."
        return Finding("free space", "wrong", f"{size_text(usage.free)}: the disk is full.", hint, NO_ROOM)
    if usage.free < _LITTLE:
        hint = "Larger checkpoints fail before they begin: free some space, or name another place with --cache-dir."
        return Finding("free space", "note", f"{size_text(usage.free)}, which is little.", hint)
    return Finding("free space", "good", size_text(usage.free))


def _abilities(probe: Path) -> Iterator[Finding]:
    """What the file system can do, tried in the folder `probe`."""
    cache = RepoCache(probe, "asyncfetch/probe")
    cache.prepare()
    if cache.symlinks():
        yield Finding("links", "good", "Files of several revisions are kept once.")
    else:
        why = "HF_HUB_DISABLE_SYMLINKS is set" if os.environ.get("HF_HUB_DISABLE_SYMLINKS") else "there are none here"
        yield Finding("links", "note", f"Each revision keeps files of its own: {why}.")
    if _works(lambda: has_locks(probe)):
        yield Finding("locks", "good", "Two processes do not download the same file.")
    else:
        hint = "Let one process download, or use a folder on a disk of this machine."
        yield Finding(
            "locks", "note", "No locks here: two processes may download the same file, each for itself.", hint
        )
    if not _works(lambda: takes_any_order(probe)):
        hint = "Downloads are slower here, one connection a file. A folder on a local disk has no such limit."
        yield Finding("writing", "note", "Files can be written from their beginning to their end only.", hint)


def _works(probe: Callable[[], bool]) -> bool:
    try:
        return probe()
    except OSError:
        return False


# -- the network -------------------------------------------------------------------------------


async def _network(environ: Mapping[str, str], policy: Policy, settings: Settings) -> list[Finding]:
    url = settings.endpoint
    named = "" if url == DEFAULT_ENDPOINT else ", by --endpoint or HF_ENDPOINT"
    findings = [Finding("endpoint", "good", f"{redact_url(url)}{named}")]
    try:
        proxy = Proxies(urllib.request.getproxies()).for_url(url)
        if proxy is not None:
            findings.append(Finding("proxy", "note", f"{proxy}, by {proxy.variable}"))
    except AsyncfetchError as error:
        return [*findings, Finding.of_error("proxy", error)]
    if settings.offline:
        hint = "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: nothing is asked, here too."
        return [*findings, Finding("network", "note", "Only what is cached is used.", hint)]
    brief = Policy(
        attempts=1,
        patience=0,
        max_wait=0,  # a limit is told, not waited for
        connect_timeout=policy.connect_timeout,
        read_timeout=policy.read_timeout,
    )
    token = _unused_token(environ, settings)
    async with Transport(brief) as transport:
        reached = await _reach(transport, url)
        if token is None and reached[0].state != "wrong":
            token = await _token(token_place(environ), transport, settings)
    return [*findings, *reached, *([token] if token else [])]


async def _reach(transport: Transport, url: str) -> list[Finding]:
    """Whether the endpoint answers, how soon, over which trust, and how many requests it still takes."""
    began = time.monotonic()
    try:
        reply = await transport.fetch(f"{url}/api/models?limit=1", limit=_LIMIT, may_follow=lambda *_: False)
    except CertificateError as error:
        return [Finding.of_error("certificates", error)]
    except AsyncfetchError as error:
        hint = error.hint or "Is there a network, and the right proxy? See HTTPS_PROXY, NO_PROXY and HF_ENDPOINT."
        return [Finding("network", "wrong", in_flags(error.message), in_flags(hint), exit_code(error))]
    waited = time.monotonic() - began
    took = seconds_text(waited) if waited >= 1 else f"{waited * 1000:.0f} ms"
    if reply.status >= 400 and reply.status not in (401, 403, 404):
        hint = "Try again later. If it stays so, whoever runs that server can tell why."
        return [Finding("network", "wrong", f"{redact_url(url)} answers with status {reply.status}.", hint, 6)]
    if not _is_hub(reply):
        hint = "Is it the address of a Hub? A sign-in page of a network or a proxy answers so too."
        return [Finding("network", "wrong", f"{redact_url(url)} answers, and not as a Hub does.", hint, 6)]
    findings = [Finding("network", "good", f"{redact_url(url)} answers after {took}.")]
    if url.startswith("https:"):
        findings.append(Finding("certificates", "good", "The server's certificate is trusted."))
    return [*findings, *_rate(reply.headers)]


def _is_hub(reply: Reply) -> bool:
    if any(name in reply.headers for name in ("x-error-code", "x-error-message")):
        return True
    with suppress(ValueError):
        return isinstance(json.loads(reply.body), list | dict)
    return False


def _rate(headers: Mapping[str, str]) -> Iterator[Finding]:
    """What the header RateLimit says: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/."""
    found = _RATE.search(headers.get("ratelimit", ""))
    if found is None:
        return
    left, until = int(found[2]), f" for the next {found[3]} s" if found[3] else ""
    if left:
        yield Finding("rate limit", "good", f"{left:,} requests of the kind {found[1]!r} are left{until}.")
    else:
        hint = "Downloads wait until then. Signed in, the limit is higher: set HF_TOKEN, or run `hf auth login`."
        yield Finding("rate limit", "note", f"No request of the kind {found[1]!r} is left{until}.", hint)


def _unused_token(environ: Mapping[str, str], settings: Settings) -> Finding | None:
    """What is to be said of a token that is not there, or that must not be sent; None where it may be."""
    if settings.token is None:
        if settings.token_fault:
            return Finding("token", "wrong", settings.token_fault, "Set HF_TOKEN, or sign in with `hf auth login`.", 2)
        hint = "Public repositories need none. For others set HF_TOKEN, or sign in with `hf auth login`."
        return Finding("token", "note", "None is set.", hint)
    if not settings.endpoint.startswith("https:") and not _is_here(settings.endpoint):
        hint = "Use an https:// endpoint, or unset the token: whoever is on the way could read it. It was not sent now."
        return Finding(
            "token",
            "wrong",
            f"That of {token_place(environ)} would go to {redact_url(settings.endpoint)} in the open.",
            hint,
            4,
        )
    return None


async def _token(place: str, transport: Transport, settings: Settings) -> Finding:
    """Whose token it is that stands in `place`: by its owner's name, never by its text."""
    sent = {"authorization": f"Bearer {settings.token}"}
    url = f"{settings.endpoint}/api/whoami-v2"
    try:
        reply = await transport.fetch(url, limit=_LIMIT, headers=sent, may_follow=lambda *_: False)
    except AccessError as error:
        return Finding.of_error("token", error)
    except AsyncfetchError as error:
        return Finding("token", "note", f"That of {place}: the endpoint does not say whose it is. {error.message}")
    if reply.status in (401, 403):
        hint = f"It may have expired or been revoked. Replace it in {place}, or sign in with `hf auth login`."
        return Finding("token", "wrong", f"That of {place} is refused.", hint, exit_code(AccessError("")))
    name = None
    with suppress(ValueError, AttributeError):
        name = json.loads(reply.body).get("name")
    if not isinstance(name, str):
        return Finding("token", "note", f"That of {place}: the endpoint does not say whose it is.")
    return Finding("token", "good", f"That of {name[:80]}, from {place}")


def _is_here(url: str) -> bool:
    return re.match(r"https?://(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?(/|$)", url) is not None
