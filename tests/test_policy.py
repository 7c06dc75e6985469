"""The knobs, and the one rule of what is retried, how often and after how long."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TypeVar

import pytest

from asyncfetch import policy as module
from asyncfetch.errors import NetworkError, SourceError
from asyncfetch.policy import Policy
from asyncfetch.spans import MiB

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


def test_the_version_is_the_one_of_the_package() -> None:
    """The version has one home, which the build reads."""
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", module.__version__)
    assert MiB == 1_048_576
    assert f'__version__ = "{module.__version__}"' in Path(module.__file__).read_text()
