"""Disks that are too small: a dry run says what the download would, and each is told by its own flag."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from asyncfetch.cli.main import main

from ..kit.fault_server import FaultServer
from ..kit.files import sharded_bytes
from ..kit.mounts import tiny_disk

FILES = sharded_bytes({f"layer.{n}": np.full(400_000, n, np.float32) for n in range(2)}, 2)
SIZE = sum(len(data) for name, data in FILES.items() if name.endswith(".safetensors"))  # 3.2 MB


@pytest.fixture
def where(tmp_path: Path) -> Iterator[list[str]]:
    """The flags that say where the model comes from, and where to."""
    with FaultServer() as server:
        server.hub("org/model", FILES)
        yield ["org/model", "--endpoint", server.url, "--cache-dir", str(tmp_path / "hub")]


def test_the_folder_of_a_download(where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its disk is looked at as that of the cache is, and no file is made."""
    with tiny_disk(tmp_path / "disk", "2m") as disk:
        into = ["--local-dir", str(disk / "x" / "y")]
        assert main(["download", *where, *into, "--dry-run"]) == 7
        said = capsys.readouterr().err
        assert f"to put there, and {disk / 'x' / 'y'} has room for" in said
        assert "hint: Free some space, or name another place with --local-dir.\n" in said
        assert "--cache-dir" not in said
        assert main(["download", *where, *into, "--dry-run", "--json"]) == 7
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert told["exit_code"] == 7
        assert told["local_free"] < SIZE <= told["local_needed"]
        assert not list(disk.iterdir())
        assert main(["download", *where, *into]) == 7
    assert "choose a folder on a larger disk with --local-dir." in capsys.readouterr().err


def test_what_is_in_the_folder_takes_no_room(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its record, or by its hash where there is none; an older one is written anew."""
    with tiny_disk(tmp_path / "disk", "5m") as disk:
        folder = disk / "x"
        assert main(["download", *where, "--local-dir", str(folder)]) == 0
        again = ["download", *where, "--local-dir", str(folder), "--dry-run", "--json"]

        def needed() -> int:
            capsys.readouterr()
            assert main(again) == 0
            found: int = json.loads(capsys.readouterr().out.splitlines()[-1])["local_needed"]
            return found

        assert needed() == 0
        shutil.rmtree(folder / ".cache")
        assert needed() == 0
        shard = next(folder.glob("*.safetensors"))
        size = shard.stat().st_size
        shard.unlink()
        assert needed() == size


@pytest.mark.parametrize(("room", "code"), [("5m", 7), ("12m", 0)])
def test_a_folder_beside_the_cache(
    room: str, code: int, where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one disk that clones nothing, the files are there twice."""
    with tiny_disk(tmp_path / "disk", room) as disk:
        where[-1] = str(disk / "hub")
        assert main(["download", *where, "--dry-run"]) == 0  # into the cache alone
        assert main(["download", *where, "--local-dir", str(disk / "x"), "--dry-run"]) == code


@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry run", "download"])
def test_a_file_in_the_place_of_the_folder(
    dry: list[str], where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another folder is to be named with the flag that named this one."""
    (tmp_path / "file").write_text("")
    assert main(["download", *where, "--local-dir", str(tmp_path / "file" / "sub"), *dry]) == 7
    said = capsys.readouterr().err
    assert f"{tmp_path / 'file'}: it is no folder.\nhint: Choose another folder with --local-dir.\n" in said


@pytest.mark.parametrize("command", ["convert", "load"])
def test_what_a_command_writes(
    command: str, where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not in the cache, which another disk would not help."""
    with tiny_disk(tmp_path / "disk", "1m") as disk:
        place = [str(disk / "new")] if command == "convert" else ["--output", str(disk / "new.safetensors")]
        assert main([command, where[0], *place, *where[1:]]) == 7
    said = capsys.readouterr().err
    assert "hint: Free some space, or choose a folder on a larger disk.\n" in said
    assert "HF_HUB_CACHE" not in said
