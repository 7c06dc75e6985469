"""The console script as a process of its own, against a real server: output, JSON lines and exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from asyncfetch.cli import main as cli
from asyncfetch.cli.commands import run
from asyncfetch.cli.wording import FLAGS
from asyncfetch.errors import SourceError
from asyncfetch.server import Server

from ..kit.canaries import TOKEN, shown
from ..kit.fault_server import COMMIT, LOOK, FaultServer, Hangup, Truncate
from ..kit.files import sharded, sharded_bytes
from ..kit.zygote import zygote

ROOT = Path(__file__).parents[2]
REPO = "org/model"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def tensors() -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    generator = np.random.default_rng(7)
    return {
        SHARDS[0]: {
            "embed.weight": generator.standard_normal((64, 32)).astype(np.float32),
            "scale": np.array(0.5, np.float64),
        },
        SHARDS[1]: {
            "layer.0.weight": generator.standard_normal((32, 32)).astype(ml_dtypes.bfloat16),
            "layer.0.index": np.arange(12, dtype=np.int64).reshape(3, 4),
        },
    }


def write_model(folder: Path) -> None:
    """A checkpoint of two shards with an index."""
    folder.mkdir(parents=True)
    weight_map = {}
    for shard, held in tensors().items():
        save_file(held, folder / shard, metadata={"format": "pt", "shard": shard})
        weight_map |= dict.fromkeys(held, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models for a server."""
    root = tmp_path_factory.mktemp("models")
    write_model(root / REPO)
    (root / "org" / "empty").mkdir()
    (root / "org" / "empty" / "README.md").write_text("nothing here")
    (root / "org" / "broken").mkdir()
    (root / "org" / "broken" / "model.safetensors").write_bytes(b"<html>not a model</html>")
    return root


@pytest.fixture
def hub(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that the environment names as the Hub."""
    with Server(models) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture(autouse=True, scope="module")
def python() -> Iterator[None]:
    """What commands run with, unless they are `real`: a Python that need not import everything first."""
    work = ("asyncfetch.api.functions", "asyncfetch.api.loading", "anyio._backends._asyncio")
    with zygote("asyncfetch.cli.main", *work, "rich.progress", "rich.table") as PYTHON[:]:
        yield


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    """A command that was started and still runs when its test is over, because that failed, is ended."""
    yield
    while STARTED:
        STARTED.pop().kill()


PYTHON: list[str] = []
STARTED: list[subprocess.Popen[bytes]] = []


def start(*arguments: object, real: bool = False, **options: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    command = [*([sys.executable] if real else PYTHON), "-m", "asyncfetch", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    STARTED.append(subprocess.Popen(command, env=environment, **pipes | options))
    return STARTED[-1]


class Ran:
    """What a finished command left: exit code, stdout and stderr."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        out, err = process.communicate(timeout=40)
        self.code, self.raw, self.out, self.err = process.returncode, out, out.decode(), (err or b"").decode()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def command(*arguments: object, **options: Any) -> Ran:
    ran = Ran(start(*arguments, **options))
    assert "Please report" not in ran.err + ran.out
    return ran


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that treats each connection with `answer`; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


# Data on stdout, all else on stderr


def test_download_prints_the_folder_and_nothing_else(hub: Server) -> None:
    """stdout is one path, which holds the files; stderr tells of each shard, without a control sequence."""
    ran = command("download", REPO, real=True)
    assert ran.code == 0
    folder = Path(ran.out.removesuffix("\n"))
    assert {path.name for path in folder.iterdir()} >= set(SHARDS)
    assert f"{SHARDS[0]}: verified" in ran.err
    assert "3 files" in ran.err
    assert "\x1b" not in ran.err


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], [*SHARDS, INDEX, "config.json"]),
        (["--weights-only"], [*SHARDS, INDEX]),
        (["config.json"], ["config.json"]),
        (["--include", "*.json", "--exclude", "config*"], [INDEX]),
        (["--all"], [*SHARDS, INDEX, "config.json"]),
    ],
)
def test_download_brings_what_is_asked_for(hub: Server, arguments: list[str], names: list[str]) -> None:
    """The checkpoint and what belongs to it, or the files that are named."""
    ran = command("download", REPO, *arguments)
    assert {path.name for path in Path(ran.out.strip()).iterdir()} == set(names)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["confg.json"], 3, "has no file 'confg.json'.\nhint: It has config.json"),
        (["--include", "*.gguf"], 3, "has no file '*.gguf'"),
        (["--all", "config.json"], 2, "--all is every file"),
        (["--weights-only", "--include", "*"], 2, "weights_only="),
    ],
)
def test_wrong_files(hub: Server, arguments: list[str], code: int, text: str) -> None:
    ran = command("download", REPO, *arguments)
    assert ran.code == code
    assert text in ran.err


