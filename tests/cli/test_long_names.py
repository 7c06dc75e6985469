"""Names as long as a file system takes: nothing that is written beside such a file needs a longer one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from asyncfetch.cli.main import main
from asyncfetch.storage.files import named_beside, rename

from ..kit.fault_server import FaultServer
from ..kit.files import sharded_bytes

FILES = sharded_bytes({f"layer.{n}": np.full(40, n, np.float32) for n in range(2)}, 2)
LONG = {"letters": "x", "of four bytes each": "\N{CUNEIFORM SIGN A}"}


def long_name(letter: str, ending: str, room: int = 255) -> str:
    """A name of as many bytes, or the most below that."""
    return letter * ((room - len(ending)) // len(letter.encode())) + ending


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    for name, data in FILES.items():
        (tmp_path / "model" / name).write_bytes(data)
    return tmp_path / "model"


@pytest.mark.parametrize("letter", LONG.values(), ids=LONG)
def test_what_a_command_writes(letter: str, model: Path, tmp_path: Path) -> None:
    """A picture and a merged file, beside which nothing is left."""
    pytest.importorskip("matplotlib")
    (tmp_path / "new").mkdir()
    picture = tmp_path / "new" / long_name(letter, ".png")
    merged = tmp_path / "new" / long_name(letter, ".safetensors")
    assert main(["inspect", str(model), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["load", str(model), "--output", str(merged)]) == 0
    with safe_open(merged, framework="np") as opened:
        assert sorted(opened.keys()) == ["layer.0", "layer.1"]
    assert set((tmp_path / "new").iterdir()) == {picture, merged}


@pytest.mark.parametrize("command", [["inspect", "--plot"], ["load", "--output"]], ids=["picture", "merged"])
def test_a_name_that_is_too_long(
    command: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk refuses it, before anything is read, and the cache has nothing to do with it."""
    assert main([command[0], str(model), command[1], str(tmp_path / ("x" * 256 + ".png"))]) == 7
    said = capsys.readouterr().err
    assert "File name too long" in said
    assert "Choose a folder with a shorter path.\n" in said or "hint:" not in said


def test_a_picture_that_cannot_be_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk said is told: removing what is not there is no error in its place."""
    pytest.importorskip("matplotlib")
    from matplotlib import figure

    folder = tmp_path / "goes"
    folder.mkdir()

    class Moving(figure.Figure):
        def savefig(self, *arguments: object, **options: object) -> None:
            folder.rmdir()
            folder.write_text("")  # so that nothing is below it
            super().savefig(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(figure, "Figure", Moving)
    assert main(["inspect", str(model), "--plot", str(folder / "a.png")]) == 7
    assert "Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("letter", LONG.values(), ids=LONG)
def test_a_file_of_a_folder(letter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is put there, and is known the next time, also where its record would have a longer name."""
    names = [long_name(letter, ".txt"), long_name(letter, ".json", 240)]
    folder = tmp_path / "x"
    with FaultServer() as server:
        server.hub("org/model", {**FILES, **dict.fromkeys(names, b"beside")})
        where = ["--endpoint", server.url, "--cache-dir", str(tmp_path / "hub")]
        for _ in range(2):
            assert main(["download", "org/model", *names, *where, "--local-dir", str(folder)]) == 0, (
                capsys.readouterr().err
            )
    assert all((folder / name).read_bytes() == b"beside" for name in names)
    assert [path.name for path in folder.rglob("*.metadata")] == [f"{names[1]}.metadata"]


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    """One with as long a name as can be is kept beside, under as much of it as there is room for."""
    (tmp_path / "new").write_text("new")
    target = tmp_path / ("y" * 255)
    target.mkdir()
    (target / "mine").write_text("mine")
    rename(tmp_path / "new", target)
    assert target.read_text() == "new"
    (kept,) = tmp_path.glob("*.aside")
    assert (kept / "mine").read_text() == "mine"
    assert kept.name.startswith("y" * 200)


@pytest.mark.parametrize("name", ["short", "x" * 255, "\N{CUNEIFORM SIGN A}" * 63, "a" + "\N{EURO SIGN}" * 84])
def test_a_name_beside(name: str) -> None:
    """It has its ending, at most 255 bytes, and no half of a character."""
    beside = named_beside(Path("/f", name), ".0123.aside")
    assert beside.parent == Path("/f")
    assert len(os.fsencode(beside.name)) <= 255
    assert name.startswith(beside.name.removesuffix(".0123.aside"))
