"""What the environment says of the Hub, the token and the cache: mended, or in nobody's way who needs it not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncfetch
from asyncfetch.errors import SourceError
from asyncfetch.sources.settings import Settings, find_token
from asyncfetch.storage.roots import cache_root

from ..kit.canaries import TOKEN, shown
from ..kit.fault_server import FaultServer
from ..kit.files import safetensors_bytes
from ..kit.small_model import FILES, ONE_FILE, SINGLE, TENSORS, load, same
from ..kit.users import STRANGER, as_nobody, public_folder

WRITTEN = "hf_of_a_file"  # what is looked for afterwards must not stand in files


def write_raw(raw: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(raw) and None


@pytest.mark.parametrize(
    "raw",
    [
        WRITTEN.encode(),
        f" {WRITTEN}\r\n".encode(),
        b"\xef\xbb\xbf" + WRITTEN.encode() + b"\n",
        f"{WRITTEN}\r\n".encode("utf-16"),
        b"\xff\xfe" + WRITTEN.encode("utf-16-le"),
        b"\xfe\xff" + WRITTEN.encode("utf-16-be"),
        b"\xff\xfe" + ("\ufeff" + WRITTEN).encode("utf-16-le"),
    ],
    ids=["plain", "blanks", "bom", "utf-16", "little", "big", "twice"],
)
def test_encodings_of_a_token_file(tmp_path: Path, raw: bytes) -> None:
    """What editors and shells make of a file of one line."""
    (tmp_path / "token").write_bytes(raw)
    assert find_token({"HF_HOME": str(tmp_path)}, None) == (WRITTEN, "")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (write_raw(b"\0" + WRITTEN.encode()), "has characters"),
        (write_raw(WRITTEN.encode() + b"\xff"), "has characters"),
        (write_raw(WRITTEN.encode("utf-16-le")), "has characters"),
        (write_raw(b"\xff\xfe\x00"), "has characters"),
        (write_raw("Übung".encode()), "has characters"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
    ids=["nul", "byte", "utf-16-without-mark", "half", "letter", "folder", "loop"],
)
@pytest.mark.anyio
async def test_a_token_file_that_cannot_be_used(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any], says: str
) -> None:
    """No trouble for a public repository or a folder; where a token is needed it is said, without the token."""
    home = tmp_path / "home"
    home.mkdir()
    make(home / "token")
    monkeypatch.setenv("HF_HOME", str(home))
    found, fault = find_token(os.environ, None)
    assert found is None
    assert says in fault
    assert str(home / "token") in fault
    with pytest.raises(SourceError, match=says):
        find_token(os.environ, True)
    server.hub("org/model", FILES)
    assert same(await load(server, tmp_path / "cache", token=None))
    server.token = WRITTEN
    with pytest.raises(asyncfetch.RepositoryNotFoundError, match=says) as caught:
        await load(server, tmp_path / "other", token=None)
    assert WRITTEN not in str(caught.value)


@pytest.mark.anyio
async def test_a_token_of_the_environment_that_cannot_be_sent(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_TOKEN with letters that no header carries: the same."""
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}é")
    server.hub("org/model", FILES)
    assert same(await load(server, tmp_path / "cache", token=None))
    assert not shown(str([seen.headers for seen in server.seen]))
    server.token = TOKEN
    with pytest.raises(asyncfetch.RepositoryNotFoundError, match="The token in HF_TOKEN has characters"):
        await load(server, tmp_path / "other", token=None)


def test_a_token_file_of_another_user() -> None:
    """It cannot be read: nothing to a folder, and said where a token is demanded."""
    with public_folder() as folder:
        (folder / "token").write_text(WRITTEN)
        (folder / "token").chmod(0o600)
        (folder / SINGLE).write_bytes(safetensors_bytes(TENSORS))
        (folder / SINGLE).chmod(0o644)
        prepare = "import sys, asyncfetch, asyncfetch.api.call, anyio._backends._asyncio"
        code = """
try:
    asyncfetch.load(sys.argv[1], token=True)
except asyncfetch.SourceError as error:
    print(error)
print(len(asyncfetch.load(sys.argv[1])))
"""
        ran = as_nobody(prepare, code, folder, HF_HOME=str(folder))
    assert ran.returncode == 0, ran.stderr
    assert "cannot be read: Permission denied" in ran.stdout
    assert ran.stdout.endswith("2\n")