def test_download_into_a_folder(hub: Server, tmp_path: Path) -> None:
    """--local-dir names the folder instead; what was changed there is refused, with the flags that help."""
    folder = tmp_path / "a b"
    plan = command("download", REPO, "--local-dir", str(folder), "--dry-run", "--json")
    assert json.loads(plan.out.splitlines()[-1])["local_dir"] == str(folder)
    assert not folder.exists()
    assert command("download", REPO, "--local-dir", str(folder)).out == f"{folder}\n"
    assert {path.name for path in folder.iterdir()} == {*SHARDS, INDEX, "config.json", ".cache"}
    (folder / "config.json").write_text("mine")
    ran = command("download", REPO, "--local-dir", str(folder))
    assert ran.code == 7
    assert "config.json.\nhint: Move it away to keep it, leave it out with --exclude, or pass --overwrite.\n" in ran.err
    ran = command("download", REPO, "--local-dir", str(folder), "--overwrite", "--json")
    result = json.loads(ran.out.splitlines()[-1])
    assert (result["path"], result["files"]["config.json"]) == (str(folder), str(folder / "config.json"))
    assert (folder / "config.json").read_text() != "mine"


def test_quiet_says_nothing(hub: Server) -> None:
    """--quiet leaves only the data."""
    ran = command("download", REPO, "--quiet")
    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", 1)


def test_load_lists_the_tensors(hub: Server) -> None:
    """One tab-separated line for each tensor, with what it is and where it came from."""
    ran = command("load", REPO)
    assert ran.code == 0
    rows = [line.split("\t") for line in ran.out.splitlines()]
    assert rows[0] == ["tensor", "dtype", "shape", "bytes", "shard"]
    assert sorted(rows[1:]) == [
        ["embed.weight", "F32", "64x32", "8192", SHARDS[0]],
        ["layer.0.index", "I64", "3x4", "96", SHARDS[1]],
        ["layer.0.weight", "BF16", "32x32", "2048", SHARDS[1]],
        ["scale", "F64", "scalar", "8", SHARDS[0]],
    ]
    assert "4 tensors, 3,085 parameters, 10.3 kB" in ran.err


def test_select_fetches_only_what_is_needed(hub: Server) -> None:
    """A glob lists its tensors and fetches only their shard."""
    ran = command("load", REPO, "--select", "layer.*.weight", "--select", "layer.0.i*")
    assert ran.code == 0
    assert [line.split("\t")[0] for line in sorted(ran.out.splitlines())] == [
        "layer.0.index",
        "layer.0.weight",
        "tensor",
    ]
    assert not [record for record in hub.requests if SHARDS[0] in record.path]


def test_inspect_downloads_no_shard(hub: Server) -> None:
    """Totals, shards and dtypes come from headers alone."""
    ran = command("inspect", REPO, "--tensors")
    assert ran.code == 0
    assert re.search(r"^parameters +3,085$", ran.out, re.MULTILINE)
    assert "BF16\t1\t1024\t2048" in ran.out
    assert f"{SHARDS[1]}\t" in ran.out
    assert "layer.0.index\tI64\t3x4\t96" in ran.out
    assert "layer.0\t2\t1036\t2144" in ran.out.replace("layer.{0}", "layer.0")
    assert "load\t0\t" in ran.out
    assert not list(Path(os.environ["HF_HOME"]).glob("hub/*/snapshots/*/*.safetensors"))
    command("download", REPO)
    assert command("inspect", REPO).out.count("\tyes\n") == 2


