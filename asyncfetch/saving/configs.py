"""What a config says of the weights beside it, brought up to date where they have changed. Pure."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

__all__ = ["CONFIG", "left_out", "updated"]

CONFIG = "config.json"
_QUANTIZED = ("quantization_config", "compression_config")
# How the quantisation of the weights is told in files of its own.
_QUANTIZED_FILES = frozenset({"hf_quant_config.json", "quantize_config.json", "quant_config.json"})
_DTYPES = ("float64", "float32", "float16", "bfloat16")


def left_out(name: str, *, dequantized: bool) -> bool:
    """Whether a file says nothing but how weights are quantised, which they are no more."""
    return dequantized and name in _QUANTIZED_FILES


def updated(raw: bytes, dtype: np.dtype[Any] | None, *, dequantized: bool) -> tuple[bytes, str]:
    """A config for weights that were cast to `dtype`, or dequantised; and what it could not be told, or "".

    `torch_dtype` and `dtype` are replaced where they are, also for parts of the model; what says how the weights were
    quantised is left out. What needs no change stays as it is, to the byte.
    """
    if dtype is None and not dequantized:
        return raw, ""
    target = np.dtype(np.float32) if dtype is None else dtype
    if target.name not in _DTYPES:
        return raw, f"{CONFIG} says what it said: no model is made of {target.name}"
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        return raw, f"{CONFIG} could not be read, and says what it said of the dtype"
    new = _changed(config, target.name, dequantized)
    if new == config:
        return raw, ""
    return json.dumps(new, indent=2, ensure_ascii=False).encode() + b"\n", ""


def _changed(config: dict[str, Any], dtype: str, dequantized: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in _QUANTIZED:
            if not dequantized:
                found[key] = value
        elif isinstance(value, dict):
            found[key] = _changed(value, dtype, dequantized)
        elif key in ("torch_dtype", "dtype") and isinstance(value, str) and value.removeprefix("torch.") in _DTYPES:
            found[key] = f"torch.{dtype}" if value.startswith("torch.") else dtype
        else:
            found[key] = value
    return found
