"""vLLM's load format: options, patterns and ranks; and that vLLM still is what the adapter was written for."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asyncfetch.adapters import vllm as adapter
from asyncfetch.errors import ChecksumMismatchError, SourceError
from asyncfetch.server import Server

from ..kit.files import sharded
from ..kit.structure import ROOT
from ..kit.vllm_wheel import (
    VllmWheel,
    attributes,
    fields,
    inner_class,
    methods,
    parameters,
    stand_in,
    wheels,
)

PACKAGE = "vllm.model_executor.model_loader"


@pytest.fixture(scope="module")
def wheel() -> VllmWheel:
    if not wheels():
        pytest.skip("NOT TESTED: vLLM's own loader. ASYNCFETCH_TEST_FRAMEWORKS=1 scripts/test downloads its wheel")
    return VllmWheel(wheels()[-1])


def tensors() -> dict[str, np.ndarray[Any, Any]]:
    """Two layers with four experts each, every tensor in another shard of 64 bytes."""
    experts = [f"layers.{layer}.experts.{expert}.w.weight" for layer in range(2) for expert in range(4)]
    names = ["embed.weight", *experts, "layers.0.experts.0.w.scale", "mtp.weight"]
    return {name: np.full((4, 4), number, np.float32) for number, name in enumerate(names)}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    sharded(root / "org/model", tensors(), shards=len(tensors()))
    with Server(root) as server:
        yield server


def load_config(cache: Path, hub: Server | None = None, **changed: Any) -> Any:
    """As vLLM's LoadConfig is where nobody sets anything. `extra` is --model-loader-extra-config."""
    extra = {"endpoint": hub.url} if hub else {}
    plain: dict[str, Any] = {
        "load_format": "asyncfetch",
        "download_dir": str(cache),
        "model_loader_extra_config": extra | changed.pop("extra", {}),
        "ignore_patterns": ["original/**/*"],
        "safetensors_load_strategy": None,
        "pt_load_map_location": "cpu",
    }
    return LoadConfig(**plain | changed)


@dataclass
class LoadConfig:
    load_format: str
    download_dir: str | None
    model_loader_extra_config: dict[str, Any]
    ignore_patterns: list[str] | str
    safetensors_load_strategy: str | None
    pt_load_map_location: str


class Revision(str):
    """A revision that knows its commit, as huggingface_hub's."""

    def __str__(self) -> str:
        return "of another kind"


class Model:
    """A model of vLLM, as its loader sees one."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)
        self.given: dict[str, Any] = {}

    def load_weights(self, weights: Any) -> set[str]:
        self.given |= dict(weights)
        return set(self.given)

    def named_parameters(self) -> list[tuple[str, Any]]:
        return [(name, None) for name in getattr(self, "names", ())]

    def named_modules(self) -> list[tuple[str, Any]]:
        return []


def model_config(**changed: Any) -> Any:
    plain = {
        "model": "org/model",
        "revision": Revision("main"),
        "quantization": None,
        "multimodal_config": None,
        "is_moe": True,
        "get_num_experts": lambda: 4,
    }
    return SimpleNamespace(**plain | changed)


PARALLEL = {
    "enable_expert_parallel": False,
    "enable_ep_weight_filter": False,
    "enable_eplb": False,
    "data_parallel_size": 1,
    "tensor_parallel_size": 1,
    "prefill_context_parallel_size": 1,
    "expert_placement_strategy": "linear",
    "rank": 0,
}
EXPERT_PARALLEL = PARALLEL | {
    "enable_expert_parallel": True,
    "enable_ep_weight_filter": True,
    "tensor_parallel_size": 2,
}


@pytest.fixture
def loader(wheel: VllmWheel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes our loader on vLLM's own, as vLLM does."""
    pytest.importorskip("torch")

    def make(config: Any, parallel: dict[str, Any] = PARALLEL) -> Any:
        stand_in(wheel, monkeypatch, parallel)
        adapter.register.cache_clear()
        adapter.register()
        adapter.register()
        return sys.modules[PACKAGE].registry["asyncfetch"](config)  # type: ignore[attr-defined]

    return make


def downloaded(cache: Path) -> int:
    return sum(path.name.endswith(".safetensors") for path in cache.rglob("snapshots/*/*"))


# -- what vLLM is ------------------------------------------------------------------------------


