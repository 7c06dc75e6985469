"""Whether the server lives, and whether it can serve: what probes of a supervisor ask.

    GET /healthz    200 while requests are answered at all
    GET /readyz     200 if clients can be served, else 503: {"ready": true, "checks": {"cache": {"ok": true, ...}}}

Neither asks for a token, and neither tells where anything lies. They answer within PROBE seconds and a moment.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import anyio
from starlette.responses import JSONResponse, Response

from ...reasons import reason_of
from ...storage.locks import private_name
from ...tasks import off_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ..source.upstream import Upstream

__all__ = ["Check", "alive", "checks_of", "readable", "readiness"]

PROBE = 2.0  # seconds for each check


class Check(NamedTuple):
    """One thing that is needed to serve, and a sentence about it."""

    ok: bool
    why: str


def alive() -> Response:
    return JSONResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})


def readiness(checks: Mapping[str, Check]) -> Response:
    ready = all(check.ok for check in checks.values())
    told = {"ready": ready, "checks": {name: check._asdict() for name, check in checks.items()}}
    return JSONResponse(told, 200 if ready else 503, {"Cache-Control": "no-store"})


async def checks_of(state: Path, upstream: Upstream) -> dict[str, Check]:
    """What speaks against serving another Hub by way of a cache whose bookkeeping is in `state`."""
    cache = await _writable(state)
    if await upstream.reached(PROBE):
        return {"cache": cache, "upstream": Check(True, "It answers.")}
    if await off_loop(upstream.has_answers):
        why = "It does not answer: what is kept is served, and nothing else."
        return {"cache": cache, "upstream": Check(True, why)}
    return {"cache": cache, "upstream": Check(False, "It does not answer, and nothing is kept.")}


async def _writable(folder: Path) -> Check:
    """Whether files can be written in `folder`: tried on one. A disk that hangs counts as one that cannot be used."""
    return await _tried(lambda: _write(folder), "It can be written.", "It cannot be written")


async def readable(folder: Path) -> Check:
    """Likewise, whether its files can be listed."""
    return await _tried(lambda: os.scandir(folder).close(), "It can be read.", "It cannot be read")


async def _tried(work: Callable[[], None], good: str, bad: str) -> Check:
    with anyio.move_on_after(PROBE):
        try:
            await off_loop(work, abandon=True)
        except OSError as error:
            return Check(False, f"{bad}: {reason_of(error)}.")
        return Check(True, good)
    return Check(False, f"{bad}: nothing came of it in {PROBE:g} s.")


def _write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    probe = private_name(folder / "probe")
    try:
        probe.write_bytes(b"x" * 4096)
    finally:
        probe.unlink(missing_ok=True)
