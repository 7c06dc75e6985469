"""load_pretrained: which class, which arguments, what is refused before the weights come, and what is told."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncfetch
from asyncfetch.errors import AsyncfetchError, CorruptError, ModelMismatchError, SourceError
from asyncfetch.server import Server

from ..kit.minilm import minilm_root  # noqa: F401
from ..kit.tiny_models import outputs, save_tiny, save_unet

# What these libraries warn of is theirs; and to import them takes a while on a busy machine.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="NOT TESTED: models of transformers. Install asyncfetch[transformers]")


@pytest.fixture(scope="module")
def transformers(torch: Any) -> Any:
    return pytest.importorskip("transformers")


class Models:
    """A folder of repositories, served."""

    def __init__(self, root: Path, server: Server) -> None:
        self.root, self.server = root, server

    def __getitem__(self, name: str) -> Path:
        return self.root / "org" / name

    def load(self, name: str, cache: Path, **options: Any) -> Any:
        return asyncfetch.load_pretrained(f"org/{name}", endpoint=self.server.url, cache_dir=cache, **options)

    def brought(self, name: str, cache: Path) -> list[str]:
        """The safetensors files of a repository of which anything is in the cache."""
        blobs = {path.name.partition(".")[0] for path in cache.rglob("blobs/*")}
        files = self[name].rglob("*.safetensors")
        return [file.name for file in files if hashlib.sha256(file.read_bytes()).hexdigest() in blobs]


@pytest.fixture(scope="module")
def models(torch: Any, transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    root = tmp_path_factory.mktemp("models")
    for family in ("bert", "llama", "llama-tied-bf16"):
        save_tiny(transformers, torch, family, root / "org" / family)
    with Server(root) as server:
        yield Models(root, server)


def copy_of(models: Models, name: str, **files: Any) -> str:
    """A repository with the files of another one, and changed JSON files (None: none)."""
    new = f"{name}-{hashlib.sha256(repr(files).encode()).hexdigest()[:8]}"
    models[new].mkdir(exist_ok=True)
    for file in models[name].iterdir():
        (models[new] / file.name).write_bytes(file.read_bytes())
    for stem, content in files.items():
        path = models[new] / f"{stem}.json"
        if content is None:
            path.unlink()
        else:
            old = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(content if isinstance(content, str) else json.dumps(old | content))
    return new


def same(torch: Any, one: Any, other: Any) -> bool:
    """Whether two models have the same tensors, of the same dtypes, and the same config."""
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert str(one.config) == str(other.config)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))


# -- the model ---------------------------------------------------------------------------------


def test_parameters_are_the_verified_bytes(torch: Any, models: Models, tmp_path: Path) -> None:
    """Every parameter of a tied BF16 model is on the memory of its files, which a write leaves as they were."""
    maps: list[tuple[int, int]] = []
    model = models.load("llama-tied-bf16", tmp_path)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(tmp_path) in line:
            start, _, stop = line.split()[0].partition("-")
            maps.append((int(start, 16), int(stop, 16)))
    parameters = list(model.parameters())
    assert all(any(start <= one.data_ptr() < stop for start, stop in maps) for one in parameters)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with torch.no_grad():
        for one in parameters:
            one.zero_()
    again = models.load("llama-tied-bf16", tmp_path, offline=True, verify="always")
    assert all(bool(one.any()) for one in again.parameters())


def test_minilm(torch: Any, transformers: Any, minilm_root: Path, tmp_path: Path) -> None:  # noqa: F811
    """A real model over HTTP, cold and offline, and the tokenizer beside it."""
    name = "demo/all-MiniLM-L6-v2"
    reference = transformers.BertModel.from_pretrained(minilm_root / name)
    with Server(minilm_root) as server:
        where = {"endpoint": server.url, "cache_dir": tmp_path}
        cold = asyncfetch.load_pretrained(name, **where)
        warm = asyncfetch.load_pretrained(name, offline=True, **where)
        snapshot = asyncfetch.download(name, offline=True, **where)
    assert same(torch, cold, reference)
    assert same(torch, warm, reference)
    assert cold.config.name_or_path == name
    tokens = transformers.AutoTokenizer.from_pretrained(snapshot.path)("verified", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(cold(**tokens).last_hidden_state, reference(**tokens).last_hidden_state)


ARGUMENTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # The class, and the arguments, which both libraries get.
    "dtype": ("llama", "LlamaForCausalLM", {"dtype": "float16"}),
    "auto": ("llama-tied-bf16", "AutoModelForCausalLM", {"dtype": "auto"}),
    "widened": ("llama-tied-bf16", "AutoModelForCausalLM", {"dtype": "float32"}),
    "body": ("llama", "AutoModel", {}),
    "base": ("llama", "LlamaModel", {}),
    "config": ("bert", "AutoModel", {"output_attentions": True, "attn_implementation": "eager"}),
    "of the class": ("bert", "BertModel", {"add_pooling_layer": False}),
    "head": ("bert", "BertForSequenceClassification", {"num_labels": 3}),
    "device": ("llama", "LlamaForCausalLM", {"device_map": "cpu"}),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_mean_what_they_mean_to_the_library(
    torch: Any, transformers: Any, models: Models, tmp_path: Path, case: str
) -> None:
    """The same class and arguments give the same tensors, config and generation config as from_pretrained(path)."""
    name, kind, arguments = ARGUMENTS[case]
    cls = getattr(transformers, kind)
    own = {key: value for key, value in arguments.items() if key in ("dtype", "device_map")}
    rest = {key: value for key, value in arguments.items() if key not in own}
    torch.manual_seed(3)
    reference = cls.from_pretrained(models[name], **arguments)
    torch.manual_seed(3)
    told: list[Any] = []
    model = models.load(
        name, tmp_path, cls=cls, model_kwargs=rest, strict=case != "head" and "missing", report=told.append, **own
    )
    assert type(model) is type(reference)
    assert same(torch, model, reference)
    assert getattr(model, "generation_config", None) == getattr(reference, "generation_config", None)
    assert model.config._attn_implementation == reference.config._attn_implementation
    warned = [event.message for event in told if isinstance(event, asyncfetch.events.Warned)]
    assert [("initialised anew" in text, "not used" in text) for text in warned] == {
        "head": [(True, False)],
        "body": [(False, True)],
        "base": [(False, True)],
        "of the class": [(False, True)],
    }.get(case, [])


def test_where_a_model_can_be(torch: Any, transformers: Any, models: Models, tmp_path: Path) -> None:
    """A folder; on the Hub a subfolder, a variant, a commit; a plain web server, by the folder and by the file."""
    kind = transformers.LlamaForCausalLM
    reference = kind.from_pretrained(models["llama"])
    reference.save_pretrained(models["several"] / "model", variant="fp16")
    reference.save_pretrained(models["single"])
    (models["single"] / "generation_config.json").write_text('{"max_new_tokens": 7}')
    found = [
        asyncfetch.load_pretrained(models["llama"]),
        models.load("several", tmp_path / "hub", subfolder="model", variant="fp16"),
    ]
    found.append(models.load("single", tmp_path / "hub"))
    commit = (tmp_path / "hub/models--org--single/refs/main").read_text()
    found.append(models.load(f"single@{commit}", tmp_path / "hub", offline=True))
    for file in ("", "model.safetensors"):
        url = f"{models.server.url}/org/single/resolve/main/{file}"
        told: list[Any] = []
        found.append(asyncfetch.load_pretrained(url, cache_dir=tmp_path / "web", report=told.append))
        assert sum(isinstance(event, asyncfetch.events.Finished) for event in told) == 1
    assert all(same(torch, model, reference) for model in found)
    assert [model.generation_config.max_new_tokens for model in found] == [None, None, 7, 7, 7, 7]


def test_weights_alone_are_no_model_offline(models: Models, tmp_path: Path) -> None:
    """Where the config was never fetched, that is what is told; once it was, no request is needed."""
    where = {"endpoint": models.server.url, "cache_dir": tmp_path}
    asyncfetch.download("org/llama", weights_only=True, **where)
    with pytest.raises(asyncfetch.OfflineError, match=r"config\.json of org/llama.* is not in the cache"):
        models.load("llama", tmp_path, offline=True)
    models.load("llama", tmp_path)
    assert models.load("llama", tmp_path, offline=True).config.vocab_size == 99


CODE = """
from transformers import BertConfig, BertModel
class OwnConfig(BertConfig):
    model_type = "own-bert"
