"""What a library would refuse only when the weights are here, or not at all: asked for before they are downloaded."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..api.beside import Beside
from ..errors import SourceError
from ..format.hostile import short_repr
from ..tensors.scaled import scaled_in
from ..tensors.scaling import copied_alone
from ..words import fit_to_show

__all__ = ["check_arguments", "check_quantisation", "refuse_scaled", "says"]


@contextmanager
def says(source: str) -> Iterator[None]:
    """What the library refuses in the block, as a SourceError with its words."""
    try:
        yield
    except (ImportError, OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        raise SourceError(f"transformers refuses {source}: {fit_to_show(str(error), 400)}") from error


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
        merged = copy.deepcopy(asked if found is None else found)
        if found is not None:
            merged = AutoHfQuantizer.merge_quantization_configs(merged, copy.deepcopy(asked))
        quantizer = AutoHfQuantizer.from_config(merged, pre_quantized=found is not None)
        quantizer.validate_environment(device_map=device_map, weights_only=True)
    return found is not None
