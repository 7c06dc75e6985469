"""Tiny random models of transformers, saved as their library saves them, and what it computes with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}
_T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 99}

# The class that was saved, its configuration, and the class that AutoClasses make of that.
FAMILIES: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", _SMALL),
    "bert-mlm": ("BertForMaskedLM", "BertConfig", _SMALL),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _SMALL | {"num_key_value_heads": 1}),
    "llama-tied-bf16": (
        "LlamaForCausalLM",
        "LlamaConfig",
        _SMALL | {"num_key_value_heads": 1, "tie_word_embeddings": True, "dtype": "bfloat16"},
    ),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _SMALL | {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5 | {"decoder_start_token_id": 0}),
}


def save_tiny(transformers: Any, torch: Any, family: str, folder: Path) -> Any:
    """Write a random model of `family` into `folder`, in shards; returns its class."""
    name, config_name, arguments = FAMILIES[family]
    torch.manual_seed(sum(map(ord, family)))
    config = getattr(transformers, config_name)(**arguments)
    kind = getattr(transformers, name)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms begin as zeros and ones, which hide what is not loaded
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(config.dtype or torch.float32).save_pretrained(folder, max_shard_size="30KB")
    return kind


def outputs(torch: Any, model: Any) -> Any:
    """What a model says of a few tokens."""
    ids = torch.arange(3, 12)[None]
    arguments = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    with torch.no_grad():
        said = model.eval()(**arguments)
    return said.logits if "logits" in said else said.last_hidden_state


def builders(torch: Any) -> dict[str, Callable[[Any, Any], Any]]:
    """Ways in which users make a model from a class and its configuration."""
    import asyncfetch

    def on_meta(kind: Any, config: Any) -> Any:
        with asyncfetch.models.parameters_on_meta():
            return kind._from_config(config)

    def all_on_meta(kind: Any, config: Any) -> Any:
        with torch.device("meta"):
            return kind._from_config(config)

    return {"parameters_on_meta": on_meta, "real": lambda kind, config: kind._from_config(config), "meta": all_on_meta}
