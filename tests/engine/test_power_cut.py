"""After a power cut a journal may list pages that never reached the disk: zeros are not taken for bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncfetch.errors import DiskFullError, NetworkError
from asyncfetch.storage.boot import boot_id

from ..kit.fault_server import LOOK, FaultServer, Truncate
from ..kit.files import safetensors_bytes
from ..kit.mounts import tiny_disk
from ..kit.small_model import CALM, ONE_LOOP, SINGLE, load

pytestmark = [pytest.mark.anyio, ONE_LOOP]

WEIGHTS = {"w": np.random.default_rng(11).integers(1, 255, 3_000_000, np.uint8)}
DATA = safetensors_bytes(WEIGHTS)
PATH = f"/files/{SINGLE}"
HASH = {"checksums": {SINGLE: hashlib.sha256(DATA).hexdigest()}}


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        running.web("/files", {SINGLE: DATA})
        yield running


def journal_in(cache: Path) -> Path:
    (journal,) = [path for path in cache.rglob("*") if path.name.endswith(".map.incomplete")]
    return journal


async def broken_off(server: FaultServer, cache: Path, **options: Any) -> Path:
    """A download that ended after a megabyte; its journal."""
    server.fault(PATH, LOOK, Truncate(1_000_000))
    with pytest.raises(NetworkError):
        await load(server, cache, "/files/", policy=replace(CALM, attempts=1, connections=1), **options)
    return journal_in(cache)


def lose_power(journal: Path, *, pages: slice) -> None:
    """The machine starts again. Of what the journal lists, these pages were never written."""
    text = journal.read_text()
    journal.write_text(text.replace(boot_id(), "another-start"))
    partial = journal.with_name(journal.name.replace(".map.incomplete", ".incomplete"))
    data = bytearray(partial.read_bytes())
    data[pages] = bytes(len(data[pages]))
    with open(partial, "r+b") as stream:
        stream.write(data)


@pytest.mark.parametrize("pages", [slice(65_536, 900_000), slice(500_000, 504_096)], ids=["all", "one"])
@pytest.mark.parametrize("options", [{}, HASH], ids=["no hash", "hash"])
async def test_power_is_cut(server: FaultServer, tmp_path: Path, options: dict[str, Any], pages: slice) -> None:
    """Without a hash nothing of an earlier start of the machine counts; with one it finds what is missing."""
    lose_power(await broken_off(server, tmp_path, **options), pages=pages)
    assert np.array_equal((await load(server, tmp_path, "/files/", **options))["w"], WEIGHTS["w"])


@pytest.mark.parametrize("options", [{}, HASH], ids=["no hash", "hash"])
async def test_nothing_is_lost_without_a_power_cut(
    server: FaultServer, tmp_path: Path, options: dict[str, Any]
) -> None:
    """The kernel keeps what was written when a process ends, however it does: then the download goes on."""
    journal = await broken_off(server, tmp_path, **options)
    assert (boot_id() in json.loads(journal.read_text())["identity"]) is not bool(options)
    sent = server.sent(PATH)
    assert np.array_equal((await load(server, tmp_path, "/files/", **options))["w"], WEIGHTS["w"])
    assert server.sent(PATH) - sent < len(DATA) - 900_000


async def test_a_hash_counts_over_a_restart(server: FaultServer, tmp_path: Path) -> None:
    """Where a hash decides, a machine that was started again goes on where it stopped."""
    lose_power(await broken_off(server, tmp_path, **HASH), pages=slice(0, 0))
    sent = server.sent(PATH)
    assert np.array_equal((await load(server, tmp_path, "/files/", **HASH))["w"], WEIGHTS["w"])
    assert server.sent(PATH) - sent < len(DATA) - 900_000


@pytest.mark.parametrize("version", [{}, {"etag": ""}], ids=["a version", "no version"])
async def test_what_counts_no_more_is_written_over(
    server: FaultServer, tmp_path: Path, version: dict[str, str]
) -> None:
    """What an earlier run wrote takes no more room when it comes again: on a full disk too the load goes on."""
    server.web("/files", {SINGLE: DATA}, **version)
    with tiny_disk(tmp_path / "disk", "3500k") as disk:
        server.fault(PATH, LOOK, Truncate(2_000_000))
        with pytest.raises(NetworkError):
            await load(server, disk, "/files/", policy=replace(CALM, attempts=1, connections=1))
        lose_power(journal_in(disk), pages=slice(0, 0))
        assert shutil.disk_usage(disk).free < len(DATA)
        assert np.array_equal((await load(server, disk, "/files/"))["w"], WEIGHTS["w"])
        server.web("/files", {SINGLE: safetensors_bytes({"w": WEIGHTS["w"][::-1].copy()})}, **version)
        with pytest.raises(DiskFullError) as caught:
            await load(server, disk, "/files/")
        assert caught.value.needed == len(DATA)
