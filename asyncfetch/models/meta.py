"""Models whose parameters take no memory until a checkpoint fills them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from .torch_tensors import import_torch

__all__ = ["parameters_on_meta"]

# The meta parameter of each real one, so that what is tied stays tied; None outside of the context.
_stand_ins: ContextVar[Any] = ContextVar("asyncfetch_parameters_on_meta", default=None)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that are made in this block have their parameters on the meta device, without memory.

        with asyncfetch.models.parameters_on_meta():
            model = AutoModel.from_config(config)
        asyncfetch.load_into(model, "org/model")

    Buffers stay what they are: a module computes them when it is made, and no checkpoint holds all of
    them. Under `torch.device("meta")` they have no values either, and `load_into` refuses such a
    module. What is tied stays tied, `requires_grad` and attributes of parameters are kept, and
    subclasses of `torch.nn.Parameter` are left alone. It holds for this thread or task alone, and
    other modules that are made meanwhile are real.

    Raises SourceError if torch is not installed.
    """
    torch = import_torch()
    from torch.utils.weak import WeakIdKeyDictionary

    _listen_to_torch(torch)
    outer = _stand_ins.get()
    token = _stand_ins.set(WeakIdKeyDictionary() if outer is None else outer)
    try:
        yield
    finally:
        _stand_ins.reset(token)


@cache
def _listen_to_torch(torch: Any) -> None:
    """Have torch ask for each parameter that a module registers. Once: another thread may be walking the hooks.

    https://docs.pytorch.org/docs/stable/generated/torch.nn.modules.module.register_module_parameter_registration_hook.html
    """
    torch.nn.modules.module.register_module_parameter_registration_hook(
        lambda _module, _name, parameter: _without_memory(torch, parameter)
    )


def _without_memory(torch: Any, parameter: Any) -> Any:
    """The meta parameter that takes the place of `parameter`, or None where it stays."""
    stand_ins = _stand_ins.get()
    if stand_ins is None or type(parameter) is not torch.nn.Parameter or parameter.is_meta:
        return None
    if parameter not in stand_ins:
        bare = torch.empty_like(parameter, device="meta", requires_grad=False)
        stand_ins[parameter] = torch.nn.Parameter(bare, requires_grad=parameter.requires_grad)
        stand_ins[parameter].__dict__.update(parameter.__dict__)
    return stand_ins[parameter]