def test_a_picture_of_where_the_bytes_are(hub: Server, tmp_path: Path) -> None:
    """A picture in the format of its name, which is asked about before the source is, and replaced as a whole."""
    pytest.importorskip("matplotlib")
    for name, begin in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.PDF", b"%PDF")):
        (tmp_path / name).write_bytes(b"old")
        assert command("inspect", REPO, "--plot", tmp_path / name).code == 0
        assert (tmp_path / name).read_bytes().startswith(begin)
    drawn = (tmp_path / "a.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("embed", "F32", "BF16"))
    assert sorted(path.name for path in tmp_path.glob(".*a.*")) == []
    asked = len(hub.requests)
    for name, says in (("a.jpeg", "is no picture"), ("none/a.png", "does not exist")):
        ran = command("inspect", REPO, "--plot", tmp_path / name)
        assert ran.code == 2
        assert says in ran.err
    assert len(hub.requests) == asked


def test_dry_run_has_real_numbers(hub: Server, models: Path) -> None:
    """--dry-run downloads nothing and knows every byte; after the download nothing is missing."""
    size, beside = (sum((models / REPO / name).stat().st_size for name in names) for names in (SHARDS, ["config.json"]))
    before = command("download", REPO, "--dry-run", "--json").lines[-1]
    assert before["size"] == before["missing"] == size + beside
    assert before["present"] == 0
    assert [file["checksum"].partition(":")[0] for file in before["files"]] == ["sha256", "sha256", "git-sha1"]
    assert before["disk_free"] > size
    assert not list(Path(os.environ["HF_HOME"]).glob("hub/*/snapshots/*/*.safetensors"))
    command("download", REPO)
    after = command("load", REPO, "--dry-run", "--json").lines[-1]
    assert (after["missing"], after["present"]) == (0, size)
    assert command("load", REPO, "--dry-run").out.splitlines()[1].split("\t")[3] == "0"


def test_verify_finds_a_flipped_bit(hub: Server) -> None:
    """A good cache is 0, one changed byte is exit code 5 and names the file; --verify-cache repairs it."""
    folder = Path(command("download", REPO).out.strip())
    assert command("verify", REPO).code == 0
    blob = (folder / SHARDS[1]).resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    ran = command("verify", REPO)
    assert ran.code == 5
    assert [line.split("\t")[2] for line in ran.out.splitlines()[1:] if SHARDS[1] in line] == ["wrong"]
    assert SHARDS[1] in ran.err
    result = command("verify", REPO, "--json").lines[-1]
    assert (result["ok"], result["exit_code"]) == (False, 5)
    command("download", REPO, "--verify-cache")
    assert command("verify", REPO).code == 0


def advised(ran: Ran, source: str) -> list[str]:
    """The arguments of the command that the hint names."""
    (hint,) = [line.removeprefix("hint: ") for line in ran.err.splitlines() if line.startswith("hint: ")]
    _, _, arguments = hint.partition("asyncfetch ")
    return [source if word in ("SOURCE", "SOURCE.") else word for word in shlex.split(arguments)]


def cut_short(path: Path) -> None:
    os.truncate(path.resolve(), 1000)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.resolve().write_bytes(data)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["repository", "url"])
@pytest.mark.parametrize("damage", [cut_short, flipped, Path.unlink], ids=["cut", "flipped", "gone"])
@pytest.mark.parametrize("file", ["index", "shard"])
def test_the_advice_of_verify_works(file: str, damage: Callable[[Path], None], kind: str, tmp_path: Path) -> None:
    """What it says to do is done, also where the environment says offline: then all is right."""
    files = sharded_bytes({f"layer.{n}": np.full(5000, n, np.float32) for n in range(2)}, 2)
    name = "model.safetensors.index.json" if file == "index" else "model-00002-of-00002.safetensors"
    cache = ("--cache-dir", str(tmp_path / "a cache"))
    with FaultServer() as server:
        server.hub("org/small", files)
        source, given = "org/small", (*cache, "--endpoint", server.url, "--revision", COMMIT)
        if kind == "url":
            source, given = server.web("/small", files), cache
        folder = Path(command("download", source, *given).out.strip())
        damage(folder / name)
        ran = command("verify", source, *given, env={"HF_HUB_OFFLINE": "1"})
        assert ran.code == (9 if damage is Path.unlink else 5)
        advice = advised(ran, source)
        if not any(word.startswith("--cache-dir") for word in advice):
            advice += given
        assert command(*advice, env={"HF_HUB_OFFLINE": "1"}).code == 0
        assert command("verify", source, *given).code == 0
        listed = command("load", source, *given, "--offline", "--json").lines[-1]
        assert len(listed["tensors"]) == 2


def test_verify_has_no_command_for_a_folder(models: Path, tmp_path: Path) -> None:
    """A local folder has no source, so it is not advised to download from one; a file that is cut is wrong."""
    folder = tmp_path / "mine"
    shutil.copytree(models / REPO, folder)
    assert command("verify", folder).code == 0
    cut_short(folder / SHARDS[1])
    ran = command("verify", folder)
    assert ran.code == 5
    assert "hint: copy or download it again" in ran.err