@pytest.mark.parametrize("text", [" {}", "{}\n", "\t{}/ \r\n", "{}///"])
def test_blanks_around_an_endpoint(text: str) -> None:
    """They go, from the variable as from the option."""
    place = "http://mirror:8000/hf"
    assert Settings.from_env({"HF_ENDPOINT": text.format(place), "HF_TOKEN": "x"}).endpoint == place
    assert Settings.from_env({"HF_TOKEN": "x"}, endpoint=text.format(place)).endpoint == place


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_a_blank_endpoint_is_none(text: str) -> None:
    """The official one then."""
    assert Settings.from_env({"HF_ENDPOINT": text, "HF_TOKEN": "x"}).endpoint == "https://huggingface.co"


@pytest.mark.parametrize("text", ["http://mir\nror", "http://mirror/a b", "http://mir\tror", "http://m\0", "mirror"])
def test_an_endpoint_that_is_none(text: str) -> None:
    """What urlsplit would silently join is refused, with how to write it."""
    with pytest.raises(SourceError, match="endpoint") as caught:
        Settings.from_env({"HF_ENDPOINT": text, "HF_TOKEN": "x"})
    assert "HF_ENDPOINT" in caught.value.hint


# -- no home ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "explicit"),
    [({}, None), ({"HF_HOME": "~/x"}, None), ({"HF_HUB_CACHE": "~/x"}, None), ({"HF_HOME": "/x"}, "~/y")],
)
def test_a_cache_without_a_home(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], explicit: str | None) -> None:
    """An error that says what to set; a cache elsewhere needs no home."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it is where nothing tells the home
    with pytest.raises(SourceError, match="no place for the cache") as caught:
        cache_root(environ, explicit)
    assert "cache_dir=" in caught.value.hint
    assert cache_root({"HF_HOME": "/x"}) == Path("/x/hub")
    assert cache_root({}, "/y") == Path("/y")


@pytest.mark.anyio
async def test_a_folder_needs_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what has a cache of its own; a repository without one says what to set."""
    (tmp_path / SINGLE).write_bytes(safetensors_bytes(TENSORS))
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert same(await asyncfetch.load_async(tmp_path))
    with pytest.raises(SourceError, match="no place for the cache"):
        await asyncfetch.load_async("org/model", endpoint="http://127.0.0.1:9")


def test_a_user_whom_nobody_knows(server: FaultServer) -> None:
    """No HOME, and a uid without an entry: a folder loads, a cache that is named is used, and else it is said."""
    server.hub("org/model", ONE_FILE)
    with public_folder() as folder:
        (folder / "cache").mkdir()
        (folder / "cache").chmod(0o777)
        (folder / SINGLE).write_bytes(safetensors_bytes(TENSORS))
        (folder / SINGLE).chmod(0o644)
        prepare = (
            "import sys, asyncfetch, asyncfetch.api.call, anyio._backends._asyncio, uuid\n"
            "import encodings.ascii, encodings.idna, stringprep, asyncfetch.network.pool"
        )
        code = """
import os
for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
folder, url = sys.argv[1:]
print(len(asyncfetch.load(folder)))
print(len(asyncfetch.load("org/model", endpoint=url, cache_dir=folder + "/cache", token=False)))
print(len(asyncfetch.load("org/model", endpoint=url, cache_dir=folder + "/cache")))
try:
    asyncfetch.load("org/model", endpoint=url)
except asyncfetch.SourceError as error:
    print(error)
"""
        ran = as_nobody(prepare, code, folder, server.url, uid=STRANGER)
    assert ran.returncode == 0, ran.stderr
    *counts, last = ran.stdout.splitlines()
    assert counts == ["2"] * 3
    assert "no place for the cache" in last
    assert "HF_HOME" in last
