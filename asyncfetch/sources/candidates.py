"""The names under which a checkpoint may lie in a folder."""

from __future__ import annotations

import re

from ..errors import SourceError

__all__ = ["candidates", "is_index_name"]

# Tried after the names that every tool writes; a repository that has none of them is an error
# anyway. Diffusers components, Mistral's own releases, PEFT adapters.
_OTHER_NAMES = ("diffusion_pytorch_model", "consolidated", "adapter_model")


def is_index_name(name: str) -> bool:
    """Whether a file name is that of an index, variants included: `*.index*.json`."""
    return re.search(r"\.index(\.[\w\-]+)?\.json$", name) is not None


def candidates(variant: str | None) -> list[str]:
    """The file names to try in a folder, in order: the index before any single file.

    Tools spell the index of a variant in three ways; all are tried
    (https://huggingface.co/docs/diffusers/using-diffusers/loading#checkpoint-variants).
    """
    if variant is None:
        names = [
            "model.safetensors.index.json",
            "model.safetensors",
            "pytorch_model.safetensors",
            "model-00001-of-00001.safetensors",
        ]
        for base in _OTHER_NAMES:
            names += [f"{base}.safetensors.index.json", f"{base}.safetensors"]
        return names
    if not re.fullmatch(r"[\w\-]{1,64}", variant, re.ASCII):
        raise SourceError(f"{variant!r} is not a variant such as 'fp16'.")
    names = [
        *_variant_indexes("model", variant),
        f"model.{variant}.safetensors",
        f"pytorch_model.{variant}.safetensors",
        f"model.{variant}-00001-of-00001.safetensors",
    ]
    for base in _OTHER_NAMES[:1]:
        names += [*_variant_indexes(base, variant), f"{base}.{variant}.safetensors"]
    return names


def _variant_indexes(base: str, variant: str) -> list[str]:
    return [
        f"{base}.safetensors.index.{variant}.json",
        f"{base}.safetensors.{variant}.index.json",
        f"{base}.{variant}.safetensors.index.json",
    ]