# --output


@pytest.mark.parametrize("storage", [(), ("--memory",)], ids=["disk", "memory"])
def test_output_is_one_file_with_all_tensors(storage: tuple[str, ...], hub: Server, tmp_path: Path) -> None:
    """The merged file equals the shards, and keeps the metadata on which they agree."""
    target = tmp_path / "merged.safetensors"
    ran = command("load", REPO, "--output", target, *storage)
    assert ran.code == 0
    expected = {name: array for held in tensors().values() for name, array in held.items()}
    with safe_open(target, framework="np") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert set(opened.keys()) == set(expected)
        assert opened.get_slice("layer.0.weight").get_dtype() == "BF16"
        for name in expected:
            if name != "layer.0.weight":
                np.testing.assert_array_equal(opened.get_tensor(name), expected[name])
    assert expected["layer.0.weight"].tobytes() in target.read_bytes()
    cached = list(Path(os.environ["HF_HOME"]).glob("hub/*/snapshots/*/*.safetensors"))
    assert len(cached) == (0 if storage else 2)


def test_dtype_casts_what_is_written(hub: Server, tmp_path: Path) -> None:
    """--dtype changes the floating tensors and leaves the integers."""
    ran = command("load", REPO, "--output", tmp_path / "m.safetensors", "--dtype", "float16")
    assert ran.code == 0
    with safe_open(tmp_path / "m.safetensors", framework="np") as opened:
        dtypes = {name: opened.get_slice(name).get_dtype() for name in opened.offset_keys()}
    assert dtypes == {"embed.weight": "F16", "scale": "F16", "layer.0.weight": "F16", "layer.0.index": "I64"}


def test_a_failed_load_leaves_the_old_output(hub: Server, tmp_path: Path) -> None:
    """Nothing is written before everything is there."""
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"old")
    assert command("load", "org/broken", "--output", target).code == 5
    assert target.read_bytes() == b"old"


def test_a_bad_output_is_refused_before_the_download(hub: Server, tmp_path: Path) -> None:
    """A folder as --output is wrong usage, and nothing is asked of the server."""
    ran = command("load", REPO, "--output", tmp_path)
    assert ran.code == 2
    assert "is a folder" in ran.err
    assert hub.requests == ()


def test_output_keeps_tied_names_of_the_index(tmp_path: Path) -> None:
    """Names that only the index knows as tied are in the merged file, as text; its numbers are not."""
    held = {"embed.weight": np.ones((4, 2), np.float32), "norm.weight": np.ones(2, np.float32)}
    files = sharded(tmp_path / "model", held, 2, metadata={"format": "pt"})
    claims = {"total_size": 40, "head.weight": "embed.weight", "split_by": "a tool", "norm.weight": "embed.weight"}
    index = json.loads(files["model.safetensors.index.json"]) | {"metadata": claims}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    target = tmp_path / "merged.safetensors"
    assert command("load", tmp_path / "model", "--output", target, "--quiet").code == 0
    with safe_open(target, framework="np") as opened:
        assert opened.metadata() == {"format": "pt", "head.weight": "embed.weight"}


# Requests


@pytest.mark.parametrize("storage", [(), ("--memory",)], ids=["disk", "memory"])
@pytest.mark.parametrize("kind", ["hub", "web"])
def test_load_asks_once(kind: str, storage: tuple[str, ...], server: FaultServer, tmp_path: Path) -> None:
    """A load asks for each file once, for no byte twice, and for nothing after the last shard's last byte."""
    held = {f"t{i}": np.full(50_000, i, np.float32) for i in range(4)}
    files = sharded_bytes(held, 2)
    if kind == "hub":
        repository = server.hub(REPO, files)
        source, once = REPO, list(repository.pages.values())
        bodies, env = list(repository.storage.values()), {"HF_ENDPOINT": server.url}
    else:
        source, once = server.web("/plain", files), ["/plain/model.safetensors.index.json"]
        bodies, env = [f"/plain/{name}" for name in files if name.endswith(".safetensors")], {}
    sizes = {path: len(server.resources[path].body) for path in bodies}
    ran = command("load", source, "--output", tmp_path / "m.safetensors", *storage, env=env)
    assert ran.code == 0, ran.err
    asked = Counter(seen.path.replace("/main/", f"/{COMMIT}/") for seen in server.seen)
    assert [asked[path] for path in once] == [1] * len(once)
    server.wait_for(lambda: server.seen[-1].sent > 0)  # the server counts what it has sent
    assert {path: server.sent(path) for path in bodies} == sizes
    assert server.seen[-1].path in bodies


