"""The clients that are installed with the tests, against both kinds of service. `scripts/clients` runs the others."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from scripts.matrix.contestants import CLIENTS, why_expected
from scripts.matrix.models import write_plain
from scripts.matrix.runs import PROGRAMS, run
from scripts.matrix.services import both

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = ("with_huggingface_hub.py", "as_llama_cpp.py")
FRAMEWORKS = ("with_tokenizers.py", "with_transformers.py", "with_diffusers.py")
IN_ONE = "import runpy, sys; [runpy.run_path(path) for path in sys.argv[1:]]"  # torch takes long to be imported


def run_all(models: Path, work: Path, programs: tuple[str, ...]) -> None:
    """The programs, one after the other, against a folder and against a cache in front of it."""
    client = next(client for client in CLIENTS if client.program == programs[0])
    command = [sys.executable, "-c", IN_ONE, *(str(PROGRAMS / program) for program in programs)]
    with both(models, work) as services:
        for service in services:
            outcome = run(client, command, service, models)
            assert not outcome.error
            assert not outcome.unexpected
            assert outcome.is_good


@pytest.mark.heavy
def test_huggingface_hub_and_what_llama_cpp_asks_for(tmp_path: Path) -> None:
    write_plain(tmp_path / "models")
    run_all(tmp_path / "models", tmp_path, PLAIN)


@pytest.mark.timeout(300)
def test_frameworks(tmp_path: Path) -> None:
    for module in ("torch", "tokenizers", "transformers", "diffusers"):
        pytest.importorskip(module)
    subprocess.run([sys.executable, PROGRAMS / "make_models.py", tmp_path / "models"], check=True, timeout=300)
    run_all(tmp_path / "models", tmp_path, FRAMEWORKS)


def test_a_file_that_should_be_there_is_missed() -> None:
    assert why_expected(404, "/api/agent-harnesses")
    assert why_expected(404, "/team/m/resolve/main/adapter_config.json")
    for status, path in (
        (404, "/team/m/resolve/main/config.json"),
        (404, "/api/models/team/m/refs"),
        (502, "/absent.txt"),
    ):
        assert why_expected(status, path) is None