class OwnModel(BertModel):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("cls", [None, "AutoModel"])
def test_code_of_the_repository(
    torch: Any, transformers: Any, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: str | None
) -> None:
    """It runs where the caller trusts it, from the commit of the weights; else it is refused, and no weights come."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    auto = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    name = copy_of(
        models, "bert", config={"auto_map": auto, "architectures": ["OwnModel"], "model_type": "own-bert", "x": cls}
    )
    (models[name] / "own.py").write_text(CODE)
    kind = getattr(transformers, cls) if cls else None
    with pytest.raises(SourceError, match=r"brings the code of its .*trust_remote_code=True"):
        models.load(name, tmp_path / "cache", cls=kind)
    assert models.brought(name, tmp_path / "cache") == []
    model = models.load(name, tmp_path / "cache", cls=kind, trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"
    assert torch.equal(outputs(torch, model), outputs(torch, transformers.BertModel.from_pretrained(models["bert"])))


def test_a_class_of_the_caller_needs_no_code(torch: Any, transformers: Any, models: Models, tmp_path: Path) -> None:
    """With a class of the library, code that lies elsewhere is not asked for; weights may be named that are these."""
    code = {"AutoConfig": "a/b--c.OwnConfig", "AutoModel": "a/b--c.OwnModel"}
    names = {"auto_map": code, "transformers_weights": "model.safetensors.index.json"}
    name = copy_of(models, "bert", config=names)
    model = models.load(name, tmp_path, cls=transformers.BertModel, trust_remote_code=True)
    assert torch.equal(outputs(torch, model), outputs(torch, transformers.BertModel.from_pretrained(models["bert"])))


@pytest.mark.anyio
async def test_several_at_once(torch: Any, models: Models, tmp_path: Path) -> None:
    """Models of different dtypes that are loaded together are as if each had been alone, and torch's default stays."""
    found: dict[str, Any] = {}

    async def load(name: str) -> None:
        where = {"endpoint": models.server.url, "cache_dir": tmp_path}
        found[name] = await asyncfetch.load_pretrained_async(f"org/{name}", **where)

    async with anyio.create_task_group() as group:
        for name in ("bert", "llama", "llama-tied-bf16"):
            group.start_soon(load, name)
    assert {name: {one.dtype for one in model.parameters()} for name, model in found.items()} == {
        "bert": {torch.float32},
        "llama": {torch.float32},
        "llama-tied-bf16": {torch.bfloat16},
    }
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.anyio
async def test_a_cancellation_waits_for_no_library(
    transformers: Any, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is cancelled while the library works is let go at once, and the next load waits for its end."""
    busy, end, ended = threading.Event(), threading.Event(), threading.Event()
    load = transformers.BertModel.from_pretrained

    def slow(*args: Any, **kwargs: Any) -> Any:
        busy.set()
        end.wait(10)
        ended.set()
        return load(*args, **kwargs)

    monkeypatch.setattr(transformers.BertModel, "from_pretrained", slow)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(asyncfetch.load_pretrained_async, models["bert"])
            await anyio.to_thread.run_sync(busy.wait)
            group.cancel_scope.cancel()
    assert not ended.is_set()
    monkeypatch.setattr(transformers.BertModel, "from_pretrained", load)
    async with anyio.create_task_group() as group:
        group.start_soon(asyncfetch.load_pretrained_async, models["llama"])
        end.set()
    assert not scope.cancelled_caught


# -- what is refused ---------------------------------------------------------------------------


def damaged(models: Models, change: Callable[[dict[str, str]], None]) -> str:
    """The Llama with another index."""
    index = json.loads((models["llama"] / "model.safetensors.index.json").read_text())
    change(index["weight_map"])
    return copy_of(models, "llama", **{"model.safetensors.index": {"weight_map": index["weight_map"]}})


def without_norm(weight_map: dict[str, str]) -> None:
    del weight_map["model.norm.weight"]


def only_norm(weight_map: dict[str, str]) -> None:
    for name in list(weight_map):
        if name != "model.norm.weight":
            del weight_map[name]


Case = tuple[Callable[[Models], str], dict[str, Any], type[AsyncfetchError], str]
REFUSED: dict[str, Case] = {
    "adapter alone": (
        lambda models: copy_of(models, "bert", config=None, adapter_config={"base_model_name_or_path": "org/base"}),
        {},
        SourceError,
        r"adapter of 'org/base', and no model",
    ),
    "adapter beside": (
        lambda models: copy_of(models, "bert", adapter_config={"peft_type": "LORA"}),
        {},
        SourceError,
        "an adapter beside its model",
    ),
    "pipeline": (
        lambda models: copy_of(models, "bert", config=None, model_index={"_class_name": "X"}),
        {},
        SourceError,
        r"pipeline of several models\. .*subfolder=",
    ),
    "no config": (lambda models: copy_of(models, "bert", config=None), {}, SourceError, r"no config\.json"),
    "no JSON": (lambda models: copy_of(models, "bert", config="{"), {}, CorruptError, "no JSON object"),
    "no class": (
        lambda models: copy_of(models, "bert", config={"architectures": None}),
        {},
        SourceError,
        "names no class. Pass one as cls=",
    ),
    "unknown class": (
        lambda models: copy_of(models, "bert", config={"architectures": ["NewModel"]}),
        {},
        SourceError,
        "has no model class 'NewModel'",
    ),
    "a function as the class": (
        lambda models: copy_of(models, "bert", config={"architectures": ["pipeline"]}),
        {},
        SourceError,
        "has no model class 'pipeline'",
    ),
    "code elsewhere": (
        lambda models: copy_of(
            models, "bert", config={"architectures": ["NewModel"], "auto_map": {"AutoModel": "a/b--c.NewModel"}}
        ),
        {"trust_remote_code": True},
        SourceError,
        "code of .* is in another repository: 'a/b--c.NewModel'",
    ),
    "named weights": (
        lambda models: copy_of(models, "bert", config={"transformers_weights": "other.safetensors"}),
        {},
        SourceError,
        r"names the file of its weights, 'other\.safetensors', not model\.safetensors\.index\.json",
    ),
    "unknown quantisation": (
        lambda models: copy_of(models, "bert", config={"quantization_config": {"quant_method": "zip"}}),
        {},
        SourceError,
        "quantised by 'zip', which transformers lacks",
    ),
    "quantisation without its package": (
        lambda models: copy_of(models, "bert", config={"quantization_config": {"quant_method": "aqlm"}}),
        {},
        SourceError,
        "transformers refuses org/bert-.*aqlm",
    ),
    "torchao": (
        lambda models: copy_of(models, "bert", config={"quantization_config": {"quant_method": "torchao"}}),
        {},
        SourceError,
        "weights of torchao",
    ),
    "missing": (
        lambda models: damaged(models, without_norm),
        {},
        ModelMismatchError,
        r"1 missing \(model\.norm\.weight\).* strict=False",
    ),
    "nothing fits": (
        lambda models: "llama",
        {"cls": "BertForMaskedLM", "strict": False},
        ModelMismatchError,
        "Nothing of the checkpoint is for BertForMaskedLM",
    ),
    "unexpected": (
        lambda models: "llama",
        {"cls": "LlamaModel", "strict": True},
        ModelMismatchError,
        r'1 unexpected \(lm_head\.weight\)\. strict="missing"',
    ),
    "other shapes": (
        lambda models: copy_of(models, "bert", config={"vocab_size": 98}),
        {},
        ModelMismatchError,
        r"word_embeddings\.weight is \(98, 32\) in the model and \(99, 32\) in the checkpoint.*ignore_mismatched_sizes",
    ),
    "no AutoClass for it": (
        lambda models: "bert",
        {"cls": "AutoModelForSpeechSeq2Seq"},
        SourceError,
        "AutoModelForSpeechSeq2Seq has no class for the BertConfig of org/bert",
    ),
    "a class for something else": (
        lambda models: "bert",
        {"cls": "BertTokenizer"},
        SourceError,
        "cls=BertTokenizer is no model class of transformers",
    ),
    "no model class": (lambda models: "bert", {"cls": dict}, SourceError, "cls=dict is no model class"),
    "unknown argument": (
        lambda models: "bert",
        {"model_kwargs": {"add_pooling_laier": False}},
        SourceError,
        "'add_pooling_laier', which neither the config nor BertModel takes. Is it 'add_pooling_layer'",
    ),
    "an argument of ours": (
        lambda models: "bert",
        {"model_kwargs": {"torch_dtype": "float16"}},
        SourceError,
        "'torch_dtype' does not go into model_kwargs=. Pass dtype= itself",
    ),
    "an argument without a meaning": (
        lambda models: "bert",
        {"model_kwargs": {"state_dict": {}}},
        SourceError,
        "model_kwargs= takes no 'state_dict'",
    ),
    "unknown dtype": (lambda models: "bert", {"dtype": "float33"}, SourceError, "not a dtype"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_before_the_weights_come(
    transformers: Any, models: Models, tmp_path: Path, case: str
) -> None:
    """Each is an error of ours that says what to do; of no shard is a byte in the cache."""
    make, options, kind, says = REFUSED[case]
    options = dict(options)
    if isinstance(options.get("cls"), str):
        options["cls"] = getattr(transformers, options["cls"])
    check_refused(models, make(models), tmp_path, options, kind, says)


def check_refused(
    models: Models, name: str, cache: Path, options: dict[str, Any], kind: type[AsyncfetchError], says: str
) -> None:
    """A repository is refused before its weights come, and as a folder, of which nothing is downloaded, likewise."""
    with pytest.raises(kind, match=says) as caught:
        models.load(name, cache, **options)
    assert type(caught.value) is kind
    assert models.brought(name, cache) == []
    with pytest.raises(kind, match=says.replace("org/", ".*")):
        asyncfetch.load_pretrained(models[name], **options)


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
NOT_MADE: dict[str, tuple[Callable[[Models], str], dict[str, Any], str]] = {
    "integers": (
        lambda models: "bert",
        {"dtype": "torch.uint8"},
        r"dtype=torch\.uint8 is none that a model",
    ),
    "eight bits": (
        lambda models: "bert",
        {"dtype": "float8_e5m2"},
        "dtype='float8_e5m2' is none that a model is made in. Give one such as bfloat16",
    ),
    "attention without its package": (
        lambda models: "bert",
        {"model_kwargs": {"attn_implementation": "flash_attention_3"}},
        "transformers refuses org/bert.*FlashAttention3",
    ),
    "unknown attention": (
        lambda models: "llama-tied-bf16",
        {"model_kwargs": {"attn_implementation": "sdpaa"}},
        'transformers refuses org/llama-tied-bf16.*"sdpaa"',
    ),
    "quantised, and unknown attention": (
        lambda models: copy_of(models, "llama", config={"quantization_config": FP8}),
        {"model_kwargs": {"attn_implementation": "egaer"}},
        'transformers refuses org/llama-.*"egaer"',
    ),
    "a config that makes no model": (
        lambda models: copy_of(models, "bert", config={"num_attention_heads": 7}),
        {},
        "transformers refuses org/bert-.*not a multiple of the number of attention heads",
    ),
    "no such activation": (
        lambda models: "bert",
        {"model_kwargs": {"hidden_act": "gelu_nwe"}},
        "transformers refuses org/bert.*KeyError: 'gelu_nwe'",
    ),
    "no device": (
        lambda models: "llama",
        {"device_map": "balancd"},
        'device_map=\'balancd\' cannot be used: .* one of "auto", "balanced"',
    ),
    "a device that is not here": (
        lambda models: "llama",
        {"device_map": {"model": "cpu", "lm_head": "cuda:63"}},
        "device_map='cuda:63' cannot be used",
    ),
    "an ordinal that is none": (
        lambda models: "bert",
        {"device_map": -2},
        "device_map= has -2, .* no device",
    ),
    "anything as a device": (
        lambda models: "bert",
        {"device_map": 0.5},
        "device_map= has 0.5, .* no device",
    ),
}


@pytest.mark.parametrize("case", NOT_MADE)
def test_what_the_library_makes_no_model_of_is_refused_before_the_weights_come(
    torch: Any, models: Models, tmp_path: Path, case: str
) -> None:
    """It needs no weights to say so: an attention, an activation, a device, a dtype that are not there."""
    make, options, says = NOT_MADE[case]
    if "device_map" in options:
        pytest.importorskip("accelerate")
    options = options | ({"dtype": torch.uint8} if options.get("dtype") == "torch.uint8" else {})
    check_refused(models, make(models), tmp_path, options, SourceError, says)


def test_what_a_rehearsal_cannot_know_is_not_refused(
    torch: Any, transformers: Any, models: Models, tmp_path: Path
) -> None:
    """A class that reads numbers when it is made, as the library lets it, and values when they are there."""

    class Reading(transformers.BertModel):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.rates = torch.linspace(0, 0.2, 5).tolist()

        def tie_weights(self, *args: Any, **options: Any) -> None:
            super().tie_weights(*args, **options)
            if hasattr(self, "rates"):
                self.total = self.embeddings.word_embeddings.weight.sum().item()

    model = models.load("bert", tmp_path, cls=Reading)
    assert len(model.rates) == 5
    assert model.total == model.embeddings.word_embeddings.weight.sum().item()
    reference = transformers.BertModel.from_pretrained(models["bert"]).state_dict()
    assert all(torch.equal(one, reference[name]) for name, one in model.state_dict().items())
    with pytest.raises(SourceError, match=r"transformers refuses org/bert: .*multiple"):
        models.load("bert", tmp_path / "new", cls=Reading, model_kwargs={"num_attention_heads": 3})
    assert models.brought("bert", tmp_path / "new") == []


def test_what_a_library_says_after_the_weights_came(transformers: Any, models: Models, tmp_path: Path) -> None:
    """It is an error of ours as well, with the library's words; a lack of memory is none, and comes as it is."""
    error: Exception = IndexError("layer 12")

    class Failing(transformers.BertModel):  # type: ignore[misc]
        def tie_weights(self, *args: Any, **options: Any) -> None:
            if not self.embeddings.word_embeddings.weight.is_meta:
                raise error
            super().tie_weights(*args, **options)

    with pytest.raises(SourceError, match=r"transformers refuses org/bert: IndexError: layer 12"):
        models.load("bert", tmp_path, cls=Failing)
    error = MemoryError()
    with pytest.raises(MemoryError):
        models.load("bert", tmp_path, cls=Failing)


def test_a_rehearsal_leaves_nothing_behind(
    torch: Any, models: Models, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No line, no bar and no random number of a load that was only rehearsed; the library still shows the real one."""
    heard: list[logging.LogRecord] = []
    listening = logging.Handler()
    listening.emit = heard.append  # type: ignore[method-assign]
    library = logging.getLogger("transformers")
    library.addHandler(listening)
    state = torch.random.get_rng_state()
    try:
        with pytest.raises(ModelMismatchError):
            models.load(damaged(models, only_norm), tmp_path)
    finally:
        library.removeHandler(listening)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [record.getMessage() for record in heard] == []
    said = capfd.readouterr().err
    assert ("LOAD REPORT" in said, "Loading weights" in said) == (False, False)
    models.load("llama", tmp_path)
    assert capfd.readouterr().err.count("Loading weights:   0%") == 1


def test_what_is_allowed_is_made_anew_and_told(torch: Any, transformers: Any, models: Models, tmp_path: Path) -> None:
    """strict=False and ignore_mismatched_sizes initialise as the library does, with the same random numbers."""
    told: list[Any] = []
    name = copy_of(models, "bert", config={"vocab_size": 98})
    wanted = {"ignore_mismatched_sizes": True}
    torch.manual_seed(5)
    reference = transformers.BertModel.from_pretrained(models[name], **wanted)
    torch.manual_seed(5)
    model = models.load(name, tmp_path, strict=False, model_kwargs=wanted, report=told.append)
    assert same(torch, model, reference)
    (warned,) = (event.message for event in told if isinstance(event, asyncfetch.events.Warned))
    assert warned == (
        "1 tensors of BertModel are not in the checkpoint and were initialised anew: embeddings.word_embeddings.weight"
    )


def test_scaled_weights(torch: Any, transformers: Any, models: Models, tmp_path: Path) -> None:
    """FP8 beside scales is what the library makes of it; where the config does not tell, it is refused."""
    from safetensors.torch import load_file, save_file

    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": 99}
    config = transformers.LlamaConfig(num_attention_heads=2, num_key_value_heads=2, **sizes)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(models["fp8"])
    state = load_file(models["fp8"] / "model.safetensors")
    for weight in [name for name in state if name.endswith("proj.weight")]:
        rows, columns = state[weight].shape
        state[weight] = (torch.randn(rows, columns) * 20).to(torch.float8_e4m3fn)
        state[f"{weight}_scale_inv"] = torch.rand(rows // 128, columns // 128) * 0.01 + 0.001
    save_file(state, models["fp8"] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"counts only times its scale .* The config does not tell"):
        models.load("fp8", tmp_path)
    assert models.brought("fp8", tmp_path) == []
    method = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    name = copy_of(models, "fp8", config={"quantization_config": method})
    reference = outputs(torch, transformers.LlamaForCausalLM.from_pretrained(models[name]))
    assert torch.equal(outputs(torch, models.load(name, tmp_path)), reference)


def test_diffusers(torch: Any, models: Models, tmp_path: Path) -> None:
    """A UNet in a pipeline, in shards and with arguments, is the library's own; names that lack are told first."""
    diffusers = pytest.importorskip("diffusers")
    from safetensors.torch import load_file, save_file

    folder = models["pipeline"] / "unet"
    kind = save_unet(diffusers, torch, folder, max_shard_size="10KB")
    (models["pipeline"] / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    for options in ({}, {"dtype": "bfloat16"}, {"cls": diffusers.AutoModel}, {"cls": kind}):
        own = {"torch_dtype": torch.bfloat16} if "dtype" in options else {}
        model = models.load("pipeline", tmp_path, subfolder="unet", **options)
        reference = kind.from_pretrained(folder, **own)
        assert type(model) is kind
        ours, theirs = model.state_dict(), reference.state_dict()
        assert all(ours[name].dtype == one.dtype and torch.equal(ours[name], one) for name, one in theirs.items())
    with pytest.raises(SourceError, match="from the disk"):
        models.load("pipeline", tmp_path / "memory", subfolder="unet", storage="memory")
    with pytest.raises(SourceError, match=r"'sample_sise', which neither .* Is it 'sample_size'"):
        models.load("pipeline", tmp_path, subfolder="unet", model_kwargs={"sample_sise": 4})
    for wrong, said in (
        ({"device_map": "atuo"}, "device_map='atuo' cannot be used"),
        ({"dtype": torch.int16}, r"dtype=torch\.int16 is none"),
        ({"model_kwargs": {"norm_num_groups": 3}}, "diffusers refuses org/pipeline"),
    ):
        with pytest.raises(SourceError, match=said):
            models.load("pipeline", tmp_path / "wrong", subfolder="unet", **wrong)
    assert models.brought("pipeline", tmp_path / "wrong") == []
    with pytest.raises(ModelMismatchError, match=r"conv_in\.weight is \(8, 4, 3, 3\) in the model"):
        asyncfetch.load_pretrained(folder, model_kwargs={"in_channels": 4})
    refused = models["scaled"]
    kind.from_pretrained(folder).save_pretrained(refused)
    file = refused / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["conv_in.weight"] = state["conv_in.weight"].to(torch.float8_e4m3fn)
    save_file(state | {"conv_in.weight_scale": torch.ones(())}, file)
    with pytest.raises(SourceError, match=r"'conv_in\.weight' .*counts only times its scale"):
        models.load("scaled", tmp_path)
    assert models.brought("scaled", tmp_path) == []
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["conv_in.weight"]
    index.write_text(json.dumps(content))
    with Server(models.root) as server, pytest.raises(ModelMismatchError, match=r"1 missing \(conv_in\.weight\)"):
        asyncfetch.load_pretrained("org/pipeline", endpoint=server.url, cache_dir=tmp_path / "new", subfolder="unet")
    assert models.brought("pipeline", tmp_path / "new") == []


@pytest.mark.heavy
def test_without_the_libraries(tmp_path: Path) -> None:
    """The error names the extra, and comes before anything is asked for."""
    for gone, extra in (("torch", "transformers"), ("transformers", "transformers"), ("diffusers", "diffusers")):
        config = '{"_class_name": "UNet2DModel"}' if gone == "diffusers" else '{"architectures": ["BertModel"]}'
        code = (
            "import sys, types, pathlib, asyncfetch\n"
            f"sys.modules[{gone!r}] = None\n"
            "if 'torch' not in sys.modules:\n"
            "    sys.modules['torch'] = types.ModuleType('torch')\n"
            "    sys.modules['torch'].__spec__ = sys.__spec__\n"
            f"pathlib.Path('config.json').write_text({config!r})\n"
            "pathlib.Path('model.safetensors').write_bytes(bytes([2, *[0] * 7]) + b'{}')\n"
            "try: asyncfetch.load_pretrained('.')\n"
            "except asyncfetch.SourceError as error: print(error)"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert run.stdout.strip() == f"{gone} is not installed. pip install 'asyncfetch[{extra}]'.", run.stderr