# JSON lines


def test_json_lines_of_a_download(hub: Server) -> None:
    """Every line parses; events come first, with real numbers, and the result last."""
    ran = command("download", REPO, "--json")
    assert ran.code == 0
    assert ran.err == ""
    lines = ran.lines
    assert {line["schema_version"] for line in lines} == {1}
    assert [line["type"] for line in lines[:-1]] == ["event"] * (len(lines) - 1)
    assert lines[0]["event"] == "resolved"
    assert all(isinstance(file["size"], int) for file in lines[0]["files"])
    kinds = [line.get("event") for line in lines]
    assert kinds.count("file_verified") == 3
    assert lines[-1]["type"] == "result"
    assert set(lines[-1]["files"]) == {*SHARDS, INDEX, "config.json"}
    assert re.fullmatch(r"[0-9a-f]{40}", lines[-1]["commit"])


def test_json_of_load_and_inspect_agree(hub: Server) -> None:
    """The same tensors, shapes and shards, whether loaded or only looked at."""
    loaded, looked = command("load", REPO, "--json").lines[-1], command("inspect", REPO, "--json").lines[-1]
    assert loaded["tensors"] == looked["tensors"]
    assert loaded["tensors"]["layer.0.index"] == {"dtype": "I64", "shape": [3, 4], "nbytes": 96, "shard": SHARDS[1]}
    assert (loaded["parameters"], loaded["commit"]) == (looked["parameters"], looked["commit"])


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (("download", "org/none"), "repository_not_found", 3),
        (("download",), "bad_source", 2),
        (("x",), "bad_source", 2),
    ],
)
def test_json_of_an_error(arguments: tuple[str, ...], code: str, exit_code: int, hub: Server) -> None:
    """The last line is the error, with its code, hint and exit code; wrong usage is no exception."""
    ran = command(*arguments, "--json")
    error = ran.lines[-1]
    assert ran.code == exit_code
    assert (error["type"], error["code"], error["exit_code"], error["transient"]) == ("error", code, exit_code, False)
    assert error["message"]
    assert error["hint"]


# Exit codes


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("load",), 2, "requires an argument"),
        (("load", REPO, "--nope"), 2, "--nope"),
        (("load", REPO, "--token", "abc"), 2, "A token is never an argument"),
        (("lod", REPO), 2, 'Did you mean "load"'),
        (("--verison",), 2, "Did you mean --version?"),
        (("load", REPO, "--outptu", "x"), 2, "Did you mean --output?"),
        (("load", f"{REPO}@v1", "--revision", "v2"), 2, "--revision says 'v2'"),
        (("load", __file__, "--subfolder", "x"), 2, "--subfolder goes with a folder"),
        (("load", "ftp://host/key"), 2, "ftp://"),
        (("load", REPO, "--checksum", "file=md5:00"), 2, "FILE=sha256:HEX"),
        (("load", REPO, "--connections", "0"), 2, "--connections"),
        (("inspect", REPO, "--connections", "-1"), 2, "--connections"),
        (("inspect", REPO, "--checksum", "f=sha256:00"), 2, "--checksum"),
        (("load", REPO, "--select", "nothing*"), 2, "select matches none"),
        (("load", REPO, "--dtype", "float33"), 2, "float33"),
        (("load", "org/none"), 3, "org/none"),
        (("load", f"{REPO}@nope"), 3, "nope"),
        (("load", "org/empty"), 3, "no safetensors checkpoint"),
        (("load", "org/broken"), 5, "model.safetensors"),
        (("load", REPO, "--offline"), 9, "Offline"),
    ],
)
def test_exit_codes(arguments: tuple[str, ...], code: int, said: str, hub: Server) -> None:
    """Each branch of the error tree has its code; the message names what was wrong, in one line."""
    ran = command(*arguments)
    assert (ran.code, ran.out) == (code, "")
    line = next(line for line in ran.err.splitlines() if line.startswith("asyncfetch: "))
    assert said in line


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("load", REPO, "--nope"), {}, "hint: `asyncfetch load --help` tells what it takes."),
        (("cache", "lst"), {}, "hint: `asyncfetch cache --help` lists the commands"),
        (("load", "org/empty"), {}, "Name its folder with --subfolder, its variant with --variant, or give"),
        (("load", REPO, "--offline"), {}, "Unset HF_HUB_OFFLINE or pass --no-offline once"),
        (("load", REPO), {"HF_HUB_OFFLINE": "1"}, "Unset HF_HUB_OFFLINE or pass --no-offline once"),
        (("load", "org/none"), {}, "if it is private, set HF_TOKEN.\n"),
        (("load", REPO, "--dtype", "float33"), {}, "--dtype 'float33' is not a dtype"),
        (("load", REPO, "--dtype", "float33"), {}, "Give float32, float16 or bfloat16."),
        (("load", REPO, "--checksum", f"x=sha256:{'0' * 64}"), {}, "--checksum names 'x'"),
        (("load", REPO), {"ASYNCFETCH_ATTEMPTS": "0"}, "ASYNCFETCH_ATTEMPTS must be positive"),
        (("load", REPO), {"ASYNCFETCH_CONNECTIONS": "0"}, "ASYNCFETCH_CONNECTIONS must be positive"),
        (
            ("load", REPO),
            {"ASYNCFETCH_MAX_INDEX_BYTES": "9"},
            "give ASYNCFETCH_MAX_INDEX_BYTES a larger number of bytes",
        ),
        (("load", REPO), {"HF_HUB_ETAG_TIMEOUT": "0"}, "HF_HUB_ETAG_TIMEOUT must be positive"),
        (("load", REPO), {"HF_HUB_DOWNLOAD_TIMEOUT": "0"}, "HF_HUB_DOWNLOAD_TIMEOUT must be positive"),
    ],
)
def test_errors_speak_of_flags(arguments: tuple[str, ...], environment: dict[str, str], said: str, hub: Server) -> None:
    """Where the library names a keyword, the command line names its flag, or the variable that was read."""
    ran = command(*arguments, env=environment)
    assert ran.code != 0
    assert said in ran.err


