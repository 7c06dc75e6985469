"""A checkpoint as another one: what is in the new folder, what is refused, and what a kill leaves behind."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import asyncfetch
from asyncfetch.cli.main import main
from asyncfetch.errors import ChangedError, DiskFullError, SourceError, StorageError
from asyncfetch.events import AsyncfetchWarning, Event, Writing
from asyncfetch.saving import converting, stored
from asyncfetch.saving.conversion import Conversion, Wishes, planned
from asyncfetch.sources.located import Landed

from ..format.test_scaled import FORMS
from ..kit.fault_server import QUICK, FaultServer
from ..kit.files import index_bytes, safetensors_bytes, sharded_bytes
from ..kit.tiny_models import outputs, save_tiny
from ..kit.torch_or_not import needs_torch, torch
from .kills import STRUCK, no_syncs, strike

ROOT = Path(__file__).parents[2]
INDEX = "model.safetensors.index.json"
RNG = np.random.default_rng(3)
PLAIN: dict[str, Any] = {
    **{f"layer.{n}.weight": RNG.standard_normal((40, 30)).astype(np.float32) for n in range(4)},
    "layer.0.bias": RNG.standard_normal(7).astype(ml_dtypes.bfloat16),
    "ids": np.arange(11),
    "scalar": np.array(2.5, np.float16),
    "empty": np.zeros((0, 3), np.float32),
}
CONFIG = {"architectures": ["A"], "torch_dtype": "float32", "text_config": {"dtype": "bfloat16", "eps": 1e-05}}


def put(folder: Path, tensors: dict[str, Any] | None = None, shards: int = 3, **config: Any) -> Path:
    """A checkpoint with what belongs to it, and what does not."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = sharded_bytes(PLAIN if tensors is None else tensors, shards)
    files |= {"config.json": json.dumps(CONFIG | config).encode(), "tokenizer/vocab.txt": b"a\nb", "other.bin": b"\x80"}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The same names, dtypes, shapes and bytes."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert (array.dtype, array.shape, array.tobytes()) == (
            other[name].dtype,
            other[name].shape,
            other[name].tobytes(),
        )


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("step", [16, 1 << 24])
@pytest.mark.parametrize(
    ("options", "shards"),
    [
        ({"max_shard_size": 4800}, 5),
        ({"max_shard_size": None}, 1),
        ({"max_shard_size": "9KB", "dtype": "bf16"}, 2),
        ({"max_shard_size": 4800, "dtype": "float64"}, 5),
        ({"rename": [("layer.", "model.layers."), ("ids", None)], "max_shard_size": 10_000}, 2),
        ({"select": ["layer.*", "scalar"], "max_shard_size": "5GB", "dtype": "fp16"}, 1),
        ({"rename": {"ids": "scalar", "scalar": "ids"}}, 1),
    ],
)  # fmt: skip
def test_it_is_what_load_gives(
    options: dict[str, Any], shards: int, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors, their order in the index, and what lies beside: whatever the bytes that are read at once."""
    monkeypatch.setattr(stored, "STEP", step)
    monkeypatch.setattr(stored, "_CAST", max(step // 4, 8))
    source = put(tmp_path / "a")
    written = asyncfetch.convert(source, tmp_path / "b", **options)
    files = [name for name in written.files if name.endswith(".safetensors")]
    assert len(files) == shards
    assert sorted(written.files) == tree(tmp_path / "b")
    assert set(written.files) - set(files) - {INDEX} == {"config.json", "tokenizer/vocab.txt"}
    wanted = asyncfetch.load(source, **{name: value for name, value in options.items() if name != "max_shard_size"})
    same(asyncfetch.load(tmp_path / "b"), wanted)
    order = [name for file in sorted(files) for name in _keys(tmp_path / "b" / file)]
    assert sorted(order) == sorted(wanted)
    if shards > 1:
        index = json.loads((tmp_path / "b" / INDEX).read_bytes())
        assert list(index["weight_map"]) == list(wanted)
        assert index["metadata"] == {"total_size": sum(array.nbytes for array in wanted.values())}
    config = json.loads((tmp_path / "b" / "config.json").read_bytes())
    dtype = {"bf16": "bfloat16", "fp16": "float16", "float64": "float64"}.get(options.get("dtype", ""))
    changed = {"torch_dtype": dtype, "text_config": {"dtype": dtype, "eps": 1e-05}} if dtype else {}
    assert config == CONFIG | changed


def _keys(path: Path) -> list[str]:
    with safe_open(path, framework="np") as opened:
        return list(opened.keys())


@needs_torch
def test_other_libraries_load_it(tmp_path: Path) -> None:
    """huggingface_hub finds in the shards what safetensors finds in the merged file."""
    from huggingface_hub import load_state_dict_from_file
    from safetensors.torch import load_file as load_torch

    source = put(tmp_path / "a")
    asyncfetch.convert(source, tmp_path / "b", max_shard_size=5000)
    asyncfetch.convert(tmp_path / "b", tmp_path / "c", max_shard_size=None)
    merged = load_torch(tmp_path / "c" / "model.safetensors")
    found = {}
    for shard in tmp_path.glob("b/model-*.safetensors"):
        found |= load_state_dict_from_file(shard)
    assert found.keys() == merged.keys() == PLAIN.keys()
    for name, tensor in merged.items():
        assert tensor.equal(found[name])
        assert tensor.equal(asyncfetch.to_torch(PLAIN[name]))


@needs_torch
@pytest.mark.parametrize("family", ["llama-tied-bf16", "bert-mlm"])
def test_transformers_loads_it(family: str, tmp_path: Path) -> None:
    """A model that was converted twice, and one whose state dict was saved over another, compute what the first does.

    Tied tensors are written once; the config says the dtype.
    """
    transformers: Any = pytest.importorskip("transformers")
    kind = save_tiny(transformers, torch, family, tmp_path / "a")
    wanted = outputs(torch, kind.from_pretrained(tmp_path / "a"))
    asyncfetch.convert(tmp_path / "a", tmp_path / "b", dtype="float32", max_shard_size="20KB")
    asyncfetch.convert(
        tmp_path / "b", tmp_path / "c", dtype="bfloat16" if "bf16" in family else None, max_shard_size=None
    )
    wide = kind.from_pretrained(tmp_path / "b")
    assert wide.dtype == torch.float32
    again = kind.from_pretrained(tmp_path / "c")
    assert outputs(torch, again).equal(wanted)
    assert again.state_dict().keys() == wide.state_dict().keys()
    asyncfetch.save(again.state_dict(), tmp_path / "b", max_shard_size="20KB")
    (tmp_path / "b" / "config.json").write_bytes((tmp_path / "c" / "config.json").read_bytes())
    assert outputs(torch, kind.from_pretrained(tmp_path / "b")).equal(wanted)


@pytest.mark.parametrize("numbers", [1, 1 << 22])
def test_scaled_weights_become_numbers(numbers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every form, some rows at a time: the same as at once. The config says no more how they were quantised."""
    monkeypatch.setattr(stored, "_NUMBERS", numbers)
    tensors = {f"{at}.{name}": array for at, (held, _, _) in enumerate(FORMS.values()) for name, array in held.items()}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.safetensors").write_bytes(safetensors_bytes(_entries(tensors)))
    quantised = {"quantization_config": {"quant_method": "fp8"}, "torch_dtype": "bfloat16"}
    (tmp_path / "a" / "config.json").write_text(json.dumps(quantised))
    (tmp_path / "a" / "hf_quant_config.json").write_text("{}")
    asyncfetch.convert(tmp_path / "a", tmp_path / "b", dequantize=True, max_shard_size="100KB", dtype="float32")
    same(asyncfetch.load(tmp_path / "b"), asyncfetch.load(tmp_path / "a", dequantize=True, dtype="float32"))
    assert json.loads((tmp_path / "b" / "config.json").read_bytes()) == {"torch_dtype": "float32"}
    assert not (tmp_path / "b" / "hf_quant_config.json").exists()


def _entries(tensors: dict[str, Any]) -> dict[str, Any]:
    from asyncfetch.format.writer import format_dtype, logical_shape

    return {name: (format_dtype(one), logical_shape(one), one.tobytes()) for name, one in tensors.items()}


SCALED: dict[str, Any] = {
    "a.weight": np.ones((256, 128), ml_dtypes.float8_e4m3fn),
    "a.weight_scale_inv": np.ones((2, 1), "f4"),
}


@pytest.mark.parametrize(
    ("tensors", "options", "said"),
    [
        (SCALED, {"dtype": "bf16"}, "cast to bfloat16 alone it would be wrong"),
        (SCALED, {"select": "a.weight"}, "scale 'a.weight_scale_inv', which is left out"),
        (SCALED, {"rename": {"a.weight": "b.weight"}}, "parts 'a.weight'"),
        (SCALED, {"rename": {"a.weight_scale_inv": None}}, "which is left out"),
        (PLAIN, {"rename": lambda name: "x"}, "one name, 'x'"),
        (PLAIN, {"rename": lambda name: None}, "leaves out every tensor"),
        (PLAIN, {"rename": {"ids": "__metadata__"}}, "cannot be the name"),
        (PLAIN, {"select": "none.*"}, "select matches none"),
        (PLAIN, {"max_shard_size": "many"}, "no size"),
        (PLAIN, {"filename_pattern": "x"}, "no pattern"),
        (PLAIN, {"metadata": {"a": 1}}, "text by text"),
        (PLAIN, {"folder": "."}, "is the source itself"),
        (PLAIN, {"folder": "tokenizer"}, "is in the source"),
        (PLAIN, {"folder": "../full"}, "is not empty: there is 'mine'"),
    ],
)  # fmt: skip
def test_what_is_refused(tensors: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Before anything is written."""
    source = put(tmp_path / "a", tensors)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    before = tree(tmp_path)
    folder = source / options.pop("folder", "../b")
    with pytest.raises(SourceError, match=said):
        asyncfetch.convert(source, folder, **options)
    assert tree(tmp_path) == before
    assert not (tmp_path / "b").exists()


def test_scales_stay_with_their_weights(tmp_path: Path) -> None:
    """Renamed alike and in other shards they are found again, and give the same numbers."""
    source = put(tmp_path / "a", SCALED)
    asyncfetch.convert(source, tmp_path / "b", rename=("a.", "model.b."), max_shard_size=100)
    (numbers,) = asyncfetch.load(tmp_path / "b", dequantize=True).values()
    assert numbers.tobytes() == asyncfetch.load(source, dequantize=True)["a.weight"].tobytes()


def test_tied_names_and_metadata(tmp_path: Path) -> None:
    """What shards agree on is kept, and tied names are those of the new tensors; one whose tensor goes is forgotten."""
    source = tmp_path / "a"
    source.mkdir()
    for number, name in enumerate(("in.embed", "in.other"), 1):
        said = {"format": "mlx", "author": "x", "part": str(number)}
        data = safetensors_bytes({name: np.full(4, number, np.float32)}, said)
        (source / f"model-{number:05}-of-00002.safetensors").write_bytes(data)
    index = json.loads(
        index_bytes({"in.embed": "model-00001-of-00002.safetensors", "in.other": "model-00002-of-00002.safetensors"})
    )
    index["metadata"] = {"total_size": 1, "in.head": "in.embed", "in.gone": "in.other"}
    (source / INDEX).write_text(json.dumps(index))
    asyncfetch.convert(source, tmp_path / "b", rename=("in.", ""), metadata={"made": "here"})
    with asyncfetch.open(tmp_path / "b") as opened:
        said = {"format": "mlx", "author": "x", "made": "here", "head": "embed", "gone": "other"}
        assert opened.metadata == said
        assert opened.aliases == {"head": "embed", "gone": "other"}
    asyncfetch.convert(source, tmp_path / "c", select="in.embed", max_shard_size=1)
    with asyncfetch.open(tmp_path / "c") as opened:
        assert opened.metadata == {"format": "mlx", "author": "x", "part": "1", "in.head": "in.embed"}


def test_too_large_numbers_and_odd_configs_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that become infinite, and a config that cannot say what the weights are now."""
    source = put(
        tmp_path / "a", {"big": np.array([1e30, -1e30, np.inf, 1.0], "f4"), "fine": np.array([np.inf, np.nan, 1], "f4")}
    )
    with pytest.warns(AsyncfetchWarning, match="^'big' had numbers too large for float16"):
        asyncfetch.convert(source, tmp_path / "b", dtype="fp16")
    with monkeypatch.context() as patch:
        patch.setattr(converting, "publish", _no_disk)
        with pytest.raises(StorageError):  # all shards are whole by then
            asyncfetch.convert(source, tmp_path / "s", dtype="fp16")
    with pytest.warns(AsyncfetchWarning, match="^'big' had numbers too large for float16"):
        asyncfetch.convert(source, tmp_path / "s", dtype="fp16")
    for number, text in enumerate(("[1]", "{", "")):
        (source / "config.json").write_text(text)
        with pytest.warns(AsyncfetchWarning, match="config.json could not be read"):
            asyncfetch.convert(source, tmp_path / f"c{number}", dtype="bf16")
        assert (tmp_path / f"c{number}" / "config.json").read_text() == text
    with pytest.warns(AsyncfetchWarning, match="no model is made of float8_e5m2"):
        asyncfetch.convert(source, tmp_path / "d", dtype="float8_e5m2", select="fine")


def _no_disk(*_: object) -> None:
    raise OSError(5, os.strerror(5))


def test_a_source_that_is_one_file_has_nothing_beside_it(tmp_path: Path) -> None:
    """What lies in the same folder need not belong to it. An index names the checkpoint of its folder."""
    (source,) = put(tmp_path / "a", shards=1).glob("*.safetensors")
    assert set(asyncfetch.convert(source, tmp_path / "b").files) == {"model.safetensors"}
    asyncfetch.convert(source.parent, tmp_path / "c", weights_only=True, max_shard_size=5000)
    assert not (tmp_path / "c" / "config.json").exists()
    (tmp_path / "c" / "config.json").write_text("{}")
    assert "config.json" in asyncfetch.convert(tmp_path / "c" / INDEX, tmp_path / "d").files


@pytest.mark.parametrize("linked", [False, True])
def test_one_file_is_the_source_and_not_its_folder(
    linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder beside it may be the output; that of the file, and of what it is a link to, may not."""
    home = tmp_path / "home"
    home.mkdir()
    stored = tmp_path / "disk" if linked else home
    stored.mkdir(exist_ok=True)
    content = safetensors_bytes(PLAIN)
    (stored / "model.safetensors").write_bytes(content)
    if linked:
        (home / "model.safetensors").symlink_to(stored / "model.safetensors")
    monkeypatch.chdir(home)
    asyncfetch.convert("model.safetensors", "half", dtype="float16")
    assert main(["convert", str(home / "model.safetensors"), "deep/er", "--dtype", "float16"]) == 0
    same(asyncfetch.load("half"), asyncfetch.load("model.safetensors", dtype="float16"))
    same(asyncfetch.load("deep/er"), asyncfetch.load("half"))
    assert main(["load", "half", "--output", "merged.safetensors"]) == 0
    same(asyncfetch.load("merged.safetensors"), asyncfetch.load("half"))
    for folder in {home, stored}:
        (folder / converting._STAGING).mkdir()  # as a run leaves it that was killed: then a folder need not be empty
        with pytest.raises(SourceError, match="is where the source is"):
            asyncfetch.convert("./model.safetensors", folder, dtype="float16")
        assert main(["convert", "model.safetensors", str(folder)]) == 2
        assert "is where the source is" in capsys.readouterr().err
        assert (folder / "model.safetensors").read_bytes() == content


def test_an_index_is_the_source_with_its_folder(tmp_path: Path) -> None:
    """What lies in the folder of an index belongs to the checkpoint."""
    source = put(tmp_path / "a")
    for folder, words in ((source, "the source itself"), (source / "b", "in the source")):
        with pytest.raises(SourceError, match=words):
            asyncfetch.convert(source / INDEX, folder)


HIDDEN = (
    ".env",
    ".git/config",
    ".git/lfs/objects/ab/abcd",
    ".gitattributes",
    "tokenizer/.cache/a.json",
    "code/.venv/b.py",
)


def hide(folder: Path) -> None:
    """What tools and users keep in a folder for themselves."""
    for name in HIDDEN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("TOKEN=secret")


def test_what_is_hidden_in_a_folder_stays_there(tmp_path: Path) -> None:
    """A clone has the whole history in .git, and passwords too; a model is no place for them."""
    source = put(tmp_path / ".models" / "a")  # the folder itself may be hidden
    hide(source)
    (source / "chat.template.jinja").write_text("x")
    written = asyncfetch.convert(source, tmp_path / "b")
    beside = {"chat.template.jinja", "config.json", "tokenizer/vocab.txt"}
    assert {name for name in written.files if not name.startswith("model")} == beside
    assert {name for name in tree(tmp_path / "b") if not name.startswith("model")} == beside


def test_there_must_be_room_for_what_lies_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer counts, once: what a run that was interrupted has brought is there already."""
    source = put(tmp_path / "a", {"w": np.zeros(500, "f4")})
    (source / "tokenizer.json").write_bytes(bytes(70_000))
    monkeypatch.setattr(converting, "free_bytes", lambda _: 60_000)
    with pytest.raises(DiskFullError):
        asyncfetch.convert(source, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    monkeypatch.setattr(converting, "free_bytes", lambda _: 90_000)
    with monkeypatch.context() as patch:
        patch.setattr(converting, "publish", _no_disk)
        with pytest.raises(StorageError):
            asyncfetch.convert(source, tmp_path / "b")
    monkeypatch.setattr(converting, "free_bytes", lambda _: 4096)
    asyncfetch.convert(source, tmp_path / "b")
    assert "tokenizer.json" in tree(tmp_path / "b")


def test_a_source_that_changes_meanwhile_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that is written to after its header was read is an error; what is whole is gone on with."""
    source = put(tmp_path / "a")
    last = sorted(source.glob("model-*"))[-1]

    def report(event: Event) -> None:
        if isinstance(event, Writing):
            os.utime(last, (1, 1))

    with pytest.raises(ChangedError, match="written to or replaced"):
        asyncfetch.convert(source, tmp_path / "b", max_shard_size=4800, report=report)
    assert not list((tmp_path / "b").glob("*.safetensors*"))
    asyncfetch.convert(source, tmp_path / "b", max_shard_size=4800)
    same(asyncfetch.load(tmp_path / "b"), asyncfetch.load(source))
    monkeypatch.setattr(converting, "free_bytes", lambda _: 1000)
    with pytest.raises(DiskFullError):
        asyncfetch.convert(source, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.fixture
def hub() -> Iterator[FaultServer]:
    with FaultServer() as running:
        files = {
            **sharded_bytes(PLAIN, 2),
            "config.json": json.dumps(CONFIG).encode(),
            "README.md": b"x",
            ".gitattributes": b"",
        }
        running.listing(running.hub("org/model", files))
        yield running


def test_from_the_hub(hub: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command: downloaded, verified, and in the cache for the next one, which asks for no shard."""
    where = ["--endpoint", hub.url, "--cache-dir", str(tmp_path / "cache")]
    out = tmp_path / "b"
    assert main(["convert", "org/model", str(out), *where, "--rename", "layer.=h.", "--max-shard-size", "none"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert tree(out) == ["README.md", "config.json", "model.safetensors"]
    same(asyncfetch.load(out), {name.replace("layer.", "h."): PLAIN[name] for name in PLAIN})
    assert (
        main(["convert", "org/model", str(tmp_path / "c"), *where, "--offline", "--json", "--max-shard-size", "5000"])
        == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [line.get("event", line["type"]) for line in lines]
    assert kinds.index("finished") < kinds.index("writing") < kinds.index("file_written")
    assert (kinds[-1], lines[-1]["command"], lines[-1]["path"]) == ("result", "convert", str(tmp_path / "c"))
    for wrong, said in (([str(out)], "not empty"), ([str(tmp_path / "d"), "--rename", "x"], "is not OLD=NEW")):
        assert main(["convert", "org/model", *wrong, *where, "--offline"]) == 2
        assert said in capsys.readouterr().err


def test_many_clients_methods_are_the_functions(hub: FaultServer, tmp_path: Path) -> None:
    """A client converts as the function does."""
    with asyncfetch.BlockingClient(endpoint=hub.url, token=False, cache_dir=tmp_path / "cache", policy=QUICK) as client:
        client.convert("org/model", tmp_path / "b", max_shard_size=None)
    same(asyncfetch.load(tmp_path / "b"), PLAIN)


@pytest.mark.timeout(120)
def test_a_run_that_was_killed_is_gone_on_with(tmp_path: Path) -> None:
    """Killed before each change of the file system: no index but with all shards, and the next run ends it."""
    run = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    told = [json.loads(line) for line in run.stdout.splitlines()]
    assert [status for status, *_ in told] == [STRUCK] * (len(told) - 1) + [0]
    assert not told[0][1]
    assert told[-1][1]
    kept = [present for _, _, present in told[:-1]]
    assert (kept[0], max(kept)) == (0, 3)  # whole shards are not written again


_KILLED = "from tests.saving.test_convert import killed; import sys; killed(sys.argv[1])"


def killed(root: str) -> None:
    """Prints of each kill: how it ended, whether there was a checkpoint, how many shards the next run found."""
    no_syncs()
    source = put(Path(root, "a"))
    wanted = asyncfetch.load(source, dtype="float32")
    plan, landed = anyio.run(_located, source)
    for after in itertools.count():
        folder, kept = Path(root, f"b{after}"), []

        def told(sizes: Any, done: frozenset[str]) -> Any:
            kept.append(len(done))  # noqa: B023
            return lambda _file, _nbytes: None

        def run() -> None:
            converting.convert(plan, landed, folder, told, print)  # noqa: B023

        status = strike(run, after)
        there = (folder / INDEX).exists()
        if there:
            same(_read(folder), wanted)
        if not there or (folder / converting._STAGING).exists():
            converting.check_output(plan, folder, source)
            run()
        same(_read(folder), wanted)
        assert tree(folder) == sorted({INDEX, "config.json", "tokenizer/vocab.txt"} | set(sharded_names(3))), tree(
            folder
        )
        print(json.dumps([status, there, sum(kept)]))
        if not status:
            return


def _read(folder: Path) -> dict[str, Any]:
    """What safetensors finds in the shards that the index names."""
    shards = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
    return {name: array for shard in shards for name, array in load_file(folder / shard).items()}


async def _located(source: Path) -> tuple[Conversion, dict[str, Landed]]:
    async with asyncfetch.Client() as client, client._call("convert", source, {}, files={}) as call:
        located, scaling, landed = await call.session.fetch(named=True)
    wishes = Wishes(dtype=np.dtype("f4"), rename=None, limit=9700, said={}, pattern="model{suffix}.safetensors")
    return planned(located, scaling, wishes), landed


def sharded_names(count: int) -> list[str]:
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def test_another_conversion_takes_the_place_of_one_that_was_killed(tmp_path: Path) -> None:
    """Nothing of the first one is left."""
    source = put(tmp_path / "a")
    whole = asyncfetch.convert(source, tmp_path / "c", max_shard_size=None).files["model.safetensors"].stat().st_size
    staging = tmp_path / "b" / converting._STAGING
    staging.mkdir(parents=True)
    (staging / "plan").write_text(json.dumps({"fingerprint": "0", "files": ["model-00001-of-00002.safetensors"]}))
    for name in (staging / "model.safetensors", tmp_path / "b" / "model-00001-of-00002.safetensors"):
        name.write_bytes(bytes(whole))
    asyncfetch.convert(source, tmp_path / "b", max_shard_size=None)
    assert tree(tmp_path / "b") == ["config.json", "model.safetensors", "tokenizer/vocab.txt"]
    same(asyncfetch.load(tmp_path / "b"), PLAIN)


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """80 MiB, of which 128 MiB of numbers come, raise the peak of memory by far less."""
    weight = np.ones((1 << 12, 1 << 13), ml_dtypes.float8_e4m3fn)
    asyncfetch.save(
        {"a.weight": weight, "a.weight_scale_inv": np.ones((32, 64), "f4"), "b": np.ones((3 << 11, 1 << 11), "f4")},
        tmp_path / "a",
    )
    script = (
        "import asyncfetch, resource, sys\n"
        "asyncfetch.convert('small', 'first', dequantize=True, dtype='bf16')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "asyncfetch.convert('a', 'b', dequantize=True, dtype='bf16', max_shard_size='50MB')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    put(tmp_path / "small")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 80 * 1024  # KiB
