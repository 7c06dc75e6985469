"""Scaled weights on every way out: never cast without their scales, and true numbers where they are asked for."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import asyncfetch
from asyncfetch.cli.main import main
from asyncfetch.errors import SourceError
from asyncfetch.events import AsyncfetchWarning
from asyncfetch.server import Server
from asyncfetch.spans import MiB

from ..format.test_ranks import chunked
from ..format.test_scaled import FORMS, scales
from ..kit.files import index_bytes, safetensors_bytes
from ..kit.small_model import ONE_LOOP
from .test_opened import equal, sent_by

BF16 = np.dtype(ml_dtypes.bfloat16)
INDEX = "model.safetensors.index.json"
KINDS = ("DeepSeek 300 x 200", "rows (40, 1)", "gpt-oss", "NVFP4, compressed-tensors (1,)", "NVFP4, ModelOpt ()")
PLAIN: dict[str, Any] = {
    "norm.weight": np.linspace(0, 1, 33, dtype=np.float32),
    "norm.scale": np.ones(33, np.float32),  # beside a weight that is no scaled one
    "unscaled.weight": np.linspace(-3, 3, 40).astype(ml_dtypes.float8_e4m3fn).reshape(4, 10),
    "0.a.input_scale": scales(1),
    "ids": np.arange(5),
}
STORED: dict[str, Any] = {
    f"{at}.{name}": array for at, kind in enumerate(KINDS) for name, array in FORMS[kind][0].items()
}
STORED |= PLAIN
NUMBERS: dict[str, Any] = {f"{at}.{FORMS[kind][1]}": FORMS[kind][2] for at, kind in enumerate(KINDS)}
WEIGHTS = {f"{at}.{next(iter(FORMS[kind][0]))}": f"{at}.{FORMS[kind][1]}" for at, kind in enumerate(KINDS)}
SCALES = STORED.keys() - WEIGHTS.keys() - PLAIN.keys()


def expected(dtype: Any) -> dict[str, np.ndarray]:
    """All results in `dtype`; None is that of each."""
    numbers = {name: array.astype(dtype or np.float32) for name, array in NUMBERS.items()}
    plain = {
        name: array if dtype is None or array.dtype == np.int64 else array.astype(dtype)
        for name, array in PLAIN.items()
    }
    return numbers | plain


def same(given: dict[str, Any], dtype: Any) -> None:
    """`given` has all results, and nothing else."""
    assert given.keys() == expected(dtype).keys()
    for name, array in expected(dtype).items():
        equal(given[name], array)


def laid_out(layout: str) -> dict[str, bytes]:
    """The tensors in one file, with their scales in other shards than they are, or dealt in turn."""
    if layout == "single":
        return {"model.safetensors": safetensors_bytes(STORED)}
    if layout == "in turn":
        where = {name: f"{at % 3}.safetensors" for at, name in enumerate(STORED)}
    else:  # the scales in the last one
        where = {name: "1.safetensors" if name in SCALES else "0.safetensors" for name in STORED}
    shards = {
        shard: safetensors_bytes({name: STORED[name] for name, other in where.items() if other == shard})
        for shard in sorted(set(where.values()))
    }
    return shards | {INDEX: index_bytes(where)}


LAYOUTS = ("single", "in turn", "scales apart")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same tensors in each layout."""
    root = tmp_path_factory.mktemp("scaled")
    for layout in LAYOUTS:
        folder = root / "org" / layout.replace(" ", "-")
        folder.mkdir(parents=True)
        for name, content in laid_out(layout).items():
            (folder / name).write_bytes(content)
    with Server(root) as running:
        yield running


