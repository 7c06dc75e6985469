"""What the commands print of a source, or of what stands in the place of an option, has no secret of its URL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from asyncfetch.cli.main import main

from ..kit.canaries import PASSWORD, SIGNATURE, shown
from ..kit.fault_server import FaultServer
from ..kit.files import sharded_bytes

URL = f"https://bob:{PASSWORD}@store.example/m?sig={SIGNATURE}"


@pytest.fixture
def signed() -> Iterator[tuple[str, str]]:
    """The URL of a checkpoint whose server wants all that is secret in it, and what may be shown of it."""
    with FaultServer() as server:
        url = server.web("/model", sharded_bytes({f"t{n}": np.full(5, n, np.float32) for n in range(3)}, 2))
        host = url.removeprefix("http://")
        yield f"http://bob:{PASSWORD}@{host}?sp=r&sig={SIGNATURE}", f"{url}?…"


@pytest.mark.parametrize("arguments", [["download"], ["verify"], ["convert", "new"], ["load"], ["inspect"]])
def test_the_source_of_a_result(
    arguments: list[str], signed: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each result names it as a message would."""
    (name, *others), (url, fit) = arguments, signed
    cache = ["--cache-dir", str(tmp_path / "hub")]
    if name == "verify":
        assert main(["download", url, *cache, "--quiet"]) == 0
        capsys.readouterr()
    assert main([name, url, *(str(tmp_path / other) for other in others), *cache, "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["source"].rstrip("/…?") == fit.rstrip("/…?")
    assert shown(out) is None


def test_a_path_is_named_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where it looks like a query."""
    folder = tmp_path / "a model?b=c#d@e"
    folder.mkdir()
    for name, data in sharded_bytes({"t": np.zeros(3, np.float32)}, 1).items():
        (folder / name).write_bytes(data)
    assert main(["verify", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["source"] == str(folder)


@pytest.mark.parametrize(
    "arguments",
    [
        [URL],
        ["download", "org/m", "--revision", URL, "--offline"],
        ["download", URL, "--checksum", URL],
        ["download", URL, "--repo-type", URL],
        ["load", URL, "--dtype", URL],
        ["load", "org/m", "--output", URL],
        ["inspect", URL, "--plot", URL],
        ["convert", URL, "new", "--max-shard-size", URL],
        ["serve", URL],
    ],
    ids=lambda arguments: " ".join("URL" if word == URL else word for word in arguments),
)
def test_a_url_in_the_wrong_place(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The message quotes what was given, and the host of a URL is enough of that."""
    assert main(arguments) in (2, 7)
    told = capsys.readouterr().err
    assert "store.example/m?…" in told or "store.example does not exist" in told
    assert shown(told) is None
    if arguments[0] != "serve":
        assert main([*arguments, "--json"]) in (2, 7)
        assert "store.example" in json.loads(capsys.readouterr().out.splitlines()[-1])["message"]


def test_the_advice_for_a_hub_with_a_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that mends a file has a word in its place."""
    with FaultServer() as server:
        server.hub("org/small", sharded_bytes({"t": np.full(5000, 1, np.float32)}, 1))
        endpoint = server.url.replace("://", f"://bob:{PASSWORD}@")
        where = ["--cache-dir", str(tmp_path / "hub"), "--endpoint"]
        assert main(["download", "org/small", *where, server.url]) == 0
        (shard,) = Path(capsys.readouterr().out.strip()).glob("*.safetensors")
        shard.resolve().write_bytes(b"x" + shard.read_bytes()[1:])
        assert main(["verify", "org/small", *where, endpoint]) == 5
    assert "--endpoint=ENDPOINT org/small" in capsys.readouterr().err
