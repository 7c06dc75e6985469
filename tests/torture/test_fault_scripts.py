"""Seeded random scripts of all that the fault server can do: the right bytes or an error of ours, in time."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..conftest import BACKENDS
from ..kit.fault_server import (
    LOOK,
    OK,
    Chunked,
    ContentRange,
    Drip,
    Expire,
    Flip,
    Gzip,
    Hangup,
    Headers,
    IgnoreRange,
    LoginPage,
    Raw,
    Reset,
    ResetAtOnce,
    Shifted,
    Stall,
    Status,
    Truncate,
    UntilClose,
)
from .scripted import CLIENTS, INDEX, SHARD, SINGLE, Script, Step, Strike, play

PORTIONS = 5  # of each client, so that none takes long
STATUSES = (
    200, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 408, 409, 410, 416, 418, 425, 429, 451,
    500, 501, 502, 503, 504, 507, 599,
)  # fmt: skip
ANSWER_HEADERS: tuple[dict[str, str], ...] = (
    {},
    {},
    {"retry-after": "0"},
    {"retry-after": "-1"},
    {"retry-after": "\u00b2"},
    {"retry-after": "1000000000"},
    {"retry-after": "Sun, 31 Dec 2023 23:59:59 GMT"},
    {"ratelimit": '"api";r=0;t=55'},
    {"location": "?again"},
    {"location": "http://localhost:1/nobody"},
    {"location": "http://[/"},
    {"content-range": "bytes */7"},
    {"x-error-code": "EntryNotFound"},
    {"x-error-code": "GatedRepo"},
)
RANGES = (
    "bytes {start+1}-{last}/{size}", "bytes {start}-{last+1}/{size}", "bytes {start}-{last}/{size+1}",
    "bytes {start}-{last}/*", "bytes {last}-{start}/{size}", "bytes {start}-/{size}", "octets 0-1/2", "",
)  # fmt: skip
CHANGED_HEADERS: tuple[dict[str, str | None], ...] = (
    {"etag": '"another"'},
    {"etag": 'W/"weak"'},
    {"etag": None},
    {"content_range": None},
    {"content_range": None, "content_type": "multipart/byteranges; boundary=x"},
    {"content_length": "5"},
    {"content_length": "-5"},
    {"content_length": "1000000"},
    {"content_length": "5, 6"},
    {"connection": "close"},
    {"content_encoding": "gzip"},
    {"transfer_encoding": "gzip"},
    {"x_linked_size": "5"},
    {"x_linked_etag": '"' + "0" * 64 + '"'},
    {"x_repo_commit": None},
    {"x_repo_commit": "e" * 40},
    {"location": None},
)
RAW = (
    b"220 ready\r\n\r\n",
    b"HTTP/1.1 206 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    b"HTTP/1.1 206 OK\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
    b"HTTP/1.1 200 OK\r\nx: " + b"x" * 200_000,
    b"HTTP/1.1 103 Early Hints\r\n\r\n",
    b"HTTP/1.1 200",
)


def draw_fault(rng: random.Random, *, bits: bool) -> Step:
    """One fault of any kind, with its text. `bits`: also such that only a hash can find."""
    at = rng.choice((0, 1, 7, 8, 65_535, 65_536, 129_999, rng.randrange(130_000), rng.randrange(130_000)))
    kinds: list[Callable[[], Step]] = [
        *2 * [lambda: (f"Truncate({at})", Truncate(at))],
        *2 * [lambda: (f"Reset({at})", Reset(at))],
        lambda: (f"Stall({at})", Stall(at)),
        *2 * [lambda: (f"Expire({at})", Expire(at))],
        lambda: ("Hangup", Hangup),
        lambda: ("ResetAtOnce", ResetAtOnce),
        lambda: ("Chunked", Chunked),
        lambda: ("UntilClose", UntilClose),
        lambda: ("IgnoreRange", IgnoreRange),
        lambda: ("Shifted", Shifted),
        lambda: ("Gzip", Gzip),
        lambda: ("LoginPage", LoginPage),
        lambda: _drip(rng),
        lambda: _status(rng),
        lambda: _status(rng),
        lambda: _of(ContentRange, rng.choice(RANGES)),
        lambda: (f"Headers({(changed := rng.choice(CHANGED_HEADERS))})", Headers(**changed)),
        lambda: _of(Raw, rng.choice(RAW)),
        *([lambda: (f"Flip({at})", Flip(at))] if bits else []),
    ]
    return rng.choice(kinds)()


def _of(maker: Callable[[Any], Any], argument: Any) -> Step:
    return f"{maker.__name__}({repr(argument)[:80]})", maker(argument)


def _drip(rng: random.Random) -> Step:
    nbytes, seconds = rng.choice(((1, 0.02), (3000, 0.001), (10_000, 0.01)))
    return f"Drip({nbytes}, {seconds})", Drip(nbytes, seconds)


def _status(rng: random.Random) -> Step:
    status, headers = rng.choice(STATUSES), rng.choice(ANSWER_HEADERS)
    return f"Status({status}, {headers})", Status(status, headers)


def draw_script(seed: int, number: int, client: str) -> Script:
    """Script `number` of `seed`: one to five faults, some at once, on any of the files."""
    rng = random.Random(f"{seed}/{client}/{number}")
    source = rng.choice(("hub", "hub", "hub-direct", "web", "web-unhashed", "web-dated"))
    sharded = rng.random() < 0.6
    call = rng.choice(("load", "load", "load", "stream", "open"))
    bits = source not in ("web-unhashed", "web-dated") and call != "open"
    strikes = []
    left = rng.randint(1, 5)
    while left:
        count = rng.randint(1, left)
        left -= count
        steps: list[tuple[Step, ...]] = [(("OK", LOOK),)] * rng.choice((0, 0, 1, 1, 2))
        while count:
            at_once = min(count, rng.choice((1, 1, 1, 2, 3)))
            count -= at_once
            steps.append(tuple(draw_fault(rng, bits=bits) for _ in range(at_once)))
        file = rng.choice((SHARD, SHARD, INDEX)) if sharded else SINGLE
        strikes.append(Strike(file, rng.choice(("page", "bytes", "bytes")), tuple(steps)))
    if not sharded and call == "load" and rng.random() < 0.3:
        strikes.append(Strike(SINGLE, "bytes", ((("OK", LOOK),), (("Replaced", OK),))))
    return Script(
        f"--seed {seed}, script {client} {number}",
        source=source,
        sharded=sharded,
        storage=rng.choice(("disk", "memory")),
        client=client,
        tls=rng.random() < 0.3,
        call=call,
        strikes=tuple(strikes),
    )


def test_scripts_are_repeatable() -> None:
    """Seed and number give the same script again, and one number another one than the next."""
    texts = [str(draw_script(7, number, "own")) for number in range(200)]
    assert texts == [str(draw_script(7, number, "own")) for number in range(200)]
    assert len(set(texts)) == 200
    every = "".join(texts)
    for kind in ("Truncate", "Reset(", "Stall", "Expire", "Hangup", "Flip", "Raw", "Drip", "Replaced", " + "):
        assert kind in every


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("portion", range(PORTIONS))
def test_random_scripts(
    client: str,
    portion: int,
    seed: int,
    scale: Callable[[int, int], int],
    figure: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten thousand loads with one to five faults each: no wrong byte, no foreign error, no load without end."""
    count = scale(8, 1000)
    backend = BACKENDS[portion % len(BACKENDS)].values[0]
    numbers = range(portion * count, (portion + 1) * count)
    scripts = (draw_script(seed, number, client) for number in numbers)
    report = play(scripts, tmp_path, monkeypatch, backend)
    figure(f"{report}; {dict(report.outcomes.most_common())}")
    assert not report.violations, "\n\n".join(report.violations[:10])
    assert sum(report.outcomes.values()) == count
    assert report.outcomes["right"]
    assert count < 100 or len(report.outcomes) > 5