@pytest.fixture(params=LAYOUTS)
def source(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> dict[str, Any]:
    """Where one of them is."""
    return {
        "source": f"org/{request.param.replace(' ', '-')}",
        "endpoint": server.url,
        "cache_dir": tmp_path / "cache",
    }


@pytest.mark.anyio
@ONE_LOOP
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
async def test_true_numbers_on_every_way(source: dict[str, Any], dtype: Any) -> None:
    """load, stream in each of its forms, open and load_into give the same numbers, without the scales in them."""
    target = None if dtype is None else BF16 if dtype == "bfloat16" else np.dtype(dtype)
    for storage in ("memory", "disk"):
        for early in (False, True):
            async with asyncfetch.stream_async(
                **source, dtype=dtype, dequantize=True, storage=storage, early=early
            ) as tensors:
                same({name: array async for name, array in tensors}, target)
    loaded = await asyncfetch.load_async(**source, dtype=dtype, dequantize=True)
    same(loaded, target)
    assert list(loaded) == [WEIGHTS.get(name, name) for name in STORED if name not in SCALES]
    same(await asyncfetch.load_async(**source, dtype=dtype, dequantize=True, storage="memory"), target)
    async with asyncfetch.open_async(**source, dtype=dtype, dequantize=True) as checkpoint:
        assert set(checkpoint.keys()) == expected(target).keys()
        same(await checkpoint.state_dict(), target)
        for name, array in NUMBERS.items():
            assert name in checkpoint
            equal(await checkpoint.tensor(name, np.s_[1:3, ..., ::-2]), array.astype(target or "f4")[1:3, ..., ::-2])
            for axis in range(array.ndim):
                part = await checkpoint.shard_of(name, axis, rank=1, world_size=3)
                equal(part, chunked(array.astype(target or "f4"), 3, axis)[1])
        for name in SCALES:
            assert name not in checkpoint
        equal(await checkpoint.tensor("0.w", dtype="float64"), (await checkpoint.tensor("0.w", dtype="float64")))
    model: Any = {name: np.zeros_like(array) for name, array in expected(target).items()}
    tree = asyncfetch.unflatten(model)
    report = await asyncfetch.load_into_async(tree, **source, dtype=dtype, dequantize=True)
    assert (report.missing, report.unexpected) == ((), ())
    same(asyncfetch.models.flatten(tree), target)


@pytest.mark.anyio
@ONE_LOOP
async def test_a_plain_cast_is_refused(source: dict[str, Any], server: Server) -> None:
    """On every way, before a shard moves, with the weight, its scale and what to do."""
    words = r"'0\.w' \(F8_E4M3\) counts only times its scale '0\.w_scale_inv': cast to bfloat16.*Pass dequantize=True"
    before = sent_by(server)
    with pytest.raises(SourceError, match=words):
        await asyncfetch.load_async(**source, dtype="bfloat16")
    with pytest.raises(SourceError, match=words):
        await asyncfetch.load_into_async({}, **source, dtype="bfloat16", strict=False)
    model = {"0": {"w": np.zeros((2, 2), BF16)}}
    with pytest.raises(SourceError, match=r"'0\.w' \(F8_E4M3\) counts only times .* copied alone into a model"):
        await asyncfetch.load_into_async(model, **source, assign=False, strict=False)
    with pytest.raises(SourceError, match=words):
        async with asyncfetch.stream_async(**source, dtype="bfloat16"):
            pass
    with pytest.raises(SourceError, match=words):
        await asyncfetch.open_async(**source, dtype="bfloat16")
    assert sent_by(server) - before < 400_000 * 4
    assert not list((source["cache_dir"]).rglob("blobs/*"))
    async with asyncfetch.open_async(**source) as checkpoint:
        for refused in (
            checkpoint.tensor("0.w", dtype="bfloat16"),
            checkpoint.tensor("0.w", np.s_[:1], dtype="bfloat16"),
            checkpoint.tensors(["ids", "0.w"], dtype="bfloat16"),
            checkpoint.shard_of("0.w", rank=0, world_size=2, dtype="bfloat16"),
            checkpoint.state_dict(dtype="bfloat16"),
        ):
            with pytest.raises(SourceError, match=words):
                await refused
        equal(await checkpoint.tensor("norm.weight", dtype="bfloat16"), PLAIN["norm.weight"].astype(BF16))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_each_form_is_refused(source: dict[str, Any], weight: str) -> None:
    """Also where the scale is not selected, and lies in a shard that is not even looked at."""
    with pytest.raises(SourceError, match=rf"{re.escape(repr(weight))} \(.*counts only times its scale"):
        asyncfetch.load(**source, select=weight, dtype="float32")


def test_a_scale_that_the_index_omits(tmp_path: Path) -> None:
    """It is none of the tensors, and scales its weight all the same: neither a cast nor numbers of it are given."""
    weight, scale = STORED["0.w"], STORED["0.w_scale_inv"]
    (tmp_path / "0.safetensors").write_bytes(safetensors_bytes({"w": weight, "w_scale_inv": scale}))
    (tmp_path / INDEX).write_bytes(index_bytes({"w": "0.safetensors"}))
    with pytest.raises(SourceError, match="'w_scale_inv': cast to float16 alone"):
        asyncfetch.load(tmp_path, dtype="float16")
    with pytest.raises(SourceError, match=r"numbers of 'w' .*: its scale is not at hand"):
        asyncfetch.load(tmp_path, dequantize=True)
    equal(asyncfetch.load(tmp_path)["w"], weight)


def test_what_is_cast_as_ever(source: dict[str, Any]) -> None:
    """Weights as they are stored, scales alone, and 8 bits that nothing scales."""
    stored = asyncfetch.load(**source)
    for name, array in STORED.items():
        equal(stored[name], array)
    names = [*SCALES, "unscaled.weight", "0.a.input_scale"]
    found = asyncfetch.load(**source, select=names, dtype="float16")
    for name in names:
        array = STORED[name]
        equal(found[name], array if array.dtype == np.uint8 else array.astype(np.float16))


@pytest.mark.parametrize(
    ("select", "names"),
    [
        ("0.w", ["0.w"]),
        ("2.e.gate_up_proj", ["2.e.gate_up_proj"]),
        ("2.e.gate_up_proj_blocks", ["2.e.gate_up_proj"]),
        ("3.a.weight", ["3.a.weight"]),
        (["*.weight", "4*"], ["1.a.weight", "3.a.weight", "4.a.weight", "norm.weight", "unscaled.weight"]),
        (["1.a.weight", "0.w_scale_inv"], ["1.a.weight", "0.w_scale_inv"]),
        ("norm.weight", ["norm.weight"]),
    ],
)
def test_selected_weights_bring_their_scales(source: dict[str, Any], select: Any, names: list[str]) -> None:
    """By the name of the result or of what is stored; the scales come along, and only what was asked for is given."""
    results = {**STORED, **expected(None)}
    found = asyncfetch.load(**source, select=select, dequantize=True)
    assert sorted(found) == sorted(names)
    with asyncfetch.open(**source, select=select, dequantize=True) as checkpoint:
        assert sorted(checkpoint.keys()) == sorted(names)
    for name in names:
        equal(found[name], results[name])


def test_what_is_not_understood_is_refused(tmp_path: Path) -> None:
    """A scale that does not fit, and forms of other libraries: refused where numbers are asked for."""
    path = tmp_path / "model.safetensors"
    weight = FORMS["rows (40,)"][0]["a.weight"]
    for extra, words in (
        ({"a.weight": weight, "a.weight_scale": scales(7, 9)}, "cannot tell the numbers of 'a.weight'"),
        ({"a.weight": weight, "b.qweight": np.zeros((2, 2), np.int32)}, "does not know how 'b.qweight'"),
    ):
        path.write_bytes(safetensors_bytes(extra))
        with pytest.raises(SourceError, match=words):
            asyncfetch.load(path, dequantize=True)
    with pytest.raises(SourceError, match="dequantize= takes True or False"):
        asyncfetch.load(path, dequantize="yes")  # type: ignore[arg-type]


@pytest.mark.anyio
@ONE_LOOP
@pytest.mark.parametrize(
    ("weight", "scale"),
    [
        ("h.0.up._weight_qdata", "h.0.up._weight_scale"),
        ("h.0.up.weight:qdata", "h.0.up.weight:scale"),
        ("h.0.up.weight._data", "h.0.up.weight._scale"),
        ("h.0.up.weight", "h.0.up.weights_scaling_factor"),
        ("h.0.up.weight", "h.0.up.weight.scale"),
    ],
)
async def test_layouts_that_are_not_known(weight: str, scale: str, tmp_path: Path) -> None:
    """Of other libraries: neither a cast nor numbers are given on any way, also where the scale is in another shard."""
    held = {"norm.scale": scales(5), weight: FORMS["rows (40, 1)"][0]["a.weight"], scale: scales(40, 1)}
    for number, (name, array) in enumerate(held.items()):
        (tmp_path / f"{number}.safetensors").write_bytes(safetensors_bytes({name: array}))
    (tmp_path / INDEX).write_bytes(index_bytes({name: f"{at}.safetensors" for at, name in enumerate(held)}))
    cast = f"{re.escape(repr(weight))} \\(F8_E4M3\\) counts only times its scale {re.escape(repr(scale))}: cast"
    numbers = f"numbers of {re.escape(repr(weight))} \\(F8_E4M3\\): how {re.escape(repr(scale))} scales it is not known"
    for words, options in ((cast, {}), (numbers, {"dequantize": True})):
        for select in (None, weight):
            wanted: dict[str, Any] = {**options, "select": select, "dtype": "float16"}
            with pytest.raises(SourceError, match=words) as caught:
                await asyncfetch.load_async(tmp_path, **wanted)
            assert "Pass dequantize=True" not in str(caught.value)
            with pytest.raises(SourceError, match=words):
                await asyncfetch.load_into_async({}, tmp_path, strict=False, **wanted)
            with pytest.raises(SourceError, match=words):
                await asyncfetch.convert_async(tmp_path, tmp_path / "other", **wanted)
            with pytest.raises(SourceError, match=words):
                async with asyncfetch.stream_async(tmp_path, **wanted):
                    pass
    with pytest.raises(SourceError, match=numbers):
        await asyncfetch.open_async(tmp_path, dequantize=True)
    async with asyncfetch.open_async(tmp_path) as checkpoint:
        with pytest.raises(SourceError, match=cast):
            await checkpoint.tensor(weight, np.s_[:3], dtype="float16")
        equal(await checkpoint.tensor("norm.scale", dtype="float16"), held["norm.scale"].astype(np.float16))
        equal(await checkpoint.tensor(weight), held[weight])
    with pytest.raises(SourceError, match=r"copied alone into a model .* assign=True") as caught:
        await asyncfetch.load_into_async({"norm": {}}, tmp_path, assign=False, strict=False)
    assert "dequantize" not in str(caught.value)


def test_layouts_that_are_not_known_are_converted_as_they_are(tmp_path: Path) -> None:
    """And together with their scales: to leave one out, or to part them by a name, is refused, with nothing vain."""
    held = {"a._weight_qdata": FORMS["int8 rows"][0]["a.weight"], "a._weight_scale": scales(6, 1)}
    source = tmp_path / "a"
    source.mkdir()
    (source / "model.safetensors").write_bytes(safetensors_bytes(held))
    asyncfetch.convert(source, tmp_path / "b", rename=("a.", "m.a."))
    for name, array in asyncfetch.load(tmp_path / "b").items():
        equal(array, held[name.removeprefix("m.")])
    for options, words in (
        ({"select": "*_qdata"}, "'a._weight_scale', which is left out. Keep both.$"),
        ({"rename": {"a._weight_scale": "gamma"}}, "parts 'a._weight_qdata' .* Rename both alike.$"),
    ):
        with pytest.raises(SourceError, match=words):
            asyncfetch.convert(source, tmp_path / "c", **options)  # type: ignore[arg-type]


def test_a_scale_of_inputs_alone_is_told(tmp_path: Path) -> None:
    """Eight bits that nothing scales are numbers. Where their inputs are scaled, that is said to be a guess."""
    weight = PLAIN["unscaled.weight"]
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"a.weight": weight, "b.weight": weight, "a.activation_scale": scales(1)}))
    for options in ({"dequantize": True}, {"dtype": "float32"}):
        with pytest.warns(AsyncfetchWarning, match="^'a.weight': a scale of the inputs lies beside"):
            found = asyncfetch.load(path, **options)  # type: ignore[arg-type]
        equal(found["a.weight"], weight.astype("f4") if "dtype" in options else weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncfetch.load(path, dtype="float32", select="b.*")
        asyncfetch.load(path)
        path.write_bytes(safetensors_bytes(FORMS["NVFP4, ModelOpt ()"][0] | {"a.input_scale": scales(1)}))
        asyncfetch.load(path, dequantize=True)  # of its scales, 8 bits too, none is a weight


def test_blocking_readers(source: dict[str, Any]) -> None:
    """The blocking twins give the same, and a stream that is left half-way closes."""
    same(dict(asyncfetch.stream(**source, dequantize=True, dtype="bfloat16")), BF16)
    with asyncfetch.stream(**source, dequantize=True) as tensors:
        name, array = next(tensors)
        equal(array, expected(None)[name])
    with pytest.raises(SourceError, match="closed"):
        next(tensors)
    with asyncfetch.BlockingClient(endpoint=source["endpoint"], cache_dir=source["cache_dir"]) as client:
        same(client.load(source["source"], dequantize=True), None)
        with pytest.raises(SourceError, match="counts only times its scale"):
            client.open(source["source"], dtype="bfloat16")


def test_the_command_line(source: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--dequantize writes the numbers; --dtype without it is refused in the words of the command line."""
    place = [source["source"], "--endpoint", source["endpoint"], "--cache-dir", str(source["cache_dir"])]
    assert main(["load", *place, "--dtype", "bfloat16"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Pass --dequantize for its numbers, or no --dtype for what is stored." in err
    output = tmp_path / "merged.safetensors"
    assert main(["load", *place, "--dtype", "bfloat16", "--dequantize", "--output", str(output), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["tensors"]) == expected(BF16).keys()
    same(asyncfetch.load(output), BF16)


@pytest.mark.anyio
@ONE_LOOP
async def test_memory_is_bounded_where_scales_come_last(tmp_path: Path) -> None:
    """Eight shards of weights whose scales all lie in the last one: few of them are in memory at a time."""
    weights = {f"{at}.weight": np.full((1024, 1024), at % 8 + 1, ml_dtypes.float8_e4m3fn) for at in range(24)}
    factors = {f"{at}.weight_scale": np.full((1024, 1), 0.5 + at, np.float32) for at in range(24)}
    where = {name: f"{int(name.split('.')[0]) % 8}.safetensors" for name in weights} | dict.fromkeys(
        factors, "9.safetensors"
    )
    folder = tmp_path / "org" / "last"
    folder.mkdir(parents=True)
    for shard in sorted(set(where.values())):
        held = {name: array for name, array in (weights | factors).items() if where[name] == shard}
        (folder / shard).write_bytes(safetensors_bytes(held))
    (folder / INDEX).write_bytes(index_bytes(where))
    most = 0
    with Server(tmp_path) as server:
        async with asyncfetch.stream_async(
            "org/last", endpoint=server.url, storage="memory", dequantize=True, dtype="bfloat16", memory_limit=4 * MiB
        ) as tensors:
            async for name, array in tensors:
                number = int(name.split(".")[0])
                assert float(array[-1, -1]) == float(BF16.type((number % 8 + 1) * (0.5 + number)))
                most = max(most, sum(len(one) for one in tensors.feed._stored.values() if one.shape == (1024, 1024)))
    assert most <= 6 * 1024
