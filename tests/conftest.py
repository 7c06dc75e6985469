"""Fixtures for the whole suite: the event loops, and an environment without the user's settings."""

from __future__ import annotations

import os
import signal

import pytest

# A shell that starts the tests in the background makes them, and so the programs that they start and
# interrupt, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

BACKENDS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    pytest.param(("trio", {}), id="trio"),
]


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """Each async test runs on asyncio, on asyncio with uvloop and on trio."""
    return request.param


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No token, endpoint, proxy or cache of the user reaches a test."""
    for name in list(os.environ):
        upper = name.upper()
        if upper.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "ASYNCFETCH_")) or upper.endswith("_PROXY"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf-home")))