@pytest.mark.parametrize("form", [("--token", TOKEN), (f"--token={TOKEN}",), (f"--hf-token={TOKEN}",)])
@pytest.mark.parametrize("name", ["load", "download", "inspect", "serve"])
def test_a_token_is_never_an_argument(name: str, form: tuple[str, ...]) -> None:
    """It says why, and where the token goes; it does not repeat the token, and does not guess at another option."""
    with pytest.raises(SourceError, match="A token is never an argument") as raised:
        run([name, REPO, *form])
    assert ("--token-env" if name == "serve" else "HF_TOKEN") in raised.value.hint
    assert not shown(repr((raised.value, vars(raised.value))))


def test_no_token_is_access_denied(models: Path) -> None:
    """A server that wants a token: 3 or 4 without it, 0 with it; the token shows nowhere."""
    with Server(models, token=TOKEN, gated=frozenset({REPO})) as gated:
        ran = command("download", REPO, "--endpoint", gated.url)
        assert ran.code == 4
        assert "HF_TOKEN" in ran.err
        ran = command("download", REPO, "--endpoint", gated.url, "--json", env={"HF_TOKEN": TOKEN})
    assert ran.code == 0
    assert TOKEN not in ran.out + ran.err


def test_a_refused_connection_is_a_network_error() -> None:
    """Nobody listens: exit code 6 after the retries, which are told of."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        ran = command("download", REPO, "--endpoint", url, env={"ASYNCFETCH_ATTEMPTS": "2"})
    assert ran.code == 6
    assert "retry 1/2" in ran.err


def test_a_folder_with_the_name_of_a_repository(hub: Server, tmp_path: Path) -> None:
    """With @main the repository is loaded and listed, whatever lies here; without it, the folder is looked at."""
    (tmp_path / REPO).mkdir(parents=True)
    ran = command("load", f"{REPO}@main", cwd=tmp_path)
    assert (ran.code, len(ran.out.splitlines())) == (0, 5)
    ran = command("load", REPO, cwd=tmp_path)
    assert ran.code == 3
    assert f"hint: That is a folder here. For the repository of that name give {REPO}@main" in ran.err
    write_model(tmp_path / "own" / "model")
    ran = command("load", "own/model", cwd=tmp_path)
    assert ran.code == 0
    assert "warning: own/model is a folder here, which was used." in ran.err


def test_the_cache_is_used_where_the_hub_cannot_be_asked() -> None:
    """Nobody listens any more: exit code 0, the folder on stdout, one line of warning on stderr."""
    with FaultServer() as server:
        server.hub(REPO, sharded_bytes({"w": np.zeros(1000, np.uint8)}, 1))
        first = command("download", REPO, "--weights-only", "--endpoint", server.url, "--quiet")
        server.go_away()
        second = command("download", REPO, "--weights-only", "--endpoint", server.url, "--quiet")
    assert (first.code, first.err) == (0, "")
    assert (second.code, second.out) == (0, first.out)
    (line,) = second.err.splitlines()
    assert line.startswith(f"warning: {REPO} could not be looked up (http://localhost:")
    assert f"What is cached is used: commit {COMMIT}, last looked up on 20" in line


@pytest.mark.parametrize("as_json", [False, True])
def test_the_last_word_of_an_outage(as_json: bool) -> None:
    """The network goes for good: how long it will go on, then exit code 6, and how to go on; which works."""
    with FaultServer() as server:
        files = sharded_bytes({"w": np.zeros(300_000, np.uint8)}, 1)
        (path,) = server.hub(REPO, files).storage.values()
        server.fault(path, LOOK, Truncate(100_000), Hangup, forever=True)
        options = ["--endpoint", server.url, *(["--json"] if as_json else [])]
        ran = command("download", REPO, *options, "--patience", "0.1s")
        server.heal(path)
        again = command("download", REPO, *options)
    assert ran.code == 6
    assert "Run the same command again to go on: 0.1 of 0.3 MB are kept." in (ran.out if as_json else ran.err)
    assert as_json or "(for 0 s at most)" in ran.err
    assert again.code == 0
    assert server.to(path)[-1].start == 100_000


def test_a_cache_that_cannot_be_written_is_a_storage_error(hub: Server, tmp_path: Path) -> None:
    """The cache folder is a file: exit code 7, and its path is named."""
    blocked = tmp_path / "file"
    blocked.touch()
    ran = command("download", REPO, "--cache-dir", blocked)
    assert ran.code == 7
    assert str(blocked) in ran.err


def test_too_many_requests_is_rate_limited() -> None:
    """A 429 that asks for hours is not waited for: exit code 8, at once."""

    def refuse(connection: socket.socket) -> None:
        connection.recv(65536)
        head = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 9999\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())

    with listening(refuse) as url:
        ran = command("download", REPO, "--endpoint", url, "--json")
    assert ran.code == 8
    assert (ran.lines[-1]["code"], ran.lines[-1]["transient"]) == ("rate_limited", True)
    assert 9999 <= ran.lines[-1]["retry_after"] < 10_001


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_at_once(number: signal.Signals) -> None:
    """Ctrl-C in the middle of a request, which is not answered: exit code 130, one line, no traceback."""
    asked, release = threading.Event(), threading.Event()

    def stall(connection: socket.socket) -> None:
        connection.recv(65536)
        asked.set()
        release.wait(60)

    with listening(stall) as url:
        before = signal.signal(
            number, signal.SIG_DFL
        )  # of what runs these tests, nohup maybe, it would inherit another
        try:
            process = start("download", REPO, "--endpoint", url, real=True)
        finally:
            signal.signal(number, before)
        assert asked.wait(20)
        process.send_signal(number)
        process.wait(15)  # less than a read's time-out: nothing else ends it
        ran = Ran(process)
        release.set()
    assert ran.code == 130
    assert "asyncfetch: Interrupted." in ran.err
    assert "Traceback" not in ran.err


def test_who_wants_it_to_go_on_without_a_terminal(hub: Server) -> None:
    """Started by nohup it outlives its terminal."""
    ask = "import signal, os, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    code = "import signal; from asyncfetch.cli.main import main; main(['-V']); print([signal.getsignal(signal.SIGHUP)])"
    words = [sys.executable, "-c", ask, sys.executable, "-c", code]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert "SIG_IGN" in ran.stdout, ran.stderr


def test_the_unexpected_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A bug of ours is exit code 1 and one line; the traceback comes only when asked for."""

    def fail(arguments: object) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(cli, "_commands", lambda: fail)
    previous = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.main(["load", "x"]) == 1
        assert capsys.readouterr().err == "asyncfetch: ZeroDivisionError: oops\nhint: Please report this.\n"
        monkeypatch.setenv("ASYNCFETCH_DEBUG", "1")
        assert cli.main(["load", "x"]) == 1
        assert "Traceback" in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGTERM, previous)


