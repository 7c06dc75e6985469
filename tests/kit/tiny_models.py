"""Tiny random models of transformers and diffusers, saved as their libraries save them, and what these compute."""

from __future__ import annotations

import copy
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

_GROUPED = _SMALL | {"num_key_value_heads": 1}
_MOE = _GROUPED | {"head_dim": 16, "num_experts_per_tok": 2}
_WHISPER = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 99,
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_DEEPSEEK = _SMALL | {
    "num_key_value_heads": 2,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
}
_UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}

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
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _SMALL),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", _WHISPER),
    "vit": ("ViTForImageClassification", "ViTConfig", _VIT | {"image_size": 16, "patch_size": 8}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", _GROUPED | {"num_local_experts": 4}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", _MOE | {"moe_intermediate_size": 32, "num_experts": 4}),
    "deepseek-v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", _DEEPSEEK),
    "gpt-oss": ("GptOssForCausalLM", "GptOssConfig", _MOE | {"num_local_experts": 4, "sliding_window": 8}),
}


def save_tiny(transformers: Any, torch: Any, family: str, folder: Path) -> Any:
    """Write a random model of `family` into `folder`, in shards; returns its class."""
    name, config_name, arguments = FAMILIES[family]
    torch.manual_seed(sum(map(ord, family)))
    config = getattr(transformers, config_name)(**arguments)
    kind = getattr(transformers, name)
    model = _shaken(torch, kind(config))
    model.to(config.dtype or torch.float32).save_pretrained(folder, max_shard_size="30KB")
    return kind


def save_unet(diffusers: Any, torch: Any, folder: Path, **options: Any) -> Any:
    """Write a random UNet into `folder`; returns its class."""
    torch.manual_seed(7)
    _shaken(torch, diffusers.UNet2DModel(**_UNET)).save_pretrained(folder, **options)
    return diffusers.UNet2DModel


def _shaken(torch: Any, model: Any) -> Any:
    """`model` with other values everywhere: biases and norms begin as zeros and ones, which hide what is not loaded."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def outputs(torch: Any, model: Any) -> Any:
    """What a model says of a few tokens, of a sound or of a picture.

    A copy of it says so, whose weights lie where torch puts them: what some processors add up depends on that.
    """
    ids, wave = torch.arange(3, 12)[None], torch.linspace(-1, 1, 8 * 32)
    name = getattr(model, "main_input_name", "sample")
    picture = {"pixel_values": torch.linspace(-1, 1, 3 * 256).view(1, 3, 16, 16)}
    inputs = {"input_ids": {"input_ids": ids}, "input_features": {"input_features": wave.view(1, 8, 32)}}
    inputs |= {"pixel_values": picture, "sample": {"sample": wave[:192].view(1, 3, 8, 8), "timestep": 3}}
    arguments = inputs[name] | (
        {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
    )
    with torch.no_grad():
        said = copy.deepcopy(model).eval()(**arguments)
    if "sample" in said:
        return said.sample
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
