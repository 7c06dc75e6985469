"""What a library would refuse only when the weights are here, or not at all: asked for before they are downloaded."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..api.beside import Beside
from ..errors import AsyncfetchError, SourceError
from ..format.hostile import short_repr
from ..models.device import check_device
from ..models.torch_tensors import import_torch
from ..tensors.scaled import scaled_in
from ..tensors.scaling import copied_alone
from ..words import fit_to_show
from .asked import is_installed

__all__ = ["check_arguments", "check_device_map", "check_quantisation", "merged_quantisation", "refuse_scaled", "says"]

# What says in a sentence what it is about; others tell no more than a key.
_SENTENCES = (ImportError, OSError, ValueError, TypeError, AttributeError, RuntimeError)
_SPREADS = frozenset({"auto", "balanced", "balanced_low_0", "sequential"})
_WAYS = ", ".join(f'"{way}"' for way in sorted(_SPREADS))
_NO_DEVICES = frozenset({"disk", "meta"})


@contextmanager
def says(source: str, library: str = "transformers") -> Iterator[None]:
    """What the library refuses in the block, as a SourceError with its words. A lack of memory is no refusal."""
    try:
        yield
    except (AsyncfetchError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, import_torch().cuda.OutOfMemoryError):
            raise
        words = str(error) if isinstance(error, _SENTENCES) and str(error) else f"{type(error).__name__}: {error}"
        raise SourceError(f"{library} refuses {source}: {fit_to_show(words, 400)}") from error


def check_device_map(device_map: object) -> None:
    """Raises SourceError for a device_map= that is none, and for a device in it that cannot be used."""
    if device_map is None:
        return
    if not is_installed("accelerate"):
        raise SourceError("device_map= needs accelerate, which is not installed.", hint="pip install accelerate.")
    if isinstance(device_map, str) and device_map in _SPREADS:
        return
    import torch

    for device in device_map.values() if isinstance(device_map, Mapping) else (device_map,):
        name = device.type if isinstance(device, torch.device) else device
        if isinstance(name, str) and name in _NO_DEVICES:
            continue
        if not isinstance(device, str | int | torch.device) or (isinstance(device, int) and device < 0):
            raise SourceError(
                f"device_map= has {short_repr(device)}, which is no device.",
                hint='Give "auto", a device such as "cuda:0" or "cpu", or one for each module by name.',
            )
        check_device(device, option="device_map", hint=f"Give a device that is here, or one of {_WAYS}.")


def check_arguments(kind: Any, extra: Mapping[str, Any]) -> None:
    """Raises SourceError for an argument that neither the config nor the class has."""
    parameters = inspect.signature(kind.__init__).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return
    for name in extra:
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, 1)
            raise SourceError(
                f"model_kwargs= has {short_repr(name)}, which neither the config nor {kind.__name__} takes.",
                hint=f"Is it {near[0]!r}?" if near else None,
            )


def refuse_scaled(beside: Beside) -> None:
    """Raises SourceError for weights that count only times a scale, of which the config says nothing."""
    for found in scaled_in(beside.located, beside.located.wanted.weight_map):
        error = copied_alone(found)
        known = " load(dequantize=True) gives their numbers." if found.understood else ""
        error.hint = f"The config does not tell how they are quantised.{known}"
        raise error


def check_quantisation(config: Any, asked: Any, device_map: object, source: str) -> bool:
    """Whether the weights are quantised, as the config says.

    The library looks whether it can make what the config or the caller says of them. Raises SourceError: for a way
    that it does not know, a package or a device that it lacks, and for torchao, whose weights need what is written
    beside them in their files.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        found = getattr(config.get_text_config(decoder=True), "quantization_config", None)
    if found is None and asked is None:
        return False
    from transformers.quantizers import AutoHfQuantizer

    if found is not None:
        method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
        if str(getattr(method, "value", method)) == "torchao":
            raise SourceError(
                f"{source} has weights of torchao, which it reads from their files alone.",
                hint="Give asyncfetch.download(source).path to from_pretrained.",
            )
        if not AutoHfQuantizer.supports_quant_method(copy.deepcopy(found)):
            raise SourceError(f"{source} has weights quantised by {short_repr(method)}, which transformers lacks.")
    with says(source):
        quantizer = AutoHfQuantizer.from_config(merged_quantisation(found, asked), pre_quantized=found is not None)
        quantizer.validate_environment(device_map=device_map, weights_only=True)
    return found is not None


def merged_quantisation(found: Any, asked: Any) -> Any:
    """What the config of a model says of its quantisation, with what the caller does, as the library merges them."""
    from transformers.quantizers import AutoHfQuantizer

    if found is None:
        return copy.deepcopy(asked)
    return AutoHfQuantizer.merge_quantization_configs(copy.deepcopy(found), copy.deepcopy(asked))