# The surroundings


def test_a_closed_pipe_is_no_error(hub: Server) -> None:
    """`asyncfetch load | head -0`: it ends without a word about it."""
    command("download", REPO)
    reader, writer = os.pipe()
    os.close(reader)
    process = start("load", REPO, "--quiet", stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 128 + signal.SIGPIPE
    assert errors == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_behind_stdout_is_said(hub: Server) -> None:
    """What could not be written to stdout is exit code 7, not silence."""
    with open("/dev/full", "wb") as full:
        process = start("load", REPO, "--quiet", stdout=full)
        _, errors = process.communicate(timeout=40)
    assert process.returncode == 7
    assert b"stdout: No space left on device" in errors
    assert b"Traceback" not in errors


@pytest.mark.heavy
def test_a_locale_without_unicode(hub: Server, models: Path) -> None:
    """In an ASCII locale nothing crashes; what cannot be shown is escaped."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
    folder = models / "org" / "model"
    ran = command("load", folder, env=plain, real=True)
    assert ran.code == 0
    ran = command("load", "org/modèle-…", env=plain, real=True)
    assert ran.code == 2
    assert ran.err.isascii()
    assert command("--help", env=plain, real=True).code == 0


def test_help_tells_where_the_token_goes() -> None:
    """There is no option for a token; the help says what there is instead."""
    ran = command("--help")
    assert ran.code == 0
    assert "HF_TOKEN" in ran.out
    ran = command("load", "--help")
    for option in ("--revision", "--select", "--no-offline", "--checksum", "--memory", "--verify-cache", "--dry-run"):
        assert option in ran.out
    both = ran.out + command("download", "--help").out + command("convert", "--help").out
    assert all(flag in both for flag in FLAGS.values())
    assert "--token" not in both


def test_inspect_offers_what_it_heeds() -> None:
    """It reads headers, of some tensors and by many connections; no whole file that has a checksum."""
    ran = command("inspect", "--help")
    for option in ("--tensors", "--select", "--connections", "--revision"):
        assert option in ran.out
    for option in ("--checksum", "--verify-cache", "--memory"):
        assert option not in ran.out


def test_completion_is_printed() -> None:
    """The script goes to stdout and is one that bash accepts."""
    ran = command("completion", "bash")
    assert ran.code == 0
    assert subprocess.run(["bash", "-n"], input=ran.raw, check=False).returncode == 0
    assert "download" in ran.out


def test_without_the_extra_it_says_what_to_install() -> None:
    """Without cyclopts or rich: one line with the command to type, exit code 2."""
    script = "import sys; sys.modules['cyclopts'] = None; from asyncfetch.cli.main import main; sys.exit(main(['x']))"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr == "asyncfetch: the command line needs two more packages: pip install 'asyncfetch[cli]'\n"


def test_serve_says_how_to_use_it(models: Path) -> None:
    """serve prints its URL and a line to paste, answers downloads, and ends with 0 on Ctrl-C."""
    process = start("serve", models, "--port", 0, real=True)
    assert process.stderr is not None
    lines = [process.stderr.readline().decode(), process.stderr.readline().decode()]
    found = re.fullmatch(r"export HF_ENDPOINT=(http://127\.0\.0\.1:\d+)\n", lines[1])
    assert found, lines
    assert command("download", REPO, env={"HF_ENDPOINT": found[1]}).code == 0
    process.send_signal(signal.SIGINT)
    assert Ran(process).code == 0


def test_serve_takes_the_token_from_the_environment(models: Path) -> None:
    """--token-env names a variable; an unset one is wrong usage."""
    ran = command("serve", models, "--token-env", "NO_SUCH_VARIABLE")
    assert ran.code == 2
    assert "NO_SUCH_VARIABLE" in ran.err


def test_a_table_on_a_terminal(hub: Server) -> None:
    """On a terminal a download draws one row for each file and a total, and hides the cursor no longer than that."""
    leader, follower = pty.openpty()
    process = start(
        "download", REPO, real=True, stderr=follower, env={"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "24"}
    )
    os.close(follower)
    drawn = b""
    try:
        while chunk := os.read(leader, 65536):
            drawn += chunk
    except OSError:  # EIO: the other side closed
        pass
    finally:
        os.close(leader)
    assert Ran(process).code == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.decode())
    last = text[text.rindex("model-00001") :]
    assert last.count("100%") == 4
    assert last.count("verified") == 3
    assert drawn.rindex(b"\x1b[?25h") > drawn.rindex(b"\x1b[?25l")
