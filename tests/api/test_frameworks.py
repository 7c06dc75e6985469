"""The real model in the frameworks that people run it in, where they are installed: transformers, and JAX."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import asyncfetch
from asyncfetch.server import Server

from ..kit.minilm import minilm_root, source_tensors  # noqa: F401

F32, BF16 = "demo/all-MiniLM-L6-v2", "demo/all-MiniLM-L6-v2-bf16"
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Sharded checkpoints arrive in any order, tensor by tensor.",
]
POSITIONS = "embeddings.position_ids"  # in the file, and computed by the transformers of today


@pytest.fixture(scope="module")
def hub(minilm_root: Path) -> Iterator[Server]:  # noqa: F811
    with Server(minilm_root) as server:
        yield server


def embeddings(transformers: Any, torch: Any, model: Any, folder: Path) -> Any:
    """One unit vector a sentence: the mean over the tokens, as sentence-transformers pools this model."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model.eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.mark.filterwarnings("default")  # what these libraries warn of is theirs
@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_transformers(hub: Server, minilm_root: Path, tmp_path: Path, storage: str) -> None:  # noqa: F811
    """A BertModel on the meta device, filled from shards over HTTP, embeds sentences bit by bit as its reference."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = minilm_root / F32
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        bare = transformers.BertModel(config)
    with pytest.raises(asyncfetch.ModelMismatchError, match=r"1 would have no values.*\(embeddings\.token_type_ids\)"):
        asyncfetch.load_into(bare, F32, endpoint=hub.url, cache_dir=tmp_path, storage=storage)
    with asyncfetch.models.parameters_on_meta():
        model = transformers.AutoModel.from_config(config)
    report = asyncfetch.load_into(model, F32, endpoint=hub.url, cache_dir=tmp_path, storage=storage)
    assert len(report.loaded) == len(source_tensors())
    assert POSITIONS in report.loaded
    assert not report.missing

    reference = transformers.BertModel.from_pretrained(folder)
    ours, theirs = (embeddings(transformers, torch, one, folder) for one in (model, reference))
    assert ours.shape == (2, config.hidden_size)
    assert torch.equal(ours, theirs)
    assert (ours * theirs).sum(-1).numpy() == pytest.approx(1.0, abs=1e-6)
    assert abs(float(ours[0] @ ours[1])) < 0.5, "two sentences about different things are told apart"


@pytest.mark.filterwarnings("default")
def test_transformers_in_place(hub: Server, minilm_root: Path) -> None:  # noqa: F811
    """BF16 shards copied, tensor by tensor, into a model with random F32 weights: cosine above 0.999."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = minilm_root / F32
    model = transformers.BertModel(transformers.AutoConfig.from_pretrained(folder))
    asyncfetch.load_into(
        model, BF16, endpoint=hub.url, storage="memory", assign=False, select=lambda name: name != POSITIONS
    )
    assert model.embeddings.word_embeddings.weight.dtype == torch.float32
    reference = transformers.BertModel.from_pretrained(folder)
    ours, theirs = (embeddings(transformers, torch, one, folder) for one in (model, reference))
    assert bool(((ours * theirs).sum(-1) > 0.999).all())


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("early", [False, True])
def test_jax(hub: Server, early: bool) -> None:
    """Each streamed array becomes a device array without a copy, BF16 included; unflatten makes the pytree."""
    jax = pytest.importorskip("jax")
    leaves: dict[str, Any] = {}
    shared = 0
    with asyncfetch.stream(BF16, endpoint=hub.url, storage="memory", early=early) as tensors:
        for name, array in tensors:
            if array.dtype == np.int64:  # JAX narrows these by default
                continue
            leaves[name] = jax.device_put(array, may_alias=True)
            shared += leaves[name].unsafe_buffer_pointer() == array.ctypes.data
    assert shared == len(leaves)
    params = asyncfetch.unflatten(leaves)
    weight = params["encoder"]["layer"]["0"]["attention"]["self"]["query"]["weight"]
    source = source_tensors("BF16")
    assert weight.dtype == ml_dtypes.bfloat16
    assert np.array_equal(np.asarray(weight), source["encoder.layer.0.attention.self.query.weight"])
    product = jax.jit(lambda tree, x: x @ tree["pooler"]["dense"]["weight"].T)(params, np.ones((1, 384), np.float32))
    expected = source["pooler.dense.weight"].astype(np.float32).sum(1)
    assert np.asarray(product)[0] == pytest.approx(expected, rel=1e-2, abs=1e-3)
