"""The knobs, and the one rule of what is retried, how often and after how long."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
from contextlib import AsyncExitStack
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import httpx
import numpy as np
import pytest

import asyncfetch
from asyncfetch import policy as module
from asyncfetch.errors import NetworkError, SourceError
from asyncfetch.events import Event, Retrying, event_object
from asyncfetch.policy import Policy
from asyncfetch.spans import MiB

from .kit.fault_server import FaultServer, Status, Truncate
from .kit.files import sharded_bytes

T = TypeVar("T")
URL = "http://host/"
RESET = NetworkError("reset", url=URL)
NUMBERS = [field.name for field in dataclasses.fields(Policy)]
MAY_BE_ZERO = {"patience", "backoff", "max_backoff", "max_wait", "stall_bytes", "max_redirects", "lock_patience"}


def test_from_env_reads_each_variable() -> None:
    """The Hub's two time-outs and our two numbers are read; spaces and empty values do not matter."""
    environ = {
        "HF_HUB_ETAG_TIMEOUT": "3",
        "HF_HUB_DOWNLOAD_TIMEOUT": " 7.5 ",
        "ASYNCFETCH_CONNECTIONS": "4",
        "ASYNCFETCH_ATTEMPTS": "9",
        "ASYNCFETCH_MAX_INDEX_BYTES": "77",
    }
    expected = dataclasses.replace(
        Policy(), connect_timeout=3.0, read_timeout=7.5, connections=4, attempts=9, max_index_bytes=77
    )
    assert Policy.from_env(environ) == expected
    assert Policy.from_env({"HF_HUB_ETAG_TIMEOUT": "", "ASYNCFETCH_ATTEMPTS": "  "}) == Policy()


def test_from_env_reads_the_environment_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """os.environ is read when called, not when imported."""
    assert Policy.from_env() == Policy()
    monkeypatch.setenv("ASYNCFETCH_CONNECTIONS", "2")
    assert Policy.from_env().connections == 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HF_HUB_ETAG_TIMEOUT", "soon"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "nan"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "0"),
        ("ASYNCFETCH_CONNECTIONS", "1.5"),
        ("ASYNCFETCH_CONNECTIONS", "-1"),
        ("ASYNCFETCH_ATTEMPTS", "0"),
        ("ASYNCFETCH_MAX_INDEX_BYTES", "64M"),
    ],
)
def test_from_env_refuses(variable: str, value: str) -> None:
    """A value that is no usable number is an error of ours that shows the value."""
    with pytest.raises(SourceError, match=re.escape(value.rstrip("0")) if value != "0" else "0"):
        Policy.from_env({variable: value})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1, 0, float("nan")])
def test_a_policy_has_no_senseless_numbers(name: str, value: float) -> None:
    """No knob is negative or NaN, and zero is allowed only where it means something."""
    if value == 0 and name in MAY_BE_ZERO:
        assert getattr(Policy(**{name: value}), name) == 0
        return
    with pytest.raises(SourceError, match=rf"Policy\.{name} "):
        Policy(**{name: value})


WHOLE = {name for name in NUMBERS if type(getattr(Policy(), name)) is int}
ENDLESS = {"patience", "max_wait", "connect_timeout", "read_timeout", "stall_window", "lock_patience"}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_policy_has_numbers(name: str) -> None:
    """What is no number, has no end where it needs one, or no place in the machine, is an error of ours, at once."""
    for value in (True, "3", b"4", 1j, Decimal(7), [5], timedelta(seconds=6), object()):
        with pytest.raises(SourceError, match=rf"Policy\.{name} must be a (whole )?number, not "):
            Policy(**{name: value})
    for value in (2**63, 10**400, *([] if name in ENDLESS else [math.inf])):
        with pytest.raises(SourceError, match=rf"Policy\.{name} must be (at most|a whole number)"):
            Policy(**{name: value})
    with pytest.raises(SourceError, match=rf"Policy\.{name} "):
        Policy(**{name: -math.inf})
    if name in WHOLE:
        for value in (2.5, 8.0, np.float32(3), Fraction(9, 2)):
            with pytest.raises(SourceError, match=rf"Policy\.{name} must be a whole number, not "):
                Policy(**{name: value})
    if name == "bandwidth_limit":
        assert getattr(Policy(**{name: None}), name) is None
    else:
        with pytest.raises(SourceError, match=rf"Policy\.{name} must be a (whole )?number, not None"):
            Policy(**{name: None})


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_others_become_plain(name: str) -> None:
    """Numbers of numpy and fractions are what they count, for libraries that want none but Python's own."""
    for value in (7, np.int64(7), np.uint8(7), *([] if name in WHOLE else [7.0, np.float32(7), Fraction(7)])):
        found = getattr(Policy(**{name: value}), name)
        assert (found, type(found) in (int, float)) == (7, True)
    assert pickle.loads(pickle.dumps(Policy(**{name: np.int16(9)}))) == Policy(**{name: 9})
    if name in ENDLESS:
        assert getattr(Policy(**{name: math.inf}), name) == math.inf


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["ours", "client"])
async def test_times_without_an_end(tmp_path: Path, kind: str) -> None:
    """They are what they say, also while a server is away: it is waited for, and the wait can be told."""
    policy = Policy(**dict.fromkeys(ENDLESS, math.inf), connections=np.int64(2), attempts=np.int8(1), backoff=0.01)
    tensors = {"a": np.arange(300_000, dtype=np.int32)}
    told: list[Event] = []
    with FaultServer() as server:
        server.hub("org/model", sharded_bytes(tensors, shards=1))
        for path in server.resources:
            if path.startswith("/storage/"):
                server.fault(path, Truncate(100_000), *[Status(503)] * 4)
        async with AsyncExitStack() as holds:
            client = await holds.enter_async_context(httpx.AsyncClient()) if kind == "client" else None
            state = await asyncfetch.load_async(
                "org/model", endpoint=server.url, cache_dir=tmp_path, token=False, policy=policy, client=client,
                report=told.append,
            )  # fmt: skip
    assert np.array_equal(state["a"], tensors["a"])
    waits = [event for event in told if isinstance(event, Retrying) and event.patience == math.inf]
    assert waits
    assert all(json.loads(json.dumps(event_object(event), allow_nan=False))["patience"] is None for event in waits)


def test_the_version_is_the_one_of_the_package() -> None:
    """The version has one home, which the build reads."""
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", module.__version__)
    assert MiB == 1_048_576
    assert f'__version__ = "{module.__version__}"' in Path(module.__file__).read_text()
