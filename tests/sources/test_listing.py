"""Which files of a source are wanted: by what they hold, by name, by glob."""

from __future__ import annotations

import pytest

from asyncfetch.errors import EntryNotFoundError, SelectionError
from asyncfetch.sources.listing import Chosen, chosen_of, companions_of, holds_weights

BESIDE = [
    ".gitattributes", "LICENSE", "README.md", "config.json", "generation_config.json", "modules.json",
    "sentence_bert_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    "merges.txt", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "modeling_own.py",
    "additional_chat_templates/tool.jinja", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
    "original/params.json", "original/tokenizer.model", "unet/config.json", "assets/picture.png", "adapter_config.json",
]  # fmt: skip
WEIGHTS = [
    "model.safetensors", "model-00001-of-00002.safetensors", "model.fp16.safetensors", "consolidated.safetensors",
    "model.safetensors.index.json", "model.safetensors.index.fp16.json", "pytorch_model.bin.index.json",
    "pytorch_model.bin", "pytorch_model-00001-of-00009.bin", "2_Dense/pytorch_model.bin", "model.ckpt", "weights.PT",
    "consolidated.00.pth", "original/consolidated.00.pth", "training_args.bin", "optimizer.pt", "tf_model.h5",
    "flax_model.msgpack", "flax_model-00001-of-00002.msgpack", "rust_model.ot", "onnx/model.onnx",
    "onnx/model.onnx_data", "onnx/model.onnx_data_1", "onnx/model.onnx.data", "openvino/openvino_model.bin",
    "model-q4_k_m.gguf", "model.gguf.part1", "coreml/model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
    "coreml/model.mlpackage/Manifest.json", "saved_model/variables/variables.index", "model.tflite", "model.nemo",
    "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors.index.json", "all.tar.gz",
]  # fmt: skip


def test_companions() -> None:
    """What a loader may want comes, weights of whatever kind do not; a numbered module has its own."""
    assert companions_of([*BESIDE, *WEIGHTS], "") == BESIDE
    assert companions_of([*BESIDE, *WEIGHTS], "unet") == ["unet/config.json"]
    assert companions_of(BESIDE, "", ["*.png", "original/", "LICENSE"]) == [
        path for path in BESIDE if not path.startswith("original/") and path not in ("LICENSE", "assets/picture.png")
    ]


@pytest.mark.parametrize("path", WEIGHTS)
def test_weights(path: str) -> None:
    assert holds_weights(path)


def test_a_module_of_pickles_alone() -> None:
    """Where a module has nothing else, the pickle is what its loader reads."""
    paths = ["2_Dense/config.json", "2_Dense/pytorch_model.bin", "sub/3_Own/pytorch_model.bin"]
    assert companions_of(paths, "") == paths[:2]
    assert companions_of(paths, "sub") == paths[2:]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (Chosen(True, include=("*",)), ["a.json", "b.bin", "x/c.json", "x/y/d.txt"]),
        (Chosen(True, include=("*.json",)), ["a.json", "x/c.json"]),
        (Chosen(True, include=("x/",)), ["x/c.json", "x/y/d.txt"]),
        (Chosen(True, include=("x/", "?.bin"), exclude=("*/d.*",)), ["b.bin", "x/c.json"]),
        (Chosen(True, names=("x/c.json", "a.json")), ["a.json", "x/c.json"]),
        (Chosen(True, names=("b.bin",), include=("x/*",), exclude=("x/y/",)), ["b.bin", "x/c.json"]),
        (Chosen(True, exclude=("*.json",)), ["b.bin", "x/y/d.txt"]),
        (Chosen(True, include=("[ab].*",)), ["a.json", "b.bin"]),
    ],
)
def test_chosen(chosen: Chosen, expected: list[str]) -> None:
    assert chosen_of(["a.json", "b.bin", "x/c.json", "x/y/d.txt"], chosen, "org/model") == expected


def test_nothing_is_called_so() -> None:
    """The error names what is near, and what is there."""
    paths = ["config.json", "tokenizer.json", *(f"deep/er/{n}.txt" for n in range(30))]
    with pytest.raises(EntryNotFoundError) as caught:
        chosen_of(paths, Chosen(True, names=("confg.json",)), "org/model")
    assert str(caught.value).startswith(
        "org/model has no file 'confg.json'. It has config.json, tokenizer.json, deep/er"
    )
    assert str(caught.value).endswith("and 24 more.")
    with pytest.raises(EntryNotFoundError, match=r"no file '\*\.gguf'. It has config.json, "):
        chosen_of(paths, Chosen(True, include=("*.json", "*.gguf")), "org/model")
    with pytest.raises(EntryNotFoundError, match="It is empty"):
        chosen_of([], Chosen(True, names=("a",)), "org/model")
    with pytest.raises(SelectionError, match="leaves no file"):
        chosen_of(paths, Chosen(True, include=("config*",), exclude=("*.json",)), "org/model")