def test_vllm_is_what_the_adapter_was_written_for(wheel: VllmWheel) -> None:
    """Entry point, base classes, signatures and fields, as they stand in the wheel; a new field is to be looked at."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plugins = ast.parse(wheel.text("vllm.plugins")).body
    groups = [
        node.value.value for node in plugins if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    ]
    assert "vllm.general_plugins" in groups
    assert project["entry-points"]["vllm.general_plugins"] == {"asyncfetch": "asyncfetch.adapters.vllm:register"}
    register = wheel.definition(PACKAGE, "register_model_loader")
    assert parameters(register) == ["load_format"]  # type: ignore[arg-type]
    base = wheel.definition(f"{PACKAGE}.base_loader", "BaseModelLoader")
    abstract = {
        name: parameters(node)
        for name, node in methods(base).items()  # type: ignore[arg-type]
        if any(isinstance(one, ast.Name) and one.id == "abstractmethod" for one in node.decorator_list)
    }
    assert abstract == {"download_model": ["self", "model_config"], "load_weights": ["self", "model", "model_config"]}
    default = wheel.definition(f"{PACKAGE}.default_loader", "DefaultModelLoader")
    assert isinstance(default, ast.ClassDef)
    own = methods(default)
    assert [ast.unparse(one) for one in default.bases] == ["BaseModelLoader"]
    assert parameters(own["__init__"]) == ["self", "load_config"]
    assert parameters(own["_get_weights_iterator"]) == ["self", "source"]
    assert "_get_weights_iterator" in set(attributes(own["get_all_weights"]))
    assert {"get_all_weights", "_init_ep_weight_filter"} <= set(attributes(own["load_weights"]))
    assert "local_expert_ids" in set(attributes(own["_init_ep_weight_filter"]))
    assert set(fields(inner_class(default, "Source"))) == {
        "model_or_path", "revision", "subfolder", "prefix", "fall_back_to_pt", "allow_patterns_overrides",
        "is_unused_weight",
    }  # fmt: skip
    assert set(fields(wheel.definition("vllm.config.load", "LoadConfig"))) == {  # type: ignore[arg-type]
        "load_format", "download_dir", "safetensors_load_strategy", "safetensors_prefetch_num_threads",
        "safetensors_prefetch_block_size", "model_loader_extra_config", "device", "ignore_patterns",
        "use_tqdm_on_load", "pt_load_map_location",
    }  # fmt: skip
    skip = wheel.definition(f"{PACKAGE}.ep_weight_filter", "should_skip_weight")
    assert parameters(skip) == ["weight_name", "local_expert_ids"]  # type: ignore[arg-type]


def test_the_plugin_is_light() -> None:
    """vLLM imports it in each of its processes: it brings neither numpy nor httpx nor torch."""
    code = "import sys, asyncfetch.adapters.vllm; print(*({'httpx', 'numpy', 'torch', 'vllm'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == ""


# -- loads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"storage": "memory", "early": True, "connections": 4}], ids=str)
def test_weights_come_verified_under_vllms_names(
    loader: Any, hub: Server, tmp_path: Path, extra: dict[str, Any]
) -> None:
    """All tensors, and those of a second source with its prefix; on the disk, or in memory alone."""
    made = loader(load_config(tmp_path, hub, extra=extra))
    second = type(made).Source("org/model", None, prefix="second.", is_unused_weight=lambda name: name != "mtp.weight")
    model = Model(secondary_weights=[second], names=["embed.weight", "second.mtp.weight"])
    made.load_weights(model, model_config())
    expected = tensors() | {"second.mtp.weight": tensors()["mtp.weight"]}
    assert {name: one.numpy().tolist() for name, one in model.given.items()} == {
        name: array.tolist() for name, array in expected.items()
    }
    assert 0 < made.counter_before_loading_weights < made.counter_after_loading_weights  # from which vLLM logs a time
    assert downloaded(tmp_path) == (0 if extra else len(tensors()))


def test_a_weight_that_vllm_misses_is_its_error(loader: Any, hub: Server, tmp_path: Path) -> None:
    """vLLM's own count of what was loaded stays."""
    with pytest.raises(ValueError, match=r"not initialized from checkpoint: \{'head\.weight'\}"):
        loader(load_config(tmp_path, hub)).load_weights(Model(names=["head.weight"]), model_config())
    made = loader(load_config(tmp_path, hub, extra={"enable_weights_track": False}))
    made.load_weights(Model(names=["head.weight"]), model_config())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_fetches_its_experts_alone(loader: Any, hub: Server, tmp_path: Path, rank: int) -> None:
    """With expert parallelism, and without what the model says that it does not use, nothing else is downloaded."""
    made = loader(load_config(tmp_path, hub), EXPERT_PARALLEL | {"rank": rank})
    model = Model(is_unused_checkpoint_weight=lambda name: name.startswith("mtp"))
    made.load_weights(model, model_config())
    theirs = {f"layers.{layer}.experts.{2 * rank + one}.w.weight" for layer in range(2) for one in range(2)}
    assert model.given.keys() == theirs | {"embed.weight", "layers.0.experts.0.w.scale"}
    assert downloaded(tmp_path) == len(model.given)


def test_download_model(loader: Any, hub: Server, tmp_path: Path) -> None:
    """It brings the checkpoint, so that the load needs no network; in memory there is nothing to bring."""
    loader(load_config(tmp_path / "memory", hub, extra={"storage": "memory"})).download_model(model_config())
    assert not (tmp_path / "memory").exists()
    loader(load_config(tmp_path, hub)).download_model(model_config())
    model = Model()
    loader(load_config(tmp_path, extra={"offline": True})).load_weights(model, model_config())
    assert model.given.keys() == tensors().keys()


def test_a_wrong_hash_stops_the_start(loader: Any, hub: Server, tmp_path: Path) -> None:
    """The error is ours, and comes out of vLLM's load as it is."""
    loader(load_config(tmp_path, hub)).download_model(model_config())
    blob = max(tmp_path.rglob("blobs/*"), key=lambda path: path.stat().st_size if len(path.name) == 64 else 0)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(ChecksumMismatchError, match=r"model-.*: expected sha256"):
        loader(load_config(tmp_path, extra={"offline": True, "verify": "always"})).load_weights(Model(), model_config())


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"extra": {"storrage": "disk"}}, r"no option 'storrage'\. Is it 'storage'\?"),
        ({"extra": {"num_threads": 3}}, r"no option 'num_threads'\. There are attempts, "),
        ({"extra": {"storage": "tape"}}, r'storage= takes "disk" or "memory", not \'tape\''),
        ({"extra": {"memory_limit": -1}}, "memory_limit= takes a positive number"),
        ({"extra": {"connections": 0}}, "connections"),
        ({"model_loader_extra_config": "x"}, "is a str and no dict"),
        ({"safetensors_load_strategy": "eager"}, "no use for safetensors_load_strategy='eager'"),
        ({"pt_load_map_location": "cuda"}, "no use for pt_load_map_location='cuda'"),
    ],
    ids=str,
)
def test_options_are_checked(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    """Before anything is asked for."""
    with pytest.raises(SourceError, match=says):
        adapter.Options.of(load_config(tmp_path, **changed))


def test_options_that_vllm_does_not_set(tmp_path: Path) -> None:
    """Its defaults, and "lazy", which is what a map is, are fine; a policy is that of the environment but for them."""
    options = adapter.Options.of(
        load_config(tmp_path, safetensors_load_strategy="lazy", extra={"attempts": 9}, ignore_patterns="*.bin")
    )
    assert options.policy is not None
    assert (options.policy.attempts, options.ignored) == (9, ["*.bin"])
    assert adapter.Options.of(load_config(tmp_path)).policy is None


@pytest.mark.parametrize(
    ("config", "model", "says"),
    [
        ({"ignore_patterns": ["*-00002-of-*"]}, {}, r"ignore_patterns leaves out model-00002-of"),
        ({}, {"allow_patterns_overrides": ["*.pt"]}, r"wants the files \*\.pt alone, not model-00001-of"),
    ],
    ids=str,
)
def test_patterns_that_would_change_the_checkpoint(
    loader: Any, hub: Server, tmp_path: Path, config: dict[str, Any], model: dict[str, Any], says: str
) -> None:
    """Refused before a shard is downloaded, with a way out."""
    with pytest.raises(SourceError, match=f"{says}.*--load-format auto"):
        loader(load_config(tmp_path, hub, **config)).load_weights(Model(**model), model_config())
    assert downloaded(tmp_path) == 0


def test_what_is_read_from_files_alone(loader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao's weights, and models of ModelScope."""
    with pytest.raises(SourceError, match="torchao"):
        loader(load_config(tmp_path)).load_weights(Model(), model_config(quantization="torchao"))
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    with pytest.raises(SourceError, match="ModelScope"):
        loader(load_config(tmp_path))
